"""Records what a sidecar sees around an application, with the truth beside it.

For trying ways of attribution without an Envoy. Writes a file for each stack and variant,
a JSON object a line, in order of ``start_ms``: ``side`` inbound (with ``route``, the last part
of the path) or outbound (with ``host``), ``start_ms``, ``ms`` until the last byte of the answer
came, ``total_ms`` until it had gone on, ``request`` (whose it is; null for a call of
the background), ``method``, ``path``, ``connection`` (downstream) and
``upstream_connection``. The stages are not marked: they are those that were asked for, one
after the other, first the requests to learn from, one at a time.
"""

import argparse
import gzip
import json
import sys
from pathlib import Path
from typing import Any

from accuracy.pod import CALL_MS, Pod, Stages
from accuracy.stacks import STACKS, VARIANTS, Stack, Variant
from mesh.procs import MeshError, Processes


def record(stack: Stack, variant: Variant, stages: Stages, call_ms: float, path: Path) -> str:
    with Processes() as processes:
        log = processes.directory / "access.log"
        pod = Pod(processes, stack, variant, "truth", None, log)
        results = pod.run(stages, call_ms)
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
    flights = ", ".join(f"{stage.in_flight:.1f} of {stage.concurrency}" for stage in results)
    counts = f"{requests} requests, {calls} calls, {calls - ours} of the background"
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
        row |= {
            name: entry[name] for name in ("method", "path", "connection", "upstream_connection")
        }
        row["total_ms"] = int(entry["total_us"]) / 1000
        found.append(row)
    return found


def main() -> int:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("directory", type=Path)
    options.add_argument("--stacks", nargs="+", choices=STACKS, default=list(STACKS))
    options.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    options.add_argument("--learn", type=int, default=1000, help="requests of the first stage")
    options.add_argument("--levels", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    options.add_argument("--requests", type=int, default=1500, help="of each of these")
    options.add_argument("--call-ms", type=float, default=CALL_MS)
    given = options.parse_args()
    given.directory.mkdir(parents=True, exist_ok=True)
    for variant in given.variants:
        for name in given.stacks:
            stages = ((1, given.learn), *((level, given.requests) for level in given.levels))
            slow = "" if given.call_ms == CALL_MS else f"-{given.call_ms:g}ms"
            path = given.directory / f"{name}-{variant}{slow}.jsonl.gz"
            print(record(STACKS[name], variant, stages, given.call_ms, path), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
