"""Real trace backends, Zipkin and Jaeger, to send spans to and to ask for traces.

Zipkin comes from Maven Central (Java 17 or newer and mvn have to be there), Jaeger
is built through the Go module proxy. Both are kept in the directory ``B3RELAY_TOOLS``
(default: .tools in the repository). ``python -m mesh.backends`` gets both.
"""

import http.client
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlencode

from mesh import golang
from mesh.collector import Address, Span
from mesh.golang import TOOLS
from mesh.mesh import ROOT, request
from mesh.ports import HOST, free_port
from mesh.procs import MeshError, Processes

ZIPKIN_VERSION = "3.5.1"


class Backend(Protocol):
    """What both can do."""

    # Where spans go, in Zipkin's format.
    address: tuple[str, int]

    def trace(self, trace_id: str) -> list[Span]:
        """The spans of a trace, as Zipkin has them; none if there is no such trace."""

    def traces(self, service: str) -> list[list[Span]]:
        """The traces in which a service has a part, as Zipkin has them."""

    def dependencies(self) -> set[tuple[str, str]]:
        """Who calls whom."""


def wait_for_trace(
    backend: Backend, trace_id: str, spans: int, timeout: float = 30.0
) -> list[Span]:
    """Wait until that many spans of the trace are there."""
    deadline = time.monotonic() + timeout
    while len(found := backend.trace(trace_id)) < spans:
        if time.monotonic() > deadline:
            raise MeshError(f"{len(found)} of {spans} spans of trace {trace_id} have come")
        time.sleep(0.2)
    return found


def check_java() -> None:
    """Say which of the programs that Zipkin needs is missing."""
    missing = [name for name in ("java", "mvn") if shutil.which(name) is None]
    if missing:
        raise MeshError(f"{' and '.join(missing)} not found: Zipkin needs Java 17 or newer and mvn")
    told = subprocess.run(["java", "-version"], capture_output=True, text=True).stderr
    version = re.search(r'version "(\d+)', told)
    if version is None or int(version[1]) < 17:
        raise MeshError(f"Zipkin needs Java 17 or newer, but `java -version` says: {told.strip()}")


def fetch_zipkin() -> Path:
    """The jar, downloaded if it is not there yet."""
    jar = TOOLS / f"zipkin-server-{ZIPKIN_VERSION}-slim.jar"
    if not jar.is_file():
        print(f"    fetching Zipkin {ZIPKIN_VERSION} (84 MB) with mvn ...", flush=True)
        subprocess.run(
            [
                "mvn",
                "-B",
                "-q",
                "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy",
                f"-Dartifact=io.zipkin:zipkin-server:{ZIPKIN_VERSION}:jar:slim",
                f"-DoutputDirectory={TOOLS}",
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
        return _ok(lambda: request(self.address[1], "/health", timeout=2, address=self.address[0]).status == 200)

    def trace(self, trace_id: str) -> list[Span]:
        reply = request(
            self.address[1], f"/api/v2/trace/{trace_id}", address=self.address[0]
        )
        return reply.body if reply.status == 200 else []

    def traces(self, service: str) -> list[list[Span]]:
        query = urlencode({"serviceName": service, "limit": 100})
        found: list[list[Span]] = _get(self.address[1], f"/api/v2/traces?{query}")
        return found

    def dependencies(self) -> set[tuple[str, str]]:
        query = urlencode({"endTs": _now_ms(), "lookback": 3_600_000})
        links = _get(self.address[1], f"/api/v2/dependencies?{query}")
        return {(link["parent"], link["child"]) for link in links}


JAEGER_SOURCE = ROOT / "tests" / "jaeger"


def build_jaeger() -> Path:
    """Jaeger's all-in-one, built if it is not there yet."""
    package = "github.com/jaegertracing/jaeger/cmd/all-in-one"
    return golang.build("jaeger", JAEGER_SOURCE, package, takes="4 minutes")


class Jaeger:
    """Jaeger with its store in memory. Its web page is in the container image only."""

    def __init__(self, processes: Processes, program: Path) -> None:
        self.address = (HOST, free_port())
        # Where spans go in OpenTelemetry's format.
        self.otlp_address = (HOST, free_port())
        self._query_port = free_port()
        # All ports that it opens, or two could not run side by side.
        ports = {
            "collector.zipkin.host-port": self.address[1],
            "query.http-server.host-port": self._query_port,
            "query.grpc-server.host-port": free_port(),
            "collector.http-server.host-port": free_port(),
            "collector.grpc-server.host-port": free_port(),
            "collector.otlp.http.host-port": self.otlp_address[1],
            "collector.otlp.grpc.host-port": free_port(),
            "admin.http.host-port": free_port(),
        }
        process = processes.start(
            "jaeger",
            [program, *(f"--{flag}={HOST}:{port}" for flag, port in ports.items())],
            # No traces of its own among ours.
            {"OTEL_TRACES_SAMPLER": "always_off", "SPAN_STORAGE_TYPE": "memory"},
        )
        processes.wait_ready({process: self._healthy})
        self.api = JaegerApi(self._query_port)

    def _healthy(self) -> bool:
        return _ok(
            lambda: (
                request(self._query_port, "/api/services", timeout=2).status == 200
                and request(self.address[1], "/", timeout=2).status > 0
            )
        )

    def trace(self, trace_id: str) -> list[Span]:
        return self.api.trace(trace_id)

    def traces(self, service: str) -> list[list[Span]]:
        return self.api.traces(service)

    def dependencies(self) -> set[tuple[str, str]]:
        return self.api.dependencies()


class JaegerApi:
    """What the web page of a Jaeger asks it. ``base``: the path that all begins with."""

    def __init__(self, port: int, base: str = "") -> None:
        self._port = port
        self._base = base

    def trace(self, trace_id: str) -> list[Span]:
        reply = request(self._port, f"{self._base}/api/traces/{trace_id}")
        if reply.status == 404:
            return []
        return [span for trace in reply.body["data"] or () for span in zipkin_spans(trace)]

    def traces(self, service: str) -> list[list[Span]]:
        query = urlencode({"service": service, "limit": 100})
        found = _get(self._port, f"{self._base}/api/traces?{query}")["data"]
        return [zipkin_spans(trace) for trace in found]

    def dependencies(self) -> set[tuple[str, str]]:
        query = urlencode({"endTs": _now_ms(), "lookback": 3_600_000})
        links = _get(self._port, f"{self._base}/api/dependencies?{query}")["data"]
        return {(link["parent"], link["child"]) for link in links}


def zipkin_spans(trace: dict[str, Any]) -> list[Span]:
    """A trace of Jaeger's API as Zipkin would have it."""
    return [_zipkin_span(span, trace["processes"]) for span in trace["spans"]]


def _zipkin_span(span: dict[str, Any], processes: dict[str, Any]) -> Span:
    tags = {tag["key"]: str(tag["value"]) for tag in span["tags"]}
    parents = [
        reference["spanID"]
        for reference in span["references"]
        if reference["refType"] == "CHILD_OF" and reference["traceID"] == span["traceID"]
    ]
    return {
        "traceId": span["traceID"],
        "id": span["spanID"],
        **({"parentId": parents[0]} if parents else {}),
        "kind": tags.pop("span.kind", "").upper(),
        "name": span["operationName"],
        "timestamp": span["startTime"],
        "duration": span["duration"],
        "localEndpoint": {"serviceName": processes[span["processID"]]["serviceName"]},
        "tags": tags,
    }


def _get(port: int, path: str) -> Any:
    reply = request(port, path)
    if reply.status != 200:
        raise MeshError(f"{path}: {reply.status} {reply.body}")
    return reply.body


def _now_ms() -> int:
    return int(time.time() * 1000)


def _ok(check: Callable[[], bool]) -> bool:
    try:
        return check()
    except (OSError, http.client.HTTPException):
        return False


def main(wanted: Iterable[str]) -> int:
    try:
        for name in wanted or ("zipkin", "jaeger"):
            if name == "zipkin":
                check_java()
            print(f"    {name}: {fetch_zipkin() if name == 'zipkin' else build_jaeger()}")
    except (MeshError, subprocess.CalledProcessError) as error:
        print(f"b3relay: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
