"""Mistakes in each place of the manifests, and the check that finds them.

Run with `-rP` to see what each check says. A mistake that no check found would be one
that could be shipped.
"""

from typing import NamedTuple

import pytest

from istio import checks
from istio.cluster import NAMESPACE, ROOT_NAMESPACE
from istio.manifests import MODULE, documents, forms, in_namespace, load, text_of

FORMS = {form.name: form for form in forms(NAMESPACE, ROOT_NAMESPACE)}


class Mistake(NamedTuple):
    form: str
    right: str
    wrong: str
    # The checks that find it, all of them.
    found_by: set[str]
    # Which of several places, counted from 0.
    place: int = 0


_WASM = "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm"
_CODEC = "envoy.filters.http.upstream_codec"
MISTAKES = {
    "an operation that does not exist": Mistake(
        "sidecars", "INSERT_BEFORE", "INSERT_BEFOR", {"validate", "analyze", "generate"}
    ),
    "another operation": Mistake("sidecars", "INSERT_BEFORE", "INSERT_AFTER", {"chains", "envoy"}),
    "a context that does not exist": Mistake(
        "sidecars", "SIDECAR_INBOUND", "SIDECAR_INBOUN", {"validate", "analyze", "generate"}
    ),
    "the other context": Mistake("sidecars", "SIDECAR_INBOUND", "SIDECAR_OUTBOUND", {"chains"}),
    "a place that does not exist": Mistake(
        "sidecars",
        "applyTo: HTTP_FILTER",
        "applyTo: HTTP_FILTERS",
        {"validate", "analyze", "generate"},
    ),
    "a misspelt field of a match": Mistake(
        "sidecars", "filterChain:", "filterchain:", {"validate", "chains"}
    ),
    "a misspelt filter": Mistake(
        "sidecars",
        "network.http_connection_manager",
        "network.http_conection_manager",
        {"validate", "analyze", "generate"},
    ),
    "a misspelt sub-filter": Mistake(
        "sidecars",
        "subFilter:\n              name: envoy.filters.http.router",
        "subFilter:\n              name: envoy.filters.http.ruoter",
        {"chains"},
    ),
    "a misspelt field of a patch": Mistake(
        "sidecars",
        "upstream_http_filters:",
        "upstream_http_filter:",
        {"validate", "analyze", "chains"},
    ),
    "a misspelt field of the filter": Mistake(
        "sidecars", "failure_policy:", "failure_polcy:", {"validate", "analyze", "chains"}
    ),
    "no codec": Mistake(
        "sidecars", f"- name: {_CODEC}", "- name: envoy.filters.http.buffer", {"chains"}
    ),
    "a misspelt type": Mistake(
        "sidecars", f"@type': {_WASM}", f"@type': {_WASM}m", {"validate", "analyze", "generate"}
    ),
    "a misspelt type of what is discovered": Mistake(
        "sidecars", f"- {_WASM}", f"- {_WASM}m", {"chains"}
    ),
    "an extension of another name": Mistake(
        "sidecars", "name: b3relay.outbound", "name: b3relay.outbuond", {"chains"}, place=1
    ),
    "a runtime that does not exist": Mistake(
        "sidecars", "envoy.wasm.runtime.v8", "envoy.wasm.runtime.v9", {"envoy"}
    ),
    "another file": Mistake("sidecars", MODULE, "/etc/b3relay/b3relay.wasm", {"envoy"}),
    "a misspelt key of the configuration": Mistake(
        "sidecars", '{"direction": "outbound"}', '{"direktion": "outbound"}', {"chains", "envoy"}
    ),
    "the wrong direction": Mistake(
        "sidecars", '{"direction": "outbound"}', '{"direction": "inbound"}', {"chains"}
    ),
    "two vm_ids": Mistake("sidecars", "vm_id: b3relay", "vm_id: b3-relay", {"chains"}),
    "another root ID": Mistake("sidecars", "root_id: b3relay", "root_id: relay", {"chains"}),
    "no priority": Mistake("sidecars", "  priority: 10\n", "", {"analyze"}),
    "a version of the API that does not exist": Mistake(
        "sidecars", "networking.istio.io/v1alpha3", "networking.istio.io/v1alpha4", {"generate"}
    ),
    "a misspelt field of the Telemetry": Mistake(
        "sidecars", "disableSpanReporting", "disableSpanReportin", {"validate", "chains"}
    ),
    "the other mode in the Telemetry": Mistake(
        "sidecars", "mode: CLIENT", "mode: SERVER", {"chains"}
    ),
    "a misspelt selector": Mistake(
        "workload", "workloadSelector", "workloadSelectr", {"validate", "chains"}
    ),
    "a selector of another field": Mistake(
        "workload", "matchLabels", "matchLabel", {"validate", "analyze", "chains"}
    ),
    "another label": Mistake("workload", "app: reviews", "app: review", {"chains"}),
    "no URI of an image": Mistake(
        "sidecars-image", "http_uri", "https_uri", {"validate", "analyze"}
    ),
    "a misspelt field of the WasmPlugin": Mistake(
        "wasmplugin", "failStrategy", "failureStrategy", {"validate", "chains"}
    ),
    "a strategy that does not exist": Mistake(
        "wasmplugin", "FAIL_OPEN", "FAILOPEN", {"validate", "analyze", "generate"}
    ),
    "a scheme that does not exist": Mistake(
        "wasmplugin", "oci://", "ocl://", {"validate", "analyze", "generate"}
    ),
    "a digest that is too short": Mistake(
        "wasmplugin",
        "pluginName:",
        "sha256: abc\n  pluginName:",
        {"validate", "analyze", "generate"},
    ),
    "a misspelt configuration in the WasmPlugin": Mistake(
        "wasmplugin", "mode: observe", "modus: observe", {"envoy"}
    ),
    "a misspelt field of the TrafficExtension": Mistake(
        "trafficextension", "failStrategy", "failureStrategy", {"validate", "chains"}
    ),
    "a kind that does not exist": Mistake(
        "trafficextension", "TrafficExtension", "TrafficExtensions", {"generate"}
    ),
    "a mutation that does not exist": Mistake(
        "gateway-boundary.yaml",
        "remove: b3\n",
        "removes: b3\n",
        {"validate", "analyze", "chains", "envoy"},
    ),
    "a misspelt header": Mistake(
        "gateway-boundary.yaml", "x-b3-traceid", "x-b3-trace-id", {"chains"}
    ),
    "a selector of no gateway": Mistake(
        "gateway-check.yaml", "ingressgateway", "ingresgateway", {"chains"}
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_found(name: str) -> None:
    mistake = MISTAKES[name]
    form = FORMS[mistake.form]
    right = text_of(in_namespace(form.namespace, load(form.name)))
    parts = right.split(mistake.right)
    assert len(parts) > mistake.place + 1, f"{mistake.right!r} is not in the manifest"
    at = mistake.place + 1
    wrong = mistake.right.join(parts[:at]) + mistake.wrong + mistake.right.join(parts[at:])
    found = checks.findings(form, documents(wrong))
    for check, text in found:
        print(f"{check}: {text}")
    assert {check for check, _ in found} == mistake.found_by
