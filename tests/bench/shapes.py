"""The requests of the benchmark: four shapes, each the same for every variant."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Shape = Literal["inbound", "hit", "miss", "present"]
Side = Literal["inbound", "outbound"]
Headers = dict[str, str]

SHAPES: dict[Shape, str] = {
    "inbound": "inbound: a request with B3 headers is remembered",
    "hit": "outbound hit: a call with a known request ID and no context gets one",
    "miss": "outbound miss: a call with an unknown request ID and no context",
    "present": "outbound, context present: a call with B3 headers of its own",
}
# Requests that are being served during the whole measurement, for the hits.
HELD = 64
HOST_NAME = "reviews:9080"

_COMMON: Headers = {
    "Host": HOST_NAME,
    "User-Agent": "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
    "Accept": "application/json, text/plain, */*",
    "Accept-Encoding": "gzip, deflate",
    "Accept-Language": "en-GB,en;q=0.7,de;q=0.3",
    "Authorization": "Bearer eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJqYXNvbiIsImF1ZCI6InJldmlld3MifQ."
    "MEUCIQDx8n0n1F6lq3dGJk1W2rZ4u7tYq0sXb5cVn9mPa2eRlQIgQ1w8o3i4u5y6t7r8",
    "Cookie": "session=eyJ1c2VyIjoiamFzb24ifQ.aR2x4Q.hF3tY7uJ9kL0pQ2wE4rT6yU8iO; theme=dark",
    "End-User": "jason",
    "Cache-Control": "no-cache",
}
# What the caller's sidecar adds on the way.
_FROM_SIDECAR: Headers = {
    "X-Forwarded-Proto": "http",
    "X-Envoy-Attempt-Count": "1",
    "X-Forwarded-Client-Cert": "By=spiffe://cluster.local/ns/default/sa/bookinfo-reviews;"
    'Hash=6fd2b3b5c1a4e0f79d1c8e2a3b4c5d6e7f8091a2b3c4d5e6f708192a3b4c5d6e;Subject="";'
    "URI=spiffe://cluster.local/ns/default/sa/bookinfo-productpage",
}


def side(shape: Shape) -> Side:
    return "inbound" if shape == "inbound" else "outbound"


@dataclass(frozen=True)
class Context:
    """A request's ID and its B3 headers."""

    request_id: str
    b3: Headers


def contexts(seed: int) -> Iterator[Context]:
    """Different ones without end; the same for the same seed."""
    dice = random.Random(seed)

    def digits(count: int) -> str:
        return f"{dice.getrandbits(4 * count):0{count}x}"

    while True:
        # A UUIDv4 as Envoy makes them; `9` where it keeps its tracing decision.
        yield Context(
            f"{digits(8)}-{digits(4)}-9{digits(3)}-a{digits(3)}-{digits(12)}",
            {
                "X-B3-TraceId": digits(32),
                "X-B3-SpanId": digits(16),
                "X-B3-ParentSpanId": digits(16),
                "X-B3-Sampled": "1",
            },
        )


def held() -> list[Context]:
    """The requests that are being served."""
    return [context for context, _ in zip(contexts(seed=0), range(HELD), strict=False)]


def inbound_headers(context: Context) -> Headers:
    return {**_COMMON, **_FROM_SIDECAR, "X-Request-Id": context.request_id, **context.b3}


def requests(shape: Shape, count: int) -> list[Headers]:
    """The headers of so many requests."""
    known = held()
    made: list[Headers] = []
    for index, context in zip(range(count), contexts(seed=1), strict=False):
        match shape:
            case "inbound":
                made.append(inbound_headers(context))
            case "hit":
                request_id = known[index % HELD].request_id
                made.append({**_COMMON, "X-Request-Id": request_id})
            case "miss":
                made.append({**_COMMON, "X-Request-Id": context.request_id})
            case "present":
                made.append({**_COMMON, "X-Request-Id": context.request_id, **context.b3})
    return made
