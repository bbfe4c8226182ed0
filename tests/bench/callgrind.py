"""Counting instructions: valgrind's callgrind, which runs an Envoy without changing it."""

import re
import shutil
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from mesh.procs import MeshError

# Of one request to valgrind, which waits until the Envoy comes to a stop.
_SECONDS = 60
_IDLE_SECONDS = 3.0


def command(directory: Path) -> list[str]:
    """What an Envoy is started under. It counts nothing yet, and is five times as slow as
    without; fifty times while it counts."""
    if shutil.which("valgrind") is None:
        raise MeshError("valgrind is missing (Debian: valgrind)")
    return [
        "valgrind",
        "--tool=callgrind",
        # V8 writes code while it runs.
        "--smc-check=all-non-file",
        "--separate-threads=yes",
        "--instr-atstart=no",
        # With the default, some of V8's code is too much for one of valgrind's blocks.
        "--vex-guest-max-insns=50",
        f"--callgrind-out-file={directory}/callgrind.%p",
    ]


class Callgrind:
    """The counters of a process that was started under `command(directory)`."""

    def __init__(self, pid: int, directory: Path) -> None:
        self._pid = pid
        self._directory = directory
        # By thread: instructions per second while there is nothing to do.
        self._idle: dict[str, float] = {}

    def begin(self) -> None:
        """From now on instructions are counted: for long, since what is compiled for it is
        thrown away with the end."""
        self._tell("instrumentation on")
        # What is put in order some time after a request is of its cost.
        time.sleep(_IDLE_SECONDS)
        counted, seconds = self._count(partial(time.sleep, _IDLE_SECONDS))
        self._idle = {thread: each / seconds for thread, each in counted.items()}

    def of(self, act: Callable[[], None]) -> float:
        """The instructions of the busiest thread meanwhile, without those that it has
        when there is nothing to do: how long it takes says nothing of the work."""
        counted, seconds = self._count(act)
        return max(each - seconds * self._idle.get(name, 0) for name, each in counted.items())

    def _count(self, act: Callable[[], None]) -> tuple[dict[str, int], float]:
        """Instructions by thread, and seconds."""
        self._tell("zero")
        began = time.monotonic()
        act()
        seconds = time.monotonic() - began
        self._tell("dump")
        found = {}
        # callgrind.PID.DUMP-THREAD
        for dump in self._directory.glob(f"callgrind.{self._pid}.*-*"):
            if total := re.search(r"^totals: (\d+)$", dump.read_text(), re.MULTILINE):
                found[dump.name.rpartition("-")[2]] = int(total[1])
            dump.unlink()
        if not any(found.values()):
            raise MeshError(f"callgrind counted nothing in process {self._pid}")
        return found, seconds

    def _tell(self, what: str) -> None:
        words = ["vgdb", f"--pid={self._pid}", f"--cmd-time-out={_SECONDS}", *what.split()]
        done = subprocess.run(words, capture_output=True, text=True, timeout=2 * _SECONDS)
        if done.returncode != 0:
            raise MeshError(f"vgdb {what}: {done.stdout}{done.stderr}")
