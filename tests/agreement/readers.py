"""The implementations, each as a function from requests to readings."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from opentelemetry.propagators.b3 import B3MultiFormat
from opentelemetry.trace import get_current_span

from agreement.lines import Headers, Reading, read, read_headers, write
from mesh import envoy
from mesh.collector import Collector
from mesh.envoy import Common, Envoy
from mesh.plain import Connection, Echo
from mesh.ports import free_port
from mesh.procs import Processes

HERE = Path(__file__).resolve().parent
TOOLS = Path(os.environ.get("B3RELAY_TOOLS", HERE.parents[1] / ".tools")) / "agreement"

Reader = Callable[[list[Headers]], list[Reading]]


def build(say: Callable[[str], None]) -> None:
    """Builds the readers into the folder of tools. Names a toolchain that is missing."""
    for tool in ("cargo", "go", "node", "npm", "java", "mvn"):
        if shutil.which(tool) is None:
            raise SystemExit(f"agreement: {tool} is missing")
    TOOLS.mkdir(parents=True, exist_ok=True)

    def run(what: str, *command: str, cwd: Path, **variables: str) -> None:
        say(what)
        # What a build prints is progress, not a result.
        subprocess.run(
            command, cwd=cwd, check=True, env={**os.environ, **variables}, stdout=sys.stderr
        )

    rust = ("cargo", "build", "--release", "--quiet", "--locked")
    run("Rust: b3relay and OpenTelemetry", *rust, cwd=HERE / "rust", CARGO_TARGET_DIR=str(TOOLS / "rust"))
    go = ("go", "build", "-mod=readonly", "-o", str(TOOLS / "go-reader"), ".")
    run("Go: OpenTelemetry", *go, cwd=HERE / "go")
    copied = TOOLS / "js"
    copied.mkdir(exist_ok=True)
    for name in ("package.json", "package-lock.json", "reader.js"):
        shutil.copy(HERE / "js" / name, copied)
    run("JavaScript: OpenTelemetry", "npm", "ci", "--silent", "--no-audit", "--no-fund", cwd=copied)
    copied = TOOLS / "java"
    shutil.copytree(HERE / "java", copied, dirs_exist_ok=True, ignore=shutil.ignore_patterns("target"))
    run("Java: brave and OpenTelemetry", "mvn", "-q", "-B", "-Dstyle.color=never", "package", cwd=copied)


def lines(command: list[str], requests: list[Headers]) -> list[str]:
    """One line out for each line in."""
    text = "".join(write(headers) + "\n" for headers in requests)
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
    out = done.stdout.splitlines()
    assert len(out) == len(requests), f"{command[0]}: {len(out)} answers to {len(requests)} requests"
    return out


RUST = str(TOOLS / "rust" / "release" / "agreement")
JAVA = ["java", "-cp", f"{TOOLS}/java/target/classes:{TOOLS}/java/target/lib/*", "Reader"]


def repair(requests: list[Headers]) -> list[Headers]:
    """What mode `repair` makes of them."""
    return [read_headers(line) for line in lines([RUST, "repair"], requests)]


def program(*command: str) -> Reader:
    return lambda requests: [read(line) for line in lines(list(command), requests)]


def otel_python(requests: list[Headers]) -> list[Reading]:
    """The extraction of every B3 propagator of the package (they differ in what
    they inject). Values are as WSGI and ASGI decode them."""
    propagator = B3MultiFormat()

    def one(headers: Headers) -> Reading:
        carrier: dict[str, list[str]] = {}
        for name, value in headers:
            carrier.setdefault(name, []).append(value.decode("latin-1"))
        span = get_current_span(propagator.extract(carrier)).get_span_context()
        if not span.is_valid:
            return Reading(None, "~", "~")
        context = (f"{span.trace_id:032x}", f"{span.span_id:016x}")
        return Reading(context, "~", str(int(span.trace_flags.sampled)))

    return [one(headers) for headers in requests]


def envoy_zipkin(requests: list[Headers]) -> list[Reading]:
    """A listener that traces, set up as Istio does; read off what the upstream gets.

    A span of Envoy's that continues a context names the caller's span as its
    parent. Headers that come out as they went in: no span at this hop.
    """
    with ExitStack() as stack:
        collector = stack.enter_context(Collector())
        echo = stack.enter_context(Echo())
        processes = stack.enter_context(Processes())
        port = free_port()
        bootstrap = envoy.gateway(
            Common(collector.address),
            admin_port=free_port(),
            port=port,
            callee="plain",
            callee_port=echo.address[1],
        )
        started = Envoy(processes, "reader", bootstrap, concurrency=1)
        started.start()
        processes.wait_ready({started.process: started.ready}, 60)
        connection = Connection(port)
        stack.callback(lambda: connection.close())
        readings = []
        for headers in requests:
            try:
                answer = connection.get(headers)
            except ConnectionError:
                connection.close()
                connection = Connection(port)
                answer = connection.get(headers)
            assert answer.status == 200 and answer.received is not None, (answer, headers)
            readings.append(_of_upstream(headers, answer.received))
    return readings


def _of_upstream(sent: Headers, received: Headers) -> Reading:
    before = {name: value for name, value in reversed(sent)}
    after = {name: value.decode("latin-1") for name, value in reversed(received)}

    def changed(name: str) -> bool:
        return name in after and after[name].encode("latin-1") != before.get(name)

    if changed("b3"):
        trace, _, decision, *parent = after["b3"].split("-")
        read = (trace.rjust(32, "0"), parent[0]) if parent else None
        return Reading(read, "~", decision)
    if changed("x-b3-spanid"):
        trace, parent_of_span = after["x-b3-traceid"].rjust(32, "0"), after.get("x-b3-parentspanid")
        read = (trace, parent_of_span) if parent_of_span else None
        return Reading(read, "~", after["x-b3-sampled"])
    return Reading(None, "~", "~")


READERS: dict[str, Reader] = {
    "b3relay": program(RUST, "read"),
    "Envoy 1.40 (Zipkin tracer)": envoy_zipkin,
    "brave 6.3.0": program(*JAVA, "brave"),
    "OpenTelemetry Go 1.47.0": program(str(TOOLS / "go-reader")),
    "OpenTelemetry Java 1.55.0": program(*JAVA, "otel"),
    "OpenTelemetry JS 3.1.0": program("node", str(TOOLS / "js" / "reader.js")),
    "OpenTelemetry Python 1.45.1": otel_python,
    "OpenTelemetry Rust 0.32.0": program(RUST, "otel"),
}
