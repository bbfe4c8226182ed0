"""The commands that a page of the documentation shows: its fenced blocks of ``sh``."""

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a language. ``page``: its path below the repository."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def commands(page: str) -> Iterator[str]:
    """One at a time; a loop is one."""
    for block in blocks(page, "sh"):
        pending = ""
        for line in block.splitlines():
            pending += line + "\n"
            quoted = pending.count("'") % 2 or pending.count('"') % 2
            if quoted or line.endswith("\\") or (pending.startswith("for ") and line != "done"):
                continue
            if pending.strip():
                yield pending.strip()
            pending = ""
        assert not pending, f"{page}: a command without an end: {pending}"
