"""What `envoyfilter/` ships, through Istio's own tools and Envoy."""

import copy
from dataclasses import replace

import pytest

from istio import checks, cluster
from istio.checks import ONE
from istio.cluster import GATEWAY, NAMESPACE, ROOT_NAMESPACE
from istio.generator import CODEC, generate
from istio.manifests import SHIPPED, Document, Form, forms, in_namespace, load
from istio.tools import VERSIONS, istio
from mesh import envoy
from mesh.mesh import wasm_path

FORMS = {form.name: form for form in forms(NAMESPACE, ROOT_NAMESPACE)}


def shipped(form: Form) -> list[Document]:
    return in_namespace(form.namespace, load(form.name))


@pytest.mark.parametrize("name", FORMS)
def test_nothing_is_found(name: str) -> None:
    assert checks.findings(FORMS[name], shipped(FORMS[name])) == []


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("version", VERSIONS[1:])
def test_nothing_is_found_with_an_older_istio(name: str, version: str) -> None:
    found = checks.generated(FORMS[name], shipped(FORMS[name]), istio(version))
    assert list(found) == []


@pytest.mark.parametrize("name", ["sidecars", "wasmplugin"])
@pytest.mark.parametrize("sidecar", ["1.26", "1.27", "1.28", "1.29"])
@pytest.mark.parametrize("version", VERSIONS)
def test_nothing_is_found_with_older_sidecars(name: str, sidecar: str, version: str) -> None:
    """Those that have not restarted since an upgrade of the control plane."""
    program = replace(istio(version), version=sidecar)
    assert list(checks.generated(FORMS[name], shipped(FORMS[name]), program)) == []


def test_another_envoyfilter_with_upstream_filters() -> None:
    """envoyfilter/README.md: Istio appends the lists, and Envoy refuses the listener."""
    ours = shipped(FORMS["sidecars"])
    (other,) = (copy.deepcopy(one) for one in ours if one["kind"] == "EnvoyFilter")
    other["metadata"]["name"] = "other"
    (patch,) = (
        one for one in other["spec"]["configPatches"] if one["patch"]["operation"] == "MERGE"
    )
    other["spec"]["configPatches"] = [patch]
    mutation = "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation"
    patch["patch"]["value"]["typed_config"]["upstream_http_filters"][0] = {
        "name": "other",
        "typed_config": {"@type": f"type.googleapis.com/{mutation}"},
    }
    proxy = generate([*ours, other], [ONE])[ONE.name]
    appended = ("b3relay.inbound", CODEC, "other", CODEC)
    assert {tuple(sorted(chain.upstream)) for chain in proxy.inbound()} == {tuple(sorted(appended))}
    result = envoy.validate(proxy.bootstrap(wasm_path()))
    assert result.exit_code != 0
    assert "must be the last filter in a router upstream http filter chain" in result.log


def test_every_manifest_is_one_of_the_forms() -> None:
    """Or a part of one, or a patch of deployments (test_mount.py), or without Istio."""
    parts = {"image", "no-client-spans", "spans", "README.md", "example"}
    parts |= {"mount.yaml", "mount-image.yaml", "mount-gateway.yaml"}
    parts |= {"Dockerfile", "local"}  # tests/docker
    parts |= {"check.sh"}  # tests/check
    parts |= {"monitoring"}  # tests/monitoring
    assert {path.name for path in SHIPPED.iterdir()} == {*FORMS, *parts}


def test_the_entry_for_a_telemetry_that_is_there() -> None:
    """For the whole mesh, it goes into that of the root namespace; a gateway's spans
    are then kept by the Telemetry for it."""
    (ours,) = load("no-client-spans")
    (gateway_spans,) = in_namespace(ROOT_NAMESPACE, load("gateway-spans.yaml"))
    base = cluster.objects()
    (mesh_wide,) = (one for one in base if one["kind"] == "Telemetry")
    mesh_wide["spec"]["tracing"] += ours["spec"]["tracing"]
    for more, gateway_traces in (([], False), ([gateway_spans], True)):
        proxies = generate(more, base=base)
        assert all(not chain.tracing for chain in proxies[ONE.name].outbound())
        assert all(chain.tracing for chain in proxies[ONE.name].inbound())
        assert [chain.tracing for chain in proxies[GATEWAY.name].chains()] == [gateway_traces]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "label",
    [
        ("istio", "ingress"),
        # Gateway API: Istio heeds selectors there too, but for those of waypoints.
        ("gateway.networking.k8s.io/gateway-name", "edge"),
    ],
    ids=str,
)
def test_the_label_of_another_gateway(label: tuple[str, str], version: str) -> None:
    """docs/trust.md: with the shipped one nothing is selected, and nothing said; with that of
    its pods, the gateway is."""
    # So that it has listeners, whatever the label is.
    base = cluster.objects()
    (routing,) = (one for one in base if one["kind"] == "Gateway")
    routing["spec"]["selector"] = {"app": "gateway"}
    pod = replace(GATEWAY, labels=(("app", "gateway"), label))
    (off,) = in_namespace(ROOT_NAMESPACE, load("no-client-spans"))
    (mesh_wide,) = (one for one in base if one["kind"] == "Telemetry")
    mesh_wide["spec"]["tracing"] += off["spec"]["tracing"]
    for is_changed in (False, True):
        made: list[Document] = []
        for form in ("boundary", "check", "spans"):
            made += in_namespace(ROOT_NAMESPACE, load(f"gateway-{form}.yaml"))
        for one in made if is_changed else []:
            selector = one["spec"].get("workloadSelector") or one["spec"]["selector"]
            (labels,) = selector
            selector[labels] = dict([label])
        (chain,) = generate(made, [pod], base, istio(version))[pod.name].chains()
        selected = (chain.removed_early != (), "b3relay.gateway" in chain.filters, chain.tracing)
        assert selected == (is_changed,) * 3
