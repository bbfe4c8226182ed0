"""What check.sh gets from Kubernetes' own kubectl is what tests/check answers in its place."""

from pathlib import Path

import pytest

from check.api import serving
from check.cluster import Cluster, check, config_map, gateway, namespace, pod, shipped, telemetry
from check.sidecar import PAGES, Recorded
from istio.tools import istio


def states() -> dict[str, Cluster]:
    plugins = [
        shipped("wasmplugin/wasmplugin.yaml"),
        shipped("trafficextension/trafficextension.yaml"),
    ]
    every = Cluster(unknown_kinds=()).put(
        *plugins,
        telemetry("older", tracing=[{"providers": [{"name": "zipkin"}]}]),
        telemetry("for-one", selector={"matchLabels": {"app": "front", "version": "v1"}}),
        pod("front-0", mounted=False, ending=True),
        pod("front-2", native=False),
        pod("bare-1", sidecar=False),
        telemetry("edge", targetRef={"kind": "Gateway", "name": "edge"}),
        telemetry("edges", targetRefs=[{"kind": "Gateway", "name": "edge"}]),
        gateway("edge-1"),
        gateway("edge-2", "waypoint"),
        pod("edge-3", sidecar=False, labels={"gateway.networking.k8s.io/gateway-name": "edge"}),
        pod("ambient-1", sidecar=False, labels={"istio.io/dataplane-mode": "ambient"}),
        pod("apart-1", sidecar=False, labels={"sidecar.istio.io/inject": "false"}),
        pod("apart-2", sidecar=False, annotations={"sidecar.istio.io/inject": "false"}),
        shipped("sidecars/envoyfilter.yaml", "istio-system"),
    )
    ambient = Cluster(unknown_kinds=()).without("Namespace")
    ambient.put(namespace(**{"istio.io/dataplane-mode": "ambient"}), pod("ambient-1", sidecar=False))
    form = shipped("sidecars/envoyfilter.yaml")
    form["spec"]["workloadSelector"] = {"labels": {"app": "front-1", "istio.io/rev": "canary"}}
    workload = Cluster(unknown_kinds=()).without("EnvoyFilter").without("Pod").put(form)
    workload.put(pod("front-1", labels={"istio.io/rev": "canary", "version": "v1"}), pod("front-2"))
    return {
        "every": every,
        "workload": workload,
        "ambient": ambient,
        "nothing": Cluster([{"kind": "Namespace", "metadata": {"name": "shop"}}], unknown_kinds=()),
        "no namespace": Cluster([], unknown_kinds=()),
        "no map": Cluster(unknown_kinds=()).without("ConfigMap"),
        "another key": Cluster(unknown_kinds=())
        .without("ConfigMap")
        .put(config_map("b3relay.wasm")),
    }


@pytest.mark.parametrize("name", states())
def test_kubectl_answers_the_same(name: str, tmp_path: Path) -> None:
    state = states()[name]
    empty = Recorded(dict.fromkeys(PAGES, ""), "")
    state.sidecars = {"front-1": empty, "front-2": empty}
    said = []
    with serving(state.objects) as address:
        for real in (None, (istio().binary("kubectl"), address)):
            directory = tmp_path / ("fake" if real is None else "real")
            directory.mkdir()
            said.append(check(state, directory, real=real))
    fake, real_ = said
    assert (real_.exit_code, real_.text) == (fake.exit_code, fake.text), real_.errors
