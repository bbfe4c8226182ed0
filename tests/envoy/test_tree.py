"""The tree of a click, against what apps get that forward all seven headers."""

import pytest

from mesh.mesh import EXPECTED_TREE, Mesh, expected_tree
from mesh.tree import Node, normal_forms, score, traces

CLICKS = 20
# Of each trace.
Trees = list[tuple[Node, ...]]


def trees(mesh: Mesh, tree_size: int, clicks: int = CLICKS, in_flight: int = 4) -> Trees:
    """The normal form of every trace, after that many clicks."""
    sent = mesh.clicks(clicks, in_flight)
    assert [click.status for click in sent] == [200] * clicks
    spans = mesh.wait_spans(clicks * tree_size)
    return [normal_forms(trace) for trace in traces(spans).values()]


@pytest.fixture(scope="module")
def reference() -> Trees:
    """Without the filter, apps that forward everything."""
    with Mesh(forward="all7", filter=False) as mesh:
        return trees(mesh, EXPECTED_TREE.size)


def calls(mesh: Mesh, service: str) -> dict[str, float]:
    """What the sidecar did with outbound calls, by decision."""
    prefix = 'b3relay_calls_total{decision="'
    stats = mesh.envoys[service].stats(prefix)
    return {name.removeprefix(prefix).removesuffix('"}'): n for name, n in stats.items() if n}


def test_the_reference_is_one_trace_a_click(reference: Trees) -> None:
    assert reference == [(EXPECTED_TREE,)] * CLICKS


def test_without_the_filter_the_trace_is_in_pieces() -> None:
    with Mesh(forward="request-id", filter=False) as mesh:
        found = trees(mesh, EXPECTED_TREE.size)
    assert len(found) == 4 * CLICKS, "else the tests below show nothing"


@pytest.mark.parametrize(
    ("http2", "concurrency"),
    [
        pytest.param(False, 1, id="http1-1"),
        pytest.param(False, 4, id="http1-4", marks=pytest.mark.long),
        pytest.param(True, 1, id="http2-1", marks=pytest.mark.long),
        pytest.param(True, 4, id="http2-4"),
    ],
)
def test_with_the_filter_the_tree_is_the_references(
    reference: Trees, http2: bool, concurrency: int
) -> None:
    tags = ["decision", "rule", "direction"]
    with Mesh(
        http2=http2, apps_http2=http2, concurrency=concurrency, extra_stat_tags=tags
    ) as mesh:
        assert trees(mesh, EXPECTED_TREE.size) == reference
        assert calls(mesh, "productpage") == {"copied": 2 * CLICKS}
        assert calls(mesh, "reviews") == {"copied": CLICKS}
        stats = mesh.envoys["reviews"].stats("b3relay_")
        assert stats['b3relay_requests_total{direction="inbound"}'] == CLICKS
        assert stats['b3relay_requests_total{direction="outbound"}'] == CLICKS
        assert stats["b3relay_remembered_total{}"] == CLICKS
        log = mesh.envoys["reviews"].log()
    assert "panic" not in log and "b3relay: " not in log, log


def test_apps_that_forward_everything_are_left_alone(reference: Trees) -> None:
    with Mesh(forward="all7", extra_stat_tags=["decision"]) as mesh:
        assert trees(mesh, EXPECTED_TREE.size) == reference
        assert calls(mesh, "productpage") == {"present": 2 * CLICKS}


def test_calls_at_the_same_time(reference: Trees) -> None:
    with Mesh(parallel=True) as mesh:
        assert trees(mesh, EXPECTED_TREE.size) == reference


def test_one_service_forgets(reference: Trees) -> None:
    forward = {"productpage": "all7", "details": "all7", "reviews": "request-id", "ratings": "none"}
    with Mesh(forward=forward) as mesh:
        assert trees(mesh, EXPECTED_TREE.size) == reference


def test_the_single_header_is_relayed_too() -> None:
    """A request that comes with b3: what the ratings app receives. Envoy's tracer goes on
    in b3 since 1.40; before, it writes the multiple headers beside a b3 that stays as it
    came, and what is stale is not copied."""
    trace, span = "463ac35c9f6413ad48485a3953bb6124", "a2fb4a1d1a96d312"
    with Mesh() as mesh:
        reply = mesh.click(headers={"b3": f"{trace}-{span}-1"})
        assert reply.status == 200
        at_first, at_last = reply.received("productpage"), reply.received("ratings")
        (trace_of_spans,) = traces(mesh.wait_spans(EXPECTED_TREE.size))
    assert trace_of_spans == trace
    if "x-b3-traceid" in at_first:
        assert at_first["b3"] == [f"{trace}-{span}-1"], at_first
        assert "b3" not in at_last
        assert (at_last["x-b3-traceid"], at_last["x-b3-sampled"]) == ([trace], ["1"]), at_last
    else:
        assert at_last["b3"][0].split("-")[0:3:2] == [trace, "1"], at_last


def test_retries_of_the_router_are_siblings() -> None:
    """For the first 9 clicks, ratings fails once, and the sidecar of reviews tries again."""
    with Mesh(forward="all7", filter=False, retries=True, fail_first=10) as mesh:
        instrumented = trees(mesh, EXPECTED_TREE.size)
    with Mesh(retries=True, fail_first=10) as mesh:
        relayed = trees(mesh, EXPECTED_TREE.size)
    assert sorted(relayed) == sorted(instrumented)
    kinds = {(expected_tree(ratings=1),), (expected_tree(ratings=2),)}
    assert set(relayed) == kinds, "some clicks with a retry, and some without"


def test_as_an_http_filter_the_trace_is_whole_and_flat() -> None:
    """Before the router the filter sees the caller's span: right trace, other parent."""
    with Mesh(inbound="http") as mesh:
        found = trees(mesh, EXPECTED_TREE.size)
        spans = mesh.spans()
    assert len(found) == CLICKS, "one trace a click"
    assert score(spans, EXPECTED_TREE).wrong_trace == 0
    (tree,) = found[0]
    assert sorted(child.service for child in tree.children) == [
        "details",
        "productpage",
        "ratings",
        "reviews",
    ]


@pytest.mark.long
def test_a_restarted_envoy_begins_again(reference: Trees) -> None:
    with Mesh() as mesh:
        assert trees(mesh, EXPECTED_TREE.size, clicks=5) == reference[:5]
        mesh.envoys["productpage"].restart()
        mesh.envoys["reviews"].restart()
        before = len(mesh.spans())
        mesh.clicks(5)
        spans = mesh.wait_spans(before + 5 * EXPECTED_TREE.size)
    assert score(spans, EXPECTED_TREE, range(1, 11)).whole == 10
