"""Many requests at once, with a flood of malformed ones beside them."""

import asyncio
import itertools
import random

from mesh.mesh import EXPECTED_TREE, SERVICES, Click, Mesh
from mesh.ports import HOST
from mesh.tree import score

CLICKS, IN_FLIGHT, WORKERS, FLOODS = 1000, 64, 4, 16

NAMES = [
    b"x-request-id",
    b"x-b3-traceid",
    b"x-b3-spanid",
    b"x-b3-parentspanid",
    b"x-b3-sampled",
    b"x-b3-flags",
    b"b3",
    b"x-ot-span-context",
    b"traceparent",
]


def malformed(dice: random.Random) -> bytes:
    """A request that Envoy forwards, or refuses; either way a nasty one."""

    def value() -> bytes:
        kind = dice.randrange(6)
        if kind == 0:
            return bytes(dice.choice([*range(0x20, 0x7F), *range(0x80, 0x100)]) for _ in range(20))
        if kind == 1:
            return b"\xff" * dice.randrange(1, 60)
        if kind == 2:
            return b"0" * dice.randrange(0, 40)
        if kind == 3:
            return b"-".join([b"a" * dice.randrange(40)] * dice.randrange(1, 6))
        if kind == 4:
            return b"," * dice.randrange(4) + b"1" * dice.randrange(3)
        return b"x" * dice.randrange(9000)

    lines = [b"GET /flood HTTP/1.1", b"Host: localhost"]
    for _ in range(dice.randrange(1, 12)):
        lines.append(dice.choice(NAMES) + b": " + value())
    if dice.random() < 0.1:  # what is no HTTP at all
        lines.insert(1, bytes(dice.randrange(256) for _ in range(30)))
    return b"\r\n".join(lines) + b"\r\n\r\n"


async def flood(seed: int, ports: list[int], stop: asyncio.Event) -> int:
    """One after the other until told to stop; returns how many were sent."""
    dice = random.Random(seed)
    for sent in itertools.count():
        if stop.is_set():
            return sent
        reader, writer = await asyncio.open_connection(HOST, dice.choice(ports))
        writer.write(malformed(dice))
        try:
            # Some are cut off before there is an answer.
            await asyncio.wait_for(reader.read(100), timeout=dice.choice([0.001, 0.2]))
        except (TimeoutError, ConnectionError):
            pass
        writer.close()
    raise AssertionError


async def both(mesh: Mesh, flooded: list[int]) -> tuple[list[Click], int]:
    """The clicks, and how many malformed requests were sent beside them."""
    stop = asyncio.Event()
    floods = [asyncio.create_task(flood(seed, flooded, stop)) for seed in range(FLOODS)]
    try:
        clicks = await asyncio.to_thread(mesh.clicks, CLICKS, IN_FLIGHT)
    finally:
        stop.set()
    return clicks, sum(await asyncio.gather(*floods))


def test_no_call_goes_astray() -> None:
    tags = ["decision", "rule", "direction"]
    with Mesh(concurrency=WORKERS, extra_stat_tags=tags) as mesh:
        # Straight at the sidecars, inbound and outbound.
        flooded = [mesh.inbound_ports["reviews"], mesh.outbound_ports["reviews"]]
        flooded += [mesh.inbound_ports["productpage"], mesh.outbound_ports["productpage"]]
        clicks, sent = asyncio.run(both(mesh, flooded))
        spans = mesh.wait_spans(CLICKS * EXPECTED_TREE.size, timeout=60)
        stats = {name: mesh.envoys[name].stats("b3relay_") for name in SERVICES}
        logs = {name: envoy.log() for name, envoy in mesh.envoys.items()}
    print(f"{CLICKS} clicks, {IN_FLIGHT} at once, {sent} malformed requests beside them")

    assert sent > 500, "else the flood was none"
    assert {click.status for click in clicks} == {200}
    of_clicks = [span for span in spans if "click=" in span["tags"].get("http.url", "")]
    result = score(of_clicks, EXPECTED_TREE, range(1, CLICKS + 1))
    print(result)
    assert (result.whole, result.wrong_trace) == (CLICKS, 0)

    def total(family: str) -> float:
        found = (n for s in stats.values() for name, n in s.items() if name.startswith(family))
        return sum(found)

    # The flood finds its own request IDs again, now and then.
    assert total('b3relay_calls_total{decision="copied"}') >= 3 * CLICKS
    assert total("b3relay_evicted_total{") == 0
    assert total("b3relay_host_errors_total") == 0
    assert total('b3relay_findings_total{rule="L01"') > 0, "the flood was looked at"
    for name, log in logs.items():
        assert "panic" not in log and "critical" not in log, f"{name}: {log[-2000:]}"
        # Rate-limited: 60 lines a minute and worker, not one for each finding.
        assert log.count("b3relay: ") < 60 * (WORKERS + 2) * 2, name
