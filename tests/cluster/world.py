"""``python -m cluster.world COMMAND...``: runs a command beside a Kubernetes of its own.

In a network, a mount and a process namespace of their own there are the components of
a cluster of one node, and a registry; the command finds it as kubectl does, by
``KUBECONFIG``. Nothing of the machine is used or changed, and when the command ends,
however it ends, nothing is left. It needs root. Where it cannot be had this says so.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import istio.world
from cluster import bookinfo, images
from cluster.components import Components, cgroup_obstacle, make_cgroups, remove_cgroups
from cluster.settings import ADDRESS, ISTIO_TAG, NODE, OLDER_TAG, packages, programs
from cluster.tools import install
from docker import debian
from docker.registry import REGISTRY
from mesh import namespaces
from mesh.backends import build_jaeger
from mesh.procs import MeshError, Processes
from mesh.unrun import not_run

_INSIDE = "--inside"
WHAT = "the tests on Kubernetes"


def obstacles() -> list[str]:
    """What keeps this machine from it."""
    found = istio.world.obstacles()
    return found + [why for why in (debian.missing(), cgroup_obstacle()) if why is not None]


def outside(command: list[str]) -> int:
    """Prepare the world, and run this program in it."""
    if found := obstacles():
        return not_run(WHAT, found)
    # All that is fetched or built; in the world there is no network.
    try:
        packages()
        debian.unpack()
        bookinfo.prepare()
    except (MeshError, OSError) as error:
        return not_run(WHAT, [f"what it is made of cannot be had: {error}"])
    build_jaeger()
    directory = Path(tempfile.mkdtemp(prefix="b3relay-cluster-"))
    make_cgroups(directory.name)
    own = [sys.executable, "-P", "-m", "cluster.world", _INSIDE, str(directory)]
    remove = partial(remove_cgroups, directory.name)
    return namespaces.run([*own, *command], directory, remove=remove)


def _run(*words: str | Path) -> None:
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)


def set_up(directory: Path) -> None:
    """What the world needs before anything can run in it."""
    _run("mount", "--make-rshared", "/")
    _run("ip", "link", "set", "lo", "up")
    _run("ip", "link", "add", "node0", "type", "veth", "peer", "name", "node1")
    for words in ("link set node1 up", f"addr add {ADDRESS}/24 dev node0", "link set node0 up",
                  "route add default dev node0"):  # fmt: skip
        _run("ip", *words.split())
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    for place in ("/run", "/var/log", "/var/lib/cni"):
        Path(place).mkdir(exist_ok=True)
        _run("mount", "-t", "tmpfs", "tmpfs", place)
    for place in ("/run/lock", "/run/netns", "/var/log/pods", "/var/log/containers"):
        Path(place).mkdir()
    names = directory / "hosts"
    names.write_text(f"127.0.0.1 localhost\n{ADDRESS} {NODE} {REGISTRY}\n")
    _run("mount", "--bind", names, "/etc/hosts")
    # The kubelet would set these for the whole machine.
    for setting, value in (
        ("vm/overcommit_memory", 1),
        ("vm/panic_on_oom", 0),
        ("kernel/panic", 10),
        ("kernel/panic_on_oops", 1),
    ):
        file = directory / setting.replace("/", "-")
        file.write_text(f"{value}\n")
        _run("mount", "--bind", file, f"/proc/sys/{setting}")


def inside(directory: Path, command: list[str]) -> int:
    """Start the cluster, and run the command."""
    clock = Clock()
    set_up(directory)
    first = [programs(), packages() / "usr/sbin", packages() / "bin"]
    os.environ["PATH"] = ":".join([*map(str, first), os.environ["PATH"], "/usr/sbin"])
    # A proxy, if there is one, is not in this world.
    os.environ["NO_PROXY"] = "*"
    with Processes(show_tails=True) as processes:
        components = Components(directory, processes, directory.name)
        os.environ["SSL_CERT_FILE"] = str(components.authority)
        control_plane = components.start_control_plane()
        processes.wait_ready(components.start_containerd())
        _load_images(directory, components)
        clock.say("images")
        processes.wait_ready(control_plane)
        clock.say("control plane")
        processes.wait_ready(components.start_node())
        processes.wait_ready(components.start_registry())
        clock.say("node")
        environment = install(directory, components.access)
        try:
            return subprocess.run(command, env={**os.environ, **environment}).returncode
        finally:
            clock.say("the command")


def _load_images(directory: Path, components: Components) -> None:
    makers: list[Callable[[], list[images.Tagged]]] = [
        images.pause,
        images.pilot,
        lambda: images.proxy(components.authority, "1.31", ISTIO_TAG),
        lambda: images.proxy(components.authority, "1.30", OLDER_TAG),
        images.python,
        images.jaeger,
        bookinfo.details,
        bookinfo.ratings,
        bookinfo.productpage,
        bookinfo.reviews,
    ]

    def load(archive: Path) -> None:
        components.load(archive)
        archive.unlink()

    # While containerd unpacks one, the next is made.
    with ThreadPoolExecutor(1) as loader:
        loading = []
        for number, make in enumerate(makers):
            archive = directory / f"image-{number}.tar"
            images.write(make(), archive)
            loading.append(loader.submit(load, archive))
        for one in loading:
            one.result()


class Clock:
    def __init__(self) -> None:
        self._began = time.monotonic()

    def say(self, what: str) -> None:
        print(f"    cluster: {what}: {time.monotonic() - self._began:.0f} s", flush=True)


def main() -> int:
    arguments = sys.argv[1:]
    if arguments[:1] == [_INSIDE]:
        return inside(Path(arguments[1]), arguments[2:])
    return outside(arguments)


if __name__ == "__main__":
    sys.exit(namespaces.end(main))
