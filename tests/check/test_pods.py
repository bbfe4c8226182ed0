"""Which pods envoyfilter/check.sh looks at, and what it says of the others."""

from pathlib import Path
from typing import Any

import pytest

from check.cluster import ROOT_NAMESPACE, Object, check, gateway, namespace, pod, shipped
from check.setups import cluster, right, sidecar, wrong


def test_pods_without_a_sidecar(tmp_path: Path) -> None:
    state = cluster().without("Pod").put(pod("front-1", sidecar=False))
    said = check(state, tmp_path)
    wrong(said, "pods: front-1 without a sidecar", "pods: none in shop is running with a sidecar")


GATEWAY_NAME = {"gateway.networking.k8s.io/gateway-name": "edge"}


@pytest.mark.parametrize(
    "of_a_gateway",
    [
        # Of a Helm chart or an IstioOperator; of Gateway API; of one without Envoy.
        gateway("edge-1"),
        gateway("edge-1", "waypoint"),
        gateway("edge-1", labels={**GATEWAY_NAME, "sidecar.istio.io/inject": "false"}),
        pod("edge-1", sidecar=False, mounted=False, labels=GATEWAY_NAME),
    ],
    ids=["router", "waypoint", "named", "without an istio-proxy"],
)
def test_a_gateway_beside_the_applications(of_a_gateway: dict[str, Any], tmp_path: Path) -> None:
    """No form reaches it, and none has to."""
    said = check(cluster().put(of_a_gateway), tmp_path)
    right(said)
    (note,) = said.lines("note")
    assert note.startswith("note   pods: edge-1 of gateways or waypoints, not sidecars")


@pytest.mark.parametrize("native", [True, False])
def test_a_gateway_of_another_vendor_has_a_sidecar(native: bool, tmp_path: Path) -> None:
    """The forms reach it, as they reach every sidecar."""
    edge = pod("edge-1", native=native, mounted=False, labels=GATEWAY_NAME)
    said = check(cluster().put(edge), tmp_path)
    wrong(said, "edge-1: its sidecar does not answer")


@pytest.mark.parametrize("by", ["namespace", "pod"])
def test_pods_in_ambient_mode(by: str, tmp_path: Path) -> None:
    """With a sidecar they would not be in ambient mode any more: that is no remedy."""
    mode = {"istio.io/dataplane-mode": "ambient"}
    state = cluster().put(pod("ambient-1", sidecar=False, labels=mode if by == "pod" else {}))
    if by == "namespace":
        state.without("Namespace").put(namespace(**mode))
    said = check(state, tmp_path)
    right(said)
    (note,) = said.lines("note")
    assert note.startswith("note   pods: ambient-1 in ambient mode, which b3relay does not support")


def test_a_namespace_in_ambient_mode(tmp_path: Path) -> None:
    state = cluster().without("Pod").put(pod("ambient-1", sidecar=False)).without("Namespace")
    said = check(state.put(namespace(**{"istio.io/dataplane-mode": "ambient"})), tmp_path)
    wrong(said, "pods: none in shop is running with a sidecar")
    assert "ambient-1 in ambient mode, which b3relay does not support" in said.text
    assert "istio-injection" not in said.text


@pytest.mark.parametrize("of", ["labels", "annotations", "network", "mode"])
def test_pods_that_are_to_have_no_sidecar(of: str, tmp_path: Path) -> None:
    state = cluster()
    match of:
        case "labels":
            state.put(pod("job-1", sidecar=False, labels={"sidecar.istio.io/inject": "false"}))
        case "annotations":
            state.put(pod("job-1", sidecar=False, annotations={"sidecar.istio.io/inject": "false"}))
        case "network":
            # Istio injects none there.
            on_the_node = pod("job-1", sidecar=False)
            on_the_node["spec"]["hostNetwork"] = True
            state.put(on_the_node)
        case _:
            # In a namespace in ambient mode, neither that nor a sidecar.
            state.put(pod("job-1", sidecar=False, labels={"istio.io/dataplane-mode": "none"}))
            state.without("Namespace").put(namespace(**{"istio.io/dataplane-mode": "ambient"}))
    said = check(state, tmp_path)
    right(said)
    (note,) = said.lines("note")
    assert note.startswith("note   pods: job-1 without a sidecar on purpose")


def test_old_pods_are_left_out(tmp_path: Path) -> None:
    """Their logs say what is no longer so."""
    said = check(cluster().put(pod("front-0", mounted=False, ending=True)), tmp_path)
    right(said)
    assert "note   pods: front-0 still terminating" in said.text


def of_one_workload(app: str) -> Object:
    """The form `workload`, as it is applied."""
    form = shipped("sidecars/envoyfilter.yaml")
    form["metadata"]["name"] += f"-{app}"
    form["spec"]["workloadSelector"] = {"labels": {"app": app}}
    return form


def test_the_form_of_one_workload(tmp_path: Path) -> None:
    """The other pods are without b3relay on purpose. One that is named is looked at."""
    state = cluster().without("EnvoyFilter").put(of_one_workload("front-1"))
    state.put(pod("details-1", mounted=False))
    state.sidecars["details-1"] = sidecar("before")
    said = check(state, tmp_path / "all")
    right(said)
    (note,) = said.lines("note")
    assert note.startswith("note   pods: details-1 selected by no form above")
    assert "front-1: inbound, 3 requests seen" in said.text
    named = check(state, tmp_path / "named", "shop", "details-1")
    wrong(named, "details-1: the module is not mounted", "details-1: no listener has a place")


def test_a_form_that_selects_nothing(tmp_path: Path) -> None:
    """Of several labels a pod must have all."""
    form = of_one_workload("front-1")
    form["spec"]["workloadSelector"]["labels"]["version"] = "v2"
    state = cluster().without("EnvoyFilter").put(form)
    said = check(state, tmp_path)
    wrong(said, "form: EnvoyFilter shop/b3relay-front-1 selects no pod with a sidecar")
    assert "pods: front-1 selected by no form above" in said.text


def test_a_form_of_the_whole_mesh_beside_that_of_a_workload(tmp_path: Path) -> None:
    everywhere = shipped("sidecars/envoyfilter.yaml", ROOT_NAMESPACE)
    state = cluster().without("EnvoyFilter").put(everywhere, of_one_workload("elsewhere"))
    wrong(check(state, tmp_path), "form: EnvoyFilter shop/b3relay-elsewhere selects no pod")


def test_a_sidecar_that_does_not_answer(tmp_path: Path) -> None:
    said = check(cluster().put(pod("silent-1")), tmp_path)
    wrong(said, "silent-1: its sidecar does not answer: error: unable to upgrade connection")


def test_pods_that_are_named(tmp_path: Path) -> None:
    said = check(cluster().put(pod("silent-1")), tmp_path, "shop", "front-1")
    right(said)
