"""No request costs more than ten times a common one, nor more than in proportion to its
size: counted in instructions.

Log lines are not in it: they are limited by time (`log_lines_per_minute`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from itertools import pairwise
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


def instructions(
    headers: Headers, direction: int, mode: str, config: Mapping[str, object] | None = None
) -> int:
    """What a request costs after some common ones."""
    worker = Host(load(WASM), Process())
    plugin = worker.plugin({"mode": mode, "log_lines_per_minute": 0, **(config or {})}, direction)
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


def is_linear(costs: list[int]) -> bool:
    """Costs of sizes that double each time: does what is added no more than double?

    Of a cost that grows with the square it would be four times as much. Judged by the
    larger sizes, where that shows. A hundredth of the cost is left for memory, which
    grows in steps.
    """
    added = [after - before for before, after in pairwise(costs)][-3:]
    slack = costs[-1] // 100
    return all(after <= 2.5 * max(before, 0) + slack for before, after in pairwise(added))


def test_a_cost_that_grows_with_the_square_is_told_apart() -> None:
    sizes = [2**power for power in range(6, 17)]
    assert is_linear([40_000 + 3 * size for size in sizes])
    assert not is_linear([40_000 + size * size // 100 for size in sizes])
    assert not is_linear([40_000 + size * size.bit_length() ** 2 * size // 9999 for size in sizes])


def one(name: str, text: bytes) -> Callable[[int], Headers]:
    """A header of so many bytes."""
    return lambda size: [(name, (text * (size // len(text) + 1))[:size])]


def many(name: str, text: bytes) -> Callable[[int], Headers]:
    """So many headers; `*` in the name, and `%d` in the text, is a number."""
    return lambda size: [
        (name.replace("*", str(number)), text.replace(b"%d", b"%d" % number))
        for number in range(size)
    ]


BYTES_OF_ONE = [117 << power for power in range(10)]
COUNTS = [6, 12, 24, 48, 96, 192]
# The sizes, and the headers that a request of a size has besides the common ones.
LARGE: dict[str, tuple[list[int], Callable[[int], Headers]]] = {
    "a long header": (BYTES_OF_ONE, one("x-long", b"a")),
    "a long cookie": (BYTES_OF_ONE, one("cookie", b"session=0123456789abcdef; theme=dark; ")),
    "a long path": (BYTES_OF_ONE, one(":path", b"/part")),
    "headers": (COUNTS, many("x-other-*", b"value-%d")),
    "headers of 600 bytes": (COUNTS, many("x-other-*", b"v" * 600)),
    "cookies": (COUNTS, many("cookie", b"session-%d=0123456789abcdef")),
    "copied headers": (COUNTS, many("x-copied-*", b"value-%d")),
    **{f"a long {name}": (BYTES_OF_ONE, one(name, b"1")) for name in NAMES},
    **{f"many {name}": (COUNTS, many(name, b"1-%d")) for name in NAMES},
}


@pytest.mark.parametrize(
    ("mode", "attribution"), [("observe", "exclusive"), ("repair", "inferred")]
)
@pytest.mark.parametrize("direction", [INBOUND, OUTBOUND], ids=["inbound", "outbound"])
def test_the_cost_is_linear(direction: int, mode: str, attribution: str) -> None:
    """100 bytes to 60 KB, and 6 to 192 headers."""
    config: dict[str, object] = {"attribution": attribution, "copy_headers": ["x-copied-*"]}
    curved = {}
    for what, (sizes, headers) in LARGE.items():
        costs = []
        for size in sizes:
            more = headers(size)
            names = {name for name, _ in more}
            rest = [header for header in [*REQUEST, *CONTEXT] if header[0] not in names]
            costs.append(instructions([*rest, *more], direction, mode, config))
        if not is_linear(costs):
            curved[what] = costs
    assert curved == {}
