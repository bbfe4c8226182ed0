"""``make demo-ui``: the traces of the demo in a real Zipkin, to look at in a browser.

Zipkin comes from Maven Central; Java 17 or newer and mvn have to be there. It
is kept in the directory ``B3RELAY_TOOLS`` (default: .tools in the repository).
"""

import http.client
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from mesh.collector import Address, Span
from mesh.demo import bold, say
from mesh.mesh import EXPECTED_TREE, ROOT, Mesh, Reply, request, wasm_path
from mesh.ports import HOST, free_port
from mesh.procs import MeshError, Processes

VERSION = "3.5.1"
CLICKS = 5


def check_java() -> None:
    """Say which of the programs that are needed is missing."""
    missing = [name for name in ("java", "mvn") if shutil.which(name) is None]
    if missing:
        raise MeshError(f"{' and '.join(missing)} not found: Zipkin needs Java 17 or newer and mvn")
    told = subprocess.run(["java", "-version"], capture_output=True, text=True).stderr
    version = re.search(r'version "(\d+)', told)
    if version is None or int(version[1]) < 17:
        raise MeshError(f"Zipkin needs Java 17 or newer, but `java -version` says: {told.strip()}")


def fetch_zipkin() -> Path:
    """The jar, downloaded if it is not there yet."""
    directory = Path(os.environ.get("B3RELAY_TOOLS") or ROOT / ".tools")
    jar = directory / f"zipkin-server-{VERSION}-slim.jar"
    if not jar.is_file():
        say(f"    fetching Zipkin {VERSION} (84 MB) with mvn ...")
        subprocess.run(
            [
                "mvn",
                "-B",
                "-q",
                "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy",
                f"-Dartifact=io.zipkin:zipkin-server:{VERSION}:jar:slim",
                f"-DoutputDirectory={directory}",
                "-Dmdep.useBaseVersion=true",
            ],
            check=True,
        )
    return jar


class Zipkin:
    """A Zipkin server with its store in memory, on loopback if not told where."""

    def __init__(self, processes: Processes, jar: Path, address: Address | None = None) -> None:
        self.address = address or (HOST, free_port())
        self.url = f"http://{self.address[0]}:{self.address[1]}/zipkin/"
        process = processes.start(
            "zipkin",
            [
                "java",
                "-Xmx256m",
                # Alone, QUERY_PORT would have it listen on all interfaces.
                f"-Darmeria.ports[0].ip={self.address[0]}",
                f"-Darmeria.ports[0].port={self.address[1]}",
                "-Darmeria.ports[0].protocols[0]=http",
                "-jar",
                jar,
            ],
            {"STORAGE_TYPE": "mem"},
        )
        processes.wait_ready({process: self._healthy}, timeout=120)

    def _healthy(self) -> bool:
        try:
            return self._get("/health", timeout=2).status == 200
        except (OSError, http.client.HTTPException):
            return False

    def _get(self, path: str, timeout: float = 30.0) -> Reply:
        return request(self.address[1], path, timeout=timeout, address=self.address[0])

    def trace(self, trace_id: str) -> list[Span]:
        """Its spans so far."""
        reply = self._get(f"/api/v2/trace/{trace_id}")
        spans: list[Span] = reply.body if reply.status == 200 else []
        return spans

    def wait_for_trace(self, trace_id: str, spans: int, timeout: float = 30.0) -> None:
        """Wait until that many spans of the trace are there."""
        deadline = time.monotonic() + timeout
        while len(self.trace(trace_id)) < spans:
            if time.monotonic() > deadline:
                raise MeshError(f"Zipkin has not got {spans} spans of trace {trace_id}")
            time.sleep(0.2)


def send_clicks(mesh: Mesh) -> str:
    """Send some clicks; the trace ID that the gateway gave the last of them."""
    for _ in range(CLICKS):
        reply = mesh.click()
        if reply.status != 200:
            raise MeshError(f"a click failed: {reply}")
    return reply.received("productpage")["x-b3-traceid"][0]


def demo() -> None:
    wasm_path()  # before the download: without a filter there is nothing to show
    say(bold("b3relay demo, with Zipkin"))
    check_java()
    jar = fetch_zipkin()
    with Processes() as processes:
        say("    starting Zipkin, which may take a minute ...")
        zipkin = Zipkin(processes, jar)
        say(f"    starting the mesh without the filter; sending {CLICKS} clicks ...")
        with Mesh(forward="request-id", filter=False, collector=zipkin.address) as mesh:
            broken = send_clicks(mesh)
            # Gateway and productpage; the rest is in traces of its own.
            zipkin.wait_for_trace(broken, 2)
        say(f"    starting the mesh with the filter; sending {CLICKS} clicks ...")
        with Mesh(forward="request-id", filter=True, collector=zipkin.address) as mesh:
            whole = send_clicks(mesh)
            zipkin.wait_for_trace(whole, EXPECTED_TREE.size)
            say()
            say(f"    All traces:            {zipkin.url}?lookback=1h&limit=100")
            say(f"    A click without it:    {zipkin.url}traces/{broken}")
            say(f"    A click with b3relay:  {zipkin.url}traces/{whole}")
            say(f"    Click yourself:        {mesh.url}")
            say()
            say("    Ctrl-C stops everything.")
            signal.pause()


def main() -> int:
    try:
        demo()
    except (MeshError, subprocess.CalledProcessError) as error:
        print(f"demo-ui: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
