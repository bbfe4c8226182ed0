"""A real Prometheus, and its promtool: built through the Go module proxy, without the
assets of the web page, and without what finds targets in clouds."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import yaml

from mesh import golang
from mesh.mesh import ROOT, request
from mesh.ports import HOST, free_port
from mesh.procs import MeshError, Processes

RULES = ROOT / "envoyfilter/monitoring/rules.yaml"
DASHBOARD = ROOT / "envoyfilter/monitoring/dashboard.json"
_MODULE = "github.com/prometheus/prometheus/cmd"
_SOURCE = ROOT / "tests/prometheus"
_TAGS = "remove_all_sd"


def promtool() -> Path:
    return golang.build("promtool", _SOURCE, f"{_MODULE}/promtool", "2 to 4 minutes", _TAGS)


def prometheus() -> Path:
    return golang.build("prometheus", _SOURCE, f"{_MODULE}/prometheus", "4 minutes", _TAGS)


def dashboard_check() -> Path:
    """Reads a dashboard by Grafana's own schema."""
    return golang.build("dashboard-check", ROOT / "tests/monitoring/dashboard", takes="a minute")


@dataclass(frozen=True)
class Query:
    """A query of a panel of the dashboard."""

    panel: str
    legend: str
    expr: str
    # A table's, asked for one moment.
    instant: bool = False


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return found


# What Grafana puts in: everything chosen, and a range of four scrapes at least.
ALL = {"$namespace": ".*", "$workload": ".*", "$__rate_interval": "1m"}


def filled(expr: str, values: Mapping[str, str] = ALL) -> str:
    """A query of the dashboard with its variables filled in, as Grafana does it."""
    for name, value in values.items():
        expr = expr.replace(name, value)
    return expr


def queries(values: Mapping[str, str] = ALL) -> list[Query]:
    """Every query of the dashboard."""
    return [
        Query(panel["title"], one["legendFormat"], filled(one["expr"], values), one["instant"])
        for panel in panels()
        for one in panel["targets"]
    ]


@dataclass(frozen=True)
class Target:
    """Where metrics are, and the labels that whoever scrapes gives them."""

    port: int
    labels: Mapping[str, str]
    path: str = "/stats/prometheus"
    address: str = HOST


class Prometheus:
    """A Prometheus with its store in a temporary folder, on loopback."""

    def __init__(
        self,
        processes: Processes,
        targets: Iterable[Target],
        seconds: int = 1,
        relabel: Sequence[Mapping[str, Any]] = (),
        rules: Sequence[Path] = (),
    ) -> None:
        self.port = free_port()
        # Rules that are looked at as often as targets are.
        interval = f"{seconds}s"
        configuration = {
            "global": {"scrape_interval": interval, "evaluation_interval": interval},
            "rule_files": [str(path) for path in rules],
            "scrape_configs": [
                {
                    "job_name": f"target-{number}",
                    "metrics_path": target.path,
                    "static_configs": [
                        {
                            "targets": [f"{target.address}:{target.port}"],
                            "labels": dict(target.labels),
                        }
                    ],
                    "metric_relabel_configs": [dict(rule) for rule in relabel],
                }
                for number, target in enumerate(targets)
            ],
        }
        path = processes.directory / "prometheus.yaml"
        path.write_text(yaml.safe_dump(configuration))
        process = processes.start(
            "prometheus",
            [
                prometheus(),
                f"--config.file={path}",
                f"--storage.tsdb.path={processes.directory / 'prometheus'}",
                f"--web.listen-address={HOST}:{self.port}",
            ],
        )
        processes.wait_ready({process: self._ready})

    def _ready(self) -> bool:
        try:
            return request(self.port, "/-/ready", timeout=2).status == 200
        except OSError:
            return False

    def get(self, path: str, **parameters: str) -> Any:
        """What its API answers."""
        reply = request(self.port, f"/api/v1/{path}?{urlencode(parameters)}")
        if reply.status != 200:
            raise MeshError(f"prometheus: {path} {parameters}: {reply.status} {reply.body}")
        return reply.body["data"]

    def query(self, expr: str) -> dict[str, float]:
        """The values now, by their labels as JSON."""
        found = self.get("query", query=expr)["result"]
        return {
            json.dumps(one["metric"], sort_keys=True): float(one["value"][1]) for one in found
        }

    def range(self, expr: str, began: float, ended: float, step: int = 1) -> list[Any]:
        """The series between two times, each with ``metric`` and ``values``."""
        found: list[Any] = self.get(
            "query_range", query=expr, start=str(began), end=str(ended), step=str(step)
        )["result"]
        return found

    def wait(self, holds: Callable[[], bool], what: str, timeout: float = 30) -> None:
        deadline = time.monotonic() + timeout
        while not holds():
            if time.monotonic() > deadline:
                raise MeshError(f"prometheus: not after {timeout:.0f} s: {what}")
            time.sleep(0.5)


PROGRAMS = {
    "promtool": promtool,
    "prometheus": prometheus,
    "dashboard-check": dashboard_check,
}


def main(wanted: Sequence[str]) -> int:
    try:
        for name in wanted or PROGRAMS:
            print(f"    {name}: {PROGRAMS[name]()}")
    except (MeshError, subprocess.CalledProcessError) as error:
        print(f"b3relay: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
