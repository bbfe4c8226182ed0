"""The trees in the Jaeger of the cluster, and those that the documentation shows."""

import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from mesh.backends import JaegerApi
from mesh.collector import Span
from mesh.pages import blocks
from mesh.tree import Node, normal_forms
from mesh.tree import traces as by_trace

# Jaeger's port of the addon, and of `istioctl dashboard jaeger`.
PORT = 16686
BASE = "/jaeger"
_SPAN = re.compile(
    r"(?P<branch>[ │├└─]*)(?P<service>\S+) (?P<kind>SERVER|CLIENT)(?: (?P<path>/\S*))?$"
)


@dataclass(frozen=True, order=True)
class Tree:
    """As a page shows it: service, kind, and the path if it is shown."""

    service: str
    kind: str
    path: str
    children: tuple["Tree", ...] = ()

    def walk(self) -> Iterator["Tree"]:
        """Itself and all below."""
        yield self
        for child in self.children:
            yield from child.walk()


def of_node(node: Node, paths: bool) -> Tree:
    assert not node.broken, f"a span whose parent is missing: {node}"
    children = tuple(sorted(of_node(child, paths) for child in node.children))
    return Tree(node.service, node.kind, node.path if paths else "", children)


def shown(page: str, number: int) -> list[Tree]:
    """The trees in a block of ``text`` of the page; they may stand side by side."""
    lines = [line for line in blocks(page, "text")[number].splitlines() if line.strip()]
    starts = [match.start() for match in re.finditer(r"\S+(?: \S+)*", lines[0])]
    ends: list[int | None] = [*starts[1:], None]
    columns = [[line[start:end] for line in lines] for start, end in zip(starts, ends, strict=True)]
    return sorted(_parse([line.rstrip() for line in column if line.strip()]) for column in columns)


def _parse(lines: list[str]) -> Tree:
    found = _SPAN.match(lines[0])
    assert found is not None, lines[0]
    depth = len(found["branch"])
    children: list[list[str]] = []
    for line in lines[1:]:
        inner = _SPAN.match(line)
        assert inner is not None, line
        if len(inner["branch"]) == depth + 4:
            children.append([])
        children[-1].append(line)
    below = tuple(sorted(_parse(child) for child in children))
    return Tree(found["service"], found["kind"], found["path"] or "", below)


class Jaeger:
    def __init__(self) -> None:
        self._api = JaegerApi(PORT, BASE)

    def since(self, began: float, services: Iterable[str]) -> list[list[Span]]:
        """The traces with any of the services that began after that time, in s since 1970."""
        found: dict[str, list[Span]] = {}
        for service in services:
            for trace in self._api.traces(service):
                if trace and min(span["timestamp"] for span in trace) >= began * 1e6:
                    found[trace[0]["traceId"]] = trace
        return list(found.values())

    def spans(
        self,
        click: Callable[[], object],
        services: Iterable[str],
        count: int,
        quiet: float = 0,
        patience: float = 25,
    ) -> list[Span]:
        """Those of a click, when that many have arrived, and none for ``quiet`` s. Those
        that there are after ``patience`` s: where a click is tried again, a few."""
        began = time.time()
        click()
        deadline = time.monotonic() + patience
        found: list[Span] = []
        changed = time.monotonic()
        while True:
            now = [span for trace in self.since(began, services) for span in trace]
            if len(now) != len(found):
                found, changed = now, time.monotonic()
            done = len(found) >= count and time.monotonic() >= changed + quiet
            if done or time.monotonic() > deadline:
                return found
            time.sleep(0.3)

    def trees(
        self,
        click: Callable[[], object],
        services: Iterable[str],
        count: int,
        paths: bool = True,
        quiet: float = 0,
        patience: float = 25,
    ) -> list[Tree]:
        """The same as trees."""
        spans = self.spans(click, services, count, quiet, patience)
        nodes = [node for trace in by_trace(spans).values() for node in normal_forms(trace)]
        return sorted(of_node(node, paths) for node in nodes)
