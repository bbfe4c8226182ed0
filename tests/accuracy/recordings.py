"""Recordings of record.py through the tracker, without an Envoy: the tables of docs/accuracy.md.

The tracker is the one of this tree, as native code (sim/src/replay.rs).
"""

import argparse
import gzip
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accuracy.stacks import HERE, STACKS, VARIANTS
from load.keyed import table, write_block
from mesh.mesh import ROOT

# Of a cold start: how many requests a column has.
SLICE = 1000
# A machine that was busier than that had requests wait for its cores.
SATURATED = 0.9
STAGE = re.compile(r" \| (\d+): ([\d.]+|NaN) % right, ([\d.]+|NaN) % wrong")


@dataclass(frozen=True)
class Cell:
    """Of a stage, or of a part of it; per cent of the calls."""

    clients: int
    right: float
    wrong: float
    busy: float

    def __str__(self) -> str:
        mark = "*" if self.busy > SATURATED else ""
        # Both are rounded.
        alone = max(0.0, 100 - self.right - self.wrong)
        return f"{self.right:.1f} / {alone:.1f} / {self.wrong:.2f}{mark}"


@dataclass(frozen=True)
class Replayed:
    about: dict[str, Any]
    cold: bool
    cells: list[Cell]


def slices(about: dict[str, Any], cold: bool) -> list[tuple[int, int, float]]:
    """Clients, requests and how busy it was; a cold start is cut into thousands."""
    found: list[tuple[int, int, float]] = []
    for stage in about["stages"]:
        left: int = stage["requests"]
        while left > 0:
            size = min(left, SLICE) if cold else left
            found.append((stage["clients"], size, stage["busy"]))
            left -= size
    return found


def program() -> Path:
    manifest = HERE / "sim" / "Cargo.toml"
    build: list[str | Path] = ["cargo", "build", "--quiet", "--release", "--locked"]
    subprocess.run(
        [*build, "--target-dir", ROOT / "target", "--manifest-path", manifest], check=True
    )
    return ROOT / "target" / "release" / "b3relay-accuracy"


def replay(built: Path, recording: Path) -> Replayed:
    about = json.loads(recording.read_text())
    cold = "-cold-" in recording.name
    stages = slices(about, cold)
    with tempfile.TemporaryDirectory() as directory:
        plain = Path(directory, "events.jsonl")
        plain.write_bytes(gzip.decompress(recording.with_suffix(".jsonl.gz").read_bytes()))
        asked = ",".join(f"{clients}x{requests}" for clients, requests, _ in stages)
        command: list[str | Path] = [built, f"--stages={asked}", plain]
        if cold:
            command.append("--cold")
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return Replayed(about, cold, read(printed, stages if cold else stages[1:]))


def read(printed: str, stages: Sequence[tuple[int, int, float]]) -> list[Cell]:
    return [
        Cell(int(clients), float(right), float(wrong), busy)
        for (clients, right, wrong), (_, _, busy) in zip(
            STAGE.findall(printed), stages, strict=True
        )
    ]


def order(one: Replayed) -> tuple[int, int, float, int]:
    about = one.about
    stack, variant = list(STACKS).index(about["stack"]), VARIANTS.index(about["variant"])
    return variant, stack, about["call_ms"], one.cells[0].clients


def markdown(found: Sequence[Replayed]) -> list[str]:
    found = sorted(found, key=order)
    abouts = [one.about for one in found]
    said = {(about["date"], about["versions"], about["work_ms"]) for about in abouts}
    lines = [
        f"Recorded on {day}, {versions}, Envoy with 2 workers, arithmetic of {work:g} ms."
        for day, versions, work in sorted(said)
    ]
    for cold in (False, True):
        rows: list[list[object]] = []
        these = [one for one in found if one.cold == cold]
        heads = ["stack", "variant", "call ms"]
        if cold:
            most = max((len(one.cells) for one in these), default=0)
            columns = [f"#{n + 1}" for n in range(most)]
            lines += ["", "Under load from the first request, by thousand requests:", ""]
        else:
            levels = sorted({cell.clients for one in these for cell in one.cells})
            columns = [str(level) for level in levels]
            lines += ["", "After requests one at a time, by clients:", ""]
        for one in these:
            about = one.about
            row: list[object] = [about["stack"], about["variant"], f"{about['call_ms']:g}"]
            if cold:
                row.append(one.cells[0].clients)
                row += [str(cell) for cell in one.cells] + [""] * (len(columns) - len(one.cells))
            else:
                by_level = {cell.clients: str(cell) for cell in one.cells}
                row += [by_level.get(level, "") for level in levels]
            rows.append(row)
        lines += table([*heads, *(["clients"] if cold else []), *columns], rows)
    return lines


def main() -> int:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("directory", type=Path)
    options.add_argument("--markdown", type=Path, help="write the tables here")
    given = options.parse_args()
    built = program()
    recordings = sorted(given.directory.glob("*.json"))
    lines = markdown([replay(built, recording) for recording in recordings])
    print("\n".join(lines))
    if given.markdown:
        write_block(given.markdown, "recordings", lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
