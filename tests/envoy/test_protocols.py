"""The relay over every protocol: who is attributed to whom, and the traffic unharmed."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import grpc.aio
import pytest

from mesh.protocols import Headers, Protocols, b3, is_called_by, new_id
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
