"""From results to tables and a plot."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib
from scipy.stats import binomtest

from accuracy.pod import Result
from accuracy.stacks import STACKS, VARIANTS, Variant
from load.keyed import table
from mesh.clicks import Clicks

matplotlib.use("svg")
from matplotlib import pyplot  # noqa: E402  (it wants to know first)

# Decisions that put a context onto the call; all others leave it alone.
COPIES = ("copied", "completed", "exclusive", "token", "inferred")
# The steps of attribution.
STEPS = ("exclusive", "token", "inferred")
# What the filter itself was in doubt of in all: millionths of calls.
DOUBT = "attribution_doubt_millionths_total"
# Calls of the background that may be under way when the metrics are read.
UNDER_WAY = 2
# Settings of the clicks.
UNFILTERED = "no filter"
FORWARDED = "keys alone, and `x-request-id` forwarded"
TITLES: dict[Variant, str] = {
    "sequential": "one call after the other",
    "parallel-background": "two calls at once, and a background",
    "token": "a token of its own in each request",
}
# A Java thread pool under OBI, 400 requests: its issue 2259, since closed.
OBI = {"right": 4.8, "left alone": 79.4, "wrong": 15.8}


@dataclass(frozen=True)
class Run:
    """The stages of one run."""

    mode: str
    stack: str
    variant: Variant
    stages: list[Result]
    # Whether the first stage was for the filter to learn from.
    learning: bool

    @property
    def counted(self) -> list[Result]:
        return self.stages[1:] if self.learning else self.stages


@dataclass(frozen=True)
class ClicksRun:
    setting: str
    parallel: bool
    # By who clicks.
    found: dict[str, Clicks]


@dataclass(frozen=True)
class Findings:
    """All results of one build of the filter."""

    confidence: float
    runs: list[Run]
    clicks: list[ClicksRun]
    dates: list[str]
    versions: list[str]
    scales: list[float]

    @classmethod
    def read(cls, directory: Path, build: str, confidence: float) -> "Findings":
        kept = [json.loads(path.read_text()) for path in sorted(directory.glob("*.json"))]
        kept = [one for one in kept if one["build"] == build]
        runs = [
            Run(
                one["mode"],
                one["stack"],
                one["variant"],
                [Result(**stage) for stage in one["found"]],
                one["learning"],
            )
            for one in kept
            if one["mode"] != "clicks"
        ]
        clicks = [
            ClicksRun(
                one["setting"],
                one["parallel"],
                {users: Clicks(**found) for users, found in one["found"].items()},
            )
            for one in kept
            if one["mode"] == "clicks"
        ]

        def distinct(name: str) -> list[Any]:
            return sorted({one[name] for one in kept})

        return cls(
            confidence, runs, clicks, distinct("date"), distinct("versions"), distinct("scale")
        )

    def of(self, mode: str, variant: Variant | None = None, stack: str | None = None) -> list[Run]:
        return [
            run
            for run in self.runs
            if run.mode == mode and variant in (None, run.variant) and stack in (None, run.stack)
        ]


def pooled(stages: Sequence[Result]) -> Result:
    """Several stages as one."""

    def total(name: str) -> Any:
        return sum(getattr(stage, name) for stage in stages)

    names = ["requests", "seconds", "right", "abstained", "wrong", "other_parent"]
    names += ["background_alone", "background_taken", "calling", "whole", "crossed", "failed"]
    metrics: dict[str, float] = {}
    for stage in stages:
        for name, value in stage.metrics.items():
            metrics[name] = metrics.get(name, 0) + value
    in_flight = sum(stage.in_flight for stage in stages) / len(stages)
    return replace(
        stages[0], **{name: total(name) for name in names}, in_flight=in_flight, metrics=metrics
    )


def by_level(runs: Iterable[Run]) -> dict[int, Result]:
    """The stacks together."""
    found: dict[int, list[Result]] = {}
    for run in runs:
        for stage in run.counted:
            found.setdefault(stage.concurrency, []).append(stage)
    return {level: pooled(stages) for level, stages in found.items()}


def bad(stage: Result) -> int:
    """Calls that were given to a request that they are not of."""
    return stage.wrong + stage.background_taken


def made(stage: Result) -> int:
    """All calls, those of the background too."""
    return stage.calls + stage.background


def interval(k: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's."""
    if n == 0:
        return 0.0, 1.0
    found = binomtest(k, n).proportion_ci(level, method="wilson")
    return float(found.low), float(found.high)


def percent(k: float, n: float, digits: int = 1) -> str:
    return f"{100 * k / n:.{digits}f}" if n else "-"


def ranged(k: int, n: int, digits: int = 2) -> str:
    if n == 0:
        return "-"
    low, high = interval(k, n)
    return f"{percent(k, n, digits)} ({100 * low:.{digits}f} to {100 * high:.{digits}f})"


def summary(stage: Result) -> str:
    """Right, left alone, wrong; and of the background's calls, those given away."""
    shares = (percent(n, stage.calls, 2) for n in (stage.right, stage.abstained, stage.wrong))
    background = (
        f" background {stage.background_taken}/{stage.background}" if stage.background else ""
    )
    return " / ".join(shares) + background


def metric(stage: Result, name: str) -> float:
    return stage.metrics.get(name, 0)


def copies(stage: Result) -> float:
    return sum(metric(stage, f"calls_total {decision}") for decision in COPIES)


def decided(stage: Result) -> float:
    return sum(value for name, value in stage.metrics.items() if name.startswith("calls_total "))


def markdown(found: Findings) -> list[str]:
    lines = [f"On {' and '.join(found.dates)}, {', '.join(found.versions)}, Envoy with 2 workers"]
    short = [scale for scale in found.scales if scale != 1]
    lines[0] += f", short runs (scale {short}):" if short else ":"

    def add(title: str, rows: list[str]) -> None:
        lines.extend(["", title, "", *rows])

    for variant in VARIANTS:
        title = TITLES[variant][0].upper() + TITLES[variant][1:]
        add(f"**{title}**, the stacks together:", of_variant(found, variant))
    add("Right / wrong in per cent of each stack's calls, by clients:", of_stacks(found))
    add(
        "Of the requests that make calls, those with all calls right / with one or more wrong, "
        "in per cent:",
        of_requests(found),
    )
    add("Beside others, in per cent of the calls:", anchors(found))
    if found.of("slow"):
        add(
            "Calls that take 100 ms instead of 10, right / wrong in per cent of each stack's "
            "calls, by clients:",
            of_mode(found, "slow", lambda stage: str(stage.concurrency)),
        )
    if found.of("cold"):
        add(
            "Under load from the first request, 8 clients, right / wrong by thousand requests:",
            of_mode(found, "cold", None),
        )
    add(
        "What the filter says itself, by its metrics: which evidence decided; and of the calls "
        "that it gave a context, how many it expects to be wrong "
        "(`b3relay_attribution_doubt_millionths_total`), beside how many were:",
        of_steps(found),
    )
    if found.clicks:
        add(
            "Clicks on the mesh of `make demo`, whose services forward nothing at all:",
            of_clicks(found),
        )
    return lines


def of_variant(found: Findings, variant: Variant) -> list[str]:
    background = variant == "parallel-background"
    heads = ["clients", "in flight", "calls", "right %", "left alone %", "wrong % (95 %)"]
    heads += ["background: given away"] * background + ["`exclusive`: right %", "wrong %"]
    beside = by_level(found.of("exclusive", variant))
    rows: list[list[object]] = []
    for level, stage in by_level(found.of("inferred", variant)).items():
        row: list[object] = [level, f"{stage.in_flight:.1f}", stage.calls]
        row += [ranged(stage.right, stage.calls, 1), percent(stage.abstained, stage.calls)]
        row.append(ranged(bad(stage), made(stage)))
        if background:
            row.append(f"{stage.background_taken} of {stage.background}")
        if other := beside.get(level):
            row += [percent(other.right, other.calls), percent(bad(other), made(other), 2)]
        else:
            row += ["-", "-"]
        rows.append(row)
    return table(heads, rows)


def by_stack(
    found: Findings, cell: Callable[[Result], str], modes: Sequence[str] = ("inferred",)
) -> list[str]:
    rows: list[list[object]] = []
    levels: list[int] = []
    for mode in modes:
        for variant in VARIANTS:
            for stack in STACKS:
                runs = found.of(mode, variant, stack)
                if runs:
                    stages = by_level(runs)
                    levels = levels or list(stages)
                    rows.append([stack, TITLES[variant], *(cell(s) for s in stages.values())])
    return table(["stack", "calls", *map(str, levels)], rows)


def of_stacks(found: Findings) -> list[str]:
    return by_stack(found, lambda s: f"{percent(s.right, s.calls)} / {percent(bad(s), made(s), 2)}")


def of_requests(found: Findings) -> list[str]:
    return by_stack(
        found, lambda s: f"{percent(s.whole, s.calling)} / {percent(s.crossed, s.calling, 2)}"
    )


def anchors(found: Findings) -> list[str]:
    rows: list[list[object]] = []
    for level in (8, 16):
        for mode in ("inferred", "exclusive"):
            stages = by_level(found.of(mode, "sequential", "java"))
            if stage := stages.get(level):
                rows.append(
                    [
                        f"`{mode}`, Java, 16 threads, {level} clients",
                        percent(stage.right, stage.calls),
                        percent(stage.abstained, stage.calls),
                        percent(bad(stage), made(stage), 2),
                    ]
                )
    rows.append(["OBI (eBPF), Java, thread pool, as reported in its issue 2259", *OBI.values()])
    return table(["", "right", "left alone", "wrong"], rows)


def of_mode(found: Findings, mode: str, head: Callable[[Result], str] | None) -> list[str]:
    """Stage by stage, under their heads or their numbers."""
    runs = found.of(mode)
    heads = [head(s) if head else f"#{n + 1}" for n, s in enumerate(runs[0].counted)]
    rows: list[list[object]] = []
    for run in runs:
        cells = [
            f"{percent(s.right, s.calls)} / {percent(bad(s), made(s), 2)}" for s in run.counted
        ]
        rows.append([run.stack, *cells])
    return table(["stack", *heads], rows)


def of_steps(found: Findings) -> list[str]:
    """What the filter says of itself, beside the truth."""
    heads = ["calls", "clients", *(f"`{step}` %" for step in STEPS), "left alone %"]
    heads += ["given a context", "of those expected wrong %", "wrong % (95 %)"]
    rows: list[list[object]] = []
    for variant in VARIANTS:
        for level, stage in by_level(found.of("inferred", variant)).items():
            every, given = decided(stage), stage.right + bad(stage)
            cells = [percent(metric(stage, f"calls_total {step}"), every) for step in STEPS]
            cells.append(percent(every - copies(stage), every))
            expected = percent(metric(stage, DOUBT) / 1e6, given, 2)
            rows.append(
                [TITLES[variant], level, *cells, given, expected, ranged(bad(stage), given)]
            )
    return table(heads, rows)


def of_clicks(found: Findings) -> list[str]:
    heads = ["filter", "calls of a service", "users", "clicks"]
    heads += ["whole %", "with a wrong link %", "calls right %", "wrong %"]
    rows: list[list[object]] = []
    for run in found.clicks:
        for users, clicks in run.found.items():
            rows.append(
                [
                    run.setting,
                    "at once" if run.parallel else "in turn",
                    users,
                    clicks.clicks,
                    ranged(clicks.whole, clicks.clicks, 1),
                    ranged(clicks.wrong, clicks.clicks, 1),
                    percent(clicks.calls_right, clicks.calls),
                    percent(clicks.calls_wrong, clicks.calls, 2),
                ]
            )
    return table(heads, rows)


def too_wrong(found: Findings, name: str, wrong: int, calls: int) -> list[str]:
    """Whether more of the calls are wrong than is allowed.

    Only what chance does not explain counts: of the many stages that are looked at a few would
    fall out of 95 % by chance.
    """
    if interval(wrong, calls, 0.999)[0] <= 1 - found.confidence:
        return []
    return [f"{name}: {wrong} of {calls} calls are wrong, `confidence` {found.confidence}"]


def failures(found: Findings) -> list[str]:
    """What must hold, and does not."""
    failed: list[str] = []
    for run in found.runs:
        name = f"{run.mode}, {run.stack}, {run.variant}"
        whole = pooled(run.stages)
        # The sink and the metrics count the same calls.
        most = UNDER_WAY if run.variant == "parallel-background" else 0
        given, alone = whole.right + bad(whole), whole.abstained + whole.background_alone
        if abs(copies(whole) - given) > most:
            failed.append(f"{name}: {given} calls with a context, metrics: {copies(whole):.0f}")
        if abs(decided(whole) - copies(whole) - alone) > most:
            left = decided(whole) - copies(whole)
            failed.append(f"{name}: {alone} calls without a context, metrics: {left:.0f}")
        if run.mode == "forwarded" and (whole.right != whole.calls or whole.background_taken):
            failed.append(f"{name}: not all right: {summary(whole)}")
        if run.mode == "off" and (whole.abstained != whole.calls or whole.background_taken):
            failed.append(f"{name}: not all left alone: {summary(whole)}")
        if run.mode in ("inferred", "cold", "slow"):
            if metric(whole, "calls_total inferred") and not metric(whole, DOUBT):
                failed.append(f"{name}: the filter was never in doubt")
            for stage in run.stages:
                title = f"{name}, {stage.concurrency} clients"
                failed += too_wrong(found, title, bad(stage), made(stage))
    for one in found.clicks:
        for users, clicks in one.found.items():
            name = f"clicks, {one.setting}, parallel {one.parallel}, users {users}"
            given = clicks.calls_right + clicks.calls_wrong
            if one.setting == UNFILTERED and given:
                failed.append(f"{name}: {given} calls with a context, without a filter")
            if one.setting == FORWARDED and clicks.whole != clicks.clicks:
                failed.append(f"{name}: {clicks.whole} of {clicks.clicks} whole")
            failed += too_wrong(found, name, clicks.calls_wrong, clicks.calls)
    return failed


def plot(found: Findings, path: Path) -> None:
    """Right and wrong by requests in flight, a column for each variant."""
    pyplot.rcParams["svg.hashsalt"] = "b3relay"  # the same file from the same figures
    pyplot.rcParams["font.size"] = 9
    figure, grid = pyplot.subplots(
        2, len(VARIANTS), figsize=(11, 6), sharex=True, sharey="row", layout="constrained"
    )
    for column, variant in enumerate(VARIANTS):
        above, below = grid[0][column], grid[1][column]
        for n, stack in enumerate(STACKS):
            stages = by_level(found.of("inferred", variant, stack))
            if not stages:
                continue
            right = [(s.right, s.calls) for s in stages.values()]
            wrong = [(bad(s), made(s)) for s in stages.values()]
            shifted = [level * 2 ** (0.09 * (n - 1.5)) for level in stages]
            for axes, counts in ((above, right), (below, wrong)):
                shares = [k / total if total else 0 for k, total in counts]
                limits = [interval(k, total) for k, total in counts]
                error = [
                    [max(0, share - low) for share, (low, _) in zip(shares, limits, strict=True)],
                    [max(0, high - share) for share, (_, high) in zip(shares, limits, strict=True)],
                ]
                axes.errorbar(
                    shifted,
                    [100 * share for share in shares],
                    yerr=[[100 * value for value in side] for side in error],
                    fmt="o-",
                    markersize=3,
                    linewidth=1,
                    capsize=2,
                    color=f"C{n}",
                    label=stack,
                )
        if beside := by_level(found.of("exclusive", variant)):
            above.plot(
                list(beside),
                [100 * s.right / s.calls for s in beside.values()],
                "--",
                color="0.5",
                label="exclusive, all stacks",
            )
        above.set_title(TITLES[variant])
        above.set_ylim(0, 102)
        below.axhline(100 * (1 - found.confidence), color="0.3", linestyle=":", linewidth=1)
        below.set_xscale("log", base=2)
        below.set_xticks([1, 2, 4, 8, 16, 32, 64], labels=["1", "2", "4", "8", "16", "32", "64"])
        below.set_xlabel("clients")
        below.set_ylim(bottom=0)
    grid[0][0].set_ylabel("right, % of calls")
    grid[1][0].set_ylabel("wrong, % of calls")
    grid[1][0].text(
        1, 100 * (1 - found.confidence), "what `confidence` allows", fontsize=7, va="bottom"
    )
    grid[0][-1].legend(fontsize=8)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
