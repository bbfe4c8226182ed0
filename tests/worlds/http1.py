"""HTTP/1.1 in small: a server and a client that send and show every byte of a header.

No HTTP library: those change or refuse odd values, and cost more than the Envoys.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from mesh.ports import HOST

Headers = list[tuple[str, bytes]]


@dataclass
class Message:
    """A request (``start`` is the method and the path) or a response (the status)."""

    start: tuple[str, str]
    headers: Headers
    body: bytes

    @property
    def status(self) -> int:
        return int(self.start[1])

    def get(self, name: str) -> bytes | None:
        """The first header of that name."""
        return next((value for each, value in self.headers if each == name), None)


class Closed(ConnectionError):
    """The other side has closed the connection."""


class _Parser:
    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Message]:
        self._buffer += data
        found = []
        while (message := self._next()) is not None:
            found.append(message)
        return found

    def _next(self) -> Message | None:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return None
        first, *lines = bytes(self._buffer[:end]).split(b"\r\n")
        words = first.decode("latin-1").split(" ")
        headers: Headers = []
        length, chunked = 0, False
        for line in lines:
            name, _, value = line.partition(b":")
            key, value = name.decode("latin-1").lower(), value.strip(b" \t")
            headers.append((key, value))
            if key == "content-length":
                length = int(value)
            elif key == "transfer-encoding":
                chunked = b"chunked" in value
        at = end + 4
        if chunked:
            read = self._chunks(at)
            if read is None:
                return None
            body, at = read
        else:
            if len(self._buffer) < at + length:
                return None
            body = bytes(self._buffer[at : at + length])
            at += length
        del self._buffer[:at]
        return Message((words[0], words[1]), headers, body)

    def _chunks(self, at: int) -> tuple[bytes, int] | None:
        body = b""
        while True:
            end = self._buffer.find(b"\r\n", at)
            if end < 0:
                return None
            size = int(bytes(self._buffer[at:end]).split(b";")[0], 16)
            at = end + 2
            if len(self._buffer) < at + size + 2:
                return None
            body += bytes(self._buffer[at : at + size])
            at += size + 2
            if size == 0:
                return body, at


Handler = Callable[[Message], Awaitable[tuple[int, Headers, bytes]]]


class _Serving(asyncio.Protocol):
    def __init__(self, handler: Handler, tasks: set[asyncio.Task[None]]) -> None:
        self._handler, self._tasks = handler, tasks
        self._parser = _Parser()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None

    def data_received(self, data: bytes) -> None:
        for request in self._parser.feed(data):
            task = asyncio.create_task(self._serve(request))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self, request: Message) -> None:
        status, headers, body = await self._handler(request)
        if self._transport is None:
            return
        head = [b"HTTP/1.1 %d X" % status, b"content-length: %d" % len(body)]
        head += [name.encode("latin-1") + b": " + value for name, value in headers]
        self._transport.write(b"\r\n".join(head) + b"\r\n\r\n" + body)


async def serve(handler: Handler, tasks: set[asyncio.Task[None]]) -> tuple[asyncio.Server, int]:
    """A server on a port of the system's choice."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Serving(handler, tasks), HOST, 0, backlog=1024)
    port: int = server.sockets[0].getsockname()[1]
    return server, port


class _Calling(asyncio.Protocol):
    def __init__(self) -> None:
        self._parser = _Parser()
        self._waiting: asyncio.Future[Message] | None = None
        self.transport: asyncio.Transport | None = None
        self.open = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        if self._waiting and not self._waiting.done():
            self._waiting.set_exception(Closed())

    def data_received(self, data: bytes) -> None:
        for answer in self._parser.feed(data):
            if (answer.get("connection") or b"").lower() == b"close":
                self.open = False
            if self._waiting and not self._waiting.done():
                self._waiting.set_result(answer)

    async def exchange(self, raw: bytes) -> Message:
        assert self.transport is not None
        self._waiting = asyncio.get_running_loop().create_future()
        self.transport.write(raw)
        return await self._waiting


class Client:
    """Pooled connections to loopback, one request at a time on each."""

    def __init__(self) -> None:
        self._idle: dict[int, list[_Calling]] = {}

    async def request(
        self,
        port: int,
        method: str,
        path: str,
        host: str,
        headers: Sequence[tuple[str, bytes]],
        body: bytes | None = None,
        timeout: float = 30,
    ) -> Message:
        head = [f"{method} {path} HTTP/1.1".encode("latin-1"), b"host: " + host.encode("latin-1")]
        head += [name.encode("latin-1") + b": " + value for name, value in headers]
        if body is not None:
            head.append(b"content-length: %d" % len(body))
        raw = b"\r\n".join(head) + b"\r\n\r\n" + (body or b"")
        idle = self._idle.setdefault(port, [])
        connection = None
        while idle and connection is None:
            connection = idle.pop()
            connection = connection if connection.open else None
        if connection is None:
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_connection(_Calling, HOST, port)
        async with asyncio.timeout(timeout):
            answer = await connection.exchange(raw)
        if connection.open:
            idle.append(connection)
        elif connection.transport:
            connection.transport.close()
        return answer

    def close(self) -> None:
        for idle in self._idle.values():
            for connection in idle:
                if connection.transport:
                    connection.transport.abort()
        self._idle.clear()
