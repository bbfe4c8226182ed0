"""docs/istio-guide.md, from an empty cluster to the picture in Jaeger, as it stands."""

import re
import urllib.request
from collections.abc import Callable

import pytest

from cluster import steps, traces
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
from cluster.traffic import SHOP_HOST, Traffic
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
        "kubectl -n bookinfo rollout status deployment --timeout=5m",
    )
    listed = pods(walk.run(GUIDE, "kubectl -n bookinfo get pods"))
    assert [pod[1:3] for pod in listed] == [["2/2", "Running"]] * 6


def test_shop(walk: Walk) -> None:
    walk.run_all(
        GUIDE,
        "kubectl create namespace shop",
        "kubectl label namespace shop istio-injection=enabled",
        "kubectl -n shop apply -f envoyfilter/example/shop.yaml",
        "kubectl -n shop rollout status deployment --timeout=5m",
    )
    listed = pods(walk.run(GUIDE, "kubectl -n shop get pods"))
    assert [pod[1:3] for pod in listed] == [["2/2", "Running"]] * 3


def test_the_way_in(walk: Walk) -> None:
    walk.hold(GUIDE, "port-forward service/istio-ingressgateway", ready="Forwarding from 127.0.0.1")
    walk.hold(GUIDE, "istioctl dashboard jaeger", ready=f"localhost:{traces.PORT}")
    steps.open_shop(walk)


def test_three_traces_before(walk: Walk) -> None:
    # The sidecars have the provider of tracing when Jaeger's service is known to them.
    click_in_shop(walk)
    seen = trees_of_shop(walk, 6, paths=False)
    assert seen == traces.shown(GUIDE, 0)


def bookinfo_has_started() -> bool:
    try:
        with urllib.request.urlopen("http://localhost:8080/productpage", timeout=20) as answer:
            page = answer.read().decode()
    except OSError:
        return False
    return "Book Reviews" in page and "Error fetching" not in page


def bookinfo_until(walk: Walk, fits: Callable[[list[Tree]], bool]) -> None:
    """Clicks, until the traces of one are as they should be. For some the first version of
    reviews is chosen, which calls nobody; and a caller may ask twice: Istio has a sidecar
    try again when a connection fails, and productpage asks again after 3 s."""
    # None of its containers has a probe that says when it has started.
    eventually(bookinfo_has_started, "Bookinfo answers", 120)
    for _ in range(12):
        trees = Jaeger().trees(
            lambda: click_in_bookinfo(walk),
            (GATEWAY, *BOOKINFO),
            5,
            paths=False,
            quiet=2,
            patience=2 * steps.PATIENCE,
        )
        if fits(trees):
            return
    raise AssertionError(f"no such click: {trees}")


def services(tree: Tree) -> set[str]:
    return {span.service for span in tree.walk()}


def whole(trees: list[Tree]) -> bool:
    return len(trees) == 1 and services(trees[0]) == {GATEWAY, *BOOKINFO}


def in_four(trees: list[Tree]) -> bool:
    """A trace for each call; with client spans, so that it has caller and callee."""
    product, details, reviews, ratings = BOOKINFO
    edges = ({GATEWAY, product}, {product, details}, {product, reviews}, {reviews, ratings})
    return sorted(map(sorted, map(services, trees))) == sorted(map(sorted, edges))


def test_bookinfo_is_one_trace_before(walk: Walk) -> None:
    bookinfo_until(walk, whole)


@pytest.mark.parametrize("less", ["forwards-request-id", "forwards-nothing"])
def test_bookinfo_that_forwards_less_is_in_four_before(walk: Walk, less: str) -> None:
    walk.shell(f"kubectl -n bookinfo apply -f envoyfilter/example/{less}.yaml")
    bookinfo_until(walk, in_four)
    walk.run(GUIDE, "kubectl -n bookinfo delete -f envoyfilter/example")


def install(walk: Walk, namespace: str = "shop") -> None:
    """As step 5 has it. Where nobody looks into the log, old pods may go on ending."""
    walk.run(GUIDE, "make wasm")
    walk.run(GUIDE, "create configmap b3relay", shop=namespace)
    walk.run(GUIDE, "--patch-file envoyfilter/mount.yaml", shop=namespace)
    printed = walk.run(GUIDE, "kubectl -n shop apply -k envoyfilter/sidecars", shop=namespace)
    warnings_are_known(printed)


def test_one_trace_after(walk: Walk) -> None:
    with Traffic(SHOP_HOST) as traffic:
        install(walk)
        settle(walk)
    traffic.none_failed("the installation")
    until_one_trace(walk)
    assert trees_of_shop(walk, 3) == traces.shown(GUIDE, 1)


def test_the_sidecar_says_what_it_did(walk: Walk) -> None:
    walk.run(GUIDE, "pilot-agent request GET stats | grep b3relay")
    (shown,) = [block for block in blocks(GUIDE, "text") if "calls_total" in block]

    def counted() -> bool:
        seen = statistics(walk)
        lines = [line.rpartition(": ") for line in shown.splitlines()]
        return all(seen.get(name, 0) >= int(count) for name, _, count in lines)

    eventually(counted, "what the page shows")


def decisions_of_productpage(walk: Walk) -> dict[str, int]:
    counted = statistics(walk, PRODUCTPAGE, "bookinfo")
    found = {}
    for name, count in counted.items():
        if decision := re.search(r"decision=\.=(\w+);\.;calls_total", name):
            found[decision[1]] = count
    return found


def test_bookinfo_stays_as_it_was(walk: Walk) -> None:
    """It forwards all seven headers."""
    install(walk, "bookinfo")
    eventually(lambda: "b3relay.inbound" in configured(walk, PRODUCTPAGE, "bookinfo"), "the filter")
    # The gateway's client spans stay on: the form is for the sidecars of the namespace.
    bookinfo_until(walk, lambda trees: trees == traces.shown(GUIDE, 3))
    found = decisions_of_productpage(walk)
    assert found["present"] > 0 and found["copied"] == 0, found


def test_bookinfo_that_forwards_the_request_id_alone(walk: Walk) -> None:
    steps.warnings_are_known(walk.run(GUIDE, "example/forwards-request-id.yaml"))
    eventually(lambda: "early_header_mutation" in configured(walk, PRODUCTPAGE, "bookinfo"), "less")
    bookinfo_until(walk, lambda trees: trees == traces.shown(GUIDE, 3))
    assert decisions_of_productpage(walk)["copied"] > 0


def test_bookinfo_that_forwards_nothing(walk: Walk) -> None:
    steps.warnings_are_known(walk.run(GUIDE, "kubectl -n bookinfo apply -f envoyfilter/example/forwards-nothing.yaml"))
    walk.run(GUIDE, "kubectl -n bookinfo rollout restart deployment")
    walk.run(GUIDE, "kubectl -n bookinfo rollout status deployment")
    # Its programs end at once when their pod does, before all callers know of it.
    settle(walk, "bookinfo")
    bookinfo_until(walk, lambda trees: trees == traces.shown(GUIDE, 3))
    found = decisions_of_productpage(walk)
    assert found["exclusive"] > 0 and found["copied"] == 0, found
    walk.run(GUIDE, "kubectl -n bookinfo delete -f envoyfilter/example")


def test_an_application_that_forwards_nothing(walk: Walk) -> None:
    before = statistics(walk)
    walk.run(GUIDE, "kubectl -n shop set env deployment --all FORWARD=")
    walk.run(GUIDE, "for d in front orders stock")
    settle(walk)
    until_one_trace(walk)
    assert trees_of_shop(walk, 3) == traces.shown(GUIDE, 1)
    name = "wasmcustom.b3relay_decision=.=exclusive;.;calls_total"
    assert before.get(name, 0) == 0
    eventually(lambda: statistics(walk)[name] >= 1, "the decision is counted")
    walk.shell("kubectl -n shop set env deployment --all FORWARD=x-request-id")
    walk.run(GUIDE, "for d in front orders stock")
    settle(walk)
