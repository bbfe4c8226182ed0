"""``make demo``: what b3relay does, shown on a small mesh on this machine.

Exit code 0 only if, with the filter, every click is one whole trace with the
same tree as when the apps forward all seven tracing headers themselves.
"""

import re
import subprocess
import sys
import time
from dataclasses import dataclass

from mesh import envoy
from mesh.collector import Span
from mesh.mesh import EXPECTED_TREE, Mesh, wasm_path
from mesh.procs import MeshError
from mesh.tree import Node, Score, click_of, normal_forms, render, score, traces

CLICKS = 10


@dataclass(frozen=True)
class Result:
    """One run: what the clicks became, and the trees of the first of them."""

    label: str
    score: Score
    first_click: tuple[Node, ...]


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
    say(f"    click {first} is in {len(found)} trace{'s' if len(found) != 1 else ''}:")
    say()
    for trace in found:
        say(f"      trace {trace[0]['traceId']}")
        for line in render(trace).splitlines():
            say(f"        {line}")
    say()
    return Result(
        label,
        score(spans, EXPECTED_TREE, [click.number for click in clicks]),
        tuple(tree for trace in found for tree in normal_forms(trace)),
    )


def table(results: list[Result]) -> None:
    width = max(len(result.label) for result in results)
    heads = ("clicks", "traces", "whole", "in a wrong trace")
    say(bold("    " + " " * width + "".join(f"  {head}" for head in heads)))
    for result in results:
        numbers = (
            result.score.clicks,
            result.score.traces,
            result.score.whole,
            result.score.wrong_trace,
        )
        cells = "".join(
            f"  {number:>{len(head)}}" for number, head in zip(numbers, heads, strict=True)
        )
        say(f"    {result.label:<{width}}{cells}")
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
    say("    Three runs, some 20 seconds in all. Ctrl-C stops everything.")
    say()

    reference = run(
        "1/3  For reference: no filter, but apps that forward all seven tracing headers",
        "apps forward seven headers, no filter",
        forward="all7",
        filter=False,
    )
    without = run(
        "2/3  Apps that forward only x-request-id, no filter",
        "apps forward x-request-id, no filter",
        forward="request-id",
        filter=False,
    )
    with_filter = run(
        "3/3  The same apps, with b3relay in the sidecars",
        "apps forward x-request-id, b3relay",
        forward="request-id",
        filter=True,
    )

    table([reference, without, with_filter])
    equal = with_filter.first_click == reference.first_click == (EXPECTED_TREE,)
    whole = with_filter.score.whole == reference.score.whole == CLICKS
    say(
        "    The tree of the first click with b3relay "
        + ("is the same as" if equal else "DIFFERS from")
        + " that of the reference."
    )
    if with_filter.score.broken_clicks:
        say(f"    Not whole with b3relay: clicks {with_filter.score.broken_clicks}")
    good = equal and whole and with_filter.score.wrong_trace == 0
    say(bold("    OK: every click is one whole trace." if good else "    FAILED"))
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
