"""The mesh of the demo under a real Prometheus, with everything happening that panels show."""

import asyncio
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from mesh import clicks
from mesh.collector import Collector
from mesh.mesh import SERVICES, Mesh, request
from mesh.ports import HOST, free_port
from mesh.procs import MeshError
from mesh.prometheus import RULES, Prometheus, Target

LABELS = ("action", "decision", "direction", "key", "reason", "rule")
# productpage forwards nothing, reviews a request ID.
FORWARD = {name: "none" if name == "productpage" else "request-id" for name in SERVICES}
CONFIG = {"attribution": "inferred"}
SPANS = {"cluster": "collector", "format": "zipkin"}


def labels_of(name: str) -> dict[str, str]:
    """As whoever scrapes a cluster would label that sidecar."""
    return {"namespace": "shop", "pod": f"{name}-v1-6b746f74dc-9x7mk"}


class Fickle(Collector):
    """A collector that can be told to fail."""

    failing = False

    async def _take_zipkin(self, request: web.Request) -> web.Response:
        if self.failing:
            return web.Response(status=503)
        return await super()._take_zipkin(request)


class Kubelet:
    """In the place of the kubelet: the CPU time of the sidecars, as it exports it."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        self.port = free_port()
        self._pids = pids
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> "Kubelet":
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._serve(), self._loop).result(10)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    async def _serve(self) -> None:
        app = web.Application()
        app.router.add_get("/metrics/cadvisor", self._answer)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, HOST, self.port).start()

    async def _answer(self, _request: web.Request) -> web.Response:
        name = "container_cpu_usage_seconds_total"
        lines = [f"# TYPE {name} counter"]
        for service, pid in self._pids.items():
            labels = {"container": "istio-proxy", **labels_of(service)}
            inside = ",".join(f'{key}="{value}"' for key, value in labels.items())
            lines.append(f"{name}{{{inside}}} {_cpu_seconds(pid)}")
        return web.Response(text="\n".join(lines) + "\n")


def _cpu_seconds(pid: int) -> float:
    with open(f"/proc/{pid}/stat") as file:
        # Behind the name, which may have spaces: utime and stime are fields 14 and 15.
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass
class World:
    mesh: Mesh
    collector: Fickle
    prometheus: Prometheus
    began: float

    def users(self, total: int, at_once: int, pause: float = 0.05) -> None:
        """Clicks on applications that forward nothing."""
        clicks.click(self.mesh, total, at_once, pause)

    def broken(self, total: int = 3) -> None:
        """Requests with headers that break rules, past the gateway; and calls of a request
        that nobody serves."""
        inbound, outbound = self.mesh.inbound_ports["details"], self.mesh.outbound_ports["ratings"]
        bad = {"x-b3-traceid": "xyz", "x-b3-spanid": "a2fb4a1d1a96d312"}
        for number in range(total):
            unknown = {"x-request-id": f"0b2c5a34-7d1e-9f00-8000-{number:012}"}
            for port, host, path, headers in (
                (inbound, "details", "/details/0", bad),
                (outbound, "details", "/details/0", unknown),
            ):
                if request(port, path, host, headers).status != 200:
                    raise MeshError(f"a request to {host} with {headers} failed")


@contextmanager
def world(
    tags: Sequence[str] = LABELS, relabel: Sequence[Mapping[str, Any]] = (), seconds: int = 1
) -> Iterator[World]:
    """``tags``: the labels that Envoy takes out of names; ``relabel``: what Prometheus does."""
    with ExitStack() as stack:
        collector = stack.enter_context(Fickle())
        mesh = stack.enter_context(
            Mesh(
                forward=FORWARD,
                config=json.dumps(CONFIG),
                outbound_config=json.dumps({**CONFIG, "spans": SPANS}),
                extra_stat_tags=tags,
                collector=collector,
            )
        )
        pids = {name: mesh.envoys[name].process.pid for name in SERVICES}
        kubelet = stack.enter_context(Kubelet(pids))
        targets = [Target(mesh.envoys[name].admin_port, labels_of(name)) for name in SERVICES]
        targets.append(Target(kubelet.port, {}, "/metrics/cadvisor"))
        began = time.time()
        prometheus = Prometheus(mesh.processes, targets, seconds, relabel, [RULES])
        yield World(mesh, collector, prometheus, began)
