"""What the tests on Kubernetes share: one cluster, on which they run one after the other.

They are a walk through the pages of the documentation, in the order of their names; what
one has installed the next one finds.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.walk import PAGES, Walk
from mesh.pages import ROOT


@pytest.fixture(scope="session")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walk]:
    walk = Walk(tmp_path_factory.mktemp("walk"))
    yield walk
    walk.end()
    for page in PAGES.values():
        run, all_of_it = walk.count(page)
        print(f"\n    {page}: {run} of {all_of_it} commands run here", end="")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For files of a user, beside a copy of envoyfilter/."""
    folder = tmp_path_factory.mktemp("user")
    shutil.copytree(ROOT / "envoyfilter", folder / "envoyfilter")
    return folder
