"""Releases made from nothing: a copy of the sources in a folder of its own each time."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from mesh.golang import TOOLS
from mesh.mesh import ROOT

REPOSITORY = "images.example.org/mesh/b3relay"
# 2026-01-01
DATE = 1767225600


@dataclass(frozen=True)
class Place:
    """Where and how one is built."""

    folder: str
    locale: str
    time_zone: str
    umask: int
    # Whether cargo downloads the crates again, to a home of its own.
    own_cargo_home: bool


PLACES = (
    Place("a", "C", "UTC", 0o022, own_cargo_home=False),
    Place(
        "another folder/with a longer path", "C.UTF-8", "Asia/Kathmandu", 0o077, own_cargo_home=True
    ),
)


def sources() -> list[str]:
    """What git would commit of the working tree."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def copied(place: Place, under: Path) -> Path:
    """The place with the sources in it."""
    root = under / place.folder
    for name in sources():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    return root


def make(place: Place, root: Path) -> Path:
    """The folder of a release that was made in such a copy."""
    environment = {
        **os.environ,
        "LC_ALL": place.locale,
        "TZ": place.time_zone,
        "SOURCE_DATE_EPOCH": str(DATE),
    }
    # What a cargo around these tests has set.
    for name in ("RUSTFLAGS", "CARGO_TARGET_DIR", "MAKEFLAGS", "MFLAGS", "MAKELEVEL"):
        environment.pop(name, None)
    if place.own_cargo_home:
        environment["CARGO_HOME"] = str(root / "cargo home")
        Path(environment["CARGO_HOME"]).mkdir()
    done = subprocess.run(
        ["make", "release", f"TOOLS={TOOLS}", f"REPOSITORY={REPOSITORY}"],
        cwd=root,
        env=environment,
        umask=place.umask,
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return root / "dist" / "release"
