"""What the tests on Docker share. They run in a world of their own: see world.py."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from docker import standins
from docker.local import Local
from docker.world import INSIDE
from mesh.mesh import ROOT


def pytest_configure() -> None:
    if INSIDE not in os.environ:
        pytest.exit("these tests need a world of their own: run `make test-docker`", 2)


@pytest.fixture(scope="session")
def images() -> None:
    standins.load()


@pytest.fixture
def local(images: None) -> Iterator[Local]:
    """The local trial as it is shipped, not started yet."""
    with Local(ROOT) as shipped:
        yield shipped


@pytest.fixture
def copy(images: None, tmp_path: Path) -> Iterator[Local]:
    """A copy of it, to break."""
    for part in ("envoyfilter", "dist"):
        subprocess.run(["cp", "-a", ROOT / part, tmp_path], check=True)
    with Local(tmp_path) as copied:
        yield copied
