"""Configurations pushed and an Envoy replaced, under load: no request is lost, no call goes astray."""

import asyncio
import json
import os
import random
import shutil
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from aiohttp import web

from mesh import envoy
from mesh.envoy import Config, Envoy, Wasm
from mesh.mesh import wasm_path
from mesh.ports import HOST, free_port
from mesh.procs import Processes

# Requests at a time, and the longest wait of the application before each of the
# two calls that it makes for one: long enough that there are always requests in
# flight across an update.
USERS, WAIT_SECONDS = 12, 0.15
# With this strategy Envoy says `connection: close` in each answer from the
# beginning of the draining on.
AT_ONCE = ("--drain-strategy", "immediate")
# What is in flight at its end is cut off, and the time runs while each worker
# starts a VM before it does anything else: seconds, on a busy machine. In earnest
# it is 600.
PUSH_DRAIN_SECONDS, RESTART_DRAIN_SECONDS = 60, 4
TAGS = ("decision", "direction", "reason", "rule")
# The least of what filters do about calls whose key nobody knows, and the default. One
# that has taken over knows nothing of the requests before it: by `exclusive` it may give
# a call of theirs to the only request that it has seen so far.
ATTRIBUTION = pytest.mark.parametrize("attribution", ["off", "exclusive"])


@dataclass
class Load:
    """Client, application and callee, on one event loop. The truth about a call
    is in its path."""

    inbound: int
    outbound: int
    app: int
    callee: int
    # right, wrong, missed: of calls.
    calls: Counter[str] = field(default_factory=Counter)
    requests: int = 0
    failed: list[str] = field(default_factory=list)
    _arrived: Counter[str] = field(default_factory=Counter)

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
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as client,
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as own,
        ):
            self._own = own
            stop = asyncio.Event()
            users = [asyncio.create_task(self._user(client, stop)) for _ in range(USERS)]
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


def another_module(path: Path) -> Path:
    """The same module with a custom section at its end: to Envoy, another one."""
    name = b"another"
    changed = path.with_name("another.wasm")
    changed.write_bytes(path.read_bytes() + bytes([0, len(name) + 1, len(name)]) + name)
    return changed


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
    ) -> Config:
        def wasm(direction: str) -> Wasm:
            configured = {"attribution": self._attribution, **config, "direction": direction}
            text = json.dumps(configured)
            path = module or self.module
            return Wasm(path, text, vm_id=vm_id, vm_config=vm_configuration)

        return envoy.pod(
            admin_port=self.admin_port,
            inbound_port=self.load.inbound,
            outbound_port=self.load.outbound,
            app=(HOST, self.load.app),
            callee=(HOST, self.load.callee),
            inbound=wasm("inbound"),
            outbound=wasm("outbound"),
            extra_stat_tags=TAGS,
        )


def decisions(running: Envoy) -> Counter[str]:
    """Calls by what was done with them."""
    family = "b3relay_calls_total{decision="
    found: Counter[str] = Counter()
    for name, value in running.stats(family).items():
        found[name.split('"')[1]] += int(value)
    return +found


def listeners(running: Envoy, name: str) -> float:
    """A number of Envoy's about its listeners."""
    name = f"listener_manager.{name}"
    return running.stats(name)[name]


async def until(what: str, holds: Callable[[], bool], seconds: float = 20) -> None:
    deadline = asyncio.get_running_loop().time() + seconds
    while not await asyncio.to_thread(holds):
        assert asyncio.get_running_loop().time() < deadline, f"{what}: not within {seconds} s"
        await asyncio.sleep(0.05)


class Pushes:
    """Listeners that Envoy reads from a file, which is replaced by renaming."""

    def __init__(self, pod: Pod, directory: Path) -> None:
        self._pod = pod
        # A directory of its own: each rename into it makes Envoy read the file.
        self._directory = directory / "lds"
        self._directory.mkdir()
        self._path = self._directory / "lds.yaml"
        self._version = 0

    def bootstrap(self, config: Config) -> Config:
        """The same bootstrap, with its listeners in the file."""
        self._write(config)
        bootstrap = {**config, "static_resources": dict(config["static_resources"])}
        del bootstrap["static_resources"]["listeners"]
        bootstrap["dynamic_resources"] = {
            "lds_config": {
                "resource_api_version": "V3",
                "path_config_source": {
                    "path": str(self._path),
                    "watched_directory": {"path": str(self._directory)},
                },
            }
        }
        return bootstrap

    def _write(self, config: Config) -> None:
        self._version += 1
        listener = "type.googleapis.com/envoy.config.listener.v3.Listener"
        listeners = config["static_resources"]["listeners"]
        resources = [{"@type": listener, **each} for each in listeners]
        text = yaml.safe_dump({"version_info": str(self._version), "resources": resources})
        part = self._directory.with_name("lds.part")
        part.write_text(text)
        os.replace(part, self._path)

    async def push(self, running: Envoy, config: Config, outcome: str = "update_success") -> None:
        """Push, wait until Envoy has taken or refused it, and a few requests longer."""
        before = listeners(running, f"lds.{outcome}")
        self._write(config)
        await until(outcome, lambda: listeners(running, f"lds.{outcome}") > before)
        seen = self._pod.load.requests
        await until("more requests", lambda: self._pod.load.requests > seen + 4 * USERS)


def judge(load: Load, counted: Counter[str], attribution: str) -> None:
    """Nothing lost, nothing wrong (or hardly anything), and every miss counted."""
    print(load.requests, "requests,", dict(load.calls), "calls, counted", dict(counted))
    assert not load.failed, f"{len(load.failed)}: {load.failed[:5]}"
    # As much as is allowed of attribution at any time.
    allowed = 0.005 * sum(load.calls.values()) + 1 if attribution == "exclusive" else 0
    assert load.calls["wrong"] <= allowed
    assert load.calls["right"] > load.requests, "most of them"
    assert sum(load.calls.values()) == 2 * load.requests
    given = load.calls["right"] + load.calls["wrong"]
    assert counted["copied"] + counted["exclusive"] == given
    assert counted["unknown"] + counted["unsure"] == load.calls["missed"]
    assert set(counted) <= {"copied", "exclusive", "unknown", "unsure"}


@ATTRIBUTION
def test_pushed_configurations(attribution: str) -> None:
    with Processes() as processes:
        pod = Pod(processes.directory, attribution)
        pushes = Pushes(pod, processes.directory)
        running = Envoy(
            processes,
            "pushed",
            pushes.bootstrap(pod.bootstrap({})),
            concurrency=2,
            arguments=("--disable-hot-restart", "--drain-time-s", str(PUSH_DRAIN_SECONDS), *AT_ONCE),
        )
        running.start()
        processes.wait_ready({running.process: running.ready})

        async def scenario() -> AsyncIterator[str]:
            async with pod.load.running():
                await asyncio.sleep(0.5)
                await pushes.push(running, pod.bootstrap({"capacity": 128}))
                yield "another configuration"
                bad = pod.bootstrap({"capacity": 1})
                await pushes.push(running, bad, "update_rejected")
                yield "a bad configuration"
                module = another_module(pod.module)
                await pushes.push(running, pod.bootstrap({}, module=module))
                yield "another module"
                await pushes.push(running, pod.bootstrap({}, vm_configuration="another"))
                yield "another VM"
                await pushes.push(running, pod.bootstrap({}, vm_id="another"))
                yield "another VM ID"
                # Listeners that differ in a filter alone are changed in place.
                drained = listeners(running, "total_filter_chains_draining")
                assert drained == 8, "two listeners, four times"

        async def told() -> None:
            missed = 0
            async for step in scenario():
                print(f"{step}: {pod.load.calls['missed'] - missed} calls missed")
                missed = pod.load.calls["missed"]

        asyncio.run(told())
        judge(pod.load, decisions(running), attribution)
        # And the refused one was refused for that reason.
        assert "b3relay: configuration key `capacity`: found 1, " in running.log()
        assert "panic" not in running.log()


@ATTRIBUTION
def test_hot_restart(attribution: str) -> None:
    with Processes() as processes:
        pod = Pod(processes.directory, attribution)
        base_id = processes.directory / "base-id"
        times = (
            *("--drain-time-s", str(RESTART_DRAIN_SECONDS), *AT_ONCE),
            *("--parent-shutdown-time-s", str(RESTART_DRAIN_SECONDS + 1)),
        )
        # What the earlier Envoy has counted since its last flush the later one adds
        # to its own numbers, whenever it flushes: so that it gets all of it.
        flush = ("60s", "0.2s")

        def epoch(number: int, *arguments: str) -> Envoy:
            started = Envoy(
                processes,
                f"epoch-{number}",
                pod.bootstrap({}) | {"stats_flush_interval": flush[number]},
                concurrency=2,
                arguments=("--restart-epoch", str(number), *times, *arguments),
            )
            started.start()
            return started

        def serves(running: Envoy, number: int) -> bool:
            # Both have the same admin address; the later one takes it over.
            try:
                info = json.loads(running.admin("/server_info"))
            except (OSError, ValueError):
                return False
            options: dict[str, Any] = info["command_line_options"]
            return bool(info["state"] == "LIVE" and options["restart_epoch"] == number)

        parent = epoch(0, "--use-dynamic-base-id", "--base-id-path", str(base_id))
        processes.wait_ready({parent.process: lambda: serves(parent, 0)})

        async def scenario() -> Envoy:
            async with pod.load.running():
                await asyncio.sleep(0.5)
                child = epoch(1, "--base-id", base_id.read_text().strip())
                await until("epoch 1", lambda: serves(child, 1))
                await until("epoch 0 ended", lambda: parent.process.exit_code is not None)
                await asyncio.sleep(0.5)
            return child

        try:
            child = asyncio.run(scenario())
        finally:
            # Envoy leaves it behind; the number is ten times the ID.
            shared = f"envoy_shared_memory_{base_id.read_text().strip()}0"
            Path("/dev/shm", shared).unlink(missing_ok=True)
        judge(pod.load, decisions(child), attribution)
        for each in (parent, child):
            assert "panic" not in each.log() and "critical" not in each.log()
