"""Network, mounts and processes apart from those of the machine.

The first process of such a world takes everything with it that was started or set up
there, however it ends.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mesh.procs import MeshError, signals_held

UNSHARE = ("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")


def needs_root() -> str | None:
    """Said where this is no root on Linux."""
    root = sys.platform == "linux" and os.geteuid() == 0
    return None if root else "it needs root on Linux"


def obstacle() -> str | None:
    """Said where root cannot make them. Of a container, for instance."""
    tried = subprocess.run([*UNSHARE, "true"], capture_output=True, text=True)
    if tried.returncode == 0:
        return None
    return f"no namespaces can be made here: {tried.stderr.strip()}"


def run(
    command: Sequence[str],
    directory: Path,
    environment: Mapping[str, str] | None = None,
    remove: Callable[[], None] = lambda: None,
) -> int:
    """Run a command in such a world, with ``environment`` added; its exit code. Afterwards,
    also after SIGTERM or Ctrl-C, the folder is removed, and before it what ``remove`` does."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    process = subprocess.Popen([*UNSHARE, *command], env={**os.environ, **(environment or {})})
    try:
        return process.wait()
    except KeyboardInterrupt:
        return process.wait()  # it got the Ctrl-C as well
    finally:
        with signals_held():
            # With it ends all that runs in the world; soon after, what it mounted is gone.
            process.kill()
            process.wait()
            _remove(directory, remove)


def _remove(directory: Path, more: Callable[[], None]) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            more()
            if directory.exists():
                shutil.rmtree(directory)
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def end(main: Callable[[], int]) -> int:
    """The exit code of ``main``; what goes wrong in setting a world up is said in a line."""
    try:
        return main()
    except (MeshError, subprocess.CalledProcessError) as error:
        print(f"b3relay: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
