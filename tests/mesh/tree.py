"""From spans to traces to trees, and how many clicks became one whole trace.

The truth about a click comes from the URL: each click has a number
(``?click=17``) that the apps pass on in the URL of every call they make, and
Envoy puts the URL into each span. Headers and trace IDs play no part in it.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import zip_longest
from urllib.parse import parse_qs, urlsplit

from mesh.collector import Span


def path_of(span: Span) -> str:
    """The path of the request, or the span's name if it has no URL."""
    url: str = span.get("tags", {}).get("http.url", "")
    name: str = span.get("name", "")
    return urlsplit(url).path or name


def click_of(span: Span) -> int | None:
    """The number of the click that caused the request."""
    query = urlsplit(span.get("tags", {}).get("http.url", "")).query
    values = parse_qs(query).get("click")
    return int(values[0]) if values else None


@dataclass(frozen=True, order=True)
class Node:
    """A tree without IDs and times, to compare; the children are sorted."""

    service: str
    kind: str
    path: str
    children: tuple["Node", ...] = ()
    # The span names a parent, but no such span was received.
    broken: bool = False

    @property
    def size(self) -> int:
        return 1 + sum(child.size for child in self.children)


@dataclass(eq=False)
class Branch:
    """A span with the spans below it, in the order in which they began."""

    span: Span
    children: list["Branch"]
    broken: bool = False

    def normal(self) -> Node:
        return Node(
            service=self.span.get("localEndpoint", {}).get("serviceName", ""),
            kind=self.span.get("kind", ""),
            path=path_of(self.span),
            children=tuple(sorted(child.normal() for child in self.children)),
            broken=self.broken,
        )


def traces(spans: Iterable[Span]) -> dict[str, list[Span]]:
    """The spans by trace ID; the trace that began first comes first."""
    by_id: dict[str, list[Span]] = defaultdict(list)
    for span in sorted(spans, key=lambda span: span.get("timestamp", 0)):
        by_id[span["traceId"]].append(span)
    return dict(by_id)


def branches(trace: Iterable[Span]) -> list[Branch]:
    """The trees of one trace: one if the trace is whole."""
    below: dict[str | None, list[Branch]] = defaultdict(list)
    owners: dict[str, Branch] = {}
    shared: list[Branch] = []
    everything: list[Branch] = []
    # A shared span after the one that it shares its ID with; else by time.
    for span in sorted(trace, key=lambda s: (s.get("shared", False), s.get("timestamp", 0))):
        branch = Branch(span, [])
        everything.append(branch)
        if span.get("shared") and span["id"] in owners:
            shared.append(branch)
        else:
            owners.setdefault(span["id"], branch)
            below[span.get("parentId")].append(branch)
    # A server span that shares its ID with the client's span hangs below it,
    # and what the server called hangs below the server's.
    hangs_on = dict(owners)
    for branch in shared:
        owners[branch.span["id"]].children.append(branch)
        hangs_on[branch.span["id"]] = branch
    for parent_id, found in below.items():
        if parent_id in hangs_on:
            hangs_on[parent_id].children.extend(found)

    trees = below[None]
    for parent_id, found in below.items():
        if parent_id is not None and parent_id not in owners:
            for branch in found:
                branch.broken = True
                trees.append(branch)
    reached = {id(branch) for tree in trees for branch in _walk(tree)}
    for branch in everything:
        if id(branch) not in reached:  # a circle of parents: cut it open here
            for other in everything:
                other.children = [child for child in other.children if child is not branch]
            branch.broken = True
            trees.append(branch)
            reached |= {id(below_it) for below_it in _walk(branch)}
    return trees


def _walk(branch: Branch) -> Iterable[Branch]:
    yield branch
    for child in branch.children:
        yield from _walk(child)


def normal_forms(trace: Iterable[Span]) -> tuple[Node, ...]:
    """The trees of one trace in their normal form, sorted."""
    return tuple(sorted(branch.normal() for branch in branches(trace)))


def render(trace: Iterable[Span], durations: bool = True) -> str:
    """The trees of one trace, drawn."""
    lines: list[str] = []

    def draw(branch: Branch, first: str, rest: str) -> None:
        node = branch.normal()
        took = f"  {branch.span.get('duration', 0) / 1000:.1f} ms" if durations else ""
        note = "  (its parent was never received)" if branch.broken else ""
        tags = branch.span.get("tags", {})
        if "error" in tags:
            what = (tags.get("http.status_code", ""), tags.get("response_flags", "").strip("-"))
            note += f"  error {' '.join(filter(None, what))}".rstrip()
        lines.append(f"{first}{node.service} {node.kind} {node.path}{took}{note}")
        for index, child in enumerate(branch.children):
            last = index == len(branch.children) - 1
            draw(
                child,
                rest + ("└── " if last else "├── "),
                rest + ("    " if last else "│   "),
            )

    for tree in branches(trace):
        draw(tree, "", "")
    return "\n".join(lines)


@dataclass(frozen=True)
class Score:
    """What became of the clicks."""

    clicks: int
    traces: int
    spans: int
    # One trace, with nothing else in it, and with the expected tree.
    whole: int
    # All other clicks.
    broken: int
    # Clicks with a span in the trace of another click.
    wrong_trace: int
    spans_missing: int
    broken_clicks: tuple[int, ...]


def score(
    spans: Iterable[Span], expected_tree: Node, clicks: Collection[int] | None = None
) -> Score:
    """Judge the spans; ``clicks`` names the clicks sent, for those that left no span at all."""
    by_trace = traces(spans)
    traces_of: dict[int, set[str]] = {click: set() for click in clicks or ()}
    spans_of: dict[int, int] = dict.fromkeys(traces_of, 0)
    clicks_in: dict[str, set[int]] = {}
    owner: dict[str, int] = {}
    for trace_id, trace in by_trace.items():
        numbered = [(span, click) for span in trace if (click := click_of(span)) is not None]
        clicks_in[trace_id] = {click for _, click in numbered}
        for span, click in numbered:
            traces_of.setdefault(click, set()).add(trace_id)
            spans_of[click] = spans_of.get(click, 0) + 1
            # The span without a parent began the trace, so it says whose trace
            # it is; failing that, the earliest span does.
            if trace_id not in owner or "parentId" not in span:
                owner[trace_id] = click

    def is_whole(click: int) -> bool:
        if len(traces_of[click]) != 1:
            return False
        (trace_id,) = traces_of[click]
        return clicks_in[trace_id] == {click} and normal_forms(by_trace[trace_id]) == (
            expected_tree,
        )

    broken = tuple(sorted(click for click in traces_of if not is_whole(click)))
    wrong = [click for click, ids in traces_of.items() if any(owner[i] != click for i in ids)]
    return Score(
        clicks=len(traces_of),
        traces=sum(bool(found) for found in clicks_in.values()),
        spans=sum(spans_of.values()),
        whole=len(traces_of) - len(broken),
        broken=len(broken),
        wrong_trace=len(wrong),
        spans_missing=sum(max(0, expected_tree.size - count) for count in spans_of.values()),
        broken_clicks=broken,
    )


def beside(left: str, right: str) -> str:
    """Two texts side by side."""
    pairs = list(zip_longest(left.splitlines(), right.splitlines(), fillvalue=""))
    width = max(len(line) for line, _ in pairs) + 3
    return "\n".join(f"{one:{width}}{other}".rstrip() for one, other in pairs)
