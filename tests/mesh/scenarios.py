"""Calls of every kind, and the spans that they leave: with b3relay, and with Envoy's own client
spans where the app forwards everything.

Each scenario is an app that serves one request, and makes calls for it meanwhile. All of
them run at the same time, in one pair of sidecars with the filter, and in one without it.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import grpc
import grpc.aio
from aiohttp import web

from mesh import h2c
from mesh.apps import FORWARD
from mesh.collector import Span
from mesh.envoy import Tracer
from mesh.facts import clients, facts
from mesh.ports import HOST
from mesh.protocols import Headers, Protocols, new_id, received

@dataclass
class App:
    """What a scenario has of the app that serves a request."""

    net: Protocols
    name: str
    headers: Headers
    """Those that it forwards."""

    @property
    def path(self) -> str:
        """Where the callee serves its calls."""
        return f"/out/{self.name}"

    def serve(self, answer: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> None:
        """What the callee does with them."""
        self.net.h1[self.path] = answer

    async def call(self, host: str, method: str = "GET", path: str = "", **more: Any) -> int:
        """A call; the status of the answer, and 0 if there is none."""
        headers = {**self.headers, **more.pop("headers", {})}
        path = path or self.path
        try:
            answer = await self.net.send(
                self.net.outbound, host, path, headers, method=method, **more
            )
        except (aiohttp.ClientError, TimeoutError):
            return 0
        return answer.status

    def channel(self, host: str) -> grpc.aio.Channel:
        return self.net.channel(self.net.outbound, host)

    @property
    def metadata(self) -> list[tuple[str, str]]:
        return list(self.headers.items())


Run = Callable[[App], Awaitable[None]]
# Spans by scenario.
Played = dict[str, list[Span]]


@dataclass(frozen=True)
class Scenario:
    run: Run
    flags: tuple[str, ...]
    """Of the client spans, in the order of their beginning."""
    seconds: float = 0
    """Each client span takes about so long at least."""
    varies: tuple[str, ...] = ()
    """Tags that differ."""
    envoy_alone: tuple[str, ...] = ()
    """Spans that Envoy alone reports, by name."""


SCENARIOS: dict[str, Scenario] = {}


def scenario(*flags: str, **more: Any) -> Callable[[Run], Run]:
    def named(run: Run) -> Run:
        SCENARIOS[run.__name__] = Scenario(run, flags, **more)
        return run

    return named


async def ok(request: web.Request) -> web.StreamResponse:
    # Else it is by chance how much of it has come when the answer goes.
    await request.read()
    return web.Response(text="ok", headers={"x-odd": "1"})


async def sleeps(request: web.Request) -> web.StreamResponse:
    """Until long after all timeouts, on a busy machine too: nobody waits for its answer."""
    await asyncio.sleep(5)
    return await ok(request)


@scenario("-", "-", "-")
async def bodies(app: App) -> None:
    """With sizes in both directions, and over HTTP/2."""
    app.serve(ok)
    assert await app.call("callee", "POST", data=b"x" * 70_000) == 200
    assert await app.call("callee", "HEAD") == 200
    async with h2c.Connection.connect(app.net.outbound) as connection:
        head = [
            (":method", "PUT"),
            (":scheme", "http"),
            (":authority", "callee-over-http2"),
            (":path", app.path),
            *app.headers.items(),
        ]
        stream = connection.request(head)
        await stream.send(b"body", end=True)
        assert (await stream.headers())[":status"] == "200"
        await stream.body()


@scenario("-", "-")
async def odd_headers(app: App) -> None:
    app.serve(ok)
    headers = {
        "user-agent": "s\xe9n \"q\"\t<b>",
        "x-client-trace-id": "client-7",
        "x-envoy-downstream-service-cluster": "elsewhere",
        "x-forwarded-proto": "https",
    }
    assert await app.call("callee", headers=headers) == 200
    long = f"{app.path}?{'a=%20&' * 100}"
    app.net.h1[app.path] = ok
    assert await app.call("callee", path=long, headers={"user-agent": "u" * 500}) == 200


@scenario("-", "-")
async def no_sidecar(app: App) -> None:
    """A callee without a sidecar, and one that fails."""
    app.serve(ok)
    assert await app.call("plain") == 200

    async def fails(request: web.Request) -> web.StreamResponse:
        return web.Response(status=500, text="no")

    app.serve(fails)
    assert await app.call("plain") == 500


@scenario("-")
async def outside(app: App) -> None:
    """A host that the mesh does not know."""
    app.serve(ok)
    assert await app.call("api.example.com") == 200


@scenario("UT", "UT", seconds=1)
async def slow(app: App) -> None:
    app.serve(sleeps)
    assert await app.call("plain-late") == 504
    assert await app.call("callee-slow") == 504


@scenario("UC", "UPE")
async def resetting(app: App) -> None:
    """Before an answer, and in the middle of one."""

    async def aborts(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async def breaks_off(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_length = 1000
        await response.prepare(request)
        await response.write(b"half")
        await asyncio.sleep(0.1)
        assert request.transport is not None
        request.transport.abort()
        return response

    app.serve(aborts)
    assert await app.call("plain") == 503
    app.serve(breaks_off)
    assert await app.call("plain") == 0


@scenario("UR")
async def resetting_a_stream(app: App) -> None:
    async def resets(stream: h2c.Stream, _headers: Headers) -> None:
        stream.reset()

    app.net.h2[app.path] = resets
    assert await app.call("plain-h2") == 503


@scenario("UF", "UH", "NR")
async def nobody_there(app: App) -> None:
    """Refused; no endpoint; no route."""
    for host, status in (("plain-down", 503), ("plain-empty", 503), ("plain-nowhere", 404)):
        assert await app.call(host) == status


@scenario("DC", "DC", seconds=0.1)
async def client_gone(app: App) -> None:
    """Before an answer, and in the middle of one."""
    came = asyncio.Event()

    async def is_silent(request: web.Request) -> web.StreamResponse:
        came.set()
        return await sleeps(request)

    async def streams(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"half")
        await sleeps(request)
        return response

    for answer in (is_silent, streams):
        app.serve(answer)
        reader, writer = await asyncio.open_connection(HOST, app.net.outbound)
        lines = [f"GET {app.path} HTTP/1.1", "host: plain"]
        lines += [f"{name}: {value}" for name, value in app.headers.items()]
        writer.write("\r\n".join([*lines, "", ""]).encode())
        # The sidecar has seen the request, and so its span has begun.
        there = came.wait() if answer is is_silent else reader.readuntil(b"half")
        await asyncio.wait_for(there, 10)
        await asyncio.sleep(0.15)
        writer.close()
        await asyncio.sleep(0.05)


@scenario("-", "-")
async def direct_response(app: App) -> None:
    assert await app.call("plain-direct") == 418
    assert await app.call("plain-redirect") == 301


@scenario("-", "URX")
async def retries(app: App) -> None:
    """One span for all attempts, of which the last succeeds, and one of which none does."""
    left = 2

    async def fails_first(request: web.Request) -> web.StreamResponse:
        nonlocal left
        left -= 1
        return await ok(request) if left < 0 else web.Response(status=503)

    app.serve(fails_first)
    assert await app.call("plain-retry") == 200
    left = 9
    assert await app.call("plain-retry") == 503


@scenario("-")
async def hedging(app: App) -> None:
    first = True

    async def slow_first(request: web.Request) -> web.StreamResponse:
        nonlocal first
        was_first, first = first, False
        return await (sleeps if was_first else ok)(request)

    app.serve(slow_first)
    assert await app.call("plain-hedge") == 200


@scenario("-", "-", varies=("http.url",))
async def redirect_followed(app: App) -> None:
    """By the router: two requests with a span each. Envoy says of the first where the second
    goes, and its tracer of OpenTelemetry does not report the second."""

    async def moved(request: web.Request) -> web.StreamResponse:
        if "there" in request.query:
            return await ok(request)
        location = f"http://plain-follow{request.path}?there"
        return web.Response(status=302, headers={"location": location})

    app.serve(moved)
    assert await app.call("plain-follow") == 200


@scenario("-", envoy_alone=("mirror",))
async def mirrored(app: App) -> None:
    """No filter sees the second request."""
    app.serve(ok)
    assert await app.call("plain-mirror") == 200


@scenario(envoy_alone=("plain-fault:9080/*",))
async def injected(app: App) -> None:
    """The filter that answers is before b3relay, as Istio has it."""
    assert await app.call("plain-fault") == 429


def handler(kind: str, answer: Any) -> grpc.RpcMethodHandler:
    made: grpc.RpcMethodHandler = getattr(grpc, f"{kind}_rpc_method_handler")(answer)
    return made


# Clients count down: with each call another timeout.
@scenario("-", "-", "-", "-", varies=("grpc.timeout",))
async def grpc_statuses(app: App) -> None:
    """In the trailers, and in headers alone; of the caller's fault, and of the callee's."""

    async def answers(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        if request == b"fails":
            await context.send_initial_metadata(())
            await context.abort(grpc.StatusCode.DATA_LOSS, "half of it")
        if request == b"refuses":
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "not you")
        return request

    method = f"/{app.name}/unary"
    app.net.grpc[method] = handler("unary_unary", answers)
    async with app.channel("plain-grpc") as channel:
        for called, request in (
            (method, b"goes well"),
            (method, b"fails"),
            (method, b"refuses"),
            ("/nobody/knows", b""),
        ):
            rpc = channel.unary_unary(called)(request, metadata=app.metadata, timeout=10)
            await rpc.code()


@scenario("-", seconds=0.3)
async def grpc_stream(app: App) -> None:
    async def counts(request: bytes, context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
        for number in range(4):
            await asyncio.sleep(0.1)
            yield b"%d" % number

    method = f"/{app.name}/counts"
    app.net.grpc[method] = handler("unary_stream", counts)
    async with app.channel("callee-grpc") as channel:
        rpc = channel.unary_stream(method)(b"", metadata=app.metadata)
        assert [one async for one in rpc] == [b"0", b"1", b"2", b"3"]


@scenario("UF", "-")
async def grpc_without_a_callee(app: App) -> None:
    """The sidecar answers with a status of gRPC; and an answer that has none."""

    async def no_grpc(stream: h2c.Stream, _headers: Headers) -> None:
        stream.send_headers([(":status", "200"), ("content-type", "application/grpc")])
        await stream.send(b"\0\0\0\0\0", end=True)

    method = f"/{app.name}/none"
    app.net.h2[method] = no_grpc
    for host in ("plain-down", "plain-h2"):
        async with app.channel(host) as channel:
            await channel.unary_unary(method)(b"", metadata=app.metadata).code()


@scenario("DC", seconds=0.3)
async def websocket(app: App) -> None:
    """101, and its whole duration."""

    async def echo(request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            await socket.send_str(message.data)
        return socket

    app.serve(echo)
    url = f"http://{HOST}:{app.net.outbound}{app.path}"
    headers = {**app.headers, "host": "callee"}
    async with app.net.client.ws_connect(url, headers=headers) as socket:
        for text in ("a", "b", "c"):
            await socket.send_str(text)
            assert await socket.receive_str(timeout=10) == text
            await asyncio.sleep(0.1)


@scenario("DC")
async def tunnel(app: App) -> None:
    reader, writer = await asyncio.open_connection(HOST, app.net.outbound)
    lines = ["CONNECT tunnel:443 HTTP/1.1", "host: tunnel:443"]
    lines += [f"{name}: {value}" for name, value in app.headers.items()]
    writer.write("\r\n".join([*lines, "", ""]).encode())
    await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
    writer.write(b"ping")
    assert await asyncio.wait_for(reader.readexactly(4), 10) == b"ping"
    writer.close()
    await asyncio.sleep(0.05)


async def played(net: Protocols, forward: tuple[bytes, ...]) -> Played:
    """All scenarios: the spans of each, in the order of their beginning."""
    names = {name.decode() for name in forward}
    ids: dict[str, str] = {}

    async def play(name: str, one: Scenario) -> None:
        async def serve(request: web.Request) -> web.StreamResponse:
            headers = received(request)
            ids[headers["x-request-id"]] = name
            kept = {n: v for n, v in headers.items() if n in names}
            await one.run(App(net, name, kept))
            return web.Response(text="served")

        net.h1[f"/in/{name}"] = serve
        answer = await net.send(net.inbound, "app", f"/in/{name}", {"x-request-id": new_id()})
        assert (answer.status, answer.body) == (200, b"served"), name

    outcomes = await asyncio.gather(
        *(play(*each) for each in SCENARIOS.items()), return_exceptions=True
    )
    for failed in outcomes:
        if failed is not None:
            raise failed
    # b3relay reports with its tick, every second.
    await asyncio.to_thread(net.collector.wait_quiet, 1.3, 10)
    spans = sorted(net.collector.spans(), key=lambda span: span["timestamp"])
    ids_of = [(span["traceId"], span["tags"].get("guid:x-request-id")) for span in spans]
    traces = {trace: ids[request_id] for trace, request_id in ids_of if request_id in ids}
    found: dict[str, list[Span]] = defaultdict(list)
    for span in spans:
        found[traces.get(span["traceId"], "")].append(span)
    return found


# What the app forwards in the mesh without the filter.
_FORWARD: dict[Tracer, tuple[bytes, ...]] = {
    "zipkin": FORWARD["all7"],
    "opentelemetry": FORWARD["w3c"],
    "zipkin+w3c": FORWARD["all7"] + FORWARD["w3c"],
}


async def compare(tracers: tuple[Tracer, Tracer]) -> list[str]:
    """What differs, with these tracers in the sidecars of the app and of the callee, but for
    what docs/spans.md lists."""
    first = tracers[0]
    async with Protocols(filter=False, client_spans=True, tracers=tracers) as net:
        theirs = await played(net, _FORWARD[first])
    kind = "otlp" if first == "opentelemetry" else "zipkin"
    async with Protocols(spans={"cluster": "collector", "format": kind}, tracers=tracers) as net:
        ours = await played(net, FORWARD["request-id"])
        net.unharmed()
    problems = [f"{set(spans)}" for spans in (ours, theirs) if set(spans) != set(SCENARIOS)]
    for name in SCENARIOS:
        problems += (f"{name}: {problem}" for problem in _compare(name, ours[name], theirs[name]))
    return problems


def _compare(name: str, ours: list[Span], theirs: list[Span]) -> Iterator[str]:
    one = SCENARIOS[name]
    found, of_envoy = clients(ours, "app"), clients(theirs, "app")
    flags = [span["tags"]["response_flags"] for span in found]
    if flags != list(one.flags):
        yield f"flags {flags}, expected {list(one.flags)}"
    traces = {span["traceId"] for span in ours}
    if len(traces) != 1:
        yield f"{len(traces)} traces"
    for span in found + of_envoy:
        # Envoy's timers begin with a turn of its event loop: on a busy machine they are early,
        # by 60 ms with a load of 20.
        if span["duration"] < 0.75 * one.seconds * 1e6:
            yield f"{span['name']}: {span['duration']} µs, expected {one.seconds} s"
    alone = [span for span in of_envoy if span["name"] in one.envoy_alone]
    if [span["name"] for span in alone] != list(one.envoy_alone):
        yield f"{one.envoy_alone} of Envoy's are no longer alone"
    theirs = [span for span in theirs if span not in alone]
    if name == "redirect_followed" and len(of_envoy) == 1:
        ours = [span for span in ours if span is not found[1]]
    told, told_by_envoy = facts(ours, one.varies), facts(theirs, one.varies)
    yield from (f"b3relay alone: {fact}" for fact in told if fact not in told_by_envoy)
    yield from (f"Envoy alone: {fact}" for fact in told_by_envoy if fact not in told)
    if len(told) != len(told_by_envoy):
        yield f"{len(told)} spans, {len(told_by_envoy)} with Envoy's own"
