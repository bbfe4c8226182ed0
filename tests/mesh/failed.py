"""Which tests failed: for whoever sums up several runs of pytest."""

import os
from pathlib import Path

# Names a file for them.
FAILED = "B3RELAY_FAILED"
# Of what a failed test says.
_LENGTH = 200


def note_failed(test: str, why: str) -> None:
    if note := os.environ.get(FAILED):
        with Path(note).open("a") as file:
            file.write(f"{' '.join(f'{test}: {why}'.split())[:_LENGTH + len(test)]}\n")


def failed(note: Path) -> list[str]:
    """What is in such a file. With several workers each says it, and so does the first process."""
    return list(dict.fromkeys(note.read_text().splitlines())) if note.is_file() else []
