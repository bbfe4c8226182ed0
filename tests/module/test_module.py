"""The compiled module: the vectors, the life of a stream, and whatever a host
or a client may do to it.

The core has its own tests; here it is run as Envoy runs it, so these are about
the way in and out: header maps, shared data, metrics, log lines, statuses.
"""

from __future__ import annotations

import functools
import os
import random
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mesh import vectors
from mesh.vectors import Vector
from module.proxy_wasm_host import (
    CAS_MISMATCH,
    CONTINUE,
    INBOUND,
    OUTBOUND,
    PAUSE,
    STATUSES,
    Headers,
    Host,
    Plugin,
    Process,
    Seen,
    Stream,
    load,
    serialize,
)

ROOT = Path(__file__).resolve().parents[2]
WASM = Path(os.environ.get("B3RELAY_WASM", ROOT / "dist/b3relay.wasm"))

pytestmark = pytest.mark.timeout(60)

# --- Requests ---------------------------------------------------------------


def header(line: str) -> tuple[str, bytes]:
    r"""`name: value`, with `\xNN` for a byte."""
    name, _, text = line.partition(": ")
    escaped = re.compile(rb"\\x([0-9a-f]{2})")
    return name, escaped.sub(lambda found: bytes.fromhex(found[1].decode()), text.encode())


def headers(*lines: str) -> Headers:
    return [header(line) for line in lines]


ID = "x-request-id: 0f7a1c2e-1b2d-4c3e-9d4f-5a6b7c8d9e0f"
OTHER_ID = "x-request-id: 1f7a1c2e-1b2d-4c3e-9d4f-5a6b7c8d9e0f"
NEW_ID = "x-request-id: 2f7a1c2e-1b2d-4c3e-9d4f-5a6b7c8d9e0f"
CONTEXT = (
    "x-b3-traceid: 463ac35c9f6413ad48485a3953bb6124",
    "x-b3-spanid: a2fb4a1d1a96d312",
    "x-b3-parentspanid: 0020000000000001",
    "x-b3-sampled: 1",
)
OTHER_CONTEXT = (
    "x-b3-traceid: 563ac35c9f6413ad48485a3953bb6124",
    "x-b3-spanid: b2fb4a1d1a96d312",
    "x-b3-sampled: 1",
)
UUID = re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
BROKEN = "x-b3-traceid: xyz"  # breaks L01 and S01, both of severity error


def b3(seen: Headers) -> Headers:
    """The B3 headers, sorted."""
    return sorted(pair for pair in seen if pair[0] == "b3" or pair[0].startswith("x-b3-"))


def stat(name: str, **labels: str) -> str:
    """A stat name as the module defines it."""
    parts = "".join(f"{label}=.={value};.;" for label, value in labels.items())
    return f"b3relay_{parts}{name}_total"


def host(process: Process | None = None) -> Host:
    return Host(load(WASM), process)


def decision(process: Process, act: Callable[[], Seen]) -> tuple[str, Seen]:
    """What was decided about an outbound call, by the metric."""
    before = process.metrics.copy()
    seen = act()
    (name,) = [n for n in process.metrics - before if "calls_total" in n]
    return re.fullmatch(r"b3relay_decision=\.=(\w+);\.;calls_total", name)[1], seen


@dataclass
class Sidecar:
    """Both plugins of a sidecar, in one VM as in Envoy."""

    host: Host
    inbound: Plugin
    outbound: Plugin

    def call(self, *lines: str) -> tuple[str, Headers]:
        """An outbound call: the decision, and the B3 headers after."""
        request = headers(*lines)
        made, seen = decision(self.host.process, lambda: self.outbound.request(request))
        return made, b3(seen.headers)


def sidecar(configuration: dict[str, object] | None = None, worker: Host | None = None) -> Sidecar:
    worker = worker or host()
    configuration = configuration or {}
    return Sidecar(
        worker, worker.plugin(configuration, INBOUND), worker.plugin(configuration, OUTBOUND)
    )


def served(plugin: Plugin, *lines: str) -> Stream:
    """A stream whose request headers have passed."""
    stream = plugin.stream()
    assert stream.on_request_headers(headers(*lines)).action == CONTINUE
    return stream


# --- The vectors ------------------------------------------------------------


VECTORS = vectors.load()
every_vector = pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector.name)


@functools.cache
def severities() -> dict[str, str]:
    """Each rule's severity, from the table in the source."""
    source = (ROOT / "src/rules.rs").read_text()
    found = dict(re.findall(r"^ +([A-Z]\d\d), (Error|Warn|Info), ", source, re.MULTILINE))
    assert {rule for vector in VECTORS for rule in vector.findings} <= set(found)
    return {rule: severity.lower() for rule, severity in found.items()}


def worst(vector: Vector) -> set[str]:
    return {rule for rule in vector.findings if severities()[rule] == "error"}


@pytest.mark.parametrize(
    ("vector", "direction"),
    [
        pytest.param(vector, direction, id=f"{vector.name}-{direction}")
        for vector in VECTORS
        for direction in ("inbound", "outbound")
        if vector.inbound is None or direction == "outbound"
    ],
)
def test_vector_is_observed(vector: Vector, direction: str) -> None:
    worker = host()
    if vector.inbound is not None:
        worker.plugin(direction=INBOUND).request(vector.inbound)
    worker.process.metrics.clear()
    plugin = worker.plugin(direction=INBOUND if direction == "inbound" else OUTBOUND)
    seen = plugin.request(vector.headers)
    assert seen.action == CONTINUE and seen.reply is None

    counted = {n: v for n, v in worker.process.counted().items() if "findings" in n}
    expected = Counter(stat("findings", rule=rule, direction=direction) for rule in vector.findings)
    assert counted == dict(expected)
    assert worker.process.metrics[stat("requests", direction=direction)] == 1

    logged = [re.match(r"(\w+) (\w+) (\w+): ", line) for line in worker.lines()]
    assert [found.groups() for found in logged if found] == [
        (rule, severities()[rule], direction)
        for rule in vector.findings
        if severities()[rule] != "info"
    ]
    assert len(worker.log) == len(logged) and all(logged)

    ids = [value for name, value in vector.headers if name == "x-request-id"]
    if direction == "inbound" and not any(ids[:1]):
        # The one thing that `observe` changes.
        others = [pair for pair in vector.headers if pair[0] != "x-request-id"]
        (filled,) = [value for name, value in seen.headers if name == "x-request-id"]
        assert UUID.fullmatch(filled)
        assert sorted(seen.headers) == sorted([*others, ("x-request-id", filled)])
        assert worker.process.metrics[stat("request_ids_generated")] == 1
    elif "P01" not in vector.findings:  # that one is relayed
        assert seen.headers == vector.headers
        assert worker.process.metrics[stat("request_ids_generated")] == 0


@every_vector
def test_vector_is_repaired(vector: Vector) -> None:
    worker = host()
    plugin = worker.plugin({"mode": "repair"}, INBOUND)
    once = plugin.request(vector.headers)
    assert once.action == CONTINUE
    assert b3(once.headers) == b3(vector.repaired)
    changed = b3(once.headers) != b3(vector.headers) or "R06" in vector.findings
    assert worker.process.metrics[stat("repaired", direction="inbound")] == changed
    assert plugin.request(once.headers).headers == once.headers, "repairing twice"


@every_vector
def test_vector_is_enforced(vector: Vector) -> None:
    worker = host()
    stream = worker.plugin({"mode": "enforce"}, INBOUND).stream()
    seen = stream.on_request_headers(vector.headers)
    errors = worst(vector)
    assert worker.process.metrics[stat("rejected", direction="inbound")] == bool(errors)
    if errors:
        assert seen.action == PAUSE and seen.reply is not None
        assert seen.reply.status == 400
        assert seen.headers == vector.headers
        named = re.findall(r"^b3relay: (\w+) [\w-]+: .+; right: .+$", seen.reply.body, re.MULTILINE)
        assert set(named) == errors and len(named) == seen.reply.body.count("\n")
        assert seen.reply.headers == [("content-type", b"text/plain")]
    else:
        assert seen.action == CONTINUE and seen.reply is None
    # What was rejected is deleted like any other stream.
    stream.done()
    stream.log()
    stream.delete()
    worker.plugin(direction=INBOUND).request(headers(ID, *CONTEXT))


# --- The relay --------------------------------------------------------------


def test_the_context_goes_from_inbound_to_outbound() -> None:
    both = sidecar()
    served(both.inbound, ID, *CONTEXT)
    assert both.call(ID) == ("copied", b3(headers(*CONTEXT)))
    assert both.call(ID.replace("-4c3e-", "-9c3e-")) == ("copied", b3(headers(*CONTEXT)))
    assert both.call(ID, *OTHER_CONTEXT) == ("present", b3(headers(*OTHER_CONTEXT)))
    assert both.call(OTHER_ID) == ("unknown", [])
    assert both.call() == ("no_key", [])


def test_a_generated_request_id_is_a_key_too() -> None:
    both = sidecar()
    seen = both.inbound.request(headers(*CONTEXT))
    (given,) = [value for name, value in seen.headers if name == "x-request-id"]
    assert both.call(f"x-request-id: {given.decode()}") == ("copied", b3(headers(*CONTEXT)))


def test_the_context_goes_from_worker_to_worker() -> None:
    process = Process()
    one, two = sidecar(worker=host(process)), sidecar(worker=host(process))
    stream = served(one.inbound, ID, *CONTEXT)
    assert two.call(ID) == ("copied", b3(headers(*CONTEXT)))
    stream.end()
    assert two.call(ID)[0] == "copied"
    process.wait(1000)
    assert two.call(ID)[0] == "unknown"


def test_workers_that_write_one_bucket_lose_nothing() -> None:
    process = Process()
    one, two = sidecar(worker=host(process)), sidecar(worker=host(process))

    def meanwhile(name: str) -> None:
        # The other worker remembers a request between this one's get and set.
        if name == "proxy_set_shared_data":
            one.host.fault = None
            served(two.inbound, ID, *CONTEXT)

    one.host.fault = meanwhile
    first = served(one.inbound, ID, *CONTEXT)
    assert process.metrics[stat("remembered")] == 2
    first.end()
    process.wait(1000)
    assert one.call(ID)[0] == "copied", "the other worker's is still being served"


def test_a_bucket_that_never_stands_still_is_given_up() -> None:
    both = sidecar()
    both.host.fault = lambda name: CAS_MISMATCH if name == "proxy_set_shared_data" else None
    seen = both.inbound.request(headers(ID, *CONTEXT))
    both.host.fault = None
    assert (seen.action, seen.headers) == (CONTINUE, headers(ID, *CONTEXT))
    assert both.host.process.metrics[stat("not_remembered", reason="contention")] == 1
    assert both.call(ID)[0] == "unknown"


def test_listed_headers_are_copied() -> None:
    both = sidecar({"copy_headers": ["Baggage"]})
    served(both.inbound, ID, "baggage: a=\\xff", "baggage: b", "x-ot-span-context: \\x00\\xfe")
    call = headers(ID, "accept: */*")
    assert both.outbound.request(call).headers == [
        *call,
        *headers("baggage: a=\\xff", "baggage: b", "x-ot-span-context: \\x00\\xfe"),
    ]


def test_a_stream_that_ends_is_forgotten_after_the_grace() -> None:
    both = sidecar({"grace_ms": 200})
    process = both.host.process
    first = served(both.inbound, ID, *CONTEXT)
    process.wait(3_600_000)
    assert both.call(ID)[0] == "copied", "as long as the request lasts"
    first.delete()  # without `done` and `log`: a stream that was reset
    process.wait(199)
    assert both.call(ID)[0] == "copied", "within the grace"
    process.wait(1)
    assert both.call(ID) == ("unknown", [])
    # The same request ID again: the new request's context, not the old one's.
    second = served(both.inbound, ID, *OTHER_CONTEXT)
    assert both.call(ID) == ("copied", b3(headers(*OTHER_CONTEXT)))
    second.end()
    process.wait(200)
    assert both.call(ID)[0] == "unknown"


def test_requests_that_cannot_be_told_apart_lend_nothing() -> None:
    both = sidecar()
    served(both.inbound, ID, *CONTEXT)
    served(both.inbound, ID, *OTHER_CONTEXT)
    assert both.call(ID) == ("ambiguous", [])


# --- The direction ----------------------------------------------------------


def observed_direction(worker: Host, plugin: Plugin) -> str:
    before = worker.process.metrics.copy()
    plugin.request(headers(OTHER_ID))
    names = [name for name in worker.process.metrics - before if "requests_total" in name]
    (found,) = [re.search(r"direction=\.=(\w+);\.;", name) for name in names]
    return found[1]


@pytest.mark.parametrize(
    ("configured", "listener", "expected"),
    [
        (None, INBOUND, "inbound"),
        (None, OUTBOUND, "outbound"),
        (None, 0, "unknown"),
        (None, 3, "unknown"),
        (None, None, "unknown"),
        ("auto", OUTBOUND, "outbound"),
        ("inbound", None, "inbound"),
        ("outbound", None, "outbound"),
        ("inbound", OUTBOUND, "inbound"),
        ("outbound", INBOUND, "outbound"),
    ],
)
def test_direction(configured: str | None, listener: int | None, expected: str) -> None:
    worker = host()
    plugin = worker.plugin({"direction": configured} if configured else {}, listener)
    assert observed_direction(worker, plugin) == expected
    if configured not in (None, "auto"):
        assert not worker.calls["proxy_get_property"], "it is not asked for in vain"


@pytest.mark.parametrize("value", [b"", b"\x01", b"\x01" * 9, b"\xff" * 8])
def test_a_direction_that_cannot_be_read_is_unknown(value: bytes) -> None:
    worker = host()
    plugin = worker.plugin()
    plugin.properties["xds.listener_direction"] = value
    assert observed_direction(worker, plugin) == "unknown"


@pytest.mark.parametrize("mode", ["observe", "repair"])
def test_without_a_direction_it_only_checks(mode: str) -> None:
    worker = host()
    plugin = worker.plugin({"mode": mode})
    before = worker.process.data_bytes()
    for request in (headers(*CONTEXT), headers(ID), headers(ID, *CONTEXT)):
        assert plugin.request(request).headers == request
    assert plugin.request(headers(ID, BROKEN)).action == CONTINUE
    assert worker.process.data_bytes() == before
    counted = worker.process.counted()
    assert counted[stat("findings", rule="L01", direction="unknown")] == 1
    assert {re.search(r"(\w+)_total", name)[1] for name in counted} <= {
        *("requests", "findings", "repaired")
    }


# --- Memory -----------------------------------------------------------------


# Eight for each bucket: enough to see it level off.
STREAMS = int(os.environ.get("B3RELAY_STREAMS", 8_000))


def test_memory_is_bounded() -> None:
    """Shared data cannot be deleted, so whatever grows would grow for ever."""
    both = sidecar({"grace_ms": 50})
    process = both.host.process
    shared, own = [], []
    for number in range(STREAMS):
        process.wait(1)
        stream = both.inbound.stream()
        stream.on_request_headers(
            [("x-request-id", b"%08x-1b2d-4c3e-9d4f-5a6b7c8d9e0f" % number), *headers(*CONTEXT)]
        )
        stream.delete()
        if number % (STREAMS // 20) == 0:
            shared.append(process.data_bytes())
            own.append(both.host.memory_bytes())
    assert len(process.data) <= 1025
    # An ended entry stays until its bucket is written again, so the level is
    # reached once every bucket has been written, and is flat from there on.
    assert max(shared[15:]) < 1.05 * max(shared[10:15]), shared
    assert max(shared) < 1025 * 2 * 120, shared
    assert own[-1] == own[2], own
    assert process.metrics[stat("evicted")] == 0


def test_streams_that_never_end_are_evicted() -> None:
    # Capacity 64 is 8 entries to a bucket; one request ID falls into one bucket.
    both = sidecar({"capacity": 64})
    process = both.host.process
    before = process.data_bytes()
    streams = [served(both.inbound, ID, *CONTEXT) for _ in range(100)]
    assert process.metrics[stat("evicted")] == 100 - 8
    assert process.data_bytes() - before < 8 * 120
    for stream in streams:
        stream.end()
    process.wait(1000)
    assert both.call(ID)[0] == "unknown"


# --- The configuration ------------------------------------------------------


@pytest.mark.parametrize("configuration", [b"", b" \n", b"{}", b'{"mode": "observe"}'])
def test_nothing_is_a_configuration(configuration: bytes) -> None:
    worker = host()
    plugin = worker.plugin(configuration, INBOUND)
    assert plugin.configured and not worker.log
    assert plugin.request(headers(ID)).action == CONTINUE


@pytest.mark.parametrize(
    ("configuration", "named"),
    [
        (b'{"mod": "repair"}', "configuration key `mod` is not known"),
        (b'{"mode": "watch"}', "configuration key `mode`: found "),
        (b'{"direction": "sideways"}', "configuration key `direction`: found "),
        (b'{"relay": "yes"}', "configuration key `relay`: found "),
        (b'{"generate_request_id": 1}', "configuration key `generate_request_id`: found "),
        (b'{"copy_headers": ["x-b3-traceid"]}', "configuration key `copy_headers`: found "),
        (b'{"capacity": 7}', "configuration key `capacity`: found 7, allowed: "),
        (b'{"grace_ms": -1}', "configuration key `grace_ms`: found -1, allowed: "),
        (b'{"log_lines_per_minute": 1e9}', "configuration key `log_lines_per_minute`: found "),
        (b'{"relay": true, "relay": true}', "configuration key `relay`: found twice"),
        (b'{"relay": tru}', "line 1 column "),
        (b"[]", "JSON object"),
        (b'{"\xff": 1}', "line 1 column "),
        (b"\x00\xff\xfe", "line 1 column "),
        (b"[" * 5000, "JSON object"),
        (b'{"mode":' + b"[" * 5000, "recursion limit"),
    ],
)
def test_a_bad_configuration_is_refused_by_name(configuration: bytes, named: str) -> None:
    worker = host()
    plugin = worker.plugin(configuration, INBOUND)
    assert not plugin.configured
    ((level, line),) = worker.log
    assert level == "error" and named in line
    # Envoy makes no streams then; if it did, they would pass as they are.
    stream = plugin.stream()
    seen = stream.on_request_headers(headers(BROKEN))
    assert (seen.action, seen.headers) == (CONTINUE, headers(BROKEN))
    stream.end()


def test_a_bad_plugin_does_not_harm_its_neighbour() -> None:
    both = sidecar()
    assert not both.host.plugin(b"{").configured
    served(both.inbound, ID, *CONTEXT)
    assert both.call(ID)[0] == "copied"


# --- The log ----------------------------------------------------------------


def test_log_lines_are_limited() -> None:
    worker = host()
    plugin = worker.plugin({"log_lines_per_minute": 3}, INBOUND)
    for _ in range(10):
        plugin.request(headers(ID, "x-b3-sampled: 2"))
    assert len(worker.log) == 3
    worker.process.wait(60_000)
    plugin.request(headers(ID, "x-b3-sampled: 2"))
    assert len(worker.log) == 4
    assert worker.lines()[-1].endswith(" (7 lines before this one left out)")
    assert worker.process.metrics[stat("findings", rule="L08", direction="inbound")] == 11


def test_a_line_after_suppressed_ones_is_like_the_others() -> None:
    worker = host()
    plugin = worker.plugin({"log_lines_per_minute": 1}, INBOUND)
    for _ in range(3):
        plugin.request(headers(ID, "x-b3-sampled: 2"))
    worker.process.wait(60_000)
    plugin.request(headers(ID, "x-b3-sampled: 2"))
    first, last = worker.lines()
    assert last == f"{first} (2 lines before this one left out)"


def test_no_log_lines_if_none_are_wanted() -> None:
    worker = host()
    worker.plugin({"log_lines_per_minute": 0}, INBOUND).request(headers(ID, BROKEN))
    assert not worker.log


def test_log_lines_and_bodies_are_clean() -> None:
    """No input can forge a line, a colour or a quotation mark."""
    worker = host()
    configuration = {"mode": "enforce", "log_lines_per_minute": 6000}
    plugin = worker.plugin(configuration, INBOUND)
    names = [name for name, _ in headers(*CONTEXT)] + ["b3", "x-b3-flags", "x-request-id"]
    for byte in range(256):
        value = b"\x1b[31m\r\nb3relay: " + bytes([byte]) * 80
        seen = plugin.request([(name, value) for name in names])
        assert seen.reply is not None and seen.reply.body.replace("\n", "").isprintable()
    assert len(worker.log) > 1000
    for _, line in worker.log:
        assert line.isprintable(), line
        assert len(line) < 600


@pytest.mark.parametrize("where", ['{"%s": 1}', '{"mode": "%s"}'], ids=["name", "value"])
@pytest.mark.parametrize("control", [r"\u001b[31m", r"\n", r"\u007f", r"\u009b"])
def test_configuration_errors_are_clean(where: str, control: str) -> None:
    worker = host()
    assert not worker.plugin((where % control).encode()).configured
    ((_, line),) = worker.log
    assert not [each for each in line if unicodedata.category(each) == "Cc"]


# --- What clients may send --------------------------------------------------


NAMES = [name for name, _ in headers(ID, *CONTEXT)] + ["b3", "x-b3-flags", "x-ot-span-context"]


def any_headers(chance: random.Random) -> Headers:
    """Headers that mean something, with values that may not, and noise."""
    good = dict(headers(ID, *CONTEXT))

    def name() -> str:
        if chance.random() < 0.7:
            return chance.choice(NAMES)
        return chance.randbytes(chance.randrange(40)).decode("latin-1")

    def value(of: str) -> bytes:
        match chance.randrange(5):
            case 0:
                return chance.randbytes(chance.randrange(80))
            case 1:
                return bytes(chance.choices(b"0123456789abcdefABCDEF-, 1d", k=chance.randrange(70)))
            case 2:
                return chance.randbytes(1) * chance.randrange(3000)
            case _:
                return good.get(of, b"1")

    drawn = [name() for _ in range(chance.randrange(12))]
    return [(each, value(each)) for each in drawn]


@pytest.mark.parametrize("mode", ["observe", "repair", "enforce"])
def test_no_headers_trap(mode: str) -> None:
    chance = random.Random(mode)
    both = sidecar({"mode": mode, "copy_headers": ["accept"]})
    open_streams: list[Stream] = []
    for _ in range(600):
        both.host.process.wait(chance.randrange(100))
        for plugin in (both.inbound, both.outbound):
            request = any_headers(chance)
            stream = plugin.stream()
            seen = stream.on_request_headers(request)
            assert (seen.action == PAUSE) == (seen.reply is not None)
            assert mode == "enforce" or seen.action == CONTINUE
            others = [pair for pair in request if pair[0] not in NAMES]
            assert [pair for pair in seen.headers if pair[0] not in NAMES] == others
            if mode == "observe" and plugin is both.inbound:
                ours = [pair for pair in seen.headers if pair[0] != "x-request-id"]
                assert ours == [pair for pair in request if pair[0] != "x-request-id"]
            open_streams.append(stream)
        while len(open_streams) > chance.randrange(20):
            open_streams.pop(chance.randrange(len(open_streams))).end()
    assert not both.host.lines("critical")


def test_no_header_map_traps() -> None:
    """Header maps that are empty, cut short, or lie about their lengths."""
    chance = random.Random(3)
    both = sidecar({"mode": "repair"})
    whole = serialize(headers(ID, *CONTEXT))
    maps = [b"", bytes(1), bytes(4), b"\xff" * 4, b"\xff" * 400, b"\x01\0\0\0" + b"\xff" * 8]
    maps += [whole[:end] for end in range(len(whole))]
    for _ in range(500):
        broken = bytearray(whole)
        for _ in range(chance.randrange(1, 4)):
            broken[chance.randrange(60)] = chance.randrange(256)
        maps.append(bytes(broken))
    for plugin in (both.inbound, both.outbound):
        for each in maps:
            stream = plugin.stream()
            assert stream.on_request_headers([], each).action == CONTINUE
            stream.end()
        assert plugin.request([]).action == CONTINUE


def test_large_requests_do_not_trap() -> None:
    both = sidecar({"copy_headers": ["accept"]})
    many = [("accept", b"a" * 1000)] * 500
    large = [("x-ot-span-context", b"o" * 200_000), ("accept", b"a" * 70_000)]
    for request in (many, large):
        request = headers(ID, *CONTEXT) + request
        stream = both.inbound.stream()
        assert stream.on_request_headers(request).headers == request
        assert both.call(ID)[1] == b3(headers(*CONTEXT))
        stream.end()
        both.host.process.wait(1000)
    # 8 KiB of each request are remembered.
    assert both.host.process.metrics[stat("copy_headers_dropped")] == 500 - 8 + 2
    assert both.host.process.data_bytes() < 20_000


def test_any_shared_data_is_survived() -> None:
    """Other plugins can write under the same keys."""
    chance = random.Random(5)
    both = sidecar()
    process = both.host.process
    for _ in range(300):
        served(both.inbound, ID, *CONTEXT).end()
        for key, (value, _) in list(process.data.items()):
            broken = bytearray(value)
            if broken and chance.random() < 0.5:
                broken[chance.randrange(len(broken))] = chance.randrange(256)
                broken = broken[: chance.randrange(len(broken) + 1)]
            else:
                broken = bytearray(chance.randbytes(chance.randrange(200)))
            process.set(key, bytes(broken), 0)
        both.outbound.request(headers(ID))
        process.wait(100)
    # A worker that starts later finds a seed of any length.
    for seed in (b"", b"1", b"123456789"):
        process.set(b"b3relay/1/seed", seed, 0)
        later = sidecar(worker=host(process))
        served(later.inbound, OTHER_ID, *CONTEXT).end()
        assert later.call(OTHER_ID)[0] == "copied"
        process.wait(1000)


# --- Host calls that fail ---------------------------------------------------

# The host calls of each phase. A host call that is new has to be listed here,
# so that it gets its tests.
PHASES: dict[str, list[str]] = {
    "configure": [
        "proxy_define_metric",
        "proxy_get_buffer_bytes",
        "proxy_get_current_time_nanoseconds",
        "proxy_get_shared_data",
        "proxy_log",
        "proxy_set_shared_data",
        "random_get",
    ],
    "request": [
        "proxy_add_header_map_value",
        "proxy_define_metric",
        "proxy_get_current_time_nanoseconds",
        "proxy_get_header_map_pairs",
        "proxy_get_property",
        "proxy_get_shared_data",
        "proxy_increment_metric",
        "proxy_log",
        "proxy_remove_header_map_value",
        "proxy_replace_header_map_value",
        "proxy_send_local_response",
        "proxy_set_shared_data",
        "random_get",
    ],
    "end": [
        "proxy_define_metric",
        "proxy_get_current_time_nanoseconds",
        "proxy_get_shared_data",
        "proxy_increment_metric",
        "proxy_set_shared_data",
    ],
}

Fault = Callable[[str], int | None]


def life(worker: Host, phase: str, fault: Fault) -> None:
    """Everything that a sidecar does, with faults in one phase of it. Whatever
    fails, requests go on."""

    def during(this: str, also: Fault | None = None) -> None:
        faulty = fault if this == phase else lambda name: None
        worker.fault = lambda name: faulty(name) or (also and also(name)) or None

    during("configure")
    worker.plugin(b'{"mode": "watch"}')
    configuration = {"mode": "repair", "copy_headers": ["baggage"]}
    sidecar(configuration, worker)
    both = sidecar(configuration, worker)  # finds the seed of the first
    enforcing = worker.plugin({"mode": "enforce"}, INBOUND)

    during("request")
    broken = headers("x-b3-traceid: ABC", "x-b3-parentspanid: 1")
    requests = [
        (both.inbound, headers(ID, *CONTEXT, "baggage: a")),
        (both.outbound, headers(ID)),
        (both.inbound, headers(*CONTEXT)),
        (both.outbound, headers(OTHER_ID)),
        *((plugin, each) for plugin in (both.inbound, both.outbound) for each in (broken, [])),
        (enforcing, broken),
        (enforcing, headers(OTHER_ID, *CONTEXT)),
    ]
    streams = []
    for plugin, request in requests:
        streams.append(plugin.stream())
        seen = streams[-1].on_request_headers(request)
        assert seen.action == (CONTINUE if seen.reply is None else PAUSE)

    during("end")
    for stream in streams[1:]:
        stream.end()
    # Contention at the end has a counter of its own.
    during("end", lambda name: CAS_MISMATCH if name == "proxy_set_shared_data" else None)
    streams[0].done()
    streams[0].log()
    streams[0].delete()
    worker.fault = None


def works(worker: Host) -> None:
    """A VM that has seen faults does its work once they are over."""
    both = sidecar(worker=worker)
    served(both.inbound, NEW_ID, *CONTEXT).end()
    assert both.call(NEW_ID) == ("copied", b3(headers(*CONTEXT)))


@pytest.mark.parametrize("phase", PHASES)
def test_every_host_call_is_listed(phase: str) -> None:
    worker = host()
    made = set()
    life(worker, phase, lambda name: made.add(name))
    assert sorted(made) == PHASES[phase]
    works(worker)


@pytest.mark.parametrize(
    ("phase", "name"), [(phase, name) for phase, names in PHASES.items() for name in names]
)
def test_a_failing_host_call_does_not_trap(phase: str, name: str) -> None:
    """Whatever its status."""
    for status in STATUSES:
        worker = host()
        failing = {name: status}
        life(worker, phase, failing.get)
        works(worker)


@pytest.mark.parametrize("phase", PHASES)
def test_failing_host_calls_do_not_trap(phase: str) -> None:
    """Any of them, at random."""
    chance = random.Random(phase)
    process = Process()

    def fault(name: str) -> int | None:
        return None if chance.random() < 0.6 else chance.choice(list(STATUSES))

    for _ in range(3):
        worker = host(process)
        for _ in range(10):
            life(worker, phase, fault)


# --- Host calls that are made -----------------------------------------------

# At most so many of each, once the counters are defined. Each takes about half
# a microsecond in Envoy, which is most of what the filter costs.
_SEES = {"proxy_get_property": 1, "proxy_get_header_map_pairs": 1, "proxy_increment_metric": 2}
_LOOKS_UP = {**_SEES, "proxy_get_current_time_nanoseconds": 1, "proxy_get_shared_data": 1}
_STORES = {
    "proxy_get_current_time_nanoseconds": 1,
    "proxy_get_shared_data": 1,
    "proxy_set_shared_data": 1,
}
BUDGET: dict[str, dict[str, int]] = {
    "inbound with context": {**_SEES, **_STORES},
    "inbound, end of stream": _STORES,
    "outbound hit, 4 headers": {
        **_LOOKS_UP,
        "proxy_increment_metric": 3,
        "proxy_replace_header_map_value": 4,
    },
    "outbound miss": _LOOKS_UP,
    "outbound with own context": _LOOKS_UP,
    "outbound, end of stream": {},
}


def test_host_calls_are_within_the_budget(capsys: pytest.CaptureFixture[str]) -> None:
    both = sidecar()
    made: dict[str, Counter[str]] = {}

    def count(path: str, act: Callable[[], Stream | None]) -> Stream | None:
        before = both.host.calls.copy()
        result = act()
        made[path] = both.host.calls - before
        return result

    for _ in range(2):  # the first time defines the counters
        first = count("inbound with context", lambda: served(both.inbound, ID, *CONTEXT))
        call = count("outbound hit, 4 headers", lambda: served(both.outbound, ID))
        count("outbound miss", lambda: served(both.outbound, OTHER_ID))
        count("outbound with own context", lambda: served(both.outbound, ID, *CONTEXT))
        count("outbound, end of stream", call.end)
        count("inbound, end of stream", first.end)
        both.host.process.wait(1000)

    with capsys.disabled():
        print(f"\n{'host calls':28} made  budget")
        for path, budget in BUDGET.items():
            print(f"{path:28} {made[path].total():4}  {sum(budget.values()):6}")
    assert both.host.process.metrics[stat("calls", decision="copied")] == 2
    assert both.host.process.metrics[stat("calls", decision="present")] == 2
    for path, budget in BUDGET.items():
        assert made[path] <= Counter(budget), path
