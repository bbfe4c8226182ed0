"""``python -m docker.world COMMAND...``: runs a command beside a real Docker engine.

In a network, a mount and a process namespace of their own there are dockerd, and
a registry that answers to ``REGISTRY`` with a certificate that everything there
trusts. Nothing of the machine is used or changed, no port clashes, and nothing is
left. It needs root and Debian 12. Where that is not to be had it says so and
runs nothing: exit code 0, but 1 under ``CI=true``.
"""

import http.client
import os
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import trustme
import yaml

from docker import debian, registry
from docker.registry import REGISTRY
from mesh import golang, namespaces
from mesh.backends import build_jaeger
from mesh.mesh import ROOT
from mesh.namespaces import needs_root, obstacle
from mesh.procs import MeshError, Process, Processes
from mesh.unrun import not_run

FETCH = ROOT / "tests" / "docker" / "fetch"
INSIDE = "B3RELAY_DOCKER_WORLD"
WHAT = "the tests on Docker"


def missing() -> str | None:
    """What is missing here, if anything."""
    return needs_root() or debian.missing() or obstacle()


def outside(command: list[str]) -> int:
    """Prepare the world, and run this program in it."""
    if (why := missing()) is not None:
        return not_run(WHAT, [why])
    # All that is fetched or built; in the world there is no network.
    try:
        root = debian.unpack()
    except MeshError as error:
        return not_run(WHAT, [f"Debian's packages cannot be had: {error}"])
    build_jaeger()
    golang.build("istio-fetch", FETCH, takes="5 minutes")
    directory = tempfile.mkdtemp(prefix="b3relay-docker-")
    environment = {**debian.environment(root), INSIDE: directory, "TMPDIR": directory}
    own = [sys.executable, "-P", "-m", "docker.world"]
    return namespaces.run([*own, *command], Path(directory), environment)


def inside(directory: Path, command: list[str]) -> int:
    """Start the engine and the registry, and run the command."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    names = directory / "hosts"
    names.write_text(f"127.0.0.1 localhost {REGISTRY}\n")
    subprocess.run(["mount", "--bind", str(names), "/etc/hosts"], check=True)

    authority = trustme.CA()
    certificate = authority.issue_cert(REGISTRY)
    trusted, served, key = (directory / name for name in ("ca.pem", "served.pem", "key.pem"))
    authority.cert_pem.write_to_path(str(trusted))
    certificate.cert_chain_pems[0].write_to_path(str(served))
    certificate.private_key_pem.write_to_path(str(key))
    configuration = directory / "registry.yml"
    told = registry.settings(directory / "registry", "127.0.0.1:443", served, key)
    configuration.write_text(yaml.safe_dump(told))

    client = directory / "client"
    shutil.copytree(debian.unpack() / debian.PLUGINS, client / "cli-plugins", symlinks=True)
    os.environ.update(
        DOCKER_HOST=f"unix://{directory}/docker.sock",
        DOCKER_CONFIG=str(client),
        SSL_CERT_FILE=str(trusted),
        # A proxy, if there is one, is not in this world.
        NO_PROXY="*",
    )
    os.environ.pop("DOCKER_CONTEXT", None)
    with Processes() as processes:
        images = processes.start("registry", ["docker-registry", "serve", configuration])
        engine = processes.start(
            "dockerd",
            [
                "dockerd",
                f"--data-root={directory}/data",
                f"--exec-root={directory}/exec",
                f"--pidfile={directory}/pid",
                f"--host={os.environ['DOCKER_HOST']}",
            ],
        )
        processes.wait_ready(
            {images: lambda: _registry_answers(trusted), engine: _engine_answers}
        )
        try:
            return subprocess.run(command).returncode
        finally:
            _stop(engine)


def _registry_answers(trusted: Path) -> bool:
    context = ssl.create_default_context(cafile=trusted)
    connection = http.client.HTTPSConnection(REGISTRY, timeout=2, context=context)
    try:
        connection.request("GET", "/v2/")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def _engine_answers() -> bool:
    return subprocess.run(["docker", "version"], capture_output=True).returncode == 0


def _stop(engine: Process) -> None:
    """The engine takes its time to stop what runs."""
    engine.signal_group(signal.SIGTERM)
    if not engine.wait(20):
        print(engine.tail(), file=sys.stderr)


def main() -> int:
    command = sys.argv[1:]
    if directory := os.environ.get(INSIDE):
        return inside(Path(directory), command)
    began = time.monotonic()
    code = outside(command)
    print(f"    {time.monotonic() - began:.0f} s")
    return code


if __name__ == "__main__":
    sys.exit(namespaces.end(main))
