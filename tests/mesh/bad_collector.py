"""Collectors of spans that do what they should not."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from mesh.ports import HOST, free_port

# How long a slow one takes.
SLOW_SECONDS = 2.0
_RESET = b"\x01\0\0\0\0\0\0\0"


@contextmanager
def behaving(how: str) -> Iterator[int]:
    """Its port. One of: well, down, slow, 500, resets, never answers, never reads."""
    if how == "down":
        yield free_port()
        return
    stopped = threading.Event()

    async def read(reader: asyncio.StreamReader) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if b"chunked" in head:
            await reader.readuntil(b"0\r\n\r\n")
        else:
            length = head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]
            await reader.readexactly(int(length))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while not stopped.is_set():
                if how == "never reads":
                    await asyncio.sleep(0.05)
                    continue
                await read(reader)
                if how == "resets":
                    transport = writer.get_extra_info("socket")
                    transport.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                    writer.close()
                    return
                if how == "slow":
                    await asyncio.sleep(SLOW_SECONDS)
                if how in ("well", "slow"):
                    writer.write(b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n")
                if how == "500":
                    writer.write(b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n")
        except (OSError, asyncio.IncompleteReadError):
            pass

    async def run() -> None:
        server = await asyncio.start_server(serve, HOST, port, limit=2**20)
        while not stopped.is_set():
            await asyncio.sleep(0.05)
        server.close()

    port = free_port()
    thread = threading.Thread(target=asyncio.run, args=(run(),), daemon=True)
    thread.start()
    try:
        yield port
    finally:
        stopped.set()
        thread.join(timeout=10)
