"""Does every link of the documentation lead somewhere? And every page that a file names?"""

import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh.mesh import ROOT

PAGES = sorted(path for folder in (".", "docs", "envoyfilter") for path in (ROOT / folder).glob("*.md"))
# Those that tell a user, or a reader of the code, where to read on.
NAMING = sorted(
    path
    for folder in ("src", "envoyfilter", "release", ".github")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in {".rs", ".yaml", ".yml", ".sh", ".py"}
)
NAMED = re.compile(r"\b((?:docs|envoyfilter)/[\w-]+\.md)(?:#([\w-]+))?")


@functools.cache
def anchors(page: Path) -> frozenset[str]:
    """Those of its headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    plain = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings)
    return frozenset(re.sub(r"[^\w -]", "", heading).replace(" ", "-") for heading in plain)


def links(page: Path, text: str) -> Iterator[tuple[Path, str]]:
    """Where they lead: a file, and an anchor or nothing."""
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" not in target:
            name, _, anchor = target.partition("#")
            yield (page.parent / name if name else page), anchor


def named(text: str) -> Iterator[tuple[Path, str]]:
    for name, anchor in NAMED.findall(text):
        yield ROOT / name, anchor


def broken(found: Iterator[tuple[Path, str]]) -> list[str]:
    def leads_somewhere(path: Path, anchor: str) -> bool:
        return path.exists() and (not anchor or path.suffix != ".md" or anchor in anchors(path))

    return [f"{path}#{anchor}" for path, anchor in found if not leads_somewhere(path, anchor)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    assert broken(links(page, page.read_text())) == []


def test_every_page_that_a_file_names_is_there() -> None:
    assert {path: found for path in NAMING if (found := broken(named(path.read_text())))} == {}


def test_this_sees_what_leads_nowhere() -> None:
    page = ROOT / "docs" / "trust.md"
    text = "[a](trust.md#the-label-of-your-gateway) [b](#no-such) [c](none.md) [d](https://x.test/)"
    assert broken(links(page, text)) == [f"{page}#no-such", f"{page.parent / 'none.md'}#"]
    text = "docs/trust.md#the-label-of-your-gateway, docs/trust.md#none, envoyfilter/NONE.md"
    assert len(broken(named(text))) == 2
    assert len(PAGES) > 25 and len(NAMING) > 150
