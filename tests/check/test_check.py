"""envoyfilter/check.sh on what goes wrong for users. The sidecars are real Envoys; what
kubectl answers beside them is made of objects as a cluster has them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from check.cluster import (
    ROOT_NAMESPACE,
    SCRIPT,
    check,
    config_map,
    from_image,
    pod,
    shipped,
    telemetry,
)
from check.setups import cluster, right, sidecar, wrong
from check.sidecar import UPDATE, Recorded
from mesh.mesh import ROOT

IMAGE = "oci://registry.example.com/b3relay:0.1.0"


def test_all_is_right(tmp_path: Path) -> None:
    said = check(cluster(), tmp_path)
    right(said)
    assert said.lines("note") == []
    for part in (
        "form: EnvoyFilter shop/b3relay, file /etc/b3relay/plugin.wasm",
        "module: ConfigMap b3relay, key plugin.wasm",
        "front-1: the module is mounted",
        "front-1: inbound, 3 requests seen",
        "front-1: outbound, 3 calls seen",
        "front-1: traces by B3 (zipkin)",
        "front-1: 100 % of the traces are sampled",
        "front-1: client spans are off",
        "3 copied: calls got the context of their request",
    ):
        assert part in said.text, said.text


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("opentelemetry", "traceparent (opentelemetry)"),
        ("both forms", "B3 and traceparent (zipkin)"),
    ],
)
def test_forms_of_a_context(name: str, form: str, tmp_path: Path) -> None:
    said = check(cluster(name), tmp_path)
    right(said)
    assert f"front-1: traces by {form}" in said.text


def test_a_classic_sidecar(tmp_path: Path) -> None:
    state = cluster().without("Pod").put(pod("front-1", native=False))
    right(check(state, tmp_path))


def test_nothing_was_applied(tmp_path: Path) -> None:
    state = cluster("before").without("EnvoyFilter").without("ConfigMap").without("Telemetry")
    said = check(state, tmp_path)
    wrong(said, "form: nothing of b3relay in shop or istio-system", "no listener has a place")


def test_the_module_is_not_mounted(tmp_path: Path) -> None:
    state = cluster("no file").without("Pod").put(pod("front-1", mounted=False))
    said = check(state, tmp_path)
    wrong(
        said,
        "front-1: the module is not mounted",
        "not loaded, on either side: rejected: Invalid path",
    )
    assert "--patch-file envoyfilter/mount.yaml" in said.text


def test_the_config_map_is_missing(tmp_path: Path) -> None:
    said = check(cluster("no file").without("ConfigMap"), tmp_path)
    wrong(said, "not loaded, on either side: rejected: Invalid path: /etc/b3relay/plugin.wasm")
    assert "note   module: no ConfigMap b3relay in shop" in said.text
    assert "the ConfigMap must be there before the pod starts" in said.text


def test_the_config_map_has_another_key(tmp_path: Path) -> None:
    state = cluster("no file").without("ConfigMap").put(config_map("b3relay.wasm"))
    wrong(check(state, tmp_path), "has no key plugin.wasm", "not loaded, on either side")


def test_a_refused_configuration(tmp_path: Path) -> None:
    said = check(cluster("refused outbound"), tmp_path)
    wrong(
        said,
        "outbound, no calls seen, and the sidecar says: configuration key `modus`: not known, allowed: ",
    )
    assert "do: correct the configuration" in said.text
    assert "front-1: inbound, 3 requests seen" in said.text


def test_a_refused_configuration_beside_one_that_is_at_work(tmp_path: Path) -> None:
    """Of what there is at work Envoy's counters tell, and they go on."""
    said = check(cluster("refused later"), tmp_path)
    wrong(
        said,
        " that came last is refused, and the one before is still at work: configuration key"
        " `modus`: not known, allowed: ",
    )
    # Where both came in the same moment, either may be the one.
    refused = re.search("front-1: the configuration of (.*) that came last", said.text)
    assert refused and "b3relay.outbound" in refused[1].split(" or ")
    assert "do: correct the configuration" in said.text
    assert "front-1: outbound, 6 calls seen" in said.text


def test_a_configuration_that_was_corrected(tmp_path: Path) -> None:
    """What the log has of an older one is no fault."""
    refused, changed = sidecar("refused later"), sidecar("changed later")
    state = cluster()
    # Half a day apart.
    log = re.sub(r"(?<=T)\d\d(?=:)", lambda hour: f"{(int(hour[0]) + 12) % 24:02}", refused.log)
    assert log != refused.log
    state.sidecars["front-1"] = Recorded(changed.pages, log)
    said = check(state, tmp_path)
    right(said)
    assert "front-1: outbound, 6 calls seen" in said.text


def test_one_that_was_refused_from_the_first_and_corrected(tmp_path: Path) -> None:
    """The inbound filter came with the refused one, and was taken."""
    said = check(cluster("corrected later"), tmp_path)
    right(said)
    assert "front-1: outbound, 3 calls seen" in said.text


@pytest.mark.parametrize(
    ("why", "remedy"),
    [
        (
            "could not fetch Wasm OCI image: could not fetch manifest: GET https://registry."
            "example.com/v2/b3relay/manifests/0.1.0: MANIFEST_UNKNOWN: manifest unknown",
            "correct the name of the image",
        ),
        (
            f"module downloaded from {IMAGE} has checksum {'7' * 64}, which does not match: {'0' * 64}",
            "sha256 is the digest of the image's manifest",
        ),
    ],
)
def test_a_plugin_whose_image_cannot_be_fetched(why: str, remedy: str, tmp_path: Path) -> None:
    """Istio's agent puts a filter that lets all requests pass into its place; what was
    counted before is still there."""
    before = sidecar("right")
    page = "config_dump?mask=ecds_filters"
    stand_in = before.pages[page].replace("filters.http.wasm.v3.Wasm", "filters.http.rbac.v3.RBAC")
    assert stand_in != before.pages[page]
    # As the agent logs it.
    log = (
        "2026-11-26T12:00:00.000000Z\terror\twasm\terror in converting the wasm config to local: "
        f"cannot fetch Wasm module {IMAGE}: {why}. applying allow RBAC filter\n"
    )
    state = cluster().without("EnvoyFilter").put(shipped("wasmplugin/wasmplugin.yaml"))
    state.sidecars["front-1"] = Recorded({**before.pages, page: stand_in}, log)
    said = check(state, tmp_path)
    fetched = f"its image could not be fetched: cannot fetch Wasm module {IMAGE}: {why}."
    wrong(said, f"front-1: the filter is not there: {fetched}")
    assert f"do: {remedy}" in said.text
    assert "allow RBAC" not in said.text


def test_a_plugin_that_was_deleted(tmp_path: Path) -> None:
    """What the agent had put there is drained, 45 s long."""
    before = sidecar("right")
    page = "config_dump?mask=ecds_filters"
    stand_in = before.pages[page].replace("filters.http.wasm.v3.Wasm", "filters.http.rbac.v3.RBAC")
    state = cluster()
    state.sidecars["front-1"] = Recorded({**before.pages, page: stand_in}, "")
    right(check(state, tmp_path))


def test_an_image_that_cannot_be_fetched(tmp_path: Path) -> None:
    """What the agent logs of it, and an Envoy without the extension."""
    missing = sidecar("no file")
    log = (
        "2026-11-26T12:00:00Z\terror\twasm\tcannot fetch Wasm module b3relay.outbound: "
        "could not fetch Wasm OCI image: MANIFEST_UNKNOWN: manifest unknown\n"
    )
    state = cluster().without("EnvoyFilter").without("ConfigMap")
    state.put(from_image(shipped("sidecars/envoyfilter.yaml"), IMAGE))
    state.sidecars["front-1"] = Recorded(missing.pages, log)
    said = check(state, tmp_path)
    wrong(said, "not loaded, on either side: ")
    assert f"form: EnvoyFilter shop/b3relay, image {IMAGE}" in said.text
    assert "correct the name of the image" in said.text
    assert "mounted" not in said.text


FETCHING = (
    "2026-11-26T12:00:00.000000Z\tinfo\twasm\tfetching image b3relay from registry "
    "registry.example.com with tag 0.1.0\n"
)


def test_an_image_that_cannot_be_fetched_while_one_is_at_work(tmp_path: Path) -> None:
    """What the agent logs of it. Envoy keeps the filter that it has."""
    log = FETCHING + (
        "2026-11-26T12:00:00.000000Z\terror\twasm\terror in converting the wasm config to local: "
        f"cannot fetch Wasm module {IMAGE}: could not fetch Wasm OCI image: could not fetch manifest: "
        "MANIFEST_UNKNOWN: manifest unknown. applying allow RBAC filter\n"
        "2026-11-26T12:00:00.010000Z\twarning\tenvoy config source/grpc_subscription_impl.cc:160\t"
        f"{UPDATE} rejected: Error: filter config has type URL "
        "envoy.extensions.filters.http.rbac.v3.RBAC but expect "
        "envoy.extensions.filters.http.wasm.v3.Wasm.\tthread=498\n"
    )
    state = cluster().without("EnvoyFilter").without("ConfigMap")
    state.put(from_image(shipped("sidecars/envoyfilter.yaml"), IMAGE))
    state.sidecars["front-1"] = Recorded(sidecar("right").pages, log)
    said = check(state, tmp_path)
    wrong(said, f"front-1: {IMAGE} could not be fetched, and the module from before is still at work")
    assert "correct the name of the image" in said.text
    # Fetched later, or not asked for any more.
    state.sidecars["front-1"] = Recorded(sidecar("right").pages, log + FETCHING)
    right(check(state, tmp_path / "later"))
    before = cluster().without("EnvoyFilter").without("ConfigMap")
    before.put(from_image(shipped("sidecars/envoyfilter.yaml"), IMAGE.replace("0.1.0", "0.0.9")))
    before.sidecars["front-1"] = Recorded(sidecar("right").pages, log)
    right(check(before, tmp_path / "before"))


@pytest.mark.parametrize("kind", ["envoyfilter", "wasmplugin", "telemetry", "pod"])
def test_a_user_who_may_not_read_the_namespace(kind: str, tmp_path: Path) -> None:
    """What cannot be read is not said to be missing."""
    state = cluster()
    state.forbidden = (f"shop/{kind}",)
    said = check(state, tmp_path)
    assert said.exit_code == 2
    assert "could not look: Error from server (Forbidden): " in said.errors
    assert said.lines("WRONG") == []


def test_a_user_who_may_not_read_the_root_namespace(tmp_path: Path) -> None:
    state = cluster()
    state.forbidden = ("istio-system/envoyfilter",)
    said = check(state, tmp_path / "here")
    right(said)
    (note,) = said.lines("note")
    assert note.startswith("note   form: what is in istio-system could not be read: Error from server")
    # The form of the whole mesh is not seen, but the sidecars have it.
    state.without("EnvoyFilter")
    said = check(state, tmp_path / "mesh")
    right(said)
    assert "note   form: nothing of b3relay in shop; it may be in istio-system" in said.text


def test_a_user_who_may_not_read_the_config_map(tmp_path: Path) -> None:
    state = cluster()
    state.forbidden = ("shop/configmap",)
    said = check(state, tmp_path)
    right(said)
    (note,) = said.lines("note")
    assert note.startswith("note   module: the ConfigMap b3relay could not be read: Error from server")


def test_every_decision_has_an_explanation() -> None:
    """Those of docs/metrics.md, which are those of the code."""
    page = (ROOT / "docs" / "metrics.md").read_text()
    _, table = page.split("<!-- generated: decisions -->")
    decisions = re.findall(r"^\| `(\w+)` \|", table.partition("<!-- end -->")[0], re.MULTILINE)
    explained = re.findall(r"^  explain (\w+) ", SCRIPT.read_text(), re.MULTILINE)
    assert len(decisions) > 10
    assert sorted(explained) == sorted(decisions)


def test_the_pages_that_it_names_are_there() -> None:
    named = set(re.findall(r"[a-z/-]+\.md", SCRIPT.read_text(), re.IGNORECASE))
    assert "docs/metrics.md" in named
    assert not [page for page in named if not (ROOT / page).is_file()]


def test_client_spans_are_on(tmp_path: Path) -> None:
    said = check(cluster("client spans").without("Telemetry"), tmp_path)
    wrong(said, "front-1: client spans are on, and overwrite what b3relay copies (seen of 3 calls)")


def test_requests_are_not_traced(tmp_path: Path) -> None:
    said = check(cluster("not traced"), tmp_path)
    wrong(said, "front-1: requests are not traced")


@pytest.mark.parametrize("name", ["right", "opentelemetry"])
def test_the_collector_is_not_known(name: str, tmp_path: Path) -> None:
    """As with a Sidecar whose egress leaves it out."""
    right_ = sidecar(name)
    others = [line for line in right_.pages["clusters"].splitlines() if "collector" not in line]
    state = cluster()
    state.sidecars["front-1"] = Recorded({**right_.pages, "clusters": "\n".join(others)}, right_.log)
    said = check(state, tmp_path)
    wrong(said, "front-1: the sidecar does not know collector, to which it should report")


def test_no_trace_is_sampled(tmp_path: Path) -> None:
    wrong(check(cluster("none sampled"), tmp_path), "front-1: 0 % of the traces are sampled")


def test_few_traces_are_sampled(tmp_path: Path) -> None:
    said = check(cluster("one per cent"), tmp_path)
    right(said)
    assert "note   front-1: 1 % of the traces are sampled: most clicks leave none" in said.text


def test_labels_are_not_taken_apart(tmp_path: Path) -> None:
    said = check(cluster("no labels"), tmp_path)
    right(said)
    assert "note   front-1: labels are parts of names in Prometheus" in said.text


def test_the_application_forwards_nothing(tmp_path: Path) -> None:
    said = check(cluster("nothing forwarded"), tmp_path)
    right(said)
    assert "3 no_key: calls carried nothing" in said.text or "3 unknown: calls named" in said.text


def test_the_two_filters_differ(tmp_path: Path) -> None:
    wrong(
        check(cluster("two configurations"), tmp_path),
        "the two filters hold `copy_headers` differently",
    )


def test_two_forms_for_a_pod(tmp_path: Path) -> None:
    twice = sidecar("right")
    page = "config_dump?resource=static_listeners"
    # As Envoy prints a chain that Istio has put the filter into twice.
    place = '"name": "b3relay.outbound",\n            "config_discovery": {'
    listeners = "\n".join(line.strip() for line in twice.pages[page].splitlines())
    place = '"name": "b3relay.outbound",\n"config_discovery": {'
    assert listeners.count(place) == 1
    pages = {**twice.pages, page: listeners.replace(place, f"{place}\n}},\n{place}")}
    state = cluster().put(shipped("sidecars/envoyfilter.yaml", ROOT_NAMESPACE))
    state.sidecars["front-1"] = Recorded(pages, twice.log)
    said = check(state, tmp_path)
    wrong(said, "front-1: the filter is there twice")
    assert "note   form: more than one" in said.text


def test_two_telemetries_without_a_selector(tmp_path: Path) -> None:
    state = cluster().put(telemetry("older", tracing=[{"providers": [{"name": "zipkin"}]}]))
    state.put(telemetry("for-one", selector={"matchLabels": {"app": "front"}}))
    said = check(state, tmp_path)
    wrong(said, "telemetry: b3relay-no-client-spans older have no selector")
    assert "for-one" not in said.text


@pytest.mark.parametrize("target", ["targetRef", "targetRefs"])
def test_a_telemetry_of_a_gateway(target: str, tmp_path: Path) -> None:
    """It has no selector, but is not one for the whole namespace."""
    of = {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "edge"}
    spec: dict[str, object] = {target: of if target == "targetRef" else [of], "tracing": [{}]}
    right(check(cluster().put(telemetry("edge", **spec)), tmp_path))


def test_a_plugin_that_fails_closed(tmp_path: Path) -> None:
    plugin = shipped("wasmplugin/wasmplugin.yaml")
    del plugin["spec"]["failStrategy"]
    state = cluster().without("EnvoyFilter").put(plugin)
    said = check(state, tmp_path)
    wrong(said, "form: WasmPlugin shop/b3relay has not failStrategy FAIL_OPEN")
    assert f"form: WasmPlugin shop/b3relay, image {IMAGE}" in said.text


def test_no_clicks_yet(tmp_path: Path) -> None:
    said = check(cluster("no clicks"), tmp_path)
    right(said)
    assert "inbound, no requests seen so far: make a click" in said.text
    assert "outbound, no calls seen so far: make a click" in said.text


def test_what_istioctl_finds_is_said(tmp_path: Path) -> None:
    state = cluster()
    state.analysis = (
        "Warning [IST0151] (EnvoyFilter shop/b3relay) This EnvoyFilter exposes internal implementation details\n"
        'Error [IST0101] (VirtualService shop/front) Referenced host not found: "other"\n'
    )
    said = check(state, tmp_path)
    right(said)
    assert said.lines("note") == [
        'note   istioctl analyze: Error [IST0101] (VirtualService shop/front) Referenced host not found: "other"'
    ]


def test_it_does_without_istioctl(tmp_path: Path) -> None:
    said = check(cluster(), tmp_path, istioctl=False)
    right(said)
    assert "note   istioctl is missing" in said.text


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("elsewhere",), "no namespace elsewhere, or no cluster: Error from server (NotFound)"),
        (("shop", "no-such-pod"), "no running pod no-such-pod with a sidecar in shop"),
        (("--help",), "check.sh NAMESPACE [POD...]"),
        ((), "no namespace"),
    ],
)
def test_it_could_not_look(arguments: tuple[str, ...], why: str, tmp_path: Path) -> None:
    said = check(
        cluster("no clicks").without("Namespace" if not arguments else ""), tmp_path, *arguments
    )
    assert said.exit_code == 2
    assert why in said.errors
    assert "All right" not in said.text


def test_shellcheck() -> None:
    """As a script for any POSIX shell, which its first line says."""
    shellcheck = Path(sys.executable).parent / "shellcheck"
    scripts = [SCRIPT, SCRIPT.parent.parent / ".ci" / "run"]
    done = subprocess.run([shellcheck, *scripts], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
