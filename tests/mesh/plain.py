"""One Envoy before a server that says, byte for byte, which headers it got."""

import asyncio
import json
import shutil
import socket
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from mesh import envoy
from mesh.envoy import Direction, Envoy, Wasm
from mesh.mesh import wasm_path
from mesh.ports import HOST, free_port
from mesh.procs import Processes, Stacked

RawHeaders = list[tuple[str, bytes]]


@dataclass(frozen=True)
class Answer:
    """What came back: the status, and the headers that the server got (None if
    the request did not get there), in order; or else the body."""

    status: int
    received: RawHeaders | None
    body: bytes


class Echo:
    """The server. No HTTP library: those change or refuse odd header values."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        started = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._serve, HOST, 0, backlog=1024), self._loop
        )
        self._server = started.result(10)
        self.address: tuple[str, int] = self._server.sockets[0].getsockname()
        return self

    def __exit__(
        self,
        type_: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _end(self) -> None:
        """Nothing is left that is closed after the loop."""
        self._server.close()
        serving = asyncio.all_tasks() - {asyncio.current_task()}
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                _, *lines = head[:-4].split(b"\r\n")
                pairs = [line.partition(b":") for line in lines]
                body = json.dumps(
                    [[name.decode(), value.strip(b" ").decode("latin-1")] for name, _, value in pairs]
                ).encode()
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


class Connection:
    """An HTTP/1.1 connection that sends whatever it is told to."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection((HOST, port), timeout=10)
        self._file = self._socket.makefile("rb")

    def close(self) -> None:
        self._file.close()
        self._socket.close()

    def get(self, headers: Sequence[tuple[str, bytes]], host: str = "plain") -> Answer:
        """One request. Raises ConnectionError if there is no answer."""
        lines = [b"GET / HTTP/1.1", f"host: {host}".encode()]
        lines += [name.encode() + b": " + value for name, value in headers]
        self._socket.sendall(b"\r\n".join(lines) + b"\r\n\r\n")
        status_line = self._file.readline()
        if not status_line:
            raise ConnectionError("closed without an answer")
        length, ours = 0, False
        while (line := self._file.readline()) != b"\r\n":
            name, _, value = line.lower().partition(b":")
            if name == b"content-length":
                length = int(value)
            ours |= name == b"x-envoy-upstream-service-time"
        body = self._file.read(length)
        status = int(status_line.split()[1])
        received = None
        if ours:
            received = [(name, value.encode("latin-1")) for name, value in json.loads(body)]
        return Answer(status, received, body)


class Plain(Stacked):
    """Listeners by name, each with its direction and its filter's configuration
    (or None for no filter)."""

    def __init__(
        self,
        listeners: Mapping[str, tuple[Direction, str | None]],
        extra_stat_tags: Sequence[str] = ("rule", "direction", "decision", "reason", "action"),
        concurrency: int = 2,
    ) -> None:
        self._listeners = dict(listeners)
        self._tags = extra_stat_tags
        self._concurrency = concurrency
        self.ports = {name: free_port() for name in listeners}
        self._connections: dict[str, Connection] = {}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            echo = stack.enter_context(Echo())
            processes = stack.enter_context(Processes())
            copied = Path(shutil.copy(wasm_path(), processes.directory / "b3relay.wasm"))
            wasm = Wasm(copied)
            bootstrap = envoy.plain(
                {
                    self.ports[name]: (
                        direction,
                        None if config is None else replace(wasm, config=config),
                    )
                    for name, (direction, config) in self._listeners.items()
                },
                admin_port=free_port(),
                upstream=echo.address,
                extra_stat_tags=self._tags,
            )
            self.envoy = Envoy(processes, "plain", bootstrap, self._concurrency)
            self.envoy.start()
            processes.wait_ready({self.envoy.process: self.envoy.ready}, 60)
            stack.callback(self._close)
            self._stack = stack.pop_all()
        return self

    def _close(self) -> None:
        for connection in self._connections.values():
            connection.close()

    def get(self, listener: str, headers: Sequence[tuple[str, bytes]]) -> Answer:
        """One request, on the connection that is kept for the listener."""
        for fresh in (False, True):
            if fresh or listener not in self._connections:
                self._connections[listener] = Connection(self.ports[listener])
            try:
                return self._connections[listener].get(headers)
            except ConnectionError:
                self._connections.pop(listener).close()
                if fresh:
                    raise
        raise AssertionError
