"""docs/istio-guide.md, from an empty cluster to the picture in Jaeger, as it stands."""

import re

from cluster import traces
from cluster.steps import (
    GATEWAY,
    click_in_bookinfo,
    click_in_shop,
    configured,
    eventually,
    pods,
    settle,
    statistics,
    trees_of_shop,
    until_one_trace,
    warnings_are_known,
)
from cluster.traces import Jaeger, Tree
from cluster.walk import GUIDE, Walk
from mesh.pages import blocks

PRODUCTPAGE = "deploy/productpage-v1"
BOOKINFO = tuple(f"{name}.bookinfo" for name in ("productpage", "details", "reviews", "ratings"))


def test_istio(walk: Walk) -> None:
    printed = walk.run(GUIDE, "istioctl install -y -f envoyfilter/example/istio.yaml")
    assert "Installation complete" in printed
    walk.run(GUIDE, 'kubectl apply -f "$ISTIO/samples/addons/jaeger.yaml"')
    walk.run(GUIDE, "kubectl apply -f envoyfilter/example/tracing.yaml")
    printed = walk.run(GUIDE, "rollout status deployment/jaeger")
    assert 'deployment "jaeger" successfully rolled out' in printed


def test_bookinfo(walk: Walk) -> None:
    walk.run_all(
        GUIDE,
        "kubectl create namespace bookinfo",
        "kubectl label namespace bookinfo istio-injection=enabled",
        "platform/kube/bookinfo.yaml",
        "networking/bookinfo-gateway.yaml",
        "kubectl -n bookinfo wait",
    )
    listed = pods(walk.run(GUIDE, "kubectl -n bookinfo get pods"))
    assert [pod[1:3] for pod in listed] == [["2/2", "Running"]] * 6


def test_shop(walk: Walk) -> None:
    walk.run_all(
        GUIDE,
        "kubectl create namespace shop",
        "kubectl label namespace shop istio-injection=enabled",
        "kubectl -n shop apply -f envoyfilter/example/shop.yaml",
        "kubectl -n shop wait",
    )
    listed = pods(walk.run(GUIDE, "kubectl -n shop get pods"))
    assert [pod[1:3] for pod in listed] == [["2/2", "Running"]] * 3


def test_the_way_in(walk: Walk) -> None:
    walk.hold(GUIDE, "port-forward service/istio-ingressgateway", ready="Forwarding from 127.0.0.1")
    walk.hold(GUIDE, "istioctl dashboard jaeger", ready=f"localhost:{traces.PORT}")


def test_three_traces_before(walk: Walk) -> None:
    # The sidecars have the provider of tracing when Jaeger's service is known to them.
    click_in_shop(walk)
    seen = trees_of_shop(walk, 6, paths=False)
    assert seen == traces.shown(GUIDE, 0)


def bookinfo_trees(walk: Walk, spans: int) -> list[Tree]:
    """Of a click for which the first version of reviews was not chosen: it calls nobody."""
    for _ in range(10):
        trees = Jaeger().trees(
            lambda: click_in_bookinfo(walk), (GATEWAY,), spans, quiet=6
        )
        if any(span.service == "ratings.bookinfo" for tree in trees for span in tree.walk()):
            return trees
    raise AssertionError(f"no click with ratings: {trees}")


def test_bookinfo_is_one_trace_before(walk: Walk) -> None:
    assert len(bookinfo_trees(walk, 7)) == 1


def install(walk: Walk, namespace: str = "shop") -> None:
    walk.run(GUIDE, "make wasm")
    walk.run(GUIDE, "create configmap b3relay", shop=namespace)
    walk.run(GUIDE, "--patch-file envoyfilter/mount.yaml", shop=namespace)
    printed = walk.run(GUIDE, "kubectl -n shop apply -k envoyfilter/sidecars", shop=namespace)
    warnings_are_known(printed)
    settle(walk, namespace)


def test_one_trace_after(walk: Walk) -> None:
    install(walk)
    until_one_trace(walk)
    assert trees_of_shop(walk, 3) == traces.shown(GUIDE, 1)


def test_the_sidecar_says_what_it_did(walk: Walk) -> None:
    walk.run(GUIDE, "pilot-agent request GET stats | grep b3relay")
    seen = statistics(walk)
    (shown,) = [block for block in blocks(GUIDE, "text") if "calls_total" in block]
    for line in shown.splitlines():
        name, _, count = line.rpartition(": ")
        assert seen[name] >= int(count), seen


def test_bookinfo_stays_as_it_was(walk: Walk) -> None:
    install(walk, "bookinfo")
    eventually(lambda: "b3relay.inbound" in configured(walk, PRODUCTPAGE, "bookinfo"), "the filter")
    (tree,) = bookinfo_trees(walk, 5)
    assert tree.service == GATEWAY
    # The gateway's client spans stay on: the form is for the sidecars of the namespace.
    assert {span.service for span in tree.walk() if span.kind == "CLIENT"} == {GATEWAY}
    # A sidecar may ask twice: Istio has it try again when a connection fails.
    assert {span.service for span in tree.walk()} == {GATEWAY, *BOOKINFO}
    printed = walk.shell(
        "kubectl -n bookinfo exec deploy/productpage-v1 -c istio-proxy --"
        " pilot-agent request GET stats | grep calls_total"
    )
    assert re.search(r"decision=\.=present;\.;calls_total: [1-9]", printed), printed


def test_an_application_that_forwards_nothing(walk: Walk) -> None:
    before = statistics(walk)
    walk.run(GUIDE, "kubectl -n shop set env deployment --all FORWARD=")
    walk.run(GUIDE, "for d in front orders stock")
    settle(walk)
    until_one_trace(walk)
    assert trees_of_shop(walk, 3) == traces.shown(GUIDE, 1)
    after = statistics(walk)
    name = "wasmcustom.b3relay_decision=.=exclusive;.;calls_total"
    assert before.get(name, 0) == 0
    assert after[name] >= 1
    walk.shell("kubectl -n shop set env deployment --all FORWARD=x-request-id")
    walk.run(GUIDE, "for d in front orders stock")
    settle(walk)

