"""One Envoy with all that is counted in it, and the requests to it."""

import http.client
import re
import socket
import time
from contextlib import ExitStack

from bench import setups, shapes
from bench.callgrind import Callgrind, command
from bench.scenes import Route, Scene, counted, requests, shapes_of
from bench.setups import Modules
from bench.shapes import Headers, Side
from mesh.envoy import Envoy
from mesh.ports import HOST, free_port
from mesh.procs import MeshError, Processes

# Under valgrind, on a machine with other things to do, nothing is quick.
_SECONDS = 60
_START_SECONDS = 300
# b3relay reports client spans after a second, Envoy's tracer five by five.
_REPORTED_SECONDS = 1.5


class World:
    """An Envoy with these scenes, under callgrind, and one connection to each listener."""

    def __init__(self, stack: ExitStack, modules: Modules, scenes: list[Scene], workers: int):
        self._stack = stack
        self._workers = workers
        processes = stack.enter_context(Processes(show_tails=True))
        # The application: it answers what is sent to HOLD_PATH when it is told to.
        self._app = stack.enter_context(socket.create_server((HOST, 0), backlog=1024))
        self._app.settimeout(_SECONDS)
        self._serving: socket.socket | None = None
        port = free_port()
        upstream = setups.upstream(processes, port)
        self._ports = {scene.name: setups.free_ports() for scene in scenes}
        listeners = []
        for scene in scenes:
            if scene.variant == "b3relay":
                filters = setups.Filters.b3relay(modules, f"b3relay-{scene.name}", **scene.config)
            else:
                filters = setups.Filters.of(scene.variant, modules)
            listeners += setups.listeners(filters, self._ports[scene.name], workers)
        bootstrap = setups.bootstrap_of(
            "bench", listeners, upstream=(HOST, port), silent=self._app.getsockname()
        )
        under = command(processes.directory)
        self._envoy = Envoy(processes, "measured", bootstrap, concurrency=workers, under=under)
        for each in (upstream, self._envoy):
            each.start()
        checks = {each.process: each.ready for each in (upstream, self._envoy)}
        processes.wait_ready(checks, timeout=_START_SECONDS)
        self.callgrind = Callgrind(self._envoy.process.pid, processes.directory)
        self._seed = 1
        self._connections: dict[tuple[str, Side], http.client.HTTPConnection] = {}
        for scene in scenes:
            self._fill(scene)
        time.sleep(0.5)

    def _fill(self, scene: Scene) -> None:
        """Every worker has had a request, so that it has a table, before any is held."""
        ports = self._ports[scene.name]
        # Each goes to the worker that has the fewest.
        busy = [self._connect(ports["inbound"]) for _ in range(self._workers)]
        for number, headers in enumerate(shapes.requests("inbound", self._workers, seed=2)):
            _ask(busy[number], headers)
        for connection in busy:
            connection.close()
        for held in setups.hold(ports["inbound"], scene.held):
            self._stack.enter_context(held)
            self._stack.enter_context(self._app.accept()[0])
        for side, port in ports.items():
            connection = self._connections[scene.name, side] = self._connect(port)
            self._stack.callback(connection.close)

    @staticmethod
    def _connect(port: int) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection(HOST, port, timeout=_SECONDS)
        connection.connect()
        return connection

    def send(self, scene: Scene, route: Route, count: int) -> None:
        """Different requests each time, one after the other."""
        self._seed += 1
        to = [self._connections[scene.name, shapes.side(shape)] for shape in shapes_of(route)]
        for headers in requests(route, count, self._seed):
            if len(to) == 1:
                _ask(to[0], headers[0])
            else:
                self._serve(to, headers)
        if scene.reports:
            time.sleep(_REPORTED_SECONDS)

    def _serve(self, to: list[http.client.HTTPConnection], headers: list[Headers]) -> None:
        """An inbound request, and a call that the application makes before it answers."""
        inbound, outbound = to
        inbound.request("GET", setups.HOLD_PATH, headers=headers[0])
        if self._serving is None:
            self._serving = self._stack.enter_context(self._app.accept()[0])
            self._serving.settimeout(_SECONDS)
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            if not (read := self._serving.recv(65536)):
                raise MeshError("the application's connection was closed")
            head += read
        _ask(outbound, headers[1])
        self._serving.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        _read(inbound)

    def wake(self, scene: Scene, route: Route) -> None:
        """Not by a call without a request, from which b3relay would learn that there are
        such, where the route has calls without a key itself."""
        if scene.awake and "keyless" not in shapes_of(route):
            self.send(scene, "keyless", 1)

    def check(self, scene: Scene, route: Route) -> None:
        """Do requests of this route do what they are counted for?"""
        if scene.variant != "b3relay":
            return
        before = self._envoy.stats("wasmcustom.b3relay_")
        self.send(scene, route, 5)
        after = self._envoy.stats("wasmcustom.b3relay_")
        grown = {name for name, value in after.items() if value == before.get(name, 0) + 5}
        for shape in shapes_of(route):
            wanted = counted(scene, shape)
            if not any(re.search(wanted, name) for name in grown):
                raise MeshError(f"{scene.name}, {route}: not counted as {wanted}: {sorted(grown)}")


def _ask(connection: http.client.HTTPConnection, headers: Headers) -> None:
    connection.request("GET", "/reviews/0", headers=headers)
    _read(connection)


def _read(connection: http.client.HTTPConnection) -> None:
    answer = connection.getresponse()
    answer.read()
    if answer.status != 200:
        raise MeshError(f"status {answer.status}")
