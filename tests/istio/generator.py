"""What Istio makes of manifests: the filter chains of a proxy, in short, and a
configuration that Envoy can check."""

import copy
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from istio import cluster
from istio.cluster import Pod
from istio.manifests import MODULE, Document
from istio.tools import CONTROL_PLANE, Istio, istio
from mesh.ports import HOST, free_port

_TYPE = "type.googleapis.com/"
_MANAGER = _TYPE + (
    "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
)
_WASM = _TYPE + "envoy.extensions.filters.http.wasm.v3.Wasm"
ROUTER = "envoy.filters.http.router"
CODEC = "envoy.filters.http.upstream_codec"

Config = dict[str, Any]


class Refused(Exception):
    """Istio's generator does not take a manifest."""


@dataclass(frozen=True)
class Chain:
    """One HTTP connection manager of a proxy."""

    listener: str
    direction: str
    filters: tuple[str, ...]
    # Of the router; empty for the default.
    upstream: tuple[str, ...]
    tracing: bool
    # Headers removed before anything else.
    removed_early: tuple[str, ...]


@dataclass(frozen=True)
class Generated:
    """The configuration of one proxy."""

    listeners: list[Config]
    clusters: list[Config]
    routes: list[Config]
    endpoints: list[Config]
    extensions: list[Config]

    def chains(self) -> list[Chain]:
        return [
            _chain(listener, manager)
            for listener in self.listeners
            for manager in _managers(listener)
        ]

    def inbound(self) -> list[Chain]:
        return [chain for chain in self.chains() if chain.direction == "INBOUND"]

    def outbound(self) -> list[Chain]:
        return [chain for chain in self.chains() if chain.direction == "OUTBOUND"]

    def extension(self, name: str) -> Config:
        """The filter of that name, as Envoy gets it."""
        (found,) = (one for one in self.extensions if one["name"] == name)
        config: Config = found["typed_config"]
        return config

    def discovered(self) -> Iterator[tuple[str, Config]]:
        """The places in the chains that extensions fill: name, and what is asked for."""
        for listener in self.listeners:
            for manager in _managers(listener):
                for placed in _filters(manager):
                    if asked := placed.get("config_discovery"):
                        yield placed["name"], asked

    def bootstrap(self, module: Path) -> Config:
        """The same for an Envoy without a control plane: what it would be sent is in its
        place, and the module is that file."""
        made = copy.deepcopy(self)
        routes = {route["name"]: route for route in made.routes}
        loads = {load["cluster_name"]: load for load in made.endpoints}
        for extension in made.extensions:
            _read_from(extension["typed_config"], module)
        extensions = {one["name"]: one["typed_config"] for one in made.extensions}
        for listener in made.listeners:
            for manager in _managers(listener):
                if asked := manager.pop("rds", None):
                    manager["route_config"] = routes[asked["route_config_name"]]
                for placed in _filters(manager):
                    # Envoy says nothing of an extension that never comes. This does.
                    if placed.pop("config_discovery", None):
                        placed["typed_config"] = extensions[placed["name"]]
                    elif placed["typed_config"]["@type"] == _WASM:
                        _read_from(placed["typed_config"], module)
        for one in made.clusters:
            if one.get("type") == "EDS":
                name = one.pop("eds_cluster_config").get("service_name") or one["name"]
                one["type"] = "STATIC"
                one["load_assignment"] = loads.get(name, {"cluster_name": name})
        admin = {"address": HOST, "port_value": free_port()}
        return {
            "node": {"id": "sidecar~10.77.0.1~validated~cluster.local", "cluster": "validated"},
            "admin": {"address": {"socket_address": admin}},
            "static_resources": {"listeners": made.listeners, "clusters": made.clusters},
        }


def generate(
    shipped: Iterable[Document],
    pods: Iterable[Pod] = (cluster.PODS["reviews"], cluster.GATEWAY),
    base: Iterable[Document] | None = None,
    program: Istio | None = None,
) -> dict[str, Generated]:
    """What the control plane would send to each of the pods, by its name, for what is
    shipped in a cluster in which there is ``base``."""
    program = program or istio()
    request = {
        "mesh": json.dumps(cluster.mesh_config()),
        "istio": cluster.dump([*(base or cluster.objects()), *shipped]),
        "istio_version": program.version + ".0",
        "proxies": [pod.proxy() for pod in pods],
    }
    done = program.run("generate", stdin=json.dumps(request), env=CONTROL_PLANE)
    if done.exit_code != 0:
        raise Refused(done.errors)
    answers: dict[str, dict[str, list[Config]]] = json.loads(done.out)
    return {name: Generated(**answer) for name, answer in answers.items()}


def _managers(listener: Config) -> Iterator[Config]:
    chains = [*listener.get("filter_chains", ())]
    if default := listener.get("default_filter_chain"):
        chains.append(default)
    for chain in chains:
        for placed in chain.get("filters", ()):
            config = placed.get("typed_config", {})
            if config.get("@type") == _MANAGER:
                yield config


def _router(manager: Config) -> Config:
    (router,) = (one for one in manager["http_filters"] if one["name"] == ROUTER)
    config: Config = router["typed_config"]
    return config


def _filters(manager: Config) -> list[Config]:
    return [*manager["http_filters"], *_router(manager).get("upstream_http_filters", ())]


def _chain(listener: Config, manager: Config) -> Chain:
    return Chain(
        listener=listener["name"],
        direction=listener.get("traffic_direction", ""),
        filters=tuple(one["name"] for one in manager["http_filters"]),
        upstream=tuple(one["name"] for one in _router(manager).get("upstream_http_filters", ())),
        tracing="tracing" in manager,
        removed_early=tuple(
            mutation.get("remove", "?")
            for extension in manager.get("early_header_mutation_extensions", ())
            for mutation in extension["typed_config"]["mutations"]
        ),
    )


def _read_from(config: Config, module: Path) -> None:
    """The module from that file. A file that is not the one that pods have stays what
    it is, and Envoy will miss it."""
    if config["@type"] != _WASM:
        return
    code = config["config"]["vm_config"]["code"]
    if "remote" in code or code["local"]["filename"] == MODULE:
        config["config"]["vm_config"]["code"] = {"local": {"filename": str(module)}}
