"""A service in Python: Flask under waitress, and requests. It knows nothing of tracing;
`opentelemetry-instrument` before it adds that.

    app.py NAME PORT OUTBOUND CALLEE...

Serves GET /NAME, and for each request calls the callees, one after the other: at the
port OUTBOUND of the sidecar, by their names as the Host. The query goes along, and what
its `forward` says is copied from the headers of the request: none, request-id, or all.
"""

import sys

import flask
import requests
import waitress

NAME, PORT, OUTBOUND, *CALLEES = sys.argv[1:]
FORWARD = {
    "none": (),
    "request-id": ("x-request-id",),
    "all": (
        "x-request-id",
        "x-b3-traceid",
        "x-b3-spanid",
        "x-b3-parentspanid",
        "x-b3-sampled",
        "x-b3-flags",
        "x-ot-span-context",
        "b3",
        "traceparent",
        "tracestate",
    ),
}

app = flask.Flask(NAME)
# A session for each service: it keeps connections by address, and here all services
# have the sidecar's.
sessions = {callee: requests.Session() for callee in CALLEES}


@app.get("/ready")
def ready() -> str:
    return "ok"


@app.get(f"/{NAME}")
def serve() -> tuple[str, int]:
    request = flask.request
    names = FORWARD[request.args["forward"]]
    headers = {name: request.headers[name] for name in names if name in request.headers}
    for callee in CALLEES:
        url = f"http://127.0.0.1:{OUTBOUND}/{callee}?{request.query_string.decode()}"
        reply = sessions[callee].get(url, headers={**headers, "host": callee}, timeout=10)
        if reply.status_code != 200:
            return f"{callee}: {reply.status_code}", 502
    return "ok", 200


if __name__ == "__main__":
    waitress.serve(app, host="127.0.0.1", port=int(PORT), threads=4)
