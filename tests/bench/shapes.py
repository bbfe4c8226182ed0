"""The requests of the benchmark: of several shapes, each the same for every variant."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal

Shape = Literal["inbound", "hit", "miss", "present", "unsampled", "forwarded", "keyless"]
Side = Literal["inbound", "outbound"]
Headers = dict[str, str]

SHAPES: dict[Shape, str] = {
    "inbound": "inbound: a request with B3 headers is remembered",
    "hit": "outbound hit: a call with a known request ID and no context gets one",
    "miss": "outbound miss: a call with an unknown request ID and no context",
    "present": "outbound, context present: a call with B3 headers of its own",
    "unsampled": "outbound, context present: the same with x-b3-sampled: 0",
    "forwarded": "outbound: a call with all headers of its request, its ID included",
    "keyless": "outbound: a call of an application that forwards nothing",
}
# Requests that are being served during the whole measurement, for the hits.
HELD = 64
HOST_NAME = "reviews:9080"
# Of the calls without a key: b3relay knows of each host whether calls to it carry one.
KEYLESS_HOST_NAME = "ratings:9080"

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


def held(count: int = HELD) -> list[Context]:
    """The requests that are being served."""
    return list(islice(contexts(seed=0), count))


def inbound_headers(context: Context) -> Headers:
    return {**_COMMON, **_FROM_SIDECAR, "X-Request-Id": context.request_id, **context.b3}


def call_headers(context: Context) -> Headers:
    """Of a call that carries the request's ID, and nothing else of it."""
    return {**_COMMON, "X-Request-Id": context.request_id}


def keyless_headers() -> Headers:
    return {**_COMMON, "Host": KEYLESS_HOST_NAME}


def requests(shape: Shape, count: int, seed: int = 1) -> list[Headers]:
    """The headers of so many requests."""
    known = held()
    made: list[Headers] = []
    for index, context in enumerate(islice(contexts(seed), count)):
        match shape:
            case "inbound":
                made.append(inbound_headers(context))
            case "hit":
                made.append(call_headers(known[index % HELD]))
            case "miss":
                # Not one that Envoy may have made up: a UUIDv1.
                unknown = context.request_id[:14] + "1" + context.request_id[15:]
                made.append({**_COMMON, "X-Request-Id": unknown})
            case "present":
                made.append({**_COMMON, "X-Request-Id": context.request_id, **context.b3})
            case "unsampled":
                b3 = {**context.b3, "X-B3-Sampled": "0"}
                made.append({**_COMMON, "X-Request-Id": context.request_id, **b3})
            case "forwarded":
                own = known[index % HELD]
                made.append({**_COMMON, "X-Request-Id": own.request_id, **own.b3})
            case "keyless":
                made.append(keyless_headers())
    return made
