"""Full speed for a long time: memory, misses, and latency beside the same Envoy without the filter."""

import argparse
import math
import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

from load.keyed import MISSED_MOST, table, write_block
from load.program import CONCURRENCY, Pod, Report, build, versions
from mesh.procs import Processes

WORKERS = 32
SAMPLE_SECONDS = 3.0
PHASE_SECONDS = 120.0
# Of the time that each Envoy is under load: not looked at for the slope.
WARM_UP = 0.25
MEASURES = {
    "RSS": "resident set of the process",
    "allocated": "what Envoy's allocator has handed out (`/memory`)",
    "wasm": "linear memories of the wasm VMs, all together",
}


@dataclass
class Side:
    """One of the two Envoys."""

    name: str
    pod: Pod
    reports: list[Report] = field(default_factory=list)
    # Seconds under load, and the measures in MiB.
    samples: list[tuple[float, dict[str, float]]] = field(default_factory=list)
    loaded_seconds: float = 0
    cpu_seconds: float = 0

    def total(self, what: str) -> int:
        return sum(report.total(what) for report in self.reports)

    @property
    def requests(self) -> int:
        return sum(report.requests for report in self.reports)

    @property
    def calls(self) -> int:
        return sum(report.calls for report in self.reports)


def wasm_mib(pid: int) -> float:
    """What the linear memories of V8's wasm VMs span.

    V8 reserves 8 GiB for each, of which the beginning is readable: that mapping
    stands before a rest of the reservation that is not.
    """
    total, before = 0, None
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        match = re.match(r"([0-9a-f]+)-([0-9a-f]+) (\S+)", line)
        if match is None:
            continue
        start, end, rights = int(match[1], 16), int(match[2], 16), match[3]
        reserved = rights == "---p" and end - start > 7 << 30
        if reserved and before and before[1] == start and before[2] == "rw-p":
            total += before[1] - before[0]
        before = (start, end, rights)
    return total / 2**20


def measure(pod: Pod) -> dict[str, float]:
    pid = pod.envoy.process.pid
    status = Path(f"/proc/{pid}/status").read_text()
    rss = re.search(r"VmRSS:\s+(\d+) kB", status)
    allocated = re.search(r'"allocated": "(\d+)"', pod.envoy.admin("/memory"))
    assert rss and allocated
    return {
        "RSS": int(rss[1]) / 1024,
        "allocated": int(allocated[1]) / 2**20,
        "wasm": wasm_mib(pid),
    }


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, to a hundredth."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / 100


def phase(side: Side, seconds: float) -> None:
    pid = side.pod.envoy.process.pid
    cpu = cpu_seconds(pid)
    running = side.pod.begin({"plain": WORKERS}, seconds=seconds, calls_most=4, wait_ms=0, odd=0.1)
    began = time.monotonic()
    while not running.over():
        at = time.monotonic() - began
        # The last sample of a phase could come when the load is over.
        if 1 < at < seconds - 0.5:
            side.samples.append((side.loaded_seconds + at, measure(side.pod)))
        time.sleep(SAMPLE_SECONDS if at > 1 else 0.1)
    side.loaded_seconds += seconds
    side.cpu_seconds += cpu_seconds(pid) - cpu
    side.reports.append(running.report())


def slope(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Least squares: the slope and its standard error, for each unit of the first."""
    if len(points) < 3:
        return math.nan, math.nan
    n = len(points)
    mean_x, mean_y = sum(x for x, _ in points) / n, sum(y for _, y in points) / n
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    found = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread
    rest = sum((y - mean_y - found * (x - mean_x)) ** 2 for x, y in points)
    return found, math.sqrt(rest / (n - 2) / spread)


def settled(side: Side, what: str) -> list[tuple[float, float]]:
    """After the warm-up: hours under load, MiB."""
    warm = WARM_UP * side.loaded_seconds
    return [(at / 3600, found[what]) for at, found in side.samples if at >= warm]


def percentiles(reports: Sequence[Report], shares: Sequence[float]) -> list[float]:
    """Milliseconds, within two per cent."""
    latency: Counter[int] = Counter()
    for report in reports:
        latency.update(report.latency)
    total, found = sum(latency.values()), []
    for share in shares:
        seen = 0
        for bucket in sorted(latency):
            seen += latency[bucket]
            if seen >= share * total:
                found.append(reports[0].latency_width ** (bucket + 1) / 1000)
                break
    return found


def markdown(minutes: float, sides: Sequence[Side], counters: dict[str, float]) -> list[str]:
    lines = [
        f"On {date.today()}, {versions()}, {CONCURRENCY} workers, {minutes:g} minutes "
        f"in {sum(len(side.reports) for side in sides)} phases, half of them with the filter:",
        "",
    ]
    seconds = sides[0].loaded_seconds
    rows = []
    for side in sides:
        times = [f"{ms:.2f}" for ms in percentiles(side.reports, (0.5, 0.9, 0.99, 0.999))]
        most = max(report.latency_most_ms for report in side.reports)
        cpu = side.cpu_seconds * 1e6 / (side.requests + side.calls)
        rates = (side.requests / seconds, side.calls / seconds)
        rows.append([side.name, *(f"{rate:.0f}" for rate in rates), *times, f"{most:.0f}", f"{cpu:.0f}"])
    heads = ["", "requests/s", "calls/s", "p50 ms", "p90", "p99", "p99.9", "most"]
    lines += table([*heads, "CPU of Envoy, µs per request or call"], rows)
    filtered = sides[0]
    outcome = {
        "calls": filtered.calls,
        "right": filtered.total("right"),
        "wrong": sum(filtered.total(w) for w in ("wrong_trace", "altered", "other_parent")),
        "missed": filtered.total("missed"),
        "evicted (metric)": int(counters["evicted_total"]),
        "failed": sum(report.failed for report in filtered.reports),
    }
    lines += ["", "With the filter:", "", *table(list(outcome), [list(outcome.values())])]
    rows = []
    for side in sides:
        for what, meaning in MEASURES.items():
            points = settled(side, what)
            hourly, error = slope(points)
            if points and points[-1][1]:
                first, last = side.samples[0][1][what], points[-1][1]
                values = [f"{mib:.1f}" for mib in (first, points[0][1], last)]
                rows.append(
                    [side.name, meaning, *values, f"{hourly:+.2f} ± {error:.2f}", str(len(points))]
                )
    lines += ["", "Memory under load, in MiB, and its slope after the warm-up:", ""]
    heads = ["", "what", "first", "after warm-up", "last", "slope, MiB/h (± standard error)"]
    lines += table([*heads, "samples"], rows)
    return lines


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--minutes", type=float, default=30)
    options.add_argument("--markdown", type=Path)
    given = options.parse_args()
    build()
    # At least two for each, so that drift of the machine falls on both.
    rounds = max(2, round(given.minutes * 60 / (2 * PHASE_SECONDS)))
    seconds = given.minutes * 60 / (2 * rounds)
    with Processes() as processes:
        sides = (
            Side("with b3relay", Pod(processes, "with", {})),
            Side("without", Pod(processes, "without", None)),
        )
        for number in range(rounds):
            for side in sides if number % 2 == 0 else reversed(sides):
                phase(side, seconds)
                report = side.reports[-1]
                print(
                    f"{number + 1}/{rounds} {side.name}: {report.calls} calls, "
                    f"{report.calls / report.seconds:.0f}/s, "
                    f"RSS {side.samples[-1][1]['RSS'] if side.samples else 0:.1f} MiB",
                    flush=True,
                )
        counters = sides[0].pod.counters()
    lines = markdown(given.minutes, sides, counters)
    print("\n".join(lines))
    if given.markdown:
        write_block(given.markdown, "soak", lines)
    filtered = sides[0]
    calls, missed = filtered.calls, filtered.total("missed")
    failures = [
        text
        for text, holds in {
            "a wrong context": calls == filtered.total("right") + missed,
            "too many missed": missed <= MISSED_MOST * calls,
            "missed, but not counted": missed == counters["calls_total unknown"],
            "evicted below the capacity": counters["evicted_total"] == 0,
            "requests or calls failed": not any(r.failed for side in sides for r in side.reports),
        }.items()
        if not holds
    ]
    print("\n".join(["", *(f"FAILED {failure}" for failure in failures)]))
    print(f"{len(failures)} failed expectations")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
