"""Constant load through the sidecar of one application, and the truth about each call."""

import asyncio
import json
import random
import shutil
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from aiohttp import web

from mesh import envoy
from mesh.envoy import Config, Envoy, Wasm
from mesh.mesh import wasm_path
from mesh.ports import HOST, free_port

# Requests at a time, and the longest wait of the application before each of the
# two calls that it makes for one: long enough that there are always requests in
# flight across an update.
USERS, WAIT_SECONDS = 12, 0.15
TAGS = ("decision", "direction", "reason", "rule")


@dataclass
class Load:
    """Client, application and callee, on one event loop. The truth about a call
    is in its path."""

    inbound: int
    outbound: int
    app: int
    callee: int
    users: int = USERS
    # right, wrong, missed: of calls.
    calls: Counter[str] = field(default_factory=Counter)
    requests: int = 0
    failed: list[str] = field(default_factory=list)
    _arrived: Counter[str] = field(default_factory=Counter)

    async def all_are_joined(self) -> bool:
        """Of the calls of the next second none is missed, and there are some."""
        before = self.calls.copy()
        await asyncio.sleep(1)
        after = self.calls
        return after["missed"] == before["missed"] and after["right"] > before["right"]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Constant load while inside."""
        runners = []
        for port, handler in ((self.app, self._serve), (self.callee, self._compare)):
            server = web.Application()
            server.router.add_get("/{tail:.*}", handler)
            runner = web.AppRunner(server, access_log=None)
            await runner.setup()
            await web.TCPSite(runner, HOST, port, backlog=1024).start()
            runners.append(runner)
        # Keep-alive; a connection that was closed before the request arrived is
        # replaced and the request sent again, as HTTP allows.
        timeout = aiohttp.ClientTimeout(total=20)
        async with (
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0), timeout=timeout
            ) as client,
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as own,
        ):
            self._own = own
            stop = asyncio.Event()
            users = [asyncio.create_task(self._user(client, stop)) for _ in range(self.users)]
            try:
                yield
            finally:
                stop.set()
                await asyncio.gather(*users)
        for runner in runners:
            await runner.cleanup()

    async def _user(self, client: aiohttp.ClientSession, stop: asyncio.Event) -> None:
        while not stop.is_set():
            self.requests += 1
            headers = {
                "x-request-id": str(uuid.uuid4()),
                "x-b3-traceid": f"{random.getrandbits(128) | 1:032x}",
                "x-b3-spanid": f"{random.getrandbits(64) | 1:016x}",
                "x-b3-sampled": "1",
            }
            await self._get(client, self.inbound, f"r{self.requests}", headers)

    async def _get(
        self, session: aiohttp.ClientSession, port: int, path: str, headers: Mapping[str, str]
    ) -> None:
        try:
            async with session.get(f"http://{HOST}:{port}/{path}", headers=headers) as response:
                await response.read()
                if response.status != 200:
                    self.failed.append(f"{path}: status {response.status}")
        except (aiohttp.ClientError, TimeoutError) as error:
            self.failed.append(f"{path}: {error!r}")

    def _once(self, name: str) -> None:
        """What arrives a second time was cut off the first time."""
        self._arrived[name] += 1
        if self._arrived[name] > 1:
            self.failed.append(f"{name}: cut off, and sent again")

    async def _serve(self, request: web.Request) -> web.Response:
        self._once(request.path)
        got = [request.headers.get(name, "") for name in ("x-b3-traceid", "x-b3-spanid")]
        forwarded = {"x-request-id": request.headers["x-request-id"]}
        for call in range(2):
            await asyncio.sleep(random.random() * WAIT_SECONDS)
            path = "/".join([*got, request.path[1:], str(call)])
            await self._get(self._own, self.outbound, path, forwarded)
        return web.Response()

    async def _compare(self, request: web.Request) -> web.Response:
        self._once(request.path)
        truth = request.path.split("/")[1:3]
        got = [request.headers.get(name) for name in ("x-b3-traceid", "x-b3-spanid")]
        if got == [None, None]:
            self.calls["missed"] += 1
        else:
            self.calls["right" if got == truth else "wrong"] += 1
        return web.Response()


class Pod:
    """The bootstrap of one Envoy, and the load for it."""

    def __init__(self, directory: Path, attribution: str) -> None:
        self._attribution = attribution
        self.module = Path(shutil.copy(wasm_path(), directory / "b3relay.wasm"))
        self.load = Load(free_port(), free_port(), free_port(), free_port())
        self.admin_port = free_port()

    def bootstrap(
        self,
        config: Mapping[str, object],
        vm_id: str = "b3relay",
        module: Path | None = None,
        vm_configuration: str | None = None,
        outbound_module: Path | None = None,
        neighbour: Wasm | None = None,
    ) -> Config:
        """``outbound_module`` if it is to be another one than inbound; ``neighbour`` is one
        more filter, before the others on both sides."""

        def wasm(direction: str) -> Wasm:
            configured = {"attribution": self._attribution, **config, "direction": direction}
            text = json.dumps(configured)
            path = module or self.module
            if direction == "outbound" and outbound_module:
                path = outbound_module
            return Wasm(path, text, vm_id=vm_id, vm_config=vm_configuration)

        made = envoy.pod(
            admin_port=self.admin_port,
            inbound_port=self.load.inbound,
            outbound_port=self.load.outbound,
            app=(HOST, self.load.app),
            callee=(HOST, self.load.callee),
            inbound=wasm("inbound"),
            outbound=wasm("outbound"),
            extra_stat_tags=TAGS,
        )
        if neighbour:
            for listener in made["static_resources"]["listeners"]:
                manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
                manager["http_filters"].insert(0, {**neighbour.http_filter(), "name": "neighbour"})
        return made


def decisions(running: Envoy) -> Counter[str]:
    """Calls by what was done with them."""
    family = "b3relay_calls_total{decision="
    found: Counter[str] = Counter()
    for name, value in running.stats(family).items():
        found[name.split('"')[1]] += int(value)
    return +found


async def until(what: str, holds: Callable[[], bool], seconds: float = 40) -> None:
    def answered() -> bool:
        try:
            return holds()
        except OSError:
            # An Envoy that compiles a module answers nobody meanwhile.
            return False

    deadline = asyncio.get_running_loop().time() + seconds
    while not await asyncio.to_thread(answered):
        assert asyncio.get_running_loop().time() < deadline, f"{what}: not within {seconds} s"
        await asyncio.sleep(0.05)


def judge(load: Load, counted: Counter[str]) -> None:
    """Nothing lost, nothing wrong, and every miss counted."""
    print(load.requests, "requests,", dict(load.calls), "calls, counted", dict(counted))
    assert not load.failed, f"{len(load.failed)}: {load.failed[:5]}"
    assert load.calls["wrong"] == 0
    assert load.calls["right"] > load.requests, "most of them"
    assert sum(load.calls.values()) == 2 * load.requests
    assert counted["copied"] == load.calls["right"]
    assert counted["unknown"] + counted["unsure"] == load.calls["missed"]
    assert set(counted) <= {"copied", "unknown", "unsure"}
