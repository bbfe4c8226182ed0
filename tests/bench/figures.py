"""From measurements to tables."""

import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bench.load import PERCENTILES
from bench.setups import VARIANTS, Variant
from bench.shapes import SHAPES, Shape

# What b3relay may add, as a multiple of what the empty filter adds.
TARGETS: dict[str, float] = {"inbound": 2.0, "hit": 2.7, "keyless": 2.0, "present": 1.45}
_DRAWS = 2000

Rows = list[list[str]]


@dataclass(frozen=True)
class Cell:
    """One variant with requests of one shape in one round."""

    # Microseconds of CPU time per request.
    cpu: float
    rate: float
    latencies: dict[str, float]
    # The share of the machine's CPU time that went to other machines.
    steal: float


# By shape and variant, one for each round, in the order of the rounds.
Cells = Mapping[tuple[Shape, Variant], Sequence[Cell]]


def _iqr(values: Sequence[float]) -> float:
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return high - low


@dataclass(frozen=True)
class Ratio:
    """What a variant adds as a multiple of what the empty filter adds."""

    # From the medians of the differences of the same round, and from the minima
    # (None if those of the empty filter are not above those of no filter).
    paired: float
    minima: float | None
    # 90 % of the ratios when rounds are drawn again and again (bootstrap).
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.paired:.2f} ({self.low:.2f} to {self.high:.2f})"


@dataclass(frozen=True)
class Figures:
    cells: Cells

    def shapes(self) -> list[Shape]:
        return [shape for shape in SHAPES if any(key[0] == shape for key in self.cells)]

    def variants(self) -> list[Variant]:
        return [variant for variant in VARIANTS if any(key[1] == variant for key in self.cells)]

    def cpu(self, shape: Shape, variant: Variant) -> list[float]:
        return [cell.cpu for cell in self.cells[shape, variant]]

    def added(self, shape: Shape, variant: Variant) -> list[float] | None:
        """Beyond `none` in the same round; None where that was not measured."""
        if (shape, "none") not in self.cells:
            return None
        pairs = zip(self.cpu(shape, variant), self.cpu(shape, "none"), strict=True)
        return [with_filter - without for with_filter, without in pairs]

    def ratio(self, shape: Shape, variant: Variant) -> Ratio | None:
        """None where `none` or `empty` was not measured, or `empty` seems to cost nothing."""
        if (shape, "empty") not in self.cells:
            return None
        added, floor = self.added(shape, variant), self.added(shape, "empty")
        if added is None or floor is None:
            return None
        bare = min(self.cpu(shape, "none"))
        least = min(self.cpu(shape, "empty")) - bare
        if statistics.median(floor) <= 0:
            return None
        # The same draws each time, so that the same measurements give the same report.
        dice = random.Random(1)
        drawn = []
        for _ in range(_DRAWS):
            rounds = dice.choices(range(len(added)), k=len(added))
            below = statistics.median(floor[index] for index in rounds)
            above = statistics.median(added[index] for index in rounds)
            drawn.append(above / below if below > 0 else float("inf"))
        drawn.sort()
        return Ratio(
            paired=statistics.median(added) / statistics.median(floor),
            minima=(min(self.cpu(shape, variant)) - bare) / least if least > 0 else None,
            low=drawn[round(0.05 * (_DRAWS - 1))],
            high=drawn[round(0.95 * (_DRAWS - 1))],
        )

    def cpu_rows(self) -> Rows:
        rows = [["path", "variant", "median", "minimum", "IQR", "added", "IQR", "added, minima"]]
        for shape in self.shapes():
            for variant in self.variants():
                cpu, added = self.cpu(shape, variant), self.added(shape, variant)
                row: list[str] = [shape, variant]
                row += [_us(statistics.median(cpu)), _us(min(cpu)), _us(_iqr(cpu))]
                if added is None or variant == "none":
                    row += ["", "", ""]
                else:
                    least = min(cpu) - min(self.cpu(shape, "none"))
                    row += [_us(statistics.median(added)), _us(_iqr(added)), _us(least)]
                rows.append(row)
        return rows

    def ratio_rows(self) -> Rows:
        compared: tuple[Variant, ...] = ("reads", "lua", "b3relay")
        heads = [head for name in compared for head in (name, f"{name}, minima")]
        rows = [["path", *heads, "target", "met"]]
        for shape in self.shapes():
            ratios = {
                variant: self.ratio(shape, variant)
                for variant in compared
                if (shape, variant) in self.cells
            }
            lua, ours = ratios.get("lua"), ratios.get("b3relay")
            row: list[str] = [shape]
            for ratio in map(ratios.get, compared):
                row.append(str(ratio) if ratio else "")
                row.append(f"{ratio.minima:.2f}" if ratio and ratio.minima is not None else "")
            limits = [TARGETS[shape]] if shape in TARGETS else []
            told = [f"<= {limit}" for limit in limits] + ["<= lua"]
            if lua:
                limits.append(lua.paired)
            row.append(", ".join(told))
            met = [ours.paired <= limit for limit in limits] if ours else []
            row.append(", ".join("yes" if each else "no" for each in met))
            rows.append(row)
        return rows

    def latency_rows(self) -> Rows:
        rows = [["path", "variant", *(f"p{name[:2]}" for name in PERCENTILES), "rate"]]
        for shape in self.shapes():
            for variant in self.variants():
                cells = self.cells[shape, variant]
                row: list[str] = [shape, variant]
                for name in PERCENTILES:
                    row.append(f"{statistics.median(cell.latencies[name] for cell in cells):.0f}")
                row.append(f"{statistics.median(cell.rate for cell in cells):.0f}")
                rows.append(row)
        return rows

    def steal(self) -> tuple[float, float]:
        """The median over all cells, and the maximum."""
        all_ = [cell.steal for cells in self.cells.values() for cell in cells]
        return statistics.median(all_), max(all_)


def _us(value: float) -> str:
    return f"{value:.2f}"


def markdown(rows: Rows) -> list[str]:
    def line(row: list[str]) -> str:
        return "| " + " | ".join(row) + " |"

    return [line(rows[0]), "|---" * len(rows[0]) + "|", *map(line, rows[1:])]


def text(rows: Rows) -> list[str]:
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    pad: Callable[[str, int], str] = str.ljust
    return ["  ".join(map(pad, row, widths)).rstrip() for row in rows]
