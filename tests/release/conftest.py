"""Two releases of the same sources."""

from pathlib import Path

import pytest

from release.made import PLACES, copied, make


@pytest.fixture(scope="session")
def releases(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    # First all copies, so that nobody changes a file in between.
    roots = [copied(place, tmp_path_factory.mktemp("release")) for place in PLACES]
    return tuple(make(place, root) for place, root in zip(PLACES, roots, strict=True))


@pytest.fixture(scope="session")
def release(releases: tuple[Path, ...]) -> Path:
    return releases[0]
