"""The shipped EnvoyFilter, applied to a sidecar as Istio would, and run by Envoy."""

import copy
import json
from pathlib import Path
from typing import Any

import yaml

from mesh import envoy
from mesh.envoy import Common, Config, Wasm
from mesh.mesh import ROOT, wasm_path
from mesh.ports import HOST, free_port

MANIFESTS = (
    ROOT / "envoyfilter" / "sidecars" / "envoyfilter.yaml",
    ROOT / "envoyfilter" / "no-client-spans" / "telemetry.yaml",
)
MODULE = "/etc/b3relay/plugin.wasm"
CONTEXTS = {"SIDECAR_INBOUND": "INBOUND", "SIDECAR_OUTBOUND": "OUTBOUND"}


def documents() -> dict[str, dict[str, Any]]:
    return {doc["kind"]: doc for path in MANIFESTS for doc in yaml.safe_load_all(path.read_text())}


def patches(kind: str) -> list[dict[str, Any]]:
    all_of_them = documents()["EnvoyFilter"]["spec"]["configPatches"]
    assert {patch["applyTo"] for patch in all_of_them} == {"HTTP_FILTER", "EXTENSION_CONFIG"}
    return [copy.deepcopy(patch) for patch in all_of_them if patch["applyTo"] == kind]


def filled(placed: dict[str, Any]) -> dict[str, Any]:
    """A filter of the chain as Envoy runs it: with the extension that it asks for."""
    if discovery := placed.get("config_discovery"):
        (extension,) = (
            patch["patch"]["value"]
            for patch in patches("EXTENSION_CONFIG")
            if patch["patch"]["value"]["name"] == placed["name"]
        )
        assert extension["typed_config"]["@type"] in discovery["type_urls"]
        # The name of the place in the chain; the tests' own mesh has one for both.
        return {"name": "b3relay", "typed_config": extension["typed_config"]}
    return placed


def bootstrap(wasm: Wasm | None) -> dict[str, Any]:
    return envoy.sidecar(
        Common(collector=(HOST, free_port())),
        "reviews",
        admin_port=free_port(),
        inbound_port=free_port(),
        outbound_port=free_port(),
        app_port=free_port(),
        callees={"ratings": free_port()},
        wasm=wasm,
    )


def managers(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The HTTP connection manager of each direction."""
    return {
        listener["traffic_direction"]: filter_["typed_config"]
        for listener in config["static_resources"]["listeners"]
        for chain in listener["filter_chains"]
        for filter_ in chain["filters"]
        if filter_["name"] == "envoy.filters.network.http_connection_manager"
    }


def patched(module: Path) -> dict[str, Any]:
    """A sidecar without the filter, with the patches of the manifest."""
    config = bootstrap(wasm=None)
    for patch in patches("HTTP_FILTER"):
        match = patch["match"]
        matched = match["listener"]["filterChain"]["filter"]
        assert matched["name"] == "envoy.filters.network.http_connection_manager"
        filters = managers(config)[CONTEXTS[match["context"]]]["http_filters"]
        (at,) = (i for i, f in enumerate(filters) if f["name"] == matched["subFilter"]["name"])
        value = patch["patch"]["value"]
        if patch["patch"]["operation"] == "INSERT_BEFORE":
            filters.insert(at, filled(value))
        else:
            assert patch["patch"]["operation"] == "MERGE"
            router = value["typed_config"]
            router["upstream_http_filters"] = list(map(filled, router["upstream_http_filters"]))
            filters[at]["typed_config"].update(router)
    loaded: Config = yaml.safe_load(yaml.safe_dump(config).replace(MODULE, str(module)))
    return loaded


def test_envoy_takes_the_manifest() -> None:
    config = patched(wasm_path())
    chains = {name: manager["http_filters"] for name, manager in managers(config).items()}
    assert [f["name"] for f in chains["OUTBOUND"]] == ["b3relay", "envoy.filters.http.router"]
    (router,) = chains["INBOUND"]
    upstream = [f["name"] for f in router["typed_config"]["upstream_http_filters"]]
    assert upstream == ["b3relay", "envoy.filters.http.upstream_codec"]
    result = envoy.validate(config)
    assert result.exit_code == 0, result.log


def test_the_validation_would_see_a_missing_module() -> None:
    assert envoy.validate(patched(Path("/nonexistent/b3relay.wasm"))).exit_code != 0


def test_the_mesh_runs_what_the_manifest_ships() -> None:
    """So that what the other tests show holds for it too. They leave it to the
    module to ask for the direction of the listener, which the manifest says."""
    shipped = managers(patched(Path(MODULE)))
    for direction in ("OUTBOUND", "INBOUND"):
        config = json.dumps({"direction": direction.lower()})
        ours = managers(bootstrap(Wasm(Path(MODULE), config=config)))
        assert shipped[direction]["http_filters"] == ours[direction]["http_filters"]


def test_client_spans_are_switched_off() -> None:
    telemetry = documents()["Telemetry"]
    tracing = [{"match": {"mode": "CLIENT"}, "disableSpanReporting": True}]
    assert telemetry["spec"] == {"tracing": tracing}
