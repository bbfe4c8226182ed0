"""A machine that cannot run the pods says so, and does not pass for one that has."""

import pytest

from istio import world


@pytest.mark.parametrize("ci, code", [("", 0), ("true", 1)])
def test_what_is_not_run_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], ci: str, code: int
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr("sys.argv", ["world", "pytest", "tests/istio/live"])
    monkeypatch.setenv("CI", ci)
    assert world.main() == code
    told = capsys.readouterr().out
    assert "NOT RUN: pytest tests/istio/live" in told
    assert "NOT RUN, because: it needs root" in told


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("shutil.which", lambda program: None if program == "iptables" else "/x")
    assert world.obstacles() == ["iptables is missing (Debian: iptables)"]
