"""envoyfilter/README.md on the cluster that the guide has made: check, configure, upgrade,
and the forms that need the module as a file. Every command as it stands."""

import json
import re
import time
from pathlib import Path

import pytest

from cluster import steps
from cluster.steps import (
    click_in_shop,
    configured,
    eventually,
    listeners,
    settle,
    statistics,
)
from cluster.traces import Jaeger
from cluster.traffic import SHOP_HOST, Traffic
from cluster.walk import FORMS, GUIDE, Walk
from mesh.mesh import wasm_path
from mesh.pages import ROOT, blocks

REPAIR = '{\\"direction\\": \\"outbound\\", \\"mode\\": \\"repair\\"}'


def test_which_workloads_mount_something(walk: Walk) -> None:
    printed = walk.run(FORMS, "-o yaml | grep userVolume")
    assert printed.count("/etc/b3relay") >= 3


def test_check(walk: Walk) -> None:
    click_in_shop(walk)
    printed = walk.run(FORMS, "envoyfilter/check.sh shop")
    assert "WRONG" not in printed
    assert "ok     form: EnvoyFilter shop/b3relay" in printed


def test_check_by_hand(walk: Walk) -> None:
    printed = walk.run(FORMS, "pilot-agent request GET stats | grep b3relay")
    (shown,) = re.findall(r"in\s+`(wasmcustom\.\S+): 1`", (ROOT / FORMS).read_text())
    assert re.search(rf"^{re.escape(shown)}: [1-9]", printed, re.MULTILINE)
    assert "b3relay_remembered_total" in printed
    # Nothing, as the page says, and so grep ends with 1.
    assert walk.run(FORMS, "logs deploy/front -c istio-proxy | grep", status=1) == ""


def test_configure(walk: Walk, folder: Path) -> None:
    own = folder / "own"
    own.mkdir()
    (text,) = blocks(FORMS, "yaml")
    (own / "kustomization.yaml").write_text(text)
    before = connections(walk)
    steps.warnings_are_known(walk.shell("kubectl apply -k own", folder))
    eventually(lambda: REPAIR in configured(walk), "the configuration arrives")
    click_in_shop(walk)
    # "and close no connection": those that were there before are still used.
    assert connections(walk) <= before + 1
    walk.run(FORMS, "kubectl -n shop apply -k envoyfilter/sidecars")
    eventually(lambda: REPAIR not in configured(walk), "the shipped one is back")


def connections(walk: Walk) -> int:
    """How many connections front's sidecar has made to its application."""
    printed = walk.quiet(
        "kubectl -n shop exec deploy/front -c istio-proxy -- pilot-agent request GET"
        " 'clusters?format=json'"
    )
    total = 0
    for cluster in json.loads(printed)["cluster_statuses"]:
        if cluster["name"].startswith("inbound|8080"):
            for host in cluster.get("host_statuses", ()):
                total += sum(
                    int(one.get("value", 0)) for one in host["stats"] if one["name"] == "cx_total"
                )
    return total


def test_upgrade(walk: Walk) -> None:
    before = walk.quiet("kubectl -n shop get configmap b3relay -o jsonpath={.metadata.uid}")
    with Traffic(SHOP_HOST) as traffic:
        walk.run(FORMS, "kubectl -n shop create configmap b3relay")
        walk.run(FORMS, "rollout restart deployments,statefulsets,daemonsets")
        walk.run(GUIDE, "for d in front orders stock")
        settle(walk)
    traffic.none_failed("the upgrade")
    steps.until_one_trace(walk)
    after = walk.quiet("kubectl -n shop get configmap b3relay -o jsonpath={.metadata.uid}")
    assert before == after


def test_the_module_arrives_whole(walk: Walk) -> None:
    printed = walk.quiet(
        "kubectl -n shop exec deploy/front -c istio-proxy -- cat /etc/b3relay/plugin.wasm | wc -c"
    )
    assert int(printed) == wasm_path().stat().st_size


def test_a_push_under_traffic(walk: Walk, folder: Path) -> None:
    """Bookinfo has its sidecars with the filter: a configuration, and back."""
    with Traffic(path="/productpage") as traffic:
        for form in (folder / "own", ROOT / "envoyfilter" / "sidecars"):
            walk.shell(
                f"kubectl kustomize {form} | sed 's/namespace: shop/namespace: bookinfo/'"
                " | kubectl -n bookinfo apply -f -"
            )
            time.sleep(4)
    traffic.none_failed("two pushes", least=20)


def test_one_workload(walk: Walk) -> None:
    walk.run(FORMS, "kubectl -n shop delete -k envoyfilter/sidecars", shop="bookinfo")
    steps.warnings_are_known(
        walk.run(FORMS, "kubectl -n shop apply -k envoyfilter/workload", shop="bookinfo")
    )
    reviews, details = "deploy/reviews-v2", "deploy/details-v1"
    eventually(lambda: "b3relay.inbound" not in listeners(walk, details, "bookinfo"), "none")
    eventually(lambda: "b3relay.inbound" in listeners(walk, reviews, "bookinfo"), "the filter")
    walk.shell("kubectl -n bookinfo delete -k envoyfilter/workload")
    eventually(lambda: "b3relay.inbound" not in listeners(walk, reviews, "bookinfo"), "none")


def test_the_whole_mesh(walk: Walk) -> None:
    walk.run(FORMS, "kubectl -n shop delete -k envoyfilter/sidecars")
    printed = walk.run(FORMS, "patch telemetry mesh-default")
    steps.warnings_are_known(printed)
    walk.run(FORMS, "kubectl -n istio-system apply -f envoyfilter/gateway-spans.yaml")
    walk.run(FORMS, "kubectl apply -k envoyfilter/mesh")
    steps.until_one_trace(walk)

    def client_spans_of_the_gateway_alone() -> bool:
        spans = Jaeger().spans(
            lambda: steps.click_in_bookinfo(walk),
            (steps.GATEWAY,),
            5,
            quiet=2,
            patience=2 * steps.PATIENCE,
        )
        clients = [span for span in spans if span["kind"] == "CLIENT"]
        names = [span["localEndpoint"]["serviceName"] for span in clients]
        return names == [steps.GATEWAY] and steps.number_of_traces(spans) == 1

    eventually(client_spans_of_the_gateway_alone, "the gateway's client span begins the trace")


def test_the_whole_mesh_is_taken_off(walk: Walk, folder: Path) -> None:
    # As the page says: with the entry taken out by hand.
    editor = folder / "editor"
    editor.write_text(
        "#!/bin/sh\nexec python3 -c '"
        "import re, sys; path = sys.argv[1]; text = open(path).read(); "
        'entry = re.compile(r"  - disableSpanReporting: true\\n    match:\\n'
        '      mode: CLIENT\\n"); '
        'assert entry.search(text), text; open(path, "w").write(entry.sub("", text))'
        "' \"$1\"\n"
    )
    editor.chmod(0o755)
    walk.run(FORMS, "kubectl delete -k envoyfilter/mesh")
    walk.run(FORMS, "kubectl -n istio-system delete -f envoyfilter/gateway-spans.yaml")
    walk.run(FORMS, "edit telemetry mesh-default", KUBE_EDITOR=str(editor))
    steps.until_in_pieces(walk)
    left = walk.quiet("kubectl get envoyfilters,wasmplugins,trafficextensions -A -o name")
    assert left == ""
    # "What stays then is the mount and the ConfigMap in each namespace".
    for namespace in ("shop", "bookinfo"):
        walk.quiet(f"kubectl -n {namespace} get configmap b3relay")
        mounted = walk.quiet(f"kubectl -n {namespace} get deployments -o yaml")
        assert "/etc/b3relay" in mounted


def test_uninstall(walk: Walk) -> None:
    walk.run(FORMS, "kubectl -n shop apply -k envoyfilter/sidecars")
    steps.until_one_trace(walk)
    walk.run(FORMS, "kubectl -n shop delete -k envoyfilter/sidecars")
    walk.run(FORMS, '"sidecar.istio.io/userVolume": null')
    walk.run(FORMS, "kubectl -n shop delete configmap b3relay")
    walk.run(GUIDE, "for d in front orders stock")
    settle(walk)
    left = walk.quiet(
        "kubectl -n shop get envoyfilters,telemetries,configmaps -o name | grep b3relay || true"
    )
    assert left == ""
    assert "b3relay" not in walk.quiet("kubectl -n shop get pods -o yaml")
    assert statistics(walk) == {}
    steps.until_in_pieces(walk)


pytestmark = pytest.mark.timeout(900)
