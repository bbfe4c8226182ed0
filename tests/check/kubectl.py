"""What check.sh takes for kubectl and istioctl: answers from a folder with what a cluster
holds. ``python kubectl.py FOLDER kubectl|istioctl ARGUMENTS``

The folder has `objects.json`, a list of Kubernetes objects; for each pod that answers a
folder `pods/NAME` with `stats`, `prometheus`, `listeners` and `log`; and `analysis`, what
istioctl finds. Of JSONPath and Go templates it knows what check.sh uses, and refuses the
rest: tests/istio/offline/test_check.py holds its answers against kubectl's own.
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_PAGES = {
    "stats?filter=b3relay|update_rejected": "stats",
    "stats/prometheus?filter=b3relay": "prometheus",
    "config_dump?mask=ecds_filters": "extensions",
    "clusters": "clusters",
    "config_dump?resource=dynamic_listeners": "listeners",
}
_KEYS = "go-template={{range $key, $value := .binaryData}}{{$key}} {{len $value}} {{end}}"


class Refused(Exception):
    """What kubectl says on its standard error."""


# A name, whose dots have a backslash before them; then `[*]`, or `[?(@.name=="value")]`.
_STEP = re.compile(r'\.((?:\\.|[\w/-])+)(\[\*\]|\[\?\(@\.(\w+)=="([^"]*)"\)\])?')


def values(path: str, of: Any) -> list[Any]:
    """`.a.b[*].c`: what is missing is left out."""
    found = [of]
    for name, every, key, value in _STEP.findall(path):
        name = name.replace("\\", "")
        found = [one[name] for one in found if isinstance(one, dict) and name in one]
        if every:
            found = [element for one in found for element in one]
        if key:
            found = [one for one in found if one.get(key) == value]
    if _STEP.sub("", path):
        raise Refused(f"error: JSONPath {path}")
    return found


def text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def jsonpath(template: str, of: Any) -> str:
    loop = re.fullmatch(r"\{range (.*?)\}(.*)\{end\}", template, re.DOTALL)
    if loop:
        return "".join(jsonpath(loop[2], one) for one in values(loop[1], of))

    def parts() -> Iterator[str]:
        for literal, expression in re.findall(r"([^{]+)|\{(.*?)\}", template, re.DOTALL):
            if literal:
                yield literal
            elif expression.startswith('"'):
                yield json.loads(expression)
            else:
                yield " ".join(map(text, values(expression, of)))

    return "".join(parts())


def get(folder: Path, namespace: str, kind: str, name: str | None, output: str) -> str:
    objects = json.loads((folder / "objects.json").read_text())
    singular = kind.partition(".")[0].removesuffix("s")
    singular = {"telemetrie": "telemetry"}.get(singular, singular)
    if singular in json.loads((folder / "unknown-kinds.json").read_text()):
        raise Refused(f'error: the server doesn\'t have a resource type "{kind}"')
    if f"{namespace}/{singular}" in json.loads((folder / "forbidden.json").read_text()):
        raise Refused(f'Error from server (Forbidden): {kind} is forbidden: User "dev" cannot list it')
    of_kind = [one for one in objects if one["kind"].lower() == singular]
    if singular != "namespace":
        of_kind = [one for one in of_kind if one["metadata"]["namespace"] == namespace]
    if name is None:
        return jsonpath(output.removeprefix("jsonpath="), {"items": of_kind})
    for one in of_kind:
        if one["metadata"]["name"] == name:
            break
    else:
        raise Refused(f'Error from server (NotFound): {kind}s "{name}" not found')
    if output.startswith("jsonpath="):
        return jsonpath(output.removeprefix("jsonpath="), one)
    if output != _KEYS:
        raise Refused(f"error: template {output}")
    return "".join(f"{key} {len(value)} " for key, value in one.get("binaryData", {}).items())


def kubectl(folder: Path, arguments: list[str]) -> str:
    namespace = "default"
    if arguments[0] == "-n":
        namespace, arguments = arguments[1], arguments[2:]
    match arguments:
        case ["get", kind, name, "-o", output]:
            return get(folder, namespace, kind, name, output)
        case ["get", kind, "-o", output]:
            return get(folder, namespace, kind, None, output)
        case ["exec", pod, "-c", "istio-proxy", "--", "pilot-agent", "request", "GET", page]:
            path = folder / "pods" / pod / _PAGES[page]
            if not path.exists():
                raise Refused("error: unable to upgrade connection: container not found")
            return path.read_text()
        case ["logs", pod, "-c", "istio-proxy", "--tail=5000"]:
            path = folder / "pods" / pod / "log"
            return path.read_text() if path.exists() else ""
    raise Refused(f"error: unknown command {arguments}")


def main(folder: str, program: str, *arguments: str) -> int:
    try:
        if program == "istioctl":
            if arguments[0] != "analyze":
                raise Refused(f"Error: unknown command {arguments}")
            sys.stdout.write((Path(folder) / "analysis").read_text())
        else:
            sys.stdout.write(kubectl(Path(folder), list(arguments)))
    except Refused as refused:
        print(refused, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
