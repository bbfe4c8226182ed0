"""Istio's own example, unmodified: one user's clicks, one after the other, by what the
services forward. docs/pictures.md shows the trees."""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from bookinfo.world import World, tree
from mesh.collector import Span
from mesh.mesh import ROOT
from mesh.tree import Branch, branches, normal_forms, render, traces

PAGE = (ROOT / "docs/pictures.md").read_text()
CLICKS = 20
B3RELAY: dict[str, Any] = {
    "config": "{}",
    "outbound_config": json.dumps({"spans": {"cluster": "collector", "format": "zipkin"}}),
}
WHOLE = tree(client_spans=True)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World() as found:
        # Liberty's first requests take seconds, and one may fail.
        found.warm_up()
        yield found


def shown(trace: list[Span]) -> None:
    """That the page shows the tree."""
    drawn = render(trace, durations=False)
    print(f"\n{drawn}")
    assert drawn in PAGE


def in_order(trace: list[Span]) -> None:
    """Each span is within its parent's time: of another click it would not be."""

    def check(branch: Branch) -> None:
        began = branch.span["timestamp"]
        ended = began + branch.span["duration"]
        for child in branch.children:
            # Clocks of two processes, in microseconds.
            assert began - 1000 <= child.span["timestamp"] <= ended + 1000
            check(child)

    for branch in branches(trace):
        check(branch)


def all_whole(spans: list[Span], clicks: int) -> None:
    found = traces(spans)
    assert Counter(map(normal_forms, found.values())) == {(WHOLE,): clicks}
    for trace in found.values():
        in_order(trace)
    shown(next(iter(found.values())))


def test_everything_forwarded_and_no_filter(world: World) -> None:
    """The reference, with Envoy's own client spans."""
    all_whole(world.clicks(CLICKS, "everything", spans=8, client_spans=True), CLICKS)


def test_a_request_id_alone_and_no_filter(world: World) -> None:
    found = list(traces(world.clicks(CLICKS, "x-request-id", spans=5)).values())
    sizes = Counter(len(trace) for trace in found)
    assert sizes == {2: CLICKS, 1: 3 * CLICKS}, "gateway and productpage; and each of the others"
    for trace in found[:4]:
        shown(trace)


def test_a_request_id_alone_and_b3relay(world: World) -> None:
    all_whole(world.clicks(CLICKS, "x-request-id", spans=8, **B3RELAY), CLICKS)


def test_nothing_and_b3relay(world: World) -> None:
    """Now and then a call is left alone, and its click in two pieces; none is in a wrong
    trace."""
    clicks = 2 * CLICKS
    found = traces(world.clicks(clicks, "nothing", spans=8, **B3RELAY))
    whole = [trace for trace in found.values() if normal_forms(trace) == (WHOLE,)]
    print(f"\n{len(whole)} of {clicks} clicks are whole")
    assert len(whole) >= 0.9 * clicks
    for trace in found.values():
        assert len(branches(trace)) == 1, "a span below none of its trace"
        in_order(trace)
    tops = [branch.span for trace in found.values() for branch in branches(trace)]
    roots = [span["localEndpoint"]["serviceName"] for span in tops]
    assert roots.count("gateway") == clicks
    assert len(roots) - clicks <= 2 * (clicks - len(whole)), "pieces of clicks that are not whole"
    shown(whole[0])
