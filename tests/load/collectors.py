"""Client spans at full speed, with collectors that do what they should not.

Each way gets an Envoy of its own and at least so many requests, each with a context of its
own, so that each has a client span: does one fail, is every span accounted for, how much
memory does it take, and how long do requests take beside an Envoy without spans? That one
gets as many rounds of requests, in turn, since other work on a machine changes by the minute.
"""

import argparse
import json
import re
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from statistics import median

from bench.load import CONNECTIONS, PERCENTILES, Load, send, write_script
from load.keyed import write_block
from load.program import envoy_version
from mesh import envoy
from mesh.bad_collector import SLOW_SECONDS, behaving
from mesh.envoy import Config, Envoy, Wasm
from mesh.mesh import wasm_path
from mesh.ports import HOST, free_port
from mesh.procs import MeshError, Processes

WAYS = {
    "well": "answers at once",
    "slow": f"answers after {SLOW_SECONDS:.0f} s",
    "500": "answers 500",
    "resets": "resets each connection",
    "never answers": "reads, and never answers",
    "never reads": "accepts, and never reads",
    "down": "nobody listens",
    "missing": "Envoy has no such cluster",
}
# Longer than a report is waited for, and a collector that has failed is asked again.
SETTLE_SECONDS = 40
# More than that of an Envoy without spans: 2 workers with 512 KiB each that wait, and as much
# again in reports on their way.
MIB_MOST = 16.0


@dataclass(frozen=True)
class Side:
    """An Envoy with spans, or without."""

    loads: list[Load]
    grown_mib: float

    def latency(self, name: str) -> float:
        """The median of the rounds, in microseconds."""
        return median(load.latencies[name] for load in self.loads)


@dataclass(frozen=True)
class Result:
    way: str
    on: Side
    off: Side
    sent: int
    dropped: int
    lost: int

    @property
    def requests(self) -> int:
        return sum(load.requests for load in self.on.loads)


def _callee(port: int) -> Config:
    """Answers everything itself."""
    made = envoy.plain(
        {port: ("UNSPECIFIED", None)}, admin_port=free_port(), upstream=(HOST, free_port())
    )
    (listener,) = made["static_resources"]["listeners"]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    (host,) = manager["route_config"]["virtual_hosts"]
    answer = {"direct_response": {"status": 200, "body": {"inline_string": "ok"}}}
    host["routes"] = [{"match": {"prefix": "/"}, **answer}]
    return made


def _requests() -> list[dict[str, str]]:
    return [
        {
            "host": "ratings:9080",
            "x-request-id": f"0f7a1c2e-1b2d-4c3e-9d4f-{number:012x}",
            "x-b3-traceid": f"463ac35c9f6413ad{number + 1:016x}",
            "x-b3-spanid": f"{number + 1:016x}",
            "x-b3-sampled": "1",
            "user-agent": "load",
        }
        for number in range(64)
    ]


def _mib(pid: int, what: str) -> float:
    found = re.search(rf"{what}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def _until(check: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not check() and time.monotonic() < deadline:
        time.sleep(0.5)


def _pod(processes: Processes, name: str, config: object, ports: dict[str, int]) -> Envoy:
    """A sidecar's outbound half."""
    bootstrap = envoy.pod(
        admin_port=free_port(),
        inbound_port=free_port(),
        outbound_port=ports[name],
        app=(HOST, ports["callee"]),
        callee=(HOST, ports["callee"]),
        inbound=None,
        outbound=Wasm(processes.directory / "b3relay.wasm", json.dumps(config)),
    )
    for cluster in bootstrap["static_resources"]["clusters"]:
        if cluster["name"] == "collector":
            (lb,) = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
            lb["endpoint"]["address"]["socket_address"]["port_value"] = ports["collector"]
    return Envoy(processes, name, bootstrap, concurrency=2)


def run(way: str, least: int, seconds: int) -> Result:
    """Rounds of so many seconds, until there were at least so many requests."""
    with ExitStack() as stack:
        ports = {name: free_port() for name in ("on", "off", "callee")}
        ports["collector"] = stack.enter_context(behaving(way))
        processes = stack.enter_context(Processes(show_tails=True))
        shutil.copy(wasm_path(), processes.directory / "b3relay.wasm")
        cluster = "missing" if way == "missing" else "collector"
        on = _pod(processes, "on", {"spans": {"cluster": cluster, "format": "zipkin"}}, ports)
        off = _pod(processes, "off", {}, ports)
        callee = Envoy(processes, "callee", _callee(ports["callee"]), concurrency=1)
        envoys = (on, off, callee)
        for each in envoys:
            each.start()
        processes.wait_ready({each.process: each.ready for each in envoys})
        script = processes.directory / "load.lua"
        write_script(script, _requests())

        def counted() -> tuple[int, int, int]:
            stats = on.stats("wasmcustom.b3relay_spans_")
            sent, dropped, lost = (
                int(stats.get(f"wasmcustom.b3relay_spans_{what}_total", 0))
                for what in ("sent", "dropped", "lost")
            )
            return sent, dropped, lost

        before = [_mib(each.process.pid, "VmRSS") for each in (on, off)]
        loads: dict[str, list[Load]] = {"on": [], "off": []}
        while sum(load.requests for load in loads["on"]) < least:
            for name, rounds in loads.items():
                # Each request must be answered, with 200.
                rounds.append(send(script, ports[name], seconds))
        requests = sum(load.requests for load in loads["on"])
        # wrk breaks off what is on its way when its time is over: of those, too, a span.
        _until(lambda: sum(counted()) >= requests, SETTLE_SECONDS)
        time.sleep(2)
        sent, dropped, lost = counted()
        sides = [
            Side(rounds, _mib(each.process.pid, "VmHWM") - then)
            for each, rounds, then in zip((on, off), loads.values(), before, strict=True)
        ]
        for each in envoys:
            if each.process.exit_code is not None or "panic" in each.log():
                raise MeshError(f"{way}: {each.log()}")
        return Result(way, sides[0], sides[1], sent, dropped, lost)


def failures(results: list[Result]) -> list[str]:
    """What is not as docs/spans.md says. That a request fails ends the run before."""
    found = []
    for one in results:
        told = one.sent + one.dropped + one.lost
        # Those that wrk has broken off at the end of a round, one for each connection.
        if not one.requests <= told <= one.requests + CONNECTIONS * len(one.on.loads):
            found.append(f"{one.way}: {one.requests} requests, {told} spans accounted for")
        if one.on.grown_mib > one.off.grown_mib + MIB_MOST:
            found.append(f"{one.way}: {one.on.grown_mib:.1f} MiB more")
        if (one.sent > 0) != (one.way in ("well", "slow")):
            found.append(f"{one.way}: {one.sent} sent")
    return found


def markdown(results: list[Result], command: str) -> list[str]:
    total = sum(one.requests for one in results)
    lines = [
        f"On {date.today()}, `{command}`, {envoy_version()} with 2 workers, {CONNECTIONS} "
        f"connections at full",
        f"speed: {total} requests, 0 failed. Beside each, in turn, as many rounds without spans;",
        "latencies are the medians of the rounds' medians and 99th percentiles:",
        "",
        "| the collector | requests | sent | dropped | lost | memory grew by, MiB (without spans) "
        "| median, µs (without) | 99 %, ms (without) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in results:
        middle, late = PERCENTILES[0], PERCENTILES[2]
        row = [WAYS[one.way], *map(str, (one.requests, one.sent, one.dropped, one.lost))]
        row.append(f"{one.on.grown_mib:.1f} ({one.off.grown_mib:.1f})")
        row.append(f"{one.on.latency(middle):.0f} ({one.off.latency(middle):.0f})")
        row.append(f"{one.on.latency(late) / 1e3:.0f} ({one.off.latency(late) / 1e3:.0f})")
        lines.append(f"| {' | '.join(row)} |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=100_000, help="of each way, at least")
    parser.add_argument("--seconds", type=int, default=2, help="of each round")
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=WAYS, metavar="WAY")
    parser.add_argument("--markdown", type=Path)
    given = parser.parse_args()
    results: list[Result] = []
    try:
        for way in given.ways:
            results.append(run(way, given.requests, given.seconds))
            print(results[-1].way, *markdown(results[-1:], "")[-1:], flush=True)
    except MeshError as error:
        print(f"collectors: {error}", file=sys.stderr)
        return 1
    if given.markdown:
        write_block(given.markdown, "collectors", markdown(results, "make span-collectors"))
    found = failures(results)
    for failure in found:
        print(f"FAILED {failure}")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
