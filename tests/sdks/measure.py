"""Each cell, measured once: without b3relay, and with a configuration of it."""

from contextlib import ExitStack
from typing import Self

from mesh.procs import Stacked
from sdks.cells import Cell
from sdks.judge import LINKS, Edge, Judged
from sdks.stacks import Sdk
from sdks.world import SDK_SPANS, SIDECAR_SPANS, Seen, World

CLICKS = 10


class Measured(Stacked):
    """Runs what is asked for, and keeps what it saw."""

    def __init__(self, clicks: int = CLICKS) -> None:
        self._world = World()
        self._clicks = clicks
        self._seen: dict[tuple[str, str, Sdk, str | None], dict[str, Seen]] = {}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self._world)
            self._stack = stack.pop_all()
        return self

    def seen(self, cell: Cell, config: str | None) -> Seen:
        """``config``: None for the sidecars without b3relay."""
        key = (cell.stack, cell.mesh, cell.sdk, config)
        if key not in self._seen:
            self._seen[key] = self._world.run(*key, self._clicks)
        return self._seen[key][cell.forward]


def spans_missing(cell: Cell, judged: Judged) -> tuple[int, int]:
    """Of the sidecars, and of the SDKs: how many have not come."""
    sdk = SDK_SPANS if cell.sdk == "reports" else 0
    clicks = judged.clicks
    return clicks * SIDECAR_SPANS - judged.sidecar_spans, clicks * sdk - judged.app_spans


def own(edge: Edge) -> bool:
    """Whether one end is a span of the application's own."""
    return any(service.endswith("-app") for service, _, _ in edge)


def row(without: Judged, with_it: Judged) -> tuple[str, ...]:
    """What the table says: traces a click, calls in their place, whole, own edges kept."""

    def each(number: float, judged: Judged) -> str:
        return f"{number / judged.clicks:g}"

    def whole(judged: Judged) -> str:
        return {0: "no", judged.clicks: "yes"}.get(judged.whole, f"{judged.whole} of {judged.clicks}")

    edges = {edge: n for edge, n in without.edges.items() if own(edge)}
    # With a sidecar's span between them or without: see test_no_edge_is_lost.
    kept = sum(min(n, with_it.chains[edge]) for edge, n in edges.items())
    return (
        f"{each(without.traces, without)} → {each(with_it.traces, with_it)}",
        f"{each(without.in_place, without)} → {each(with_it.in_place, with_it)} of {len(LINKS)}",
        f"{whole(without)} → {whole(with_it)}",
        f"{each(kept, without)} of {each(sum(edges.values()), without)}" if edges else "",
    )
