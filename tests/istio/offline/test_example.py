"""What docs/istio-guide.md has one apply besides the filter."""

import json
import sys
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import yaml

from istio import cluster
from istio.checks import ONE
from istio.generator import generate
from istio.manifests import SHIPPED, documents, load
from istio.tools import istio
from mesh.ports import HOST, free_port
from mesh.procs import Processes

EXAMPLE = SHIPPED / "example"


def test_the_installation_has_the_provider() -> None:
    done = istio().run("istioctl", "manifest", "generate", "-f", EXAMPLE / "istio.yaml")
    assert done.exit_code == 0, done.text
    (settings,) = (
        one
        for one in documents(done.out)
        if one["kind"] == "ConfigMap" and one["metadata"]["name"] == "istio"
    )
    mesh = yaml.safe_load(settings["data"]["mesh"])
    (provider,) = mesh["extensionProviders"]
    # The Service that Istio's own Jaeger has.
    jaeger = documents((istio().samples / "addons/jaeger.yaml").read_text())
    (zipkin,) = (
        one for one in jaeger if one["kind"] == "Service" and one["metadata"]["name"] == "zipkin"
    )
    host = f"zipkin.{zipkin['metadata']['namespace']}.svc.cluster.local"
    assert provider == {"name": "zipkin", "zipkin": {"service": host, "port": 9411}}
    assert 9411 in {port["port"] for port in zipkin["spec"]["ports"]}


def test_the_other_installation_has_the_provider_of_opentelemetry() -> None:
    done = istio().run("istioctl", "manifest", "generate", "-f", EXAMPLE / "istio-opentelemetry.yaml")
    assert done.exit_code == 0, done.text
    (settings,) = (
        one
        for one in documents(done.out)
        if one["kind"] == "ConfigMap" and one["metadata"]["name"] == "istio"
    )
    (provider,) = yaml.safe_load(settings["data"]["mesh"])["extensionProviders"]
    jaeger = documents((istio().samples / "addons/jaeger.yaml").read_text())
    (collector,) = (
        one
        for one in jaeger
        if one["kind"] == "Service" and one["metadata"]["name"] == "jaeger-collector"
    )
    host = f"jaeger-collector.{collector['metadata']['namespace']}.svc.cluster.local"
    (port,) = (one["port"] for one in collector["spec"]["ports"] if one["name"] == "grpc-otel")
    assert provider == {"name": "opentelemetry", "opentelemetry": {"service": host, "port": port}}
    (telemetry,) = load("example/tracing-opentelemetry.yaml")
    (tracing,) = telemetry["spec"]["tracing"]
    assert tracing["providers"] == [{"name": provider["name"]}]
    assert tracing["randomSamplingPercentage"] == 100


def test_every_request_is_traced() -> None:
    base = [one for one in cluster.objects() if one["kind"] != "Telemetry"]
    proxy = generate(load("example/tracing.yaml"), base=base)[ONE.name]
    assert all(chain.tracing for chain in proxy.chains())
    assert '"random_sampling": {"value": 100' in json.dumps(proxy.listeners)


@pytest.mark.parametrize("forward", ["x-request-id", ""])
def test_the_application_forwards_what_it_is_told(forward: str) -> None:
    (script,) = (
        one["data"]["shop.py"] for one in load("example/shop.yaml") if one["kind"] == "ConfigMap"
    )
    got: dict[str, str] = {}

    class Callee(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            got.update({name.lower(): value for name, value in self.headers.items()})
            self.send_response(200)
            self.send_header("Content-Length", "5")
            self.end_headers()
            self.wfile.write(b"stock")

    callee = HTTPServer((HOST, 0), Callee)
    threading.Thread(target=callee.serve_forever, daemon=True).start()
    port = free_port()
    with Processes() as processes:
        environment = {
            "NAME": "orders",
            "PORT": str(port),
            "CALLS": f"http://{HOST}:{callee.server_port}/stock",
            "FORWARD": forward,
        }
        app = processes.start("shop", [sys.executable, "-c", script], environment)
        sent = {"x-request-id": "r", "x-b3-traceid": "a" * 32}
        request = urllib.request.Request(f"http://{HOST}:{port}/orders", headers=sent)

        def answers() -> bool:
            try:
                with urllib.request.urlopen(request, timeout=5) as reply:
                    answer: bytes = reply.read()
                return answer == b"orders stock"
            except OSError:
                return False

        processes.wait_ready({app: answers}, 30)
    callee.shutdown()
    callee.server_close()
    assert got.get("x-request-id") == ("r" if forward else None)
    assert "x-b3-traceid" not in got
