"""Two sidecars, and servers of many protocols behind them, in one event loop.

The sidecar of ``app`` has the filter. Its inbound routes lead to the servers
here, and so do its outbound ones: directly (``plain...``), or through the
sidecar of ``callee``, which has no filter but reports spans (``callee...``). So
a test plays the client, the app and the callee, and sees what each of them got.
"""

import asyncio
import json
import re
import shutil
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import grpc
import grpc.aio
from aiohttp import web
from multidict import CIMultiDict

from mesh import envoy, h2c
from mesh.collector import Collector
from mesh.envoy import Common, Config, Envoy, Tracer, Wasm
from mesh.mesh import wasm_path
from mesh.ports import HOST, free_port
from mesh.procs import Processes
from mesh.tree import Node, normal_forms

Headers = dict[str, str]
H1Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
H2Handler = Callable[[h2c.Stream, Headers], Awaitable[None]]

GRACE_MS = 200
MIB = 2**20
_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_FAULT = "envoy.filters.http.fault"
_FAULTS: Config = {"@type": "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault"}
_FAST = {"base_interval": "0.01s", "max_interval": "0.02s"}


@dataclass(frozen=True)
class Answer:
    """A response, and what the server got if it is one of ours that says so."""

    status: int
    headers: Headers
    body: bytes

    @property
    def received(self) -> Headers:
        headers: Headers = json.loads(self.body)
        return headers


def b3(headers: Headers) -> Headers:
    """The trace context."""
    return {n: v for n, v in headers.items() if n == "b3" or n.startswith("x-b3-")}


def is_called_by(callee: Headers, app: Headers) -> bool:
    """Whether the server span of the callee is a child of the app's."""
    return (
        callee["x-b3-traceid"] == app["x-b3-traceid"]
        and callee.get("x-b3-parentspanid") == app["x-b3-spanid"]
    )


async def until(check: Callable[[], bool], what: str, seconds: float = 10) -> None:
    """Poll until it is so."""
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.02)


CONFIGURATION = {
    "grace_ms": GRACE_MS,
    "copy_headers": ["grpc-trace-bin"],
}


class Protocols:
    """Brings everything up on entry and stops everything on exit.

    ``h1``, ``h2`` and ``grpc`` take what a server does, by path; a path without
    a handler is answered with the headers of the request, as JSON.

    filter         whether the sidecar of ``app`` has the filter
    spans          its key ``spans``
    client_spans   Envoy's own client spans of ``app``
    tracers        of ``app`` and of ``callee``
    """

    def __init__(
        self,
        filter: bool = True,
        spans: Mapping[str, str] | None = None,
        client_spans: bool = False,
        tracers: tuple[Tracer, Tracer] = ("zipkin", "zipkin"),
    ) -> None:
        self._filter, self._client_spans, self._tracers = filter, client_spans, tracers
        self._config = {**CONFIGURATION, **({"spans": spans} if spans else {})}
        self.h1: dict[str, H1Handler] = {}
        self.h2: dict[str, H2Handler] = {}
        self.grpc: dict[str, grpc.RpcMethodHandler] = {}
        self.inbound, self.outbound = free_port(), free_port()
        # What reached the server that CONNECT is passed on to.
        self.connects: list[bytes] = []
        # Heads, and bodies with their trailers, of chunked requests.
        self.chunked: list[tuple[bytes, tuple[bytes, bytes]]] = []

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            ports = {
                "h1": await self._start_h1(stack),
                "h2": await self._start_h2(stack),
                "grpc": await self._start_grpc(stack),
                "tcp": await self._start_tcp(stack, self._echo),
                "proxy": await self._start_tcp(stack, self._proxy),
                "raw": await self._start_tcp(stack, self._raw),
                "down": free_port(),
                "callee": free_port(),
            }
            self.collector = stack.enter_context(Collector())
            processes = stack.enter_context(Processes())
            copied = shutil.copy(wasm_path(), processes.directory / "b3relay.wasm")
            wasm = Wasm(Path(copied), json.dumps(self._config)) if self._filter else None
            common, of_callee = (
                Common(
                    self.collector.address,
                    extra_stat_tags=("decision", "direction", "reason", "rule"),
                    client_spans=self._client_spans,
                    tracer=tracer,
                )
                for tracer in self._tracers
            )
            bootstraps = {
                "app": _app(common, ports, self.inbound, self.outbound, wasm),
                "callee": _callee(of_callee, ports),
            }
            self.envoys = {
                name: Envoy(processes, name, bootstrap) for name, bootstrap in bootstraps.items()
            }
            for each in self.envoys.values():
                each.start()
            processes.wait_ready({each.process: each.ready for each in self.envoys.values()})
            self.client = await stack.enter_async_context(
                aiohttp.ClientSession(
                    timeout=aiohttp.ClientTimeout(total=20),
                    max_line_size=2 * MIB,
                    max_field_size=2 * MIB,
                )
            )
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        type_: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stack.__aexit__(type_, error, traceback)

    # The servers.

    async def _start_h1(self, stack: AsyncExitStack) -> int:
        async def serve(request: web.Request) -> web.StreamResponse:
            if handler := self.h1.get(request.path):
                return await handler(request)
            return web.json_response(received(request))

        app = web.Application(client_max_size=64 * MIB)
        app.router.add_route("*", "/{path:.*}", serve)
        runner = web.AppRunner(
            app,
            access_log=None,
            shutdown_timeout=0.1,
            keepalive_timeout=3600,
            # More than aiohttp takes by itself, so that Envoy's limits count.
            max_line_size=MIB,
            max_field_size=MIB,
            max_headers=1024,
        )
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        port = free_port()
        await web.TCPSite(runner, HOST, port).start()
        return port

    async def _start_h2(self, stack: AsyncExitStack) -> int:
        async def serve(stream: h2c.Stream) -> None:
            headers = await stream.headers()
            if handler := self.h2.get(headers[":path"]):
                await handler(stream, headers)
                return
            await stream.body()
            stream.send_headers([(":status", "200")])
            await stream.send(json.dumps(headers).encode(), end=True)

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await h2c.Connection(reader, writer, serve).run()

        return await self._start_tcp(stack, accept)

    async def _start_grpc(self, stack: AsyncExitStack) -> int:
        handlers = self.grpc

        class Handler(grpc.GenericRpcHandler):  # type: ignore[misc]  # it has no types
            def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
                return handlers.get(details.method)

        server = grpc.aio.server()
        server.add_generic_rpc_handlers([Handler()])
        port = free_port()
        server.add_insecure_port(f"{HOST}:{port}")
        await server.start()
        stack.push_async_callback(server.stop, None)
        return port

    async def _start_tcp(
        self,
        stack: AsyncExitStack,
        serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
    ) -> int:
        port = free_port()
        server = await asyncio.start_server(serve, HOST, port)
        stack.callback(server.close)
        return port

    async def _echo(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def _proxy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            self.connects.append(await reader.readuntil(b"\r\n\r\n"))
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()
            return
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await self._echo(reader, writer)

    async def _raw(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Takes chunked requests; no library keeps the trailers of HTTP/1.1."""
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.chunked.append((head, await read_chunked(reader)))
                writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + CHUNKED)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    # The clients.

    async def send(
        self,
        port: int,
        host: str,
        path: str,
        headers: Headers | CIMultiDict[str],
        method: str = "GET",
        **more: Any,
    ) -> Answer:
        """One request over HTTP/1.1."""
        sent = CIMultiDict(headers)
        sent["Host"] = host
        url = f"http://{HOST}:{port}{path}"
        async with self.client.request(
            method, url, headers=sent, allow_redirects=False, **more
        ) as response:
            body = await response.read()
            return Answer(
                response.status, {n.lower(): v for n, v in response.headers.items()}, body
            )

    async def call(self, request_id: str, host: str = "callee", path: str = "/call") -> Headers:
        """An outbound call as an app makes it that forwards ``x-request-id`` and
        nothing else; returns the headers that the callee got."""
        answer = await self.send(self.outbound, host, path, {"x-request-id": request_id})
        assert answer.status == 200, answer
        return answer.received

    def channel(self, port: int, host: str) -> grpc.aio.Channel:
        options = [
            ("grpc.default_authority", host),
            # Channels of one process share connections otherwise.
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_retries", 0),
        ]
        return grpc.aio.insecure_channel(f"{HOST}:{port}", options)

    # What became of it.

    def counts(self) -> dict[str, float]:
        """Calls by decision; and all else that has one number for both directions."""
        names = r"b3relay_(\w+)_total{(?:(?:decision|reason)=\"(\w+)\")?}"
        stats = self.envoys["app"].stats("b3relay_")
        found = ((re.fullmatch(names, name), value) for name, value in stats.items())
        return {m[2] or m[1]: value for m, value in found if m and value}

    def since(self, before: dict[str, float]) -> dict[str, float]:
        """What was counted meanwhile."""
        now = self.counts()
        return {name: n - before.get(name, 0) for name, n in now.items() if n != before.get(name)}

    async def forgotten(self, request_id: str) -> None:
        """Wait until a call with that request ID is left alone: its request has
        ended, and so has the grace."""
        deadline = time.monotonic() + 10
        while b3(await self.call(request_id, "plain")):
            assert time.monotonic() < deadline, f"{request_id} is remembered for ever"
            await asyncio.sleep(0.05)

    async def tree(self, trace: str, spans: int) -> tuple[Node, ...]:
        """The tree of a trace of that many spans."""

        def of_trace(all_spans: list[dict[str, Any]]) -> list[dict[str, Any]]:
            return [span for span in all_spans if span["traceId"] == trace]

        await asyncio.to_thread(
            self.collector.wait_for, lambda found: len(of_trace(found)) >= spans, 10
        )
        return normal_forms(of_trace(self.collector.spans()))

    def unharmed(self) -> None:
        """Envoy is alive, and nothing failed in the filter."""
        for name, each in self.envoys.items():
            assert each.process.exit_code is None, name
            log = each.log()
            assert "panic" not in log and "critical" not in log, log
        assert "host_errors" not in self.counts()


# A body with a trailer, over HTTP/1.1.
CHUNKED = b"5\r\nhello\r\n3\r\n\x00\xff!\r\n0\r\nx-trailer: kept\r\n\r\n"


async def read_chunked(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """A chunked body, put together, and its trailers as they are."""
    body = b""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        body += (await reader.readexactly(size + 2))[:-2]
    trailers = b""
    while (line := await reader.readuntil(b"\r\n")) != b"\r\n":
        trailers += line
    return body, trailers


def received(request: web.Request) -> Headers:
    """What a server got, in lower case as on HTTP/2."""
    return {name.lower(): value for name, value in request.headers.items()}


def new_id() -> str:
    return str(uuid.uuid4())


# The sidecars.


def _managers(bootstrap: Config) -> list[Config]:
    """The connection managers, inbound and outbound."""
    listeners = bootstrap["static_resources"]["listeners"]
    return [each["filter_chains"][0]["filters"][0]["typed_config"] for each in listeners]


def _host(name: str, route: Config, match: Config | None = None) -> Config:
    """As Istio's: its names have the port."""
    return {
        "name": f"{name}:9080",
        "domains": [name, f"{name}:*"],
        "routes": [
            {
                "match": match or {"prefix": "/"},
                "decorator": {"operation": f"{name}:9080/*"},
                **route,
            }
        ],
    }


def _outside(bootstrap: Config) -> Config:
    """Where Istio's sidecars let hosts go that they do not know."""
    clusters = bootstrap["static_resources"]["clusters"]
    (known,) = (one for one in clusters if one["name"] == "outbound|9080||h1")
    clusters.append({**known, "name": "PassthroughCluster"})
    return {
        "name": "allow_any",
        "domains": ["*"],
        "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "PassthroughCluster"}}],
    }


# The callee by the protocol from sidecar to sidecar, whatever the app calls with.
_CALLEES = ("callee-over-http1", "callee-over-http2")


def _to(server: str, **more: Any) -> Config:
    return {"route": {"cluster": f"outbound|9080||{server}", "timeout": "15s", **more}}


def _protocols(bootstrap: Config, h2: Iterable[str], as_it_came: Iterable[str] = ()) -> None:
    """HTTP/2 to these clusters, and whatever the request came in to those; trailers
    over HTTP/1.1 to the server that has them."""
    kinds = dict.fromkeys(h2, "explicit_http_config") | dict.fromkeys(
        as_it_came, "use_downstream_protocol_config"
    )
    for cluster in bootstrap["static_resources"]["clusters"]:
        name = cluster["name"].removeprefix("outbound|9080||")
        if name == "raw":
            how = {"explicit_http_config": {"http_protocol_options": {"enable_trailers": True}}}
        elif kind := kinds.get(name):
            how = {kind: {"http2_protocol_options": {"allow_connect": True}}}
        else:
            continue
        cluster["typed_extension_protocol_options"] = {
            _OPTIONS: {"@type": f"type.googleapis.com/{_OPTIONS}", **how}
        }


def _special(prefix: str) -> list[Config]:
    """Routes that are there on both sides."""
    retries = {"retry_on": "5xx", "num_retries": 2, "retry_back_off": _FAST}
    mirror = [{"cluster": "outbound|9080||h1"}]
    return [
        _host(f"{prefix}", _to("h1")),
        _host(f"{prefix}-h2", _to("h2")),
        _host(f"{prefix}-grpc", _to("grpc")),
        _host(f"{prefix}-retry", _to("h1", retry_policy=retries)),
        _host(f"{prefix}-mirror", _to("h1", request_mirror_policies=mirror)),
        _host(f"{prefix}-late", _to("h1", timeout="1s")),
        _host(f"{prefix}-follow", _to("h1", internal_redirect_policy={})),
        _host(f"{prefix}-raw", _to("raw")),
        _host(f"{prefix}-down", _to("down")),
        _host(
            f"{prefix}-direct",
            {"direct_response": {"status": 418, "body": {"inline_string": "by Envoy"}}},
        ),
        _host(f"{prefix}-redirect", {"redirect": {"path_redirect": "/elsewhere"}}),
    ]


def _app(
    common: Common, ports: dict[str, int], inbound_port: int, outbound_port: int, wasm: Wasm | None
) -> Config:
    bootstrap = envoy.sidecar(
        common,
        "app",
        admin_port=free_port(),
        inbound_port=inbound_port,
        outbound_port=outbound_port,
        app_port=ports["h1"],
        callees=ports | dict.fromkeys(_CALLEES, ports["callee"]) | {"empty": 9},
        wasm=wasm,
    )
    _protocols(bootstrap, h2=("h2", "grpc", "callee-over-http2"), as_it_came=("callee",))
    inbound, outbound = _managers(bootstrap)
    for manager in (inbound, outbound):
        manager["http_protocol_options"] = {"enable_trailers": True}
        # First, as in Istio's chain, where b3relay goes before the router.
        manager["http_filters"].insert(0, {"name": _FAULT, "typed_config": _FAULTS})
    aborted = {**_FAULTS, "abort": {"http_status": 429, "percentage": {"numerator": 100}}}
    fault = {**_to("h1"), "typed_per_filter_config": {_FAULT: aborted}}
    # WebSocket as in Istio's listeners, and over HTTP/2 as well.
    inbound["http2_protocol_options"] = {"allow_connect": True}
    upgrades = [{"upgrade_type": "websocket"}, {"upgrade_type": "CONNECT"}]
    inbound["upgrade_configs"] = outbound["upgrade_configs"] = upgrades
    outbound["http2_protocol_options"] = {"allow_connect": True}
    hedged = {
        # The second try has as long: on a busy machine, enough of it.
        "retry_policy": {"retry_on": "5xx", "num_retries": 1, "per_try_timeout": "1s"},
        "hedge_policy": {"hedge_on_per_try_timeout": True},
    }
    connect: Config = {"connect_matcher": {}}
    ends_here = [{"upgrade_type": "CONNECT", "connect_config": {}}]
    inbound["route_config"]["virtual_hosts"] = [
        *_special("app"),
        _host("app-fault", fault),
        _host("app-tunnel", _to("tcp", upgrade_configs=ends_here), connect),
    ]
    outbound["route_config"]["virtual_hosts"] = [
        *_special("plain"),
        _host("plain-fault", fault),
        *(_host(name, _to("callee")) for name in ("callee", "callee-h2", "callee-grpc")),
        *(_host(name, _to(name)) for name in _CALLEES),
        _host("callee-slow", _to("callee", timeout="1s")),
        _host("plain-empty", _to("empty")),
        _host("plain-nowhere", _to("h1"), {"path": "/nowhere"}),
        _host("plain-hedge", _to("h1", **hedged)),
        # No call to it has a key.
        _host("plain-keyless", _to("h1")),
        _host("tunnel", _to("tcp", upgrade_configs=ends_here), connect),
        _host("passed-on", _to("proxy", upgrade_configs=[{"upgrade_type": "CONNECT"}]), connect),
        _outside(bootstrap),
    ]
    for cluster in bootstrap["static_resources"]["clusters"]:
        if cluster["name"] == "outbound|9080||empty":
            cluster["load_assignment"]["endpoints"] = []
    return bootstrap


def _callee(common: Common, ports: dict[str, int]) -> Config:
    bootstrap = envoy.sidecar(
        common,
        "callee",
        admin_port=free_port(),
        inbound_port=ports["callee"],
        outbound_port=free_port(),
        app_port=ports["h1"],
        callees={name: port for name, port in ports.items() if name != "callee"},
    )
    _protocols(bootstrap, h2=("h2", "grpc"))
    inbound, _ = _managers(bootstrap)
    inbound["http2_protocol_options"] = {"allow_connect": True}
    inbound["upgrade_configs"] = [{"upgrade_type": "websocket"}]
    inbound["route_config"]["virtual_hosts"] = [
        *_special("callee"),
        *(_host(name, _to("h1")) for name in (*_CALLEES, "callee-slow")),
    ]
    return bootstrap
