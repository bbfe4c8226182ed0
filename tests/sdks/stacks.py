"""The applications: one service in three stacks, each with OpenTelemetry's own SDK.

No line of theirs is about tracing. The SDK is put before them as people do it:
`opentelemetry-instrument` for Python, a required file for Node, the agent for Java.
What they need is kept in the directory ``B3RELAY_TOOLS``; ``python -m sdks.stacks`` gets it.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mesh.backends import check_java
from mesh.golang import TOOLS
from mesh.ports import HOST
from mesh.procs import MeshError

HERE = Path(__file__).resolve().parent
APPS = HERE / "apps"
KEPT = TOOLS / "sdks"
AGENT_VERSION = "2.33.1"
AGENT = KEPT / "java" / f"opentelemetry-javaagent-{AGENT_VERSION}.jar"

# Without an SDK; with one that reports its spans; with one that nobody listens to, such
# as one that was never told where to report.
Sdk = Literal["none", "reports", "silent"]


@dataclass(frozen=True)
class Stack:
    """A way to run the service."""

    name: str
    # In the table: what serves and calls, and what traces that.
    what: str
    needs: Sequence[str]
    fetch: Callable[[], None]
    # Without an SDK, and with one.
    plain: Sequence[str | Path]
    traced: Sequence[str | Path]

    def command(self, sdk: Sdk) -> Sequence[str | Path]:
        return self.plain if sdk == "none" else self.traced


def environment(service: str, sdk: Sdk, collector_port: int) -> Mapping[str, str]:
    """For the SDK, if there is one. Port 9 is nobody's."""
    port = collector_port if sdk == "reports" else 9
    return {
        "NODE_PATH": str(KEPT / "node" / "node_modules"),
        "OTEL_SERVICE_NAME": f"{service}-app",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{HOST}:{port}",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "none",
        "OTEL_BSP_SCHEDULE_DELAY": "200",
    }


def _run(*command: str | Path, cwd: Path | None = None) -> None:
    subprocess.run(command, check=True, cwd=cwd)


def _fetch_python() -> None:
    venv = KEPT / "python"
    done = venv / ".done"
    wanted = (HERE / "requirements.txt").read_text()
    if not done.is_file() or done.read_text() != wanted:
        print("    OpenTelemetry for Python, with pip ...", flush=True)
        _run(sys.executable, "-m", "venv", venv)
        pip = (venv / "bin" / "python", "-m", "pip", "--disable-pip-version-check")
        _run(*pip, "install", "--quiet", "-r", HERE / "requirements.txt")
        done.write_text(wanted)


def _fetch_node() -> None:
    kept = KEPT / "node"
    done = kept / ".done"
    wanted = (APPS / "node" / "package-lock.json").read_text()
    if not done.is_file() or done.read_text() != wanted:
        print("    OpenTelemetry for Node, with npm ...", flush=True)
        kept.mkdir(parents=True, exist_ok=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(APPS / "node" / name, kept)
        _run("npm", "ci", "--silent", "--no-audit", "--no-fund", cwd=kept)
        done.write_text(wanted)


def _fetch_java() -> None:
    check_java()
    if not AGENT.is_file():
        print(f"    OpenTelemetry's agent for Java {AGENT_VERSION} (26 MB), with mvn ...", flush=True)
        _run(
            "mvn",
            "-B",
            "-q",
            "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy",
            f"-Dartifact=io.opentelemetry.javaagent:opentelemetry-javaagent:{AGENT_VERSION}",
            f"-DoutputDirectory={AGENT.parent}",
        )
    _run("javac", "-d", KEPT / "java" / "classes", APPS / "java" / "App.java")


def _locked(requirement: str) -> str:
    """The version of a package of the Python service."""
    for line in (HERE / "requirements.txt").read_text().splitlines():
        name, _, version = line.partition("==")
        if name == requirement:
            return version
    raise KeyError(requirement)


def _node_version(package: str) -> str:
    versions: dict[str, str] = json.loads((APPS / "node" / "package.json").read_text())["dependencies"]
    return versions[package]


_PYTHON = KEPT / "python" / "bin"
# Without nodelay this server waits up to 40 ms with the end of an answer; the Host header
# is one of those that the client sets itself, unless it is told.
_JAVA_OPTIONS = (
    "-Xmx128m",
    "-XX:TieredStopAtLevel=1",
    "-Dsun.net.httpserver.nodelay=true",
    "-Djdk.httpclient.allowRestrictedHeaders=host",
    "-cp",
    KEPT / "java" / "classes",
    "App",
)

STACKS = {
    stack.name: stack
    for stack in (
        Stack(
            "python",
            f"Flask {_locked('Flask')} and requests {_locked('requests')}; "
            f"opentelemetry-distro {_locked('opentelemetry-distro')} "
            f"(SDK {_locked('opentelemetry-sdk')})",
            (),
            _fetch_python,
            (_PYTHON / "python", APPS / "python" / "app.py"),
            (
                _PYTHON / "opentelemetry-instrument",
                _PYTHON / "python",
                APPS / "python" / "app.py",
            ),
        ),
        Stack(
            "node",
            f"node:http; @opentelemetry/sdk-node {_node_version('@opentelemetry/sdk-node')} with "
            f"instrumentation-http {_node_version('@opentelemetry/instrumentation-http')}",
            ("node", "npm"),
            _fetch_node,
            ("node", APPS / "node" / "app.js"),
            ("node", "--require", APPS / "node" / "sdk.js", APPS / "node" / "app.js"),
        ),
        Stack(
            "java",
            "com.sun.net.httpserver and java.net.http; "
            f"opentelemetry-javaagent {AGENT_VERSION}",
            ("java", "javac", "mvn"),
            _fetch_java,
            ("java", *_JAVA_OPTIONS),
            ("java", f"-javaagent:{AGENT}", *_JAVA_OPTIONS),
        ),
    )
}


def fetch(names: Sequence[str]) -> None:
    """Get what these stacks need, where it is not there yet."""
    for name in names:
        stack = STACKS[name]
        if missing := [program for program in stack.needs if shutil.which(program) is None]:
            raise MeshError(f"{', '.join(missing)} not found, which the stack {name} needs")
        stack.fetch()


if __name__ == "__main__":
    fetch(sys.argv[1:] or list(STACKS))
