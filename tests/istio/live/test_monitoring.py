"""A real Prometheus scrapes Istio's sidecars, at the agent's port, as in a cluster."""

from collections.abc import Iterator

import pytest

from istio.clicks import apply, stat_tags
from istio.images import ours
from istio.pods import STATS_PORT, RunningPod
from istio.sidecar_mesh import SidecarMesh
from mesh.prometheus import RULES, Prometheus, Target, queries

# What these sidecars do not have: a kubelet, guesses, and client spans of b3relay.
WITHOUT = {"Sidecar CPU per request", "Attribution: expected to be wrong", "Client spans"}
# There, and 0.
ZERO = {
    "Contexts overwritten by Envoy (1 h)",
    "Guesses expected to be wrong",
    "Client spans lost",
    "Where it breaks: calls without a context",
    "Room and faults",
}


def labels_of(pod: RunningPod) -> dict[str, str]:
    return {"namespace": pod.pod.namespace, "pod": f"{pod.name}-v1-6b746f74dc-9x7mk"}


@pytest.fixture(scope="module")
def mesh() -> Iterator[SidecarMesh]:
    with SidecarMesh(annotations=stat_tags()) as mesh:
        apply(mesh, ours("sidecars"))
        yield mesh


def wait(prometheus: Prometheus, expr: str) -> None:
    """Until it has an answer."""
    prometheus.wait(lambda: bool(prometheus.query(expr)), expr)


def test_every_query_has_data(mesh: SidecarMesh) -> None:
    targets = [Target(STATS_PORT, labels_of(pod), address=pod.pod.ip) for pod in mesh.sidecars]
    prometheus = Prometheus(mesh.processes, targets, rules=[RULES])
    up = f"sum(up) == {len(targets)}"
    wait(prometheus, up)
    for _ in range(10):
        mesh.clicks(5)
    # P01: the request ID alone is forwarded.
    findings = 'sum(rate(b3relay_findings_total{rule="P01"}[1m])) > 0'
    wait(prometheus, findings)
    for query in queries():
        found = prometheus.query(query.expr)
        if query.panel in WITHOUT:
            continue
        if query.panel not in ZERO:
            assert found and all(value > 0 for value in found.values()), (query, found)
        elif query.panel != "Where it breaks: calls without a context":
            assert list(found.values()) == [0], (query, found)
        else:
            assert found == {}, (query, found)
    rates = "workload:b3relay_calls:rate5m > 0"
    wait(prometheus, f"count({rates}) == 2")
    workloads = {
        series["metric"]["workload"]: series["metric"]
        for series in prometheus.get("query", query=rates)["result"]
    }
    assert set(workloads) == {"productpage-v1", "reviews-v1"}
    assert {one["decision"] for one in workloads.values()} == {"copied"}
    for pod in mesh.sidecars:
        own = pod.stat("b3relay_decision=.=copied;.;calls_total")
        seen = f'b3relay_calls_total{{decision="copied",pod="{labels_of(pod)["pod"]}"}} == {own}'
        wait(prometheus, seen)
    assert not [
        name
        for name in prometheus.get("label/__name__/values")
        if name.startswith("b3relay") and "___" in name
    ]
    assert prometheus.get("alerts")["alerts"] == []
