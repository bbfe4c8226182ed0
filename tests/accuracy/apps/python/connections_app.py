"""Python's own server, and requests.

Each connection has a thread of its own, and each thread sessions of its own.
"""

import io
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import requests
import service
import sessions
import threads

EXECUTOR = ThreadPoolExecutor(32)
OWN = threading.local()


def session(host: str) -> requests.Session:
    """One for each service, as in app.py, in each thread."""
    own: dict[str, requests.Session] = OWN.__dict__.setdefault("sessions", {})
    return own.setdefault(host, requests.Session())


CALL = sessions.calling(session)
SERVE = threads.application(CALL, lambda: EXECUTOR)


class Handler(BaseHTTPRequestHandler):
    # With 1.0 a connection has one request.
    protocol_version = "HTTP/1.1"
    # An answer does not wait for the client to say that it has the first half.
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        environ = {
            "PATH_INFO": self.path,
            "HTTP_X_REQUEST_ID": self.headers.get("x-request-id"),
            "wsgi.input": io.BytesIO(self.rfile.read(int(self.headers["content-length"]))),
        }

        def start(status: str, headers: list[tuple[str, str]]) -> None:
            self.send_response(int(status.split()[0]))
            for name, value in headers:
                self.send_header(name, value)
            self.end_headers()

        for part in SERVE(environ, start):
            self.wfile.write(part)

    def log_message(self, *_: object) -> None:
        """No line for each request."""


class Server(ThreadingHTTPServer):
    request_queue_size = 128


if __name__ == "__main__":
    threads.start_background(CALL)
    Server(("127.0.0.1", service.PORT), Handler).serve_forever()
