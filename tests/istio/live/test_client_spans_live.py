"""The component `envoyfilter/spans` in Istio's own sidecars: the client spans that they would
report themselves, and reports that leave no span."""

import json
from pathlib import Path

import pytest

from istio import certificates
from istio.clicks import CLICKS, TREE, apply
from istio.cluster import COLLECTOR, NAMESPACE
from istio.images import INSECURE, changed, ours, serve
from istio.manifests import Document, in_namespace, load_with
from istio.sidecar_mesh import SidecarMesh
from mesh.collector import Span
from mesh.facts import clients, facts, service
from mesh.tree import render, traces

# And three calls.
SPANS = TREE.size + 3
ISTIOS = f"outbound|9411||{COLLECTOR.host}"


def shipped(directory: Path) -> list[Document]:
    return in_namespace(NAMESPACE, load_with("sidecars", "spans", directory))


def clicked(mesh: SidecarMesh) -> list[Span]:
    clicks = mesh.clicks(CLICKS)
    return mesh.spans_of(clicks, CLICKS * SPANS)


def told(spans: list[Span]) -> list[str]:
    # The apps say in their answers what headers they got; clicks are numbered.
    for span in spans:
        span["tags"]["http.url"] = span["tags"].get("http.url", "").split("?")[0]
    return facts(spans, varies=["response_size"])


def test_they_are_those_of_istio(tmp_path: Path) -> None:
    """Service by service, tag by tag: as of applications that forward everything, without
    b3relay and its Telemetry."""
    with SidecarMesh(forward="all7") as mesh:
        theirs = clicked(mesh)
    with SidecarMesh() as mesh:
        apply(mesh, shipped(tmp_path))
        # It may have taken the clicks of before for its first ones.
        mesh.wait_until("spans are sent", lambda: mesh.pods["reviews"].stat("spans_sent") > 0)
        ours = clicked(mesh)
        assert mesh.pods["reviews"].stat("spans_lost") == 0
    for spans in (theirs, ours):
        print(render(next(iter(traces(spans).values()))), end="\n\n")
    assert len(theirs) == CLICKS * SPANS, "else the comparison shows nothing"
    assert told(ours) == told(theirs)
    (tags, *_) = (span["tags"] for span in clients(ours, f"reviews.{NAMESPACE}"))
    assert tags["istio.namespace"] == NAMESPACE
    assert tags["istio.canonical_service"] and tags["istio.mesh_id"] and tags["istio.cluster_id"]
    assert tags["upstream_cluster.name"].endswith(";")


def test_as_a_wasmplugin() -> None:
    """`spans` in the configuration of both sides, by Istio's own cluster: each call hangs from
    that by which its service was called."""
    (plugin, *others) = ours("wasmplugin")
    plugin["spec"]["pluginConfig"] = {"spans": {"cluster": ISTIOS, "format": "zipkin"}}
    with SidecarMesh(environment=INSECURE) as mesh:
        serve(mesh)
        apply(mesh, [plugin, *others])
        mesh.wait_until("spans are sent", lambda: mesh.pods["reviews"].stat("spans_sent") > 0)
        spans = clicked(mesh)
        assert mesh.pods["reviews"].stat("spans_lost") == 0
    assert len(spans) == CLICKS * SPANS
    names = {span["id"]: service(span) for span in spans}
    for trace in traces(spans).values():
        (ratings,) = clients(trace, f"reviews.{NAMESPACE}")
        (above,) = (span for span in trace if span["id"] == ratings["parentId"])
        assert above in clients(trace, f"productpage.{NAMESPACE}")
        for span in trace:
            if span["kind"] == "SERVER" and span.get("parentId"):
                assert names[span["parentId"]] != service(span)


@pytest.mark.parametrize("has_sidecar", [False, True], ids=["plain", "with a sidecar"])
def test_strict_mutual_tls(tmp_path: Path, has_sidecar: bool) -> None:
    """A collector with a sidecar takes nothing but mTLS: then the spans go to Istio's own
    cluster, as envoyfilter/spans says. No sidecar traces b3relay's reports."""
    cluster = ISTIOS if has_sidecar else "b3relay-collector"
    documents = changed(
        shipped(tmp_path),
        '"cluster": "b3relay-collector"',
        f'"cluster": {json.dumps(cluster)}, "path": "/api/v2/spans?of=b3relay"',
    )
    with SidecarMesh(
        mtls="STRICT", certificates=certificates.issue, collector_pod=has_sidecar
    ) as mesh:
        apply(mesh, documents)
        reviews = mesh.pods["reviews"]
        mesh.wait_until("spans are sent", lambda: reviews.stat("spans_sent") > 0)
        spans = clicked(mesh)
        assert len(spans) == CLICKS * SPANS
        assert len(clients(spans, f"reviews.{NAMESPACE}")) == CLICKS
        assert reviews.stat("spans_lost") == 0
        reports = [
            span["tags"]["http.url"]
            for span in mesh.collector.spans()
            if "/api/v2/spans" in span["tags"].get("http.url", "")
        ]
        assert not any("of=b3relay" in url for url in reports)
        if has_sidecar:
            assert mesh.pods["zipkin"].stat("ssl.handshake") > 0
            assert reports, "Envoy's own reports have spans there: else nothing is shown"
