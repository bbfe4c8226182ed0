"""The same tree in other meshes: with mutual TLS, with an older Istio, and as a real
Zipkin has it."""

import http.client
import re

import pytest

from istio import certificates, cluster
from istio.clicks import FLAT, TREE, apply, joined, whole
from istio.cluster import NAMESPACE, PODS
from istio.manifests import IMAGE, documents, in_namespace, load, text_of
from istio.sidecar_mesh import SidecarMesh
from istio.tools import VERSIONS, istio
from mesh.backends import Zipkin, fetch_zipkin, wait_for_trace
from mesh.mesh import ROOT, request, wasm_path
from mesh.tree import normal_forms, traces


def test_strict_mutual_tls() -> None:
    with SidecarMesh(mtls="STRICT", certificates=certificates.issue) as mesh:
        # It is strict: without TLS no one gets to an application.
        with pytest.raises((OSError, http.client.HTTPException)):
            request(cluster.PORT, "/reviews/0", timeout=5, address=PODS["reviews"].ip)
        apply(mesh, in_namespace(NAMESPACE, load("sidecars")))
        assert whole(mesh, TREE)
        # And it was used, by the calls of productpage.
        assert mesh.pods["reviews"].stat("ssl.handshake") > 0


def test_an_application_that_forwards_nothing() -> None:
    """Clicks that come one after the other are whole, as shipped; with what the guide
    says of switching that off, they are in pieces. The sidecars say so."""
    guide = (ROOT / "docs" / "istio-guide.md").read_text()
    shipped = text_of(in_namespace(NAMESPACE, load("sidecars")))
    off = shipped
    for direction in ("outbound", "inbound"):
        plain = f'{{"direction": "{direction}"}}'
        without = f'{{"direction": "{direction}", "attribution": "off"}}'
        assert plain in off and f"{without}\n" in guide
        off = off.replace(plain, without)
    with SidecarMesh(forward="none") as mesh:
        reviews = mesh.pods["reviews"]
        apply(mesh, documents(shipped))
        assert whole(mesh, TREE)
        assert reviews.stat("decision=.=exclusive") > 0
        assert reviews.stat("decision=.=unknown") == 0
        mesh.apply("b3relay", documents(off))
        mesh.wait_until("its calls are in pieces", lambda: joined(mesh) is False)
        mesh.wait_until(
            "they are counted as unknown",
            lambda: mesh.click()[1].status == 200 and reviews.stat("decision=.=unknown") > 0,
        )


@pytest.mark.parametrize("version", VERSIONS[1:])
def test_an_older_istio(version: str) -> None:
    """Control plane and agents of that version."""
    registry = f"{cluster.NODE}:5000"
    environment = {"WASM_INSECURE_REGISTRIES": registry}
    with SidecarMesh(program=istio(version), environment=environment) as mesh:
        serving = mesh.processes.start("registry", [istio().binary("registry"), "serve", registry])
        push = ("push", "oci", str(wasm_path()), f"{registry}/b3relay:0.1.0")
        mesh.processes.wait_ready({serving: lambda: istio().run("registry", *push).exit_code == 0})
        for form, tree in (
            ("sidecars", TREE),
            ("sidecars-image", TREE),
            ("wasmplugin", FLAT),
            ("trafficextension", FLAT),
        ):
            text = text_of(in_namespace(NAMESPACE, load(form)))
            apply(mesh, documents(text.replace(IMAGE, f"oci://{registry}/b3relay:0.1.0")))
            assert whole(mesh, tree), form


def test_the_names_of_the_statistics() -> None:
    """As the docs have them: labels are part of the name, until Istio is told."""
    metrics = (ROOT / "docs/metrics.md").read_text()
    told = re.search(r"`(proxy\.istio\.io/config): '(\{.*?\})'`", metrics, re.DOTALL)
    assert told is not None
    plain, labelled = "b3relay_decision=.=copied;.;calls_total", 'calls_total{decision="copied"'
    for page in ("docs/metrics.md", "envoyfilter/README.md", "docs/istio-guide.md"):
        assert plain in (ROOT / page).read_text(), page
    with SidecarMesh() as mesh:
        reviews = mesh.pods["reviews"]
        apply(mesh, in_namespace(NAMESPACE, load("sidecars")))
        assert f"\nwasmcustom.{plain}: " in reviews.admin("/stats")
        assert labelled not in reviews.admin("/stats/prometheus")
        reviews.stop_agent()
        reviews.annotate(told[1], told[2])
        mesh.start_agent(reviews)
        mesh.wait_ready()
        mesh.wait_until("the filter works", lambda: all(joined(mesh) for _ in range(3)))
        assert f"\nb3relay_{labelled}" in reviews.admin("/stats/prometheus")


def test_zipkin_shows_the_tree() -> None:
    """What a person sees: the trace as a real Zipkin has stored it."""
    with SidecarMesh(collect=False) as mesh:
        zipkin = Zipkin(mesh.processes, fetch_zipkin(), (cluster.NODE, cluster.ZIPKIN_PORT))
        apply(mesh, in_namespace(NAMESPACE, load("sidecars")))
        _, reply = mesh.click()
        (trace_id,) = reply.received("productpage")["x-b3-traceid"]
        wait_for_trace(zipkin, trace_id, TREE.size)
        (trace,) = traces(zipkin.trace(trace_id)).values()
        # Zipkin has the names of services in lower case, as ours are.
        assert normal_forms(trace) == (TREE,)
