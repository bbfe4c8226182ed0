"""Calls that leave the mesh, through real Envoys: what they take with them."""

import json
import queue
import shutil
import socket
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from check.listening import listening
from mesh import envoy
from mesh.envoy import Config, Envoy, Wasm
from mesh.mesh import ROOT, wasm_path
from mesh.plain import Echo
from mesh.ports import HOST, free_port
from mesh.procs import Processes

TRACE = "463ac35c9f6413ad48485a3953bb6124"
ID = "0f7a1c2e-1b2d-4c3e-9d4f-5a6b7c8d9e0f"
CONTEXT = [
    ("x-b3-traceid", TRACE),
    ("x-b3-spanid", "a2fb4a1d1a96d312"),
    ("x-b3-sampled", "1"),
    ("x-tenant-id", "7"),
]
OWN = [
    ("b3", f"{TRACE}-1111111111111111-1"),
    ("traceparent", f"00-{TRACE}-b7ad6b7169203331-01"),
    ("tracestate", "a=b"),
    ("x-ot-span-context", "1"),
    ("grpc-trace-bin", "AAA"),
    ("x-tenant-id", "8"),
]
EMIT = '"emit": ["b3multi", "b3", "w3c"]'
RELAYED = ("x-b3-", "b3", "traceparent", "tracestate", "x-ot-", "grpc-trace", "x-tenant-")


@dataclass(frozen=True)
class Call:
    authority: str
    cluster: str
    leaves: bool
    path: str


@dataclass(frozen=True)
class Group:
    """Of tests/vectors/hosts.toml; see there."""

    about: str
    config: str
    node: str
    istio: bool
    calls: tuple[Call, ...]


def groups() -> Iterator[Group]:
    loaded = tomllib.loads((ROOT / "tests/vectors/hosts.toml").read_text())
    for entry in loaded["group"]:
        calls = tuple(
            Call(authority, cluster, word == "outside", f"/case-{chr(97 + n // 26)}-{chr(97 + n % 26)}")
            for n, (authority, cluster, word) in enumerate(entry["calls"])
            # Without a route there is nowhere to go, and so nothing to see.
            if cluster
        )
        if calls:
            node = entry.get("node", "sidecar~10.0.0.9~web-v1.shop~shop.svc.cluster.local")
            istio = entry.get("istio", False)
            yield Group(entry["about"], entry.get("config", ""), node, istio, calls)


GROUPS = list(groups())


def bootstrap(
    group: Group, wasm: Path, ports: dict[str, int], admin_port: int, upstream: tuple[str, int]
) -> Config:
    """An inbound listener, and two outbound ones; a route and a cluster for each call."""

    def configured(outside: str) -> Wasm:
        parts = ['"copy_headers": ["x-tenant-*"]', '"grace_ms": 60000', f'"outside": "{outside}"']
        parts += [EMIT, *([group.config] if group.config else [])]
        return Wasm(wasm, config="{" + ", ".join(parts) + "}")

    made = envoy.plain(
        {
            ports["inbound"]: ("INBOUND", configured("leave")),
            ports["leave"]: ("OUTBOUND", configured("leave")),
            ports["strip"]: ("OUTBOUND", configured("strip")),
        },
        admin_port=admin_port,
        upstream=upstream,
        extra_stat_tags=("decision",),
    )
    made["node"]["id"] = group.node
    if group.istio:
        made["node"]["metadata"]["ISTIO_VERSION"] = "1.31.0"
    resources = made["static_resources"]
    (template,) = [one for one in resources["clusters"] if one["name"] == "upstream"]
    for name in {call.cluster for call in group.calls}:
        assignment = {**template["load_assignment"], "cluster_name": name}
        resources["clusters"].append({**template, "name": name, "load_assignment": assignment})
    for routes in outbound_routes(made):
        routes[:] = [
            {"match": {"path": call.path}, "route": {"cluster": call.cluster}}
            for call in group.calls
        ]
    return made


def sent(port: int, authority: str, path: str, headers: list[tuple[str, str]]) -> dict[str, str]:
    """What the callee got, of the headers that say something of the trace or the tenant."""
    lines = [f"GET {path} HTTP/1.1", f"host: {authority}", "connection: close"]
    lines += [f"{name}: {value}" for name, value in headers]
    with socket.create_connection((HOST, port), timeout=10) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode("latin-1"))
        head, _, body = b"".join(iter(lambda: connection.recv(65536), b"")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), (authority, head)
    received: list[list[str]] = json.loads(body)
    return {name: value for name, value in received if name.startswith(RELAYED)}


KNOWN = [("x-request-id", ID)]


def outbound_routes(made: Config) -> Iterator[list[Config]]:
    """The routes of each outbound listener."""
    for listener in made["static_resources"]["listeners"]:
        if listener["traffic_direction"] == "OUTBOUND":
            (filter_,) = listener["filter_chains"][0]["filters"]
            (host,) = filter_["typed_config"]["route_config"]["virtual_hosts"]
            yield host["routes"]


@contextmanager
def serving(
    group: Group, change: Callable[[Config], None] = lambda _: None
) -> Iterator[tuple[dict[str, int], Envoy]]:
    """A sidecar that has a request in hand, and its ports. `change`: of its bootstrap."""
    with Echo() as echo, Processes() as processes:
        wasm = Path(shutil.copy(wasm_path(), processes.directory / "b3relay.wasm"))
        ports = {name: free_port() for name in ("inbound", "leave", "strip")}
        made = bootstrap(group, wasm, ports, free_port(), echo.address)
        change(made)
        sidecar = Envoy(processes, "outside", made, concurrency=1)
        sidecar.start()
        processes.wait_ready({sidecar.process: sidecar.ready}, 60)
        sent(ports["inbound"], "web", "/", [*KNOWN, *CONTEXT])
        yield ports, sidecar


@pytest.mark.parametrize("group", GROUPS, ids=[group.about for group in GROUPS])
def test_nothing_leaves_with_a_call_that_leaves(group: Group) -> None:
    leaks: list[Any] = []
    lost: list[Any] = []
    with serving(group) as (ports, sidecar):
        for call in group.calls:
            for mode in ("leave", "strip"):
                for own in ([], OWN, OWN[1:2]):
                    took = sent(ports[mode], call.authority, call.path, [*KNOWN, *own])
                    may = dict(own) if mode == "leave" else {}
                    if call.leaves and took != may:
                        leaks.append((mode, call, took))
                    if not call.leaves and took.keys() <= may.keys():
                        lost.append((mode, call, took))
        log = sidecar.log()
    assert "configuration key" not in log, log
    assert not leaks, f"{len(leaks)} leaks: {leaks}"
    assert not lost, f"{len(lost)} lost: {lost}"


def test_a_mirrored_call_takes_its_context_along() -> None:
    """docs/formats.md says so, and that a route has no header operations for a mirror alone."""
    mirrored: queue.Queue[dict[str, str]] = queue.Queue()

    class Mirror(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            took = {name.lower(): value for name, value in self.headers.items()}
            mirrored.put({name: took[name] for name in took if name.startswith(RELAYED)})
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_arguments: object) -> None:
            pass

    name = "outbound|80||mirror.example.com"
    node = "sidecar~10.0.0.9~web-v1.shop~shop.svc.cluster.local"
    inside, removing = (Call("db", "db", leaves=False, path=path) for path in ("/db", "/removing"))
    group = Group("mirror", "", node, istio=False, calls=(inside, removing))

    def mirroring(made: Config, port: int) -> None:
        outside = deepcopy(made["static_resources"]["clusters"][0])
        outside["name"] = outside["load_assignment"]["cluster_name"] = name
        ((endpoint,),) = (one["lb_endpoints"] for one in outside["load_assignment"]["endpoints"])
        endpoint["endpoint"]["address"]["socket_address"]["port_value"] = port
        made["static_resources"]["clusters"].append(outside)
        for route in chain.from_iterable(outbound_routes(made)):
            route["route"]["request_mirror_policies"] = [{"cluster": name}]
            if route["match"]["path"] == removing.path:
                route["request_headers_to_remove"] = [name for name, _ in [*CONTEXT, *OWN]]

    with (
        listening(Mirror) as port,
        serving(group, lambda made: mirroring(made, port)) as (ports, _),
    ):
        for mode in ("leave", "strip"):
            took = sent(ports[mode], inside.authority, inside.path, KNOWN)
            assert took["x-b3-traceid"] == TRACE and took["x-tenant-id"] == "7"
            assert mirrored.get(timeout=10) == took, mode
            assert sent(ports[mode], removing.authority, removing.path, KNOWN) == {}
            assert mirrored.get(timeout=10) == {}, mode


def test_the_table_is_large_enough() -> None:
    calls = [call for group in GROUPS for call in group.calls]
    assert len(calls) >= 60 and sum(call.leaves for call in calls) >= 40


def test_after_the_first_calls_no_copied_header_leads_out_of_the_mesh() -> None:
    """Envoy routes a call by the headers that it has in the end, and tells where to when
    the call is over. The first one may be compared with what Envoy said of another call."""
    inside = Call("payments", "outbound|80||payments.shop.svc.cluster.local", False, "/pay")
    outside = Call("payments", "outbound|443||api.example.com", True, "/pay")
    node = "sidecar~10.0.0.9~web-v1.shop~shop.svc.cluster.local"
    group = Group("routes by a copied header", "", node, True, (inside, outside))

    def by_tenant(made: Config) -> None:
        by_header = {"name": "x-tenant-id", "string_match": {"exact": "7"}}
        for routes in outbound_routes(made):
            # What an echo shows of where it went.
            for route, name in zip(routes, ("inside", "outside"), strict=True):
                header = {"header": {"key": "x-tenant-route", "value": name}}
                route["request_headers_to_add"] = [header]
            routes.reverse()
            routes[0]["match"]["headers"] = [by_header]

    with serving(group, by_tenant) as (ports, _):
        for mode, calls in (("leave", 1), ("strip", 2)):
            for _ in range(calls):
                first = sent(ports[mode], "payments", "/pay", KNOWN)
                assert first["x-tenant-route"] == "outside", (mode, first)
            for path in ("/pay", "/pay?by=card"):
                took = sent(ports[mode], "payments", path, KNOWN)
                assert took == {"x-tenant-route": "inside"}, (mode, path)
