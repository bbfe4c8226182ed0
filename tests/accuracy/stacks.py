"""The applications: one service, in the ways in which people run it.

    a  calls h1, then h2            c  calls nobody
    b  calls h2, then h3            d  calls h1

Arithmetic of about 0.3 ms (lognormal) stands before, between and after the calls. In the variant
``parallel-background`` route b calls h2 and h3 at once and then h1, and calls to h1 for
no request go out five times a second. In the variant ``token`` the path of each
request names a user of its own, whom the path or the query of its calls names too.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from load.program import go_program
from mesh.mesh import ROOT

HERE = Path(__file__).resolve().parent
APPS = HERE / "apps"
BUILT = ROOT / "target" / "accuracy"

# What the application does for a request, and what it copies onto its calls:
# nothing, the request ID, or (for recordings) the number of the request.
Variant = Literal["sequential", "parallel-background", "token"]
Forward = Literal["none", "request-id", "truth"]
VARIANTS: tuple[Variant, ...] = ("sequential", "parallel-background", "token")


@dataclass(frozen=True)
class Stack:
    """A way to run the service."""

    name: str
    what: str
    # What must be there; and what makes the command out of that.
    needs: Sequence[str]
    build: Callable[[], Sequence[str | Path]]

    def command(
        self, port: int, outbound: int, variant: Variant, forward: Forward
    ) -> list[str | Path]:
        for program in self.needs:
            if shutil.which(program) is None:
                raise SystemExit(
                    f"accuracy: {program} is missing, which the stack {self.name} needs"
                )
        shape = "sequential" if variant == "token" else variant
        return [*self.build(), str(port), str(outbound), shape, forward]


def _java() -> Sequence[str | Path]:
    classes = BUILT / "java"
    subprocess.run(["javac", "-d", classes, APPS / "java" / "App.java"], check=True)
    # Without nodelay this server waits up to 40 ms with the end of an answer; the Host header
    # is one of those that the client sets itself, unless it is told.
    options = ("-Dsun.net.httpserver.nodelay=true", "-Djdk.httpclient.allowRestrictedHeaders=host")
    return ("java", *options, "-cp", classes, "App")


STACKS = {
    stack.name: stack
    for stack in (
        Stack(
            "go",
            "net/http, a goroutine a request",
            ("go",),
            lambda: (go_program(APPS / "go", BUILT / "app"),),
        ),
        Stack(
            "node",
            "node:http, one event loop",
            ("node",),
            lambda: ("node", APPS / "node" / "app.js"),
        ),
        Stack(
            "python",
            "waitress and urllib3, 16 threads",
            (),
            lambda: (sys.executable, APPS / "python" / "app.py"),
        ),
        Stack(
            "java", "com.sun.net.httpserver and java.net.http, 16 threads", ("java", "javac"), _java
        ),
    )
}
