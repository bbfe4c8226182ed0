"""The local trial in ``envoyfilter/local``, run by docker compose."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mesh.backends import JaegerApi
from mesh.collector import Span
from mesh.mesh import EXPECTED_TREE, Reply, request
from mesh.tree import Node, normal_forms


class Local:
    """Leaving it takes the containers down; after an error it shows their logs."""

    def __init__(self, root: Path, gateway_port: int = 8080, jaeger_port: int = 16686) -> None:
        self.root = root
        self.directory = root / "envoyfilter" / "local"
        self.gateway_port = gateway_port
        self.jaeger = JaegerApi(jaeger_port)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        type_: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.compose("down", "--timeout", "2")

    def compose(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["docker", "compose", "--ansi", "never", *arguments],
            cwd=self.directory,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=150,
        )

    def shell(self, command: str) -> str:
        """A command of the docs, as a user types it; what it prints."""
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=self.root,
            capture_output=True,
            text=True,
            timeout=150,
        )
        if done.returncode != 0:
            print(self.compose("logs", "--tail", "20").stdout, file=sys.stderr)
            raise AssertionError(f"{command}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def click(self, query: str = "", accept: str = "*/*") -> Reply:
        return request(self.gateway_port, f"/productpage{query}", headers={"Accept": accept})

    def traces(self, answer: dict[str, Any]) -> list[list[Span]]:
        """The traces that a click was in, as Jaeger has them.

        The answer to a click names the traces; a click has five spans in all.
        """
        named = {part["trace"] for part in parts(answer)}
        deadline = time.monotonic() + 15
        found: list[list[Span]] = []
        while time.monotonic() < deadline and sum(map(len, found)) < EXPECTED_TREE.size:
            found = [self.jaeger.trace(trace) for trace in named]
            time.sleep(0.2)
        return found


def trees(traces: list[list[Span]]) -> tuple[Node, ...]:
    return tuple(sorted(tree for trace in traces for tree in normal_forms(trace)))


def parts(answer: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What each service answered."""
    yield answer
    for call in answer["calls"]:
        yield from parts(call)


def answer_of(text: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(text)
    return answer


def commands(page: Path) -> list[str]:
    """The commands on a page of the docs."""
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in re.sub(r"\\\n\s*", "", block).splitlines()]
    stripped = [re.sub(r"(^|\s)#.*", "", line).rstrip() for line in lines]
    return [line for line in stripped if line]
