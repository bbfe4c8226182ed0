"""What must hold of manifests, and what tells when it does not.

The shipped ones pass all of them (offline/test_shipped.py). Broken ones are found by
at least one (offline/test_broken.py), which shows that each check is needed.
"""

import json
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from istio import cluster
from istio.cluster import GATEWAY, PODS
from istio.generator import CODEC, ROUTER, Chain, Generated, Refused, generate
from istio.manifests import Document, Form, text_of
from istio.tools import Istio, istio
from mesh import envoy
from mesh.mesh import wasm_path

# In the namespace, of the workload that `workload` is for, and another one.
ONE, OTHER = PODS["reviews"], PODS["details"]
# Said of each and every EnvoyFilter.
_ANY_ENVOYFILTER = "EnvoyFilter exposes internal implementation details"
_EXTENSION = "extensions.istio.io/trafficextension/"
_BOUNDARY = (
    *("b3", "x-b3-traceid", "x-b3-spanid", "x-b3-parentspanid", "x-b3-sampled", "x-b3-flags"),
    *("traceparent", "tracestate", "x-ot-span-context", "grpc-trace-bin"),
    *("x-client-trace-id", "x-envoy-force-trace", "x-request-id"),
    *("uber-trace-id", "sw8", "sw8-correlation", "sw8-x"),
    *("x-datadog-trace-id", "x-datadog-parent-id", "x-datadog-sampling-priority"),
    *("x-datadog-origin", "x-datadog-tags"),
)


def validate(shipped: list[Document]) -> Iterator[str]:
    """`istioctl validate`: Istio's admission webhook. It calls a field that it does
    not know a warning, and is content."""
    done = istio().run("istioctl", "validate", "-f", "-", stdin=text_of(shipped))
    if done.exit_code != 0 or "unknown field" in done.text:
        yield done.text.strip()


def analyze(shipped: list[Document]) -> Iterator[str]:
    """`istioctl analyze`: how objects go together."""
    with tempfile.TemporaryDirectory(prefix="b3relay-mesh-") as directory:
        path = Path(directory, "shipped.yaml")
        path.write_text(text_of([*_namespaces(), *shipped]))
        words = ("analyze", "--use-kube=false", "--all-namespaces", "--output", "json", str(path))
        done = istio().run("istioctl", *words)
    try:
        found = json.loads(done.out)
    except ValueError:
        yield done.text.strip()
        return
    for one in found:
        if one["level"] != "Info" and _ANY_ENVOYFILTER not in one["message"]:
            yield f"{one['code']} {one['message']}"


def _namespaces() -> list[Document]:
    labels = {"istio-injection": "enabled"}
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
        for name in (cluster.NAMESPACE, cluster.ROOT_NAMESPACE)
    ]


def generated(
    form: Form, shipped: list[Document], program: Istio | None = None
) -> Iterator[tuple[str, str]]:
    """Istio's generator; what the filter chains look like; and Envoy, with the module."""
    try:
        proxies = generate(shipped, (ONE, OTHER, GATEWAY), program=program)
    except Refused as error:
        yield "generate", str(error).strip()
        return
    for name, proxy in proxies.items():
        for problem in _chains(form, name, proxy):
            yield "chains", f"{name}: {problem}"
        try:
            bootstrap = proxy.bootstrap(wasm_path())
        except KeyError as error:
            yield "chains", f"{name}: nothing fills the place {error}"
            continue
        result = envoy.validate(bootstrap)
        # A plugin without a fallback is not refused.
        if result.exit_code != 0 or "nothing is done until it is corrected" in result.log:
            yield "envoy", f"{name}: {result.log[-2000:]}"


def _chains(form: Form, name: str, proxy: Generated) -> Iterator[str]:
    """What is wrong with the filter chains of a proxy, with regard to the form."""
    if name == GATEWAY.name:
        expected = _at_gateway(form)
    elif form.gateway or (form.name == "workload" and name != ONE.name):
        expected = partial(_is, filters=0, upstream=(), tracing=True)
    elif form.upstream:
        expected = partial(_upstream, client_spans=form.name == "mesh")
    else:
        expected = _ordinary
    if not proxy.chains():
        yield "there are no HTTP filter chains"
    for chain in proxy.chains():
        if not expected(chain):
            yield f"wrong chain for {form.name}: {chain}"
    types = {one["name"]: one["typed_config"]["@type"] for one in proxy.extensions}
    for place, asked in proxy.discovered():
        if types.get(place) not in asked["type_urls"]:
            yield f"{place} does not take a {types.get(place)}"
    sides = [one["typed_config"] for one in proxy.extensions]
    if any(side["config"].get("failure_policy") != "FAIL_OPEN" for side in sides):
        yield "without the module there would be no traffic: not FAIL_OPEN"
    if any(side["config"].get("root_id") != "b3relay" for side in sides):
        yield "the root ID is not b3relay"
    if len({side["config"]["vm_config"].get("vm_id") for side in sides}) > 1:
        yield "the two sides do not meet: their vm_id differ"
    if form.upstream and not form.gateway:
        for side in proxy.extensions:
            direction = side["name"].removeprefix("b3relay.")
            told = json.loads(side["typed_config"]["config"]["configuration"]["value"])
            if told.get("direction") != direction:
                yield f"{side['name']} is told to be {told.get('direction')}"


def _is(chain: Chain, filters: int, upstream: tuple[str, ...], tracing: bool) -> bool:
    ours = [name for name in chain.filters if "b3relay" in name]
    return (
        len(ours) == filters
        and chain.upstream == upstream
        and chain.tracing == tracing
        and chain.filters[-1] == ROUTER
    )


def _upstream(chain: Chain, client_spans: bool) -> bool:
    if chain.direction == "INBOUND":
        return _is(chain, 0, ("b3relay.inbound", CODEC), tracing=True)
    last = chain.filters[-2:] == ("b3relay.outbound", ROUTER)
    return last and _is(chain, 1, (), tracing=client_spans)


def _ordinary(chain: Chain) -> bool:
    first = chain.filters[0].startswith(_EXTENSION)
    return first and _is(chain, 1, (), tracing=chain.direction == "INBOUND")


def _at_gateway(form: Form) -> Callable[[Chain], bool]:
    check = form.name == "gateway-check.yaml"
    removed = _BOUNDARY if form.name == "gateway-boundary.yaml" else ()

    def expected(chain: Chain) -> bool:
        placed = chain.filters[-2:] == ("b3relay.gateway", ROUTER) if check else True
        return placed and chain.removed_early == removed and _is(chain, check, (), tracing=True)

    return expected


def findings(form: Form, shipped: list[Document]) -> list[tuple[str, str]]:
    """What is wrong, by the name of the check that says so."""
    return [
        *(("validate", text) for text in validate(shipped)),
        *(("analyze", text) for text in analyze(shipped)),
        *generated(form, shipped),
    ]
