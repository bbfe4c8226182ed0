"""Trust at the edge: the snippet of docs/trust.md, which `gateway-boundary.yaml` has too,
and `incoming_context`. What a client sends does not reach the tracer."""

import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from mesh import envoy
from mesh.collector import Collector
from mesh.envoy import Common, Config, Envoy, Wasm
from mesh.mesh import ROOT, Reply, request, wasm_path
from mesh.plain import Echo
from mesh.ports import HOST, free_port
from mesh.procs import Processes

TRACE = "463ac35c9f6413ad48485a3953bb6124"
FORGED = {"x-b3-traceid": TRACE, "x-b3-spanid": "a2fb4a1d1a96d312", "x-b3-sampled": "1"}
SINGLE = {"b3": f"{TRACE}-a2fb4a1d1a96d312-1"}


def snippet() -> dict[str, Any]:
    (text,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/trust.md").read_text(), re.DOTALL)
    loaded: Config = yaml.safe_load(text)
    return loaded


def trace_of_a_click(headers: dict[str, str], early: dict[str, Any]) -> str:
    """The trace ID of the gateway's span for a client that sends these headers."""
    with Collector() as collector, Echo() as echo, Processes() as processes:
        port = free_port()
        bootstrap = envoy.gateway(
            Common(collector.address),
            admin_port=free_port(),
            port=port,
            callee="plain",
            callee_port=echo.address[1],
        )
        (listener,) = bootstrap["static_resources"]["listeners"]
        listener["filter_chains"][0]["filters"][0]["typed_config"].update(early)
        gateway = Envoy(processes, "gateway", bootstrap, concurrency=1)
        gateway.start()
        processes.wait_ready({gateway.process: gateway.ready}, 60)
        assert request(port, "/", headers=headers).status == 200
        assert collector.wait_for(lambda spans: len(spans) == 1, 15)
        (span,) = collector.spans()
        return str(span["traceId"])


@pytest.mark.parametrize("forged", [FORGED, SINGLE], ids=["multi", "single"])
def test_a_client_joins_a_trace_unless_its_headers_are_removed_early(
    forged: dict[str, str],
) -> None:
    assert trace_of_a_click(forged, early={}) == TRACE, "else the test shows nothing"
    assert trace_of_a_click(forged, early=snippet()) != TRACE


# --- Every form, every tracer ---------------------------------------------------

SPAN = "a2fb4a1d1a96d312"
# Index 14: forced by a service.
FORCED_ID = "0f7a1c2e-1b2d-ac3e-9d4f-5a6b7c8d9e0f"
FORMS: dict[str, dict[str, str]] = {
    "x-b3": FORGED,
    "x-b3-sampled": {"x-b3-sampled": "1"},
    "b3": SINGLE,
    "b3 decision": {"b3": "1"},
    "traceparent": {"traceparent": f"00-{TRACE}-{SPAN}-01", "tracestate": "forged=1"},
    "x-ot-span-context": {"x-ot-span-context": f"{TRACE};{SPAN}"},
    "grpc-trace-bin": {"grpc-trace-bin": TRACE},
    "x-client-trace-id": {"x-client-trace-id": TRACE},
    "x-envoy-force-trace": {"x-envoy-force-trace": "true"},
    "x-request-id": {"x-request-id": FORCED_ID},
    "jaeger": {"uber-trace-id": f"{TRACE}:{SPAN}:0:1"},
    "skywalking": {"sw8": f"1-{TRACE}", "sw8-correlation": TRACE, "sw8-x": "1-0"},
    "datadog": {
        "x-datadog-trace-id": "5059009911098695972",
        "x-datadog-parent-id": "1",
        "x-datadog-sampling-priority": "2",
        "x-datadog-origin": "forged",
        "x-datadog-tags": "_dd.p.tid=463ac35c9f6413ad",
    },
}
FORMS["all"] = {name: value for form in FORMS.values() for name, value in form.items()}
TRACERS: dict[str, Config | None] = {
    "zipkin": None,
    "opentelemetry": {
        "name": "envoy.tracers.opentelemetry",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig",
            "service_name": "gateway",
            "http_service": {
                "http_uri": {"uri": "http://zipkin/v1/traces", "cluster": "zipkin", "timeout": "1s"}
            },
        },
    },
}
# Where even what an internal client sends is believed, as far as Envoy believes any.
INTERNAL = {"cidr_ranges": [{"address_prefix": HOST, "prefix_len": 8}]}


def got_in(sent: Mapping[str, str], reply: Reply) -> set[str]:
    """What of the client's words the server got, or the tracer heeded."""
    assert reply.status == 200
    received = [(name, value) for name, value in reply.body]
    found = {name for name, value in received if sent.get(name) == value}
    if any(TRACE in value for _, value in received):
        found.add("the trace")
    sampled = re.compile(r"(00-.*-01|.*-1|.*-1-.*|1)")
    names = ("traceparent", "b3", "x-b3-sampled")
    if any(name in names and sampled.fullmatch(value) for name, value in received):
        found.add("sampling")
    if any(name == "x-request-id" and value[14] in "9ab" for name, value in received):
        found.add("sampling")
    return found


def edge(tracer: str, port: int, collector: tuple[str, int], to: tuple[str, int]) -> Config:
    """A gateway that samples nothing of its own."""
    made = envoy.gateway(
        Common(collector), admin_port=free_port(), port=port, callee="plain", callee_port=to[1]
    )
    tracing = manager(made)["tracing"]
    tracing["random_sampling"] = {"value": 0.0}
    tracing["provider"] = TRACERS[tracer] or tracing["provider"]
    return made


def manager(bootstrap: Config, n: int = 0) -> Config:
    """The connection manager of a listener."""
    listener = bootstrap["static_resources"]["listeners"][n]
    found: Config = listener["filter_chains"][0]["filters"][0]["typed_config"]
    return found


@contextmanager
def running(bootstrap: Config) -> Iterator[Envoy]:
    with Processes() as processes:
        started = Envoy(processes, "edge", bootstrap, concurrency=1)
        started.start()
        processes.wait_ready({started.process: started.ready}, 60)
        yield started


@pytest.mark.parametrize("remote", [True, False], ids=["address of the client", "of a proxy"])
@pytest.mark.parametrize("tracer", TRACERS)
def test_the_boundary_keeps_out_what_clients_send(tracer: str, remote: bool) -> None:
    """The trace, what forces sampling, and the ID of the request."""
    open_, closed = free_port(), free_port()
    with Collector() as collector, Echo() as echo:
        made = edge(tracer, open_, collector.address, echo.address)
        again = edge(tracer, closed, collector.address, echo.address)
        manager(again).update(snippet())
        for each in (made, again):
            manager(each).update({"use_remote_address": remote, "internal_address_config": INTERNAL})
        made["static_resources"]["listeners"] += again["static_resources"]["listeners"]
        with running(made):
            # Envoy believes most of what it is told from inside.
            internal = {} if remote else {"x-forwarded-for": HOST}
            for form, sent in FORMS.items():
                through = got_in(sent, request(open_, "/", headers={**sent, **internal}))
                assert through, f"{form}: else the test shows nothing"
                kept_out = got_in(sent, request(closed, "/", headers={**sent, **internal}))
                assert not kept_out, (form, kept_out)


@pytest.mark.parametrize("tracer", TRACERS)
@pytest.mark.parametrize("emit", ['"received"', '["b3multi", "b3", "w3c"]'])
def test_what_an_edge_without_a_tracer_drops(tracer: str, emit: str) -> None:
    """The next Envoy traces, and believes whatever it is sent."""
    trusting, dropping = free_port(), free_port()
    with ExitStack() as stack:
        collector, echo = stack.enter_context(Collector()), stack.enter_context(Echo())
        processes = stack.enter_context(Processes())
        wasm = Path(shutil.copy(wasm_path(), processes.directory / "b3relay.wasm"))
        next_ = free_port()
        made = edge(tracer, next_, collector.address, echo.address)
        manager(made)["use_remote_address"] = False
        first = envoy.plain(
            {
                port: ("INBOUND", Wasm(wasm, config=f'{{"{key}": "{what}", "emit": {emit}}}'))
                for port, key, what in (
                    (trusting, "incoming_context", "trust"),
                    (dropping, "incoming_context", "drop"),
                )
            },
            admin_port=free_port(),
            upstream=(HOST, next_),
        )
        for part in ("listeners", "clusters"):
            made["static_resources"][part] += [
                each for each in first["static_resources"][part] if each["name"] != "collector"
            ]
        for n in range(len(made["static_resources"]["listeners"])):
            manager(made, n)["internal_address_config"] = INTERNAL
        stack.enter_context(running(made))
        internal = {"x-forwarded-for": HOST}
        for form, sent in FORMS.items():
            if form in ("x-request-id", "all"):
                continue
            assert got_in(sent, request(trusting, "/", headers={**sent, **internal})), form
            kept_out = got_in(sent, request(dropping, "/", headers={**sent, **internal}))
            assert not kept_out, (form, kept_out)
        # The ID may stay: what it says of sampling may not.
        for form in ("x-request-id", "all"):
            assert "sampling" in got_in({}, request(trusting, "/", headers=FORMS[form]))
            reply = request(dropping, "/", headers=FORMS[form])
            assert not got_in({}, reply), form
            (id_,) = [value for name, value in reply.body if name == "x-request-id"]
            assert id_ == FORCED_ID.replace("-ac3e-", "-4c3e-")


def test_the_manifest_is_the_snippet() -> None:
    manifest = yaml.safe_load((ROOT / "envoyfilter/gateway-boundary.yaml").read_text())
    (patch,) = manifest["spec"]["configPatches"]
    typed = dict(patch["patch"]["value"]["typed_config"])
    typed.pop("@type")
    assert typed == snippet()
