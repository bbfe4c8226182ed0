"""Clicks on the sidecar mesh, and what they ought to become."""

import re

from istio.cluster import GATEWAY, NAMESPACE, PODS, ROOT_NAMESPACE
from istio.manifests import Document
from istio.sidecar_mesh import SidecarMesh
from mesh.apps import PATHS
from mesh.mesh import ROOT
from mesh.tree import Node, Score, score

CLICKS = 5


def stat_tags() -> dict[str, str]:
    """The annotation by which Istio takes the labels apart, as docs/metrics.md has it."""
    metrics = (ROOT / "docs/metrics.md").read_text()
    told = re.search(r"`(proxy\.istio\.io/config): '(\{.*?\})'`", metrics, re.DOTALL)
    assert told is not None
    return {told[1]: told[2]}


def server(service: str, *children: Node) -> Node:
    return Node(f"{service}.{NAMESPACE}", "SERVER", PATHS[service], children)


def at_gateway(*children: Node) -> Node:
    """Istio's gateways report a server and a client span."""
    name = f"{GATEWAY.name}.{ROOT_NAMESPACE}"
    called = f"router outbound|9080||{PODS['productpage'].host}; egress"
    client = Node(name, "CLIENT", called, tuple(sorted(children)))
    return Node(name, "SERVER", PATHS["productpage"], (client,))


# What applications get that forward all seven headers, without client spans.
TREE = at_gateway(server("productpage", server("details"), server("reviews", server("ratings"))))
# Each service hangs from the span that called its caller.
FLAT = at_gateway(server("productpage"), server("details"), server("reviews"), server("ratings"))


def joined(mesh: SidecarMesh) -> bool | None:
    """Whether all four services get one trace ID; None if a click fails."""
    _, reply = mesh.click()
    if reply.status != 200:
        return None
    return len({reply.received(name)["x-b3-traceid"][0] for name in PATHS}) == 1


def apply(mesh: SidecarMesh, shipped: list[Document]) -> None:
    """And wait until it works: what was there before may have worked as well."""
    mesh.apply_and_push("b3relay", shipped)
    # Of two connections, one may still be with the listener of before.
    mesh.wait_until("the filter works", lambda: all(joined(mesh) for _ in range(3)))
    mesh.wait_drained()


def judged(mesh: SidecarMesh, tree: Node) -> Score:
    """Clicks from now on, and what they became."""
    clicks = mesh.clicks(CLICKS)
    return score(mesh.spans_of(clicks, CLICKS * tree.size), tree, clicks)


def whole(mesh: SidecarMesh, tree: Node) -> bool:
    found = judged(mesh, tree)
    return found.whole == CLICKS and found.wrong_trace == 0
