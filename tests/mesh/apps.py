"""The apps: Bookinfo in small, one process per service, ignorant of tracing.

``productpage`` calls ``details`` and then ``reviews``; ``reviews`` calls
``ratings``. A call goes through the sidecar: plain HTTP to its outbound port
with the callee's name as the Host, or to the callee's name, where iptables take it
to the sidecar. What an app copies from the request it
serves to the requests it makes is the subject of the tests: ``--forward``.
"""

import argparse
import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
from aiohttp import web
from multidict import CIMultiDict

from mesh.ports import HOST

PATHS = {
    "productpage": "/productpage",
    "details": "/details/0",
    "reviews": "/reviews/0",
    "ratings": "/ratings/0",
}
CALLS: dict[str, tuple[str, ...]] = {
    "productpage": ("details", "reviews"),
    "details": (),
    "reviews": ("ratings",),
    "ratings": (),
}
FORWARD: dict[str, tuple[bytes, ...]] = {
    "none": (),
    "request-id": (b"x-request-id",),
    "all7": (
        b"x-request-id",
        b"x-b3-traceid",
        b"x-b3-spanid",
        b"x-b3-parentspanid",
        b"x-b3-sampled",
        b"x-b3-flags",
        b"x-ot-span-context",
    ),
    # Each call with a span of its own, as .NET's HttpClient does by itself.
    "traceparent": (b"traceparent",),
    # As they came, as Istio's guide has it for providers of OpenTelemetry.
    "w3c": (b"x-request-id", b"traceparent", b"tracestate"),
}
# What an app reports to have received, for the tests to see what arrives.
REPORTED = (*FORWARD["all7"], b"b3", b"traceparent", b"tracestate")


def new_span(traceparent: bytes) -> bytes:
    """The same trace and flags."""
    version, trace, _, flags = traceparent.split(b"-")
    return b"-".join((version, trace, os.urandom(8).hex().encode(), flags))


Headers = list[tuple[bytes, bytes]]
Call = Callable[[str, str, Headers], Awaitable[tuple[int, Any]]]


def aiohttp_call(base: str | None, callee_port: int, session: aiohttp.ClientSession) -> Call:
    """Calls over HTTP/1.1, on pooled connections: to ``base``, the sidecar, or else
    to that port of the callee's name."""

    async def call(host: str, path: str, headers: Headers) -> tuple[int, Any]:
        sent = CIMultiDict(
            (name.decode(), value.decode("utf-8", "surrogateescape")) for name, value in headers
        )
        if base is not None:
            sent["Host"] = host
        url = (base or f"http://{host}:{callee_port}") + path
        async with session.get(url, headers=sent) as response:
            body = await response.read()
        return response.status, _decoded(body)

    return call


def httpx_call(base: str) -> Call:
    """Calls over HTTP/2 without TLS, on one connection."""
    import httpx  # slow to import, and only needed here

    client = httpx.AsyncClient(http1=False, http2=True, timeout=30)

    async def call(host: str, path: str, headers: Headers) -> tuple[int, Any]:
        response = await client.get(base + path, headers=[(b"host", host.encode()), *headers])
        return response.status_code, _decoded(response.content)

    return call


def _decoded(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return body.decode("latin-1")


class App:
    """One service."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._name: str = options.name
        self._forward = FORWARD[options.forward]
        self._work_seconds: float = options.work_ms / 1000
        self._fail_first: int = options.fail_first
        self._parallel: bool = options.parallel
        self._failed: set[int] = set()
        self._call: Call

    async def run(self, options: argparse.Namespace) -> None:
        base = None if options.outbound is None else f"http://{HOST}:{options.outbound}"
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=3600)
        async with aiohttp.ClientSession(
            connector=connector, timeout=aiohttp.ClientTimeout(total=30)
        ) as session:
            if options.http2 and base is not None:
                self._call = httpx_call(base)
            else:
                self._call = aiohttp_call(base, options.callee_port, session)
            app = web.Application()
            app.router.add_get("/ready", self._ready)
            app.router.add_get(PATHS[self._name], self._serve)
            # A sidecar keeps its connections; closing one under it would look
            # like a failing app.
            runner = web.AppRunner(app, access_log=None, keepalive_timeout=3600)
            await runner.setup()
            await web.TCPSite(runner, options.listen, options.port, backlog=1024).start()
            await asyncio.Event().wait()

    async def _ready(self, _request: web.Request) -> web.Response:
        return web.Response()

    async def _serve(self, request: web.Request) -> web.Response:
        raw = [(name.lower(), value) for name, value in request.raw_headers]
        click = request.query.get("click")
        answer: dict[str, Any] = {
            "service": self._name,
            "click": click,
            "received": {
                name.decode(): [v.decode("latin-1") for n, v in raw if n == name]
                for name in REPORTED
                if any(n == name for n, _ in raw)
            },
        }
        await asyncio.sleep(self._work_seconds)
        if click is not None and self._fails(int(click)):
            return web.json_response(answer, status=503)

        headers = [
            (name, new_span(value) if self._forward == (b"traceparent",) else value)
            for name, value in raw
            if name in self._forward
        ]
        query = "" if click is None else f"?click={click}"
        pending = [
            self._call(callee, PATHS[callee] + query, headers) for callee in CALLS[self._name]
        ]
        if self._parallel:
            replies = await asyncio.gather(*pending)
        else:
            replies = [await call for call in pending]
        answer["calls"] = [{"status": status, "body": body} for status, body in replies]
        failed = any(status != 200 for status, _ in replies)
        return web.json_response(answer, status=502 if failed else 200)

    def _fails(self, click: int) -> bool:
        if click % 100 >= self._fail_first or click in self._failed:
            return False
        self._failed.add(click)
        return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", required=True, choices=PATHS)
    parser.add_argument("--port", required=True, type=int)
    parser.add_argument("--listen", default=HOST, metavar="ADDRESS")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--outbound", type=int, help="port of the sidecar, for all calls")
    where.add_argument(
        "--callee-port", type=int, help="call callees by name; the mesh sees to the rest"
    )
    parser.add_argument("--forward", default="none", choices=FORWARD)
    parser.add_argument("--http2", action="store_true", help="call the sidecar over HTTP/2")
    parser.add_argument("--parallel", action="store_true", help="make the calls at the same time")
    parser.add_argument("--work-ms", type=float, default=2)
    parser.add_argument(
        "--fail-first",
        type=int,
        default=0,
        metavar="PERCENT",
        help="answer 503 to the first request of so many of a hundred clicks",
    )
    options = parser.parse_args()
    asyncio.run(App(options).run(options))


if __name__ == "__main__":
    main()
