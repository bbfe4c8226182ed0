"""Meshes that are set up in other ways: STRICT mTLS, a Sidecar with a narrow egress, client
spans by b3relay, classic sidecars, an older Istio. Always the same click, and its tree."""

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from cluster import steps, traces
from cluster.settings import HUB, OLDER_TAG, older_manifests
from cluster.steps import apply, eventually, settle, trees_of_shop
from cluster.traces import Tree
from cluster.traffic import SHOP_HOST, Traffic
from cluster.walk import FORMS, GUIDE, Walk
from mesh.pages import ROOT

pytestmark = pytest.mark.timeout(900)

CHECK = "envoyfilter/check.sh shop"
# Agent and Envoy use about 170 MB, with the filter or without.
MEMORY = "256Mi"


@pytest.fixture(scope="module", autouse=True)
def installed(walk: Walk) -> None:
    """The form `sidecars`, in the shop; whoever has mounted the module, need not restart."""
    walk.run(GUIDE, "kubectl -n shop create configmap b3relay")
    walk.run(GUIDE, "--patch-file envoyfilter/mount.yaml")
    settle(walk)
    eventually(lambda: steps.module_is_in_every_pod(walk), "the kubelets bring the module", 180)
    walk.run(GUIDE, "kubectl -n shop apply -k envoyfilter/sidecars")
    steps.until_one_trace(walk)


def as_shown(walk: Walk) -> None:
    """Soon: sidecars take a change one after the other, each while requests are under way."""
    shown = traces.shown(GUIDE, 1)
    eventually(lambda: trees_of_shop(walk, 3, True, steps.PATIENCE) == shown, "the guide's tree")


def address(walk: Walk, app: str) -> str:
    return walk.quiet(f"kubectl -n shop get pods -l app={app} -o 'jsonpath={{.items[0].status.podIP}}'")


def plain_text_is_answered(walk: Walk) -> bool:
    """By a pod, to a caller without a sidecar: the node."""
    url = f"http://{address(walk, 'stock')}:8080/"
    done = subprocess.run(["curl", "-sS", "-m", "5", url], capture_output=True, text=True)
    assert done.returncode in (0, 52, 56), done.stderr
    return done.returncode == 0


def test_strict_mutual_tls(walk: Walk) -> None:
    assert plain_text_is_answered(walk)
    strict = {
        "apiVersion": "security.istio.io/v1",
        "kind": "PeerAuthentication",
        "metadata": {"name": "default"},
        "spec": {"mtls": {"mode": "STRICT"}},
    }
    apply(walk, yaml.safe_dump(strict))
    eventually(lambda: not plain_text_is_answered(walk), "plain text is refused")
    as_shown(walk)
    assert "WRONG" not in walk.run(FORMS, CHECK)
    walk.quiet("kubectl -n shop delete peerauthentication default")
    eventually(lambda: plain_text_is_answered(walk), "plain text is answered again")


@contextmanager
def egress(walk: Walk, *hosts: str) -> Iterator[None]:
    """A Sidecar that knows no other hosts."""
    sidecar = {
        "apiVersion": "networking.istio.io/v1",
        "kind": "Sidecar",
        "metadata": {"name": "default"},
        "spec": {"egress": [{"hosts": list(hosts)}]},
    }
    apply(walk, yaml.safe_dump(sidecar))
    eventually(lambda: "productpage.bookinfo" not in clusters(walk), "the rest is hidden")
    yield
    walk.quiet("kubectl -n shop delete sidecar default")
    eventually(lambda: "productpage.bookinfo" in clusters(walk), "the rest is there again")


def clusters(walk: Walk) -> str:
    return walk.quiet(
        "kubectl -n shop exec deploy/front -c istio-proxy -- pilot-agent request GET clusters"
    )


def test_a_narrow_egress(walk: Walk) -> None:
    with egress(walk, "./*", "istio-system/*"):
        as_shown(walk)


def test_an_egress_that_hides_the_collector(walk: Walk) -> None:
    """As the table of the guide says."""
    rows = [line for line in (ROOT / GUIDE).read_text().splitlines() if "`istio-system/*`" in line]
    assert any("no traces at all" in row for row in rows)
    with egress(walk, "./*"):
        printed = walk.run(FORMS, CHECK, status=1)
        assert "does not know outbound|9411||zipkin.istio-system" in printed


def with_client_spans() -> list[Tree]:
    """The picture of the guide, with a client span above each server span that has a caller."""
    (root,) = traces.shown(GUIDE, 1)

    def below(span: Tree) -> Tree:
        children = tuple(Tree(span.service, "CLIENT", "", (below(one),)) for one in span.children)
        return Tree(span.service, span.kind, "", children)

    return [below(root)]


def test_client_spans_by_b3relay(walk: Walk, folder: Path) -> None:
    """The component `spans`, in a folder of one's own."""
    own = folder / "own-spans"
    own.mkdir()
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": "shop",
        "resources": ["../envoyfilter/sidecars"],
        "components": ["../envoyfilter/spans"],
    }
    (own / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    steps.warnings_are_known(walk.shell("kubectl apply -k own-spans", folder))

    def reported() -> bool:
        return trees_of_shop(walk, 5, False, steps.PATIENCE) == with_client_spans()

    eventually(reported, "client spans between the others")
    walk.run(FORMS, "kubectl -n shop apply -k envoyfilter/sidecars")
    # What it does not name any more stays until the object is made anew.
    as_shown(walk)


def test_a_classic_sidecar_with_little_memory(walk: Walk) -> None:
    """Beside two native ones: among the containers of its pod, and under a limit."""
    assert kinds(walk, "orders") == "native"
    annotations = {
        "sidecar.istio.io/nativeSidecar": "false",
        "sidecar.istio.io/proxyMemory": "64Mi",
        "sidecar.istio.io/proxyMemoryLimit": MEMORY,
    }
    patch = {"spec": {"template": {"metadata": {"annotations": annotations}}}}
    walk.quiet(f"kubectl -n shop patch deployment orders -p '{json.dumps(patch)}'")
    walk.quiet("kubectl -n shop rollout status deployment orders")
    settle(walk)
    assert kinds(walk, "orders") == "classic"
    as_shown(walk)
    with Traffic(SHOP_HOST) as traffic:
        time.sleep(10)
    traffic.none_failed(f"ten seconds with {MEMORY} for a sidecar")
    limits = "jsonpath={..resources.limits.memory}"
    assert MEMORY in walk.quiet(f"kubectl -n shop get pods -l app=orders -o '{limits}'")
    restarts = "jsonpath={..restartCount}"
    told = walk.quiet(f"kubectl -n shop get pods -l app=orders -o '{restarts}'")
    assert set(told.split()) == {"0"}
    assert "WRONG" not in walk.run(FORMS, CHECK)


def kinds(walk: Walk, app: str) -> str:
    listed = json.loads(walk.quiet(f"kubectl -n shop get pods -l app={app} -o json"))["items"]
    (spec,) = (one["spec"] for one in listed if "deletionTimestamp" not in one["metadata"])
    names = [one["name"] for one in spec["containers"]]
    return "classic" if "istio-proxy" in names else "native"


def test_an_older_istio(walk: Walk) -> None:
    """Its control plane, and then its agents, in new pods under traffic."""
    to = f"--set tag={OLDER_TAG} --manifests {older_manifests()}"
    walk.shell(f"istioctl install -y -f envoyfilter/example/istio.yaml {to}")
    settle(walk, "istio-system")
    # The gateway's pod is another one.
    walk.hold(GUIDE, "port-forward service/istio-ingressgateway", ready="Forwarding from 127.0.0.1")
    with Traffic(SHOP_HOST) as traffic:
        walk.shell("kubectl -n shop rollout restart deployment")
        walk.run(GUIDE, "for d in front orders stock")
        settle(walk)
    traffic.none_failed("the change to an older Istio")
    images = walk.quiet("kubectl -n shop get pods -o 'jsonpath={..image}'").split()
    assert {image for image in images if "istio" in image} == {f"{HUB}/proxyv2:{OLDER_TAG}"}
    istiod = walk.quiet("kubectl -n istio-system get pods -l app=istiod -o 'jsonpath={..image}'")
    assert set(istiod.split()) == {f"{HUB}/pilot:{OLDER_TAG}"}
    as_shown(walk)
    assert "WRONG" not in walk.run(FORMS, CHECK)
