"""What all tests share."""

import os
import zlib

import pytest

from mesh.failed import note_failed


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With B3RELAY_SHARE, as in 1/4: the second quarter of the tests, always the same."""
    if share := os.environ.get("B3RELAY_SHARE"):
        which, of = map(int, share.split("/"))
        mine = [item for item in items if zlib.crc32(item.nodeid.encode()) % of == which]
        config.hook.pytest_deselected(items=[item for item in items if item not in mine])
        items[:] = mine


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed:
        crash = getattr(report.longrepr, "reprcrash", None)
        note_failed(report.nodeid, crash.message if crash else report.longreprtext[-200:])


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed:
        note_failed(report.nodeid, report.longreprtext[-200:])
