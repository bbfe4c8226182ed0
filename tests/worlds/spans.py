"""The collector: spans of Zipkin's tracer (JSON) and of OpenTelemetry's (protobuf)."""

import json
import time
from dataclasses import dataclass, replace
from typing import Any

from worlds.http1 import Headers, Message


# A tag that b3relay's client spans have alone.
_OURS = b"b3relay.decision"


@dataclass(frozen=True)
class Span:
    trace: str
    id: str
    parent: str | None
    kind: str
    # Microseconds.
    start: int
    # False for those of the applications' SDKs.
    envoys: bool = True
    shared: bool = False
    # A client span of b3relay's.
    relay: bool = False


class Collector:
    """Takes what the Envoys of one run report."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.last = 0.0

    async def take(self, request: Message) -> tuple[int, Headers, bytes]:
        self.last = time.monotonic()
        if request.start[1].startswith("/api/v2/spans"):
            self.spans += [_zipkin(span) for span in json.loads(request.body)]
        else:
            self.spans += _otlp(request.body)
        return 200, [("content-type", b"application/x-protobuf")], b""


def trace_id(text: str) -> str:
    """64-bit IDs are 128-bit ones that begin with zeros, in lower case."""
    return text.lower().rjust(32, "0")


def _zipkin(span: dict[str, Any]) -> Span:
    return Span(
        trace_id(span["traceId"]),
        span["id"],
        span.get("parentId"),
        span.get("kind", ""),
        span.get("timestamp", 0),
        shared=bool(span.get("shared")),
        relay=_OURS.decode() in span.get("tags", {}),
    )


def _fields(data: bytes) -> list[tuple[int, int | bytes]]:
    """The fields of a protobuf message."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    found: list[tuple[int, int | bytes]] = []
    while at < len(data):
        tag = varint()
        match tag & 7:
            case 0:
                found.append((tag >> 3, varint()))
            case 1:
                found.append((tag >> 3, int.from_bytes(data[at : at + 8], "little")))
                at += 8
            case 2:
                size = varint()
                found.append((tag >> 3, data[at : at + size]))
                at += size
            case _:
                found.append((tag >> 3, data[at : at + 4]))
                at += 4
    return found


def _otlp(body: bytes) -> list[Span]:
    """opentelemetry/proto/trace/v1: resource_spans 1, scope_spans 2, spans 2."""
    spans = []
    for _, resource in _fields(body):
        for number, scope in _fields(resource) if isinstance(resource, bytes) else ():
            for field, span in _fields(scope) if number == 2 and isinstance(scope, bytes) else ():
                if field == 2 and isinstance(span, bytes):
                    fields = _fields(span)
                    tags = (value for number, value in fields if number == 9)
                    is_ours = any(isinstance(tag, bytes) and _OURS in tag for tag in tags)
                    spans.append(replace(_otlp_span(dict(fields)), relay=is_ours))
    return spans


def _otlp_span(fields: dict[int, int | bytes]) -> Span:
    def text(number: int) -> str:
        value = fields.get(number, b"")
        return value.hex() if isinstance(value, bytes) else ""

    start = fields.get(7, 0)
    kinds = {2: "SERVER", 3: "CLIENT"}
    kind = fields.get(6, 0)
    return Span(
        text(1),
        text(2),
        text(4) or None,
        kinds.get(kind, "") if isinstance(kind, int) else "",
        start // 1000 if isinstance(start, int) else 0,
    )
