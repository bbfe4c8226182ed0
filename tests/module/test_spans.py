"""Client spans: what the compiled module reports, and to whom."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from module.proxy_wasm_host import (
    INBOUND,
    INTERNAL_FAILURE,
    OUTBOUND,
    STATUSES,
    Headers,
    Host,
    Plugin,
    Process,
    Stream,
    load,
)

ROOT = Path(__file__).resolve().parents[2]
WASM = Path(os.environ.get("B3RELAY_WASM", ROOT / "dist/b3relay.wasm"))
CLUSTER = "outbound|9411||zipkin.istio-system.svc.cluster.local"
SPANS = {"spans": {"cluster": CLUSTER, "format": "zipkin"}}

pytestmark = pytest.mark.timeout(60)

ID = ("x-request-id", b"0f7a1c2e-1b2d-4c3e-9d4f-5a6b7c8d9e0f")
CONTEXT: Headers = [
    ("x-b3-traceid", b"463ac35c9f6413ad48485a3953bb6124"),
    ("x-b3-spanid", b"a2fb4a1d1a96d312"),
    ("x-b3-sampled", b"1"),
]
CALL: Headers = [(":method", b"GET"), (":path", b"/a"), (":authority", b"ratings:9080"), ID]


def number(value: int) -> bytes:
    return struct.pack("<Q", value)


ENDED = {
    "request.time": number(1_700_000_000_000_000_000),
    "request.duration": number(5_000_000),
    "response.code": number(200),
    "response.flags": number(0),
    "request.size": number(0),
    "response.size": number(3),
    "request.protocol": b"HTTP/1.1",
    "source.address": b"10.0.0.7:4321",
    "xds.cluster_name": b"outbound|9080||ratings",
    "xds.virtual_host_name": b"ratings:9080",
}


class Sidecar:
    def __init__(self, config: Mapping[str, object] = SPANS) -> None:
        self.process = Process()
        self.worker = Host(load(WASM), self.process)
        self.inbound = self.worker.plugin(b"", INBOUND)
        self.outbound = self.configured(config)

    def configured(self, config: Mapping[str, object]) -> Plugin:
        plugin = self.worker.plugin(dict(config), OUTBOUND)
        assert plugin.configured
        plugin.properties |= ENDED
        return plugin

    def begin(self, request: Headers = CALL, context: Headers = CONTEXT) -> Stream:
        self.inbound.request([ID, *context])
        stream = self.outbound.stream()
        stream.on_request_headers(request)
        return stream

    def call(self) -> None:
        self.begin().end()

    def tick(self, ms: int = 1000) -> None:
        self.process.wait(ms)
        self.inbound.tick()
        self.outbound.tick()

    def reported(self) -> list[Any]:
        """The spans of the one report that is on its way."""
        (call,) = self.worker.http_calls
        spans: list[Any] = json.loads(call.body)
        return spans

    def answer(self, status: bytes) -> None:
        self.outbound.answer(self.worker.http_calls[0], status)

    def counted(self) -> tuple[int, int, int]:
        """Sent, dropped, lost."""
        metrics = self.process.metrics
        sent, dropped, lost = (
            metrics[f"b3relay_spans_{what}_total"] for what in ("sent", "dropped", "lost")
        )
        return sent, dropped, lost


def test_a_span_is_reported_with_the_tick() -> None:
    sidecar = Sidecar()
    assert sidecar.counted() == (0, 0, 0)
    stream = sidecar.begin()
    sent = dict(stream.headers)
    assert sent["x-b3-parentspanid"] == b"a2fb4a1d1a96d312"
    sidecar.tick()
    assert not sidecar.worker.http_calls, "it is not over"
    stream.end()
    sidecar.tick()
    (span,) = sidecar.reported()
    assert span["id"].encode() == sent["x-b3-spanid"]
    assert span["parentId"] == "a2fb4a1d1a96d312"
    assert span["name"] == "ratings:9080/*"
    assert (span["timestamp"], span["duration"]) == (1_700_000_000_000_000, 5000)
    assert span["tags"]["peer.address"] == "10.0.0.7"
    (call,) = sidecar.worker.http_calls
    assert (call.cluster, call.timeout_ms) == (CLUSTER, 5000)
    headers = dict(call.headers)
    assert headers[":path"] == b"/api/v2/spans"
    assert headers[":authority"] == b"zipkin.istio-system.svc.cluster.local"
    # Nobody on the way is to trace reports.
    assert headers["x-b3-sampled"] == b"0" and headers["traceparent"].endswith(b"-00")
    sidecar.answer(b"202")
    assert sidecar.counted() == (1, 0, 0)
    assert sidecar.worker.lines("critical") == []


def test_the_status_of_grpc_is_in_headers_or_trailers() -> None:
    for in_headers in (True, False):
        sidecar = Sidecar()
        stream = sidecar.begin([*CALL, ("content-type", b"application/grpc")])
        status: Headers = [("grpc-status", b"14"), ("grpc-message", b"down")]
        stream.on_response_headers([(":status", b"200"), *(status if in_headers else [])])
        if not in_headers:
            stream.on_response_trailers(status)
        stream.done()
        stream.delete()
        sidecar.tick()
        (span,) = sidecar.reported()
        found = [span["tags"][name] for name in ("grpc.status_code", "grpc.message", "error")]
        assert found == ["14", "down", "true"]


def test_a_full_batch_does_not_wait_for_the_tick() -> None:
    sidecar = Sidecar()
    for _ in range(99):
        sidecar.call()
    assert sidecar.outbound.tick_period_ms == 1000
    sidecar.call()
    assert sidecar.outbound.tick_period_ms == 1
    sidecar.tick(1)
    assert sidecar.outbound.tick_period_ms == 1000
    assert len(sidecar.reported()) == 100


@pytest.mark.parametrize("gone_with", ["an answer", "the tick of another plugin"])
def test_a_full_batch_that_has_gone_before_the_early_tick(gone_with: str) -> None:
    sidecar = Sidecar()
    other = sidecar.configured({**SPANS, "mode": "repair"})
    sidecar.call()
    sidecar.tick()
    for _ in range(100):
        sidecar.call()
    assert sidecar.outbound.tick_period_ms == 1
    if gone_with == "an answer":
        sidecar.answer(b"202")
    else:
        other.tick()
    assert len(json.loads(sidecar.worker.http_calls[-1].body)) == 100
    sidecar.tick(1)
    assert sidecar.outbound.tick_period_ms == 1000


def test_a_plugin_that_has_gone_asks_for_no_more_ticks() -> None:
    """Envoy would go on with them, at the last period."""
    sidecar = Sidecar()
    for _ in range(99):
        sidecar.call()
    stream = sidecar.begin()
    gone = sidecar.outbound
    sidecar.outbound = sidecar.configured({**SPANS, "mode": "repair"})
    stream.end()
    assert gone.tick_period_ms == 1
    sidecar.worker.enter(gone, "proxy_on_delete")
    assert (gone.tick_period_ms, sidecar.outbound.tick_period_ms) == (0, 1000)


def test_two_plugins_that_share_their_reports_send_one_a_second() -> None:
    sidecar = Sidecar()
    other = sidecar.configured({**SPANS, "mode": "repair"})
    for _ in range(4):
        sidecar.call()
        sidecar.tick(500)
        sidecar.process.wait(500)
        sidecar.call()
        other.tick()
        while sidecar.worker.http_calls:
            sidecar.answer(b"202")
    assert sidecar.worker.calls["proxy_http_call"] == 2 * 4, "each report is two calls"
    assert sidecar.counted() == (7, 0, 0)


def test_two_reports_are_in_flight_at_most() -> None:
    sidecar = Sidecar()
    for _ in range(4):
        sidecar.call()
        sidecar.tick()
    assert len(sidecar.worker.http_calls) == 2
    sidecar.answer(b"202")
    sidecar.tick()
    assert len(sidecar.worker.http_calls) == 2
    sidecar.answer(b"202")
    sidecar.answer(b"202")
    assert sidecar.counted() == (4, 0, 0)


@pytest.mark.parametrize("status", STATUSES)
def test_a_cluster_that_is_missing_or_empty_costs_no_call_anything(status: int) -> None:
    sidecar = Sidecar()
    sidecar.worker.fault = lambda name: status if name == "proxy_http_call" else None
    sidecar.call()
    sidecar.tick()
    assert sidecar.counted() == (0, 0, 1)
    # No span begins now: the call says what it says without spans.
    stream = sidecar.begin()
    assert dict(stream.headers)["x-b3-spanid"] == b"a2fb4a1d1a96d312"
    assert sidecar.counted() == (0, 1, 1)
    stream.end()
    sidecar.tick()
    sidecar.worker.fault = None
    for _ in range(6):
        sidecar.tick()
    assert sidecar.reported() == [], "it is asked whether it is there again"
    sidecar.answer(b"202")
    sidecar.call()
    sidecar.tick()
    sidecar.answer(b"202")
    assert sidecar.counted() == (1, 1, 1)


@pytest.mark.parametrize("status", [b"500", b"503", b"504", b"404", b"", b"\xff"])
def test_a_collector_that_refuses_costs_what_it_was_sent(status: bytes) -> None:
    sidecar = Sidecar()
    sidecar.call()
    open_stream = sidecar.begin()
    sidecar.tick()
    sidecar.answer(status)
    assert sidecar.counted() == (0, 0, 1)
    open_stream.end()
    sidecar.call()
    assert sidecar.counted() == (0, 1, 1)
    for _ in range(6):
        sidecar.tick()
    assert len(sidecar.reported()) == 1, "the one that had begun before"
    sidecar.answer(b"202")
    assert sidecar.counted() == (1, 1, 1)


@pytest.mark.long
def test_memory_is_bounded_while_nobody_answers() -> None:
    def size(config: Mapping[str, object]) -> int:
        sidecar = Sidecar(config)
        for number in range(4000):
            sidecar.call()
            if number == 300:
                sidecar.tick()
        # What is counted often is counted with the tick.
        sidecar.tick()
        dropped = sidecar.counted()[1]
        assert dropped > 2000 if config else dropped == 0
        return sidecar.worker.memory_bytes()

    assert size(SPANS) - size({}) < 2**20


def test_another_configuration_goes_on_with_the_spans_that_wait() -> None:
    sidecar = Sidecar()
    stream = sidecar.begin()
    sidecar.call()
    before = sidecar.outbound
    sidecar.outbound = sidecar.configured({**SPANS, "mode": "repair"})
    sidecar.worker.enter(before, "proxy_on_delete")
    stream.end()
    sidecar.tick()
    assert len(sidecar.reported()) == 2


def test_what_nobody_reports_any_more_is_lost() -> None:
    sidecar = Sidecar()
    sidecar.call()
    sidecar.tick()
    sidecar.call()
    stream = sidecar.begin()
    gone = sidecar.outbound
    elsewhere = {"spans": {"cluster": "elsewhere", "format": "zipkin"}}
    sidecar.outbound = sidecar.configured(elsewhere)
    sidecar.worker.enter(gone, "proxy_on_delete")
    assert sidecar.counted() == (0, 0, 0), "a stream of it goes on"
    stream.end()
    assert sidecar.counted() == (0, 0, 3)
    # The next one with the first configuration begins anew.
    sidecar.outbound = sidecar.configured(SPANS)
    sidecar.tick()
    assert len(sidecar.worker.http_calls) == 1
    assert sidecar.counted() == (0, 0, 3)


def test_an_answer_to_a_plugin_that_has_gone_is_none() -> None:
    sidecar = Sidecar()
    sidecar.call()
    sidecar.tick()
    (call,) = sidecar.worker.http_calls
    gone = sidecar.outbound
    sidecar.outbound = sidecar.configured(SPANS)
    sidecar.worker.enter(gone, "proxy_on_delete")
    assert sidecar.counted() == (0, 0, 1)
    gone.answer(call, b"202")
    assert sidecar.worker.lines("critical") == []
    assert sidecar.counted() == (0, 0, 1)
    # It does not stand in the way of those that follow.
    for waiting in range(2):
        sidecar.call()
        sidecar.tick()
        assert len(sidecar.worker.http_calls) == 1 + waiting


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize(
    "failing", ["proxy_call_foreign_function", "proxy_get_header_map_value", "proxy_http_call"]
)
def test_a_host_call_that_fails_costs_a_span_and_no_more(failing: str, status: int) -> None:
    sidecar = Sidecar()
    sidecar.worker.fault = lambda name: status if name == failing else None
    sidecar.outbound = sidecar.configured(SPANS)
    stream = sidecar.begin([*CALL, ("content-type", b"application/grpc")])
    stream.on_response_headers([(":status", b"200")])
    stream.on_response_trailers([("grpc-status", b"0")])
    stream.done()
    stream.delete()
    sidecar.tick()
    if sidecar.worker.http_calls:
        sidecar.answer(b"202")
    assert sum(sidecar.counted()) == 1
    assert sidecar.worker.lines("critical") == []
    assert not sidecar.worker.dead


def test_without_an_end_from_envoy_there_is_no_span() -> None:
    sidecar = Sidecar()
    del sidecar.outbound.properties["response.flags"]
    sidecar.call()
    sidecar.tick()
    assert not sidecar.worker.http_calls
    assert sidecar.counted() == (0, 1, 0)


def test_no_span_begins_where_envoy_cannot_tell_the_end() -> None:
    sidecar = Sidecar()
    sidecar.worker.fault = lambda name: (
        INTERNAL_FAILURE if name == "proxy_call_foreign_function" else None
    )
    sidecar.outbound = sidecar.configured(SPANS)
    sidecar.worker.fault = None
    stream = sidecar.begin()
    assert dict(stream.headers)["x-b3-spanid"] == b"a2fb4a1d1a96d312"
    stream.end()
    assert sidecar.counted() == (0, 1, 0)


def test_no_span_begins_where_envoy_never_tells_the_end() -> None:
    def has_span(stream: Stream) -> bool:
        return dict(stream.headers)["x-b3-spanid"] != b"a2fb4a1d1a96d312"

    sidecar = Sidecar()
    last = sidecar.begin()
    flags = sidecar.outbound.properties.pop("response.flags")
    for _ in range(10):
        stream = sidecar.begin()
        assert has_span(stream)
        stream.end()
    assert not has_span(sidecar.begin())
    # One that had begun before ends well.
    sidecar.outbound.properties["response.flags"] = flags
    last.end()
    assert has_span(sidecar.begin())


def test_one_that_is_not_sampled_costs_little() -> None:
    calls = 12

    def cost(config: Mapping[str, object], sampled: bytes) -> int:
        sidecar = Sidecar(config)
        context: Headers = [*CONTEXT[:2], ("x-b3-sampled", sampled)]
        # Of several calls: where a counter is found in the list differs from one to the next.
        instructions = 0
        for n in range(3 + calls):
            request = sidecar.inbound.stream()
            request.on_request_headers([ID, *context])
            before = sidecar.worker.instructions()
            stream = sidecar.outbound.stream()
            stream.on_request_headers(CALL)
            stream.end()
            if n >= 3:
                instructions += sidecar.worker.instructions() - before
            # So late that the store is empty again: each call finds the same.
            request.end()
            sidecar.tick(60_000)
        return instructions

    def more(sampled: bytes) -> int:
        return cost(SPANS, sampled) - cost({}, sampled)

    assert more(b"0") < calls * 500 < more(b"1")
