"""One service of the local trial: ``service.py NAME [CALLEE...]``.

It answers on 8080 and calls the others through the sidecar's outbound port, with
the callee's name as the Host. Of the request that it serves it copies to these calls
x-request-id and nothing else; with ``?forward=all`` in the URL, all that Istio asks
applications to copy. It answers with the trace that the request was in, so that one
can see what became of a click.
"""

import html
import json
import os
import signal
import sys
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PORT, OUTBOUND = 8080, 15001
FORWARD_ALL = (
    "x-request-id",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-flags",
    "x-ot-span-context",
)


def call(path: str, headers: dict[str, str]) -> tuple[int, str]:
    """A request to another service, through the sidecar."""
    connection = HTTPConnection("127.0.0.1", OUTBOUND, timeout=5)
    try:
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


class Service(BaseHTTPRequestHandler):
    """Answers requests. What they ask for does not matter."""

    protocol_version = "HTTP/1.1"
    name: str
    callees: list[str]

    def do_GET(self) -> None:
        _, question_mark, query = self.path.partition("?")
        forward = FORWARD_ALL if "forward=all" in query else ("x-request-id",)
        kept = {name: self.headers[name] for name in forward if name in self.headers}
        status = 200
        calls = []
        for callee in self.callees:
            path = f"/{callee}/0{question_mark}{query}"
            code, body = call(path, {"Host": f"{callee}:9080", **kept})
            if code == 200:
                calls.append(json.loads(body))
            else:
                status = 502
        answer = {
            "service": self.name,
            "trace": self.headers.get("x-b3-traceid"),
            "calls": calls,
        }
        if "text/html" in self.headers.get("Accept", ""):
            self.answer(status, "text/html; charset=utf-8", page(answer))
        else:
            self.answer(status, "application/json", json.dumps(answer, indent=2) + "\n")

    def answer(self, status: int, content_type: str, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Not a line for each request."""


def page(answer: dict[str, Any]) -> str:
    """The trace that each service was in, as links to Jaeger."""
    jaeger = os.environ.get("JAEGER", "http://localhost:16686")
    found: dict[str, list[str]] = {}

    def collect(part: dict[str, Any]) -> None:
        found.setdefault(str(part["trace"]), []).append(part["service"])
        for call in part["calls"]:
            collect(call)

    collect(answer)
    title = f"One click, {len(found)} trace{'s' if len(found) > 1 else ''}"
    items = "".join(
        f'<li><a href="{html.escape(f"{jaeger}/trace/{trace}")}">{html.escape(trace)}</a>: '
        f"{html.escape(', '.join(services))}</li>"
        for trace, services in found.items()
    )
    return f"<!doctype html><title>{title}</title><h1>{title}</h1><ul>{items}</ul>\n"


def main() -> None:
    if sys.argv[1:] == ["--ready"]:
        HTTPConnection("127.0.0.1", PORT, timeout=5).connect()
        return
    Service.name, *Service.callees = sys.argv[1:]
    # As process 1 of a container it would not end otherwise.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    ThreadingHTTPServer(("127.0.0.1", PORT), Service).serve_forever()


if __name__ == "__main__":
    main()
