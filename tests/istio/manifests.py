"""What `envoyfilter/` ships, as kubectl would apply it."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from istio.tools import istio
from mesh.mesh import ROOT
from mesh.procs import MeshError

SHIPPED = ROOT / "envoyfilter"
# Where the manifests read the module from, and the image that they name.
MODULE = "/etc/b3relay/plugin.wasm"
IMAGE = "oci://registry.example.com/b3relay:0.1.0"

Document = dict[str, Any]


def documents(text: str) -> list[Document]:
    return [document for document in yaml.safe_load_all(text) if document]


def text_of(shipped: list[Document]) -> str:
    text: str = yaml.safe_dump_all(shipped, sort_keys=False)
    return text


def load(name: str, directory: Path = SHIPPED) -> list[Document]:
    """A file, or a kustomization as kubectl builds it."""
    path = directory / name
    if path.is_file():
        return documents(path.read_text())
    done = istio().run("kubectl", "kustomize", path)
    if done.exit_code != 0:
        raise MeshError(done.text)
    return documents(done.out)


def load_with(name: str, component: str, directory: Path) -> list[Document]:
    """A kustomization with a component, made in an empty directory."""
    shipped = directory / "shipped"
    shutil.copytree(SHIPPED, shipped)
    made = shipped / "made"
    made.mkdir()
    made.joinpath("kustomization.yaml").write_text(
        f"resources:\n- ../{name}\ncomponents:\n- ../{component}\n"
    )
    return load("made", shipped)


def in_namespace(namespace: str, shipped: list[Document]) -> list[Document]:
    """What `kubectl -n NAMESPACE apply` makes of documents that name none."""
    for document in shipped:
        document["metadata"].setdefault("namespace", namespace)
    return shipped


@dataclass(frozen=True)
class Form:
    """One way to attach the filter, by what is applied and where."""

    name: str
    namespace: str
    # What goes to a gateway goes to no sidecar, and the other way round.
    gateway: bool = False
    # Whether sidecars get the context of the server span (an upstream filter).
    upstream: bool = True


def forms(namespace: str, root: str) -> tuple[Form, ...]:
    """All that are shipped, for applications in one namespace and gateways in the
    root namespace."""
    return (
        Form("sidecars", namespace),
        Form("sidecars-image", namespace),
        Form("workload", namespace),
        Form("mesh", root),
        Form("wasmplugin", namespace, upstream=False),
        Form("trafficextension", namespace, upstream=False),
        Form("gateway-boundary.yaml", root, gateway=True),
        Form("gateway-check.yaml", root, gateway=True),
        Form("gateway-spans.yaml", root, gateway=True),
    )
