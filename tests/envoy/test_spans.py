"""Client spans that b3relay reports, against Envoy's own where the apps forward everything."""

import json
import time
from collections.abc import Callable
from typing import Any, Literal

import pytest

from mesh.apps import PATHS
from mesh.bad_collector import behaving
from mesh.collector import Collector, Span
from mesh.envoy import Tracer
from mesh.facts import clients, facts
from mesh.mesh import Mesh
from mesh.ports import HOST, free_port
from mesh.tree import Node, normal_forms, render, traces

FORMATS = {"zipkin": "zipkin", "opentelemetry": "otlp"}
TRACERS: list[Tracer] = ["zipkin", "opentelemetry"]
# One click: the gateway, four services, and three calls.
SPANS = 8

Scenario = Callable[[Mesh], None]


def spans_to(cluster: str = "collector", tracer: Tracer = "zipkin") -> str:
    return json.dumps({"spans": {"cluster": cluster, "format": FORMATS[tracer]}})


def click(mesh: Mesh) -> None:
    mesh.clicks(2)


def of(mesh: Mesh, scenario: Scenario, expected: int) -> list[Span]:
    """All spans of what the scenario does."""
    scenario(mesh)
    return mesh.wait_spans(expected)


def reference(scenario: Scenario, expected: int, tracer: Tracer, **options: Any) -> list[Span]:
    forward = "w3c" if tracer == "opentelemetry" else "all7"
    with Mesh(
        forward=forward, filter=False, client_spans=True, tracer=tracer, **options
    ) as mesh:
        return of(mesh, scenario, expected)


def ours(
    scenario: Scenario, expected: int, tracer: Tracer, forward: str = "request-id", **options: Any
) -> list[Span]:
    config = spans_to(tracer=tracer)
    with Mesh(forward=forward, outbound_config=config, tracer=tracer, **options) as mesh:
        return of(mesh, scenario, expected)


def told(spans: list[Span]) -> list[str]:
    # The apps say in their answers what headers they got.
    return facts(spans, varies=["response_size"])


@pytest.mark.parametrize(
    "tracer", ["zipkin", pytest.param("opentelemetry", marks=pytest.mark.long)]
)
def test_the_trace_is_that_of_envoys_own_client_spans(tracer: Tracer) -> None:
    """Side by side with `pytest -s`."""
    theirs = reference(click, 2 * SPANS, tracer)
    found = ours(click, 2 * SPANS, tracer)
    for spans in (theirs, found):
        print(render(next(iter(traces(spans).values()))), end="\n\n")
    assert len(theirs) == 2 * SPANS, "else the comparison shows nothing"
    assert len(traces(found)) == 2
    assert told(found) == told(theirs)
    for span in clients(found, "productpage"):
        assert span["tags"]["b3relay.decision"] == "copied"
        began, took = span["timestamp"], span["duration"]
        (server,) = [one for one in found if one.get("parentId") == span["id"]]
        assert began <= server["timestamp"]
        assert server["timestamp"] + server["duration"] <= began + took + 1000


def test_calls_with_a_context_of_their_own_have_spans_too() -> None:
    theirs = reference(click, 2 * SPANS, "zipkin")
    found = ours(click, 2 * SPANS, "zipkin", forward="all7")
    assert told(found) == told(theirs)
    assert {span["tags"]["b3relay.decision"] for span in clients(found, "reviews")} == {"present"}


def node(service: str, kind: str, path: str, *children: Node) -> Node:
    return Node(service, kind, PATHS[path], tuple(sorted(children)))


@pytest.mark.long
def test_a_filter_before_the_router_has_each_edge_too() -> None:
    """As a WasmPlugin has it: without client spans a trace is flat. With them each call hangs
    from that by which its service was called, beside the span of the service."""
    with Mesh(inbound="http", config=spans_to()) as mesh:
        mesh.click()
        (trace,) = traces(mesh.wait_spans(SPANS)).values()
    ratings = node("reviews", "CLIENT", "ratings", node("ratings", "SERVER", "ratings"))
    reviews = node("reviews", "SERVER", "reviews")
    details = node("details", "SERVER", "details")
    expected = node(
        *("gateway", "CLIENT", "productpage"),
        node("productpage", "SERVER", "productpage"),
        node("productpage", "CLIENT", "details", details),
        node("productpage", "CLIENT", "reviews", reviews, ratings),
    )
    assert normal_forms(trace) == (expected,)


@pytest.mark.parametrize("inbound", ["upstream", pytest.param("http", marks=pytest.mark.long)])
def test_where_tracing_is_off_client_spans_alone_make_a_tree(
    inbound: Literal["upstream", "http"],
) -> None:
    """Of requests that come with a context."""
    context = {"x-b3-traceid": "a" * 32, "x-b3-spanid": "b" * 16, "x-b3-sampled": "1"}
    with Mesh(inbound=inbound, config=spans_to(), tracer="none") as mesh:
        mesh.click(headers=context)
        spans = mesh.wait_spans(3)
    # The client of the gateway does not report its span.
    for span in spans:
        if span["parentId"] == context["x-b3-spanid"]:
            del span["parentId"]
    (trace,) = traces(spans).values()
    ratings = node("reviews", "CLIENT", "ratings")
    details = node("productpage", "CLIENT", "details")
    assert normal_forms(trace) == (details, node("productpage", "CLIENT", "reviews", ratings))


def without_callee(mesh: Mesh) -> None:
    mesh.envoys["ratings"].stop()
    assert mesh.click().status == 502


def without_app(mesh: Mesh) -> None:
    mesh.processes.stop(mesh.apps["ratings"])
    assert mesh.click().status == 502


def failing_once(mesh: Mesh) -> None:
    assert mesh.click().status == 200


@pytest.mark.parametrize(
    ("scenario", "expected", "options", "flags"),
    [
        (without_callee, SPANS - 1, {}, "UF"),
        pytest.param(without_app, SPANS, {}, "-", marks=pytest.mark.long),
        # Two server spans of ratings below one client span.
        pytest.param(
            failing_once,
            SPANS + 1,
            {"retries": True, "fail_first": 100},
            "-",
            marks=pytest.mark.long,
        ),
    ],
    ids=["callee down", "callee fails", "retry"],
)
@pytest.mark.parametrize("tracer", TRACERS)
def test_what_goes_wrong_is_in_the_trace(
    tracer: Tracer, scenario: Scenario, expected: int, options: dict[str, Any], flags: str
) -> None:
    theirs = reference(scenario, expected, tracer, **options)
    found = ours(scenario, expected, tracer, **options)
    assert told(found) == told(theirs)
    (span,) = clients(found, "reviews")
    assert span["tags"]["response_flags"] == flags
    assert span["tags"].get("error") == (None if options else "true")


def test_what_is_not_sampled_has_no_span() -> None:
    with Mesh(outbound_config=spans_to()) as mesh:
        trace = {"x-b3-traceid": "463ac35c9f6413ad48485a3953bb6124", "x-b3-spanid": "1" * 16}
        reply = mesh.click(headers={**trace, "x-b3-sampled": "0"})
        assert reply.status == 200
        at_last = reply.received("ratings")
        assert at_last["x-b3-sampled"] == ["0"]
        assert at_last["x-b3-traceid"] == [trace["x-b3-traceid"]]
        mesh.click()
        spans = mesh.wait_spans(SPANS)
        assert len(traces(spans)) == 1
        assert counted(mesh) == {"sent": 3, "dropped": 0, "lost": 0}


def count(mesh: Mesh, service: str, what: str) -> int:
    """Spans of one sidecar."""
    name = f"wasmcustom.b3relay_spans_{what}_total"
    return int(mesh.envoys[service].stats(name).get(name, 0))


def counted(mesh: Mesh) -> dict[str, int]:
    """Spans of all sidecars."""
    return {
        what: sum(count(mesh, service, what) for service in mesh.envoys)
        for what in ("sent", "dropped", "lost")
    }


@pytest.mark.long
@pytest.mark.parametrize(
    "how", ["down", "500", "resets", "never answers", "never reads", "missing"]
)
def test_a_bad_collector_costs_no_request(how: str) -> None:
    cluster = "nowhere" if how == "missing" else "collector"
    with (
        behaving(how) as port,
        Mesh(outbound_config=spans_to(cluster), collector=(HOST, port), work_ms=0) as mesh,
    ):
        clicks = mesh.clicks(100, in_flight=4)
        # A report may take 5 s, and after one that failed no span begins in that sidecar.
        deadline = time.monotonic() + 15
        callers = ("productpage", "reviews")
        while time.monotonic() < deadline:
            if all(count(mesh, caller, "lost") > 0 for caller in callers):
                break
            time.sleep(0.5)
        clicks += mesh.clicks(100, in_flight=4)
        assert [one.status for one in clicks] == [200] * 200
        found = counted(mesh)
        assert found["sent"] == 0
        assert 0 < found["lost"] <= 300
        assert found["dropped"] >= 100
        logs = [envoy.log() for envoy in mesh.envoys.values()]
    assert not any("panic" in log for log in logs)


@pytest.mark.long
def test_a_collector_that_comes_back_gets_spans_again() -> None:
    address = (HOST, free_port())
    with Mesh(outbound_config=spans_to(), collector=address) as mesh:
        mesh.click()
        deadline = time.monotonic() + 15
        while counted(mesh)["lost"] < 3 and time.monotonic() < deadline:
            time.sleep(0.2)
        assert counted(mesh)["lost"] == 3
        reply = mesh.click()
        assert reply.status == 200
        with Collector(address) as collector:
            # It is asked every 5 s.
            deadline = time.monotonic() + 20
            while len(collector.spans()) < SPANS and time.monotonic() < deadline:
                collector.clear()
                mesh.click()
                collector.wait_for(lambda spans: len(spans) >= SPANS, 2.5)
            assert len(collector.spans()) >= SPANS


@pytest.mark.long
def test_many_calls_at_once_are_all_reported() -> None:
    with Mesh(outbound_config=spans_to(), work_ms=0, concurrency=2) as mesh:
        clicks = mesh.clicks(300, in_flight=16)
        assert [one.status for one in clicks] == [200] * 300
        spans = mesh.wait_spans(300 * SPANS, timeout=30)
        assert counted(mesh) == {"sent": 900, "dropped": 0, "lost": 0}
    assert len(spans) == 300 * SPANS
    assert {len(trace) for trace in traces(spans).values()} == {SPANS}
