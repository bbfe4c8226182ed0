"""The relay over every protocol: who is attributed to whom, and the traffic unharmed."""

import asyncio
import os
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
    GRACE_MS,
    MIB,
    Headers,
    Protocols,
    b3,
    is_called_by,
    new_id,
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


# CONNECT


async def tunnel(port: int, head: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection(HOST, port)
    writer.write(head)
    answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n"), answer
    return reader, writer


@pytest.mark.parametrize("host", ["tunnel", "passed-on"])
async def test_connect(net: Protocols, host: str) -> None:
    """A call as any other: it gets the context. Where Envoy itself ends the
    CONNECT, no header leaves it; a proxy that it is passed on to sees them."""
    request_id = new_id()
    net.connects.clear()
    async with serving(net, request_id) as app:
        before = net.counts()
        head = f"CONNECT {host}:443 HTTP/1.1\r\nhost: {host}:443\r\nx-request-id: {request_id}"
        reader, writer = await tunnel(net.outbound, head.encode() + b"\r\n\r\n")
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
    async with serving(net, request_id), await h2c.Connection.connect(net.outbound) as connection:
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


# Mirroring


async def test_outbound_mirroring(net: Protocols) -> None:
    """The shadow carries the context too; the call is counted once."""
    request_id, path = new_id(), f"/{new_id()}"
    got: dict[str, Headers] = {}

    async def either(request: web.Request) -> web.StreamResponse:
        got[request.host] = received(request)
        return web.json_response(received(request))

    net.h1[path] = either
    async with serving(net, request_id) as app:
        before = net.counts()
        await net.call(request_id, "plain-mirror", path)
        await until(lambda: len(got) == 2, "the shadow")
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
