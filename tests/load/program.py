"""The load program, and the Envoy that its load goes through.

`tests/accuracy` has a load program and applications of its own around the same Envoy.
"""

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mesh import envoy, golang
from mesh.envoy import Config, Envoy, Wasm
from mesh.mesh import ROOT, wasm_path
from mesh.ports import HOST, free_port
from mesh.procs import MeshError, Processes

HERE = Path(__file__).resolve().parent
PROGRAM = ROOT / "target" / "load" / "load"
# Of Envoy, where a stage does not say otherwise.
CONCURRENCY = 4
DEFAULT_GRACE_MS = 1000
# What the filter's metrics begin with, and the labels that tell them apart.
PREFIX = "b3relay_"
LABELS = ("rule", "direction", "decision", "reason", "action")


def go_program(source: Path, built: Path) -> Path:
    """Compile it; says so if there is no Go."""
    if (why := golang.missing()) is not None:
        raise SystemExit(f"load: {why}")
    built.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["go", "build", "-o", built, "."], cwd=source, check=True)
    return built


def build() -> None:
    """Compile the load program."""
    go_program(HERE, PROGRAM)


def pod_ports() -> dict[str, int]:
    """Of an Envoy's two listeners, and of who is on its two sides."""
    return {side: free_port() for side in ("inbound", "outbound", "app", "sink")}


def pod_bootstrap(
    directory: Path,
    ports: Mapping[str, int],
    config: Mapping[str, object] | None,
    http2: bool = False,
) -> Config:
    """An Envoy between those ports. ``config``: the filter's; None for no filter.

    ``http2``: the application and the sink speak it.
    """

    def wasm(direction: str) -> Wasm | None:
        if config is None:
            return None
        text = json.dumps({**config, "direction": direction})
        return Wasm(directory / "b3relay.wasm", text)

    if config is not None:
        # A copy, so that a build that goes on meanwhile does not matter.
        shutil.copy(wasm_path(), directory / "b3relay.wasm")
    return envoy.pod(
        admin_port=free_port(),
        inbound_port=ports["inbound"],
        outbound_port=ports["outbound"],
        app=(HOST, ports["app"]),
        callee=(HOST, ports["sink"]),
        inbound=wasm("inbound"),
        outbound=wasm("outbound"),
        extra_stat_tags=LABELS,
        http2=http2,
    )


def by_labels(metrics: Iterable[tuple[str, float]]) -> dict[str, float]:
    """The filter's metrics, in Prometheus' form, by ``family label label``."""
    found: dict[str, float] = {}
    for name, value in metrics:
        family, _, rest = name.partition("{")
        labels = re.findall(rf'(?:{"|".join(LABELS)})="([^"]*)"', rest)
        key = " ".join([family.removeprefix(PREFIX), *labels])
        found[key] = found.get(key, 0) + value
    return found


def envoy_version() -> str:
    """Such as "Envoy 1.40.0"."""
    printed = subprocess.run([envoy.binary(), "--version"], capture_output=True, text=True).stdout
    found = re.search(r"/(\d+\.\d+\.\d+)/", printed)
    return f"Envoy {found[1] if found else printed.strip()}"


def versions() -> str:
    """Envoy's and Go's."""
    go = subprocess.run(["go", "env", "GOVERSION"], capture_output=True, text=True).stdout
    return f"{envoy_version()}, Go {go.strip().removeprefix('go')}"


@dataclass(frozen=True)
class Counts:
    """What became of the calls of one kind."""

    kind: str
    expect: str
    right: int
    other_parent: int
    wrong_trace: int
    altered: int
    missed: int

    @property
    def all(self) -> int:
        return self.right + self.other_parent + self.wrong_trace + self.altered + self.missed


@dataclass(frozen=True)
class Report:
    """What the program saw in one stage."""

    seconds: float
    requests: int
    calls: int
    # Requests of which a call was missed; without calls after the response.
    requests_missed: int
    # Requests and calls without the answer that they should have.
    failed: int
    inbound_changed: int
    results: list[Counts]
    # Requests by their latency, in buckets that grow by the factor `latency_width`.
    latency: dict[int, int]
    latency_width: float
    latency_most_ms: float

    @classmethod
    def read(cls, text: str) -> "Report":
        values: dict[str, Any] = json.loads(text)
        values["results"] = [Counts(**counts) for counts in values["results"] or ()]
        values["latency"] = {int(at): n for at, n in values["latency"].items()}
        return cls(**values)

    def total(self, what: str) -> int:
        return sum(getattr(counts, what) for counts in self.results)


class Pod:
    """One Envoy between the program's client, application and sink."""

    def __init__(
        self,
        processes: Processes,
        name: str,
        config: Mapping[str, object] | None,
        concurrency: int = CONCURRENCY,
    ) -> None:
        """``config``: the filter's; None for an Envoy without the filter."""
        self._processes = processes
        self._stages = 0
        self._grace_ms = int(str((config or {}).get("grace_ms", DEFAULT_GRACE_MS)))
        ports = pod_ports()
        self._addresses = {side: f"{HOST}:{port}" for side, port in ports.items()}
        bootstrap = pod_bootstrap(processes.directory, ports, config)
        self.envoy = Envoy(processes, name, bootstrap, concurrency)
        self.envoy.start()
        processes.wait_ready({self.envoy.process: self.envoy.ready})

    def run(self, workers: Mapping[str, int], **stage: float) -> Report:
        """One stage: it ends after ``calls`` or ``seconds``, see main.go."""
        running = self.begin(workers, **stage)
        while not running.over():
            time.sleep(0.1)
        return running.report()

    def begin(self, workers: Mapping[str, int], **stage: float) -> "Running":
        self._stages += 1
        name = f"{self.envoy.name}-stage-{self._stages}"
        path = self._processes.directory / f"{name}.json"
        result = self._processes.directory / f"{name}-result.json"
        whole: dict[str, object] = {"calls_most": 6, "wait_ms": 1, "grace_ms": self._grace_ms}
        whole |= {**self._addresses, "workers": dict(workers), **stage}
        path.write_text(json.dumps(whole))
        return Running(self._processes, name, path, result, (stage.get("seconds") or 3600) + 120)

    def counters(self) -> dict[str, float]:
        """The filter's metrics by name, with the labels that tell them apart."""
        return by_labels(self.envoy.stats(PREFIX).items())


class Running:
    """A stage under way."""

    def __init__(
        self, processes: Processes, name: str, stage: Path, result: Path, seconds: float
    ) -> None:
        self._name = name
        self._result = result
        self._deadline = time.monotonic() + seconds
        self._process = processes.start(name, [PROGRAM, stage, result])

    def over(self) -> bool:
        if time.monotonic() > self._deadline:
            raise MeshError(f"{self._name} does not end\n{self._process.tail()}")
        return self._process.exit_code is not None

    def report(self) -> Report:
        if self._process.exit_code != 0:
            raise MeshError(f"{self._name} failed\n{self._process.tail()}")
        # Failed requests and calls, the first few.
        print(self._process.log(), end="")
        return Report.read(self._result.read_text())
