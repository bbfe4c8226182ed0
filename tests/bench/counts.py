"""From instructions that were counted to tables, and to a verdict."""

import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Self

from bench import figures
from bench.figures import TARGETS, Rows
from bench.scenes import ORDER, OURS, Route
from mesh.mesh import ROOT
from mesh.procs import MeshError

KEPT = ROOT / "docs" / "instructions.json"
# A path may grow by so much against the figures that are kept.
GROWTH = 1.10
# From one worker to eight, a hit may.
SPREAD = 4 / 3
# A client span may cost so much of what Envoy's own does; and so many instructions where the
# call is not sampled.
OF_TRACER = 1 / 3
UNSAMPLED = 2000

# Instructions per request of the whole worker, by scene and route.
Counts = dict[str, dict[Route, int]]
# Host calls per request, in the same way.
Calls = dict[str, dict[Route, float]]


@dataclass(frozen=True)
class Figures:
    """Of one module: what stands in docs/instructions.json, twice."""

    # Which module it is, and with what it was measured.
    of: str
    # By number of workers.
    counts: dict[int, Counts]
    # Host calls of the scenes of b3relay.
    calls: dict[int, Calls]

    @classmethod
    def read(cls, kept: Mapping[str, Any]) -> Self:
        numbers = [{int(key): each for key, each in kept[name].items()} for name in _NUMBERS]
        return cls(kept["of"], *numbers)

    def added(self, workers: int, scene: str, route: Route) -> float | None:
        """Instructions per request beyond those without a filter."""
        counts = self.counts.get(workers, {})
        if route not in counts.get(scene, {}) or route not in counts.get("none", {}):
            return None
        return counts[scene][route] - counts["none"][route]

    def ratio(self, workers: int, scene: str, route: Route) -> float | None:
        """What it adds, as a multiple of what the empty filter adds."""
        added, empty = (self.added(workers, name, route) for name in (scene, "empty"))
        return added / empty if added is not None and empty else None

    def spread(self) -> float | None:
        """What a hit adds with eight workers, as a multiple of that with one."""
        one, eight = (self.added(workers, "asleep", "hit") for workers in (1, 8))
        return eight / one if eight is not None and one else None


_NUMBERS = ("counts", "calls")


def middle(measured: Sequence[Mapping[int, Counts]]) -> dict[int, Counts]:
    """The medians of what was counted in several Envoys, by number of workers."""
    first = measured[0]
    return {
        workers: {
            scene: {
                route: round(median(each[workers][scene][route] for each in measured))
                for route in routes
            }
            for scene, routes in scenes.items()
        }
        for workers, scenes in first.items()
    }


def grown(now: Figures, kept: Figures) -> dict[str, str]:
    """Paths of b3relay that cost more than the figures that are kept allow, and by how much."""
    found = {}
    compared = 0
    for workers, scene, route in _cells(now):
        added, before = (each.added(workers, scene, route) for each in (now, kept))
        if scene not in OURS or added is None or before is None:
            continue
        compared += 1
        if added > GROWTH * before:
            found[f"{scene}, {route}, workers: {workers}"] = f"{_k(before)} -> {_k(added)}"
    if not compared:
        raise MeshError(f"nothing could be compared with {KEPT.name}")
    return found


def _cells(of: Figures) -> Iterator[tuple[int, str, Route]]:
    for workers, counts in of.counts.items():
        for scene, routes in counts.items():
            for route in routes:
                yield workers, scene, route


def rows(now: Figures, kept: Figures, workers: int) -> Rows:
    """What each path adds, beside what is kept."""
    found = [["path", "filter", "adds", "to empty", "target", "met", "before", "to empty"]]
    for _, scene, route in sorted(
        (cell for cell in _cells(now) if cell[0] == workers and cell[1] != "none"),
        key=lambda cell: ORDER.index(cell[2]),
    ):
        ratio = now.ratio(workers, scene, route)
        has_target = scene in OURS and scene not in ("inferred", "spans", "no span")
        target = TARGETS.get(route) if has_target else None
        found.append(
            [
                route,
                scene,
                _k(now.added(workers, scene, route)),
                _ratio(ratio),
                f"<= {target}" if target else "",
                ("yes" if ratio <= target else "no") if target and ratio else "",
                _k(kept.added(workers, scene, route)),
                _ratio(kept.ratio(workers, scene, route)),
            ]
        )
    return found


def span_rows(now: Figures, workers: int) -> Rows:
    """What a client span costs: beside Envoy's tracer, and where a call is not sampled."""
    found = [["path", "Envoy's tracer adds", "`spans` adds to b3relay", "share", "target", "met"]]
    for route in ORDER:
        with_spans = "no span" if route == "unsampled" else "spans"
        tracer, spans, without = (
            now.added(workers, scene, route) for scene in ("tracer", with_spans, "asleep")
        )
        if spans is None or without is None:
            continue
        more = spans - without
        if tracer is None:
            share, target, is_met = "", f"adds <= {_k(UNSAMPLED)}", more <= UNSAMPLED
        else:
            part = more / tracer
            share, target, is_met = f"{part:.2f}", f"share <= {OF_TRACER:.2f}", part <= OF_TRACER
        row = [route, _k(tracer), _k(more), share, target, "yes" if is_met else "no"]
        found.append(row)
    return found


def call_rows(now: Figures, before: Figures) -> Rows:
    """Host calls per request, in brackets those before."""
    found = [["path", "filter", *(f"workers: {workers}" for workers in now.calls)]]
    for scene, routes in now.calls[1].items():
        for route in routes:
            row: list[str] = [route, scene]
            for workers in now.calls:
                then = before.calls[workers].get(scene, {}).get(route)
                old = "" if then is None else f" ({then:.1f})"
                row.append(f"{now.calls[workers][scene][route]:.1f}{old}")
            found.append(row)
    return found


def _k(instructions: float | None) -> str:
    return "" if instructions is None else f"{instructions / 1000:.1f}"


def _ratio(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}"


def report(now: Figures, before: Figures) -> list[str]:
    """For docs/benchmarks.md."""
    command = shlex.join(["python", "-m", "bench.instructions", *sys.argv[1:]])
    lines = [
        f"On {time.strftime('%Y-%m-%d')}, with `{command}`:",
        "",
        f"- now: {now.of}",
        f"- before: {before.of}",
    ]
    for workers in now.counts:
        lines += ["", f"### Instructions, in thousands per request; workers: {workers}", ""]
        lines += figures.markdown(rows(now, before, workers))
    if (spread := now.spread()) and (then := before.spread()):
        lines += ["", f"With eight workers a hit adds {spread:.2f} times what it does with one"]
        lines += [f"(target: <= {SPREAD:.2f}; before: {then:.2f})."]
    if len(found := span_rows(now, 1)) > 1:
        lines += ["", "### Client spans, in thousands of instructions per call", ""]
        lines += figures.markdown(found)
    lines += ["", "### Host calls per request (before)", ""]
    return lines + figures.markdown(call_rows(now, before))
