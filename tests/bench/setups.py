"""The Envoys: one for each variant and side, and the upstream that they share.

A process for each, because only processes tell their CPU time apart cleanly.
Each has both listeners of a sidecar, with the filter where b3relay's manifest
puts it: inbound behind the router, outbound before it.
"""

import json
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from bench import shapes
from bench.shapes import Side
from mesh.envoy import Address, Config, Envoy, Wasm
from mesh.ports import HOST, free_port
from mesh.procs import Processes

Variant = Literal["none", "tracer", "empty", "reads", "lua", "b3relay"]
# Of CPU time; `tracer`, no filter but Envoy's own client spans, is counted in instructions.
VARIANTS: tuple[Variant, ...] = ("none", "empty", "reads", "lua", "b3relay")

_HERE = Path(__file__).resolve().parent
_TYPE = "type.googleapis.com/"
_HTTP = _TYPE + "envoy.extensions.filters.http."
# The upstream says here which trace ID reached it.
ECHO = "x-bench-trace"
_COLLECTOR = "outbound|9411||zipkin.istio-system.svc.cluster.local"
# How b3relay reports client spans.
SPANS: Config = {"cluster": _COLLECTOR, "format": "zipkin"}
# How Envoy's own tracer does, with Istio's settings.
_TRACER: Config = {
    "name": "envoy.tracers.zipkin",
    "typed_config": {
        "@type": _TYPE + "envoy.config.trace.v3.ZipkinConfig",
        "collector_cluster": _COLLECTOR,
        "collector_endpoint": "/api/v2/spans",
        "collector_endpoint_version": "HTTP_JSON",
        "trace_id_128bit": True,
        "shared_span_context": False,
    },
}
HOLD_PATH = "/hold"


@dataclass(frozen=True)
class Modules:
    """The compiled filters."""

    b3relay: Path
    empty: Path


@dataclass
class Sidecar:
    """One Envoy under measurement."""

    variant: Variant
    side: Side
    envoy: Envoy
    ports: dict[Side, int]

    @property
    def port(self) -> int:
        """The listener that the load goes to."""
        return self.ports[self.side]

    def cpu_ns(self) -> int:
        """CPU time of all threads of the process so far, user and system."""
        tasks = Path(f"/proc/{self.envoy.process.pid}/task")
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks.iterdir())


def sidecar(
    processes: Processes,
    variant: Variant,
    side: Side,
    *,
    modules: Modules,
    upstream: Address,
    silent: Address,
    workers: int,
) -> Sidecar:
    """Not started yet. ``silent`` is a server that never answers."""
    ports = free_ports()
    bootstrap = bootstrap_of(
        f"bench-{variant}",
        listeners(Filters.of(variant, modules), ports, workers),
        upstream=upstream,
        silent=silent,
    )
    envoy = Envoy(processes, f"{variant}-{side}", bootstrap, concurrency=workers)
    return Sidecar(variant, side, envoy, ports)


def free_ports() -> dict[Side, int]:
    return {"inbound": free_port(), "outbound": free_port()}


@dataclass(frozen=True)
class Filters:
    """Those of one variant. FAIL_CLOSED: one that has died must not look cheap."""

    behind_router: list[Config]
    inbound: list[Config]
    outbound: list[Config]
    # Envoy's tracer, on the outbound side.
    tracer: Config | None = None

    @classmethod
    def of(cls, variant: Variant, modules: Modules) -> Self:
        match variant:
            case "none":
                return cls([], [], [])
            case "tracer":
                return cls([], [], [], _TRACER)
            case "lua":
                relay = _remembered() + (_HERE / "relay.lua").read_text()
                return cls([], [_lua((_HERE / "remember.lua").read_text())], [_lua(relay)])
            case "empty" | "reads":
                filters = [
                    Wasm(
                        modules.empty,
                        config="reads" if variant == "reads" else None,
                        vm_id="empty",
                        root_id="empty",
                        failure_policy="FAIL_CLOSED",
                    ).http_filter()
                ]
                return cls(filters, [], filters)
            case "b3relay":
                return cls.b3relay(modules)

    @classmethod
    def b3relay(cls, modules: Modules, vm_id: str = "b3relay", **config: object) -> Self:
        """Those of one ``vm_id`` share what they remember; ``config``: besides the direction."""

        def filters(side: Side) -> list[Config]:
            text = json.dumps({"direction": side, **config})
            wasm = Wasm(modules.b3relay, text, vm_id=vm_id, failure_policy="FAIL_CLOSED")
            return [wasm.http_filter()]

        return cls(filters("inbound"), [], filters("outbound"))


def listeners(filters: Filters, ports: dict[Side, int], workers: int) -> list[Config]:
    """Both listeners of a sidecar."""
    return [
        _listener(
            ports["inbound"],
            "INBOUND",
            filters=filters.inbound,
            upstream_filters=filters.behind_router,
            routes=[
                # Held open until the end of the measurement.
                _route(HOLD_PATH, "inbound|9081||", timeout="0s"),
                _route("/", "inbound|9080||"),
            ],
            balanced=workers > 1,
        ),
        _listener(
            ports["outbound"],
            "OUTBOUND",
            filters=filters.outbound,
            routes=[_route("/", "outbound|9080||reviews.default.svc.cluster.local")],
            balanced=workers > 1,
            tracer=filters.tracer,
        ),
    ]


def bootstrap_of(
    name: str, listeners: list[Config], *, upstream: Address, silent: Address
) -> Config:
    """With the clusters that the listeners route to."""
    return _bootstrap(
        name,
        listeners,
        clusters=[
            _cluster("inbound|9080||", upstream),
            _cluster("inbound|9081||", silent),
            _cluster("outbound|9080||reviews.default.svc.cluster.local", upstream),
            _cluster(_COLLECTOR, upstream),
        ],
    )


def upstream(processes: Processes, port: int) -> Envoy:
    """The server that everything goes to: an Envoy that answers by itself.

    It costs less than most servers and has no garbage collector, and what it
    echoes shows whether a context was copied.
    """
    answer = {
        "match": {"prefix": "/"},
        "direct_response": {"status": 200, "body": {"inline_string": '{"id": 0}\n'}},
        "response_headers_to_add": [
            {"header": {"key": ECHO, "value": "%REQ(x-b3-traceid)%"}},
            {"header": {"key": "content-type", "value": "application/json"}},
        ],
    }
    bootstrap = _bootstrap(
        "bench-upstream",
        listeners=[_listener(port, "INBOUND", filters=[], routes=[answer])],
        clusters=[],
    )
    return Envoy(processes, "upstream", bootstrap, concurrency=1)


def hold(port: int, count: int = shapes.HELD) -> list[socket.socket]:
    """Send the requests that are being served during the measurement, to an inbound listener.

    They are open for as long as their sockets are.
    """
    connections = []
    for context in shapes.held(count):
        lines = [f"GET {HOLD_PATH} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in shapes.inbound_headers(context).items()]
        connection = socket.create_connection((HOST, port), timeout=5)
        connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        connections.append(connection)
    return connections


def _lua(source: str) -> Config:
    return {
        "name": "envoy.filters.http.lua",
        "typed_config": {
            "@type": _HTTP + "lua.v3.Lua",
            "default_source_code": {"inline_string": source},
        },
    }


def _remembered() -> str:
    """The held requests as a Lua table; see relay.lua."""
    entries = []
    for context in shapes.held():
        fields = ", ".join(f'["{name.lower()}"] = "{value}"' for name, value in context.b3.items())
        entries.append(f'  ["{context.request_id}"] = {{ {fields} }},\n')
    return "remembered = {\n" + "".join(entries) + "}\n"


def _route(prefix: str, cluster: str, timeout: str = "15s") -> Config:
    return {"match": {"prefix": prefix}, "route": {"cluster": cluster, "timeout": timeout}}


def _listener(
    port: int,
    direction: Literal["INBOUND", "OUTBOUND"],
    *,
    filters: list[Config],
    routes: list[Config],
    upstream_filters: list[Config] | None = None,
    balanced: bool = False,
    tracer: Config | None = None,
) -> Config:
    router: Config = {"@type": _HTTP + "router.v3.Router"}
    if upstream_filters:
        # The list replaces the default, which is just the codec.
        router["upstream_http_filters"] = [
            *upstream_filters,
            {
                "name": "envoy.filters.http.upstream_codec",
                "typed_config": {"@type": _HTTP + "upstream_codec.v3.UpstreamCodec"},
            },
        ]
    manager = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
    listener: Config = {
        "name": f"{direction.lower()}_{port}",
        "address": {"socket_address": {"address": HOST, "port_value": port}},
        "traffic_direction": direction,
        "filter_chains": [
            {
                "filters": [
                    {
                        "name": "envoy.filters.network.http_connection_manager",
                        "typed_config": {
                            "@type": _TYPE + manager,
                            "stat_prefix": f"{direction.lower()}_{port}",
                            "codec_type": "AUTO",
                            "use_remote_address": False,
                            **({"tracing": {"provider": tracer}} if tracer else {}),
                            # The held requests are idle for longer than the default.
                            "stream_idle_timeout": "0s",
                            "http_filters": [
                                *filters,
                                {"name": "envoy.filters.http.router", "typed_config": router},
                            ],
                            "route_config": {
                                "name": direction.lower(),
                                "virtual_hosts": [
                                    {"name": "reviews", "domains": ["*"], "routes": routes}
                                ],
                            },
                        },
                    }
                ]
            }
        ],
    }
    if balanced:
        # A few connections would else often go to one worker.
        listener["connection_balance_config"] = {"exact_balance": {}}
    return listener


def _cluster(name: str, address: Address) -> Config:
    endpoint = {"address": {"socket_address": {"address": address[0], "port_value": address[1]}}}
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": endpoint}]}],
        },
    }


def _bootstrap(name: str, listeners: list[Config], clusters: list[Config]) -> Config:
    return {
        "node": {"id": f"sidecar~{HOST}~{name}.default~default.svc.cluster.local", "cluster": name},
        "admin": {"address": {"socket_address": {"address": HOST, "port_value": free_port()}}},
        # Not every 5 s: that would hit some rounds and not others.
        "stats_flush_on_admin": True,
        "static_resources": {"listeners": listeners, "clusters": clusters},
    }
