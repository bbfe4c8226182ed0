"""``make demo``: what b3relay does, shown on a small mesh on this machine.

Exit code 0 only if, with the filter, every click is one whole trace with the
same tree as when the apps forward all seven tracing headers themselves: where they
forward a request ID, and where they forward nothing, one click after the other. How
many are whole of several at once is shown, but does not decide: it is not promised.
"""

import json
import re
import subprocess
import sys
import time
from dataclasses import dataclass

from mesh import clicks as answers
from mesh import envoy
from mesh.collector import Span
from mesh.mesh import EXPECTED_TREE, Mesh, wasm_path
from mesh.procs import MeshError
from mesh.tree import Node, click_of, normal_forms, render, score, traces

CLICKS = 10
ATTRIBUTION = {"attribution": "inferred"}
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

    @property
    def good(self) -> bool:
        """Every click is one whole trace with the tree that it should have."""
        whole = self.outcome.whole == self.outcome.clicks and self.outcome.wrong == 0
        return whole and self.first_click == (EXPECTED_TREE,)


def bold(text: str) -> str:
    return f"\033[1m{text}\033[0m" if sys.stdout.isatty() else text


def say(text: str = "") -> None:
    print(text, flush=True)


def traces_of(click: int, spans: list[Span]) -> list[list[Span]]:
    """The traces in which that click has a span."""
    return [
        trace for trace in traces(spans).values() if any(click_of(span) == click for span in trace)
    ]


def run(title: str, label: str, forward: str, filter: bool) -> Result:
    """One mesh, some clicks, and what they look like in the collector."""
    say(bold(title))
    began = time.monotonic()
    with Mesh(forward=forward, filter=filter) as mesh:
        say(f"    mesh is up after {time.monotonic() - began:.1f} s; sending {CLICKS} clicks ...")
        clicks = mesh.clicks(CLICKS)
        failed = [click for click in clicks if click.status != 200]
        if failed:
            raise MeshError(f"{len(failed)} of {CLICKS} clicks failed: {failed}")
        spans = mesh.wait_spans(CLICKS * EXPECTED_TREE.size)
    first = clicks[0].number
    found = traces_of(first, spans)
    show(f"click {first}", found)
    became = score(spans, EXPECTED_TREE, [click.number for click in clicks])
    if filter and became.broken_clicks:
        say(f"    Not whole with b3relay: clicks {became.broken_clicks}")
    return Result(
        Outcome(label, became.clicks, became.traces, became.whole, became.wrong_trace),
        trees_of(found),
    )


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
    say("    Every sidecar reports spans of the requests it takes in; the apps report none.")
    say(f"    Filter: {wasm} ({wasm.stat().st_size // 1024} KiB)")
    say("    Four runs, half a minute in all. Ctrl-C stops everything.")
    say()

    reference = run(
        "1/4  For reference: no filter, but apps that forward all seven tracing headers",
        "apps forward seven headers, no filter",
        forward="all7",
        filter=False,
    )
    without = run(
        "2/4  Apps that forward only x-request-id, no filter",
        "apps forward x-request-id, no filter",
        forward="request-id",
        filter=False,
    )
    with_filter = run(
        "3/4  The same apps, with b3relay in the sidecars",
        "apps forward x-request-id, b3relay",
        forward="request-id",
        filter=True,
    )

    nothing, at_once = run_without_keys(
        f"4/4  Apps that forward nothing at all, with b3relay and {json.dumps(ATTRIBUTION)}",
        "apps forward nothing, attribution",
    )

    table([run.outcome for run in (reference, without, with_filter, nothing)] + at_once)
    equal = with_filter.first_click == nothing.first_click == reference.first_click
    say(
        "    The trees of the first click with b3relay "
        + ("are the same as" if equal else "DIFFER from")
        + " that of the reference."
    )
    good = reference.good and with_filter.good and nothing.good
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
