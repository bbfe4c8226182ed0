"""A sidecar as check.sh meets it: a real Envoy, with the shipped EnvoyFilter put into its
listeners as Istio does, its extensions apart from them, and what it says of itself."""

import json
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import yaml

from check.listening import listening
from mesh import envoy
from mesh.envoy import Common, Config, Envoy, Tracer
from mesh.mesh import ROOT, wasm_path
from mesh.ports import HOST, free_port
from mesh.procs import Processes

MANIFEST = ROOT / "envoyfilter" / "sidecars" / "envoyfilter.yaml"
MODULE = "/etc/b3relay/plugin.wasm"
TAGS = ("action", "decision", "direction", "key", "reason", "rule")
# What check.sh asks of a sidecar.
PAGES = (
    "stats?filter=b3relay|update_rejected|config_fail",
    "stats/prometheus?filter=b3relay",
    "config_dump?mask=ecds_filters",
    "clusters",
    "config_dump?resource=static_listeners",
)
_RELOADED = "extension_config_discovery.http_filter.b3relay.outbound.config_reload$"
UPDATE = "gRPC config for type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig"
# As Istio's agent starts Envoy.
_LOG_FORMAT = "%Y-%m-%dT%T.%fZ\t%l\tenvoy %n %g:%#\t%v\tthread=%t"


@dataclass(frozen=True)
class Setup:
    """How a sidecar is, and what it has been through."""

    filter: bool = True
    module: Path = field(default_factory=wasm_path)
    # Keys of the plugin's configuration, besides `direction`.
    outbound: dict[str, object] = field(default_factory=dict)
    inbound: dict[str, object] = field(default_factory=dict)
    client_spans: bool = False
    tracer: Tracer = "zipkin"
    # Per cent.
    sampling: float = 100
    tags: Sequence[str] = TAGS
    clicks: int = 3
    # Keys that the outbound filter is told later, when there were clicks; and then as many
    # clicks again.
    afterwards: dict[str, object] | None = None
    # Headers of the call that the application copies from its request.
    forwards: tuple[str, ...] = ("x-request-id",)
    # Requests at a time.
    at_once: int = 1


@dataclass(frozen=True)
class Recorded:
    """What the sidecar answers, by the path that is asked for; and its log."""

    pages: dict[str, str]
    log: str


def managers(config: Config) -> dict[str, Config]:
    return {
        listener["traffic_direction"]: listener["filter_chains"][0]["filters"][0]["typed_config"]
        for listener in config["static_resources"]["listeners"]
    }


def bootstrap(setup: Setup, directory: Path, app: int, callee: int) -> Config:
    common = Common(
        collector=(HOST, callee),
        tracer=setup.tracer,
        client_spans=setup.client_spans,
        extra_stat_tags=setup.tags,
    )
    config = envoy.sidecar(
        common,
        "front",
        admin_port=free_port(),
        inbound_port=free_port(),
        outbound_port=free_port(),
        app_port=app,
        callees={"orders": callee},
    )
    for manager in managers(config).values():
        if tracing := manager.get("tracing"):
            tracing["random_sampling"] = {"value": setup.sampling}
    if setup.filter:
        _attach(config, setup, directory)
    return config


def _attach(config: Config, setup: Setup, directory: Path) -> None:
    """As Istio applies the EnvoyFilter; the extensions come from files, not from Istio."""
    (shipped,) = yaml.safe_load_all(MANIFEST.read_text())
    for patch in shipped["spec"]["configPatches"]:
        value = patch["patch"]["value"]
        side = patch["match"]["context"].removeprefix("SIDECAR_")
        filters = managers(config)[side]["http_filters"]
        if patch["applyTo"] == "EXTENSION_CONFIG":
            more = setup.outbound if side == "OUTBOUND" else setup.inbound
            extension(value["name"], setup.module, more, directory)
        elif side == "OUTBOUND":
            filters.insert(0, _from_file(value, directory))
        else:
            upstream = value["typed_config"]["upstream_http_filters"]
            value["typed_config"]["upstream_http_filters"] = [
                _from_file(one, directory) if "config_discovery" in one else one for one in upstream
            ]
            filters[-1]["typed_config"].update(value["typed_config"])


def _from_file(filter_: Config, directory: Path) -> Config:
    path = {"path": str(directory / f"{filter_['name']}.yaml")}
    source = filter_["config_discovery"]["config_source"]
    del source["ads"]
    source["path_config_source"] = path
    return filter_


def extension(name: str, module: Path, more: dict[str, object], directory: Path) -> None:
    """Writes the file that Envoy watches."""
    (shipped,) = yaml.safe_load_all(MANIFEST.read_text())
    (value,) = (
        patch["patch"]["value"]
        for patch in shipped["spec"]["configPatches"]
        if (patch["applyTo"], patch["patch"]["value"]["name"]) == ("EXTENSION_CONFIG", name)
    )
    config = value["typed_config"]["config"]
    told = {**json.loads(config["configuration"]["value"]), **more}
    config["configuration"]["value"] = json.dumps(told)
    config["vm_config"]["code"]["local"]["filename"] = str(module)
    resource = {"@type": "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig", **value}
    answer = {"version_info": json.dumps(told), "resources": [resource]}
    path = directory / f"{name}.yaml"
    part = path.with_suffix(".part")
    part.write_text(yaml.safe_dump(answer))
    part.rename(path)


@contextmanager
def application(outbound: int, forwards: tuple[str, ...]) -> Iterator[int]:
    """Serves requests, with a call for each; the port. It is the callee as well."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.startswith("/front"):
                copied = {name: self.headers[name] for name in forwards if self.headers[name]}
                call = HTTPConnection(HOST, outbound, timeout=20)
                call.request("GET", "/orders", headers={"Host": "orders", **copied})
                call.getresponse().read()
                call.close()
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        do_POST = do_GET

        def log_message(self, *_arguments: object) -> None:
            pass

    with listening(Handler) as port:
        yield port


def click(port: int, count: int) -> None:
    for _ in range(count):
        client = HTTPConnection(HOST, port, timeout=20)
        client.request("GET", "/front", headers={"x-request-id": str(uuid.uuid4())})
        assert client.getresponse().status == 200
        client.close()


def click_at_once(port: int, setup: Setup) -> None:
    users = [
        threading.Thread(target=click, args=(port, setup.clicks)) for _ in range(setup.at_once)
    ]
    for user in users:
        user.start()
    for user in users:
        user.join()


@dataclass(frozen=True)
class Running:
    """A sidecar between a client and its application."""

    envoy: Envoy
    inbound: int
    setup: Setup
    directory: Path

    def click(self) -> None:
        click_at_once(self.inbound, self.setup)

    def tell_outbound(self, more: dict[str, object]) -> None:
        """The outbound filter another configuration; until it has it, or has refused it."""
        before = self._tellings()
        extension("b3relay.outbound", self.setup.module, more, self.directory)
        while self._tellings() == before:
            time.sleep(0.1)

    def _tellings(self) -> int:
        return int(self.envoy.admin(f"/stats?filter={_RELOADED}").split()[-1])


@contextmanager
def running(setup: Setup) -> Iterator[Running]:
    with Processes() as processes:
        outbound = free_port()
        with application(outbound, setup.forwards) as app:
            config = bootstrap(setup, processes.directory, app, app)
            inbound = 0
            for listener in config["static_resources"]["listeners"]:
                if listener["traffic_direction"] == "OUTBOUND":
                    listener["address"]["socket_address"]["port_value"] = outbound
                else:
                    inbound = listener["address"]["socket_address"]["port_value"]
            front = Envoy(
                processes,
                "front",
                config,
                arguments=("--disable-hot-restart", "--log-format", _LOG_FORMAT),
            )
            front.start()
            processes.wait_ready({front.process: front.ready})
            yield Running(front, inbound, setup, processes.directory)


def record(setup: Setup) -> Recorded:
    """Start such a sidecar, click, and note what it says of itself."""
    with running(setup) as front:
        front.click()
        if setup.afterwards is not None:
            front.tell_outbound(setup.afterwards)
            front.click()
        time.sleep(1.5)  # what is counted on a tick
        pages: dict[str, Any] = {page: front.envoy.admin(f"/{page}") for page in PAGES}
        # What Envoy says of what came by xDS.
        log = front.envoy.log().replace("Filesystem config update", UPDATE)
        return Recorded(pages, log)
