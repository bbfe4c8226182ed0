"""What b3relay notices of a pod that is not set up as it should be."""

import json
import time

import pytest

from mesh.mesh import Mesh

LINE = 15.0


def said(mesh: Mesh, service: str, text: str) -> int:
    """How often that stands in the log of the service's sidecar, once it does."""
    deadline = time.monotonic() + LINE
    while text not in mesh.envoys[service].log() and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(1.2)  # the other workers' ticks
    return mesh.envoys[service].log().count(text)


@pytest.mark.long
def test_client_spans_that_overwrite_what_was_copied_are_told() -> None:
    with Mesh(client_spans=True) as mesh:
        mesh.clicks(5)
        assert said(mesh, "productpage", "was overwritten by Envoy's own tracing") == 1
        assert mesh.envoys["productpage"].stats("b3relay_")["b3relay_overwritten_total{}"] == 10
        assert mesh.envoys["ratings"].log().count("overwritten") == 0
    with Mesh() as mesh:
        mesh.clicks(5)
        assert "b3relay_overwritten_total{}" not in mesh.envoys["productpage"].stats("b3relay_")
        assert "overwritten" not in mesh.envoys["productpage"].log()


@pytest.mark.parametrize("forward", ["request-id", pytest.param("all7", marks=pytest.mark.long)])
def test_client_spans_of_envoy_beside_those_of_b3relay_are_told(forward: str) -> None:
    """Two client spans for each call, and the callee's hangs from Envoy's. With a context of
    the application's own, too, which gets a client span as well."""
    spans = json.dumps({"spans": {"cluster": "collector", "format": "zipkin"}})
    with Mesh(forward=forward, client_spans=True, outbound_config=spans) as mesh:
        mesh.clicks(5)
        assert said(mesh, "productpage", "was overwritten by Envoy's own tracing") == 1
        assert mesh.envoys["productpage"].stats("b3relay_")["b3relay_overwritten_total{}"] == 10
        assert "envoyfilter/no-client-spans" in mesh.envoys["productpage"].log()
    with Mesh(forward=forward, outbound_config=spans) as mesh:
        mesh.clicks(5)
        assert "b3relay_overwritten_total{}" not in mesh.envoys["productpage"].stats("b3relay_")


def test_filters_of_a_pod_that_are_configured_differently_are_told() -> None:
    inbound = {"copy_headers": ["x-tenant"], "grace_ms": 500, "keys": ["x-request-id"]}
    outbound = {"grace_ms": 2000}
    with Mesh(
        config=json.dumps(inbound), outbound_config=json.dumps(outbound), extra_stat_tags=["key"]
    ) as mesh:
        mesh.clicks(20, 4)
        assert said(mesh, "productpage", "`copy_headers` is [x-tenant] inbound and [] outbound") == 1
        log = mesh.envoys["productpage"].log()
        assert log.count("`keys` is [x-request-id] inbound and [x-request-id, traceparent, b3]") == 1
        stats = mesh.envoys["productpage"].stats("b3relay_misconfigured_total")
        assert {name: n for name, n in stats.items() if n} == {
            'b3relay_misconfigured_total{key="copy_headers"}': 1,
            'b3relay_misconfigured_total{key="keys"}': 1,
        }


@pytest.mark.long
def test_labels_that_istio_does_not_take_apart_are_told() -> None:
    istio = {"ISTIO_VERSION": "1.31.0", "PROXY_CONFIG": {"concurrency": 2}}
    told = {**istio, "PROXY_CONFIG": {"extraStatTags": ["decision"]}}
    for metadata, lines in ((istio, 1), (told, 0), ({}, 0)):
        with Mesh(node_metadata=metadata, filter=["ratings"]) as mesh:
            mesh.click()
            text = "Istio is not told to take the labels apart"
            time.sleep(0.5)
            assert mesh.envoys["ratings"].log().count(text) == lines, metadata
