"""That the judge is to be trusted: content with what is right, and each invariant can fail.

One world is run on a real Envoy; then what was seen is changed, one thing at a time.
"""

import asyncio
import copy
import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from mesh.mesh import ROOT, wasm_path
from worlds.apps import Received, Run, contexts
from worlds.judge import KINDS, Facts, judge
from worlds.mesh import Evidence, Servers, witness
from worlds.run import KEPT
from worlds.shrink import smaller
from worlds.world import (
    ALL7,
    VERSIONS,
    Batch,
    Call,
    Route,
    Sdk,
    Service,
    Step,
    World,
    generate,
    simple,
)


def _world() -> World:
    """A bit of all that is judged."""
    out = {"report_header": "request", "attribution": "off"}
    services = [Service(forward=list(ALL7), config_out=dict(out)) for _ in range(3)]
    services[1] = Service(sdk=Sdk(["b3multi"], True), own_id=True, config_out=dict(out))
    services[2].forward = ["x-request-id"]
    routes = [
        Route(
            0,
            "/list",
            steps=[Step([Call(1, "orders"), Call(2, "users")], True), Step([Call(4, "prices")])],
        ),
        Route(1, "/item", steps=[Step([Call(3, "stock")])]),
        Route(2, "/status", steps=[Step([Call(3, "stock"), Call(None, "api.example.com")])]),
        Route(3, "/check"),
        Route(4, "/price", steps=[Step([Call(3, "stock")])]),
    ]
    services.append(Service(config_out=dict(out)))
    services.append(Service(config_out={"report_header": "request"}))
    return World(
        1,
        spans="well",
        services=services,
        routes=routes,
        batches=[
            # `alone` is asked only where the next one does not come at once.
            Batch(6, 1, ["plain"], tenants=["x-tenant-id"], pause_ms=50),
            Batch(8, 4, ["plain", "b3multi"], tenants=["x-tenant-id"]),
        ],
    )


async def _witness(world: World) -> Evidence:
    servers = Servers()
    await servers.start()
    return await witness(world, servers, wasm_path())


@pytest.fixture(scope="module")
def seen() -> Evidence:
    return asyncio.run(_witness(_world()))


def kinds(evidence: Evidence) -> set[str]:
    return {fault.kind for fault in judge(evidence).faults}


def test_the_judge_is_content(seen: Evidence) -> None:
    verdict = judge(seen)
    assert [str(fault) for fault in verdict.faults] == []
    assert verdict.asked is not None
    # `guess`, `body`, `span` and `alarm` are asked along with others.
    always = set(KINDS) - {"guess", "body", "span", "alarm"}
    assert {kind for kind in always if not verdict.asked[kind]} == set()


def test_without_the_filter_all_is_well() -> None:
    """What the judge finds is the filter's doing: here there is none."""
    world = generate(4)
    for service in world.services:
        service.filter = False
    assert judge(asyncio.run(_witness(world))).faults == []


def two(evidence: Evidence, path: str) -> tuple[Received, Received]:
    """Two requests of that path, of different roots."""
    found = [got for got in evidence.runs["with"].received if got.call and got.call.path == path]
    first = found[0]
    assert first.call
    other = next(g for g in found if g.call and g.call.root is not first.call.root)
    return first, other


def edit(got: Received, name: str, value: bytes) -> None:
    got.headers = [pair for pair in got.headers if pair[0] != name] + [(name, value)]


def move(
    evidence: Evidence, got: Received, trace: str | None = None, parent: str | None = None
) -> None:
    """Its server span is in another trace, or below another span."""
    span = Facts(evidence, evidence.runs["with"]).server[got.number]
    move_raw(evidence, span.id, parent, trace)


def move_raw(
    evidence: Evidence, span_id: str, parent: str | None, trace: str | None = None
) -> None:
    (at,) = (at for at, span in enumerate(evidence.spans) if span.id == span_id)
    span = evidence.spans[at]
    evidence.spans[at] = replace(span, trace=trace or span.trace, parent=parent or span.parent)


def crossed(evidence: Evidence) -> None:
    one, other = two(evidence, "/status")
    facts = Facts(evidence, evidence.runs["with"])
    move(evidence, one, trace=facts.server[other.number].trace)


def parent(evidence: Evidence) -> None:
    one, other = two(evidence, "/status")
    move(evidence, one, parent=Facts(evidence, evidence.runs["with"]).server[other.number].id)


def another_id(evidence: Evidence) -> None:
    one, other = two(evidence, "/check")
    (value,) = [v for n, v in other.headers if n == "x-request-id"]
    assert one.call and other.call and other.call.by and other.call.by.call
    root = other.call.root.received[0]
    (value,) = [v for n, v in root.headers if n == "x-request-id"]
    edit(one, "x-request-id", value)


def own_id(evidence: Evidence) -> None:
    got = next(g for g in evidence.runs["with"].received if g.call and g.call.own_id)
    edit(got, "x-request-id", b"11111111-2222-4333-8444-555555555555")


def leak(evidence: Evidence) -> None:
    one, other = two(evidence, "/status")
    assert other.call
    edit(one, "x-tenant-id", other.call.root.marks[0])


def guess(evidence: Evidence) -> None:
    one, _ = two(evidence, "/status")
    assert one.call
    edit(one, "x-b3relay", b"outbound; exclusive")
    edit(one, "x-tenant-id", one.call.root.marks[0])


def outside(evidence: Evidence) -> None:
    got = next(g for g in evidence.runs["with"].received if g.service is None)
    edit(got, "x-b3-traceid", b"1" * 32)


def status(evidence: Evidence) -> None:
    evidence.runs["with"].made[0].status = 431


def body(evidence: Evidence) -> None:
    evidence.runs["with"].made[0].answer = {"calls": []}


def span(evidence: Evidence) -> None:
    one, _ = two(evidence, "/status")
    assert one.call and one.call.by
    facts = Facts(evidence, evidence.runs["with"])
    edit(one, "x-b3-spanid", facts.server[one.call.by.number].id.encode())


def edge(evidence: Evidence) -> None:
    """The SDK's own: its client span, and the callee below it."""
    got = next(
        g
        for g in evidence.runs["with"].received
        if g.call and g.call.by and g.call.by.sdk and contexts(g.call.sent)
    )
    assert got.call and got.call.by
    facts = Facts(evidence, evidence.runs["with"])
    move(evidence, got, parent=facts.server[got.call.by.number].id)


def piece(evidence: Evidence) -> None:
    got = next(
        g
        for g in evidence.runs["with"].received
        if g.call and g.call.path == "/check" and g.call.by and not g.call.by.sdk
    )
    move(evidence, got, trace="9" * 32)


def alone(evidence: Evidence) -> None:
    got = next(
        g
        for g in evidence.runs["with"].received
        if g.call and g.call.by and g.call.by.service == 4 and g.call.by.call
    )
    edit(got, "x-b3relay", b"outbound; unsure")
    move(evidence, got, trace="9" * 32)


def client_alone(evidence: Evidence) -> None:
    """The client span of a call is missing, and the callee hangs from its caller."""
    facts = Facts(evidence, evidence.runs["with"])
    got = next(
        g
        for g in evidence.runs["with"].received
        if g.call and g.call.by and g.number in facts.server and not contexts(g.call.sent)
        and facts.chain(g) == "caller"
    )
    above = facts.relayed.pop(facts.reported_parent[facts.server[got.number].id] or "")
    evidence.relayed.remove(above)
    evidence.stats["spans_sent_total"] -= 1
    move_raw(evidence, facts.server[got.number].id, above.parent)


def client_lost(evidence: Evidence) -> None:
    evidence.stats["spans_lost_total"] += 1


def client_twice(evidence: Evidence) -> None:
    evidence.relayed.append(evidence.relayed[0])
    evidence.stats["spans_sent_total"] += 1


def client_elsewhere(evidence: Evidence) -> None:
    evidence.relayed[0] = replace(evidence.relayed[0], trace="9" * 32)


def metrics(evidence: Evidence) -> None:
    evidence.stats["decision=.=copied;.;calls_total"] += 1


def finding(evidence: Evidence) -> None:
    one, _ = two(evidence, "/status")
    edit(one, "x-b3relay", b"outbound; P01 x-b3-traceid; present")


def alarm(evidence: Evidence) -> None:
    evidence.stats["host_errors_total"] = 1


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("crossed", crossed),
        ("parent", parent),
        ("id", another_id),
        ("own_id", own_id),
        ("leak", leak),
        ("guess", guess),
        ("outside", outside),
        ("status", status),
        ("body", body),
        ("span", span),
        ("edge", edge),
        ("piece", piece),
        ("alone", alone),
        ("client", client_alone),
        ("client", client_lost),
        ("client", client_twice),
        ("client", client_elsewhere),
        ("metrics", metrics),
        ("finding", finding),
        ("alarm", alarm),
    ],
)
def test_each_invariant_can_fail(
    seen: Evidence, kind: str, change: Callable[[Evidence], None]
) -> None:
    runs = {name: copy.deepcopy(_bare(run)) for name, run in seen.runs.items()}
    spans, relayed = list(seen.spans), list(seen.relayed)
    evidence = replace(seen, runs=runs, spans=spans, relayed=relayed, stats=dict(seen.stats))
    change(evidence)
    assert kind in kinds(evidence)


def _bare(run: Run) -> Run:
    """Without what cannot be copied."""
    bare = copy.copy(run)
    del bare.client, bare.tasks
    return bare


def test_worlds_survive_their_json() -> None:
    for seed in range(200):
        world = generate(seed)
        assert World.from_json(world.to_json()) == world
        assert generate(seed) == world


def test_smaller_worlds_are_worlds() -> None:
    for seed in range(50):
        for world in smaller(generate(seed)):
            assert World.from_json(world.to_json()) == world
            assert world.routes and world.batches and world.describe()
            for route in world.routes:
                assert route.service < len(world.services)


def test_what_is_kept_can_be_read() -> None:
    for path in KEPT.glob("*.json"):
        World.from_json(json.dumps(json.loads(path.read_text())["world"]))


def test_the_simple_world_is_green() -> None:
    assert judge(asyncio.run(_witness(simple(1)))).faults == []


def test_the_envoys_are_those_that_are_installed() -> None:
    """In the place of one that is not installed the newest runs, and a line says so."""
    makefile = (ROOT / "Makefile").read_text()
    older = makefile.split("\nENVOY_VERSIONS := ")[1].splitlines()[0].split()
    requirements = (ROOT / "tests" / "requirements.txt").read_text()
    newest = requirements.split("\nenvoy-server==")[1].split()[0]
    assert VERSIONS == (*older, newest)
