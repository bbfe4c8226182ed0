"""A headless Chromium, the machine's own, and what a page of Zipkin says in it."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from browser import CHROMIUM
from mesh.procs import MeshError


def program() -> Path:
    for name in CHROMIUM:
        if (found := shutil.which(name)) is not None:
            return Path(found)
    raise MeshError("no Chromium (Debian: chromium-headless-shell)")


@contextmanager
def browser(width: int = 1100, height: int = 520) -> Iterator[Page]:
    """A page of that size in pixels."""
    with sync_playwright() as playwright:
        # Its sandbox needs more than root in a container has.
        started = playwright.chromium.launch(executable_path=program(), args=["--no-sandbox"])
        try:
            page = started.new_page(viewport={"width": width, "height": height})
            page.set_default_timeout(60_000)
            yield page
        finally:
            started.close()


@dataclass(frozen=True)
class Row:
    """A span as Zipkin's page shows it: who reports it, its name, and the spans below it."""

    service: str
    name: str
    below: tuple["Row", ...] = ()

    def __str__(self) -> str:
        return "\n".join(_lines(self, "", ""))


def _lines(row: Row, first: str, rest: str) -> Iterator[str]:
    yield f"{first}{row.service}: {row.name}"
    for number, one in enumerate(row.below, 1):
        branch, under = ("└── ", "    ") if number == len(row.below) else ("├── ", "│   ")
        yield from _lines(one, rest + branch, rest + under)


@dataclass(frozen=True)
class Shown:
    """What the head of the page says, and its rows."""

    services: int
    spans: int
    tree: Row


def open_trace(page: Page, zipkin_url: str, trace_id: str) -> Shown:
    """The page of a trace in Zipkin."""
    page.goto(f"{zipkin_url}traces/{trace_id}")
    page.get_by_text("Total Spans").wait_for()
    page.get_by_text("Service name").wait_for()
    return read(page.inner_text("body"))


def read(text: str) -> Shown:
    """The text of the page: the head, and then for each span, from the top, how many are below
    it (if any), its service and name, and its duration."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    services = int(lines[lines.index("Services") + 1])
    spans = int(lines[lines.index("Total Spans") + 1])
    body = iter(lines[lines.index("Reset focus") + 1 : lines.index("Service name")])
    rows: list[tuple[int, str, str]] = []
    below = 0
    for line in body:
        if line.isdigit():
            below = int(line)
        elif found := re.fullmatch(r"(\S+): (.+)", line):
            rows.append((below, found[1], found[2]))
            below = 0
    if len(rows) != spans:
        raise MeshError(f"the page says {spans} spans and shows {len(rows)}:\n{text}")
    tree, left = _tree(rows)
    if left:
        raise MeshError(f"rows below no other: {left}\n{text}")
    return Shown(services, spans, tree)


def _tree(rows: list[tuple[int, str, str]]) -> tuple[Row, list[tuple[int, str, str]]]:
    (below, service, name), *rest = rows
    inside, left = rest[:below], rest[below:]
    children = []
    while inside:
        child, inside = _tree(inside)
        children.append(child)
    return Row(service, name, tuple(children)), left


def tags(page: Page, row: str) -> dict[str, str]:
    """The tags of a span, which is clicked on first."""
    page.get_by_text(row, exact=True).last.click()
    page.get_by_text("Tags", exact=True).wait_for()
    told = page.inner_text("body").partition("\nTags\n")[2]
    pairs = (line.split("\t", 1) for line in told.splitlines() if "\t" in line)
    return {name.strip(): value.strip() for name, value in pairs}
