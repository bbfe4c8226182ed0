"""What `attribution` costs an Envoy: without the filter, with each mode, and while it learns.

    PYTHONPATH=tests python -m accuracy.cost [--rounds 3] [--markdown docs/attribution.md]

Pods that differ in the filter alone serve the same load one after the other, in another order
in every round: eight requests at once, of an application in Go that forwards nothing. `inferred`
studies the first 1500 requests; after those it does not, for another 2000, and then from time
to time.
"""

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from statistics import fmean, stdev

from accuracy.pod import Pod
from accuracy.stacks import STACKS
from load.keyed import write_block
from load.program import versions
from mesh.procs import MeshError, Processes

CONFIGS: Mapping[str, Mapping[str, object] | None] = {
    "no filter": None,
    "exclusive": {"attribution": "exclusive"},
    "inferred": {"attribution": "inferred"},
}
CLIENTS = 8
# Until the callee answers: eight clients then ask about 200 times a second.
CALL_MS = 22.0
# So many requests while `inferred` learns, so many after it has, and so many later on.
PARTS = {"learning": 2000, "after": 1500, "later": 5000}
NAMES = {"learning": ", in the first requests", "after": "", "later": ", later on"}


@dataclass(frozen=True)
class Cost:
    """Of one pod in one part of a round."""

    seconds: float
    cpu_seconds: float
    requests: int
    calls: int
    right: int

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.requests / self.seconds

    @property
    def each_us(self) -> float:
        """For a request with its calls."""
        return 1e6 * self.cpu_seconds / self.requests


@dataclass
class Costs:
    """Of every round, by part and configuration."""

    found: dict[tuple[str, str], list[Cost]] = field(default_factory=dict)

    def run(self, rounds: int) -> None:
        names = list(CONFIGS)
        for number in range(rounds):
            print(f"    round {number + 1} of {rounds} ...", file=sys.stderr, flush=True)
            first = number % len(names)
            for name in names[first:] + names[:first]:
                with Processes() as processes:
                    self._pod(processes, name)

    def _pod(self, processes: Processes, name: str) -> None:
        pod = Pod(processes, STACKS["go"], "sequential", "none", CONFIGS[name])
        for part, requests in PARTS.items():
            before = pod.cpu_seconds()[1]
            (result,) = pod.run([(CLIENTS, requests)], CALL_MS)
            spent = pod.cpu_seconds()[1] - before
            cost = Cost(result.seconds, spent, result.requests, result.calls, result.right)
            self.found.setdefault((part, name), []).append(cost)
        pod.stop()

    def markdown(self) -> list[str]:
        after = self.found["after", "inferred"]
        calls = sum(cost.calls for cost in after) / sum(cost.requests for cost in after)
        lines = [
            f"On {date.today()}, {versions()}, {len(after)} rounds of {sum(PARTS.values())}"
            f" requests, {CLIENTS} at once, {fmean(cost.rate for cost in after):.0f} a second,"
            f" {calls:.2f} calls each:",
            "",
            "|  | CPU of Envoy, µs per request with its calls | more than no filter | calls right |",
            "|---|---|---|---|",
        ]
        cells = [("after", name) for name in CONFIGS]
        for part, name in (*cells, ("learning", "inferred"), ("later", "inferred")):
            rows = self.found[part, name]
            right = sum(cost.right for cost in rows) / sum(cost.calls for cost in rows)
            more = "" if name == "no filter" else _spread(self._more(part, name, "no filter"))
            label = name if name == "no filter" else f"`{name}`"
            each = fmean(cost.each_us for cost in rows)
            lines.append(f"| {label}{NAMES[part]} | {each:.0f} | {more} | {right:.0%} |")
        inferred, exclusive = (
            fmean(self._more("after", name, "no filter")) for name in ("inferred", "exclusive")
        )
        return [
            *lines,
            "",
            f"`inferred` adds {inferred / exclusive:.2f} times what `exclusive` adds. Learning takes"
            f" {_spread(self._learning('learning'), 1)} % of a core in the first"
            f" {PARTS['learning']} requests, and {_spread(self._learning('later'), 1)} % in the last"
            f" {PARTS['later']}.",
        ]

    def _learning(self, part: str) -> list[float]:
        """Per cent of a core: beside `exclusive`, so that what a new pod costs is none of it,
        and beside itself when it does not learn."""
        return [
            100 * cost.rate * (here - without) / 1e6
            for cost, here, without in zip(
                self.found[part, "inferred"],
                self._more(part, "inferred", "exclusive"),
                self._more("after", "inferred", "exclusive"),
                strict=True,
            )
        ]

    def _more(self, part: str, name: str, other: str) -> list[float]:
        """CPU per request, beyond that of another configuration in the same round."""
        pairs = zip(self.found[part, name], self.found[part, other], strict=True)
        return [cost.each_us - less.each_us for cost, less in pairs]


def _spread(values: list[float], digits: int = 0) -> str:
    """The mean, and its standard error."""
    error = stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{fmean(values):.{digits}f} ± {error:.{digits}f}"


def main() -> int:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--markdown", type=Path, help="write the table here")
    given = options.parse_args()
    costs = Costs()
    costs.run(given.rounds)
    lines = costs.markdown()
    print("\n".join(lines))
    if given.markdown:
        write_block(given.markdown, "cost", lines)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except MeshError as error:
        sys.exit(f"cost: {error}")
