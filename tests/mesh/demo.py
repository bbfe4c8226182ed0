"""``make demo``: what b3relay does, shown on a small mesh on this machine.

Exit code 0 only if, with the filter, every click is one whole trace: where the apps
forward a request ID, and where they forward nothing, one click after the other. With
client spans the tree has to be that of apps that forward all seven tracing headers, in
a mesh with Envoy's own client spans; without them, the same less the client spans; and
of a callee that is down, the failed call has to be in it. How many are whole of several
clicks at once is shown, but does not decide: it is not promised.
"""

import json
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

from mesh import clicks as answers
from mesh import envoy
from mesh.collector import Span
from mesh.mesh import EXPECTED_TREE, Mesh, expected_tree, wasm_path
from mesh.procs import MeshError
from mesh.tree import Node, click_of, normal_forms, render, score, traces

CLICKS = 10
ATTRIBUTION = {"attribution": "inferred"}
SPANS = {"spans": {"cluster": "collector", "format": "zipkin"}}
WITH_CLIENT_SPANS = expected_tree(client_spans=True)
# Several at once: users, clicks of all of them, seconds between a user's.
AT_ONCE = (8, 80, (0.2, 0.0))


@dataclass(frozen=True)
class Outcome:
    """What a number of clicks became."""

    label: str
    clicks: int
    traces: int
    whole: int
    wrong: int


@dataclass(frozen=True)
class Result:
    """One run: what the clicks became, and the trees of the first of them."""

    outcome: Outcome
    first_click: tuple[Node, ...]
    # What it should be.
    tree: Node = EXPECTED_TREE

    @property
    def good(self) -> bool:
        """Every click is one whole trace with the tree that it should have."""
        whole = self.outcome.whole == self.outcome.clicks and self.outcome.wrong == 0
        return whole and self.first_click == (self.tree,)


def bold(text: str) -> str:
    return f"\033[1m{text}\033[0m" if sys.stdout.isatty() else text


def say(text: str = "") -> None:
    print(text, flush=True)


def traces_of(click: int, spans: list[Span]) -> list[list[Span]]:
    """The traces in which that click has a span."""
    return [
        trace for trace in traces(spans).values() if any(click_of(span) == click for span in trace)
    ]


def run(
    title: str, label: str, tree: Node = EXPECTED_TREE, filter: bool = False, **options: Any
) -> Result:
    """One mesh, some clicks, and what they look like in the collector."""
    say(bold(title))
    began = time.monotonic()
    with Mesh(filter=filter, **options) as mesh:
        say(f"    mesh is up after {time.monotonic() - began:.1f} s; sending {CLICKS} clicks ...")
        clicks = mesh.clicks(CLICKS)
        failed = [click for click in clicks if click.status != 200]
        if failed:
            raise MeshError(f"{len(failed)} of {CLICKS} clicks failed: {failed}")
        spans = mesh.wait_spans(CLICKS * tree.size)
    first = clicks[0].number
    found = traces_of(first, spans)
    show(f"click {first}", found)
    became = score(spans, tree, [click.number for click in clicks])
    if filter and became.broken_clicks:
        say(f"    Not whole with b3relay: clicks {became.broken_clicks}")
    return Result(
        Outcome(label, became.clicks, became.traces, became.whole, became.wrong_trace),
        trees_of(found),
        tree,
    )


def run_with_spans(title: str, label: str) -> tuple[Result, tuple[Node, ...]]:
    """The client spans that b3relay reports; and then a callee is down."""
    say(bold(title))
    began = time.monotonic()
    with Mesh(forward="request-id", outbound_config=json.dumps(SPANS)) as mesh:
        say(f"    mesh is up after {time.monotonic() - began:.1f} s; sending {CLICKS} clicks ...")
        clicks = mesh.clicks(CLICKS)
        spans = mesh.wait_spans(CLICKS * WITH_CLIENT_SPANS.size)
        found = traces_of(clicks[0].number, spans)
        show(f"click {clicks[0].number}", found)
        became = score(spans, WITH_CLIENT_SPANS, [click.number for click in clicks])
        outcome = Outcome(label, became.clicks, became.traces, became.whole, became.wrong_trace)
        whole = Result(outcome, trees_of(found), WITH_CLIENT_SPANS)
        say(bold("5/6  The same, and ratings is down"))
        mesh.envoys["ratings"].stop()
        number = mesh.new_click()
        status = mesh.click(number).status
        if status == 200:
            raise MeshError("a click came through without ratings")
        say(f"    ratings is stopped; click {number} is answered with {status} ...")
        expected = WITH_CLIENT_SPANS.size - 1
        spans = mesh.wait_spans(CLICKS * WITH_CLIENT_SPANS.size + expected)
        found = traces_of(number, spans)
        show(f"click {number}", found)
    return whole, trees_of(found)


def run_without_keys(title: str, label: str) -> tuple[Result, list[Outcome]]:
    """Clicks on apps that forward nothing, one after the other and then several at once.

    Here no path has the number of its click: it would tell the filter which call is of
    which request. The answers of the apps tell who has called whom.
    """
    say(bold(title))
    began = time.monotonic()
    with Mesh(forward="none", filter=True, config=json.dumps(ATTRIBUTION)) as mesh:
        say(f"    mesh is up after {time.monotonic() - began:.1f} s; sending {CLICKS} clicks ...")
        visits = answers.click(mesh, CLICKS, 1)
        spans = mesh.wait_spans(CLICKS * EXPECTED_TREE.size)
        first = {visit.trace for visit in visits[0].all()}
        found = [trace for number, trace in traces(spans).items() if number in first]
        show("click 1", found)
        result = Result(outcome(f"{label}, one after the other", visits), trees_of(found))
        users, clicks, pauses = AT_ONCE
        at_once = []
        for pause in pauses:
            how = f"pausing {pause} s" if pause else "without a pause"
            say(f"    sending {clicks} clicks of {users} users, {how} ...")
            visits = answers.click(mesh, clicks, users, pause)
            at_once.append(outcome(f"{label}, {users} users {how}", visits))
        say()
    return result, at_once


def outcome(label: str, visits: list[answers.Visit]) -> Outcome:
    became = answers.judge(visits)
    found = {visit.trace for click in visits for visit in click.all()}
    return Outcome(label, became.clicks, len(found), became.whole, became.wrong)


def show(click: str, found: list[list[Span]]) -> None:
    say(f"    {click} is in {len(found)} trace{'s' if len(found) != 1 else ''}:")
    say()
    for trace in found:
        say(f"      trace {trace[0]['traceId']}")
        for line in render(trace).splitlines():
            say(f"        {line}")
    say()


def trees_of(found: list[list[Span]]) -> tuple[Node, ...]:
    return tuple(tree for trace in found for tree in normal_forms(trace))


def table(outcomes: list[Outcome]) -> None:
    width = max(len(row.label) for row in outcomes)
    heads = ("clicks", "traces", "whole", "in a wrong trace")
    say(bold("    " + " " * width + "".join(f"  {head}" for head in heads)))
    for row in outcomes:
        numbers = (row.clicks, row.traces, row.whole, row.wrong)
        cells = "".join(
            f"  {number:>{len(head)}}" for number, head in zip(numbers, heads, strict=True)
        )
        say(f"    {row.label:<{width}}{cells}")
    say()


def demo() -> bool:
    wasm = wasm_path()
    told = subprocess.run([envoy.binary(), "--version"], capture_output=True, text=True)
    version = re.search(r"version: \w+/([\d.]+)", told.stdout)
    number = version[1] if version else "of unknown version"
    say(bold("b3relay demo"))
    say(f"    A mesh on loopback: a gateway and four services, each with an Envoy {number}.")
    say("    gateway -> productpage -> details, and productpage -> reviews -> ratings")
    say("    The sidecars report the spans, the apps report none.")
    say(f"    Filter: {wasm} ({wasm.stat().st_size // 1024} KiB)")
    say("    Six runs, three quarters of a minute in all. Ctrl-C stops everything.")
    say()

    instrumented = run(
        "1/6  Instrumented: apps that forward all seven tracing headers, Envoy's client spans,"
        " no filter",
        "apps forward seven headers, no filter",
        WITH_CLIENT_SPANS,
        forward="all7",
        client_spans=True,
    )
    without = run(
        "2/6  Broken: apps that forward only x-request-id, no filter",
        "apps forward x-request-id, no filter",
        forward="request-id",
    )
    with_filter = run(
        "3/6  Whole: the same apps, with b3relay in the sidecars",
        "apps forward x-request-id, b3relay",
        forward="request-id",
        filter=True,
    )
    with_spans, down = run_with_spans(
        f"4/6  Whole, with the spans of the callers: b3relay and {json.dumps(SPANS)}",
        "apps forward x-request-id, b3relay with spans",
    )
    nothing, at_once = run_without_keys(
        f"6/6  Apps that forward nothing at all, with b3relay and {json.dumps(ATTRIBUTION)}",
        "apps forward nothing, attribution",
    )

    runs = (instrumented, without, with_filter, with_spans, nothing)
    table([one.outcome for one in runs] + at_once)
    equal = with_spans.first_click == instrumented.first_click
    say(
        "    The tree of the first click with b3relay's client spans "
        + ("is the same as" if equal else "DIFFERS from")
        + " that of instrumented apps."
    )
    failed_call = down == (expected_tree(ratings_down=True, client_spans=True),)
    say(
        "    The call of the callee that is down "
        + ("is in its trace." if failed_call else "is MISSING in its trace.")
    )
    good = failed_call and all(one.good for one in runs if one is not without)
    say(
        bold("    OK: every click is one whole trace, where nothing is forwarded one at a time.")
        if good
        else bold("    FAILED")
    )
    say()
    say("    To look at such traces in a browser: make demo-ui")
    return good


def main() -> int:
    try:
        return 0 if demo() else 1
    except MeshError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
