"""A registry in the mesh, and the shipped forms with the image that is there."""

from istio.cluster import NAMESPACE, NODE
from istio.manifests import IMAGE, Document, documents, in_namespace, load, text_of
from istio.sidecar_mesh import SidecarMesh
from istio.tools import istio
from mesh.mesh import wasm_path

REGISTRY = f"{NODE}:5000"
# What the agents need to fetch without TLS.
INSECURE = {"WASM_INSECURE_REGISTRIES": REGISTRY}
HERE = f"oci://{REGISTRY}/b3relay:0.1.0"
MISSING = f"oci://{REGISTRY}/b3relay:missing"

PLUGINS = ("wasmplugin", "trafficextension")


def serve(mesh: SidecarMesh) -> None:
    """Until the mesh ends, with the module as an image."""
    registry = mesh.processes.start("registry", [istio().binary("registry"), "serve", REGISTRY])
    mesh.processes.wait_ready({registry: lambda: push("oci", "0.1.0") is not None})


def push(form: str, tag: str) -> str | None:
    """The digest; None while there is no registry."""
    done = istio().run("registry", "push", form, wasm_path(), f"{REGISTRY}/b3relay:{tag}")
    return done.out.strip() if done.exit_code == 0 else None


def ours(name: str, image: str = HERE, namespace: str = NAMESPACE) -> list[Document]:
    """A shipped form, with the image that is here."""
    return documents(text_of(in_namespace(namespace, load(name))).replace(IMAGE, image))


def changed(shipped: list[Document], old: str, new: str) -> list[Document]:
    text = text_of(shipped)
    assert old in text
    return documents(text.replace(old, new))


def misconfigured(form: str, namespace: str = NAMESPACE) -> list[Document]:
    """With a key that there is not."""
    return _with(form, namespace, '"modus": "repair"')


def repairing(form: str, namespace: str = NAMESPACE) -> list[Document]:
    """With another configuration that is right."""
    return _with(form, namespace, '"mode": "repair"')


def _with(form: str, namespace: str, setting: str) -> list[Document]:
    shipped = ours(form, namespace=namespace)
    if form in PLUGINS:
        return changed(shipped, "mode: observe", setting.replace('"', ""))
    return changed(shipped, '"direction"', f'{setting}, "direction"')


def another() -> list[Document]:
    """Someone else's filter."""
    filters = ours("sidecars")[:1]
    name = "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation"
    outbound = filters[0]["spec"]["configPatches"][0]
    outbound["patch"]["value"] = {
        "name": "another",
        "typed_config": {"@type": f"type.googleapis.com/{name}"},
    }
    inbound = {**outbound, "match": {**outbound["match"], "context": "SIDECAR_INBOUND"}}
    filters[0]["metadata"]["name"] = "another"
    filters[0]["spec"]["configPatches"] = [outbound, inbound]
    return filters
