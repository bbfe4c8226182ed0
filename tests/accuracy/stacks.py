"""The applications: one service, in the ways in which people run it.

    a  calls h1, then h2            c  calls nobody
    b  calls h2, then h3            d  calls h1

Arithmetic of about 0.3 ms (lognormal) stands before, between and after the calls. In the variant
``parallel-background`` route b calls h2 and h3 at once and then h1, and calls to h1 for
no request go out five times a second. In the variant ``token`` the path of each
request names a user of its own, whom the path or the query of its calls names too.
``WORK_MS`` in the environment sets another median of the arithmetic.
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
    # What follows the arguments that all have.
    more: Sequence[str] = ()
    # Whether requests and calls are gRPC's.
    grpc: bool = False
    variants: Sequence[Variant] = VARIANTS
    # The Debian packages without which a program is missing.
    packages: str = ""
    # Whether it is measured with the filter too, or just recorded.
    measured: bool = False

    def command(
        self, port: int, outbound: int, variant: Variant, forward: Forward
    ) -> list[str | Path]:
        for program in self.needs:
            if shutil.which(program) is None:
                debian = f" (Debian: {self.packages})" if self.packages else ""
                raise SystemExit(
                    f"accuracy: {program} is missing, which the stack {self.name} needs{debian}"
                )
        shape = "sequential" if variant == "token" else variant
        return [*self.build(), str(port), str(outbound), shape, forward, *self.more]


def _java() -> Sequence[str | Path]:
    classes = BUILT / "java"
    subprocess.run(["javac", "-d", classes, APPS / "java" / "App.java"], check=True)
    # Without nodelay this server waits up to 40 ms with the end of an answer; the Host header
    # is one of those that the client sets itself, unless it is told.
    options = ("-Dsun.net.httpserver.nodelay=true", "-Djdk.httpclient.allowRestrictedHeaders=host")
    return ("java", *options, "-cp", classes, "App")


def _spring() -> Sequence[str | Path]:
    built = BUILT / "spring"
    maven = ("mvn", "-q", "-B", "-Dstyle.color=never", f"-Dbuilt={built}", "package")
    subprocess.run(maven, cwd=APPS / "spring", check=True)
    return ("java", "-jar", built / "app.jar")


def _python(program: str) -> Callable[[], Sequence[str | Path]]:
    return lambda: (sys.executable, APPS / "python" / program)


STACKS = {
    stack.name: stack
    for stack in (
        Stack(
            "go",
            "net/http, a goroutine a request",
            ("go",),
            lambda: (go_program(APPS / "go", BUILT / "app"),),
            measured=True,
        ),
        Stack(
            "node",
            "node:http, one event loop",
            ("node",),
            lambda: ("node", APPS / "node" / "app.js"),
            measured=True,
        ),
        Stack(
            "python",
            "waitress and urllib3, 16 threads",
            (),
            _python("app.py"),
            measured=True,
        ),
        Stack(
            "java",
            "com.sun.net.httpserver and java.net.http, 16 threads",
            ("java", "javac"),
            _java,
            measured=True,
        ),
        Stack(
            "gunicorn-sync",
            "gunicorn, 8 processes of one request each, and requests",
            (),
            _python("gunicorn_app.py"),
            more=("sync",),
        ),
        Stack(
            "gunicorn-gthread",
            "gunicorn, 2 processes of 8 threads each, and requests",
            (),
            _python("gunicorn_app.py"),
            more=("gthread",),
        ),
        Stack(
            "connections",
            "Python's own server, a thread a connection, and requests, with sessions in each",
            (),
            _python("connections_app.py"),
        ),
        Stack("aiohttp", "aiohttp, one event loop", (), _python("aiohttp_app.py")),
        Stack(
            "starlette",
            "Starlette on uvicorn and httpx, one event loop",
            (),
            _python("starlette_app.py"),
        ),
        Stack(
            "grpc",
            "gRPC in Go, a goroutine a request, one channel to each service",
            ("go",),
            lambda: (go_program(APPS / "grpc", BUILT / "grpc"),),
            grpc=True,
            # Its paths name methods, and no user.
            variants=("sequential", "parallel-background"),
        ),
        Stack(
            "spring",
            "Spring Boot on Tomcat and Apache's HttpClient, a thread a request",
            ("java", "javac", "mvn"),
            _spring,
        ),
        Stack(
            "puma",
            "Puma, 2 processes of 5 threads each, and Net::HTTP",
            ("ruby", "puma"),
            lambda: ("ruby", APPS / "ruby" / "app.rb"),
            packages="ruby, puma",
        ),
        Stack(
            "php",
            "PHP-FPM behind lighttpd, 16 processes, and curl",
            ("php", "lighttpd"),
            lambda: (sys.executable, APPS / "php" / "serve.py"),
            packages="php-fpm, php-cli, php-curl, lighttpd",
        ),
    )
}
MEASURED = [name for name, stack in STACKS.items() if stack.measured]
