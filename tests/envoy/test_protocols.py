"""The relay over every protocol: who is attributed to whom, and the traffic unharmed."""

import asyncio
import itertools
import json
import os
import uuid
from base64 import b64decode
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import grpc
import grpc.aio
import pytest
from aiohttp import web

from mesh import h2c
from mesh.ports import HOST
from mesh.protocols import (
    CHUNKED,
    GRACE_MS,
    MIB,
    Headers,
    Protocols,
    b3,
    is_called_by,
    new_id,
    read_chunked,
    received,
    until,
)
from mesh.tree import Node

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """Of the module, so that the servers and the tests share one event loop."""
    return "asyncio"


@pytest.fixture(scope="module")
async def everything(anyio_backend: str) -> AsyncIterator[Protocols]:
    async with Protocols() as net:
        yield net


@pytest.fixture
def net(everything: Protocols) -> Iterator[Protocols]:
    """Behind every test: Envoy is alive, and no call of the filter to it failed."""
    yield everything
    everything.unharmed()


def server(service: str, path: str, *children: Node, broken: bool = False) -> Node:
    return Node(service, "SERVER", path, tuple(sorted(children)), broken)


@asynccontextmanager
async def serving(net: Protocols, request_id: str) -> AsyncIterator[Headers]:
    """The app serves a request meanwhile; gives the headers that it got."""
    path = f"/{new_id()}"
    arrived: asyncio.Future[Headers] = asyncio.Future()
    leave = asyncio.Event()

    async def app(request: web.Request) -> web.StreamResponse:
        arrived.set_result(received(request))
        await leave.wait()
        return web.Response(text="served")

    net.h1[path] = app
    sending = asyncio.create_task(net.send(net.inbound, "app", path, {"x-request-id": request_id}))
    try:
        yield await asyncio.wait_for(arrived, 10)
    finally:
        leave.set()
        answer = await sending
    assert (answer.status, answer.body) == (200, b"served")
    await net.forgotten(request_id)


async def raw(port: int, head: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """An HTTP/1.1 connection on which that was sent."""
    reader, writer = await asyncio.open_connection(HOST, port)
    writer.write(head.replace("\n", "\r\n").encode() + b"\r\n\r\n")
    return reader, writer


def h2_head(method: str, host: str, path: str, request_id: str) -> h2c.Pairs:
    return [
        (":method", method),
        (":scheme", "http"),
        (":authority", host),
        (":path", path),
        ("x-request-id", request_id),
    ]


# HTTP/1.1 and HTTP/2


async def get(
    net: Protocols, port: int, protocol: str, host: str, path: str, request_id: str
) -> Any:
    """One request, over HTTP/1.1 or HTTP/2; returns the JSON of the answer."""
    if protocol == "http1":
        answer = await net.send(port, host, path, {"x-request-id": request_id})
        assert answer.status == 200, answer
        return answer.received
    async with h2c.Connection.connect(port) as connection:
        stream = connection.request(h2_head("GET", host, path, request_id), end=True)
        assert (await stream.headers())[":status"] == "200"
        body, trailers = await stream.body()
    assert trailers == {}
    return json.loads(body)


# Client to inbound, inbound to app, app to outbound, outbound to the next sidecar.
# test_tree.py has the mesh without HTTP/2, and the one with it between sidecars and
# from the apps.
IN_TEST_TREE = [("http1",) * 4, ("http2", "http1", "http2", "http2")]
ALL_HOPS = itertools.product(("http1", "http2"), repeat=4)
HOPS = [hops for hops in ALL_HOPS if hops not in IN_TEST_TREE]


@pytest.mark.parametrize("hops", HOPS, ids="-".join)
async def test_http(net: Protocols, hops: tuple[str, str, str, str]) -> None:
    to_inbound, to_app, to_outbound, to_next = hops
    request_id, path = new_id(), f"/{new_id()}"

    async def serve(app: Headers) -> list[Headers]:
        host = f"callee-over-{to_next}"
        return [app, await get(net, net.outbound, to_outbound, host, "/call", request_id)]

    async def h1(request: web.Request) -> web.StreamResponse:
        assert to_app == "http1"
        return web.json_response(await serve(received(request)))

    async def h2(stream: h2c.Stream, headers: Headers) -> None:
        assert to_app == "http2"
        answer = json.dumps(await serve(headers)).encode()
        stream.send_headers([(":status", "200")])
        await stream.send(answer, end=True)

    net.h1[path], net.h2[path] = h1, h2
    before = net.counts()
    host = "app" if to_app == "http1" else "app-h2"
    app, callee = await get(net, net.inbound, to_inbound, host, path, request_id)
    assert is_called_by(callee, app)
    assert callee["x-request-id"] == app["x-request-id"]
    assert net.since(before) == {"remembered": 1, "copied": 1}
    (tree,) = await net.tree(app["x-b3-traceid"], spans=2)
    assert tree == server("app", path, server("callee", "/call"))
    # The sidecar of the callee says what came over the last hop.
    versions = {
        span["tags"]["http.protocol"]
        for span in net.collector.spans()
        if span["traceId"] == app["x-b3-traceid"] and span["name"].startswith("callee")
    }
    assert versions == {"HTTP/1.1" if to_next == "http1" else "HTTP/2"}
    await net.forgotten(request_id)


# gRPC


def metadata(context: grpc.aio.ServicerContext) -> Headers:
    return {key: value for key, value in context.invocation_metadata() or ()}


async def call_over_grpc(net: Protocols, request_id: str, host: str = "callee-grpc") -> Headers:
    """A unary call as an app makes it; returns the metadata that the callee got."""
    got: list[Headers] = []

    async def callee(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        got.append(metadata(context))
        return request

    method = f"/callee/{new_id()}"
    net.grpc[method] = grpc.unary_unary_rpc_method_handler(callee)
    async with net.channel(net.outbound, host) as channel:
        reply = await channel.unary_unary(method)(b"call", metadata=[("x-request-id", request_id)])
    assert reply == b"call"
    return got[0]


MESSAGES = [bytes([n]) * 1000 * n for n in range(20)]


@pytest.mark.parametrize("kind", ["unary_unary", "stream_unary", "unary_stream", "stream_stream"])
async def test_grpc(net: Protocols, kind: str) -> None:
    """Messages, trailers and status arrive, and the app's call is attributed."""
    app: list[Headers] = []
    callee: list[Headers] = []
    streams_in, streams_out = kind.startswith("stream"), kind.endswith("stream")
    taken: list[bytes] = []

    async def begin(context: grpc.aio.ServicerContext) -> None:
        app.append(metadata(context))
        callee.append(await call_over_grpc(net, app[0]["x-request-id"]))
        context.set_trailing_metadata((("x-trailer", "kept"), ("x-bytes-bin", b"\x00\xff")))

    async def take(request: Any) -> None:
        if streams_in:
            async for message in request:
                taken.append(message)
        else:
            taken.append(request)

    async def one_reply(request: Any, context: grpc.aio.ServicerContext) -> bytes:
        await begin(context)
        await take(request)
        return b"".join(taken)

    async def replies(request: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
        await begin(context)
        await take(request)
        for message in MESSAGES:
            yield message

    method = f"/app/{new_id()}"
    handler = getattr(grpc, f"{kind}_rpc_method_handler")
    net.grpc[method] = handler(replies if streams_out else one_reply)
    before = net.counts()
    sent = MESSAGES if streams_in else [b"one"]
    async with net.channel(net.inbound, "app-grpc") as channel:
        rpc = getattr(channel, kind)(method)(
            iter(MESSAGES) if streams_in else b"one", metadata=[("x-request-id", new_id())]
        )
        if streams_out:
            assert [reply async for reply in rpc] == MESSAGES
        else:
            assert await rpc == b"".join(sent)
        assert await rpc.code() == grpc.StatusCode.OK
        trailers = {key: value for key, value in await rpc.trailing_metadata()}
    assert taken == sent
    assert (trailers["x-trailer"], trailers["x-bytes-bin"]) == ("kept", b"\x00\xff")
    assert is_called_by(callee[0], app[0])
    assert net.since(before) == {"remembered": 1, "copied": 1}
    (tree,) = await net.tree(app[0]["x-b3-traceid"], spans=2)
    (child,) = tree.children
    assert tree == server("app", method, child) and child.service == "callee"
    await net.forgotten(app[0]["x-request-id"])


# As OpenCensus writes it: version, trace, span, options. One to three characters of
# base64 are left over at its end.
TRACE_BIN = b"\0\0" + bytes(range(240, 256)) + b"\1" + bytes(8) + b"\2\1"


@pytest.mark.parametrize("length", [len(TRACE_BIN), len(TRACE_BIN) - 1, len(TRACE_BIN) - 2, 1])
async def test_grpc_trace_bin(net: Protocols, length: int) -> None:
    """Metadata whose name ends with -bin is in base64 on the wire.

    gRPC's C library, and with it Python's, sends this one but does not show it to
    an application, which so cannot forward it: hence an app of raw HTTP/2.
    """
    seen: list[Headers] = []

    async def serve(stream: h2c.Stream, app: Headers) -> None:
        pairs = [
            *h2_head("POST", "callee-over-http2", "/call", app["x-request-id"]),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
        ]
        async with h2c.Connection.connect(net.outbound) as connection:
            call = connection.request(pairs)
            await call.send(b"\0\0\0\0\0", end=True)
            assert (await call.headers())[":status"] == "200"
            seen.extend([app, json.loads((await call.body())[0])])
        stream.send_headers([(":status", "200"), ("content-type", "application/grpc")])
        await stream.send(b"\0\0\0\0\0")
        stream.send_headers([("grpc-status", "0")], end=True)

    binary, request_id, path = TRACE_BIN[:length], new_id(), f"/app/{new_id()}"
    net.h2[path] = serve
    async with net.channel(net.inbound, "app-h2") as channel:
        sent = (("grpc-trace-bin", binary), ("x-request-id", request_id))
        assert await channel.unary_unary(path)(b"", metadata=sent) == b""
    app, callee = seen
    assert is_called_by(callee, app)
    assert callee["grpc-trace-bin"] == app["grpc-trace-bin"]
    assert b64decode(app["grpc-trace-bin"] + "==") == binary
    await net.forgotten(request_id)


async def test_grpc_error_status(net: Protocols) -> None:
    app: list[Headers] = []
    callee: list[Headers] = []

    async def fails(_request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        app.append(metadata(context))
        callee.append(await call_over_grpc(net, app[0]["x-request-id"], "plain-grpc"))
        await context.abort(grpc.StatusCode.DATA_LOSS, "half of it", (("x-trailer", "kept"),))
        raise AssertionError

    method = f"/app/{new_id()}"
    net.grpc[method] = grpc.unary_unary_rpc_method_handler(fails)
    async with net.channel(net.inbound, "app-grpc") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await channel.unary_unary(method)(b"", metadata=[("x-request-id", new_id())])
    assert failed.value.code() == grpc.StatusCode.DATA_LOSS
    assert failed.value.details() == "half of it"
    assert ("x-trailer", "kept") in list(failed.value.trailing_metadata())
    assert b3(callee[0]) == b3(app[0])
    await net.forgotten(app[0]["x-request-id"])


async def test_a_call_late_in_a_long_grpc_stream(net: Protocols) -> None:
    """The stream outlives the grace many times; its context lives as long as it."""
    app: list[Headers] = []

    async def echo(
        requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[bytes]:
        app.append(metadata(context))
        async for message in requests:
            yield message

    method = f"/app/{new_id()}"
    net.grpc[method] = grpc.stream_stream_rpc_method_handler(echo)
    request_id = new_id()
    async with net.channel(net.inbound, "app-grpc") as channel:
        rpc = channel.stream_stream(method)(metadata=[("x-request-id", request_id)])
        for n in range(15):
            await rpc.write(b"%d" % n)
            assert await rpc.read() == b"%d" % n
            await asyncio.sleep(0.1)  # long is what the test is about
        assert is_called_by(await call_over_grpc(net, request_id), app[0])
        await rpc.done_writing()
        assert await rpc.read() is grpc.aio.EOF
        assert await rpc.code() == grpc.StatusCode.OK
    await net.forgotten(request_id)


@pytest.mark.parametrize("who", ["client", "app"])
async def test_a_broken_grpc_stream(net: Protocols, who: str) -> None:
    """Cancelled by the client, or by an error of the app in the middle of it."""
    app: list[Headers] = []
    request_id, method = new_id(), f"/app/{new_id()}"
    fail = asyncio.Event()

    async def stream(_request: bytes, context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
        app.append(metadata(context))
        yield b"one"
        await fail.wait()
        await context.abort(grpc.StatusCode.ABORTED, "no more", (("x-trailer", "kept"),))

    net.grpc[method] = grpc.unary_stream_rpc_method_handler(stream)
    async with net.channel(net.inbound, "app-grpc") as channel:
        rpc = channel.unary_stream(method)(b"", metadata=[("x-request-id", request_id)])
        assert await rpc.read() == b"one"
        await asyncio.sleep(2 * GRACE_MS / 1000)  # longer than the grace
        assert is_called_by(await call_over_grpc(net, request_id), app[0])
        if who == "client":
            rpc.cancel()
            # The channel stays: it is the stream that ends, not the connection.
            await net.forgotten(request_id)
            fail.set()
        else:
            fail.set()
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await rpc.read()
            assert failed.value.code() == grpc.StatusCode.ABORTED
            assert failed.value.details() == "no more"
            assert ("x-trailer", "kept") in list(failed.value.trailing_metadata())
            await net.forgotten(request_id)


# WebSocket


async def echo_websocket(request: web.Request) -> web.StreamResponse:
    """Says first what headers it got, and then whatever it is told."""
    socket = web.WebSocketResponse(max_msg_size=0)
    await socket.prepare(request)
    await socket.send_json(received(request))
    async for message in socket:
        if message.type == aiohttp.WSMsgType.TEXT:
            await socket.send_str(message.data)
        elif message.type == aiohttp.WSMsgType.BINARY:
            await socket.send_bytes(message.data)
    return socket


def websocket(net: Protocols, port: int, host: str, request_id: str) -> Any:
    path = f"/{new_id()}"
    net.h1[path] = echo_websocket
    headers = {"Host": host, "x-request-id": request_id}
    return net.client.ws_connect(f"ws://{HOST}:{port}{path}", headers=headers, max_msg_size=0)


async def echoes(socket: aiohttp.ClientWebSocketResponse) -> None:
    for size in (0, 1, 125, 126, 65536, MIB):
        data = os.urandom(size)
        await socket.send_bytes(data)
        assert await socket.receive_bytes(timeout=10) == data
    await socket.send_str("ünïcode")
    assert await socket.receive_str(timeout=10) == "ünïcode"


async def test_inbound_websocket(net: Protocols) -> None:
    """Remembered for as long as it is open, which is longer than the grace."""
    request_id = new_id()
    before = net.counts()
    async with websocket(net, net.inbound, "app", request_id) as socket:
        app = await socket.receive_json(timeout=10)
        await echoes(socket)
        for _ in range(3):
            await asyncio.sleep(GRACE_MS / 1000)
            assert is_called_by(await net.call(request_id), app)
        await echoes(socket)
    assert socket.close_code == 1000
    assert net.since(before) == {"remembered": 1, "copied": 3}
    await net.forgotten(request_id)


async def test_inbound_websocket_over_http2(net: Protocols) -> None:
    """RFC 8441, from Envoy to Envoy say: the app gets an upgrade over HTTP/1.1."""
    request_id, path = new_id(), f"/{new_id()}"
    app: list[Headers] = []

    async def echo(request: web.Request) -> web.StreamResponse:
        app.append(received(request))
        return await echo_websocket(request)

    net.h1[path] = echo
    async with h2c.Connection.connect(net.inbound) as connection:
        stream = connection.request(
            [
                (":method", "CONNECT"),
                (":protocol", "websocket"),
                (":scheme", "http"),
                (":authority", "app"),
                (":path", path),
                ("sec-websocket-version", "13"),
                # HTTP/2 needs no key, but Envoy makes none up for the app.
                ("sec-websocket-key", "A" * 22 + "=="),
                ("x-request-id", request_id),
            ]
        )
        assert (await stream.headers())[":status"] == "200"
        greeting = await stream.next()
        assert isinstance(greeting, bytes) and greeting[:1] == b"\x81", "a text frame"
        await asyncio.sleep(2 * GRACE_MS / 1000)  # longer than the grace
        assert is_called_by(await net.call(request_id), app[0])
        # A ping of no bytes, with a mask of zeroes; and its pong.
        await stream.send(b"\x89\x80\0\0\0\0")
        assert await stream.next() == b"\x8a\x00"
        stream.reset()
    await net.forgotten(request_id)


@pytest.mark.parametrize("who", ["client", "app"])
async def test_broken_websocket(net: Protocols, who: str) -> None:
    """A socket that is torn off without a word is forgotten too."""
    request_id, path = new_id(), f"/{new_id()}"
    app_breaks = asyncio.Event()

    async def app(request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.send_json(received(request))
        await app_breaks.wait()
        assert request.transport is not None
        request.transport.abort()
        return socket

    net.h1[path] = app
    head = f"GET {path} HTTP/1.1\nhost: app\nx-request-id: {request_id}\nconnection: upgrade"
    head += "\nupgrade: websocket\nsec-websocket-version: 13\nsec-websocket-key: " + "A" * 22 + "=="
    reader, writer = await raw(net.inbound, head)
    answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
    assert answer.startswith(b"HTTP/1.1 101 ")
    await asyncio.sleep(2 * GRACE_MS / 1000)  # longer than the grace
    assert b3(await net.call(request_id, "plain"))
    if who == "client":
        writer.transport.abort()
    else:
        app_breaks.set()
    await net.forgotten(request_id)
    app_breaks.set()
    writer.close()


async def test_outbound_websocket(net: Protocols) -> None:
    request_id = new_id()
    async with serving(net, request_id) as app:
        before = net.counts()
        async with websocket(net, net.outbound, "plain", request_id) as socket:
            assert b3(await socket.receive_json(timeout=10)) == b3(app)
            await echoes(socket)
        async with websocket(net, net.outbound, "callee", request_id) as socket:
            assert is_called_by(await socket.receive_json(timeout=10), app)
            await echoes(socket)
        assert net.since(before) == {"copied": 2}


@pytest.mark.parametrize("host", ["plain", "callee-over-http1", "callee-over-http2"])
async def test_outbound_websocket_over_http2(net: Protocols, host: str) -> None:
    """RFC 8441 from the app, and from sidecar to sidecar too in the last case."""
    request_id, path = new_id(), f"/{new_id()}"
    callee: list[Headers] = []

    async def echo(request: web.Request) -> web.StreamResponse:
        callee.append(received(request))
        return await echo_websocket(request)

    net.h1[path] = echo
    async with serving(net, request_id) as app, h2c.Connection.connect(net.outbound) as connection:
        before = net.counts()
        head = [
            *h2_head("CONNECT", host, path, request_id),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "A" * 22 + "=="),
        ]
        head.insert(1, (":protocol", "websocket"))
        stream = connection.request(head)
        assert (await stream.headers())[":status"] == "200"
        greeting = await stream.next()
        assert isinstance(greeting, bytes) and greeting[:1] == b"\x81", "a text frame"
        await stream.send(b"\x89\x80\0\0\0\0")
        assert await stream.next() == b"\x8a\x00"
        if host == "plain":
            assert b3(callee[0]) == b3(app)
        else:
            assert is_called_by(callee[0], app)
        assert net.since(before) == {"copied": 1}
        stream.reset()


# CONNECT


@pytest.mark.parametrize("host", ["tunnel", "passed-on"])
async def test_connect(net: Protocols, host: str) -> None:
    """A call as any other: it gets the context. Where Envoy itself ends the
    CONNECT, no header leaves it; a proxy that it is passed on to sees them."""
    request_id = new_id()
    net.connects.clear()
    async with serving(net, request_id) as app:
        before = net.counts()
        head = f"CONNECT {host}:443 HTTP/1.1\nhost: {host}:443\nx-request-id: {request_id}"
        reader, writer = await raw(net.outbound, head)
        answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n"), answer
        data = b"GET / HTTP/1.1\r\nx-request-id: not ours\r\n\r\n" + os.urandom(MIB)
        writer.write(data)
        assert await asyncio.wait_for(reader.readexactly(len(data)), 10) == data
        writer.close()
        assert net.since(before) == {"copied": 1}
    if host == "passed-on":
        (passed,) = net.connects
        lines = [line.split(b": ", 1) for line in passed.strip().split(b"\r\n")[1:]]
        assert b3({name.decode(): value.decode() for name, value in lines}) == b3(app)


async def test_connect_over_http2(net: Protocols) -> None:
    request_id = new_id()
    async with serving(net, request_id), h2c.Connection.connect(net.outbound) as connection:
        before = net.counts()
        stream = connection.request(
            [(":method", "CONNECT"), (":authority", "tunnel:443"), ("x-request-id", request_id)]
        )
        assert (await stream.headers())[":status"] == "200"
        data, got = os.urandom(MIB), bytearray()
        sending = asyncio.create_task(stream.send(data))
        while len(got) < len(data):
            piece = await stream.next()
            assert isinstance(piece, bytes)
            got += piece
        await sending
        assert got == data
        assert net.since(before) == {"copied": 1}
        stream.reset()


async def test_an_inbound_tunnel(net: Protocols) -> None:
    """As pods in ambient mode come to a sidecar (HBONE): it stays open, and is none of the
    requests that the application serves. A request beside it is the only one."""
    before = net.counts()
    head = f"CONNECT app-tunnel:8080 HTTP/1.1\nhost: app-tunnel:8080\nx-request-id: {new_id()}"
    reader, writer = await raw(net.inbound, head)
    answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n"), answer
    async with serving(net, new_id()) as app:
        answered = await net.send(net.outbound, "plain-keyless", "/call", {})
        assert b3(answered.received) == b3(app)
    writer.write(b"ping")
    assert await asyncio.wait_for(reader.readexactly(4), 10) == b"ping"
    writer.close()
    found = net.since(before)
    assert (found["remembered"], found["exclusive"]) == (1, 1)


# Tries


async def test_outbound_retries(net: Protocols) -> None:
    """Each try carries the same context; it is one call, and counted as one."""
    request_id, path = new_id(), f"/{new_id()}"
    tries: list[Headers] = []

    async def third_time_lucky(request: web.Request) -> web.StreamResponse:
        tries.append(received(request))
        return web.json_response(tries[-1], status=200 if len(tries) == 3 else 503)

    net.h1[path] = third_time_lucky
    async with serving(net, request_id) as app:
        before = net.counts()
        await net.call(request_id, "plain-retry", path)
        assert net.since(before) == {"copied": 1}
    assert [b3(headers) for headers in tries] == [b3(app)] * 3


async def test_inbound_retries(net: Protocols) -> None:
    """The filter runs for each try. The calls of each are in the trace, also
    those that the first makes when the second has begun."""
    request_id, path = new_id(), f"/{new_id()}"
    tries: list[Headers] = []
    calls: list[Headers] = []
    second_began = asyncio.Event()
    late: list[asyncio.Task[Headers]] = []

    async def late_call() -> Headers:
        await second_began.wait()
        return await net.call(request_id)

    async def second_time_lucky(request: web.Request) -> web.StreamResponse:
        tries.append(received(request))
        calls.append(await net.call(request_id))
        if len(tries) == 1:
            late.append(asyncio.create_task(late_call()))
            return web.Response(status=503)
        second_began.set()
        calls.append(await late[0])
        return web.Response(text="done")

    net.h1[path] = second_time_lucky
    before = net.counts()
    answer = await net.send(net.inbound, "app-retry", path, {"x-request-id": request_id})
    assert (answer.status, answer.body) == (200, b"done")
    assert net.since(before) == {"remembered": 2, "copied": 3}
    # Envoy gives the tries of one request one span.
    assert b3(tries[0]) == b3(tries[1])
    assert [is_called_by(call, tries[0]) for call in calls] == [True] * 3
    (tree,) = await net.tree(tries[0]["x-b3-traceid"], spans=4)
    assert tree == server("app", path, *[server("callee", "/call")] * 3)
    await net.forgotten(request_id)


async def test_outbound_hedging(net: Protocols) -> None:
    """The first try takes too long, and a second one runs beside it."""
    request_id, path = new_id(), f"/{new_id()}"
    tries: list[Headers] = []

    async def second_is_fast(request: web.Request) -> web.StreamResponse:
        tries.append(received(request))
        if len(tries) == 1:
            await until(lambda: len(tries) == 2, "a second try")
            await asyncio.sleep(0.05)  # so that the second one answers first
        return web.json_response(tries[-1])

    net.h1[path] = second_is_fast
    async with serving(net, request_id) as app:
        before = net.counts()
        await net.call(request_id, "plain-hedge", path)
        assert net.since(before) == {"copied": 1}
    assert [b3(headers) for headers in tries] == [b3(app)] * 2


async def test_outbound_internal_redirect(net: Protocols) -> None:
    """Envoy follows a redirect itself, and the filter sees a second call: with
    the context that the first one got."""
    request_id, path = new_id(), f"/{new_id()}"
    got: list[Headers] = []

    async def redirects(request: web.Request) -> web.StreamResponse:
        got.append(received(request))
        raise web.HTTPFound(f"http://plain-follow{path}/there")

    net.h1[path] = redirects
    async with serving(net, request_id) as app:
        before = net.counts()
        got.append(await net.call(request_id, "plain-follow", path))
        assert net.since(before) == {"copied": 1, "present": 1}
    assert [b3(headers) for headers in got] == [b3(app)] * 2


async def test_inbound_internal_redirect(net: Protocols) -> None:
    """The calls of the second request are attributed, and both are forgotten."""
    request_id, path = new_id(), f"/{new_id()}"
    got: list[Headers] = []

    async def redirects(request: web.Request) -> web.StreamResponse:
        got.append(await net.call(request_id))
        got.append(received(request))
        raise web.HTTPFound(f"http://app-follow{path}/there")

    async def there(request: web.Request) -> web.StreamResponse:
        got.append(await net.call(request_id))
        got.append(received(request))
        return web.Response(text="there")

    net.h1[path], net.h1[f"{path}/there"] = redirects, there
    before = net.counts()
    answer = await net.send(net.inbound, "app-follow", path, {"x-request-id": request_id})
    assert (answer.status, answer.body) == (200, b"there")
    assert net.since(before) == {"remembered": 2, "copied": 2}
    assert is_called_by(got[0], got[1]) and is_called_by(got[2], got[3])
    assert got[1]["x-b3-traceid"] == got[3]["x-b3-traceid"]
    await net.forgotten(request_id)


# Mirroring


async def test_outbound_mirroring(net: Protocols) -> None:
    """The shadow carries the context too; the call is counted once."""
    request_id, path = new_id(), f"/{new_id()}"
    got: dict[str, Headers] = {}

    async def either(request: web.Request) -> web.StreamResponse:
        got[request.host] = received(request)
        await until(lambda: len(got) == 2, "the call and its shadow")
        return web.json_response(received(request))

    net.h1[path] = either
    async with serving(net, request_id) as app:
        before = net.counts()
        await net.call(request_id, "plain-mirror", path)
        assert net.since(before) == {"copied": 1}
    assert {host: b3(headers) for host, headers in got.items()} == {
        "plain-mirror": b3(app),
        "plain-mirror-shadow": b3(app),
    }


async def test_inbound_mirroring(net: Protocols) -> None:
    """The shadow passes no upstream filter. It is of the same trace, and so are
    calls that are made for it while the request is being served."""
    request_id, path = new_id(), f"/{new_id()}"
    got: dict[str, Headers] = {}
    both = asyncio.Event()

    async def either(request: web.Request) -> web.StreamResponse:
        got[request.host] = received(request)
        if len(got) == 2:
            both.set()
        await both.wait()
        return web.Response(text="done")

    net.h1[path] = either
    before = net.counts()
    sending = asyncio.create_task(
        net.send(net.inbound, "app-mirror", path, {"x-request-id": request_id})
    )
    await asyncio.wait_for(both.wait(), 10)
    call = await net.call(request_id)
    assert (await sending).body == b"done"
    assert net.since(before) == {"remembered": 1, "copied": 1}
    assert is_called_by(call, got["app-mirror"])
    shadow = got["app-mirror-shadow"]
    assert shadow["x-b3-traceid"] == call["x-b3-traceid"]
    assert shadow["x-request-id"] == got["app-mirror"]["x-request-id"]
    await net.forgotten(request_id)


# What Envoy answers itself

LOCAL = {"direct": 418, "redirect": 301, "down": 503, "late": 504}


async def never_answers(_request: web.Request) -> web.StreamResponse:
    await asyncio.sleep(30)
    raise AssertionError


@pytest.mark.parametrize("kind", LOCAL)
async def test_inbound_local_replies(net: Protocols, kind: str) -> None:
    request_id, path = new_id(), f"/{new_id()}"
    net.h1[path] = never_answers
    before = net.counts()
    headers = {"x-request-id": request_id}
    answer = await net.send(net.inbound, f"app-{kind}", path, headers)
    assert answer.status == LOCAL[kind]
    if kind == "direct":
        assert answer.body == b"by Envoy"
    if kind == "redirect":
        assert answer.headers["location"].endswith("/elsewhere")
    # The filter sees each try of the router, also one that finds nobody there.
    tried = kind in ("down", "late")
    assert net.since(before) == ({"remembered": 1} if tried else {})
    if not tried:
        assert not b3(await net.call(request_id, "plain"))
    await net.forgotten(request_id)


@pytest.mark.parametrize("kind", LOCAL)
async def test_outbound_local_replies(net: Protocols, kind: str) -> None:
    request_id, path = new_id(), f"/{new_id()}"
    net.h1[path] = never_answers
    async with serving(net, request_id):
        before = net.counts()
        headers = {"x-request-id": request_id}
        answer = await net.send(net.outbound, f"plain-{kind}", path, headers)
        assert answer.status == LOCAL[kind]
        assert (answer.body == b"by Envoy") == (kind == "direct")
        assert net.since(before) == {"copied": 1}


@pytest.mark.parametrize("side", ["inbound", "outbound"])
async def test_faults(net: Protocols, side: str) -> None:
    """Istio's fault filter comes before b3relay, which then has nothing to do."""
    request_id = new_id()
    before = net.counts()
    port, host = (net.inbound, "app") if side == "inbound" else (net.outbound, "plain")
    answer = await net.send(port, f"{host}-fault", "/", {"x-request-id": request_id})
    assert (answer.status, answer.body) == (429, b"fault filter abort")
    assert net.since(before) == {}
    assert not b3(await net.call(request_id, "plain"))


# Broken off


class Broken:
    """An app, over HTTP/1.1 or HTTP/2, and a client whose exchange is broken off.

    ``when`` is ``serving``: the app has the request and thinks; ``upload``: it
    has half of the request; ``download``: the client has half of the response.
    """

    def __init__(self, net: Protocols, when: str) -> None:
        self.net, self.when = net, when
        self.request_id, self.path = new_id(), f"/{new_id()}"
        self.half_way = asyncio.Event()
        self.app_breaks = asyncio.Event()
        self.app: Headers = {}

    async def serve_h1(self, request: web.Request) -> web.StreamResponse:
        self.app = received(request)
        transport = request.transport
        assert transport is not None
        try:
            if self.when == "upload":
                assert len(await request.content.readany()) > 0
            response = web.StreamResponse(headers={"content-length": "1000"})
            if self.when == "download":
                await response.prepare(request)
                await response.write(b"x" * 500)
            self.half_way.set()
            await self.app_breaks.wait()
        finally:
            transport.abort()
        return response

    async def serve_h2(self, stream: h2c.Stream, headers: Headers) -> None:
        self.app = headers
        if self.when == "upload":
            assert isinstance(await stream.next(), bytes)
        if self.when == "download":
            stream.send_headers([(":status", "200")])
            await stream.send(b"x" * 500)
        self.half_way.set()
        await self.app_breaks.wait()
        stream.reset()

    @asynccontextmanager
    async def client_h1(self) -> AsyncIterator[asyncio.StreamReader]:
        """Leaving it closes the connection."""
        reader, writer = await asyncio.open_connection(HOST, self.net.inbound)
        method, length = ("POST", 1000) if self.when == "upload" else ("GET", 0)
        head = f"{method} {self.path} HTTP/1.1\r\nhost: app\r\nx-request-id: {self.request_id}"
        writer.write(f"{head}\r\ncontent-length: {length}\r\n\r\n".encode() + b"x" * (length // 2))
        if self.when == "download":
            await reader.readuntil(b"\r\n\r\n")
            assert len(await reader.readexactly(500)) == 500
        try:
            yield reader
        finally:
            writer.close()

    @asynccontextmanager
    async def client_h2(self) -> AsyncIterator[h2c.Stream]:
        """Leaving it resets the stream and nothing else."""
        async with h2c.Connection.connect(self.net.inbound) as connection:
            upload = self.when == "upload"
            head = h2_head("POST" if upload else "GET", "app-h2", self.path, self.request_id)
            stream = connection.request(head, end=not upload)
            if upload:
                await stream.send(b"x" * 500)
            if self.when == "download":
                assert (await stream.headers())[":status"] == "200"
                assert await stream.next() == b"x" * 500
            yield stream
            # The connection has to do for the next one.
            stream.reset()
            other = connection.request(h2_head("GET", "app-h2", "/", new_id()), end=True)
            assert (await other.headers())[":status"] == "200"
            await other.body()


@pytest.mark.parametrize("who", ["client", "app"])
@pytest.mark.parametrize("when", ["serving", "upload", "download"])
@pytest.mark.parametrize("protocol", ["http1", "http2"])
async def test_broken_off(net: Protocols, protocol: str, when: str, who: str) -> None:
    """Calls are attributed until then, and no longer than the grace after it."""
    broken = Broken(net, when)
    net.h1[broken.path], net.h2[broken.path] = broken.serve_h1, broken.serve_h2
    before = net.counts()
    h1 = protocol == "http1"
    async with broken.client_h1() if h1 else broken.client_h2() as client:
        await asyncio.wait_for(broken.half_way.wait(), 10)
        await asyncio.sleep(2 * GRACE_MS / 1000)  # the time until then is not what ends it
        assert is_called_by(await net.call(broken.request_id), broken.app)
        if who == "app":
            broken.app_breaks.set()
            if isinstance(client, h2c.Stream):
                if when == "download":
                    await asyncio.wait_for(client.reset_by_peer(), 10)
                else:
                    assert (await client.headers())[":status"] == "503"
            elif when == "download":
                assert await asyncio.wait_for(client.read(), 10) == b""
            else:
                assert b" 503 " in await asyncio.wait_for(client.readline(), 10)
            await net.forgotten(broken.request_id)
    await net.forgotten(broken.request_id)
    broken.app_breaks.set()
    assert net.since(before)["unknown"] >= 1
    # And the filter is still at work.
    async with serving(net, request_id := new_id()) as app:
        assert is_called_by(await net.call(request_id), app)


async def test_an_answer_before_the_request_is_whole(net: Protocols) -> None:
    """An app that refuses an upload has served it, however much is still to come."""
    request_id, path = new_id(), f"/{new_id()}"
    got: list[Headers] = []

    async def refuses(stream: h2c.Stream, headers: Headers) -> None:
        got.append(headers)
        got.append(await net.call(request_id))
        stream.send_headers([(":status", "413")], end=True)

    net.h2[path] = refuses
    async with h2c.Connection.connect(net.inbound) as connection:
        stream = connection.request(h2_head("POST", "app-h2", path, request_id))
        await stream.send(b"x" * 10_000)
        assert (await stream.headers())[":status"] == "413"
        await net.forgotten(request_id)
    assert is_called_by(got[1], got[0])


# Bodies, trailers and large headers


async def test_head(net: Protocols) -> None:
    request_id, path = new_id(), f"/{new_id()}"
    calls: list[Headers] = []

    async def app(request: web.Request) -> web.StreamResponse:
        assert request.method == "HEAD"
        call = {"x-request-id": request.headers["x-request-id"]}
        answer = await net.send(net.outbound, "plain", "/call", call, method="HEAD")
        assert (answer.status, answer.body) == (200, b"")
        calls.append(await net.call(request_id))
        assert is_called_by(calls[0], received(request))
        return web.Response(headers={"content-length": "12345"})

    net.h1[path] = app
    before = net.counts()
    head = f"HEAD {path} HTTP/1.1\nhost: app\nconnection: close\nx-request-id: {request_id}"
    reader, writer = await raw(net.inbound, head)
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n") and b"content-length: 12345\r\n" in answer
    assert answer.endswith(b"\r\n\r\n"), "no body"
    assert net.since(before) == {"remembered": 1, "copied": 2}
    await net.forgotten(request_id)


@pytest.mark.parametrize("side", ["inbound", "outbound"])
async def test_100_continue(net: Protocols, side: str) -> None:
    request_id, path = new_id(), f"/{new_id()}"
    got: list[Headers] = []
    data = os.urandom(100_000)

    async def upload(request: web.Request) -> web.StreamResponse:
        got.append(received(request))
        assert await request.read() == data
        return web.Response(text="taken")

    net.h1[path] = upload

    async def client(port: int, host: str) -> None:
        head = f"POST {path} HTTP/1.1\nhost: {host}\nx-request-id: {request_id}"
        head += f"\ncontent-length: {len(data)}\nexpect: 100-continue"
        reader, writer = await raw(port, head)
        answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        assert answer == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(data)
        answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert await reader.readexactly(5) == b"taken"
        writer.close()

    if side == "inbound":
        await client(net.inbound, "app")
        await net.forgotten(request_id)
    else:
        async with serving(net, request_id) as app:
            await client(net.outbound, "plain")
        assert b3(got[0]) == b3(app)


async def test_bodies_over_http1(net: Protocols) -> None:
    """1 MiB up and down, chunked, inbound and outbound at the same time."""
    request_id, path = new_id(), f"/{new_id()}"
    data = os.urandom(MIB)
    got: list[Headers] = []

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, MIB, 50_000):
            yield data[at : at + 50_000]

    async def either(request: web.Request) -> web.StreamResponse:
        got.append(received(request))
        body = await request.read()
        if request.host == "app":
            headers = {"x-request-id": request_id}
            answer = await net.send(
                net.outbound, "callee", path, headers, method="PUT", data=pieces()
            )
            assert (answer.status, answer.body) == (200, data)
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        await response.write(body)
        return response

    net.h1[path] = either
    headers = {"x-request-id": request_id}
    answer = await net.send(net.inbound, "app", path, headers, method="POST", data=pieces())
    assert (answer.status, answer.body) == (200, data)
    app, callee = got
    assert is_called_by(callee, app)
    await net.forgotten(request_id)


async def test_bodies_and_trailers_over_http2(net: Protocols) -> None:
    """1 MiB and trailers up and down, inbound and outbound."""
    request_id, path = new_id(), f"/{new_id()}"
    data = os.urandom(MIB)
    got: list[Headers] = []

    async def exchange(port: int, host: str) -> None:
        async with h2c.Connection.connect(port) as connection:
            stream = connection.request(h2_head("POST", host, path, request_id))
            await stream.send(data)
            stream.send_headers([("x-up", "kept")], end=True)
            assert (await stream.headers())[":status"] == "200"
            body, trailers = await stream.body()
            assert body == data and trailers == {"x-down": "kept"}

    async def either(stream: h2c.Stream, headers: Headers) -> None:
        got.append(headers)
        body, trailers = await stream.body()
        assert body == data and trailers == {"x-up": "kept"}
        if headers[":authority"] == "app-h2":
            await exchange(net.outbound, "callee-h2")
        stream.send_headers([(":status", "200")])
        await stream.send(body)
        stream.send_headers([("x-down", "kept")], end=True)

    net.h2[path] = either
    before = net.counts()
    await exchange(net.inbound, "app-h2")
    app, callee = got
    assert is_called_by(callee, app)
    assert net.since(before) == {"remembered": 1, "copied": 1}
    await net.forgotten(request_id)


async def test_trailers_over_http1(net: Protocols) -> None:
    """Chunked, with trailers up and down, where the listeners let them through."""
    request_id = new_id()
    net.chunked.clear()

    async def exchange(port: int, host: str) -> None:
        head = f"POST /trailers HTTP/1.1\nhost: {host}\nx-request-id: {request_id}"
        reader, writer = await raw(port, head + "\ntransfer-encoding: chunked")
        writer.write(CHUNKED)
        answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        body, trailers = await asyncio.wait_for(read_chunked(reader), 10)
        assert (body, trailers) == (b"hello\x00\xff!", b"x-trailer: kept\r\n")
        writer.close()

    async with serving(net, request_id) as app:
        before = net.counts()
        await exchange(net.outbound, "plain-raw")
        assert net.since(before) == {"copied": 1}
        await exchange(net.inbound, "app-raw")
        assert net.since(before) == {"copied": 1, "remembered": 1}
    assert [sent for _, sent in net.chunked] == [(b"hello\x00\xff!", b"x-trailer: kept\r\n")] * 2
    lines = [line.split(b": ", 1) for line in net.chunked[0][0].strip().split(b"\r\n")[1:]]
    assert b3({name.decode(): value.decode() for name, value in lines}) == b3(app)


# Envoy refuses requests of more than 60 KiB of headers, or more than 100 of them;
# aiohttp and Envoy add a few themselves, and there is to be room for the context.
LARGE = {
    "many": {f"x-many-{n}": str(n) for n in range(80)},
    "long": {f"x-long-{n}": "v" * 19_500 for n in range(3)},
}


@pytest.mark.parametrize("kind", LARGE)
async def test_large_headers(net: Protocols, kind: str) -> None:
    """What fills Envoy's limits goes through with the context besides."""
    request_id, path = new_id(), f"/{new_id()}"
    large = LARGE[kind]
    got: list[Headers] = []

    async def either(request: web.Request) -> web.StreamResponse:
        got.append(received(request))
        if request.host == "app":
            headers = {"x-request-id": request_id, **large}
            answer = await net.send(net.outbound, "plain", path, headers)
            assert answer.status == 200
        return web.Response(text="served")

    net.h1[path] = either
    before = net.counts()
    headers = {"x-request-id": request_id, **large}
    answer = await net.send(net.inbound, "app", path, headers)
    assert (answer.status, answer.body) == (200, b"served")
    app, callee = got
    assert b3(callee) == b3(app) != {}
    for headers in got:
        assert {name: value for name, value in headers.items() if name in large} == large
    assert net.since(before) == {"remembered": 1, "copied": 1}
    await net.forgotten(request_id)


async def test_a_call_that_fits_is_not_made_too_large(net: Protocols) -> None:
    """The most headers with which a call gets through the next sidecar, with
    nothing to copy; the same call with a context to copy gets through as well."""
    request_id = new_id()

    async def status(request_id: str, many: int) -> int:
        headers = {"x-request-id": request_id, **{f"x-many-{n}": "" for n in range(many)}}
        return (await net.send(net.outbound, "callee", "/call", headers)).status

    async with serving(net, request_id):
        many = 100
        while await status(new_id(), many) == 431:
            many -= 1
        assert many > 80
        assert await status(request_id, many) == 200


@pytest.mark.parametrize("length", [255, 256, 50_000])
async def test_very_long_request_ids(net: Protocols, length: int) -> None:
    """Up to 255 bytes are a key; longer ones are none, and pass unharmed."""
    request_id, path = new_id() + "x" * (length - 36), f"/{new_id()}"
    got: list[Headers] = []

    async def app(request: web.Request) -> web.StreamResponse:
        got.append(received(request))
        got.append(await net.call(request_id, "plain"))
        return web.Response(text="served")

    net.h1[path] = app
    before = net.counts()
    answer = await net.send(net.inbound, "app", path, {"x-request-id": request_id})
    assert (answer.status, answer.body) == (200, b"served")
    assert [headers["x-request-id"] for headers in got] == [request_id] * 2
    if length <= 255:
        assert net.since(before) == {"remembered": 1, "copied": 1}
        assert b3(got[1]) == b3(got[0])
    else:
        # The request is known by its trace ID; the call brings nothing of it.
        assert net.since(before) == {"remembered": 1, "no_key": 1}
        assert b3(got[1]) == {}
    await net.forgotten(request_id)


@pytest.mark.parametrize("traceparent", [False, True])
async def test_a_very_long_request_id_is_not_cut(net: Protocols, traceparent: bool) -> None:
    """A call that brings just a trace ID, and whose request ID Envoy makes up:
    it gets the request ID back as it was, or not at all."""
    request_id, path = new_id() + "x" * 300, f"/{new_id()}"
    # Of a trace of its own: the sidecars here carry on B3 only.
    w3c = {"traceparent": f"00-{uuid.uuid4().hex}-{uuid.uuid4().hex[:16]}-01"}
    got: list[Headers] = []

    async def app(request: web.Request) -> web.StreamResponse:
        got.append(received(request))
        brought = w3c if traceparent else {"x-b3-traceid": got[0]["x-b3-traceid"]}
        got.append((await net.send(net.outbound, "plain", "/call", brought)).received)
        return web.Response(text="served")

    net.h1[path] = app
    headers = {"x-request-id": request_id, **(w3c if traceparent else {})}
    answer = await net.send(net.inbound, "app", path, headers)
    assert (answer.status, answer.body) == (200, b"served")
    assert b3(got[1]) == b3(got[0])
    assert got[1]["x-request-id"] == request_id or len(got[1]["x-request-id"]) == 36
