"""Header by header, through a real Envoy: the vectors, odd bytes, enforcement."""

import os
import random
import re
import time
import uuid
from collections.abc import Iterator

import pytest

from mesh.envoy import Direction
from mesh.plain import Plain, RawHeaders
from mesh.vectors import GOOD_REQUEST_ID, Vector, b3_of, load

# Each set goes through Envoy three times. `make test-random` runs 100,000.
RANDOM_SETS = int(os.environ.get("B3RELAY_RANDOM_SETS", "1000"))
SETS_A_TEST = 500


@pytest.fixture(scope="module")
def plain() -> Iterator[Plain]:
    listeners: dict[str, tuple[Direction, str | None]] = {
        "without": ("OUTBOUND", None),
        "inbound": ("INBOUND", "{}"),
        "outbound": ("OUTBOUND", ""),
        "at once": ("INBOUND", '{"grace_ms": 0}'),
        "repair": ("INBOUND", '{"mode": "repair", "relay": false}'),
        "enforce": ("INBOUND", '{"mode": "enforce", "relay": false}'),
        "told": ("UNSPECIFIED", '{"direction": "inbound"}'),
        "untold": ("UNSPECIFIED", '{"log_lines_per_minute": 0}'),
    }
    with Plain(listeners) as plain:
        yield plain


def findings(plain: Plain, direction: str) -> dict[str, float]:
    stats = plain.envoy.stats("b3relay_findings_total{")
    ours = ((re.search(r'rule="(\w+)"', name), name, count) for name, count in stats.items())
    return {m[1]: n for m, name, n in ours if m and f'direction="{direction}"' in name}


def unnamed(headers: RawHeaders | None) -> RawHeaders:
    """Without what differs from request to request."""
    assert headers is not None
    return [header for header in headers if header[0] != "x-envoy-expected-rq-timeout-ms"]


# Of the vectors.
TRACE = b"463ac35c9f6413ad48485a3953bb6124"


@pytest.mark.parametrize("vector", load(), ids=lambda vector: vector.name)
def test_vector(plain: Plain, vector: Vector) -> None:
    headers = vector.headers
    direction = "inbound"
    if vector.inbound is not None:
        direction = "outbound"
        # Others use the usual request ID and trace, and leave them behind for a while.
        own = ("x-request-id", str(uuid.uuid4()).encode())
        trace = uuid.uuid4().hex.encode()
        headers, inbound = (
            [
                own if header == GOOD_REQUEST_ID else (header[0], header[1].replace(TRACE, trace))
                for header in headers
            ]
            for headers in (headers, vector.inbound)
        )
        plain.get("inbound", inbound)
    without = plain.get("without", headers)
    assert without.status == 200
    before = findings(plain, direction)
    seen = plain.get(direction, headers)
    after = findings(plain, direction)
    assert sorted(r for r in after if after[r] > before.get(r, 0)) == sorted(vector.findings)
    assert seen.status == 200
    if "R01" in vector.findings:
        (given,) = [value for name, value in seen.received or () if name == "x-request-id"]
        assert re.fullmatch(rb"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", given), given
        assert given[14:15] == b"4" and given[19:20] in b"89ab"
        others = [h for h in unnamed(seen.received) if h[0] != "x-request-id"]
        assert others == [h for h in unnamed(without.received) if h[0] != "x-request-id"]
    elif "P01" in vector.findings:
        assert b3_of(seen.received or []) == b3_of(inbound)
    else:
        assert unnamed(seen.received) == unnamed(without.received)

    repaired = plain.get("repair", vector.headers)
    assert repaired.status == 200
    assert b3_of(repaired.received or []) == b3_of(vector.repaired)


def random_headers(dice: random.Random) -> RawHeaders:
    """One to ten headers; a third of the values are odd bytes."""
    names = ["x-request-id", "x-b3-traceid", "x-b3-spanid", "x-b3-parentspanid"]
    names += ["x-b3-sampled", "x-b3-flags", "b3", "x-ot-span-context", "traceparent", "accept"]
    text = [*range(0x20, 0x7F), *range(0x80, 0x100)]

    def value() -> bytes:
        kind = dice.randrange(6)
        if kind < 2:
            return bytes(dice.choices(text, k=dice.randrange(40))).strip()
        digits = "0123456789abcdef" if kind < 5 else "0123456789ABCDEF"
        hexes = ["".join(dice.choices(digits, k=k)) for k in (16, 32, dice.randrange(1, 34))]
        choices = [*hexes, "0", "1", "d", "", f"{hexes[1]}-{hexes[0]}-{dice.choice('01d2')}"]
        return dice.choice(choices).encode()

    return [(dice.choice(names), value()) for _ in range(dice.randrange(1, 11))]


@pytest.mark.parametrize("seed", range(-(-RANDOM_SETS // SETS_A_TEST)))
def test_odd_bytes_change_nothing(plain: Plain, seed: int) -> None:
    """Status and forwarded headers are those that Envoy gives without the filter."""
    dice = random.Random(seed)
    refused = 0
    # Those of other tests leave theirs behind for a second.
    time.sleep(1.1)
    for _ in range(SETS_A_TEST):
        headers = random_headers(dice)
        without = plain.get("without", headers)
        # The call first: afterwards the inbound request would be remembered.
        outbound = plain.get("outbound", headers)
        inbound = plain.get("at once", headers)
        assert without.status == outbound.status == inbound.status, headers
        if without.received is None:
            refused += 1
            continue
        assert unnamed(outbound.received) == unnamed(without.received), headers
        ids = [value for name, value in without.received if name == "x-request-id"]
        if any(ids):
            assert unnamed(inbound.received) == unnamed(without.received), headers
        else:
            (given,) = [value for name, value in inbound.received or () if name == "x-request-id"]
            assert len(given) == 36
            for both in (inbound, without):
                assert both.received is not None
                both.received[:] = [h for h in both.received if h[0] != "x-request-id"]
            assert unnamed(inbound.received) == unnamed(without.received), headers
    assert refused < SETS_A_TEST / 10, "most of them got through"
    log = plain.envoy.log()
    assert "panic" not in log and "critical" not in log


def test_byte_ff_in_every_header(plain: Plain) -> None:
    for name in ("x-request-id", "x-b3-traceid", "x-b3-spanid", "x-b3-flags", "b3", "accept"):
        for listener in ("inbound", "outbound", "repair", "told", "untold"):
            answer = plain.get(listener, [("x-request-id", b"1"), (name, b"\xff")])
            assert answer.status == 200, (name, listener)
    # And the filter is still at work.
    again = plain.get("inbound", [("x-b3-traceid", b"\xff")])
    assert any(name == "x-request-id" for name, _ in again.received or ())


def test_enforce_names_the_rule(plain: Plain) -> None:
    bad = plain.get("enforce", [("x-b3-traceid", b"463ac35c9f6413ad48485a3953bb6124")])
    assert (bad.status, bad.received) == (400, None)
    assert bad.body.startswith(b"b3relay: S01 x-b3-traceid: a trace ID without a span ID")
    # Envoy closes an HTTP/1.1 connection after every 400; the next one is served.
    assert plain.get("enforce", [("accept", b"*/*")]).status == 200


def test_the_configuration_tells_the_direction(plain: Plain) -> None:
    context = [("x-b3-traceid", b"463ac35c9f6413ad48485a3953bb6124")]
    context.append(("x-b3-spanid", b"a2fb4a1d1a96d312"))
    before = findings(plain, "inbound")
    plain.get("told", [("x-request-id", b""), *context])
    after = findings(plain, "inbound")
    assert after["R01"] == before.get("R01", 0) + 1
    # Unknown: no request ID is made up, nothing is remembered.
    key = ("x-request-id", b"5b9aa7a2-0000-4000-8000-000000000002")
    plain.get("untold", [key, *context])
    assert b3_of(plain.get("outbound", [key]).received or []) == []
    untold = plain.get("untold", [("accept", b"*/*")])
    assert all(name != "x-request-id" for name, _ in untold.received or ())
