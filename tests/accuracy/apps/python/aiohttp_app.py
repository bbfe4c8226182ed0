"""A service in Python on one event loop: aiohttp's server and its client."""

import asyncio
import logging

import aiohttp
import service
from aiohttp import web


class Service:
    def __init__(self) -> None:
        # One for each service, as in app.py.
        self._clients: dict[str, aiohttp.ClientSession] = {}
        self._background: asyncio.Task[None] | None = None

    async def begin(self, _application: web.Application) -> None:
        for host in service.HOSTS:
            connector = aiohttp.TCPConnector(limit=0)
            self._clients[host] = aiohttp.ClientSession(connector=connector)
        if service.HAS_BACKGROUND:
            self._background = asyncio.create_task(self.background())

    async def call(
        self, host: str, user: str, truth: bytes, request_id: str | None, ours: bool
    ) -> None:
        async with self._clients[host].post(
            f"http://127.0.0.1:{service.OUTBOUND}{service.target(host, user)}",
            data=truth,
            headers=service.headers(host, truth, request_id, ours),
        ) as response:
            await response.read()
            service.check(host, response.status)

    async def serve(self, request: web.Request) -> web.Response:
        truth = await request.read()
        steps, user = service.asked(request.path)
        request_id = request.headers.get("x-request-id")
        service.work()
        for hosts in steps:
            await asyncio.gather(
                *(self.call(host, user, truth, request_id, True) for host in hosts)
            )
            service.work()
        return web.Response(text="ok")

    async def background(self) -> None:
        while True:
            await asyncio.sleep(service.pause())
            try:
                await self.call("h1", "", service.BACKGROUND_TRUTH, None, False)
            except (RuntimeError, aiohttp.ClientError) as error:
                logging.error("%s", error)


if __name__ == "__main__":
    one = Service()
    application = web.Application()
    application.on_startup.append(one.begin)
    application.router.add_post("/{path:.*}", one.serve)
    web.run_app(
        application, host="127.0.0.1", port=service.PORT, access_log=None, print=None,
        keepalive_timeout=75,
    )  # fmt: skip
