"""How many instructions does the filter cost, counted exactly, beside other filters?

    PYTHONPATH=tests python -m bench.instructions [--short] [--markdown docs/benchmarks.md]

Several filters are in one Envoy, each with listeners of its own, and callgrind counts the
instructions of the worker thread that serves. The figures are the medians of three such
Envoys, and are printed beside those of docs/instructions.json. `--short` begins with one, and
fails if a path grew by more than a tenth in each of three; `--markdown` writes them anew.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from bench import figures, hostcalls
from bench.counts import GROWTH, KEPT, SPREAD, Calls, Counts, Figures
from bench.counts import call_rows, grown, middle, report, rows, span_rows
from bench.run import EMPTY, envoy_version, said, write
from bench.scenes import LONG, OURS, SHORT, Plan, Route, Scene, scenes
from bench.setups import Modules
from bench.world import World
from mesh.failed import note_failed
from mesh.mesh import ROOT, wasm_path
from mesh.procs import MeshError

# V8 has compiled anew by then what runs often: 4000 make no difference.
WARM_UP = 200
REQUESTS = 100
# The median counts.
ROUNDS = 3
# Rounds in one Envoy differ by 0.5 %, Envoys by 2 % of all that a request costs, which is a
# tenth of what a filter adds: what grew has grown in each of so many.
ENVOYS = 3
# V8 reserves 10 GB of addresses for each, of the 128 GB that there are under valgrind.
VMS_MOST = 11


def envoys(plan: Plan, workers: int) -> Iterator[list[Scene]]:
    """The scenes, divided among Envoys: valgrind has no addresses for many VMs."""
    group: list[Scene] = []
    vms = 0
    for scene in scenes():
        if scene.name not in plan:
            continue
        # One for each worker, and one that those are cloned from.
        own = 0 if scene.variant in ("none", "tracer", "lua") else workers + 1
        if group and vms + own > VMS_MOST:
            yield group
            group, vms = [], 0
        group.append(replace(scene, routes=plan[scene.name]))
        vms += own
    yield group


def measure(modules: Modules, chosen: list[Scene], workers: int) -> Counts:
    cells = [(scene, route) for scene in chosen for route in scene.routes]
    found: dict[tuple[str, Route], list[float]] = {}
    with ExitStack() as stack:
        world = World(stack, modules, chosen, workers)
        for scene, route in cells:
            world.wake(scene, route)
            world.send(scene, route, WARM_UP)
            world.check(scene, route)
        world.callgrind.begin()
        for _ in range(ROUNDS):
            for scene, route in cells:
                world.wake(scene, route)
                world.send(scene, route, 5)
                spent = world.callgrind.of(partial(world.send, scene, route, REQUESTS))
                found.setdefault((scene.name, route), []).append(spent)
    counts: Counts = {}
    for (name, route), totals in found.items():
        counts.setdefault(name, {})[route] = round(statistics.median(totals) / REQUESTS)
    return counts


def _of(module: Path, commit: str | None) -> str:
    tools = ", ".join(
        [f"Envoy {envoy_version()}", said("rustc", "--version"), said("valgrind", "--version")]
    )
    commit = commit or said("git", "-C", ROOT, "rev-parse", "--short=7", "HEAD") or "?"
    return f"commit {commit}, module {module.stat().st_size} bytes, {tools}"


def count(modules: Modules, plans: Mapping[int, Plan]) -> dict[int, Counts]:
    """The instructions of everything that the plans name, each scene in one Envoy."""
    counts: dict[int, Counts] = {}
    for workers, plan in plans.items():
        counts[workers] = {}
        for chosen in envoys(plan, workers):
            names = ", ".join(scene.name for scene in chosen)
            print(f"    workers: {workers}: {names} ...", file=sys.stderr, flush=True)
            counts[workers] |= measure(modules, chosen, workers)
    return counts


def take(modules: Modules, plans: Mapping[int, Plan], several: int, commit: str | None) -> Figures:
    """Counts in so many Envoys, and the host calls."""
    counts = middle([count(modules, plans) for _ in range(several)])
    calls: dict[int, Calls] = {
        workers: {
            scene.name: {
                route: hostcalls.count(modules.b3relay, scene, route, workers)
                for route in scene.routes
            }
            for scene in scenes()
            if scene.name in OURS
        }
        for workers in plans
    }
    return Figures(_of(modules.b3relay, commit), counts, calls)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="the main paths only")
    parser.add_argument("--empty", type=Path, default=EMPTY, help="the empty filter")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    parser.add_argument("--commit", help="that the module is of, if not the present one")
    parser.add_argument("--as-before", action="store_true", help="keep them as those before, too")
    given = parser.parse_args()
    if given.short and given.markdown:
        parser.error("--markdown writes all figures: without --short")
    if not given.empty.is_file():
        raise MeshError("the empty filter is missing: run `make bench` once")
    kept = json.loads(KEPT.read_text()) if KEPT.is_file() else {}
    modules = Modules(b3relay=wasm_path(), empty=given.empty.resolve())
    plans, several = (SHORT, 1) if given.short else (LONG, ENVOYS)
    now = take(modules, plans, several, given.commit)
    if given.as_before:
        kept = {"before": asdict(now), "now": asdict(now)}
    if not kept:
        raise MeshError(f"{KEPT} is missing: --as-before and --markdown write it")
    before, last = (Figures.read(kept[name]) for name in ("before", "now"))
    for workers in now.counts:
        print(f"\nworkers: {workers}; thousands of instructions; before: {last.of}")
        print("\n".join(figures.text(rows(now, last, workers))), flush=True)
    if spread := now.spread():
        print(f"\na hit with eight workers, to one: {spread:.2f} (<= {SPREAD:.2f})")
    if len(spans := span_rows(now, 1)) > 1:
        print("\nclient spans; thousands of instructions per call")
        print("\n".join(figures.text(spans)))
    print("\nhost calls per request\n" + "\n".join(figures.text(call_rows(now, last))))
    if given.markdown:
        KEPT.write_text(json.dumps({**kept, "now": asdict(now)}, indent=1) + "\n")
        write(given.markdown, "instructions", report(now, before))
        return 0
    found = grown(now, last)
    for _ in range(several, ENVOYS):
        if not found:
            break
        print(f"\nb3relay: measured once more: {_named(found)}", flush=True)
        again = grown(replace(now, counts=count(modules, plans)), last)
        found = {path: how for path, how in again.items() if path in found}
    if found:
        print(f"b3relay: grew to more than {GROWTH} times what it was: {_named(found)}")
        note_failed("instructions", f"more than {GROWTH} times what it was: {_named(found)}")
    return int(bool(found))


def _named(found: Mapping[str, str]) -> str:
    return "; ".join(f"{path}: {how}" for path, how in found.items())


if __name__ == "__main__":
    try:
        sys.exit(main())
    except MeshError as error:
        sys.exit(f"instructions: {error}")
