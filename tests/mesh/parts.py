"""``python -m mesh.parts PART...``: the tests with long builds. First come, one after the
other, those that have to have the machine for themselves; then the rest, in two rows: those
that mostly wait, beside those that do not.

Each part is a target of the Makefile. At the end it is said of each whether it passed,
how long it took, and which of its tests failed; of one that this machine cannot run, why,
and what to install. Such a part is no failure, unless CI is set: there every part has to be
run.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import cluster.world
import docker.debian
import docker.world
import istio.world
from browser import CHROMIUM
from mesh.backends import check_java
from mesh.failed import FAILED, failed
from mesh.mesh import ROOT
from mesh.procs import MeshError
from mesh.unrun import NOTE, noted

# Of what a part prints that fails without a test that fails.
_LAST_LINES = 5
_PACKAGES = {
    "cargo": "install Rust with rustup (rustup.rs)",
    "go": "install Go 1.26 or newer (go.dev)",
    "node": "install Node 20 or newer (nodejs.org, or Debian: nodejs)",
    "npm": "install npm (nodejs.org, or Debian: npm)",
    "javac": "install a JDK, 17 or newer (Debian: openjdk-17-jdk-headless)",
    "java": "install a JDK, 17 or newer (Debian: openjdk-17-jdk-headless)",
    "mvn": "install Maven (Debian: maven)",
    "valgrind": "install valgrind (Debian: valgrind)",
}


def lacking(*programs: str) -> list[str]:
    """What to do about those of the programs that this machine does not have."""
    found = [
        f"{name} is missing: {_PACKAGES[name]}" for name in programs if shutil.which(name) is None
    ]
    if not found and "java" in programs:
        try:
            check_java()
        except MeshError as error:
            return [str(error)]
    return found


def docker_obstacles() -> list[str]:
    why = docker.world.missing()
    return lacking("go") + ([] if why is None else [why])


def bookinfo_obstacles() -> list[str]:
    why = docker.debian.missing()
    programs = lacking("go", "node", "npm", "java", "javac", "mvn")
    ruby = [] if why is None else [why.replace("the Docker engine", "Ruby")]
    return programs + istio.world.obstacles() + ruby


def browser_obstacles() -> list[str]:
    if any(map(shutil.which, CHROMIUM)):
        return []
    return ["Chromium is missing: install it (Debian: chromium-headless-shell)"]


@dataclass(frozen=True)
class Part:
    target: tuple[str, ...]
    obstacles: Callable[[], list[str]]
    # Has expectations that a busy machine does not meet: nothing runs beside it.
    alone: bool = False
    # Mostly waits: it runs beside those that do not; what it prints is shown at its end.
    beside: bool = False
    # Targets that those beside it need as well: made before, so that no two make them at
    # the same time.
    first: tuple[str, ...] = ()


def cluster_obstacles() -> list[str]:
    return lacking("cargo", "go", "node", "npm", "java", "javac", "mvn") + cluster.world.obstacles()


PARTS = {
    "agreement": Part(
        ("agreement", "AGREEMENT=--random 2000"),
        lambda: lacking("cargo", "go", "node", "npm", "java", "javac", "mvn"),
    ),
    "backends": Part(("test-backends",), lambda: lacking("go", "java", "mvn")),
    "bookinfo": Part(("test-bookinfo",), bookinfo_obstacles),
    "browser": Part(("test-browser",), lambda: lacking("java", "mvn") + browser_obstacles()),
    # No request is to be lost in a rollout. The shop goes on for 5 s after it is told to end:
    # on a machine with a load of 15 its callers may not yet know by then.
    "cluster": Part(("test-cluster",), cluster_obstacles, alone=True),
    "docker": Part(("test-docker",), docker_obstacles),
    # 1.40 runs the quick ones in `make test`; of the older Envoys each runs a quarter of them.
    # They have both cores busy by themselves.
    "envoys": Part(
        ("test-envoys", "test-long", "test-simulated", "SHARED=yes"),
        lambda: lacking("cargo"),
        alone=True,
    ),
    # V8 compiles beside what is counted.
    "instructions": Part(
        ("bench-instructions",), lambda: lacking("cargo", "valgrind"), alone=True
    ),
    "manifests": Part(("test-manifests",), lambda: lacking("go")),
    "monitoring": Part(("test-monitoring",), lambda: lacking("go")),
    "release": Part(("test-release",), lambda: lacking("cargo", "go", "node", "npm")),
    # What a call belongs to is seen from when it is made: of the first dozen clicks of a
    # sidecar, one may be left alone where programs are slow to begin.
    "sdks": Part(
        ("test-sdks",), lambda: lacking("node", "npm", "java", "javac", "mvn"), alone=True
    ),
    "sidecars": Part(
        ("test-sidecars",),
        lambda: lacking("go", "java", "mvn") + istio.world.obstacles(),
        beside=True,
        first=("istio-tools", "wasm", "zipkin"),
    ),
}


@dataclass(frozen=True)
class Outcome:
    name: str
    seconds: float = 0
    failed: bool = False
    # Or, where it is no test that failed, what was said last.
    failed_tests: tuple[str, ...] = ()
    not_run: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.not_run:
            return f"not run: {self.name}: {'; '.join(self.not_run)}"
        word = "FAILED" if self.failed else "passed"
        line = f"{word}: {self.name} ({self.seconds:.0f} s; make {PARTS[self.name].target[0]})"
        return "\n    ".join((line, *self.failed_tests))


def run(name: str, output: IO[bytes] | None = None) -> Outcome:
    """``output``: where what it prints goes, if not to the screen."""
    part = PARTS[name]
    if found := part.obstacles():
        return Outcome(name, not_run=tuple(found))
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        notes = {name: str(Path(directory) / name) for name in (NOTE, FAILED)}
        code, last = _make(part.target, output or sys.stdout.buffer, notes)
        # What a part finds out only on its way.
        found = noted(Path(notes[NOTE]))
        tests = failed(Path(notes[FAILED])) or (last if code else [])
    seconds = time.monotonic() - began
    return Outcome(name, seconds, code != 0, tuple(tests), tuple(found))


def _make(
    targets: Sequence[str], output: IO[bytes], more: Mapping[str, str] | None = None
) -> tuple[int, list[str]]:
    """The exit code, and the last lines that it has printed."""
    last: deque[bytes] = deque(maxlen=_LAST_LINES)
    with subprocess.Popen(
        ["make", "--no-print-directory", *targets],
        cwd=ROOT,
        env={**os.environ, **(more or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            output.write(line)
            output.flush()
            last.append(line)
    return process.returncode, [line.decode(errors="replace").rstrip() for line in last]


def run_quietly(name: str) -> tuple[Outcome, str]:
    """The outcome, and what the part has printed."""
    with tempfile.TemporaryFile() as output:
        outcome = run(name, output)
        output.seek(0)
        return outcome, output.read().decode(errors="replace")


def main(names: list[str]) -> int:
    names = names or list(PARTS)
    alone = [name for name in names if PARTS[name].alone]
    beside = [name for name in names if PARTS[name].beside]
    rest = [name for name in names if name not in [*alone, *beside]]
    if not (beside and rest):
        # Nothing to run beside another: one after the other, as they are named.
        alone, beside, rest = names, [], []
    runnable = [PARTS[name] for name in beside if not PARTS[name].obstacles()]
    if first := list(dict.fromkeys(target for part in runnable for target in part.first)):
        _make(first, sys.stdout.buffer)
    found: dict[str, Outcome] = {}

    def note(outcome: Outcome) -> None:
        found[outcome.name] = outcome
        print(outcome, flush=True)

    for name in alone:
        note(run(name))
    # One worker: its parts run one after the other.
    with ThreadPoolExecutor(1) as executor:
        waiting = [executor.submit(run_quietly, name) for name in beside]
        for name in rest:
            note(run(name))
        for future in waiting:
            outcome, printed = future.result()
            print(printed)
            note(outcome)
    outcomes = [found[name] for name in names]
    print("\nAll parts:")
    for outcome in outcomes:
        print(f"  {outcome}")
    missed = any(outcome.not_run for outcome in outcomes) and os.environ.get("CI") == "true"
    return int(missed or any(outcome.failed for outcome in outcomes))


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
