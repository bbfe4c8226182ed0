"""The whole mesh: collector, four apps, four sidecars and the gateway."""

import asyncio
import http.client
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import aiohttp

from mesh import envoy
from mesh.apps import CALLS, PATHS
from mesh.collector import Collector, Span
from mesh.envoy import Address, Common, Envoy, Tracer, Wasm
from mesh.ports import HOST, free_port
from mesh.procs import MeshError, Process, Processes, Stacked
from mesh.tree import Node

ROOT = Path(__file__).resolve().parents[2]
SERVICES = tuple(CALLS)
# Envoy hands its spans over every 0.2 s (see envoy.py); twice that and some
# more without a new span means that there is none left.
_QUIET_SECONDS = 0.6

Headers = Iterable[tuple[str, str]] | Mapping[str, str]


def expected_tree(
    ratings: int = 1, client_spans: bool = False, ratings_down: bool = False
) -> Node:
    """The tree of a click when the apps forward all seven headers.

    ``ratings`` is how often that service is called: twice if the outbound
    router of reviews retries once. ``client_spans``: the callers report their calls;
    ``ratings_down``: nobody else reports that one.
    """

    def server(service: str, *children: Node) -> Node:
        return Node(service, "SERVER", PATHS[service], children)

    def call(caller: str, callee: str, *served: Node) -> Node:
        return Node(caller, "CLIENT", PATHS[callee], served)

    def called(caller: str, *served: Node) -> tuple[Node, ...]:
        """What hangs below the caller's server span."""
        if not client_spans:
            return served
        return tuple(call(caller, one.service, one) for one in served)

    below = called("reviews", *[server("ratings")] * ratings)
    if ratings_down:
        below = (call("reviews", "ratings"),) if client_spans else ()
    productpage = server(
        "productpage", *called("productpage", server("details"), server("reviews", *below))
    )
    # Istio's gateways report client spans: their listeners are outbound ones.
    return call("gateway", "productpage", productpage)


EXPECTED_TREE = expected_tree()


def wasm_path() -> Path:
    """The filter: ``B3RELAY_WASM`` in the environment, or the one that was built."""
    path = Path(os.environ.get("B3RELAY_WASM") or ROOT / "dist" / "b3relay.wasm")
    if not path.is_file():
        raise MeshError(f"no filter at {path}: run `make wasm`, or set B3RELAY_WASM")
    return path.resolve()


@dataclass(frozen=True)
class Reply:
    """An answer of the mesh."""

    status: int
    headers: list[tuple[str, str]]
    body: Any

    def received(self, service: str) -> dict[str, list[str]]:
        """The trace headers that reached the app of that service (its first call)."""
        pending = [self.body]
        while pending:
            body = pending.pop(0)
            if isinstance(body, dict):
                if body["service"] == service:
                    received: dict[str, list[str]] = body["received"]
                    return received
                pending += [call["body"] for call in body.get("calls", ())]
        raise KeyError(service)


@dataclass(frozen=True)
class Click:
    """One click of the load generator; status 0 if there was no answer."""

    number: int
    status: int
    seconds: float


def request(
    port: int,
    path: str,
    host: str = "localhost",
    headers: Headers = (),
    method: str = "GET",
    timeout: float = 30.0,
    address: str = HOST,
) -> Reply:
    """One HTTP/1.1 request; header values are Latin-1, so any byte can be sent."""
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    connection = http.client.HTTPConnection(address, port, timeout=timeout)
    try:
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        connection.putheader("Host", host)
        for name, value in pairs:
            connection.putheader(name, value.encode("latin-1"))
        connection.endheaders()
        response = connection.getresponse()
        raw = response.read()
    finally:
        connection.close()
    try:
        body = json.loads(raw)
    except ValueError:
        body = raw.decode("latin-1")
    return Reply(response.status, response.getheaders(), body)


class Mesh(Stacked):
    """Brings everything up on entry and stops everything on exit.

    forward      what the apps copy: a name of mesh.apps.FORWARD; or by service
    filter       whether the sidecars have the filter; or the names of those
                 that have it
    wasm         the filter's file, if not the default
    config       the filter's configuration; None for none
    concurrency  worker threads of each Envoy
    http2        HTTP/2 between the Envoys
    apps_http2   HTTP/2 from the apps to their sidecars
    inbound      where the filter sits on the inbound side: "upstream" (an
                 upstream HTTP filter) or "http" (an ordinary one)
    retries      the outbound routers retry what failed
    fail_first   percentage of clicks for which ratings fails once
    parallel     an app makes its calls at the same time
    work_ms      how long an app waits before it does anything
    outbound_config   the filter's configuration on the outbound side, if it is another one
    client_spans, node_metadata, failure_policy, shared_span_context, extra_stat_tags,
    tracer   see envoy.py
    collector    a collector, or the address of another one, instead of its own
    """

    def __init__(
        self,
        forward: str | Mapping[str, str] = "request-id",
        filter: bool | Collection[str] = True,
        wasm: Path | None = None,
        config: str | None = None,
        concurrency: int = 2,
        http2: bool = False,
        apps_http2: bool = False,
        inbound: Literal["upstream", "http"] = "upstream",
        retries: bool = False,
        fail_first: int = 0,
        parallel: bool = False,
        work_ms: float = 2,
        failure_policy: str | None = "FAIL_OPEN",
        shared_span_context: bool = False,
        extra_stat_tags: Iterable[str] = (),
        client_spans: bool = False,
        node_metadata: Mapping[str, Any] | None = None,
        outbound_config: str | None = None,
        tracer: Tracer = "zipkin",
        collector: Collector | Address | None = None,
        timeout: float = 60.0,
    ) -> None:
        self._forward = (
            dict.fromkeys(SERVICES, forward) if isinstance(forward, str) else dict(forward)
        )
        self._filtered = set(SERVICES if filter is True else filter or ())
        self._wasm = Wasm(wasm or wasm_path(), config, failure_policy) if self._filtered else None
        self._concurrency = concurrency
        self._http2 = http2
        self._apps_http2 = apps_http2
        self._inbound: Literal["upstream", "http"] = inbound
        self._retries = retries
        self._fail_first = fail_first
        self._parallel = parallel
        self._work_ms = work_ms
        self._shared_span_context = shared_span_context
        self._extra_stat_tags = tuple(extra_stat_tags)
        self._client_spans = client_spans
        self._node_metadata = dict(node_metadata or {})
        self._outbound_config = outbound_config
        self._tracer: Tracer = tracer
        self._given_collector = collector
        self._timeout = timeout
        self._next_click = 1

        self.collector: Collector | None = None
        self.gateway_port = free_port()
        self.app_ports = {name: free_port() for name in SERVICES}
        self.inbound_ports = {name: free_port() for name in SERVICES}
        self.outbound_ports = {name: free_port() for name in SERVICES}
        self.apps: dict[str, Process] = {}
        # By service, and "gateway".
        self.envoys: dict[str, Envoy] = {}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            address = self._enter_collector(stack)
            self.processes = stack.enter_context(Processes(show_tails=True))
            self._start(address)
            self._stack = stack.pop_all()
        return self

    def _enter_collector(self, stack: ExitStack) -> Address:
        given = self._given_collector
        if isinstance(given, tuple):
            return given
        self.collector = given if given is not None else stack.enter_context(Collector())
        return self.collector.address

    def _start(self, collector: Address) -> None:
        common = Common(
            collector,
            http2=self._http2,
            shared_span_context=self._shared_span_context,
            extra_stat_tags=self._extra_stat_tags,
            client_spans=self._client_spans,
            node_metadata=self._node_metadata,
            tracer=self._tracer,
        )
        wasm = self._wasm
        if wasm:
            # A copy, so that a build that goes on meanwhile does not matter.
            copied = shutil.copy(wasm.path, self.processes.directory / "b3relay.wasm")
            wasm = replace(wasm, path=Path(copied))
        bootstraps = {
            name: envoy.sidecar(
                common,
                name,
                admin_port=free_port(),
                inbound_port=self.inbound_ports[name],
                outbound_port=self.outbound_ports[name],
                app_port=self.app_ports[name],
                callees=self.inbound_ports,
                wasm=wasm if name in self._filtered else None,
                outbound_wasm=wasm
                and replace(wasm, config=self._outbound_config or wasm.config)
                if name in self._filtered
                else None,
                inbound=self._inbound,
                retries=self._retries,
            )
            for name in SERVICES
        }
        bootstraps["gateway"] = envoy.gateway(
            common,
            admin_port=free_port(),
            port=self.gateway_port,
            callee="productpage",
            callee_port=self.inbound_ports["productpage"],
        )
        checks: dict[Process, Callable[[], bool]] = {}
        for name, bootstrap in bootstraps.items():
            started = self.envoys[name] = Envoy(self.processes, name, bootstrap, self._concurrency)
            started.start()
            checks[started.process] = started.ready
        for name in SERVICES:
            app = self.apps[name] = self.processes.start(
                f"app-{name}",
                self._app_command(name),
                {"PYTHONPATH": str(Path(__file__).resolve().parents[1])},
            )
            checks[app] = partial(_answers, self.app_ports[name])
        self.processes.wait_ready(checks, self._timeout)

    def _app_command(self, name: str) -> list[str]:
        command = [sys.executable, "-P", "-m", "mesh.apps", "--name", name]
        command += ["--port", str(self.app_ports[name])]
        command += ["--outbound", str(self.outbound_ports[name])]
        command += ["--forward", self._forward[name]]
        command += ["--work-ms", str(self._work_ms)]
        if self._apps_http2:
            command.append("--http2")
        if self._parallel:
            command.append("--parallel")
        if name == "ratings":
            command += ["--fail-first", str(self._fail_first)]
        return command

    @property
    def url(self) -> str:
        """Where a click goes."""
        return f"http://{HOST}:{self.gateway_port}{PATHS['productpage']}"

    def new_click(self) -> int:
        """A click number that was not used yet."""
        self._next_click += 1
        return self._next_click - 1

    def click(self, number: int | None = None, headers: Headers = ()) -> Reply:
        """One click at the gateway."""
        number = self.new_click() if number is None else number
        return request(self.gateway_port, f"{PATHS['productpage']}?click={number}", headers=headers)

    def clicks(self, total: int, in_flight: int = 1) -> list[Click]:
        """That many clicks, that many at a time."""
        numbers = iter([self.new_click() for _ in range(total)])
        return asyncio.run(self._generate(numbers, in_flight))

    async def _generate(self, numbers: Iterable[int], in_flight: int) -> list[Click]:
        done: list[Click] = []
        connector = aiohttp.TCPConnector(limit=0)

        async def user(session: aiohttp.ClientSession) -> None:
            for number in numbers:  # one iterator for all users
                began = time.perf_counter()
                try:
                    async with session.get(f"{self.url}?click={number}") as response:
                        await response.read()
                        status = response.status
                except (aiohttp.ClientError, TimeoutError):
                    status = 0
                done.append(Click(number, status, time.perf_counter() - began))

        async with aiohttp.ClientSession(
            connector=connector, timeout=aiohttp.ClientTimeout(total=30)
        ) as session:
            await asyncio.gather(*(user(session) for _ in range(in_flight)))
        return sorted(done, key=lambda click: click.number)

    def spans(self, timeout: float = 15.0) -> list[Span]:
        """All spans, once no more come."""
        collector = self._own_collector()
        collector.wait_quiet(_QUIET_SECONDS, timeout)
        return collector.spans()

    def wait_spans(self, expected: int, timeout: float = 15.0) -> list[Span]:
        """All spans, once that many have come (or the time is over) and no more come."""
        self._own_collector().wait_for(lambda spans: len(spans) >= expected, timeout)
        return self.spans(timeout)

    def _own_collector(self) -> Collector:
        if self.collector is None:
            raise MeshError("the spans go to a collector outside this process")
        return self.collector


def _answers(port: int) -> bool:
    try:
        return request(port, "/ready", timeout=1.0).status == 200
    except (OSError, http.client.HTTPException):
        return False
