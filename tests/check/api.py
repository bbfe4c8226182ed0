"""As much of an API server as `kubectl get` needs, over the objects of a cluster."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any

from check.listening import listening
from mesh.ports import HOST

# By group and version: kind, and whether it belongs to a namespace.
_KINDS = {
    "v1": (("Namespace", False), ("Pod", True), ("ConfigMap", True)),
    "networking.istio.io/v1alpha3": (("EnvoyFilter", True),),
    "extensions.istio.io/v1alpha1": (("WasmPlugin", True), ("TrafficExtension", True)),
    "telemetry.istio.io/v1": (("Telemetry", True),),
}


def _plural(kind: str) -> str:
    lower = kind.lower()
    return lower[:-1] + "ies" if lower.endswith("y") else lower + "s"


def _answer(path: str, objects: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    groups = [version for version in _KINDS if "/" in version]
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        versions = [{"groupVersion": one, "version": one.partition("/")[2]} for one in groups]
        named = [
            {
                "name": one["groupVersion"].partition("/")[0],
                "versions": [one],
                "preferredVersion": one,
            }
            for one in versions
        ]
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": named}
    match path.strip("/").split("/"):
        case ["api", version, *rest]:
            pass
        case ["apis", group, number, *rest]:
            version = f"{group}/{number}"
        case _:
            return None
    if version not in _KINDS:
        return None
    if not rest:
        resources = [
            {"name": _plural(kind), "kind": kind, "namespaced": inside, "verbs": ["get", "list"]}
            for kind, inside in _KINDS[version]
        ]
        return {"kind": "APIResourceList", "groupVersion": version, "resources": resources}
    namespace = None
    if rest[0] == "namespaces" and len(rest) > 2:
        namespace, rest = rest[1], rest[2:]
    kind = next(kind for kind, _ in _KINDS[version] if _plural(kind) == rest[0])
    found = [
        {"apiVersion": version, **one}
        for one in objects
        if one["kind"] == kind and one["metadata"].get("namespace") == namespace
    ]
    if len(rest) == 1:
        return {"kind": f"{kind}List", "apiVersion": version, "metadata": {}, "items": found}
    return next((one for one in found if one["metadata"]["name"] == rest[1]), None)


@contextmanager
def serving(objects: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The address of such a server."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            answer = _answer(path, objects)
            told = answer or {
                "kind": "Status",
                "apiVersion": "v1",
                "status": "Failure",
                "reason": "NotFound",
                "code": 404,
                "message": f'"{path.rpartition("/")[2]}" not found',
            }
            body = json.dumps(told).encode()
            self.send_response(404 if answer is None else 200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_arguments: object) -> None:
            pass

    with listening(Handler) as port:
        yield f"http://{HOST}:{port}"
