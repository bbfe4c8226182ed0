"""W3C Trace Context: meshes that propagate nothing else, and traceparent beside B3."""

import json
from collections.abc import Iterator

import pytest

from mesh.envoy import Direction
from mesh.mesh import EXPECTED_TREE, Mesh
from mesh.plain import Answer, Plain, RawHeaders
from mesh.pod import Pod
from mesh.tree import Node, normal_forms, render, traces

CLICKS = 10
CALLERS = {"productpage": 2, "reviews": 1}
# For applications whose own spans nobody reports.
UNREPORTED = json.dumps({"own_spans": "unreported"})
TAGS = ("decision", "rule", "direction")


# A mesh of plain applications with Envoy's OpenTelemetry tracer.


def w3c_mesh(forward: str, config: str | None = "{}", filter: bool = True) -> Mesh:
    return Mesh(
        forward=forward, config=config, filter=filter, tracer="opentelemetry", extra_stat_tags=TAGS
    )


def clicked(mesh: Mesh) -> list[tuple[Node, ...]]:
    """The tree of each trace, after clicks one after the other."""
    assert [click.status for click in mesh.clicks(CLICKS)] == [200] * CLICKS
    spans = mesh.wait_spans(CLICKS * EXPECTED_TREE.size)
    return [normal_forms(trace) for trace in traces(spans).values()]


def counted(mesh: Mesh, service: str, family: str) -> dict[str, float]:
    """What the sidecar of a service has counted, by labels."""
    stats = mesh.envoys[service].stats(f"b3relay_{family}_total{{")
    return {
        name.partition("{")[2].removesuffix("}").replace('"', ""): n
        for name, n in stats.items()
        if n
    }


def decisions(mesh: Mesh) -> dict[str, dict[str, float]]:
    return {name: counted(mesh, name, "calls") for name in CALLERS}


def all_of_them(decision: str) -> dict[str, dict[str, float]]:
    """That decision for each call."""
    return {name: {f"decision={decision}": CLICKS * calls} for name, calls in CALLERS.items()}


def picture(mesh: Mesh) -> str:
    first = next(iter(traces(mesh.spans()).values()), [])
    return f"{decisions(mesh)}\n{render(first, durations=False)}"


def test_without_the_filter_the_trace_is_in_pieces() -> None:
    with w3c_mesh("request-id", filter=False) as mesh:
        assert len(clicked(mesh)) == 4 * CLICKS, "else the tests below show nothing"


@pytest.mark.parametrize(
    ("forward", "decision", "lost"),
    [
        ("none", "exclusive", False),
        # P01 says that the call has lost the context, which b3relay then gives back.
        ("request-id", "copied", True),
        ("w3c", "present", False),
    ],
)
def test_the_trees_of_plain_applications(forward: str, decision: str, lost: bool) -> None:
    with w3c_mesh(forward) as mesh:
        assert clicked(mesh) == [(EXPECTED_TREE,)] * CLICKS, picture(mesh)
        assert decisions(mesh) == all_of_them(decision), picture(mesh)
        for service, calls in CALLERS.items():
            expected = {"rule=P01,direction=outbound": CLICKS * calls} if lost else {}
            assert counted(mesh, service, "findings") == expected, service
        for service in ("details", "ratings"):
            assert counted(mesh, service, "findings") == {}, service


def test_no_b3_is_put_beside_it() -> None:
    """What is copied is what came, and so are the forms."""
    for forward in ("request-id", "w3c"):
        with w3c_mesh(forward) as mesh:
            received = mesh.click().received("ratings")
        assert "traceparent" in received
        assert not any(name.startswith(("b3", "x-b3-")) for name in received), received


@pytest.mark.parametrize(
    "config",
    [pytest.param("{}", marks=pytest.mark.long), UNREPORTED],
    ids=["default", "unreported"],
)
def test_applications_that_make_spans_of_their_own_and_report_nowhere(config: str) -> None:
    """As .NET's HttpClient does. By default that is the application's word (`present`), and
    nothing is worse than without b3relay; told that nobody reports those spans, b3relay
    gives each call the sidecar's."""
    told = config == UNREPORTED
    with w3c_mesh("traceparent", config) as mesh:
        found = clicked(mesh)
        assert len(found) == CLICKS, "one trace a click, either way"
        assert (found == [(EXPECTED_TREE,)] * CLICKS) == told, picture(mesh)
        assert decisions(mesh) == all_of_them("copied" if told else "present"), picture(mesh)


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(["a=1"], marks=pytest.mark.long),
        pytest.param(["a=1,b=2", "c=3"], marks=pytest.mark.long),
        ["a=1", "b=2", "c=3", "d=4"],
    ],
)
def test_tracestate_gets_as_far_as_if_it_were_forwarded(sent: list[str]) -> None:
    """Envoy's tracer has its own way with tracestate: what comes of it is the same whether
    the application forwards it or b3relay copies it."""
    headers = [
        ("traceparent", "00-463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312-01"),
        *(("tracestate", one) for one in sent),
    ]
    found = {}
    for forward, filter in (("w3c", False), ("request-id", True)):
        with w3c_mesh(forward, filter=filter) as mesh:
            reply = mesh.click(headers=headers)
        found[forward] = {
            service: ",".join(reply.received(service).get("tracestate", []))
            for service in ("productpage", "details", "reviews", "ratings")
        }
    assert found["request-id"] == found["w3c"]
    assert found["w3c"]["productpage"], "else it shows nothing"


# One Envoy without a tracer: what is written, header by header.

TRACE, SPAN, PARENT = b"463ac35c9f6413ad48485a3953bb6124", b"a2fb4a1d1a96d312", b"0020000000000001"
OTHER_TRACE, OTHER_SPAN = b"563ac35c9f6413ad48485a3953bb6125", b"b2fb4a1d1a96d313"
B3: RawHeaders = [
    ("x-b3-traceid", TRACE),
    ("x-b3-spanid", SPAN),
    ("x-b3-parentspanid", PARENT),
    ("x-b3-sampled", b"1"),
]


def traceparent(trace: bytes = TRACE, span: bytes = SPAN, flags: bytes = b"01") -> bytes:
    return b"-".join((b"00", trace, span, flags))


W3C: RawHeaders = [("traceparent", traceparent())]

# No reader takes these; by the specification a new trace starts.
UNREADABLE = {
    "empty": b"",
    "all zeros": traceparent(b"0" * 32, b"0" * 16, b"00"),
    "no trace": traceparent(trace=b"0" * 32),
    "no span": traceparent(span=b"0" * 16),
    "garbage": b"garbage",
    "upper case": traceparent(TRACE.upper()),
    "cut off": traceparent()[:-4],
    "version ff": b"ff" + traceparent()[2:],
    "too long": traceparent() + b"-00",
}
EMIT = {
    "received": {},
    "w3c": {"emit": ["w3c"]},
    "b3multi+w3c": {"emit": ["b3multi", "w3c"]},
    "b3+w3c": {"emit": ["b3", "w3c"]},
    "b3multi": {"emit": ["b3multi"]},
}


@pytest.fixture(scope="module")
def plain() -> Iterator[Plain]:
    reported = {"report_header": "request"}
    # Each pair of listeners is alike; what is remembered is shared by all of them.
    configs = {name: json.dumps({**emit, **reported}) for name, emit in EMIT.items()}
    listeners: dict[str, tuple[Direction, str | None]] = {}
    for name, text in configs.items():
        listeners[f"{name}, inbound"] = ("INBOUND", text)
        listeners[f"{name}, outbound"] = ("OUTBOUND", text)
    with Plain(listeners, concurrency=1) as plain:
        yield plain


_request_ids = iter(range(10**6))


def request_id() -> tuple[str, bytes]:
    return ("x-request-id", b"1b9d6bcd-bbfd-4b2d-9b5d-%012d" % next(_request_ids))


def values(answer: Answer, name: str) -> list[bytes]:
    assert answer.received is not None, answer
    return [value for n, value in answer.received if n == name]


def report(answer: Answer) -> str:
    return b" ".join(values(answer, "x-b3relay")).decode()


def relayed(
    plain: Plain, emit: str, inbound: RawHeaders, call: RawHeaders
) -> tuple[Answer, Answer]:
    """A request, and a call with its request ID while it is remembered."""
    key = request_id()
    came = plain.get(f"{emit}, inbound", [key, *inbound])
    went = plain.get(f"{emit}, outbound", [key, *call])
    assert came.status == went.status == 200
    return came, went


@pytest.mark.parametrize("fields", [[b"a=1"], [b"a=1", b"b=2,c=3"], [b"a=1", b"b=2", b"c=3"]])
@pytest.mark.parametrize("beside", [[], B3], ids=["w3c", "b3 and w3c"])
def test_every_tracestate_is_copied_in_order(
    plain: Plain, beside: RawHeaders, fields: list[bytes]
) -> None:
    inbound = [*beside, ("traceparent", traceparent()), *(("tracestate", f) for f in fields)]
    _, went = relayed(plain, "received", inbound, [])
    assert values(went, "traceparent") == [traceparent()], report(went)
    assert b",".join(values(went, "tracestate")) == b",".join(fields), report(went)


def test_a_tracestate_of_the_calls_own_stays(plain: Plain) -> None:
    inbound = [("traceparent", traceparent()), ("tracestate", b"a=1")]
    own = [("traceparent", traceparent(span=OTHER_SPAN)), ("tracestate", b"mine=1")]
    _, went = relayed(plain, "received", inbound, own)
    assert [(n, v) for n, v in went.received or [] if n.startswith("trace")] == own, report(went)


@pytest.mark.parametrize("span", [SPAN, OTHER_SPAN], ids=["verbatim", "a span of its own"])
def test_a_context_that_is_there_is_present(plain: Plain, span: bytes) -> None:
    inbound = W3C
    _, went = relayed(plain, "received", inbound, [("traceparent", traceparent(span=span))])
    assert "present" in report(went)
    assert "P01" not in report(went)
    assert values(went, "traceparent") == [traceparent(span=span)]
    assert values(went, "x-b3-traceid") == []


def test_a_call_of_another_trace_is_left_alone(plain: Plain) -> None:
    """Whatever its request ID says: the application has found the context of its request,
    and names another."""
    own = ("traceparent", traceparent(OTHER_TRACE, OTHER_SPAN))
    _, went = relayed(plain, "received", W3C, [own])
    assert values(went, "traceparent") == [own[1]], report(went)
    assert values(went, "x-b3-traceid") == [], report(went)
    assert "copied" not in report(went)


@pytest.mark.parametrize("bad", UNREADABLE.values(), ids=UNREADABLE.keys())
@pytest.mark.parametrize("inbound", [B3, W3C], ids=["b3", "w3c"])
@pytest.mark.parametrize("emit", ["w3c", "b3multi+w3c", "b3+w3c"])
def test_an_unreadable_traceparent_gives_way(
    plain: Plain, emit: str, inbound: RawHeaders, bad: bytes
) -> None:
    """Where `emit` asks for one."""
    _, went = relayed(plain, emit, inbound, [("traceparent", bad)])
    assert values(went, "traceparent") == [traceparent()], report(went)


@pytest.mark.parametrize("bad", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_it_stays_where_nothing_is_asked_for(plain: Plain, bad: bytes) -> None:
    """As what cannot be read of B3 does."""
    _, went = relayed(plain, "received", W3C, [("traceparent", bad)])
    assert values(went, "traceparent") == [bad], report(went)
    assert "W04 traceparent" in report(went) and "malformed" in report(went)


@pytest.mark.parametrize("bad", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_it_stays_where_no_traceparent_is_asked_for(plain: Plain, bad: bytes) -> None:
    _, went = relayed(plain, "b3multi", B3, [("traceparent", bad)])
    assert values(went, "traceparent") == [bad], report(went)
    assert values(went, "x-b3-spanid") == [SPAN], report(went)


@pytest.mark.parametrize("bad", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_the_application_gets_one_that_it_can_read(plain: Plain, bad: bytes) -> None:
    """On the inbound side, where `emit` lists it."""
    came, _ = relayed(plain, "b3multi+w3c", [*B3, ("traceparent", bad)], [])
    assert values(came, "traceparent") == [traceparent()], report(came)


def test_the_application_gets_one_of_its_own_span(plain: Plain) -> None:
    """Not the caller's, which came with the request: that is B3's parent."""
    stale = ("traceparent", traceparent(span=PARENT))
    came, _ = relayed(plain, "b3multi+w3c", [*B3, stale], [])
    assert values(came, "traceparent") == [traceparent()], report(came)


TWO = {
    "of two traces": [traceparent(), traceparent(OTHER_TRACE, OTHER_SPAN)],
    "of one trace": [traceparent(), traceparent(span=OTHER_SPAN)],
    "twice the same": [traceparent(), traceparent()],
}


@pytest.mark.parametrize("two", TWO.values(), ids=TWO.keys())
def test_two_traceparents_are_reported_and_none(plain: Plain, two: list[bytes]) -> None:
    """By the specification there is one; with more, a new trace starts."""
    headers = [("traceparent", one) for one in two]
    came, went = relayed(plain, "received", headers, [])
    assert "W06 traceparent" in report(came)
    assert values(came, "traceparent") == two, "observing changes nothing"
    assert "no_context" in report(went)
    assert values(went, "traceparent") == []


@pytest.mark.parametrize("two", TWO.values(), ids=TWO.keys())
def test_two_traceparents_of_a_call_give_way(plain: Plain, two: list[bytes]) -> None:
    """Where `emit` asks for one: nobody would read either of them."""
    call = [("traceparent", one) for one in two]
    _, went = relayed(plain, "w3c", W3C, call)
    assert "W06 traceparent" in report(went)
    assert values(went, "traceparent") == [traceparent()], report(went)
    _, left = relayed(plain, "received", W3C, call)
    assert values(left, "traceparent") == two, report(left)


def test_two_traceparents_beside_b3_change_nothing_about_b3(plain: Plain) -> None:
    inbound = [*B3, *(("traceparent", one) for one in TWO["of two traces"])]
    _, went = relayed(plain, "received", inbound, [])
    assert [h for h in went.received or [] if h[0].startswith("x-b3-")] == B3, report(went)
    assert values(went, "traceparent") == [], report(went)


@pytest.mark.parametrize("emit", ["w3c", "b3multi+w3c", "b3+w3c"])
def test_an_open_decision_is_not_written_as_a_no(plain: Plain, emit: str) -> None:
    """W3C cannot leave it open, so that nothing is written."""
    deferred = [header for header in B3 if header[0] != "x-b3-sampled"]
    came, went = relayed(plain, emit, deferred, [])
    assert values(came, "traceparent") == [], report(came)
    assert values(went, "traceparent") == [], report(went)
    if emit == "b3multi+w3c":
        assert values(went, "x-b3-spanid") == [SPAN], report(went)
        assert values(went, "x-b3-sampled") == [], report(went)


@pytest.mark.parametrize(("decision", "flags"), [(b"1", b"01"), (b"0", b"00")])
def test_a_decision_is_written(plain: Plain, decision: bytes, flags: bytes) -> None:
    decided = [*(header for header in B3 if header[0] != "x-b3-sampled"), ("x-b3-sampled", decision)]
    came, went = relayed(plain, "b3multi+w3c", decided, [])
    for answer in (came, went):
        assert values(answer, "traceparent") == [traceparent(flags=flags)], report(answer)


# One pod, with an application that answers when it is told to.


def b3(trace: bytes, span: bytes) -> RawHeaders:
    return [("x-b3-traceid", trace), ("x-b3-spanid", span), ("x-b3-sampled", b"1")]


def test_a_made_up_traceparent_groups_the_calls_of_a_request() -> None:
    """Behind sidecars that write B3 alone, an SDK finds no traceparent and begins a trace
    of its own. That is no contradiction; and when it is known once whose it is, the other
    calls of that trace are of the same request, whatever else is in flight."""
    made_up, other = b"d" * 32, b"e" * 32
    first = [request_id(), *b3(TRACE, SPAN)]
    second = [request_id(), *b3(OTHER_TRACE, OTHER_SPAN)]
    with Pod() as pod, pod.serving("/first", first):
        own = traceparent(made_up, b"1" * 16)
        alone = pod.call([("traceparent", own)])
        assert values(alone, "x-b3-spanid") == [SPAN], report(alone)
        assert values(alone, "traceparent") == [own], report(alone)
        with pod.serving("/second", second):
            own = traceparent(made_up, b"2" * 16)
            grouped = pod.call([("traceparent", own)])
            assert values(grouped, "x-b3-spanid") == [SPAN], report(grouped)
            assert values(grouped, "traceparent") == [own], report(grouped)
            # Of the other one nothing is known yet: it may be of either.
            unknown = pod.call([("traceparent", traceparent(other, b"3" * 16))])
            assert values(unknown, "x-b3-traceid") == [], report(unknown)


def test_a_made_up_traceparent_is_no_reason_to_take_any_request() -> None:
    """Two in flight, and the first call of a trace of its own: it may be of either."""
    first = [request_id(), *b3(TRACE, SPAN)]
    second = [request_id(), *b3(OTHER_TRACE, OTHER_SPAN)]
    with Pod() as pod, pod.serving("/first", first), pod.serving("/second", second):
        answer = pod.call([("traceparent", traceparent(b"d" * 32, b"1" * 16))])
        assert values(answer, "x-b3-traceid") == [], report(answer)


def test_a_foreign_traceparent_is_a_contradiction_where_the_request_had_one() -> None:
    """The application has found a context, and its call is of another trace."""
    had = [request_id(), ("traceparent", traceparent())]
    with Pod() as pod, pod.serving("/only", had):
        own = traceparent(OTHER_TRACE, OTHER_SPAN)
        answer = pod.call([("traceparent", own)])
        assert values(answer, "traceparent") == [own], report(answer)
        assert values(answer, "x-b3-traceid") == [], report(answer)
