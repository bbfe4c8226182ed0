"""The cluster that the tests pretend to have: Bookinfo in small, and a gateway.

There is no Kubernetes. Services are ServiceEntries with a virtual address, pods are
WorkloadEntries; Istio makes the same listeners, routes and clusters of them.
"""

from dataclasses import dataclass
from typing import Any

import yaml

from mesh.apps import PATHS

NAMESPACE = "shop"
ROOT_NAMESPACE = "istio-system"
# Of the pods' network. The first address is that of the node, on which the control
# plane, the registry and the trace backend are.
NODE = "10.77.0.1"
PREFIX = 24
PORT = 9080
GATEWAY_PORT = 8080
ZIPKIN_PORT = 9411
# Of what takes the spans behind a pod of the mesh: its sidecar has no route for that.
BEHIND_PORT = 19411


@dataclass(frozen=True)
class Pod:
    """A pod, and the service of the same name."""

    name: str
    namespace: str
    ip: str
    service_ip: str
    labels: tuple[tuple[str, str], ...]
    gateway: bool = False

    @property
    def host(self) -> str:
        return f"{self.name}.{self.namespace}.svc.cluster.local"

    @property
    def service_account(self) -> str:
        return f"bookinfo-{self.name}"

    def proxy(self) -> dict[str, Any]:
        """As a request to the generator names it."""
        return {
            "type": "router" if self.gateway else "sidecar",
            "name": self.name,
            "namespace": self.namespace,
            "ip": self.ip,
            "labels": dict(self.labels),
        }


PODS = {
    name: Pod(name, NAMESPACE, f"10.77.0.{11 + i}", f"10.96.0.{11 + i}", (("app", name),))
    for i, name in enumerate(PATHS)
}
GATEWAY = Pod(
    "gateway",
    ROOT_NAMESPACE,
    "10.77.0.10",
    "10.96.0.10",
    (("app", "gateway"), ("istio", "ingressgateway")),
    gateway=True,
)


# A pod with a sidecar before the trace backend, for meshes that have it.
COLLECTOR = Pod("zipkin", ROOT_NAMESPACE, "10.77.0.20", "10.96.0.9", (("app", "zipkin"),))


def mesh_config() -> dict[str, Any]:
    """Istio's mesh configuration, with a Zipkin to send traces to."""
    provider = {"service": f"zipkin.{ROOT_NAMESPACE}.svc.cluster.local", "port": ZIPKIN_PORT}
    return {
        "rootNamespace": ROOT_NAMESPACE,
        "trustDomain": "cluster.local",
        "enableTracing": True,
        "defaultConfig": {
            "discoveryAddress": f"{NODE}:15010",
            "controlPlaneAuthPolicy": "NONE",
            "concurrency": 1,
        },
        "extensionProviders": [{"name": "zipkin", "zipkin": provider}],
    }


def _kind(group: str, kind: str, name: str, namespace: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": f"{group}.istio.io/v1",
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }


def _collector() -> list[dict[str, Any]]:
    """The trace backend: outside of the mesh."""
    entry = {
        "hosts": [COLLECTOR.host],
        "addresses": [COLLECTOR.service_ip],
        "location": "MESH_EXTERNAL",
        "resolution": "STATIC",
        "ports": [{"number": ZIPKIN_PORT, "name": "http", "protocol": "HTTP"}],
        "endpoints": [{"address": NODE}],
    }
    return [_kind("networking", "ServiceEntry", COLLECTOR.name, COLLECTOR.namespace, entry)]


def objects(mtls: str = "DISABLE", collector_pod: bool = False) -> list[dict[str, Any]]:
    """Services, pods, the gateway's route, and tracing of every request."""
    made = [
        *(_service(COLLECTOR, mtls, ZIPKIN_PORT) if collector_pod else _collector()),
        _kind(
            "security", "PeerAuthentication", "default", ROOT_NAMESPACE, {"mtls": {"mode": mtls}}
        ),
        _kind(
            "telemetry",
            "Telemetry",
            "mesh-default",
            ROOT_NAMESPACE,
            {"tracing": [{"providers": [{"name": "zipkin"}], "randomSamplingPercentage": 100}]},
        ),
        _kind(
            "networking",
            "Gateway",
            "gateway",
            NAMESPACE,
            {
                "selector": {"istio": "ingressgateway"},
                "servers": [
                    {
                        "port": {"number": GATEWAY_PORT, "name": "http", "protocol": "HTTP"},
                        "hosts": ["*"],
                    }
                ],
            },
        ),
        _kind(
            "networking",
            "VirtualService",
            "productpage",
            NAMESPACE,
            {
                "hosts": ["*"],
                "gateways": ["gateway"],
                "http": [
                    {
                        "route": [
                            {
                                "destination": {
                                    "host": PODS["productpage"].host,
                                    "port": {"number": PORT},
                                }
                            }
                        ]
                    }
                ],
            },
        ),
    ]
    for pod in PODS.values():
        made += _service(pod, mtls)
    return made


def _service(pod: Pod, mtls: str, port: int = PORT) -> list[dict[str, Any]]:
    entry = {
        "hosts": [pod.host],
        "addresses": [pod.service_ip],
        "location": "MESH_INTERNAL",
        "resolution": "STATIC",
        "ports": [{"number": port, "name": "http", "protocol": "HTTP"}],
        "workloadSelector": {"labels": {"app": pod.name}},
    }
    # By which callers know that they may use TLS; the injector sets it.
    tls = {} if mtls == "DISABLE" else {"security.istio.io/tlsMode": "istio"}
    workload = {
        "address": pod.ip,
        "labels": {**dict(pod.labels), **tls},
        "serviceAccount": pod.service_account,
    }
    return [
        _kind("networking", "ServiceEntry", pod.name, pod.namespace, entry),
        _kind("networking", "WorkloadEntry", pod.name, pod.namespace, workload),
    ]


def dump(documents: list[dict[str, Any]]) -> str:
    text: str = yaml.safe_dump_all(documents, sort_keys=False)
    return text
