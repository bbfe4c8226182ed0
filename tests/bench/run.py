"""What does the filter cost, in CPU time and in latency, beside other filters?

    PYTHONPATH=tests python -m bench.run [--rounds 20] [--seconds 1] [--markdown FILE]

Each variant is an Envoy process of its own. In each round every variant gets
requests of every shape, in a new order, so that what the machine does meanwhile
hits all alike. See docs/benchmarks.md for how to read the figures.
"""

import argparse
import http.client
import os
import platform
import random
import re
import shlex
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from bench import figures, load, setups, shapes
from bench.figures import Cell, Figures
from bench.setups import VARIANTS, Modules, Sidecar, Variant
from bench.shapes import Shape, Side
from mesh import envoy
from mesh.mesh import ROOT, wasm_path
from mesh.ports import HOST, free_port
from mesh.procs import MeshError, Processes

EMPTY = ROOT / "target" / "wasm32-wasip1" / "release" / "b3relay_bench_empty.wasm"
IDLE_SECONDS = 3.0
# V8 compiles a module's hot functions anew while it runs, in other threads.
WARM_UPS = 2
# Calls without a key would wake up what costs the others more.
PATHS: tuple[Shape, ...] = ("inbound", "hit", "miss", "present")
# Requests of each shape: more than are sent in one run, so that no request ID comes
# twice in it but those of the hits.
PREPARED = 20_000


@dataclass(frozen=True)
class Plan:
    variants: list[Variant]
    shapes: list[Shape]
    rounds: int
    seconds: int
    modules: Modules


@dataclass(frozen=True)
class Task:
    """One variant with requests of one shape."""

    shape: Shape
    sidecar: Sidecar
    script: Path

    def send(self, seconds: int) -> load.Load:
        return load.send(self.script, self.sidecar.port, seconds)


@dataclass(frozen=True)
class Measured:
    workers: int
    figures: Figures
    # Microseconds of CPU time per second without requests, by Envoy.
    idle: dict[str, float]


def say(line: str) -> None:
    print(f"    {line}", file=sys.stderr, flush=True)


def machine_ticks() -> tuple[int, int]:
    """CPU time of the whole machine so far: stolen by others, and in all."""
    first = Path("/proc/stat").read_text().splitlines()[0]
    # user nice system idle iowait irq softirq steal; guest time is in user's.
    fields = [int(field) for field in first.split()[1:9]]
    return fields[7], sum(fields)


def check_path(task: Task) -> None:
    """One request: does the variant do what it is measured for?"""
    headers = shapes.requests(task.shape, 1)[0]
    with closing(http.client.HTTPConnection(HOST, task.sidecar.port, timeout=5)) as connection:
        connection.request("GET", "/", headers=headers)
        answer = connection.getresponse()
        answer.read()
    found = answer.headers.get(setups.ECHO)
    expected = headers.get("X-B3-TraceId")
    if task.shape == "hit" and task.sidecar.variant in ("lua", "b3relay"):
        expected = shapes.held()[0].b3["X-B3-TraceId"]
    if answer.status != 200 or (found if found != "-" else None) != expected:
        name = f"{task.sidecar.variant}, {task.shape}"
        raise MeshError(f"{name}: status {answer.status}, trace {found}, not {expected}")


def check_counts(sidecars: list[Sidecar], sent: dict[Shape, int], runs: int) -> None:
    """b3relay's own metrics: did all requests take the path they were sent for?

    At the end of each run some are under way, whose answers nobody waits for.
    """
    decisions = {"hit": "copied", "miss": "unknown", "present": "present"}
    for sidecar in sidecars:
        if sidecar.variant != "b3relay":
            continue
        counters = sidecar.envoy.stats("wasmcustom.b3relay_")

        def count(pattern: str, counters: dict[str, float] = counters) -> int:
            return int(sum(value for name, value in counters.items() if re.search(pattern, name)))

        for shape, expected in sent.items():
            if shapes.side(shape) != sidecar.side:
                continue
            if shape == "inbound":
                found = count(r"remembered_total$") - count(r"not_remembered_total$")
            else:
                found = count(rf"decision=\.={decisions[shape]};.*calls_total$")
            if not expected <= found <= expected + runs * load.CONNECTIONS:
                raise MeshError(f"b3relay, {shape}: {found} of {expected} requests were counted")


def measure(plan: Plan, workers: int) -> Measured:
    sides: list[Side] = [
        side for side in get_args(Side) if any(shapes.side(shape) == side for shape in plan.shapes)
    ]
    with ExitStack() as stack:
        processes = stack.enter_context(Processes())
        silent = stack.enter_context(socket.create_server((HOST, 0), backlog=1024))
        upstream_port = free_port()
        upstream = setups.upstream(processes, upstream_port)
        sidecars = {
            (variant, side): setups.sidecar(
                processes,
                variant,
                side,
                modules=plan.modules,
                upstream=(HOST, upstream_port),
                silent=silent.getsockname(),
                workers=workers,
            )
            for variant in plan.variants
            for side in sides
        }
        envoys = [upstream, *(sidecar.envoy for sidecar in sidecars.values())]
        for each in envoys:
            each.start()
        processes.wait_ready({each.process: each.ready for each in envoys})
        stack.callback(os.sched_setaffinity, 0, os.sched_getaffinity(0))
        under_load = [sidecar.envoy.process.pid for sidecar in sidecars.values()]
        apart(under_load, [upstream.process.pid, os.getpid()], workers)
        for sidecar in sidecars.values():
            if sidecar.side == "outbound":
                for connection in setups.hold(sidecar.ports["inbound"]):
                    stack.enter_context(connection)
        time.sleep(0.5)

        tasks = []
        for shape in plan.shapes:
            requests = shapes.requests(shape, PREPARED)
            for variant in plan.variants:
                sidecar = sidecars[variant, shapes.side(shape)]
                script = processes.directory / f"{variant}-{shape}.lua"
                load.write_script(script, requests)
                tasks.append(Task(shape, sidecar, script))
        sent: dict[Shape, int] = dict.fromkeys(plan.shapes, 0)
        for task in tasks:
            check_path(task)
            warm = [task.send(plan.seconds) for _ in range(WARM_UPS)]
            if task.sidecar.variant == "b3relay":
                sent[task.shape] += 1 + sum(each.requests for each in warm)
        idle = measure_idle(list(sidecars.values()))

        cells: dict[tuple[Shape, Variant], list[Cell]] = {}
        order = random.Random(workers)
        began = time.monotonic()
        for number in range(1, plan.rounds + 1):
            order.shuffle(tasks)
            for task in tasks:
                cell, requests_sent = measure_cell(plan, task)
                cells.setdefault((task.shape, task.sidecar.variant), []).append(cell)
                if task.sidecar.variant == "b3relay":
                    sent[task.shape] += requests_sent
            say(f"round {number} of {plan.rounds}, {time.monotonic() - began:.0f} s")
        for task in tasks:
            if (exit_code := task.sidecar.envoy.process.exit_code) is not None:
                raise MeshError(f"{task.sidecar.envoy.name} has ended ({exit_code})")
        if "b3relay" in plan.variants:
            check_counts(list(sidecars.values()), sent, runs=WARM_UPS + plan.rounds)
        return Measured(workers, Figures(cells), idle)


def apart(measured: list[int], rest: list[int], workers: int) -> None:
    """What is measured gets cores of its own, if there are others for the rest.

    Else what the load and the upstream leave in the caches decides what it costs.
    """
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) <= workers:
        return
    for pids, allowed in ((measured, cores[:workers]), (rest, cores[workers:])):
        for pid in pids:
            for thread in Path(f"/proc/{pid}/task").iterdir():
                os.sched_setaffinity(int(thread.name), allowed)


def measure_cell(plan: Plan, task: Task) -> tuple[Cell, int]:
    stolen, total = machine_ticks()
    cpu = task.sidecar.cpu_ns()
    sent = task.send(plan.seconds)
    cpu = task.sidecar.cpu_ns() - cpu
    stolen_after, total_after = machine_ticks()
    steal = (stolen_after - stolen) / max(1, total_after - total)
    return Cell(cpu / sent.requests / 1000, sent.rate, sent.latencies, steal), sent.requests


def measure_idle(sidecars: list[Sidecar]) -> dict[str, float]:
    before = [sidecar.cpu_ns() for sidecar in sidecars]
    time.sleep(IDLE_SECONDS)
    return {
        f"{sidecar.variant}, {sidecar.side}": (sidecar.cpu_ns() - start) / IDLE_SECONDS / 1000
        for sidecar, start in zip(sidecars, before, strict=True)
    }


def said(*command: str | Path) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def envoy_version() -> str:
    found = re.search(r"/(\d+\.\d+\.\d+[^/]*)/", said(envoy.binary(), "--version"))
    return found[1] if found else "?"


def _versions(plan: Plan) -> list[str]:
    # It says so with its usage, and exits with an error.
    usage = subprocess.run([load.wrk(), "-v"], capture_output=True, text=True).stdout
    wrk = re.search(r"^wrk (?:debian/)?(\d\S*)", usage, re.MULTILINE)
    model = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    size = plan.modules.b3relay.stat().st_size
    return [
        f"- Envoy {envoy_version()}, {said('rustc', '--version')},"
        f" wrk {wrk.group(1) if wrk else '?'}",
        f"- module: {size} bytes; the empty filter: {plan.modules.empty.stat().st_size} bytes",
        f"- machine: {model.group(1) if model else platform.machine()}, {os.cpu_count()} cores,"
        f" Linux {platform.release()}",
        f"- {plan.rounds} rounds of {plan.seconds} s for each variant and path,"
        f" {load.CONNECTIONS} connections",
    ]


def report(plan: Plan, measured: list[Measured]) -> list[str]:
    command = shlex.join(["python", "-m", "bench.run", *sys.argv[1:]])
    lines = [f"On {time.strftime('%Y-%m-%d')}, with `{command}`:", "", *_versions(plan)]
    for each in measured:
        steal, most = each.figures.steal()
        idle = ", ".join(f"{name} {value:.0f}" for name, value in each.idle.items())
        workers = "1 worker" if each.workers == 1 else f"{each.workers} workers"
        lines += [
            "",
            f"### {workers}",
            "",
            "What the filters add, as a multiple of what the empty one adds (in brackets 90 % of",
            "the ratios when rounds are drawn at random):",
            "",
            *figures.markdown(each.figures.ratio_rows()),
            "",
            "CPU time of the Envoy process per request, in microseconds:",
            "",
            *figures.markdown(each.figures.cpu_rows()),
            "",
            "Latency, in microseconds, and requests per second; medians of the rounds:",
            "",
            *figures.markdown(each.figures.latency_rows()),
            "",
            f"CPU time that other machines took from this one: {100 * steal:.1f} % of all in the",
            f"median, {100 * most:.1f} % at most. Without requests, in microseconds per second:",
            f"{idle}.",
        ]
    return lines


def write(path: Path, name: str, lines: list[str]) -> None:
    """Between two marks of the file; the rest of it is written by hand."""
    begin, end = f"<!-- generated: {name} -->\n", "<!-- end -->"
    head, rest = path.read_text().split(begin, 1)
    tail = rest.split(end, 1)[1]
    path.write_text(head + begin + "\n".join(lines) + "\n" + end + tail)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=int, default=1, help="of each measurement")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--shapes", nargs="+", choices=PATHS, default=list(PATHS))
    parser.add_argument("--workers", nargs="+", type=int, default=[1], help="of each Envoy")
    parser.add_argument("--empty", type=Path, default=EMPTY, help="the empty filter")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    given = parser.parse_args()
    load.wrk()
    if not given.empty.is_file():
        raise MeshError("the empty filter is missing: run `make bench` once")
    plan = Plan(
        given.variants,
        given.shapes,
        given.rounds,
        given.seconds,
        Modules(b3relay=wasm_path(), empty=given.empty.resolve()),
    )
    measured = []
    for workers in given.workers:
        measured.append(measure(plan, workers))
        ours = measured[-1].figures
        for rows in (ours.ratio_rows(), ours.cpu_rows(), ours.latency_rows()):
            print("\n" + "\n".join(figures.text(rows)), flush=True)
        print(f"\nworkers {workers}; steal {100 * ours.steal()[0]:.1f} % in the median", flush=True)
    if given.markdown:
        write(given.markdown, "benchmarks", report(plan, measured))
    return 0


if __name__ == "__main__":
    sys.exit(main())
