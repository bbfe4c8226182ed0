"""A collector that keeps the spans in memory, for the tests to look at.

It takes Zipkin's format (v2, JSON) and OpenTelemetry's (OTLP over HTTP, protobuf), and
keeps both in Zipkin's.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Self

from aiohttp import web

from mesh.ports import HOST, free_port

Span = dict[str, Any]
Address = tuple[str, int]


class Collector:
    """Takes ``POST /api/v2/spans`` and ``POST /v1/traces`` in a thread of its own, on
    loopback if not told where."""

    def __init__(self, address: Address | None = None) -> None:
        self.address = address or (HOST, free_port())
        self._spans: list[Span] = []
        self._changed = threading.Condition()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="collector", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._serve(), self._loop).result(timeout=10)
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(timeout=10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10)
        self._loop.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    async def _serve(self) -> None:
        app = web.Application(client_max_size=64 * 2**20)
        app.router.add_post("/api/v2/spans", self._take_zipkin)
        app.router.add_post("/v1/traces", self._take_otlp)
        # Envoys stop after us, so an open connection is no reason to wait.
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        host, port = self.address
        await web.TCPSite(self._runner, host, port).start()

    async def _take_zipkin(self, request: web.Request) -> web.Response:
        self._add(await request.json())
        return web.Response(status=202)

    async def _take_otlp(self, request: web.Request) -> web.Response:
        self._add(otlp_spans(await request.read()))
        return web.Response(content_type="application/x-protobuf")

    def _add(self, spans: list[Span]) -> None:
        with self._changed:
            self._spans.extend(spans)
            self._changed.notify_all()

    def spans(self) -> list[Span]:
        with self._changed:
            return list(self._spans)

    def clear(self) -> None:
        with self._changed:
            self._spans.clear()

    def wait_for(self, predicate: Callable[[list[Span]], bool], timeout: float) -> bool:
        """Wait until the spans received so far satisfy the predicate."""
        with self._changed:
            return self._changed.wait_for(lambda: predicate(self._spans), timeout)

    def wait_quiet(self, seconds: float, timeout: float) -> None:
        """Wait until no span has come for that long, or until the time is over."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while time.monotonic() < deadline and self._changed.wait(seconds):
                pass


# The kinds of OTLP by their number, as Zipkin names them. What is internal has none.
_KINDS = {2: "SERVER", 3: "CLIENT", 4: "PRODUCER", 5: "CONSUMER"}


def otlp_spans(message: bytes) -> list[Span]:
    """The spans of an ExportTraceServiceRequest, as Zipkin would have them."""
    # Only where there is something to read, since it takes a moment.
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    found: list[Span] = []
    for resource in ExportTraceServiceRequest.FromString(message).resource_spans:
        service = _tags(resource.resource.attributes).get("service.name", "")
        for scope in resource.scope_spans:
            for span in scope.spans:
                one: Span = {
                    "traceId": span.trace_id.hex(),
                    "id": span.span_id.hex(),
                    "name": span.name,
                    "timestamp": span.start_time_unix_nano // 1000,
                    "duration": (span.end_time_unix_nano - span.start_time_unix_nano) // 1000,
                    "localEndpoint": {"serviceName": service},
                    "tags": _with_url(_tags(span.attributes)),
                }
                if span.kind in _KINDS:
                    one["kind"] = _KINDS[span.kind]
                if span.status.code == 2:
                    one["error"] = True
                if span.parent_span_id:
                    one["parentId"] = span.parent_span_id.hex()
                found.append(one)
    return found


def _tags(attributes: Iterable[Any]) -> dict[str, str]:
    return {
        one.key: str(getattr(one.value, one.value.WhichOneof("value") or "string_value"))
        for one in attributes
    }


def _with_url(tags: dict[str, str]) -> dict[str, str]:
    """With the URL in Zipkin's place, whichever of OpenTelemetry's conventions is followed."""
    if "http.url" not in tags:
        url = tags.get("url.full") or tags.get("http.target") or tags.get("url.path", "")
        query = tags.get("url.query")
        tags["http.url"] = f"{url}?{query}" if query and "?" not in url else url
    return tags
