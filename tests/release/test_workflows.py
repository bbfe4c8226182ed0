"""The workflows, by actionlint; and what they say that other files say too."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mesh.golang import TOOLS
from mesh.mesh import ROOT
from mesh.parts import PARTS

WORKFLOWS = ROOT / ".github" / "workflows"
# What these need the runners do not have.
ELSEWHERE = {"bookinfo", "cluster", "docker", "sidecars"}


def lint(*paths: Path) -> subprocess.CompletedProcess[str]:
    # Of the scripts in them shellcheck is asked, which is in the same folder as python.
    shellcheck = Path(sys.executable).parent / "shellcheck"
    return subprocess.run(
        [TOOLS / "go" / "bin" / "actionlint", "-shellcheck", shellcheck, "-pyflakes=", *paths],
        capture_output=True,
        text=True,
    )


def test_actionlint() -> None:
    paths = sorted(WORKFLOWS.iterdir())
    assert [path.name for path in paths] == ["ci.yml", "release.yml"]
    done = lint(*paths)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("runs-on: ubuntu-24.04", "runs-on: ubuntu-1.0", "label"),
        ("matrix.part", "matrix.prat", "not defined"),
        ("- run: make test\n", '- run: make $(cat "x"\n', "shellcheck"),
    ],
)
def test_actionlint_would_see(old: str, new: str, complaint: str, tmp_path: Path) -> None:
    broken = tmp_path / "ci.yml"
    text = (WORKFLOWS / "ci.yml").read_text()
    assert old in text
    broken.write_text(text.replace(old, new))
    done = lint(broken)
    assert done.returncode != 0
    assert complaint in done.stdout


def test_every_part_is_run() -> None:
    ci = yaml.safe_load((WORKFLOWS / "ci.yml").read_text())
    assert set(ci["jobs"]["mesh"]["strategy"]["matrix"]["part"]) == set(PARTS) - ELSEWHERE


def test_tools_of_one_version() -> None:
    """cargo-deny is that of the Makefile."""
    (ours,) = re.findall(r"\.cargo-deny-([\d.]+)", (ROOT / "Makefile").read_text())
    assert f"cargo-deny@{ours}" in (WORKFLOWS / "ci.yml").read_text()


@pytest.mark.parametrize(
    ("folder", "complaint"),
    [
        ("plain", ""),
        ("b3relay-0.1.0_é+@,=!^~x", ""),
        # Make takes it for two.
        ("with a space", "has a space"),
        *((f"a{odd}b", f"has an odd character ({odd})") for odd in "':;&()$#%*\"`|"),
    ],
)
def test_the_path_of_a_clone(folder: str, complaint: str, tmp_path: Path) -> None:
    """Where it would break something, make says so, and does nothing."""
    clone = tmp_path / folder
    clone.mkdir()
    (clone / "Makefile").write_text((ROOT / "Makefile").read_text())
    done = subprocess.run(["make", "-C", clone, "help"], capture_output=True, text=True)
    assert (done.returncode == 0) == (not complaint), done.stderr
    assert complaint in done.stderr


def test_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for path in WORKFLOWS.iterdir():
        targets = re.findall(r"run: make ([a-z-]+)", path.read_text())
        assert targets
        assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
