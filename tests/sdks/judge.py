"""What became of some clicks: how many traces, and which calls hang below their caller.

The truth is the call graph, and the number of the click in each URL. A call is in its
place if one gets from the callee's server span, parent by parent, through spans that
were reported, to the caller's; both spans are those of the sidecars.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from mesh.apps import CALLS
from mesh.collector import Span
from mesh.tree import click_of, path_of, render, traces

# Service, kind, path.
End = tuple[str, str, str]
Edge = tuple[End, End]

# Caller and callee of each call of a click.
LINKS = (
    ("gateway", "productpage"),
    *((caller, callee) for caller, callees in CALLS.items() for callee in callees),
)


@dataclass
class Judged:
    """Of some clicks."""

    clicks: int
    # The traces of sidecars and applications, all clicks taken together.
    traces: int = 0
    # Of the calls that should be there.
    placed: Counter[tuple[str, str]] = field(default_factory=Counter)
    # One trace for all sidecars, each call in its place.
    whole: int = 0
    # From parent to child, by span IDs.
    edges: Counter[Edge] = field(default_factory=Counter)
    # The same, and from what is above the parent: nothing between them counts.
    chains: Counter[Edge] = field(default_factory=Counter)
    # Edges from one click to another.
    crossed: int = 0
    sidecar_spans: int = 0
    app_spans: int = 0
    # The first click, drawn.
    picture: str = ""

    @property
    def in_place(self) -> int:
        """Calls, as many of each click as of the click that has the least."""
        return sum(self.placed.values())


def service_of(span: Span) -> str:
    name: str = span.get("localEndpoint", {}).get("serviceName", "")
    return name


def _end(span: Span) -> End:
    return service_of(span), span.get("kind", ""), path_of(span)


def by_click(spans: Iterable[Span]) -> dict[int, list[Span]]:
    """The spans of each click; one whose URL does not say is of the click of its trace."""
    found: dict[int, list[Span]] = defaultdict(list)
    for trace in traces(spans).values():
        clicks = [click for span in trace if (click := click_of(span)) is not None]
        for span in trace:
            click = click_of(span)
            if click is None and clicks:
                click = clicks[0]
            if click is not None:
                found[click].append(span)
    return found


def judge(spans: Collection[Span], clicks: Collection[int]) -> Judged:
    """These clicks alone; the spans may be of more."""
    judged = Judged(len(clicks))
    known = {(span["traceId"], span["id"]): span for span in spans}
    of_click = by_click(spans)
    click_by_id = {
        (span["traceId"], span["id"]): click for click, found in of_click.items() for span in found
    }
    sidecars = {name for link in LINKS for name in link}
    for number, click in enumerate(clicks):
        found = of_click.get(click, [])
        servers = {
            service_of(span): span
            for span in found
            if service_of(span) in sidecars
            and span.get("kind") == ("CLIENT" if service_of(span) == "gateway" else "SERVER")
        }
        judged.traces += len({span["traceId"] for span in found})
        ours = [span for span in found if service_of(span) in sidecars]
        judged.sidecar_spans += len(ours)
        judged.app_spans += len(found) - len(ours)

        placed = [link for link in LINKS if _in_place(*link, servers, known, sidecars)]
        judged.placed.update(placed)
        one_trace = len({span["traceId"] for span in ours}) == 1
        judged.whole += len(placed) == len(LINKS) and one_trace

        for span in found:
            parent = known.get((span["traceId"], span.get("parentId", "")))
            if parent is None:
                continue
            if click_by_id.get((parent["traceId"], parent["id"])) != click:
                judged.crossed += 1
            judged.edges[_end(parent), _end(span)] += 1
            for above in _above(span, known):
                judged.chains[_end(above), _end(span)] += 1
        if number == 0:
            judged.picture = "\n".join(
                render(trace, durations=False) for trace in traces(found).values()
            )
    return judged


def _in_place(
    caller: str,
    callee: str,
    servers: dict[str, Span],
    known: dict[tuple[str, str], Span],
    sidecars: Collection[str],
) -> bool:
    if caller not in servers or callee not in servers:
        return False
    above = (one for one in _above(servers[callee], known) if service_of(one) in sidecars)
    return next(above, None) is servers[caller]


def _above(span: Span, known: dict[tuple[str, str], Span]) -> Iterable[Span]:
    """Its parent, and that one's, as far as they were reported."""
    seen = {span["id"]}
    while (parent := known.get((span["traceId"], span.get("parentId", "")))) is not None:
        if parent["id"] in seen:
            return
        seen.add(parent["id"])
        yield parent
        span = parent
