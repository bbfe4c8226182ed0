"""The commands of the documentation, run as they stand.

A test names a command by its page and by a part of it; what is run is what the page has.
``runs()`` reads out of the tests which ones these are, without running any.
"""

import ast
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mesh.pages import ROOT, commands

README = "README.md"
FORMS = "envoyfilter/README.md"
GUIDE = "docs/istio-guide.md"
IMAGE = "docs/image.md"
# Not all of its commands: some make a release, and one needs skopeo.
RELEASE = "docs/release.md"
PAGES = {"README": README, "FORMS": FORMS, "GUIDE": GUIDE, "IMAGE": IMAGE}

# Run by other tests: the command, and the file that has it run.
ELSEWHERE = {
    "make test": ".ci/run",
    "make image-push IMAGE=registry.example.com/b3relay:0.1.0": "tests/docker/test_image.py",
    "make artifact-push IMAGE=registry.example.com/b3relay:0.1.0-artifact": (
        "tests/docker/test_image.py"
    ),
}

_TESTS = ROOT / "tests" / "cluster"


def plain(command: str) -> str:
    """Without the remark behind it."""
    return re.sub(r"\s+# .*", "", command)


def of_page(page: str) -> list[str]:
    return [plain(command) for command in commands(page)]


def find(page: str, part: str) -> str:
    """The command of a page that is ``part``, or the only one that has it in it."""
    found = dict.fromkeys(of_page(page))
    if part in found:
        return part
    fitting = [command for command in found if part in command]
    if len(fitting) != 1:
        raise LookupError(f"{page}: {len(fitting)} commands with {part!r} in them: {fitting}")
    return fitting[0]


def runs() -> Iterator[tuple[str, str]]:
    """Page and command, as the tests name them: calls of the methods below whose first
    argument is one of PAGES, and the others are texts."""
    for file in sorted([*_TESTS.glob("*.py"), *_TESTS.glob("live/*.py")]):
        for call in ast.walk(ast.parse(file.read_text())):
            match call:
                case ast.Call(
                    func=ast.Attribute(attr="run" | "run_all" | "hold"),
                    args=[ast.Name(id=name), *parts],
                ) if name in PAGES:
                    for part in parts:
                        if isinstance(part, ast.Constant):
                            yield PAGES[name], find(PAGES[name], str(part.value))


_PODS = "kubectl -n shop get pods -o name"
_LOG = (
    "kubectl -n shop logs $pod -c istio-proxy | grep -e rejected -e 'cannot fetch' | cut -c 1-400;"
    " kubectl -n shop exec $pod -c istio-proxy -- pilot-agent request GET"
    " 'config_dump?mask=ecds_filters' | grep -e '\"name\"' -e last_updated;"
    " kubectl -n shop exec $pod -c istio-proxy -- pilot-agent request GET"
    " 'stats?filter=update_rejected';"
    " kubectl -n shop exec $pod -c istio-proxy -- ls -l --time-style=full-iso /etc/b3relay/;"
    # Istio's own metrics have Envoy's response flags.
    " kubectl -n shop exec $pod -c istio-proxy -- pilot-agent request GET stats/prometheus |"
    " grep '^istio_requests_total' | grep -v 'response_code=\"200\"'"
)
# A probe that was not answered takes a pod out of its service for a while.
_EVENTS = "kubectl -n shop get events --field-selector type=Warning --sort-by .lastTimestamp | tail -20"


@dataclass
class Held:
    """A command that holds its terminal."""

    process: subprocess.Popen[bytes]

    def interrupt(self) -> None:
        """Ctrl-C."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGINT)
            self.process.wait(10)


@dataclass
class Walk:
    """Runs commands, and remembers which. ``directory`` is for what they print."""

    directory: Path
    done: list[str] = field(default_factory=list)
    held: dict[str, Held] = field(default_factory=dict)

    def run(
        self,
        page: str,
        part: str,
        *,
        folder: Path = ROOT,
        shop: str = "shop",
        status: int = 0,
        **more: str,
    ) -> str:
        """What the command prints. ``shop``: another namespace in its place; ``status``: how
        it ends; ``more`` is for its environment."""
        command = find(page, part)
        self.done.append(command)
        return self.shell(command.replace("-n shop ", f"-n {shop} "), folder, status, **more)

    def command(self, page: str, part: str) -> str:
        """It alone, to be changed."""
        return find(page, part)

    def run_all(self, page: str, *parts: str) -> None:
        """One after the other."""
        for part in parts:
            self.run(page, part)

    def quiet(self, command: str) -> str:
        """What a command of our own prints; shown only if it fails."""
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", command],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout

    def shell(
        self, command: str, folder: Path = ROOT, status: int = 0, **more: str
    ) -> str:
        """Run any command, and show what it prints."""
        began = time.monotonic()
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", command],
            cwd=folder,
            env={**os.environ, **more},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
        )
        first = command.splitlines()[0]
        print(f"$ {first}  [{time.monotonic() - began:.1f} s]\n{done.stdout}{done.stderr}")
        assert done.returncode == status, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def filters(self) -> str:
        """What the sidecars of the shop say of their filters and of failed requests, and the
        kubelet of the pods."""
        script = f"for pod in $({_PODS}); do echo $pod; {_LOG}; done; {_EVENTS}"
        return subprocess.run(
            ["timeout", "60", "bash", "-c", script],
            capture_output=True,
            text=True,
        ).stdout

    def hold(self, page: str, part: str, *, ready: str) -> None:
        """Start one that holds its terminal, and wait until it prints ``ready``. One that
        runs already is ended first."""
        command = find(page, part)
        self.done.append(command)
        if before := self.held.pop(command, None):
            before.interrupt()
        log = self.directory / f"held-{len(self.held)}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                ["bash", "-c", f"exec {command}"],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.held[command] = Held(process)
        wait_for(lambda: ready in log.read_text(), 30, lambda: f"{command}: {log.read_text()}")

    def end(self) -> None:
        for held in self.held.values():
            held.interrupt()

    def count(self, page: str) -> tuple[int, int]:
        """How many of its commands were run, and how many it has."""
        wanted = set(of_page(page))
        return len(wanted.intersection(self.done)), len(wanted)


def wait_for(check: Callable[[], bool], seconds: float, why: Callable[[], str]) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:.0f} s: {why()}")
        time.sleep(0.2)
