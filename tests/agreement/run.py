"""Do real implementations read the same, before and after the repair?

    PYTHONPATH=tests python -m agreement.run [--random 2000] [--seed 1] [--markdown FILE]

Two readings agree if both have the same context (trace ID as a number of 128
bits, and span ID) or both have none; if, where the request carries a sampling
decision, both take the same; and if they have the same parent. What an
implementation cannot tell is not held against it: OpenTelemetry has no decision
without a context, and drops the parent; Envoy's parent is not to be seen. A
decision that is left open is not compared: there each makes its own. Who reads
`b3` alone is compared where the request came with one.

What each makes of the vectors is written to `readings.json`, which docs/rules.md is
made from.

Ends with 1 if any two implementations disagree after the repair.
"""

import argparse
import itertools
import json
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from agreement import readers
from agreement.lines import Headers, Reading
from mesh import vectors

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Corpus:
    name: str
    cases: list[tuple[str, Headers]]


def oracle() -> Corpus:
    cases = json.loads((HERE / "cases.json").read_text())
    return Corpus(
        "odd cases",
        [(c["name"], [(n, v.encode("latin-1")) for n, v in c["headers"].items()]) for c in cases],
    )


def ours() -> Corpus:
    return Corpus("vectors", [(vector.name, vector.headers) for vector in vectors.load()])


def generated(count: int, seed: int) -> Corpus:
    """Two thirds good ones in any form; one third changed in one to three places."""
    dice = random.Random(seed)

    def digits(length: int) -> str:
        return "".join(dice.choices("0123456789abcdef", k=length))

    def good() -> list[tuple[str, str]]:
        trace, span, parent = digits(dice.choice((16, 32))), digits(16), digits(16)
        state = dice.choice(("", "0", "1", "d"))
        with_parent = dice.random() < 0.5
        multi = [("x-b3-traceid", trace), ("x-b3-spanid", span)]
        if with_parent:
            multi.append(("x-b3-parentspanid", parent))
        if state == "d":
            multi.append(("x-b3-flags", "1"))
        elif state:
            multi.append(("x-b3-sampled", state))
        single = "-".join([trace, span, *([state] if state else [])])
        single += f"-{parent}" if state and with_parent else ""
        kind = dice.randrange(10)
        if kind < 5:
            return multi
        if kind < 8:
            return [("b3", single)]
        if kind == 8:
            return [("b3", single), *multi]
        return [dice.choice((("b3", dice.choice("01d")), ("x-b3-sampled", dice.choice("01"))))]

    def change(headers: list[tuple[str, str]]) -> None:
        at = dice.randrange(len(headers)) if headers else 0
        name, value = headers[at] if headers else ("b3", "")
        kind = dice.randrange(13)
        if kind == 0:
            headers[at:at + 1] = []
        elif kind == 1:
            upper = value.encode("latin-1").upper().decode("latin-1")  # ASCII alone
            headers[at:at + 1] = [(name, upper)]
        elif kind == 2:
            headers[at:at + 1] = [(name, value[: dice.randrange(len(value) + 1)])]
        elif kind == 3:
            headers[at:at + 1] = [(name, value + digits(dice.randrange(1, 20)))]
        elif kind == 4:
            odd = dice.choice(["g", "-", "+", ",", " ", "x", "\xff", "\x80", "_"])
            place = dice.randrange(len(value) + 1)
            headers[at:at + 1] = [(name, (value[:place] + odd + value[place:]).strip())]
        elif kind == 5:
            headers.append((name, value))
        elif kind == 6:
            headers.append((name, digits(max(1, len(value)))))
        elif kind == 7:
            headers[at:at + 1] = [(name, f"{value},{value}")]
        elif kind == 8:
            headers[at:at + 1] = [(name, "0" * len(value))]
        elif kind == 9:
            states = ["true", "TRUE", "False", "2", "", "d", "yes", "0", "1"]
            headers[:] = [h for h in headers if h[0] != "x-b3-sampled"]
            headers.append(("x-b3-sampled", dice.choice(states)))
        elif kind == 10:
            headers.append(("x-b3-flags", dice.choice(["0", "1", "2", "", "true"])))
        elif kind == 11:
            headers.append(("b3", dice.choice(["0", "1", "d", "", "x", f"{digits(32)}-{digits(16)}"])))
        else:
            headers += [("x-b3-traceid", digits(32)), ("x-b3-spanid", digits(16))]

    cases = []
    for number in range(count):
        headers = good()
        if number % 3 == 0:
            for _ in range(dice.randrange(1, 4)):
                change(headers)
        cases.append((f"random {number}", [(n, v.encode("latin-1")) for n, v in headers]))
    return Corpus(f"random (seed {seed})", cases)


def agree(a: Reading, b: Reading, decided: bool) -> bool:
    """`decided`: the request carries a sampling decision."""

    def same(one: str, other: str) -> bool:
        return one == other or "~" in (one, other)

    if a.context != b.context or not same(a.parent, b.parent):
        return False
    return not decided or same(a.decision, b.decision)


@dataclass
class Result:
    """Readings of one corpus, by implementation; None where nothing is there that it
    reads. And which cases are decided."""

    readings: dict[str, list[Reading | None]]
    decided: list[bool]

    def pair(self, a: str, b: str) -> float:
        pairs = zip(self.readings[a], self.readings[b], self.decided, strict=True)
        good = [agree(one, other, d) for one, other, d in pairs if one and other]
        return sum(good) / len(good)

    def disagreements(self, without: str = "") -> list[int]:
        found = []
        for case, decided in enumerate(self.decided):
            others = (name for name in self.readings if name != without)
            all_ = [reading for name in others if (reading := self.readings[name][case])]
            if not all(agree(a, b, decided) for a, b in itertools.combinations(all_, 2)):
                found.append(case)
        return found

    def contexts(self, implementation: str) -> float:
        """The share of requests in which it reads a context."""
        readings = [reading for reading in self.readings[implementation] if reading]
        return sum(reading.context is not None for reading in readings) / len(readings)

    def share(self, without: str = "") -> float:
        """The share of requests on which all of them agree."""
        return 1 - len(self.disagreements(without)) / len(self.decided)


def judge(
    originals: list[Headers], requests: list[Headers], say: Callable[[str], None]
) -> Result:
    """What they make of the requests, which were those once."""
    readings: dict[str, list[Reading | None]] = {}
    for each in readers.READERS:
        began = time.monotonic()
        read = zip(originals, each.read(requests), strict=True)
        readings[each.name] = [
            reading if each.applies(original) else None for original, reading in read
        ]
        say(f"{each.name}: {len(requests)} requests in {time.monotonic() - began:.1f} s")
    ours = readings[readers.OURS.name]
    decided = [reading is not None and reading.decision != "?" for reading in ours]
    return Result(readings, decided)


def not_alike(requests: list[Headers]) -> list[str]:
    """Implementations that read otherwise when they are set up for the single header."""
    return [
        f"{each.name}: set up for b3, it reads {other}, not {reading}: {request}"
        for each in readers.READERS
        if each.name in readers.ALIKE
        for request, reading, other in zip(
            requests, each.read(requests), readers.ALIKE[each.name](requests), strict=True
        )
        if reading != other
    ]


def outcome(ours: Reading, theirs: Reading) -> str:
    """What becomes of a context, in words; `ours` is what repair makes of it."""
    decisions = {"0": ", not sampled", "1": ", sampled"}
    if not theirs.span:
        return "no span"
    if theirs.context is None:
        return "new trace" + decisions.get(theirs.decision, "")
    word = "reads"
    if ours.context is not None and theirs.context != ours.context:
        word = "another " + ("span" if theirs.context[0] == ours.context[0] else "trace")
    if theirs.decision in decisions and theirs.decision != ours.decision:
        word += decisions[theirs.decision]
    if theirs.decision == "?" and ours.decision in decisions:
        word += ", decides itself"
    if word.startswith("reads") and theirs.parent == "-" and len(ours.parent) > 1:
        word += ", no parent"
    return word


def w3c_outcome(request: Headers, ours: Reading, theirs: Reading) -> str:
    """The same, of a request with a `traceparent`."""
    if not theirs.span:
        return "no span"
    if theirs.context is None:
        return "new trace"
    value = next(value for name, value in request if name == "traceparent").decode("latin-1")
    _, *named = value.lower().split("-")
    word = "follows B3" if theirs.context == ours.context else "another"
    if theirs.context == tuple(named[:2]):
        word = "reads"
    return word + (", not sampled" if theirs.decision == "0" else "")


def record() -> str:
    """What each implementation makes of the vectors: `readings.json`."""

    def line(name: str, value: object) -> str:
        return f"{json.dumps(name)}: {json.dumps(value)}"

    lines = []
    for form, rules, implementations in (
        ("B3", "LSDB", readers.READERS[1:]),
        ("W3C", "W", readers.W3C_READERS),
    ):
        asked = [
            vector
            for vector in vectors.load()
            if vector.inbound is None and any(rule[0] in rules for rule in vector.findings)
        ]
        requests = [vector.headers for vector in asked]
        ours = readers.OURS.read(requests)
        cells: list[list[str]] = [[] for _ in asked]
        for each in implementations:
            read = zip(requests, ours, each.read(requests), strict=True)
            for row, (request, our, their) in zip(cells, read, strict=True):
                if not each.applies(request):
                    row.append("")
                elif form == "B3":
                    row.append(outcome(our, their))
                else:
                    row.append(w3c_outcome(request, our, their))
        columns = [[each.column, each.name] for each in implementations]
        rows = [
            # The request too: a vector that changed needs another run.
            line(vector.name, {"request": [*map(_text, vector.headers)], "readings": row})
            for vector, row in zip(asked, cells, strict=True)
        ]
        body = ",\n".join(rows)
        lines.append(
            f"{json.dumps(form)}: {{\n{line('implementations', columns)},\n"
            f'"vectors": {{\n{body}\n}}}}'
        )
    return "{" + ",\n".join(lines) + "}\n"


def _text(header: tuple[str, bytes]) -> str:
    return f"{header[0]}: {header[1].decode('latin-1')}"


def matrix(before: Result, after: Result) -> list[str]:
    """Agreement of each pair, before / after, in per cent."""
    names = list(before.readings)
    rows = ["| | " + " | ".join(names[1:]) + " |", "|---" * len(names) + "|"]
    for index, a in enumerate(names[:-1]):
        cells = ["" for _ in names[1 : index + 1]]
        cells += [
            f"{100 * before.pair(a, b):.1f} / {100 * after.pair(a, b):.1f}"
            for b in names[index + 1 :]
        ]
        rows.append(f"| {a} | " + " | ".join(cells) + " |")
    return rows


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--random", type=int, default=2000, metavar="N")
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--markdown", type=Path, metavar="FILE")
    given = options.parse_args()

    def say(text: str) -> None:
        print(f"    {text}", file=sys.stderr, flush=True)

    print("building the readers (the first time about 5 minutes) ...", file=sys.stderr, flush=True)
    readers.build(say)
    report = ["| requests | cases | all agree before | all agree after |", "|---|---|---|---|"]
    failures: list[str] = []
    everything: list[tuple[str, Headers]] = []
    results = []
    for corpus in (oracle(), ours(), generated(given.random, given.seed)):
        print(f"{corpus.name}: {len(corpus.cases)} cases ...", file=sys.stderr, flush=True)
        requests = [headers for _, headers in corpus.cases]
        repaired = readers.repair(requests)
        before, after = judge(requests, requests, say), judge(requests, repaired, say)
        failures += not_alike([*requests, *repaired])
        results.append((before, after))
        report.append(
            f"| {corpus.name} | {len(requests)} "
            f"| {100 * before.share(without='b3relay'):.1f} % | {100 * after.share():.1f} % |"
        )
        for case in after.disagreements():
            name = corpus.cases[case][0]
            failures.append(f"{name}: {requests[case]} -> {repaired[case]}")
            for implementation, readings in after.readings.items():
                failures.append(f"    {implementation}: {readings[case]}")
        everything += corpus.cases

    def joined(which: int) -> Result:
        parts = [result[which] for result in results]
        names = parts[0].readings
        return Result(
            {name: [r for part in parts for r in part.readings[name]] for name in names},
            [d for part in parts for d in part.decided],
        )

    report += [
        "",
        "Requests in which a context is read, before and after, in per cent:",
        "",
        "| | before | after |",
        "|---|---|---|",
    ]
    for name in (each.name for each in readers.READERS):
        cells = (f"{100 * joined(which).contexts(name):.1f}" for which in (0, 1))
        report.append(f"| {name} | {' | '.join(cells)} |")
    report += ["", f"Of all {len(everything)}, pair by pair, before / after, in per cent:", ""]
    report += matrix(joined(0), joined(1))
    print("\n".join(report))
    (HERE / "readings.json").write_text(record())
    if failures:
        print("\nstill disagreeing after the repair:\n" + "\n".join(failures))
    if given.markdown:
        text = given.markdown.read_text()
        begin, end = "<!-- generated: agreement -->\n", "<!-- end -->"
        head, rest = text.split(begin, 1)
        tail = rest.split(end, 1)[1]
        body = "\n".join([f"On {time.strftime('%Y-%m-%d')}:", "", *report, ""])
        given.markdown.write_text(head + begin + body + end + tail)
    total = len(everything)
    print(f"{total - sum(line[0] != ' ' for line in failures)} passed, "
          f"{sum(line[0] != ' ' for line in failures)} failed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
