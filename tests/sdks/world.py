"""Services of one stack behind sidecars, and clicks on them.

The gateway calls ``productpage``; that calls ``details`` and then ``reviews``, and
``reviews`` calls ``ratings``. The two that call are of the stack under test, with its
SDK or without; the other two are plain. The SDKs report to the collector, past the
sidecars.
"""

import http.client
import json
import shutil
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

from mesh import envoy
from mesh.apps import CALLS
from mesh.collector import Collector
from mesh.envoy import Common, Envoy, Tracer, Wasm
from mesh.mesh import SERVICES, request, wasm_path
from mesh.ports import HOST, free_port
from mesh.procs import MeshError, Process, Processes, Stacked
from sdks.judge import Judged, judge
from sdks.stacks import STACKS, Sdk, environment

FORWARDS = ("none", "request-id", "all")
MESHES: Mapping[str, Tracer] = {
    "B3": "zipkin",
    "W3C": "opentelemetry",
    "both": "zipkin+w3c",
}
CALLERS = tuple(name for name, callees in CALLS.items() if callees)
# Spans of the sidecars, and of an SDK, of one click.
SIDECAR_SPANS = 1 + len(SERVICES)
SDK_SPANS = sum(1 + len(CALLS[name]) for name in CALLERS)
_DECISIONS = 'b3relay_calls_total{decision="'


@dataclass(frozen=True)
class Seen:
    """What a cell showed."""

    judged: Judged
    # What b3relay did with the calls, by caller.
    decisions: Mapping[str, Mapping[str, int]]

    def __str__(self) -> str:
        said = {name: dict(found) for name, found in self.decisions.items()}
        return f"decisions: {json.dumps(said)}\n{self.judged.picture}"


class World(Stacked):
    """Keeps the collector and the services running while the sidecars come and go."""

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.collector = stack.enter_context(Collector())
            self._processes = stack.enter_context(Processes(show_tails=True))
            self._wasm = Path(shutil.copy(wasm_path(), self._processes.directory / "b3relay.wasm"))
            self._stack = stack.pop_all()
        self._inbound = {name: free_port() for name in SERVICES}
        self._outbound = {name: free_port() for name in SERVICES}
        self._gateway = free_port()
        self._apps: dict[tuple[str, Sdk], dict[str, int]] = {}
        self._next_click = 1
        return self

    def run(
        self, stack: str, mesh: str, sdk: Sdk, config: str | None, clicks: int
    ) -> dict[str, Seen]:
        """That many clicks, one after the other, by what the services forward.

        ``config`` is b3relay's configuration; without one the sidecars are without b3relay.
        """
        apps = self._start_apps(stack, sdk)
        wasm = None if config is None else Wasm(self._wasm, config)
        envoys = self._start_envoys(MESHES[mesh], apps, wasm)
        try:
            self.collector.clear()
            numbers: dict[str, range] = {}
            decisions: dict[str, dict[str, dict[str, int]]] = {}
            before = _decisions(envoys)
            for forward in FORWARDS:
                numbers[forward] = range(self._next_click, self._next_click + clicks)
                self._next_click += clicks
                for number in numbers[forward]:
                    self._click(number, forward)
                now = _decisions(envoys)
                decisions[forward] = {name: dict(now[name] - before[name]) for name in CALLERS}
                before = now
            each = SIDECAR_SPANS + (SDK_SPANS if sdk == "reports" else 0)
            expected = clicks * len(FORWARDS) * each
            self.collector.wait_for(lambda spans: len(spans) >= expected, 10)
            # More than there should be would be seen too.
            self.collector.wait_quiet(0.3, 5)
            spans = self.collector.spans()
        finally:
            self._processes.stop(*(one.process for one in envoys.values()))
        return {
            forward: Seen(judge(spans, numbers[forward]), decisions[forward])
            for forward in FORWARDS
        }

    def _click(self, number: int, forward: str) -> None:
        path = f"/productpage?click={number}&forward={forward}"
        reply = request(self._gateway, path)
        if reply.status != 200:
            raise MeshError(f"click {number} was answered with {reply.status}: {reply.body}")

    def _start_apps(self, stack: str, sdk: Sdk) -> dict[str, int]:
        """The ports of the services, by name."""
        if (stack, sdk) in self._apps:
            return self._apps[stack, sdk]
        ports: dict[str, int] = {}
        checks = {}
        for name in SERVICES:
            one: tuple[str, Sdk] = (stack, sdk) if name in CALLERS else ("python", "none")
            key = one if name in CALLERS else ("leaf", "none")
            if name in self._apps.setdefault(key, {}):
                ports[name] = self._apps[key][name]
                continue
            ports[name] = self._apps[key][name] = free_port()
            command = [
                *STACKS[one[0]].command(one[1]),
                name,
                str(ports[name]),
                str(self._outbound[name]),
                *CALLS[name],
            ]
            process = self._processes.start(
                f"app-{name}-{one[0]}-{one[1]}",
                command,
                environment(name, one[1], self.collector.address[1]),
            )
            checks[process] = partial(_answers, ports[name])
        self._processes.wait_ready(checks, 90)
        self._apps[stack, sdk] = ports
        return ports

    def _start_envoys(
        self, tracer: Tracer, apps: Mapping[str, int], wasm: Wasm | None
    ) -> dict[str, Envoy]:
        common = Common(self.collector.address, extra_stat_tags=("decision",), tracer=tracer)
        bootstraps = {
            name: envoy.sidecar(
                common,
                name,
                admin_port=free_port(),
                inbound_port=self._inbound[name],
                outbound_port=self._outbound[name],
                app_port=apps[name],
                callees=self._inbound,
                wasm=wasm,
            )
            for name in SERVICES
        }
        bootstraps["gateway"] = envoy.gateway(
            common,
            admin_port=free_port(),
            port=self._gateway,
            callee="productpage",
            callee_port=self._inbound["productpage"],
        )
        envoys = {
            name: Envoy(self._processes, name, bootstrap, concurrency=1)
            for name, bootstrap in bootstraps.items()
        }
        checks: dict[Process, object] = {}
        for one in envoys.values():
            one.start()
        self._processes.wait_ready({one.process: one.ready for one in envoys.values()}, 60)
        return envoys


def _decisions(envoys: Mapping[str, Envoy]) -> dict[str, Counter[str]]:
    # Each may wait for its tick: all at the same time.
    with ThreadPoolExecutor() as pool:
        read = list(pool.map(lambda name: envoys[name].stats(_DECISIONS), CALLERS))
    return {
        name: Counter(
            {
                label.removeprefix(_DECISIONS).removesuffix('"}'): int(n)
                for label, n in found.items()
                if n
            }
        )
        for name, found in zip(CALLERS, read, strict=True)
    }


def _answers(port: int) -> bool:
    try:
        return request(port, "/ready", timeout=1.0).status == 200
    except (OSError, http.client.HTTPException):
        return False
