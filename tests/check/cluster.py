"""The cluster that check.sh looks at: objects as an API server has them, and sidecars
with what a real Envoy said (sidecar.py)."""

import json
import os
import subprocess
import sys
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from check import kubectl
from check.sidecar import PAGES, Recorded
from mesh.mesh import ROOT

SCRIPT = ROOT / "envoyfilter" / "check.sh"
NAMESPACE, ROOT_NAMESPACE = "shop", "istio-system"
Object = dict[str, Any]
_FILES = dict(zip(PAGES, ("stats", "prometheus", "extensions", "clusters", "listeners"), strict=True))


def shipped(path: str, namespace: str = NAMESPACE) -> Object:
    """An object of envoyfilter/, as it is after `kubectl apply`."""
    (document,) = yaml.safe_load_all((ROOT / "envoyfilter" / path).read_text())
    document["metadata"]["namespace"] = namespace
    found: Object = document
    return found


def from_image(envoyfilter: Object, url: str) -> Object:
    """The same EnvoyFilter as the form sidecars-image has it."""
    changed = deepcopy(envoyfilter)
    for patch in changed["spec"]["configPatches"]:
        if patch["applyTo"] == "EXTENSION_CONFIG":
            vm = patch["patch"]["value"]["typed_config"]["config"]["vm_config"]
            vm["code"] = {"remote": {"sha256": "nil", "http_uri": {"uri": url}}}
    return changed


def config_map(*keys: str) -> Object:
    return {
        "kind": "ConfigMap",
        "metadata": {"name": "b3relay", "namespace": NAMESPACE},
        "binaryData": dict.fromkeys(keys, "AGFzbQ=="),
    }


def telemetry(name: str, **spec: object) -> Object:
    return {"kind": "Telemetry", "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec}


def pod(
    name: str,
    *,
    sidecar: bool = True,
    native: bool = True,
    mounted: bool = True,
    ending: bool = False,
    proxy_type: str = "sidecar",
    labels: dict[str, str] | None = None,
    annotations: dict[str, str] | None = None,
) -> Object:
    """A running pod; `native` as Kubernetes 1.29 and newer have sidecars, among the
    init containers."""
    arguments = ["proxy", proxy_type, "--domain", f"{NAMESPACE}.svc.cluster.local"]
    proxy = [{"name": "istio-proxy", "args": arguments}] if sidecar else []
    metadata: Object = {"name": name, "namespace": NAMESPACE}
    metadata |= {"labels": {"app": name, **(labels or {})}, "annotations": annotations or {}}
    if ending:
        metadata["deletionTimestamp"] = "2026-11-26T12:00:00Z"
    return {
        "kind": "Pod",
        "metadata": metadata,
        "spec": {
            "containers": [{"name": "app"}, *([] if native else proxy)],
            **({"initContainers": [{"name": "istio-init"}, *proxy]} if native else {}),
            "volumes": [{"name": "istio-envoy"}, *([{"name": "b3relay"}] if mounted else [])],
        },
        "status": {"phase": "Running"},
    }


def gateway(name: str, proxy_type: str = "router", labels: dict[str, str] | None = None) -> Object:
    """A running pod of a gateway: Envoy is all that is in it."""
    one = pod(name, native=False, mounted=False, proxy_type=proxy_type, labels=labels)
    del one["spec"]["containers"][0]
    return one


def namespace(**labels: str) -> Object:
    return {"kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}}


def whole() -> list[Object]:
    """Everything applied as envoyfilter/README.md says, with the form `sidecars`."""
    return [
        namespace(),
        shipped("sidecars/envoyfilter.yaml"),
        shipped("no-client-spans/telemetry.yaml"),
        config_map("plugin.wasm"),
        pod("front-1"),
    ]


@dataclass
class Cluster:
    objects: list[Object] = field(default_factory=whole)
    # Pods without an entry do not answer.
    sidecars: dict[str, Recorded] = field(default_factory=dict)
    analysis: str = "\n✔ No validation issues found when analyzing namespace: shop.\n"
    unknown_kinds: tuple[str, ...] = ("trafficextension",)
    # NAMESPACE/kind, of those that the user may not read.
    forbidden: tuple[str, ...] = ()

    def put(self, *objects: Object) -> "Cluster":
        self.objects += objects
        return self

    def without(self, kind: str) -> "Cluster":
        self.objects = [one for one in self.objects if one["kind"] != kind]
        return self


@dataclass(frozen=True)
class Said:
    """What check.sh says; `errors` is its standard error."""

    exit_code: int
    text: str
    errors: str

    def lines(self, level: str) -> list[str]:
        return [line for line in self.text.splitlines() if line.startswith(f"{level} ")]


def check(
    cluster: Cluster,
    directory: Path,
    *arguments: str,
    istioctl: bool = True,
    real: tuple[Path, str] | None = None,
) -> Said:
    """Run check.sh on it; the folder must be empty.

    ``real`` is Kubernetes' kubectl and the server that it is to ask, for `kubectl get`.
    """
    state, programs = directory / "state", directory / "bin"
    programs.mkdir(parents=True)
    (state / "pods").mkdir(parents=True)
    (state / "objects.json").write_text(json.dumps(cluster.objects))
    (state / "unknown-kinds.json").write_text(json.dumps(cluster.unknown_kinds))
    (state / "forbidden.json").write_text(json.dumps(cluster.forbidden))
    (state / "analysis").write_text(cluster.analysis)
    for name, recorded in cluster.sidecars.items():
        (state / "pods" / name).mkdir()
        for page, content in recorded.pages.items():
            (state / "pods" / name / _FILES[page]).write_text(content)
        (state / "pods" / name / "log").write_text(recorded.log)
    for program in ("kubectl", "istioctl") if istioctl else ("kubectl",):
        fake = programs / program
        lines = [
            "#!/bin/sh",
            f'exec "{sys.executable}" -I "{kubectl.__file__}" "{state}" {program} "$@"',
        ]
        if real and program == "kubectl":
            asked = f'exec "{real[0]}" --server "{real[1]}" "$@"'
            lines.insert(1, f'case " $* " in *" get "*) {asked} ;; esac')
        fake.write_text("\n".join(lines) + "\n")
        fake.chmod(0o755)
    done = subprocess.run(
        [SCRIPT, *(arguments or (NAMESPACE,))],
        env={**os.environ, "PATH": f"{programs}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return Said(done.returncode, done.stdout, done.stderr)
