"""What a machine cannot run: it is said, and does not pass for what was run."""

import os
from pathlib import Path

# Names a file for the reasons, for whoever sums up what was run.
NOTE = "B3RELAY_NOT_RUN"


def not_run(what: str, reasons: list[str]) -> int:
    """Say so. The exit code: an error where everything has to be run."""
    print(f"b3relay: NOT RUN: {what}", flush=True)
    for reason in reasons:
        print(f"b3relay: NOT RUN, because: {reason}", flush=True)
    if note := os.environ.get(NOTE):
        with Path(note).open("a") as file:
            file.writelines(f"{' '.join(reason.split())}\n" for reason in reasons)
    return 1 if os.environ.get("CI") == "true" else 0


def noted(note: Path) -> list[str]:
    """The reasons in such a file."""
    return note.read_text().splitlines() if note.is_file() else []
