"""The plots of docs/accuracy-simulated.md, from what tests/accuracy/sim wrote with --figures.

    python -m accuracy.simulated target/accuracy-simulated.json docs
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot  # noqa: E402  (it wants to know first)

# Percent that may be wrong: 1 - `confidence`, by default.
ALLOWED = 0.5
# The applications that are drawn, and their titles.
TITLES = {
    "threads": "threads, 0.3 ms CPU",
    "event-loop": "one event loop",
    "pool-of-8": "8 threads on 2 cores",
    "caches-retries": "caches and retries",
    "fan-out-of-6": "six calls at once",
    "parallel-background": "two at once, background",
    "busy-background": "80 background calls a second",
}
COLUMNS = 4
# Right, left alone, wrong: counts.
Counts = Sequence[int]


@dataclass(frozen=True)
class Beside:
    """An application with so many clients: by thousands of requests since the start."""

    app: str
    says: str
    start: Literal["warm", "cold"]
    clients: int
    bound: Sequence[Counts]
    tracker: Sequence[Counts]


def percent(counts: Counts, which: int) -> float:
    return 100 * counts[which] / (sum(counts) or 1)


def in_all(thousands: Sequence[Counts]) -> Counts:
    return [sum(counts) for counts in zip(*thousands, strict=True)]


def panels(figure: Any, wrong_to: float) -> Iterator[tuple[str, Any, Any]]:
    """For each application two axes, for what is right and for what is wrong."""
    rows = -(-len(TITLES) // COLUMNS)
    grid = figure.subplots(2 * rows, COLUMNS, sharex=True, height_ratios=[3, 1] * rows)
    for n in range(rows * COLUMNS):
        row, column = 2 * (n // COLUMNS), n % COLUMNS
        above, below = grid[row][column], grid[row + 1][column]
        if n >= len(TITLES):
            above.axis("off")
            below.axis("off")
            continue
        name, title = list(TITLES.items())[n]
        above.set_title(title)
        above.set_ylim(0, 103)
        above.grid(alpha=0.3)
        below.set_ylim(0, wrong_to)
        below.axhline(ALLOWED, color="0.3", linestyle=":", linewidth=1)
        if column == 0:
            above.set_ylabel("right, %")
            below.set_ylabel("wrong, %")
        # Shared axes have them in the last row only, where a place may be empty.
        below.tick_params(labelbottom=n + COLUMNS >= len(TITLES))
        yield name, above, below


def draw(
    axes: tuple[Any, Any], x: Sequence[int], counts: Sequence[Counts], **style: str
) -> None:
    for each, which in zip(axes, (0, 2), strict=True):
        each.plot(
            x, [percent(one, which) for one in counts], markersize=3, linewidth=1.2, **style
        )


def by_clients(found: Sequence[Beside], figure: Any) -> None:
    """The whole run, warm."""
    for name, *axes in panels(figure, 1.2):
        runs = [one for one in found if one.app == name and one.start == "warm"]
        x = [run.clients for run in runs]
        pair = (axes[0], axes[1])
        bounds = [in_all(run.bound) for run in runs]
        draw(pair, x, bounds, color="0.3", linestyle="--", marker="s", label="Bayes bound")
        trackers = [in_all(run.tracker) for run in runs]
        draw(pair, x, trackers, color="C0", marker="o", label="b3relay")
        axes[1].set_xscale("log", base=2)
        axes[1].set_xticks(x, labels=[str(clients) for clients in x])
        axes[1].set_xlabel("clients")


def by_thousand(found: Sequence[Beside], figure: Any) -> None:
    """Since a start under load."""
    for name, *axes in panels(figure, 2.0):
        pair = (axes[0], axes[1])
        for clients, color in ((8, "C0"), (16, "C1")):
            for run in found:
                if (run.app, run.start, run.clients) != (name, "cold", clients):
                    continue
                x = [n + 1 for n in range(len(run.tracker))]
                dashed = f"Bayes bound, {clients} clients"
                draw(pair, x, run.bound, color=color, linestyle="--", label=dashed)
                solid = f"b3relay, {clients} clients"
                draw(pair, x, run.tracker, color=color, marker="o", label=solid)
        axes[1].set_xlabel("thousand requests since the start")


def save(
    found: Sequence[Beside], path: Path, drawn: Callable[[Sequence[Beside], Any], None]
) -> None:
    pyplot.rcParams["svg.hashsalt"] = "b3relay"  # the same file from the same figures
    pyplot.rcParams["font.size"] = 9
    figure = pyplot.figure(figsize=(11, 7.5), layout="constrained")
    drawn(found, figure)
    # In the empty place.
    handles, labels = figure.axes[0].get_legend_handles_labels()
    allowed = figure.axes[COLUMNS].get_lines()[0]
    figure.legend(
        [*handles, allowed],
        [*labels, "what `confidence` allows"],
        loc="lower right",
        bbox_to_anchor=(0.98, 0.2),
    )
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def main(source: str, directory: str) -> None:
    found = [Beside(**one) for one in json.loads(Path(source).read_text())]
    missing = set(TITLES) - {one.app for one in found}
    if missing:
        raise SystemExit(f"{source} has nothing of {', '.join(sorted(missing))}")
    save(found, Path(directory, "accuracy-simulated.svg"), by_clients)
    save(found, Path(directory, "accuracy-simulated-start.svg"), by_thousand)


if __name__ == "__main__":
    main(*sys.argv[1:])
