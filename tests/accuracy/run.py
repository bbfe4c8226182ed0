"""What the filter attributes rightly, leaves alone, and gets wrong, of calls that carry nothing.

Runs the filter in real Envoys around services in several stacks and keeps what came out,
a file for each run, below target/accuracy; then makes the tables and the plot from all of them.
"""

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

from accuracy import report
from accuracy.pod import CALL_MS, Pod, Result, Stages
from accuracy.stacks import BUILT, MEASURED, STACKS, VARIANTS, Forward, Variant
from load.keyed import write_block
from load.program import versions
from mesh.clicks import Clicks, click, judge
from mesh.mesh import Mesh, wasm_path
from mesh.procs import MeshError, Processes

LEVELS = (1, 2, 4, 8, 16, 32, 64)
# The filter's default.
CONFIDENCE = 0.995
INFERRED: dict[str, object] = {"attribution": "inferred"}


@dataclass(frozen=True)
class Mode:
    """How the filter is set, what the application forwards, and how much of what is sent."""

    config: Mapping[str, object]
    forward: Forward
    stages: Stages
    variants: Sequence[Variant] = VARIANTS
    call_ms: float = CALL_MS
    # Requests one after the other before it, for the filter to learn from: not counted.
    learn: int = 0


def levels(requests: int) -> Stages:
    """At one client, where a request takes longest, a third as many are enough."""
    return tuple((level, requests if level > 1 else requests // 3) for level in LEVELS)


MODES = {
    "inferred": Mode(INFERRED, "none", levels(1500), learn=1000),
    # At one client as many as there: what it gets wrong, it does at the beginning.
    "exclusive": Mode({"attribution": "exclusive"}, "none", ((1, 1500), *levels(300)[1:])),
    # No quiet start: under load from the first request.
    "cold": Mode(INFERRED, "none", ((8, 1000),) * 6, ("sequential",)),
    # As many in flight, but fewer calls a second: what the clients wait for is not the CPU.
    "slow": Mode(
        INFERRED,
        "none",
        tuple((level, 1000) for level in (8, 16, 32, 64)),
        ("sequential",),
        call_ms=10 * CALL_MS,
        learn=250,
    ),
    # Of which all must be right, and all left alone: they try the bench itself.
    "forwarded": Mode(
        {"attribution": "off"},
        "request-id",
        ((1, 300), (8, 300), (64, 600)),
        ("parallel-background",),
    ),
    "off": Mode(
        {"attribution": "off"}, "none", ((1, 300), (8, 300), (64, 600)), ("parallel-background",)
    ),
}


@dataclass(frozen=True)
class Setting:
    """Of the mesh that is clicked on: the filter's configuration, None for no filter; what
    the services forward; and clicks to learn from, which are not counted."""

    config: Mapping[str, object] | None
    forward: str = "none"
    learn: int = 0


CLICKS = {
    # Of which all must be whole, and none: they try the bench itself.
    report.FORWARDED: Setting({"attribution": "off"}, "request-id"),
    report.UNFILTERED: Setting(None),
    "`exclusive`": Setting({"attribution": "exclusive"}),
    "`inferred`": Setting(INFERRED, learn=300),
}
CLICKS_COUNTED = 500
# How many there are, and how long they pause between two clicks.
USERS = {"1": (1, 0.0), "8": (8, 0.0), "8, pausing 0.2 s": (8, 0.2)}


def build_id() -> str:
    """Of the filter that was measured: results of another one are not mixed with it."""
    return hashlib.sha256(wasm_path().read_bytes()).hexdigest()[:16]


def scaled(stages: Stages, scale: float) -> Stages:
    return tuple((level, max(level, round(requests * scale))) for level, requests in stages)


def run(mode_name: str, stack: str, variant: Variant, scale: float) -> list[Result]:
    mode = MODES[mode_name]
    with Processes() as processes:
        pod = Pod(processes, STACKS[stack], variant, mode.forward, mode.config)
        # Whatever the scale: who has not learned is not who is to be measured.
        learn = ((1, mode.learn),) if mode.learn else ()
        found = pod.run((*learn, *scaled(mode.stages, scale)), mode.call_ms)
        pod.stop()
    return found


def run_clicks(setting: Setting, parallel: bool, scale: float) -> dict[str, Any]:
    with Mesh(
        forward=setting.forward,
        filter=setting.config is not None,
        config=None if setting.config is None else json.dumps(setting.config),
        parallel=parallel,
    ) as mesh:
        click(mesh, setting.learn, 1)
        found: dict[str, Clicks] = {}
        for name, (users, pause_seconds) in USERS.items():
            clicks = click(mesh, round(CLICKS_COUNTED * scale), users, pause_seconds)
            found[name] = judge(clicks)
    return {name: asdict(clicks) for name, clicks in found.items()}


def results(scale: float) -> Path:
    """Where they are kept. Short runs are not mixed with whole ones."""
    directory = BUILT / f"results-{scale:g}"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def keep(name: str, what: Mapping[str, Any], found: Any) -> None:
    kept = {
        **what,
        "build": build_id(),
        "date": str(date.today()),
        "versions": versions(),
        "found": found,
    }
    (results(what["scale"]) / f"{name}.json").write_text(json.dumps(kept, indent=1))


def measure(given: argparse.Namespace) -> None:
    """All that is asked for, one after the other."""
    for stack in given.stacks:
        for mode in given.modes:
            for variant in MODES[mode].variants:
                if variant not in given.variants or variant not in STACKS[stack].variants:
                    continue
                began = time.monotonic()
                found = run(mode, stack, variant, given.scale)
                what = {"mode": mode, "stack": stack, "variant": variant, "scale": given.scale}
                what["learning"] = bool(MODES[mode].learn)
                keep(f"{mode}-{stack}-{variant}", what, [asdict(result) for result in found])
                print(
                    f"{mode}, {stack}, {variant}: "
                    + ", ".join(f"{r.concurrency}: {report.summary(r)}" for r in found)
                    + f" ({time.monotonic() - began:.0f} s)",
                    flush=True,
                )
    if not given.clicks:
        return
    for name in CLICKS:
        for parallel in (False, True):
            clicks = run_clicks(CLICKS[name], parallel, given.scale)
            what = {"mode": "clicks", "setting": name, "parallel": parallel, "scale": given.scale}
            order = list(CLICKS).index(name)
            keep(f"clicks-{order}-{'parallel' if parallel else 'sequential'}", what, clicks)
            print(f"clicks, {name}, {'at once' if parallel else 'in turn'}: {clicks}", flush=True)


def main() -> int:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--stacks", nargs="*", choices=STACKS, default=MEASURED)
    options.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    options.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    options.add_argument("--no-clicks", dest="clicks", action="store_false")
    options.add_argument("--scale", type=float, default=1.0, help="of the requests of each stage")
    options.add_argument(
        "--markdown", type=Path, help="write the tables here, and the plot beside it"
    )
    given = options.parse_args()
    measure(given)
    found = report.Findings.read(results(given.scale), build_id(), CONFIDENCE)
    lines = report.markdown(found)
    failures = report.failures(found)
    print("\n".join(lines))
    if given.markdown:
        report.plot(found, given.markdown.with_suffix(".svg"))
        write_block(given.markdown, "accuracy", lines)
    print("\n".join(["", *(f"FAILED {failure}" for failure in failures)]))
    print(f"{len(failures)} failed expectations")
    return 1 if failures else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except MeshError as error:
        sys.exit(f"accuracy: {error}")
