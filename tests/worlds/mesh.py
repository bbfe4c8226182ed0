"""Brings a world up, puts its load on it, with the filter and without, and keeps what happened."""

import asyncio
import json
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from mesh import ports as mesh_ports
from mesh.envoy import TICK, Envoy
from mesh.ports import free_port
from mesh.procs import MeshError, Processes
from worlds import http1
from worlds.apps import Run
from worlds.bootstraps import VARIANTS, Ports, Variant, binary, bootstrap
from worlds.http1 import Headers, Message
from worlds.spans import Collector, Span
from worlds.world import World

PREFIX = "wasmcustom.b3relay_"
# Seconds that the load of a world may take.
_LONGEST = 90


@dataclass
class Evidence:
    """What happened in a world."""

    world: World
    runs: dict[Variant, Run]
    spans: list[Span]
    # Of all Envoys, summed up: of the filter's metrics, by their native names.
    stats: dict[str, float]
    # What the logs say that no log should.
    alarms: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    # Client spans that b3relay has reported.
    relayed: list[Span] = field(default_factory=list)


class Servers:
    """The servers of all worlds: applications, the hosts outside, the collector."""

    def __init__(self) -> None:
        self.apps: dict[tuple[Variant, int], int] = {}
        self.runs: dict[Variant, Run] = {}
        self.collector = Collector()
        self._current: Variant = "without"
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._servers = []
        for variant in VARIANTS:
            for service in range(6):
                server, port = await http1.serve(
                    partial(self._serve, variant, service), self._tasks
                )
                self._servers.append(server)
                self.apps[variant, service] = port
        server, self.outside = await http1.serve(self._serve_outside, self._tasks)
        self._servers.append(server)
        server, self.collecting = await http1.serve(self._collect, self._tasks)
        self._servers.append(server)
        self.reports = {"well": self.collecting, "down": free_port(), "missing": 0, "": 0}
        for how, serve in (("slow", self._collect_slowly), ("500", self._refuse)):
            server, self.reports[how] = await http1.serve(serve, self._tasks)
            self._servers.append(server)

    def begin(self, variant: Variant, run: Run) -> None:
        self._current = variant
        self.runs[variant] = run

    async def _serve(
        self, variant: Variant, service: int, request: Message
    ) -> tuple[int, Headers, bytes]:
        return await self.runs[variant].serve(service, request)

    async def _serve_outside(self, request: Message) -> tuple[int, Headers, bytes]:
        return await self.runs[self._current].serve_outside(request)

    async def _collect(self, request: Message) -> tuple[int, Headers, bytes]:
        return await self.collector.take(request)

    async def _collect_slowly(self, request: Message) -> tuple[int, Headers, bytes]:
        await asyncio.sleep(0.7)
        return await self.collector.take(request)

    async def _refuse(self, _request: Message) -> tuple[int, Headers, bytes]:
        return 500, [], b""


class Admin:
    """The admin interface of an Envoy, without waiting for it in the event loop's thread."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._client = http1.Client()

    async def get(self, path: str) -> bytes:
        return (await self._client.request(self._port, "GET", path, "admin", [])).body


async def witness(world: World, servers: Servers, wasm: Path) -> Evidence:
    """Run the world."""
    servers.collector = Collector()
    reports = servers.reports[world.spans]
    ports = Ports(world, servers.apps, servers.outside, servers.collecting, reports)
    notes = []
    began = time.monotonic()
    seconds = {}
    try:
        with Processes() as processes:
            envoys = []
            for number, each in enumerate(world.envoys):
                program = binary(each.version)
                if program is None:
                    notes.append(f"Envoy {each.version} is not installed: 1.40.0 in its place")
                made = bootstrap(world, number, ports, wasm, processes.directory)
                envoy = Envoy(
                    processes,
                    f"world{number}",
                    made,
                    concurrency=each.workers,
                    program=program,
                )
                envoy.start()
                envoys.append(envoy)
            for envoy in envoys:
                await _ready(envoy)
            seconds["start"] = time.monotonic() - began
            evidence = Evidence(world, {}, [], {}, [], notes, seconds)
            for variant in ("without", "with"):
                before = time.monotonic()
                outbound = {s: ports.outbound[variant, s] for s in range(len(world.services))}
                run = Run(world, ports.entry(world, variant), outbound)
                evidence.runs[variant] = run
                servers.begin(variant, run)
                try:
                    async with asyncio.timeout(_LONGEST):
                        for number in range(len(world.batches)):
                            await run.batch(number)
                finally:
                    await run.stop()
                seconds[variant] = time.monotonic() - before
            before = time.monotonic()
            await _spans(servers.collector, evidence)
            seconds["spans"] = time.monotonic() - before
            # The counters of a busy sidecar are raised with its next tick.
            await asyncio.sleep(TICK)
            for envoy in envoys:
                if envoy.process.exit_code is not None:
                    evidence.alarms.append(f"{envoy.name} ended: {envoy.process.tail(15)}")
                    continue
                await _stats(envoy, evidence)
                log = envoy.log()
                evidence.alarms += [
                    line
                    for line in log.splitlines()
                    if "panic" in line
                    or "[critical]" in line
                    or "proc_exit" in line
                    or "Function: proxy_" in line
                    or "configuration key" in line
                ]
            before = time.monotonic()
        seconds["stop"] = time.monotonic() - before
    finally:
        mesh_ports.release(ports.all())
    seconds["all"] = time.monotonic() - began
    return evidence


async def _ready(envoy: Envoy) -> None:
    admin = Admin(envoy.admin_port)
    deadline = time.monotonic() + 40
    while True:
        if envoy.process.exit_code is not None or time.monotonic() > deadline:
            raise MeshError(f"{envoy.name} did not start\n{envoy.process.tail(20)}")
        try:
            if (await admin.get("/ready")).startswith(b"LIVE"):
                return
        except OSError:
            pass
        await asyncio.sleep(0.03)


async def _spans(collector: Collector, evidence: Evidence) -> None:
    """Wait until all have come: the Envoys hand them over every 0.06 s."""
    # b3relay does so every second.
    quiet = 2.2 if evidence.world.spans else 0.25
    if evidence.world.tracer != "none" or evidence.world.spans:
        begun = time.monotonic()
        while time.monotonic() < max(begun, collector.last) + quiet and time.monotonic() < begun + 8:
            await asyncio.sleep(0.03)
    evidence.spans = [span for span in collector.spans if not span.relay]
    evidence.relayed = [span for span in collector.spans if span.relay]


async def _stats(envoy: Envoy, evidence: Evidence) -> None:
    admin = Admin(envoy.admin_port)
    raw = await admin.get("/stats?format=json&filter=^wasmcustom")
    for entry in json.loads(raw)["stats"]:
        name = entry.get("name", "")
        if name.startswith(PREFIX):
            name = name.removeprefix(PREFIX)
            evidence.stats[name] = evidence.stats.get(name, 0) + entry["value"]
