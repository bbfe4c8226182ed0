"""HTTP/2 without TLS on asyncio, both sides, stream by stream: trailers and resets."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Self

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions

from mesh.ports import HOST

Pairs = Sequence[tuple[str, str]]


class Reset(ConnectionError):
    """The other side has reset the stream, or closed the connection."""


class Stream:
    """One request and its response."""

    def __init__(self, connection: "Connection", number: int) -> None:
        self._connection = connection
        self._number = number
        # Headers and trailers as lists, data as bytes, then None; or a Reset.
        self.arrived: asyncio.Queue[list[tuple[str, str]] | bytes | None | Reset] = asyncio.Queue()

    async def next(self) -> list[tuple[str, str]] | bytes | None:
        """Headers, a piece of the body, trailers; None at the end."""
        event = await self.arrived.get()
        if isinstance(event, Reset):
            raise event
        return event

    async def headers(self) -> dict[str, str]:
        event = await self.next()
        assert isinstance(event, list), event
        return dict(event)

    async def body(self) -> tuple[bytes, dict[str, str]]:
        """The rest of the body, and the trailers."""
        body, trailers = bytearray(), {}
        while (event := await self.next()) is not None:
            if isinstance(event, list):
                trailers = dict(event)
            else:
                body += event
        return bytes(body), trailers

    async def reset_by_peer(self) -> None:
        """Wait for it."""
        try:
            while await self.next() is not None:
                pass
            await self.next()
        except Reset:
            pass

    def send_headers(self, pairs: Pairs, end: bool = False) -> None:
        """Headers, or trailers if the headers were sent already."""
        self._connection.h2.send_headers(self._number, pairs, end_stream=end)
        self._connection.flush()

    async def send(self, data: bytes, end: bool = False) -> None:
        """A piece of the body, as fast as the other side takes it."""
        state = self._connection.h2
        while data:
            window = state.local_flow_control_window(self._number)
            size = min(window, state.max_outbound_frame_size, len(data))
            if size <= 0:
                await self._connection.window()
                continue
            state.send_data(self._number, data[:size])
            data = data[size:]
            self._connection.flush()
        if end:
            state.end_stream(self._number)
            self._connection.flush()

    def reset(self) -> None:
        """Nothing happens if the other side was first."""
        try:
            self._connection.h2.reset_stream(self._number, h2.errors.ErrorCodes.CANCEL)
        except h2.exceptions.StreamClosedError:
            return
        self._connection.flush()


class Connection:
    """One connection; a server gives each new stream to ``serve``."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        serve: Callable[[Stream], Awaitable[None]] | None = None,
    ) -> None:
        config = h2.config.H2Configuration(client_side=serve is None, header_encoding="utf-8")
        self.h2 = h2.connection.H2Connection(config)
        self._reader, self._writer, self._serve = reader, writer, serve
        self._streams: dict[int, Stream] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._window = asyncio.Event()
        self.h2.initiate_connection()
        self.flush()

    @classmethod
    @asynccontextmanager
    async def connect(cls, port: int) -> AsyncIterator[Self]:
        """As a client; leaving it closes the connection."""
        connection = cls(*await asyncio.open_connection(HOST, port))
        reading = asyncio.create_task(connection.run())
        try:
            yield connection
        finally:
            connection._writer.close()
            await reading

    def request(self, pairs: Pairs, end: bool = False) -> Stream:
        """Begin a request."""
        number = self.h2.get_next_available_stream_id()
        stream = self._streams[number] = Stream(self, number)
        stream.send_headers(pairs, end)
        return stream

    def flush(self) -> None:
        if not self._writer.is_closing():
            self._writer.write(self.h2.data_to_send())

    async def window(self) -> None:
        """Wait until the other side says that it takes more."""
        self._window.clear()
        await asyncio.wait_for(self._window.wait(), 10)

    async def run(self) -> None:
        """Read until the connection is closed."""
        try:
            while data := await self._reader.read(65536):
                for event in self.h2.receive_data(data):
                    self._handle(event)
                self.flush()
        except (ConnectionError, h2.exceptions.ProtocolError):
            pass
        finally:
            self._window.set()
            for stream in self._streams.values():
                stream.arrived.put_nowait(Reset("closed"))
            self._writer.close()

    def _handle(self, event: h2.events.Event) -> None:
        number = getattr(event, "stream_id", None)
        if isinstance(event, h2.events.RequestReceived):
            self._streams[event.stream_id] = Stream(self, event.stream_id)
        stream = self._streams.get(number or 0)
        match event:
            case h2.events.WindowUpdated() | h2.events.RemoteSettingsChanged():
                self._window.set()
            case h2.events.ConnectionTerminated():
                for each in self._streams.values():
                    each.arrived.put_nowait(Reset("GOAWAY"))
            case _ if stream is None:
                pass
            case h2.events.RequestReceived():
                stream.arrived.put_nowait([(str(n), str(v)) for n, v in event.headers])
                assert self._serve is not None
                task = asyncio.create_task(self._served(stream))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            case h2.events.ResponseReceived() | h2.events.TrailersReceived():
                stream.arrived.put_nowait([(str(n), str(v)) for n, v in event.headers])
            case h2.events.DataReceived():
                stream.arrived.put_nowait(bytes(event.data))
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            case h2.events.StreamEnded():
                stream.arrived.put_nowait(None)
            case h2.events.StreamReset():
                stream.arrived.put_nowait(Reset(f"RST_STREAM {event.error_code}"))
                self._window.set()

    async def _served(self, stream: Stream) -> None:
        assert self._serve is not None
        try:
            await self._serve(stream)
        except (Reset, h2.exceptions.ProtocolError):
            pass  # gone; the tests see it from the other side
