"""Runs a command in a world of its own: ``python -m istio.world COMMAND...``

Its network, its mounts and its processes are apart from those of the machine, so
no port and no name can collide, and when the command ends, however it ends, the
kernel takes everything away that it has started or set up.

Needs root, and `iptables`. On a machine that cannot do it the command does not run:
that is said, and is an error where CI is set.
"""

import os
import shutil
import subprocess
import sys

from mesh.namespaces import UNSHARE, needs_root, obstacle
from mesh.unrun import not_run

_INSIDE = "--inside"
_PROGRAMS = {
    "unshare": "util-linux",
    "setpriv": "util-linux",
    "ip": "iproute2",
    "iptables": "iptables",
    "openssl": "openssl",
}


def obstacles() -> list[str]:
    """What keeps this machine from it."""
    if (why := needs_root()) is not None:
        return [why]
    missing = [
        f"{program} is missing (Debian: {package})"
        for program, package in _PROGRAMS.items()
        if shutil.which(program) is None
    ]
    if missing:
        return missing
    why = obstacle()
    return [] if why is None else [why]


def enter(command: list[str]) -> int:
    """In a new world: the loopback interface, and a place for namespaces."""
    os.makedirs("/run/netns", exist_ok=True)
    for words in (
        ["ip", "link", "set", "lo", "up"],
        ["mount", "-t", "tmpfs", "tmpfs", "/run/netns"],
    ):
        subprocess.run(words, check=True)
    # The first process of a world gets no signal that it has no handler for, so
    # the command is its child.
    with subprocess.Popen(command) as child:
        try:
            return child.wait()
        except KeyboardInterrupt:
            return child.wait()


def main() -> int:
    arguments = sys.argv[1:]
    if arguments[:1] == [_INSIDE]:
        return enter(arguments[1:])
    if found := obstacles():
        return not_run(" ".join(arguments), found)
    own = [sys.executable, "-P", "-m", "istio.world", _INSIDE]
    return subprocess.run([*UNSHARE, *own, *arguments]).returncode


if __name__ == "__main__":
    sys.exit(main())
