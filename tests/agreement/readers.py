"""The implementations, each as a function from requests to readings."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from opentelemetry.context import Context
from opentelemetry.propagators.b3 import B3MultiFormat, B3SingleFormat
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.trace import get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from agreement.lines import Headers, Reading, read, read_headers, write
from mesh import envoy
from mesh.collector import Collector
from mesh.envoy import Common, Config, Envoy
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


def otel_python(propagator: TextMapPropagator) -> Reader:
    """Values are as WSGI and ASGI decode them."""

    def one(headers: Headers) -> Reading:
        carrier: dict[str, list[str]] = {}
        for name, value in headers:
            carrier.setdefault(name, []).append(value.decode("latin-1"))
        # In a context of its own: by default W3C's takes the current one.
        span = get_current_span(propagator.extract(carrier, Context())).get_span_context()
        if not span.is_valid:
            return Reading(None, "~", "~")
        context = (f"{span.trace_id:032x}", f"{span.span_id:016x}")
        return Reading(context, "~", str(int(span.trace_flags.sampled)))

    return lambda requests: [one(headers) for headers in requests]


def envoy_tracing(tracer: Config | None = None) -> Reader:
    """A listener that traces, set up as Istio does; read off what the upstream gets.

    A span of Envoy's that continues a context names the caller's span as its
    parent. Headers that come out as they went in: no span at this hop.
    """

    def reader(requests: list[Headers]) -> list[Reading]:
        """A decision that hangs on how much Envoy samples itself is none that it read."""
        all_, none = (_through_envoy(tracer, requests, sampled) for sampled in (100.0, 0.0))
        return [
            one if one.decision == other.decision else replace(one, decision="?")
            for one, other in zip(all_, none, strict=True)
        ]

    return reader


def _through_envoy(
    tracer: Config | None, requests: list[Headers], sampled: float
) -> list[Reading]:
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
        [listener] = bootstrap["static_resources"]["listeners"]
        [manager] = listener["filter_chains"][0]["filters"]
        tracing = manager["typed_config"]["tracing"]
        tracing["random_sampling"] = {"value": sampled}
        if tracer is not None:
            provider = tracing["provider"]
            provider["name"] = tracer["name"]
            if "typed_config" in tracer:
                provider["typed_config"] = tracer["typed_config"]
            else:
                provider["typed_config"].update(tracer["zipkin"])
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
        sent_parent = before.get("x-b3-parentspanid")
        if not changed("x-b3-parentspanid") and sent_parent != before.get("x-b3-spanid"):
            parent_of_span = None  # passed on beside a root span
        read = (trace, parent_of_span) if parent_of_span else None
        return Reading(read, "~", after["x-b3-sampled"])
    if changed("traceparent"):
        # The parent is not to be seen: if it is the trace that came, then its span too.
        _, trace, _, flags = after["traceparent"].split("-")
        for value in (value for name, value in sent if name == "traceparent"):
            if trace.encode() in value:
                return Reading((trace, value.decode("latin-1").split("-")[2]), "~", flags[-1])
        return Reading(None, "~", flags[-1])
    return Reading(None, "~", "~", span=False)


@dataclass(frozen=True)
class Implementation:
    """One that reads contexts, in one setting."""

    # Its column in docs/rules.md.
    column: str
    name: str
    read: Reader
    # The headers that it reads, by their beginnings.
    headers: tuple[str, ...]

    def applies(self, request: Headers) -> bool:
        """There is something in it that it reads."""
        return any(name.startswith(self.headers) for name, _ in request)


B3 = ("b3", "x-b3-")
SINGLE = ("b3",)
W3C = ("traceparent",)
GO = str(TOOLS / "go-reader")
JS = ("node", str(TOOLS / "js" / "reader.js"))
OTEL = "OpenTelemetry"

OURS = Implementation("b3relay", "b3relay", program(RUST, "read"), B3)
READERS = [
    OURS,
    Implementation("Envoy", "Envoy 1.40 (Zipkin tracer)", envoy_tracing(), B3),
    Implementation("brave", "brave 6.3.0", program(*JAVA, "brave"), B3),
    Implementation("Go", f"{OTEL} Go 1.47.0", program(GO, "b3"), B3),
    Implementation("Java", f"{OTEL} Java 1.55.0", program(*JAVA, "b3"), B3),
    Implementation("JS", f"{OTEL} JS 3.1.0", program(*JS, "b3"), B3),
    Implementation("JS, b3", f"{OTEL} JS 3.1.0, b3 alone", program(*JS, "single"), SINGLE),
    Implementation("Python", f"{OTEL} Python 1.45.1", otel_python(B3MultiFormat()), B3),
    Implementation("Rust", f"{OTEL} Rust 0.32.0", program(RUST, "otel"), B3),
    Implementation(
        "Rust, b3", f"{OTEL} Rust 0.32.0, set up for b3", program(RUST, "otel", "single"), B3
    ),
]
# Set up for the single header, these read as they do by default: a run checks it.
ALIKE = {
    f"{OTEL} Go 1.47.0": program(GO, "single"),
    f"{OTEL} Java 1.55.0": program(*JAVA, "single"),
    f"{OTEL} Python 1.45.1": otel_python(B3SingleFormat()),
}
W3C_READERS = [
    Implementation(
        "Envoy, B3 and W3C",
        "Envoy 1.40 (Zipkin tracer, set up for B3 and W3C)",
        envoy_tracing(
            {
                "name": "envoy.tracers.zipkin",
                "zipkin": {"trace_context_option": "USE_B3_WITH_W3C_PROPAGATION"},
            }
        ),
        (*B3, *W3C),
    ),
    Implementation(
        "Envoy, W3C",
        "Envoy 1.40 (OpenTelemetry tracer)",
        envoy_tracing(
            {
                "name": "envoy.tracers.opentelemetry",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig",
                    "http_service": {
                        "http_uri": {
                            "uri": "http://collector/v1/traces",
                            "cluster": "zipkin",
                            "timeout": "1s",
                        }
                    },
                },
            }
        ),
        W3C,
    ),
    Implementation("Go", f"{OTEL} Go 1.47.0", program(GO, "w3c"), W3C),
    Implementation("Java", f"{OTEL} Java 1.55.0", program(*JAVA, "w3c"), W3C),
    Implementation("JS", f"{OTEL} JS 3.1.1", program(*JS, "w3c"), W3C),
    Implementation("Python", f"{OTEL} Python 1.45.2", otel_python(TraceContextTextMapPropagator()), W3C),
]
