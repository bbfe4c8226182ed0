"""No request costs more than ten times a common one: counted in instructions.

Log lines are not in it: they are limited by time (`log_lines_per_minute`).
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from module.proxy_wasm_host import INBOUND, OUTBOUND, Headers, Host, Process, load

ROOT = Path(__file__).resolve().parents[2]
WASM = Path(os.environ.get("B3RELAY_WASM", ROOT / "dist/b3relay.wasm"))

pytestmark = pytest.mark.timeout(60)

REQUEST: Headers = [
    (":method", b"GET"),
    (":path", b"/reviews/0"),
    (":authority", b"reviews:9080"),
    ("accept", b"*/*"),
    ("user-agent", b"curl/8"),
]
CONTEXT: Headers = [
    ("x-request-id", b"0f7a1c2e-1b2d-4c3e-9d4f-5a6b7c8d9e0f"),
    ("x-b3-traceid", b"463ac35c9f6413ad48485a3953bb6124"),
    ("x-b3-spanid", b"a2fb4a1d1a96d312"),
    ("x-b3-parentspanid", b"0020000000000001"),
    ("x-b3-sampled", b"1"),
]
NAMES = [name for name, _ in CONTEXT] + ["x-b3-flags", "b3", "traceparent", "tracestate"]
BYTES = 60_000
VALUES = {
    "digits": [b"a" * BYTES],
    "zeros": [b"0" * BYTES],
    "dashes": [b"-" * BYTES],
    "commas": [b"," * BYTES],
    "equal ones, joined": [b"1," * (BYTES // 2)],
    "spaces": [b" a" * (BYTES // 2)],
    "two": [b"a" * (BYTES // 2)] * 2,
    "ninety": [b"a" * (BYTES // 90)] * 90,
    "ninety short ones": [b"1-1"] * 90,
}


def instructions(headers: Headers, direction: int, mode: str) -> int:
    """What a request costs after some common ones."""
    worker = Host(load(WASM), Process())
    plugin = worker.plugin({"mode": mode, "log_lines_per_minute": 0}, direction)
    for number in range(3):
        other = ("x-request-id", b"%dfffffff-1b2d-4c3e-9d4f-5a6b7c8d9e0f" % number)
        plugin.request([*REQUEST, other, *CONTEXT[1:]])
    before = worker.instructions()
    plugin.request(headers)
    return worker.instructions() - before


@pytest.mark.parametrize("mode", ["observe", "repair", "enforce"])
@pytest.mark.parametrize("direction", [INBOUND, OUTBOUND], ids=["inbound", "outbound"])
def test_no_header_costs_more_than_ten_requests(direction: int, mode: str) -> None:
    common = instructions([*REQUEST, *CONTEXT], direction, mode)
    dear = {}
    for name in NAMES:
        others = [header for header in CONTEXT if header[0] != name]
        for what, values in VALUES.items():
            headers = [*REQUEST, *others, *((name, value) for value in values)]
            cost = instructions(headers, direction, mode) / common
            if cost > 10:
                dear[f"{name}: {what}"] = round(cost, 1)
    assert dear == {}


@pytest.mark.parametrize("mode", ["observe", "repair", "enforce"])
def test_all_headers_at_once(mode: str) -> None:
    """As many findings as there can be."""
    common = instructions([*REQUEST, *CONTEXT], INBOUND, mode)
    for value in (b"a" * 6_000, b"1," * 3_000, b"-" * 6_000, b"A" * 15):
        headers = [*REQUEST, *((name, value) for name in NAMES for _ in range(2))]
        assert instructions(headers, INBOUND, mode) < 10 * common, value[:4]
