"""A service in Python on one event loop: Starlette on uvicorn, and httpx."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import service
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

CLIENTS: dict[str, httpx.AsyncClient] = {}


async def call(host: str, user: str, truth: bytes, request_id: str | None, ours: bool) -> None:
    response = await CLIENTS[host].post(
        service.target(host, user),
        content=truth,
        headers=service.headers(host, truth, request_id, ours),
    )
    service.check(host, response.status_code)


async def serve(request: Request) -> PlainTextResponse:
    truth = await request.body()
    steps, user = service.asked(request.url.path)
    request_id = request.headers.get("x-request-id")
    service.work()
    for hosts in steps:
        await asyncio.gather(*(call(host, user, truth, request_id, True) for host in hosts))
        service.work()
    return PlainTextResponse("ok")


async def background() -> None:
    while True:
        await asyncio.sleep(service.pause())
        try:
            await call("h1", "", service.BACKGROUND_TRUTH, None, False)
        except (RuntimeError, httpx.HTTPError) as error:
            logging.error("%s", error)


@asynccontextmanager
async def life(_application: Starlette) -> AsyncIterator[None]:
    # One for each service, as in app.py.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=100)
    for host in service.HOSTS:
        url = f"http://127.0.0.1:{service.OUTBOUND}"
        CLIENTS[host] = httpx.AsyncClient(base_url=url, limits=limits, timeout=60)
    task = asyncio.create_task(background()) if service.HAS_BACKGROUND else None
    yield
    if task:
        task.cancel()


if __name__ == "__main__":
    routes = [Route("/{path:path}", serve, methods=["POST"])]
    uvicorn.run(
        Starlette(routes=routes, lifespan=life),
        host="127.0.0.1",
        port=service.PORT,
        log_level="warning",
        access_log=False,
        timeout_keep_alive=75,
    )
