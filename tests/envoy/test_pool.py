"""Which connection to the application Envoy takes: src/attribution/pool.rs relies on it."""

import http.client
import random
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

from mesh import envoy
from mesh.envoy import Envoy
from mesh.ports import HOST, free_port
from mesh.procs import Processes

REQUESTS = 200


class Held:
    """A server that answers each request when it is told to."""

    def __init__(self) -> None:
        held = self
        self.connections: dict[str, Future[int]] = {}
        self.answer: dict[str, threading.Event] = {}

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                held.connections[self.path].set_result(self.client_address[1])
                assert held.answer[self.path].wait(20)
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer((HOST, 0), Handler)
        self.port = self.server.server_address[1]
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # Those that still wait, after a failure.
        for answer in self.answer.values():
            answer.set()
        self.server.shutdown()
        self.server.server_close()

    def expect(self, path: str) -> None:
        self.connections[path], self.answer[path] = Future(), threading.Event()


def test_the_connection_that_was_given_back_last_is_taken_first() -> None:
    port, admin_port = free_port(), free_port()

    def get(path: str) -> int:
        connection = http.client.HTTPConnection(HOST, port, timeout=20)
        connection.request("GET", path)
        response = connection.getresponse()
        response.read()
        connection.close()
        return response.status

    with Processes() as processes, ThreadPoolExecutor(8) as clients, Held() as held:
        config = envoy.plain(
            {port: ("INBOUND", None)}, admin_port=admin_port, upstream=(HOST, held.port)
        )
        running = Envoy(processes, "pool", config, concurrency=1)
        running.start()
        processes.wait_ready({running.process: running.ready})
        lot = random.Random(1)
        # Ports: those that wait, the last one given back last, and those in use.
        free: list[int] = []
        used: list[tuple[str, int, Future[int]]] = []
        for n in range(REQUESTS):
            if used and (len(used) == 6 or lot.random() < 0.5):
                path, connection, status = used.pop(lot.randrange(len(used)))
                held.answer[path].set()
                assert status.result(20) == 200
                free.append(connection)
            else:
                path = f"/{n}"
                held.expect(path)
                status = clients.submit(get, path)
                connection = held.connections[path].result(20)
                if free:
                    assert connection == free.pop(), f"request {n}"
                used.append((path, connection, status))
        for path, _, status in used:
            held.answer[path].set()
            assert status.result(20) == 200
