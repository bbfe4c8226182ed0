"""One pod, with an application that answers when it is told to."""

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

from mesh import envoy
from mesh.envoy import Envoy, Wasm
from mesh.mesh import wasm_path
from mesh.plain import Answer, Connection, Echo, RawHeaders
from mesh.ports import HOST, free_port
from mesh.procs import Processes, Stacked


class Pod(Stacked):
    """A sidecar without a tracer. Requests are held until they are let go; calls are made
    by the test, to a server that says what it got."""

    def __init__(self, config: str = '{"report_header": "request"}') -> None:
        self._config = config

    def __enter__(self) -> Self:
        let_go: dict[str, tuple[threading.Event, threading.Event]] = {}
        self._let_go = let_go

        class App(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                came, done = let_go[self.path]
                came.set()
                done.wait(20)
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        with ExitStack() as stack:
            echo = stack.enter_context(Echo())
            app = ThreadingHTTPServer((HOST, 0), App)
            app.daemon_threads = True
            threading.Thread(target=app.serve_forever, daemon=True).start()
            stack.callback(app.server_close)
            stack.callback(app.shutdown)
            processes = stack.enter_context(Processes(show_tails=True))
            wasm = Wasm(wasm_path(), self._config)
            self._inbound, outbound = free_port(), free_port()
            bootstrap = envoy.pod(
                admin_port=free_port(),
                inbound_port=self._inbound,
                outbound_port=outbound,
                app=(HOST, app.server_port),
                callee=echo.address,
                inbound=wasm,
                outbound=wasm,
            )
            one = Envoy(processes, "pod", bootstrap, concurrency=1)
            one.start()
            processes.wait_ready({one.process: one.ready}, 60)
            self._envoy = one
            self._calls = Connection(outbound)
            stack.callback(self._calls.close)
            self._stack = stack.pop_all()
        return self

    @contextmanager
    def serving(self, path: str, headers: RawHeaders) -> Iterator[None]:
        """While the application serves this request."""
        came, done = self._let_go[path] = threading.Event(), threading.Event()
        lines = [f"GET {path} HTTP/1.1".encode(), b"host: app", b"connection: close"]
        lines += [name.encode() + b": " + value for name, value in headers]
        with socket.create_connection((HOST, self._inbound), timeout=20) as client:
            client.sendall(b"\r\n".join(lines) + b"\r\n\r\n")
            assert came.wait(10), "the request has not come"
            try:
                yield
            finally:
                done.set()
                while client.recv(4096):
                    pass

    def call(self, headers: RawHeaders, host: str = "plain") -> Answer:
        return self._calls.get(headers, host)

    def log(self) -> str:
        """That of Envoy."""
        return self._envoy.log()
