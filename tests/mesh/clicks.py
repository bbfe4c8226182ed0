"""Clicks on the mesh of the demo when its services forward nothing at all.

Which requests belong to a click, the answers tell: each service answers with the
headers that it received and with the answers that it got itself. No header, path or
query of a call says which click it is of.
"""

import asyncio
import json
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from mesh.mesh import Mesh
from mesh.procs import MeshError


@dataclass(frozen=True)
class Visit:
    """A service's part in a click: the span that it was given, and the services that it called."""

    service: str
    trace: str
    span: str
    parent: str | None
    calls: tuple["Visit", ...]

    @classmethod
    def read(cls, answer: Mapping[str, Any]) -> "Visit":
        def header(name: str) -> str | None:
            values = answer["received"].get(name, [None])
            if len(values) != 1:
                raise MeshError(f"{answer['service']} received {name} {len(values)} times")
            value: str | None = values[0]
            return value

        trace, span = header("x-b3-traceid"), header("x-b3-spanid")
        if trace is None or span is None:
            raise MeshError(f"{answer['service']} received no context")
        calls = tuple(cls.read(call["body"]) for call in answer.get("calls", ()))
        return cls(answer["service"], trace, span, header("x-b3-parentspanid"), calls)

    def all(self) -> Iterable["Visit"]:
        yield self
        for call in self.calls:
            yield from call.all()

    def links(self) -> Iterable[tuple["Visit", "Visit"]]:
        """Caller and callee of each call."""
        for call in self.calls:
            yield self, call
            yield from call.links()


@dataclass(frozen=True)
class Clicks:
    """What became of some clicks."""

    clicks: int
    # One trace, each span below that of its caller.
    whole: int
    # With a call in another click's trace, or below another span than its caller's.
    wrong: int
    calls: int
    calls_right: int
    calls_wrong: int


def judge(clicks: Iterable[Visit]) -> Clicks:
    """Compare the traces with the answers, which say who called whom."""
    clicks = list(clicks)
    whole = wrong = calls = right = crossed = 0
    if len({click.trace for click in clicks}) != len(clicks):
        raise MeshError("clicks share a trace from the start")
    for click in clicks:
        bad = good = 0
        for caller, callee in click.links():
            calls += 1
            if callee.trace == caller.trace and callee.parent == caller.span:
                good += 1
            elif callee.parent is not None:
                # A span that was given a parent, and not that one. Without a parent
                # it began a trace of its own, as every call does without the filter.
                bad += 1
        right += good
        crossed += bad
        whole += good == sum(1 for _ in click.links())
        wrong += bad > 0
    return Clicks(len(clicks), whole, wrong, calls, right, crossed)


def click(mesh: Mesh, total: int, users: int, pause_seconds: float = 0) -> list[Visit]:
    """That many clicks by that many users, who pause for so long on average between theirs."""
    return asyncio.run(_click(mesh, total, users, pause_seconds))


async def _click(mesh: Mesh, total: int, users: int, pause_seconds: float) -> list[Visit]:
    left, found = iter(range(total)), []

    async def user(session: aiohttp.ClientSession) -> None:
        for _ in left:  # one iterator for all users
            if pause_seconds:
                await asyncio.sleep(random.expovariate(1 / pause_seconds))
            async with session.get(mesh.url) as response:
                if response.status != 200:
                    raise MeshError(f"a click was answered with {response.status}")
                found.append(Visit.read(json.loads(await response.read())))

    timeout = aiohttp.ClientTimeout(total=30)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        await asyncio.gather(*(user(session) for _ in range(users)))
    return found
