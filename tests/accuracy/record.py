"""Records what a sidecar sees around an application, with the truth beside it.

For trying ways of attribution without an Envoy. Writes a file for each stack and variant,
a JSON object a line, in order of ``start_ms``: ``side`` inbound (with ``route``, the last part
of the path) or outbound (with ``host``), ``start_ms``, ``ms`` until the last byte of the answer
came, ``total_ms`` until it had gone on, ``sent_ms`` until the request had gone upstream,
``request`` (whose it is; null for a call of the background), ``method``, ``path``, and the
connections: ``connection`` (downstream) and ``upstream_connection``, ``port`` (of the peer
downstream: for a call, of the application) and ``upstream_port`` (the sidecar's own: for
a request, of its connection to the application).

Beside it a ``.json`` tells the stages, one after the other, how many requests were in
flight in each, how busy the machine was, and the CPU time of a request. First come the requests to learn from, one at
a time; with ``--cold`` there are none, and each stage is an application and a file of its own.
"""

import argparse
import gzip
import json
import os
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from accuracy.pod import CALL_MS, Pod, Stages
from accuracy.stacks import STACKS, VARIANTS, Stack, Variant
from load.program import versions
from mesh.procs import MeshError, Processes


def record(stack: Stack, variant: Variant, stages: Stages, call_ms: float, path: Path) -> str:
    with Processes() as processes:
        log = processes.directory / "access.log"
        pod = Pod(processes, stack, variant, "truth", None, log)
        before = pod.cpu_seconds()
        results = pod.run(stages, call_ms)
        used = [now - then for now, then in zip(pod.cpu_seconds(), before, strict=True)]
        # Envoy writes the rest of the log when it ends.
        pod.stop()
        entries = [json.loads(line) for line in log.read_text().splitlines()]
    rows = events(entries)
    requests = sum(row["side"] == "inbound" for row in rows)
    calls = sum(row["side"] == "outbound" for row in rows)
    ours = sum(row["side"] == "outbound" and row["request"] is not None for row in rows)
    seen = sum(stage.right + stage.abstained + stage.wrong for stage in results)
    if requests != sum(n for _, n in stages) or ours != seen:
        raise MeshError(
            f"{path}: {requests} requests and {ours} calls in the log, the sink saw {seen}"
        )
    with gzip.open(path, "wt") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")
    about = {
        "stack": stack.name,
        "what": stack.what,
        "variant": variant,
        "call_ms": call_ms,
        "work_ms": float(os.environ.get("WORK_MS", "0.3")),
        "date": str(date.today()),
        "versions": versions(),
        # Of a request with its calls.
        "application_cpu_ms": round(1000 * used[0] / requests, 2),
        "envoy_cpu_ms": round(1000 * used[1] / requests, 2),
        "stages": [
            {
                "clients": stage.concurrency,
                "requests": stage.requests,
                "in_flight": round(stage.in_flight, 1),
                "seconds": round(stage.seconds, 1),
                "busy": round(stage.busy, 2),
            }
            for stage in results
        ],
    }
    path.with_name(path.name.removesuffix(".jsonl.gz") + ".json").write_text(
        json.dumps(about, indent=1) + "\n"
    )
    flights = ", ".join(
        f"{stage.in_flight:.1f} of {stage.concurrency} ({100 * stage.busy:.0f} % busy)"
        for stage in results
    )
    counts = f"{requests} requests, {calls} calls, {calls - ours} of the background"
    counts += f", CPU a request {about['application_cpu_ms']} and {about['envoy_cpu_ms']} ms"
    return f"{path.name}: {counts}; in flight {flights}"


def events(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The access logs' lines as events."""
    entries = sorted(entries, key=lambda entry: int(entry["start_us"]))
    served = [entry for entry in entries if entry["side"] == "inbound"]
    first, last = (int(served[n]["start_us"]) for n in (0, -1))
    found = []
    for entry in entries:
        # Before the sink listens and after it, only the background calls, in vain.
        if entry["truth"] is None and not first <= int(entry["start_us"]) <= last:
            continue
        if entry["status"] != 200:
            raise MeshError(f"not answered: {entry}")
        path: str = entry["path"]
        row: dict[str, Any] = {
            "side": entry["side"],
            "start_ms": round((int(entry["start_us"]) - first) / 1000, 3),
            "ms": int(entry["us"]) / 1000,
            "request": int(entry["truth"]) if entry["truth"] else None,
        }
        if entry["side"] == "inbound":
            row["route"] = path.rsplit("/", 1)[1]
        else:
            row["host"] = entry["host"]
        names = ("method", "path", "connection", "upstream_connection", "port", "upstream_port")
        row |= {name: entry[name] for name in names}
        row["total_ms"] = int(entry["total_us"]) / 1000
        row["sent_ms"] = int(entry["sent_us"]) / 1000
        found.append(row)
    return found


def stage(text: str) -> tuple[int, int | None]:
    """Such as 8, or 8x1000."""
    clients, _, requests = text.partition("x")
    return int(clients), int(requests) if requests else None


def file_name(stack: str, variant: str, call_ms: float, cold: Sequence[tuple[int, int]]) -> str:
    slow = "" if call_ms == CALL_MS else f"-{call_ms:g}ms"
    return f"{stack}-{variant}{slow}" + "".join(f"-cold-{level}" for level, _ in cold)


def main() -> int:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("directory", type=Path)
    options.add_argument("--stacks", nargs="+", choices=STACKS, default=list(STACKS))
    options.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    options.add_argument("--learn", type=int, default=1000, help="requests of the first stage")
    options.add_argument(
        "--levels",
        type=stage,
        nargs="+",
        default=[(level, None) for level in (1, 2, 4, 8, 16, 32, 64)],
        help="clients of each stage, and requests: 8, or 8x1000",
    )
    options.add_argument("--requests", type=int, default=1500, help="of each of the others")
    options.add_argument("--call-ms", type=float, default=CALL_MS)
    options.add_argument("--cold", action="store_true", help="each level from the first request")
    given = options.parse_args()
    given.directory.mkdir(parents=True, exist_ok=True)
    levels = [(level, requests or given.requests) for level, requests in given.levels]
    failed = 0
    for variant in given.variants:
        for name in given.stacks:
            if variant not in STACKS[name].variants:
                continue
            runs: list[Stages] = [[one] for one in levels]
            for stages in runs if given.cold else [[(1, given.learn), *levels]]:
                file = file_name(name, variant, given.call_ms, stages if given.cold else ())
                path = given.directory / f"{file}.jsonl.gz"
                try:
                    print(record(STACKS[name], variant, stages, given.call_ms, path), flush=True)
                except MeshError as error:
                    failed += 1
                    print(f"FAILED {path.name}: {error}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
