"""Starting processes, waiting until they are ready, and always stopping them."""

import atexit
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_STOP_SECONDS = 5.0


class MeshError(RuntimeError):
    """A process did not start, died, or did not answer in time."""


class Stacked:
    """What is made of others: `__enter__` enters these, and keeps the stack of them."""

    _stack: ExitStack

    def __exit__(
        self,
        type_: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.__exit__(type_, error, traceback)


@contextmanager
def signals_held() -> Iterator[None]:
    """Hold Ctrl-C and SIGTERM back until the block is done.

    Without it a signal could come between the start of a process and the note
    that it runs, or stop the stopping half way.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[int] = []

    def note(signum: int, _frame: FrameType | None) -> None:
        caught.append(signum)

    before = {signum: signal.signal(signum, note) for signum in _SIGNALS}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)
        if caught:
            signal.raise_signal(caught[0])


def _exit_on_sigterm(signum: int, _frame: FrameType | None) -> None:
    sys.exit(128 + signum)


class Process:
    """One started process and its log file."""

    def __init__(self, name: str, popen: subprocess.Popen[bytes], log_path: Path) -> None:
        self.name = name
        self.log_path = log_path
        self._popen = popen

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._popen.poll()

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def tail(self, lines: int = 20) -> str:
        text = "\n".join(self.log().splitlines()[-lines:])
        return f"--- {self.name} (exit code {self.exit_code}), end of its log:\n{text or '(empty)'}"

    def signal_group(self, signum: int) -> None:
        """Send a signal to the process and to what it has started."""
        if self._popen.poll() is None:
            # Started as the leader of a group of its own: pid == group id.
            os.killpg(self._popen.pid, signum)

    def wait(self, seconds: float) -> bool:
        """Whether the process has ended within that time."""
        try:
            self._popen.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True


class Processes:
    """A set of processes with a temporary directory; leaving it stops them all.

    show_tails  whether to show the ends of their logs when it is left by an error
    """

    def __init__(self, show_tails: bool = False) -> None:
        self._show_tails = show_tails
        self._running: dict[str, Process] = {}

    def __enter__(self) -> Self:
        self.directory = Path(tempfile.mkdtemp(prefix="b3relay-mesh-"))
        # Plain SIGTERM would end this process without running any clean-up.
        self._takes_sigterm = (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        )
        if self._takes_sigterm:
            signal.signal(signal.SIGTERM, _exit_on_sigterm)
        atexit.register(self._clean_up)
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        if self._show_tails and isinstance(error, Exception):
            print(self.tails(), file=sys.stderr)
        with signals_held():
            self._clean_up()
            atexit.unregister(self._clean_up)
        if self._takes_sigterm:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _clean_up(self) -> None:
        self.stop(*self._running.values())
        shutil.rmtree(self.directory, ignore_errors=True)

    def start(
        self, name: str, argv: Sequence[str | Path], env: Mapping[str, str] | None = None
    ) -> Process:
        """Start a process in a group of its own; its output goes to its log file."""
        log_path = self.directory / f"{name}.log"
        with signals_held(), log_path.open("ab") as log:
            popen = subprocess.Popen(
                [str(word) for word in argv],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )
            process = self._running[name] = Process(name, popen, log_path)
        return process

    def stop(self, *processes: Process) -> None:
        """Stop these processes, all at the same time; kill what does not stop."""
        with signals_held():
            for process in processes:
                process.signal_group(signal.SIGTERM)
            deadline = time.monotonic() + _STOP_SECONDS
            for process in processes:
                if not process.wait(max(0.0, deadline - time.monotonic())):
                    process.signal_group(signal.SIGKILL)
                    process.wait(_STOP_SECONDS)
            self._running = {
                name: process
                for name, process in self._running.items()
                if process.exit_code is None
            }

    def wait_ready(
        self, checks: Mapping[Process, Callable[[], bool]], timeout: float = 60.0
    ) -> None:
        """Wait until each process passes its check; else say which did not, with its log."""
        pending = dict(checks)
        deadline = time.monotonic() + timeout
        while pending:
            for process, check in list(pending.items()):
                if process.exit_code is not None:
                    raise MeshError(f"{process.name} ended while starting\n{process.tail()}")
                if check():
                    del pending[process]
            if pending and time.monotonic() > deadline:
                names = ", ".join(process.name for process in pending)
                tails = "\n".join(process.tail() for process in pending)
                raise MeshError(f"not ready after {timeout:.0f} s: {names}\n{tails}")
            time.sleep(0.05)

    def tails(self, lines: int = 20) -> str:
        """The ends of all logs."""
        return "\n".join(process.tail(lines) for process in self._running.values())
