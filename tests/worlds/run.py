"""``make worlds``: random meshes, their faults, and the smallest worlds that have them.

``python -m worlds.run [--worlds N | --seconds N] [--seed N]``. The worlds of
tests/worlds/kept come first. ``--world FILE`` runs one that was kept, ``--only SEED``
the one of that number, and says all about it.
"""

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mesh.mesh import ROOT, wasm_path
from worlds.judge import KINDS, judge, too_many_wrong
from worlds.shrink import smaller
from worlds.world import World, generate

KEPT = Path(__file__).parent / "kept"
_MOST_SHRUNK = 5


@dataclass
class Outcome:
    """Of one world."""

    faults: list[tuple[str, str, str]] = field(default_factory=list)
    calls: int = 0
    guessed: int = 0
    guessed_wrong: int = 0
    asked: dict[str, int] = field(default_factory=dict)
    seconds: float = 0
    notes: list[str] = field(default_factory=list)

    def kinds(self) -> Counter[str]:
        return Counter(f"{kind} {detail}".strip() for kind, detail, _ in self.faults)


async def worker() -> None:
    """Worlds as lines of JSON, outcomes as lines of JSON."""
    from worlds.mesh import Servers, witness

    servers = Servers()
    await servers.start()
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        world = World.from_json(line)
        began = time.monotonic()
        try:
            evidence = await witness(world, servers, wasm_path())
            verdict = judge(evidence)
            outcome = Outcome(
                [(f.kind, f.detail, f.text) for f in verdict.faults],
                verdict.calls,
                verdict.guessed,
                verdict.guessed_wrong,
                dict(verdict.asked or {}),
                time.monotonic() - began,
                evidence.notes,
            )
        except Exception as error:  # of the harness: the others go on
            outcome = Outcome([("harness", type(error).__name__, f"{error}"[:2000])])
        print(json.dumps(vars(outcome)), flush=True)


class Worker:
    """A process that runs worlds, one after the other."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    @asynccontextmanager
    async def start(cls, number: int) -> AsyncIterator["Worker"]:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "worlds.run",
            "--worker",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # Ports of its own, and none of those that tests choose first: see mesh.ports.
            env={**os.environ, "PYTEST_XDIST_WORKER": f"gw{7 - number % 8}"},
            limit=2**24,
        )
        try:
            yield cls(process)
        finally:
            if process.stdin:
                process.stdin.close()
            try:
                await asyncio.wait_for(process.wait(), 10)
            except TimeoutError:
                process.terminate()

    async def run(self, world: World) -> Outcome:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(json.loads(world.to_json())).encode() + b"\n")
        await self._process.stdin.drain()
        line = await self._process.stdout.readline()
        data: dict[str, Any] = json.loads(line)
        data["faults"] = [(k, d, t) for k, d, t in data["faults"]]
        return Outcome(**data)


async def shrink(worker: Worker, world: World, kind: str, seconds: float) -> World:
    """The smallest world found within that time that fails in that way."""
    deadline = time.monotonic() + seconds
    found = True
    while found:
        found = False
        for candidate in smaller(world):
            if time.monotonic() > deadline:
                return world
            outcome = await worker.run(candidate)
            if kind in outcome.kinds():
                world, found = candidate, True
                break
    return world


# What a pause of the machine can bring about.
_OF_TIMING = {"alone", "edge", "finding", "metrics", "piece"}


# Worlds that are not green, and why: faults of this kind are counted as open there. One
# that is mended is to be taken out.
OPEN: dict[str, tuple[str, str]] = {}


class Session:
    """Worlds by their numbers, until there are enough or the time is over."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.done: list[tuple[str, World, Outcome]] = []
        self._shrunk: set[str] = set()
        self._began = self._started = time.monotonic()
        self._next = options.seed
        self._kept = [] if options.skip_kept else sorted(KEPT.glob("*.json"))

    def next(self) -> tuple[str, World] | None:
        if self._kept:
            path = self._kept.pop(0)
            return f"kept {path.name}", World.from_json(
                json.dumps(json.loads(path.read_text())["world"])
            )
        if self._next == self.options.seed:  # the time is that of new worlds
            self._began = time.monotonic()
        over = self.options.seconds and time.monotonic() - self._began > self.options.seconds
        enough = self._next - self.options.seed >= self.options.worlds
        if over or (enough and not self.options.seconds):
            return None
        self._next += 1
        world = generate(self._next - 1)
        for service in world.services:
            service.filter = service.filter and not self.options.no_filter
        return f"world {self._next - 1}", world

    async def work(self, worker: Worker) -> None:
        while (todo := self.next()) is not None:
            name, world = todo
            outcome = await self.settled(worker, name, world, await worker.run(world))
            self.done.append((name, world, outcome))
            if self.is_open(name, outcome):
                kind, why = OPEN[name]
                outcome.notes.append(f"OPEN {name}: {kind}: {why}")
            elif outcome.faults:
                print(self.failed(name, world, outcome), flush=True)
                await self.keep(worker, name, world, outcome)

    async def settled(
        self, worker: Worker, name: str, world: World, outcome: Outcome
    ) -> Outcome:
        """A world that fails by its timing alone is run again, up to twice: the machine may
        have paused. It is named all the same. What must never be is never run again."""
        kinds = {kind.split()[0] for kind in outcome.kinds()}
        if not kinds or not kinds <= _OF_TIMING:
            return outcome
        for _ in range(2):
            again = await worker.run(world)
            if not again.faults:
                again.notes.append(f"{name}: {dict(outcome.kinds())} at first, and not again")
                return again
        return outcome

    @staticmethod
    def is_open(name: str, outcome: Outcome) -> bool:
        kinds = {kind.split()[0] for kind in outcome.kinds()}
        return bool(kinds) and kinds == {OPEN.get(name, ("",))[0]}

    def failed(self, name: str, world: World, outcome: Outcome) -> str:
        kinds = dict(outcome.kinds())
        lines = [f"\nFAILED {name}: {kinds}" if kinds else f"\n{name}: green"]
        if not self.options.brief:
            lines.append(world.describe())
            shown: Counter[str] = Counter()
            for kind, detail, text in outcome.faults:
                shown[kind + detail] += 1
                if shown[kind + detail] <= 2:
                    lines.append(f"    {kind} ({KINDS.get(kind, 'the harness')}): {text}")
        return "\n".join(lines)

    async def keep(self, worker: Worker, name: str, world: World, outcome: Outcome) -> None:
        """Shrinks one world of each kind of fault."""
        if not self.options.keep or name.startswith("kept"):
            return
        for kind in outcome.kinds():
            if self.options.kind and kind != self.options.kind:
                continue
            if (
                kind in self._shrunk
                or len(self._shrunk) >= _MOST_SHRUNK
                or kind.startswith("harness")
            ):
                continue
            self._shrunk.add(kind)
            small = await shrink(worker, world, kind, self.options.shrink_seconds)
            path = KEPT / f"{kind.replace(' ', '-').replace(',', '-')}-{world.seed}.json"
            path.parent.mkdir(exist_ok=True)
            data = {"found": kind, "world": json.loads(small.to_json())}
            path.write_text(json.dumps(data, indent=1) + "\n")
            print(f"kept {path.name}:\n{small.describe()}", flush=True)

    def summary(self) -> int:
        outcomes = [outcome for _, _, outcome in self.done]
        opened = [outcome for name, _, outcome in self.done if self.is_open(name, outcome)]
        failed = [
            (name, outcome)
            for name, _, outcome in self.done
            if outcome.faults and not self.is_open(name, outcome)
        ]
        kinds: Counter[str] = Counter()
        for _, outcome in failed:
            kinds.update(dict.fromkeys(outcome.kinds(), 1))
        asked: Counter[str] = Counter()
        for outcome in outcomes:
            asked.update(outcome.asked)
        calls = sum(outcome.calls for outcome in outcomes)
        wrong = sum(outcome.guessed_wrong for outcome in outcomes)
        guessed = sum(outcome.guessed for outcome in outcomes)
        seconds = time.monotonic() - self._started
        print(
            f"\n{len(outcomes)} worlds ({self.options.seed} to {self._next - 1}, and "
            f"{sum(name.startswith('kept') for name, _, _ in self.done)} kept ones) in {seconds:.0f} s: "
            f"{len(outcomes) - len(failed) - len(opened)} green, {len(opened)} open, {len(failed)} not"
        )
        print(f"{calls} calls; of {guessed} that carried nothing {wrong} given to a wrong request")
        print("asked: " + ", ".join(f"{kind} {count}" for kind, count in sorted(asked.items())))
        for kind, count in kinds.most_common():
            print(f"  {count} worlds: {kind} ({KINDS.get(kind.split()[0], 'the harness')})")
        for note in sorted({note for outcome in outcomes for note in outcome.notes}):
            print(note)
        over = too_many_wrong(calls, wrong)
        if over:
            print("more calls were given to a wrong request than the documented share")
        return int(bool(failed) or over)


async def run(options: argparse.Namespace) -> int:
    if options.world or options.only is not None:
        if options.world:
            data = json.loads(Path(options.world).read_text())
            world = World.from_json(json.dumps(data.get("world", data)))
        else:
            world = generate(options.only)
        session = Session(options)
        async with Worker.start(0) as alone:
            for _ in range(options.times):
                outcome = await alone.run(world)
                session.done.append(("world", world, outcome))
                print(session.failed("world", world, outcome), flush=True)
                await session.keep(alone, "world", world, outcome)
        return session.summary()
    session = Session(options)
    print(f"worlds from seed {options.seed} on (make worlds SEED={options.seed})", flush=True)

    async def with_worker(number: int) -> None:
        async with Worker.start(number) as one:
            await session.work(one)

    await asyncio.gather(*(with_worker(number) for number in range(options.jobs)))
    return session.summary()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worlds", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=0, help="instead of a number of worlds")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--jobs", type=int, default=2, help="worlds at a time")
    parser.add_argument("--only", type=int, metavar="SEED")
    parser.add_argument("--world", metavar="FILE")
    parser.add_argument("--times", type=int, default=1, help="of --only and --world")
    parser.add_argument(
        "--keep", action="store_true", help="shrink what fails, into " + str(KEPT.relative_to(ROOT))
    )
    parser.add_argument("--kind", help="of the faults that are kept: this one only")
    parser.add_argument("--shrink-seconds", type=float, default=120)
    parser.add_argument("--skip-kept", action="store_true")
    parser.add_argument(
        "--no-filter", action="store_true", help="nowhere: what fails then is the harness"
    )
    parser.add_argument("--brief", action="store_true", help="kinds of faults only")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        asyncio.run(worker())
        return 0
    return asyncio.run(run(options))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
