"""Keys, forms and span IDs: the trees of docs/formats.md, on real Envoys."""

import json

import pytest

from mesh.collector import Span
from mesh.mesh import EXPECTED_TREE, Mesh
from mesh.tree import Node, normal_forms, traces

CLICKS = 10


def clicked(mesh: Mesh) -> list[tuple[Node, ...]]:
    """The tree of each trace, after some clicks."""
    assert [click.status for click in mesh.clicks(CLICKS, 4)] == [200] * CLICKS
    spans = mesh.wait_spans(CLICKS * EXPECTED_TREE.size)
    return [normal_forms(trace) for trace in traces(spans).values()]


@pytest.mark.parametrize("emit", [["b3multi", "w3c"], ["b3", "w3c"]], ids="+".join)
def test_apps_that_carry_on_a_traceparent_by_themselves(emit: list[str]) -> None:
    """They get one that is made from B3, and their calls come back with it."""
    config = json.dumps({"emit": emit})
    with Mesh(forward="traceparent", config=config, extra_stat_tags=["decision"]) as mesh:
        assert clicked(mesh) == [(EXPECTED_TREE,)] * CLICKS
        stats = mesh.envoys["productpage"].stats("b3relay_")
        assert stats['b3relay_calls_total{decision="copied"}'] == 2 * CLICKS
        # Envoy had made up an ID for each call.
        assert stats["b3relay_request_ids_restored_total{}"] == 2 * CLICKS


@pytest.mark.long
def test_without_it_there_is_nothing_to_carry_on() -> None:
    with Mesh(forward="traceparent", config='{"attribution": "off"}') as mesh:
        assert len(clicked(mesh)) == 4 * CLICKS


def test_the_request_id_comes_back() -> None:
    """The app forwards no request ID; the callee gets that of the click all the same."""
    with Mesh(forward="traceparent", config='{"emit": ["b3multi", "w3c"]}') as mesh:
        reply = mesh.click()
    (given,) = reply.received("productpage")["x-request-id"]
    for service in ("details", "reviews", "ratings"):
        (found,) = reply.received(service)["x-request-id"]
        # Envoy writes its tracing decision into the character at index 14.
        assert (found[:14], found[15:]) == (given[:14], given[15:])


@pytest.mark.parametrize(
    "form", [pytest.param(form, marks=pytest.mark.long) for form in ("b3multi", "b3")] + ["w3c"]
)
def test_a_form_alone(form: str) -> None:
    """What the callee's sidecar gets from the caller's, before its own tracer."""
    with Mesh(config=json.dumps({"emit": [form]})) as mesh:
        received = mesh.click().received("ratings")
    names = {"b3multi": "x-b3-traceid", "b3": "b3", "w3c": "traceparent"}
    assert names[form] in received
    # The tracer of the callee's sidecar writes x-b3-*, whatever came in.
    assert ("traceparent" in received, "b3" in received) == (form == "w3c", form == "b3")


def servers(mesh: Mesh) -> dict[str, Span]:
    """The server span of each service, after one click."""
    assert mesh.click().status == 200
    spans = mesh.wait_spans(EXPECTED_TREE.size)
    return {
        span["localEndpoint"]["serviceName"]: span for span in spans if span["kind"] == "SERVER"
    }


def test_child_is_for_callees_that_share_span_ids() -> None:
    with Mesh(config='{"span_ids": "child"}', shared_span_context=True) as mesh:
        found = servers(mesh)
    ids = {name: span["id"] for name, span in found.items()}
    assert len(set(ids.values())) == 4, ids
    for callee, caller in (("details", "productpage"), ("ratings", "reviews")):
        assert found[callee]["parentId"] == ids[caller]
        assert found[callee]["shared"]


@pytest.mark.long
def test_forward_reports_one_id_twice_there() -> None:
    with Mesh(shared_span_context=True) as mesh:
        found = servers(mesh)
    assert found["details"]["id"] == found["productpage"]["id"]


@pytest.mark.long
def test_child_leaves_a_phantom_where_span_ids_are_not_shared() -> None:
    with Mesh(config='{"span_ids": "child"}') as mesh:
        found = servers(mesh)
    assert found["details"]["traceId"] == found["productpage"]["traceId"]
    assert found["details"]["parentId"] not in {span["id"] for span in found.values()}
