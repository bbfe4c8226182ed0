"""What all tests share."""

import pytest

from mesh.failed import note_failed


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed:
        crash = getattr(report.longrepr, "reprcrash", None)
        note_failed(report.nodeid, crash.message if crash else report.longreprtext[-200:])


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed:
        note_failed(report.nodeid, report.longreprtext[-200:])
