"""The same tree in other meshes: with mutual TLS, with an older Istio, and as a real
Zipkin has it."""

import http.client
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from istio import certificates, cluster
from istio.clicks import FLAT, TREE, apply, joined, stat_tags, whole
from istio.cluster import NAMESPACE, PODS
from istio.images import INSECURE, another, misconfigured, ours, repairing, serve
from istio.manifests import Document, documents, in_namespace, load, text_of
from istio.sidecar_mesh import SidecarMesh
from istio.tools import VERSIONS, istio
from mesh.backends import Zipkin, fetch_zipkin, wait_for_trace
from mesh.mesh import ROOT, request
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
    with SidecarMesh(program=istio(version), environment=INSECURE) as mesh:
        serve(mesh)
        for form, tree in (
            ("sidecars", TREE),
            ("sidecars-image", TREE),
            ("wasmplugin", FLAT),
            ("trafficextension", FLAT),
        ):
            apply(mesh, ours(form))
            assert whole(mesh, tree), form


def test_the_names_of_the_statistics() -> None:
    """As the docs have them: labels are part of the name, until Istio is told."""
    plain, labelled = "b3relay_decision=.=copied;.;calls_total", 'calls_total{decision="copied"'
    for page in ("docs/metrics.md", "envoyfilter/README.md", "docs/istio-guide.md"):
        assert plain in (ROOT / page).read_text(), page
    with SidecarMesh() as mesh:
        reviews = mesh.pods["reviews"]
        apply(mesh, in_namespace(NAMESPACE, load("sidecars")))
        assert f"\nwasmcustom.{plain}: " in reviews.admin("/stats")
        assert labelled not in reviews.admin("/stats/prometheus")
        reviews.stop_agent()
        reviews.annotate(stat_tags())
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


# Of the gateway, or of an application whose call was cut.
CUT = (502, 503)


def test_what_envoy_cuts_when_it_drains() -> None:
    """A click that lasts longer than the drain, ten seconds against two: putting the
    filter on replaces the listeners, so Envoy cuts it (as for a change of anything in
    them); a change of the configuration, or a refused one, replaces none."""
    with SidecarMesh(drain_seconds=2, work_ms=2500) as mesh, ThreadPoolExecutor(1) as pool:

        def long_click(documents: list[Document]) -> int:
            clicked = pool.submit(mesh.click)
            time.sleep(1)
            mesh.apply("b3relay", documents)
            return clicked.result()[1].status

        assert long_click(another()) in CUT
        mesh.wait_drained()
        assert long_click(ours("sidecars")) in CUT
        mesh.wait_until("the filter works", lambda: joined(mesh) is True)
        mesh.wait_drained()
        assert long_click(repairing("sidecars")) == 200
        assert long_click(misconfigured("sidecars")) == 200
