"""A Zipkin v2 collector that keeps the spans in memory, for the tests to look at."""

import asyncio
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from aiohttp import web

from mesh.ports import HOST, free_port

Span = dict[str, Any]
Address = tuple[str, int]


class Collector:
    """Takes ``POST /api/v2/spans`` in a thread of its own, on loopback if not told where."""

    def __init__(self, address: Address | None = None) -> None:
        self.address = address or (HOST, free_port())
        self._spans: list[Span] = []
        self._changed = threading.Condition()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="collector", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._serve(), self._loop).result(timeout=10)
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(timeout=10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10)
        self._loop.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    async def _serve(self) -> None:
        app = web.Application(client_max_size=64 * 2**20)
        app.router.add_post("/api/v2/spans", self._take)
        # Envoys stop after us, so an open connection is no reason to wait.
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        host, port = self.address
        await web.TCPSite(self._runner, host, port).start()

    async def _take(self, request: web.Request) -> web.Response:
        spans: list[Span] = await request.json()
        with self._changed:
            self._spans.extend(spans)
            self._changed.notify_all()
        return web.Response(status=202)

    def spans(self) -> list[Span]:
        with self._changed:
            return list(self._spans)

    def clear(self) -> None:
        with self._changed:
            self._spans.clear()

    def wait_for(self, predicate: Callable[[list[Span]], bool], timeout: float) -> bool:
        """Wait until the spans received so far satisfy the predicate."""
        with self._changed:
            return self._changed.wait_for(lambda: predicate(self._spans), timeout)

    def wait_quiet(self, seconds: float, timeout: float) -> None:
        """Wait until no span has come for that long, or until the time is over."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while time.monotonic() < deadline and self._changed.wait(seconds):
                pass
