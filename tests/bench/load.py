"""The load: wrk, which sends different headers with each request, as fast as it is answered."""

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.shapes import Headers
from mesh.ports import HOST
from mesh.procs import MeshError

# Few: requests that wait in line tell nothing about the filter.
CONNECTIONS = 8
PERCENTILES = ("50th", "90th", "99th")

# Requests are taken in turn from a file, in which zero bytes part them.
_SCRIPT = """
local file = io.open({requests}, "rb")
local requests, last = {{}}, 0
for text in file:read("*a"):gmatch("[^%z]+") do
  requests[#requests + 1] = text
end
file:close()

function request()
  last = last % #requests + 1
  return requests[last]
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    'RESULT {{"requests": %d, "us": %d, "failed": %d, "50th": %f, "90th": %f, "99th": %f}}\\n',
    summary.requests, summary.duration,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout,
    latency:percentile(50), latency:percentile(90), latency:percentile(99)))
end
"""


def wrk() -> str:
    found = shutil.which("wrk")
    if found is None:
        raise MeshError("wrk is missing (Debian: wrk)")
    return found


@dataclass(frozen=True)
class Load:
    """What was answered, and how long it took."""

    requests: int
    # Requests per second.
    rate: float
    # Microseconds, by the names of PERCENTILES.
    latencies: dict[str, float]


def write_script(path: Path, requests: Sequence[Headers]) -> None:
    """What wrk is to send."""
    texts = []
    for headers in requests:
        lines = ["GET /reviews/0 HTTP/1.1", *(f"{name}: {text}" for name, text in headers.items())]
        texts.append("\r\n".join([*lines, "", ""]))
    file = path.with_suffix(".requests")
    file.write_bytes("\0".join(texts).encode())
    path.write_text(_SCRIPT.format(requests=json.dumps(str(file))))


def send(script: Path, port: int, seconds: int) -> Load:
    """Send what the script has, in turn; every request must be answered with 200."""
    words = ["-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "-s", str(script), f"http://{HOST}:{port}"]
    # Killed by its ID if this is interrupted.
    done = subprocess.run([wrk(), *words], capture_output=True, text=True, timeout=seconds + 30)
    result = re.search(r"^RESULT (.*)$", done.stdout, re.MULTILINE)
    if done.returncode != 0 or result is None:
        raise MeshError(f"wrk: {done.stdout}{done.stderr}")
    found = json.loads(result[1])
    if found["failed"]:
        raise MeshError(f"wrk, {script.stem}: {found['failed']} requests failed")
    latencies = {name: float(found[name]) for name in PERCENTILES}
    return Load(found["requests"], found["requests"] / found["us"] * 1e6, latencies)
