"""docs/istio-guide.md: OpenTelemetry in the place of Zipkin, and the end."""

import pytest

from cluster import steps, traces
from cluster.steps import configured, eventually, settle, trees_of_shop
from cluster.walk import FORMS, GUIDE, Walk

pytestmark = pytest.mark.timeout(900)


def test_opentelemetry(walk: Walk) -> None:
    """The same pictures, before and after."""
    walk.run(FORMS, "kubectl -n shop delete -k envoyfilter/sidecars")
    walk.run(GUIDE, "istioctl install -y -f envoyfilter/example/istio-opentelemetry.yaml")
    walk.run(GUIDE, "kubectl apply -f envoyfilter/example/tracing-opentelemetry.yaml")
    settle(walk, "istio-system")
    walk.shell("kubectl -n shop rollout restart deployment")
    walk.run(GUIDE, "for d in front orders stock")
    settle(walk)
    eventually(lambda: "envoy.tracers.opentelemetry" in configured(walk), "the other provider")
    assert trees_of_shop(walk, 6, paths=False) == traces.shown(GUIDE, 0)
    walk.run_all(
        GUIDE,
        "make wasm",
        "kubectl -n shop create configmap b3relay",
        "--patch-file envoyfilter/mount.yaml",
        "kubectl -n shop apply -k envoyfilter/sidecars",
    )
    # No pod has restarted for it: for a second or two a click may be in pieces again.
    shown = traces.shown(GUIDE, 1)
    eventually(lambda: trees_of_shop(walk, 3, True, steps.PATIENCE) == shown, "the guide's tree")


def test_remove_everything(walk: Walk) -> None:
    walk.end()
    walk.run_all(
        GUIDE,
        "kubectl delete namespace shop bookinfo",
        "kubectl delete -f envoyfilter/example/tracing.yaml",
        'kubectl delete -f "$ISTIO/samples/addons/jaeger.yaml"',
        "istioctl uninstall -y --purge",
    )
    left = walk.quiet("kubectl get namespaces -o name")
    assert "namespace/shop" not in left and "namespace/bookinfo" not in left
    webhooks = "kubectl get mutatingwebhookconfigurations -o name"
    eventually(lambda: "istio" not in walk.quiet(webhooks), "the webhooks are gone")
