"""Keyed accuracy at scale: does each outbound call get the context of its own request?

Runs the load program (main.go) on a real Envoy stage by stage, compares what
its sink saw with the filter's metrics, and writes both down.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path

from load.program import CONCURRENCY, Counts, Pod, Report, build, versions
from mesh.procs import Processes

# Concurrency, and its share of all calls.
SWEEP = {1: 0.05, 4: 0.15, 16: 0.2, 64: 0.3, 256: 0.3}
# Of calls that should be right, below the capacity.
MISSED_MOST = 1 / 10_000

ADVERSARIAL = {
    "plain": 16,
    "forwarded with another character 14": 2,
    "prefixes of one another, 8 to 255 bytes": 2,
    "255 bytes, differing in one": 2,
    "UUID forwarded in capitals": 2,
    "odd bytes": 2,
    # These wait for the grace to pass, most of the time.
    "1 or 2 bytes, used again after the grace": 100,
    "UUID used again after the grace": 50,
    "call within the grace": 20,
    "call after the grace": 50,
    "256 bytes": 2,
    "one ID, several traces at once": 2,
    "IDs differing at 14, two traces at once": 2,
    "UUIDs differing in case, two traces at once": 2,
    "used again within the grace, other trace": 2,
}
SHAPES = (
    "loop",
    "diamond: #1's calls, then #2's",
    "diamond: in turns",
    "diamond: at random",
    "retry, same span, both go on",
    "retry, other span, both go on",
    "retry, other span, first given up",
)
# In flight above a capacity of 64. Each of the four workers has room for that
# many and more, so a few hundred would fit.
OVERLOAD_CAPACITY, OVERLOAD_WORKERS = 64, 1024


@dataclass
class Stage:
    """One stage: what the program saw, and how the metrics changed meanwhile."""

    name: str
    report: Report
    counters: dict[str, float]
    failures: list[str] = field(default_factory=list)

    def metric(self, name: str) -> int:
        return int(self.counters.get(name, 0))

    def check(self, holds: bool, text: str) -> None:
        if not holds:
            self.failures.append(f"{self.name}: {text}")


def run(
    pod: Pod,
    name: str,
    workers: Mapping[str, int],
    *,
    calls: int = 0,
    seconds: float = 0,
    wait_ms: float = 1,
    calls_most: int = 6,
) -> Stage:
    print(f"{name} ...", flush=True)
    before = pod.counters()
    report = pod.run(
        workers, calls=calls, seconds=seconds, wait_ms=wait_ms, calls_most=calls_most
    )
    after = pod.counters()
    stage = Stage(name, report, {key: n - before.get(key, 0) for key, n in after.items()})
    check(stage)
    print(
        f"    {report.calls} calls in {report.seconds:.0f} s: {report.total('right')} right, "
        f"{report.total('wrong_trace')} wrong trace, {report.total('other_parent')} other parent, "
        f"{report.total('missed')} missed; evicted {stage.metric('evicted_total')}",
        flush=True,
    )
    for failure in stage.failures:
        print(f"    FAILED {failure}", flush=True)
    return stage


def all_shapes(pod: Pod, envoy_workers: int, seconds: float) -> list[Stage]:
    """The shapes, by themselves and among other requests."""
    of_envoy = f"{envoy_workers} worker{'s' if envoy_workers > 1 else ''} of Envoy"
    return [
        run(
            pod,
            f"Loops, diamonds and retries, {of_envoy}",
            dict.fromkeys(SHAPES, 2),
            seconds=seconds / 2,
        ),
        run(
            pod,
            f"The same with 64 other requests in flight, {of_envoy}",
            dict.fromkeys(SHAPES, 4) | {"plain": 64},
            seconds=seconds,
        ),
    ]


def check(stage: Stage) -> None:
    """What has to hold in every stage."""
    report = stage.report
    seen = sum(counts.all for counts in report.results)
    stage.check(report.failed == 0, f"{report.failed} requests or calls failed")
    stage.check(report.inbound_changed == 0, f"{report.inbound_changed} requests were changed")
    stage.check(seen == report.calls, f"{report.calls} calls made, {seen} arrived")
    for counts in report.results:
        crossed = counts.wrong_trace + counts.altered
        if counts.expect != "right trace":
            crossed += counts.other_parent
        stage.check(crossed == 0, f"{counts.kind}: {crossed} wrong")
    # The filter's own account of it.
    written = stage.metric("calls_total copied") + stage.metric("calls_total completed")
    missed = report.total("missed")
    left = sum(
        int(n)
        for name, n in stage.counters.items()
        if name.startswith("calls_total ") and name.split()[1] not in ("copied", "completed")
    )
    stage.check(written == seen - missed, f"{seen - missed} calls with a context, metrics: {written}")
    stage.check(left == missed, f"{missed} calls without, metrics: {left}")
    for name, number in (
        ("remembered_total", report.requests),
        ("requests_total inbound", report.requests),
        ("requests_total outbound", report.calls),
        ("host_errors_total", 0),
    ):
        found = stage.metric(name)
        stage.check(found == number, f"{name} is {found}, not {number}")


def check_expected(stage: Stage) -> None:
    """Kind by kind, below the capacity."""
    stage.check(stage.metric("evicted_total") == 0, f"{stage.metric('evicted_total')} evicted")
    for counts in stage.report.results:
        if counts.expect == "right":
            most = MISSED_MOST * counts.all
            stage.check(counts.missed <= most, f"{counts.kind}: {counts.missed} missed")
        elif counts.expect == "left alone":
            stage.check(counts.right == 0, f"{counts.kind}: {counts.right} not left alone")


def check_reasons(stage: Stage) -> None:
    """Why calls were left alone, by the metrics."""
    by_reason = {"ambiguous": 0, "no_key": 0, "unknown": 0}
    for counts in stage.report.results:
        shared = ("one ID,", "IDs differing", "UUIDs differing", "used again within")
        if counts.kind.startswith(shared):
            by_reason["ambiguous"] += counts.missed
        elif counts.kind == "256 bytes":
            by_reason["no_key"] += counts.missed
        else:
            by_reason["unknown"] += counts.missed
    for reason, expected in by_reason.items():
        found = stage.metric(f"calls_total {reason}")
        stage.check(found == expected, f"{expected} missed as {reason}, metrics: {found}")


def left_alone(stage: Stage) -> int:
    """Calls whose request was not found: `unsure` until it is known of the host that
    the application forwards keys to it."""
    return stage.metric("calls_total unknown") + stage.metric("calls_total unsure")


def check_overload(stage: Stage) -> None:
    """Above the capacity: misses only, and each of a request that was evicted."""
    missed, evicted = stage.report.total("missed"), stage.metric("evicted_total")
    alone, requests = left_alone(stage), stage.report.requests_missed
    stage.check(missed > 0 and evicted > 0, "this was no overload")
    stage.check(missed == alone, f"{missed} missed, metrics: {alone} unknown or unsure")
    stage.check(
        requests <= evicted, f"{requests} requests with a missed call, but {evicted} evicted"
    )
    stage.check(
        evicted <= stage.report.requests,
        f"{evicted} requests evicted, of {stage.report.requests} that there were",
    )


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]


def shares(counts: Counts) -> list[object]:
    """In per cent of the kind's calls, but for what should be 0."""

    def percent(n: int) -> str:
        return f"{100 * n / counts.all:.2f} %" if counts.all else "-"

    wrong = counts.wrong_trace + counts.altered
    parts = [percent(n) for n in (counts.right, counts.other_parent, counts.missed)]
    return [counts.kind, counts.all, *parts, wrong]


def markdown(stages: Mapping[str, list[Stage]], cut_short: bool) -> list[str]:
    lines = [
        f"On {date.today()}, {versions()}, Envoy with {CONCURRENCY} workers"
        + (", a short run:" if cut_short else ":"),
        "",
    ]
    measured = stages["sweep"] + stages["overload"]
    rows = [
        [
            stage.name,
            stage.report.requests,
            stage.report.calls,
            f"{stage.report.calls / stage.report.seconds:.0f}",
            stage.report.total("right"),
            stage.report.total("wrong_trace") + stage.report.total("altered"),
            stage.report.total("other_parent"),
            stage.report.total("missed"),
            left_alone(stage),
            stage.metric("evicted_total"),
        ]
        for stage in measured
    ]
    heads = ["in flight", "requests", "calls", "calls/s", "right", "wrong trace", "other parent"]
    lines += table(heads + ["missed", "metric `unknown` or `unsure`", "metric `evicted`"], rows)
    overload = stages["overload"][0]
    lines += ["", f"Of the {overload.report.requests} requests above the capacity, "]
    lines[-1] += f"{overload.report.requests_missed} had a call that was missed."
    (adversarial,) = stages["adversarial"]
    lines += ["", "Adversarial request IDs, all kinds at the same time:", ""]
    lines += table(
        ["request IDs", "calls", "expected", "right", "wrong", "left alone"],
        [
            [c.kind, c.all, c.expect, c.right, c.all - c.right - c.missed, c.missed]
            for c in adversarial.report.results
        ],
    )
    reasons = (f"{adversarial.metric(f'calls_total {r}')} {r}" for r in ("ambiguous", "no_key", "unknown"))
    lines += ["", f"Reasons by the metrics: {', '.join(reasons)}."]
    for stage in stages["shapes"]:
        lines += ["", f"{stage.name}:", ""]
        lines += table(
            ["shape", "calls", "right", "same trace, another parent", "missed", "wrong trace"],
            [shares(counts) for counts in stage.report.results],
        )
    return lines


def write_block(path: Path, name: str, lines: Sequence[str]) -> None:
    """Replace what stands between the marks."""
    begin, end = f"<!-- generated: {name} -->\n", "<!-- end -->"
    head, rest = path.read_text().split(begin, 1)
    tail = rest.split(end, 1)[1]
    path.write_text(head + begin + "\n".join([*lines, ""]) + end + tail)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--calls", type=int, default=1_000_000, help="of the sweep, in all")
    options.add_argument("--seconds", type=float, default=60, help="of each of the other stages")
    options.add_argument("--markdown", type=Path)
    options.add_argument("--json", type=Path)
    given = options.parse_args()
    build()
    with Processes() as processes:
        pod = Pod(processes, "pod", {})
        sweep = [
            run(
                pod,
                str(workers),
                {"plain": workers},
                calls=round(share * given.calls),
                # The more there are, the longer they take: else few would be in
                # flight in the application.
                wait_ms=0.05 * min(workers, 100),
                calls_most=8,
            )
            for workers, share in SWEEP.items()
        ]
        adversarial = run(pod, "adversarial IDs", ADVERSARIAL, seconds=given.seconds)
        shapes = all_shapes(pod, CONCURRENCY, given.seconds)
        processes.stop(pod.envoy.process)
        # All requests and calls on one worker: it sees them in one order.
        single = Pod(processes, "single", {}, concurrency=1)
        shapes += all_shapes(single, 1, given.seconds)
        processes.stop(single.envoy.process)
        small = Pod(processes, "small", {"capacity": OVERLOAD_CAPACITY})
        overload = run(
            small,
            f"{OVERLOAD_WORKERS}, `capacity` {OVERLOAD_CAPACITY}",
            {"plain": OVERLOAD_WORKERS},
            seconds=given.seconds,
            wait_ms=200,
        )
    for stage in (*sweep, adversarial, *shapes):
        check_expected(stage)
    for stage in (*sweep, *shapes, adversarial):
        check_reasons(stage)
    check_overload(overload)
    every = [*sweep, adversarial, *shapes, overload]
    stages = {
        "sweep": sweep, "overload": [overload], "adversarial": [adversarial], "shapes": shapes
    }  # fmt: skip
    lines = markdown(stages, cut_short=given.calls < 1_000_000)
    failures = [failure for stage in every for failure in stage.failures]
    if failures:
        lines += ["", "Expectations that failed:", "", *(f"- {failure}" for failure in failures)]
    print("\n".join(lines))
    if given.markdown:
        write_block(given.markdown, "accuracy-keyed", lines)
    if given.json:
        given.json.write_text(json.dumps([asdict(stage) for stage in every], indent=1))
    print("\n".join(["", *(f"FAILED {failure}" for failure in failures)]))
    print(f"{len(failures)} failed expectations")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
