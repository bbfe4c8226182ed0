"""Network, mounts and processes apart from those of the machine.

The first process of such a world takes everything with it that was started or set up
there, however it ends.
"""

import os
import subprocess
import sys

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
