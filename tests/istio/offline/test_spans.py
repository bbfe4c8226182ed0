"""The component `envoyfilter/spans` on each of the forms for sidecars."""

import json
from pathlib import Path

import pytest

from istio import checks
from istio.checks import ONE, OTHER
from istio.cluster import GATEWAY, NAMESPACE, ROOT_NAMESPACE
from istio.generator import generate
from istio.manifests import Document, Form, forms, in_namespace, load_with

FORMS = {
    form.name: form
    for form in forms(NAMESPACE, ROOT_NAMESPACE)
    if form.upstream and not form.gateway
}
CLUSTER = "b3relay-collector"


def with_spans(form: Form, directory: Path) -> list[Document]:
    return in_namespace(form.namespace, load_with(form.name, "spans", directory))


@pytest.mark.parametrize("name", FORMS)
def test_nothing_is_found(name: str, tmp_path: Path) -> None:
    assert checks.findings(FORMS[name], with_spans(FORMS[name], tmp_path)) == []


@pytest.mark.parametrize("name", FORMS)
def test_spans_go_to_a_cluster_that_is_there(name: str, tmp_path: Path) -> None:
    proxies = generate(with_spans(FORMS[name], tmp_path), (ONE, OTHER, GATEWAY))
    for pod, proxy in proxies.items():
        has_filter = pod == ONE.name or (pod == OTHER.name and name != "workload")
        found = [one for one in proxy.clusters if one["name"] == CLUSTER]
        assert len(found) == has_filter, pod
        if not has_filter:
            continue
        assert found[0]["load_assignment"]["endpoints"]
        told = {
            side: json.loads(
                proxy.extension(f"b3relay.{side}")["config"]["configuration"]["value"]
            )
            for side in ("inbound", "outbound")
        }
        assert told["outbound"]["spans"]["cluster"] == CLUSTER
        assert "spans" not in told["inbound"]
