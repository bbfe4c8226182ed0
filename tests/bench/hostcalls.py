"""How many host calls a request takes: counted in the small proxy-wasm host of tests/module."""

import json
from pathlib import Path

from bench import shapes
from bench.scenes import Route, Scene, requests, shapes_of
from bench.shapes import Headers, Shape
from module.proxy_wasm_host import INBOUND, OUTBOUND, Host, Plugin, Process, load
from module.proxy_wasm_host import Headers as Pairs

_ENVOYS_ID = b"7d0c2a51-3c1b-9e5f-a0b1-5c6d7e8f9a0b"
_REQUESTS = 32


def _pairs(shape: Shape, headers: Headers) -> Pairs:
    """As Envoy hands them over: with what it adds by itself to a call."""
    named = {name.lower(): value.encode() for name, value in headers.items()}
    pairs: Pairs = [
        (":authority", named.pop("host")),
        (":path", b"/reviews/0"),
        (":method", b"GET"),
        (":scheme", b"http"),
        *named.items(),
    ]
    if shapes.side(shape) == "outbound":
        pairs.append(("x-forwarded-proto", b"http"))
    if "x-request-id" not in named:
        pairs.append(("x-request-id", _ENVOYS_ID))
    return pairs


def count(module: Path, scene: Scene, route: Route, workers: int) -> float:
    """Per request, those of the end of its stream included."""
    process = Process()
    hosts = [Host(load(module), process) for _ in range(workers)]

    def plugins(direction: int, name: str) -> list[Plugin]:
        config = json.dumps({"direction": name, **scene.config}).encode()
        return [host.plugin(config, direction) for host in hosts]

    inbound, outbound = plugins(INBOUND, "inbound"), plugins(OUTBOUND, "outbound")
    for plugin, headers in zip(inbound, shapes.requests("inbound", workers, seed=2), strict=True):
        stream = plugin.stream()
        stream.on_request_headers(_pairs("inbound", headers))
        stream.end()
    process.wait(ms=2000)
    for number, context in enumerate(shapes.held(scene.held)):
        plugin = inbound[number % workers]
        plugin.request(_pairs("inbound", shapes.inbound_headers(context)))

    def send(route: Route, seed: int) -> None:
        kinds = shapes_of(route)
        for each in requests(route, _REQUESTS, seed):
            streams = []
            for shape, headers in zip(kinds, each, strict=True):
                plugin = (inbound if shapes.side(shape) == "inbound" else outbound)[0]
                streams.append(plugin.stream())
                streams[-1].on_request_headers(_pairs(shape, headers))
                process.wait(ms=2)
            for stream in reversed(streams):
                stream.end()
                process.wait(ms=2)

    # Hosts that calls with a key have gone to are known afterwards, and metrics defined.
    if scene.held:
        send("hit", seed=3)
    if scene.awake and "keyless" not in shapes_of(route):
        send("keyless", seed=4)
    send(route, seed=5)
    process.wait(ms=2000)
    before = hosts[0].calls.total()
    send(route, seed=6)
    return round((hosts[0].calls.total() - before) / _REQUESTS, 1)
