"""What the tests on Kubernetes share: one cluster, on which they run one after the other.

They are a walk through the pages of the documentation, in the order of their names; what
one has installed the next one finds.
"""

import shutil
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from cluster.walk import PAGES, Walk
from mesh.pages import ROOT


_WALK = pytest.StashKey[Walk]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With whatever fails, what the sidecars say: the cluster is gone when it is read."""
    report = yield
    walk = item.session.stash.get(_WALK, None)
    if report.failed and walk is not None:
        report.sections.append(("the shop", walk.filters()))
    return report


@pytest.fixture(scope="session")
def walk(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Walk]:
    walk = request.session.stash[_WALK] = Walk(tmp_path_factory.mktemp("walk"))
    yield walk
    del request.session.stash[_WALK]
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
