"""Requests of one trace in parallel, each of a tenant of its own: does any call get another
tenant's header?

One real Envoy, set up as a sidecar is; client, application and callee are in this
process. Eight requests of one trace and one request ID at a time, as a fan-out makes
them. The application makes four calls for each, and carries on this or that of its trace
context, or nothing. Which request a call is made for, the path of the callee's answer
tells: the callee answers with the tenants that it was given.
"""

import argparse
import asyncio
import json
import os
import random
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import aiohttp
from aiohttp import web

from load.program import envoy_version
from mesh import envoy
from mesh.envoy import Envoy, Wasm
from mesh.mesh import wasm_path
from mesh.ports import HOST, free_port
from mesh.procs import MeshError, Processes

SIBLINGS, CALLS_EACH, TRACES_AT_ONCE = 8, 4, 4
CONFIG: dict[str, object] = {"copy_headers": ["x-tenant-*"]}
Headers = dict[str, str]


@dataclass(frozen=True)
class Request:
    """What the client sends, in the form in which it reaches the application."""

    tenant: str
    request_id: str
    trace: str
    span: str
    parent: str

    def headers(self) -> Headers:
        return {
            "x-tenant-id": self.tenant,
            "x-tenant-plan": "gold",
            "x-request-id": self.request_id,
            "x-b3-traceid": self.trace,
            "x-b3-spanid": self.span,
            "x-b3-parentspanid": self.parent,
            "x-b3-sampled": "1",
        }


def new_id(bytes_: int = 8) -> str:
    return os.urandom(bytes_).hex()


# What the application carries on, by name, and whether it tells the request.
CARRIED: dict[str, tuple[Callable[[Request], Headers], bool]] = {
    "x-request-id": (lambda r: {"x-request-id": r.request_id}, False),
    "x-b3-traceid": (lambda r: {"x-b3-traceid": r.trace}, False),
    "traceparent, with a span of its own": (
        lambda r: {"traceparent": f"00-{r.trace}-{new_id()}-01"},
        False,
    ),
    "B3, with a span of its own": (
        lambda r: {"b3": f"{r.trace}-{new_id()}-1"},
        False,
    ),
    "B3": (
        lambda r: {"x-b3-traceid": r.trace, "x-b3-spanid": r.span, "x-b3-sampled": "1"},
        True,
    ),
    "b3": (lambda r: {"b3": f"{r.trace}-{r.span}-1"}, True),
    "B3, with a child of its span": (
        lambda r: {
            "x-b3-traceid": r.trace,
            "x-b3-spanid": new_id(),
            "x-b3-parentspanid": r.span,
            "x-b3-sampled": "1",
        },
        True,
    ),
    "traceparent": (lambda r: {"traceparent": f"00-{r.trace}-{r.span}-01"}, True),
    "nothing": (lambda _: {}, False),
}


@dataclass
class Counts:
    """Calls of one kind, by the tenant headers that they arrived with."""

    own: int = 0
    none: int = 0
    another: int = 0

    def __len__(self) -> int:
        return self.own + self.none + self.another


@dataclass
class Result:
    workers: int
    calls: dict[str, Counts] = field(default_factory=lambda: {name: Counts() for name in CARRIED})
    failed: int = 0

    def failures(self) -> list[str]:
        """What does not hold."""
        found = [f"{self.failed} requests or calls failed"] if self.failed else []
        for name, counts in self.calls.items():
            if counts.another:
                found.append(f"{name}: {counts.another} calls with another tenant's header")
            if CARRIED[name][1] and counts.none:
                found.append(f"{name}: {counts.none} calls without their own tenant's header")
        return [f"{self.workers} workers: {text}" for text in found]


class Pod:
    """The Envoy, and what is around it."""

    def __init__(self, processes: Processes, workers: int, config: dict[str, object]) -> None:
        ports = [free_port() for _ in range(5)]
        self.inbound, self.outbound, self.app, self.callee, admin = ports
        wasm = Wasm(wasm_path(), json.dumps(config))
        bootstrap = envoy.pod(
            admin_port=admin,
            inbound_port=self.inbound,
            outbound_port=self.outbound,
            app=(HOST, self.app),
            callee=(HOST, self.callee),
            inbound=wasm,
            outbound=wasm,
        )
        self.envoy = Envoy(processes, f"pod-{workers}", bootstrap, workers)
        self.envoy.start()
        processes.wait_ready({self.envoy.process: self.envoy.ready})
        self.result = Result(workers)

    async def run(self, calls: int) -> Result:
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=30)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as self._session:
            runners = [
                await self._serve(self.app, self._application),
                await self._serve(self.callee, self._echo),
            ]
            rounds = iter(range(-(-calls // (SIBLINGS * CALLS_EACH))))
            await asyncio.gather(*(self._client(rounds) for _ in range(TRACES_AT_ONCE)))
            for runner in runners:
                await runner.cleanup()
        return self.result

    async def _serve(
        self, port: int, handler: Callable[[web.Request], object]
    ) -> web.AppRunner:
        app = web.Application()
        app.router.add_get("/{path:.*}", handler)  # type: ignore[arg-type]
        runner = web.AppRunner(app, access_log=None, keepalive_timeout=3600)
        await runner.setup()
        await web.TCPSite(runner, HOST, port, backlog=1024).start()
        return runner

    async def _client(self, rounds: "object") -> None:
        for _ in rounds:  # type: ignore[attr-defined]
            trace, request_id, parent = new_id(16), _uuid(), new_id()
            siblings = [
                Request(new_id(4), request_id, trace, new_id(), parent) for _ in range(SIBLINGS)
            ]
            statuses = await asyncio.gather(*(self._get(self.inbound, s.headers()) for s in siblings))
            self.result.failed += sum(status != 200 for status, _ in statuses)

    async def _get(self, port: int, headers: Headers) -> tuple[int, str]:
        # A connection in ten is made anew, so that requests and calls meet on every
        # pair of Envoy's workers.
        if random.random() < 0.1:
            headers = {**headers, "connection": "close"}
        try:
            async with self._session.get(f"http://{HOST}:{port}/", headers=headers) as response:
                return response.status, await response.text()
        except (aiohttp.ClientError, TimeoutError):
            return 0, ""

    async def _application(self, received: web.Request) -> web.Response:
        given = {name.lower(): value for name, value in received.headers.items()}
        request = Request(
            given["x-tenant-id"],
            given["x-request-id"],
            given["x-b3-traceid"],
            given["x-b3-spanid"],
            given["x-b3-parentspanid"],
        )

        async def call() -> None:
            await asyncio.sleep(random.random() * 0.005)
            name = random.choice(list(CARRIED))
            status, body = await self._get(self.outbound, CARRIED[name][0](request))
            if status != 200:
                self.result.failed += 1
                return
            tenants, counts = json.loads(body), self.result.calls[name]
            if not tenants:
                counts.none += 1
            elif tenants == [request.tenant]:
                counts.own += 1
            else:
                counts.another += 1

        await asyncio.gather(*(call() for _ in range(CALLS_EACH)))
        return web.Response()

    async def _echo(self, received: web.Request) -> web.Response:
        return web.json_response(received.headers.getall("x-tenant-id", []))


def _uuid() -> str:
    digits = new_id(16)
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-8{digits[17:20]}-{digits[20:]}"


def run(workers: int, calls: int, config: dict[str, object] | None = None) -> Result:
    """That many calls behind an Envoy with that many workers."""
    with Processes() as processes:
        pod = Pod(processes, workers, CONFIG if config is None else config)
        return asyncio.run(pod.run(calls))


def markdown(results: list[Result]) -> list[str]:
    total = sum(len(counts) for result in results for counts in result.calls.values())
    by_kind: Counter[str] = Counter()
    lines = [
        f"On {date.today()}, {envoy_version()} with {', '.join(str(r.workers) for r in results)} "
        f"workers, {total} calls:",
        "",
        "| the call carries | calls | its own tenant's header | none | another tenant's |",
        "|---|---|---|---|---|",
    ]
    for name in CARRIED:
        of = [result.calls[name] for result in results]
        by_kind[name] = sum(map(len, of))
        cells = (sum(c.own for c in of), sum(c.none for c in of), sum(c.another for c in of))
        lines.append(f"| {name} | {by_kind[name]} | {' | '.join(map(str, cells))} |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=100_000, help="in all")
    parser.add_argument("--markdown", type=Path)
    given = parser.parse_args()
    results = []
    try:
        for workers in (1, 2, 3, 4):
            print(f"{workers} workers ...", flush=True)
            results.append(run(workers, given.calls // 4))
    except MeshError as error:
        print(f"siblings: {error}", file=sys.stderr)
        return 1
    lines = markdown(results)
    print("\n".join(lines))
    if given.markdown:
        from load.keyed import write_block

        write_block(given.markdown, "siblings", lines)
    failures = [failure for result in results for failure in result.failures()]
    for failure in failures:
        print(f"FAILED {failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
