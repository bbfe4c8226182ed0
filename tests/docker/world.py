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

from docker import debian
from mesh import golang
from mesh.backends import build_jaeger
from mesh.mesh import ROOT
from mesh.namespaces import UNSHARE, needs_root, obstacle
from mesh.procs import MeshError, Process, Processes
from mesh.unrun import not_run

# The host of the examples in the docs.
REGISTRY = "registry.example.com"
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
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    process = subprocess.Popen(
        [*UNSHARE, sys.executable, "-P", "-m", "docker.world", *command],
        env={**os.environ, **debian.environment(root), INSIDE: directory, "TMPDIR": directory},
    )
    try:
        return process.wait()
    except KeyboardInterrupt:
        return process.wait()  # it got the Ctrl-C as well
    finally:
        # With it ends all that runs in the world; soon after, what it mounted is gone.
        process.kill()
        process.wait()
        deadline = time.monotonic() + 10
        while Path(directory).exists():
            shutil.rmtree(directory, ignore_errors=time.monotonic() < deadline)


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
    configuration.write_text(
        f"""
version: 0.1
log: {{level: warn}}
storage: {{filesystem: {{rootdirectory: {directory}/registry}}}}
http: {{addr: "127.0.0.1:443", tls: {{certificate: {served}, key: {key}}}}}
"""
    )

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
        registry = processes.start("registry", ["docker-registry", "serve", configuration])
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
            {registry: lambda: _registry_answers(trusted), engine: _engine_answers}
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
    try:
        if directory := os.environ.get(INSIDE):
            return inside(Path(directory), command)
        began = time.monotonic()
        code = outside(command)
        print(f"    {time.monotonic() - began:.0f} s")
        return code
    except (MeshError, subprocess.CalledProcessError) as error:
        print(f"b3relay: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
