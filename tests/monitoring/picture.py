"""``make monitoring``: docs/monitoring.png, what the dashboard shows of the mesh of the demo.

Not Grafana's own drawing, since no package registry has Grafana: the panels of
dashboard.json where they are there, with the answers of a real Prometheus to their queries.
"""

import argparse
import re
import sys
import time
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.gridspec import GridSpec

from mesh.mesh import ROOT
from mesh.procs import MeshError
from mesh.prometheus import Prometheus, filled, panels
from monitoring.world import World, world

BACK, PANEL, TEXT, FAINT = "#111217", "#181b1f", "#ccccdc", "#8e8e9c"
COLOURS = ["#73bf69", "#f2cc0c", "#5794f2", "#ff9830", "#f2495c", "#b877d9", "#8ab8ff", "#ffee52",
           "#37872d", "#c4162a"]  # fmt: skip
NAMED = {"green": "#73bf69", "orange": "#ff9830", "red": "#f2495c", "yellow": "#f2cc0c",
         "text": TEXT}  # fmt: skip
UNITS: dict[str, tuple[float, str]] = {
    "percentunit": (100, " %"), "bytes": (1 / 2**20, " MiB"), "s": (1000, " ms"),
    "reqps": (1, " /s"), "ops": (1, " /s"), "short": (1, ""),
}  # fmt: skip


def shown(value: float, unit: str) -> str:
    factor, word = UNITS[unit]
    number = value * factor
    places = 0 if number == round(number) or abs(number) >= 100 else 2
    return f"{number:.{places}f}{word}"


def legend(template: str, metric: dict[str, str]) -> str:
    if template == "__auto":
        return ", ".join(metric.values()) or "value"
    return re.sub(r"\{\{(\w+)\}\}", lambda match: metric.get(match[1], ""), template)


def answers(
    prometheus: Prometheus, panel: dict[str, Any], began: float, ended: float
) -> list[tuple[str, list[tuple[float, float]]]]:
    """The series of a panel, by their legend."""
    return [
        (
            legend(target["legendFormat"], one["metric"]),
            [(float(at), float(value)) for at, value in one["values"]],
        )
        for target in panel["targets"]
        for one in prometheus.range(filled(target["expr"]), began, ended)
    ]


def draw_stat(axes: Axes, panel: dict[str, Any], series: list[Any], unit: str) -> None:
    axes.set_axis_off()
    if not series:
        axes.text(0.5, 0.45, "No data", color=FAINT, ha="center", va="center", fontsize=16)
        return
    ((_, values),) = series
    value = values[-1][1]
    colour = "green"
    for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"]:
        if step["value"] is None or value >= step["value"]:
            colour = step["color"]
    axes.fill_between(
        [at for at, _ in values], [one for _, one in values], color=NAMED[colour], alpha=0.15
    )
    axes.text(
        0.5, 0.5, shown(value, unit), color=NAMED[colour], ha="center", va="center", fontsize=21,
        transform=axes.transAxes,
    )  # fmt: skip


def draw_series(
    axes: Axes, panel: dict[str, Any], series: list[Any], unit: str, began: float
) -> None:
    factor, _ = UNITS[unit]
    fixed = {
        override["matcher"]["options"]: NAMED[override["properties"][0]["value"]["fixedColor"]]
        for override in panel["fieldConfig"]["overrides"]
    }
    custom = panel["fieldConfig"]["defaults"]["custom"]
    stacked = custom["stacking"]["mode"] == "normal"
    below: dict[float, float] = {}
    for number, (name, values) in enumerate(series):
        colour = fixed.get(name, COLOURS[number % len(COLOURS)])
        times = [(at - began) / 60 for at, _ in values]
        heights = [value * factor for _, value in values]
        label = f"{name}  {shown(values[-1][1], unit)}"
        if stacked:
            floor = [below.get(at, 0) for at, _ in values]
            tops = [low + height for low, height in zip(floor, heights, strict=True)]
            axes.fill_between(times, floor, tops, color=colour, alpha=0.3, linewidth=0)
            axes.plot(times, tops, color=colour, linewidth=1, label=label)
            below |= {at: top for (at, _), top in zip(values, tops, strict=True)}
        else:
            axes.plot(times, heights, color=colour, linewidth=1.2, label=label)
    axes.set_ylim(bottom=0)
    axes.tick_params(colors=FAINT, labelsize=7, length=0)
    axes.grid(color="#2c3235", linewidth=0.5)
    for spine in axes.spines.values():
        spine.set_visible(False)
    legend_ = axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.09), ncols=2, fontsize=6.5, frameon=False,
        handlelength=1, columnspacing=1, labelspacing=0.25,
    )  # fmt: skip
    for text in legend_.get_texts():
        text.set_color(TEXT)


def draw_table(axes: Axes, rows: list[dict[str, Any]]) -> None:
    axes.set_axis_off()
    names = ("namespace", "workload", "direction", "rule")
    found = sorted(rows, key=lambda row: -float(row["value"][1]))[:9]
    cells = [[row["metric"][name] for name in names] + [f"{float(row['value'][1]):.0f}"]
             for row in found]  # fmt: skip
    table = axes.table(
        cells, colLabels=[*names, "requests"], loc="upper center", cellLoc="left", edges="B"
    )
    table.auto_set_font_size(False)
    table.set_fontsize(7.5)
    for (row, _), cell in table.get_celld().items():
        cell.set_edgecolor("#2c3235")
        cell.get_text().set_color(FAINT if row == 0 else TEXT)


def draw(prometheus: Prometheus, began: float, ended: float, to: Path) -> None:
    figure = plt.figure(figsize=(16, 10), dpi=80, facecolor=BACK)
    grid = GridSpec(
        20, 24, figure=figure, left=0.035, right=0.99, top=0.93, bottom=0.02, hspace=7, wspace=2.2
    )
    figure.text(0.01, 0.978, "b3relay", color=TEXT, fontsize=13, va="center")
    figure.text(
        0.99, 0.978, "plots of the dashboard's queries, answered by Prometheus; minutes",
        color=FAINT, fontsize=8, ha="right", va="center",
    )  # fmt: skip
    for panel in panels():
        place, defaults = panel["gridPos"], panel["fieldConfig"]["defaults"]
        # The legend of a series is below it.
        last = place["y"] + place["h"] - (2 if panel["type"] == "timeseries" else 0)
        axes = figure.add_subplot(
            grid[place["y"] : last, place["x"] : place["x"] + place["w"]], facecolor=PANEL
        )
        axes.set_title(panel["title"], color=TEXT, fontsize=8.5, loc="left", pad=5)
        if panel["type"] == "table":
            (target,) = panel["targets"]
            draw_table(axes, prometheus.get("query", query=filled(target["expr"]))["result"])
            continue
        series = answers(prometheus, panel, began, ended)
        if panel["type"] == "stat":
            draw_stat(axes, panel, series, defaults["unit"])
        else:
            draw_series(axes, panel, series, defaults["unit"], began)
    figure.savefig(to, facecolor=BACK)
    print(f"    {to}: {to.stat().st_size // 1024} KiB")


def happenings(shop: World, seconds: float) -> None:
    """One user, then several, then a collector that fails, then all well again."""
    phases = ((0.2, 1, False), (0.35, 5, False), (0.2, 3, True), (0.25, 3, False))
    for share, users, failing in phases:
        shop.collector.failing = failing
        until = time.monotonic() + share * seconds
        while time.monotonic() < until:
            shop.users(4 * users, users, 0.25)
            shop.broken(1)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--to", type=Path, default=ROOT / "docs/monitoring.png")
    options = parser.parse_args()
    try:
        with world() as shop:
            print(f"    the mesh is up; {options.seconds:.0f} s of clicks ...", flush=True)
            happenings(shop, options.seconds)
            draw(shop.prometheus, shop.began + 40, time.time(), options.to)
    except MeshError as error:
        print(f"b3relay: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
