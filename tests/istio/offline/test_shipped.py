"""What `envoyfilter/` ships, through Istio's own tools and Envoy."""

import pytest

from istio import checks, cluster
from istio.checks import ONE
from istio.cluster import GATEWAY, NAMESPACE, ROOT_NAMESPACE
from istio.generator import generate
from istio.manifests import SHIPPED, Document, Form, forms, in_namespace, load
from istio.tools import VERSIONS, istio

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
