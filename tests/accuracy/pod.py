"""One Envoy between the load program and an application."""

import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accuracy.stacks import BUILT, HERE, Forward, Stack, Variant
from load.program import PREFIX, by_labels, go_program, pod_bootstrap, pod_ports
from mesh.envoy import TICK, Config, Envoy
from mesh.ports import HOST
from mesh.procs import MeshError, Processes

# Requests in flight, and how many of them in all.
Stages = Sequence[tuple[int, int]]
# Between a client's requests, and until the sink answers.
PAUSE_MS, CALL_MS = 5.0, 10.0
WORKERS = 2


@dataclass(frozen=True)
class Result:
    """What became of the calls of a stage; see load/main.go."""

    concurrency: int
    requests: int
    seconds: float
    right: int
    abstained: int
    wrong: int
    other_parent: int
    background_alone: int
    background_taken: int
    calling: int
    whole: int
    crossed: int
    failed: int
    in_flight: float
    # What was added to the filter's metrics: by name, and the labels that tell them apart.
    metrics: Mapping[str, float]
    # The share of the machine's cores that were busy, whatever with; niced work aside.
    busy: float = 0.0

    @property
    def calls(self) -> int:
        """Those that were made for a request."""
        return self.right + self.abstained + self.wrong

    @property
    def background(self) -> int:
        return self.background_alone + self.background_taken


def counters(lines: Sequence[str]) -> dict[str, float]:
    """Metrics as Envoy prints them for Prometheus, by ``family label label``."""
    split = (line.rpartition(" ") for line in lines)
    return by_labels((name, float(value)) for name, _, value in split)


class Pod:
    """Envoy and the application, until the processes are stopped."""

    def __init__(
        self,
        processes: Processes,
        stack: Stack,
        variant: Variant,
        forward: Forward,
        config: Mapping[str, object] | None,
        access_log: Path | None = None,
    ) -> None:
        """``config``: the filter's; None for an Envoy without the filter."""
        self._processes = processes
        self._variant = variant
        self._forward = forward
        self._runs = 0
        self.ports = pod_ports()
        self._stack = stack
        bootstrap = pod_bootstrap(processes.directory, self.ports, config, http2=stack.grpc)
        if access_log is not None:
            log_access(bootstrap, access_log)
        self.envoy = Envoy(processes, f"pod-{stack.name}-{variant}", bootstrap, WORKERS)
        command = stack.command(self.ports["app"], self.ports["outbound"], variant, forward)
        self.app = processes.start(f"app-{stack.name}-{variant}", command)
        self.envoy.start()
        processes.wait_ready({self.envoy.process: self.envoy.ready, self.app: self._listens})

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((HOST, self.ports["app"])) == 0

    def run(self, stages: Stages, call_ms: float = CALL_MS) -> list[Result]:
        """The stages one after the other, against the same application."""
        self._runs += 1
        name = f"load-{self.envoy.name}-{self._runs}"
        plan, result = (
            self._processes.directory / f"{name}-{what}.json" for what in ("plan", "result")
        )
        whole: dict[str, Any] = {
            "inbound": f"{HOST}:{self.ports['inbound']}",
            "sink": f"{HOST}:{self.ports['sink']}",
            "pause_ms": PAUSE_MS,
            "call_ms": call_ms,
            # Counters that are raised often are raised with the next tick.
            "settle_ms": 1000 * TICK,
            "token": self._variant == "token",
            "truth": self._forward == "truth",
            "grpc": self._stack.grpc,
            "stages": [{"concurrency": n, "requests": requests} for n, requests in stages],
            "metrics": f"http://{HOST}:{self.envoy.admin_port}/stats/prometheus",
            "prefix": PREFIX,
        }
        plan.write_text(json.dumps(whole))
        load = self._processes.start(
            name, [go_program(HERE / "load", BUILT / "load"), plan, result]
        )
        deadline = time.monotonic() + 600
        while not load.wait(1):
            if time.monotonic() > deadline:
                raise MeshError(f"{name} does not end\n{load.tail()}")
            if self.app.exit_code is not None:
                raise MeshError(f"the application ended\n{self.app.tail()}")
        if load.exit_code != 0:
            raise MeshError(f"{name} failed\n{load.tail()}")
        report = json.loads(result.read_text())
        before, results = counters(report["before"]), []
        for values in report["stages"]:
            after = counters(values.pop("metrics"))
            added = {name: value - before.get(name, 0) for name, value in after.items()}
            results.append(Result(**values, metrics=added))
            before = after
        if any(stage.failed for stage in results):
            raise MeshError(f"requests failed\n{load.tail()}\n{self.app.tail()}")
        return results

    def cpu_seconds(self) -> tuple[float, float]:
        """What the application and Envoy have used, with all their processes."""
        return cpu_seconds(self.app.pid), cpu_seconds(self.envoy.process.pid)

    def stop(self) -> None:
        self._processes.stop(self.app, self.envoy.process)


def cpu_seconds(process: int) -> float:
    """Of a process and those below it that run."""
    children: dict[int, list[int]] = {}
    ticks: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name, in brackets, may hold anything.
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # It has ended meanwhile.
        pid = int(stat.parent.name)
        children.setdefault(int(fields[1]), []).append(pid)
        ticks[pid] = int(fields[11]) + int(fields[12])
    found, waiting = 0, [process]
    while waiting:
        pid = waiting.pop()
        found += ticks.get(pid, 0)
        waiting += children.get(pid, [])
    return found / os.sysconf("SC_CLK_TCK")


def log_access(bootstrap: Config, path: Path) -> None:
    """Both listeners write what a filter there sees of a request, a JSON object a line."""
    for listener in bootstrap["static_resources"]["listeners"]:
        for network_filter in listener["filter_chains"][0]["filters"]:
            network_filter["typed_config"]["access_log"] = [
                {
                    "name": "envoy.access_loggers.file",
                    "typed_config": {
                        "@type": FILE_ACCESS_LOG,
                        "path": str(path),
                        "log_format": {"json_format": {"side": listener["name"], **ACCESS}},
                    },
                }
            ]


FILE_ACCESS_LOG = "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog"
ACCESS = {
    "start_us": "%START_TIME(%s%6f)%",
    # Until the last byte of the answer came from upstream, and until it went on.
    "us": "%COMMON_DURATION(DS_RX_BEG:US_RX_END:us)%",
    "total_us": "%COMMON_DURATION(DS_RX_BEG:DS_TX_END:us)%",
    "method": "%REQ(:METHOD)%",
    "host": "%REQ(:AUTHORITY)%",
    "path": "%REQ(:PATH)%",
    "truth": "%REQ(X-TRUTH)%",
    "connection": "%CONNECTION_ID%",
    "upstream_connection": "%UPSTREAM_CONNECTION_ID%",
    # The ports of the two: of the application's connection to the sidecar, for a call.
    "port": "%DOWNSTREAM_REMOTE_PORT%",
    "upstream_port": "%UPSTREAM_LOCAL_PORT%",
    # Until the request went upstream, on a connection that was there by then.
    "sent_us": "%COMMON_DURATION(DS_RX_BEG:US_TX_BEG:us)%",
    "status": "%RESPONSE_CODE%",
}
