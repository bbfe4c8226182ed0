"""A machine that cannot run a part says so, and does not pass for one that has."""

from typing import Self

import pytest

from istio import world
from mesh import parts
from mesh.failed import FAILED, note_failed
from mesh.mesh import ROOT
from mesh.unrun import NOTE, not_run


@pytest.mark.parametrize("ci, code", [("", 0), ("true", 1)])
def test_what_is_not_run_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], ci: str, code: int
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr("sys.argv", ["world", "pytest", "tests/istio/live"])
    monkeypatch.setenv("CI", ci)
    # Of the part that this test is in, which does run.
    monkeypatch.delenv(NOTE, raising=False)
    assert world.main() == code
    told = capsys.readouterr().out
    assert "NOT RUN: pytest tests/istio/live" in told
    assert "NOT RUN, because: it needs root" in told


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("shutil.which", lambda program: None if program == "iptables" else "/x")
    assert world.obstacles() == ["iptables is missing (Debian: iptables)"]


class Made:
    """A process of make that has ended."""

    def __init__(self, returncode: int, *lines: bytes) -> None:
        self.returncode = returncode
        self.stdout = iter(lines)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def machine(
    monkeypatch: pytest.MonkeyPatch,
    without: str = "",
    failing: str = "",
    unrun: str = "",
    dying: str = "",
) -> list[str]:
    """One that lacks a program, or where a test of a target fails, or it does not run after
    all, or ends without a test that fails. The first target of each call of make is in the
    list."""
    called: list[str] = []

    def make(command: list[str], env: dict[str, str], **_: object) -> Made:
        called.append(command[2])
        if command[2] == dying:
            return Made(2, *(b"line %d\n" % n for n in range(9)), b"no disk\n")
        if command[2] == unrun:
            monkeypatch.setenv(NOTE, env[NOTE])
            return Made(not_run("the tests", ["no\nmirror"]))
        if command[2] == failing:
            with monkeypatch.context() as patch:
                patch.setenv(FAILED, env[FAILED])
                # Several workers say it.
                note_failed("test_one.py::test", "1\n  is not 2")
                note_failed("test_one.py::test", "1\n  is not 2")
        return Made(int(command[2] == failing), b"done\n")

    monkeypatch.setattr("shutil.which", lambda name: None if name == without else "/x")
    monkeypatch.setattr("subprocess.Popen", make)
    monkeypatch.setattr("docker.world.missing", lambda: None)
    monkeypatch.setattr("docker.debian.missing", lambda: None)
    monkeypatch.setattr("istio.world.obstacles", lambda: [])
    monkeypatch.setattr("cluster.world.obstacles", lambda: [])
    monkeypatch.setattr(parts, "check_java", lambda: None)
    return called


@pytest.mark.parametrize("ci, code", [("", 0), ("true", 1)])
def test_the_summary_names_what_is_not_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], ci: str, code: int
) -> None:
    monkeypatch.setenv("CI", ci)
    called = machine(monkeypatch, without="mvn", unrun="test-docker")
    assert parts.main([]) == code
    assert called == [
        "test-envoys",
        "bench-instructions",
        "test-docker",
        "test-manifests",
        "test-monitoring",
        "test-release",
    ]
    summary = capsys.readouterr().out.split("All parts:\n")[1].splitlines()
    maven = "mvn is missing: install Maven (Debian: maven)"
    assert summary[:6] == [
        f"  not run: agreement: {maven}",
        f"  not run: backends: {maven}",
        f"  not run: bookinfo: {maven}",
        f"  not run: browser: {maven}",
        f"  not run: cluster: {maven}",
        "  not run: docker: no mirror",
    ]
    passed = ("envoys", "instructions", "manifests", "monitoring", "release")
    for line, name in zip(summary[6:11], passed, strict=True):
        assert line.startswith(f"  passed: {name} (")
    assert summary[11:] == [f"  not run: sdks: {maven}", f"  not run: sidecars: {maven}"]


def test_a_part_that_fails_lets_the_others_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    called = machine(monkeypatch, failing="test-backends")
    assert parts.main(["backends", "manifests"]) == 1
    assert called == ["test-backends", "test-manifests"]
    summary = capsys.readouterr().out.split("All parts:\n")[1].splitlines()
    assert summary[0].startswith("  FAILED: backends (")
    assert summary[1] == "    test_one.py::test: 1 is not 2"
    assert summary[2].startswith("  passed: manifests (")


def test_a_part_that_ends_without_a_test_that_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What it printed last is in the summary."""
    machine(monkeypatch, dying="test-backends")
    assert parts.main(["backends"]) == 1
    printed, summary = capsys.readouterr().out.split("All parts:\n")
    assert "line 0\n" in printed
    assert summary.splitlines()[1:] == [f"    line {n}" for n in range(5, 9)] + ["    no disk"]


@pytest.mark.parametrize("failing", ["", "test-sidecars"])
def test_a_part_beside_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], failing: str
) -> None:
    """What it shares with them is made before."""
    called = machine(monkeypatch, failing=failing)
    assert parts.main(["manifests", "sidecars"]) == (1 if failing else 0)
    assert called[0] == "istio-tools"
    assert sorted(called[1:]) == ["test-manifests", "test-sidecars"]
    summary = capsys.readouterr().out.split("All parts:\n")[1].splitlines()
    assert summary[0].startswith("  passed: manifests (")
    assert summary[1].startswith(f"  {'FAILED' if failing else 'passed'}: sidecars (")


def test_one_part_needs_nothing_made_before(monkeypatch: pytest.MonkeyPatch) -> None:
    called = machine(monkeypatch)
    assert parts.main(["sidecars"]) == 0
    assert called == ["test-sidecars"]


def test_some_have_the_machine_for_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    called = machine(monkeypatch)
    assert parts.main(["release", "sidecars", "sdks", "cluster"]) == 0
    assert called[:3] == ["istio-tools", "test-sdks", "test-cluster"]
    assert sorted(called[3:]) == ["test-release", "test-sidecars"]


def test_every_part_is_a_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert f"PARTS ?= {' '.join(parts.PARTS)}\n" in makefile
    for part in parts.PARTS.values():
        assert f"\n{part.target[0]}: " in makefile
