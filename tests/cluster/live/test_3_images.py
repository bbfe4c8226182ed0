"""envoyfilter/README.md and docs/image.md: the forms that take the module from an image,
out of a registry that answers to the name in the examples, and those for the gateway."""

import re
import secrets
import urllib.request

import pytest

from cluster import steps
from cluster.steps import configured, eventually, settle, statistics
from cluster.traces import Jaeger
from cluster.walk import FORMS, GUIDE, Walk
from docker.registry import REGISTRY
from istio.tools import istio
from mesh.mesh import wasm_path

IMAGE = f"{REGISTRY}/b3relay:0.1.0"
pytestmark = pytest.mark.timeout(900)


def test_the_image_is_pushed(walk: Walk) -> None:
    """The image that `make image-push` makes is pushed by the tests on Docker."""
    done = istio().run("registry", "push", "docker", wasm_path(), IMAGE)
    assert re.fullmatch(r"[0-9a-f]{64}", done.out.strip()), done.text


def test_sidecars_image(walk: Walk) -> None:
    before = walk.quiet("kubectl -n shop get pods -o name")
    printed = walk.run(FORMS, "kubectl -n shop apply -k envoyfilter/sidecars-image")
    steps.warnings_are_known(printed)
    steps.until_one_trace(walk)
    assert "WRONG" not in walk.run(FORMS, "envoyfilter/check.sh shop")
    walk.shell("kubectl -n shop delete -k envoyfilter/sidecars-image")
    steps.until_in_pieces(walk)
    # No pod restarted.
    assert walk.quiet("kubectl -n shop get pods -o name") == before


def test_wasmplugin(walk: Walk) -> None:
    steps.warnings_are_known(walk.run(FORMS, "kubectl -n shop apply -k envoyfilter/wasmplugin"))
    eventually(lambda: steps.flat(walk), "one flat trace")
    walk.shell("kubectl -n shop delete -k envoyfilter/wasmplugin")
    steps.until_in_pieces(walk)


def test_trafficextension(walk: Walk) -> None:
    printed = walk.run(FORMS, "kubectl -n shop apply -k envoyfilter/trafficextension")
    steps.warnings_are_known(printed)
    eventually(lambda: steps.flat(walk), "one flat trace")
    walk.shell("kubectl -n shop delete -k envoyfilter/trafficextension")
    steps.until_in_pieces(walk)


def test_image_volume(walk: Walk) -> None:
    """`sidecars`, with mount-image.yaml in the place of mount.yaml: the kubelet fetches."""
    each = 'kubectl -n shop patch "$d" --patch-file envoyfilter/mount-image.yaml'
    mount = walk.command(GUIDE, "--patch-file envoyfilter/mount.yaml")
    assert each.replace("mount-image", "mount") in mount
    walk.shell(mount.replace("envoyfilter/mount.yaml", "envoyfilter/mount-image.yaml"))
    walk.run(GUIDE, "kubectl -n shop apply -k envoyfilter/sidecars")
    settle(walk)
    steps.until_one_trace(walk)
    assert "WRONG" not in walk.run(FORMS, "envoyfilter/check.sh shop")
    walk.run(FORMS, "kubectl -n shop delete -k envoyfilter/sidecars")
    walk.run(FORMS, '"sidecar.istio.io/userVolume": null')
    walk.run(GUIDE, "for d in front orders stock")
    settle(walk)


def ask_gateway(**headers: str) -> int:
    request = urllib.request.Request("http://localhost:8080/productpage", headers=headers)
    with urllib.request.urlopen(request, timeout=20) as answer:
        status: int = answer.status
        return status


def test_check_at_a_gateway(walk: Walk) -> None:
    gateway = ("deploy/istio-ingressgateway", "istio-system")
    walk.run_all(
        FORMS,
        "kubectl -n istio-system create configmap b3relay",
        "--patch-file envoyfilter/mount-gateway.yaml",
        "rollout status deployment istio-ingressgateway",
        "kubectl -n istio-system apply -f envoyfilter/gateway-check.yaml",
    )
    settle(walk, "istio-system")
    # Its pod is another one.
    walk.hold(GUIDE, "port-forward service/istio-ingressgateway", ready="Forwarding from 127.0.0.1")
    eventually(lambda: "b3relay.gateway" in configured(walk, *gateway), "the filter")

    def found() -> bool:
        broken = {"x-b3-traceid": "xyz", "x-b3-spanid": "a2fb4a1d1a96d312"}
        assert ask_gateway(**broken) == 200
        return any("L01" in name for name, count in statistics(walk, *gateway).items() if count)

    eventually(found, "it has found a trace ID that is none")
    walk.shell("kubectl -n istio-system delete -f envoyfilter/gateway-check.yaml")


def test_boundary_at_a_gateway(walk: Walk) -> None:
    def taken_over() -> bool | None:
        """Whether the trace that a client names is the one of its click; None without spans."""
        given = secrets.token_hex(16)
        headers = {"x-b3-traceid": given, "x-b3-spanid": "a2fb4a1d1a96d312", "x-b3-sampled": "1"}
        spans = Jaeger().spans(
            lambda: ask_gateway(**headers), (steps.GATEWAY,), 2, patience=steps.PATIENCE
        )
        return {span["traceId"] for span in spans} == {given} if spans else None

    assert taken_over() is True
    walk.run(FORMS, "kubectl -n istio-system apply -f envoyfilter/gateway-boundary.yaml")
    eventually(lambda: taken_over() is False, "a trace of its own")
    walk.shell("kubectl -n istio-system delete -f envoyfilter/gateway-boundary.yaml")


def test_the_mount_of_a_gateway_is_taken_off(walk: Walk) -> None:
    mounted = (
        "kubectl -n istio-system get deployment istio-ingressgateway -o yaml"
        " | grep -c /etc/b3relay || true"
    )
    assert walk.quiet(mounted).strip() == "1"
    # What the page said once: it does not help.
    walk.run(GUIDE, "istioctl install -y -f envoyfilter/example/istio.yaml")
    assert walk.quiet(mounted).strip() == "1"
    walk.run(FORMS, "rollout undo deployment istio-ingressgateway")
    walk.run(FORMS, "rollout status deployment istio-ingressgateway")
    assert walk.quiet(mounted).strip() == "0"
    walk.run(FORMS, "kubectl -n istio-system delete configmap b3relay")
    settle(walk, "istio-system")
    walk.hold(GUIDE, "port-forward service/istio-ingressgateway", ready="Forwarding from 127.0.0.1")
    assert ask_gateway() == 200
