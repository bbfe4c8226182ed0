"""What a click looks like in real trace backends, asked through their own APIs."""

from collections.abc import Iterator

import pytest

from mesh.backends import (
    Backend,
    Jaeger,
    Zipkin,
    build_jaeger,
    check_java,
    fetch_zipkin,
    wait_for_trace,
)
from mesh.mesh import EXPECTED_TREE, SERVICES, Mesh
from mesh.procs import Processes
from mesh.tree import normal_forms

CALLS = {
    ("gateway", "productpage"),
    ("productpage", "details"),
    ("productpage", "reviews"),
    ("reviews", "ratings"),
}


@pytest.fixture(params=["zipkin", "jaeger"])
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    if request.param == "zipkin":
        check_java()
    with Processes() as processes:
        yield (
            Zipkin(processes, fetch_zipkin())
            if request.param == "zipkin"
            else Jaeger(processes, build_jaeger())
        )


def test_whole(backend: Backend) -> None:
    """With the filter there is one trace, and the services depend on each other."""
    with Mesh(collector=backend.address) as mesh:
        reply = mesh.click()
        assert reply.status == 200
        trace_id = reply.received("ratings")["x-b3-traceid"][0]
        spans = wait_for_trace(backend, trace_id, EXPECTED_TREE.size)
    assert normal_forms(spans) == (EXPECTED_TREE,)
    for service in SERVICES:
        assert [normal_forms(trace) for trace in backend.traces(service)] == [(EXPECTED_TREE,)]
    assert backend.dependencies() == CALLS


def test_forwarding_everything(backend: Backend) -> None:
    """What the backend makes of applications that forward all headers is the same."""
    with Mesh(forward="all7", filter=False, collector=backend.address) as mesh:
        reply = mesh.click()
        trace_id = reply.received("ratings")["x-b3-traceid"][0]
        spans = wait_for_trace(backend, trace_id, EXPECTED_TREE.size)
    assert normal_forms(spans) == (EXPECTED_TREE,)
    assert backend.dependencies() == CALLS


def test_in_pieces(backend: Backend) -> None:
    """Without the filter each service is in a trace of its own."""
    with Mesh(filter=False, collector=backend.address) as mesh:
        reply = mesh.click()
        ids = {name: reply.received(name)["x-b3-traceid"][0] for name in SERVICES}
        assert len(set(ids.values())) == len(SERVICES)
        for name, trace_id in ids.items():
            spans = wait_for_trace(backend, trace_id, 2 if name == "productpage" else 1)
            assert {span["localEndpoint"]["serviceName"] for span in spans} == (
                {"gateway", name} if name == "productpage" else {name}
            )
    assert backend.dependencies() == {("gateway", "productpage")}
