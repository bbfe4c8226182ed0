"""The load: vegeta, which sends different headers with each request, at a rate."""

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.shapes import Headers
from mesh.mesh import ROOT
from mesh.ports import HOST
from mesh.procs import MeshError

# More are in flight only if answers take long; more than that never are, so that
# all connections are kept (with none to spare the rate drops instead).
CONNECTIONS, MAX_CONNECTIONS = 8, 64
PERCENTILES = ("50th", "90th", "99th")


def vegeta() -> Path:
    tools = Path(os.environ.get("B3RELAY_TOOLS") or ROOT / ".tools")
    return tools / "go" / "bin" / "vegeta"


@dataclass(frozen=True)
class Load:
    """What was sent, and how long the answers took."""

    requests: int
    # Requests per second.
    rate: float
    # Microseconds, by the names of PERCENTILES.
    latencies: dict[str, float]


def write_targets(path: Path, port: int, requests: Sequence[Headers]) -> None:
    with path.open("w") as file:
        for headers in requests:
            target = {
                "method": "GET",
                "url": f"http://{HOST}:{port}/reviews/0",
                "header": {name: [value] for name, value in headers.items()},
            }
            file.write(json.dumps(target) + "\n")


def send(targets: Path, rate: int, seconds: float) -> Load:
    """Send the targets at a steady rate; every one must be answered with 200."""
    results = targets.with_suffix(".results")
    _run(
        "attack",
        "-format=json",
        f"-targets={targets}",
        f"-rate={rate}/1s",
        f"-duration={seconds}s",
        f"-workers={CONNECTIONS}",
        f"-max-workers={MAX_CONNECTIONS}",
        f"-connections={MAX_CONNECTIONS}",
        f"-output={results}",
        timeout=seconds + 30,
    )
    report = json.loads(_run("report", "-type=json", str(results), timeout=30))
    if report["status_codes"] != {"200": report["requests"]}:
        raise MeshError(f"{targets.stem}: {report['status_codes']} {report['errors'][:3]}")
    latencies = {name: report["latencies"][name] / 1000 for name in PERCENTILES}
    return Load(report["requests"], report["rate"], latencies)


def _run(*words: str, timeout: float) -> bytes:
    # Killed by its ID if this is interrupted.
    done = subprocess.run([vegeta(), *words], capture_output=True, timeout=timeout)
    if done.returncode != 0:
        raise MeshError(f"vegeta {words[0]}: {done.stderr.decode(errors='replace')}")
    return done.stdout
