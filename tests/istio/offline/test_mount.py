"""How pods get the module: the patches of deployments, as the injector takes them."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from istio import cluster
from istio.manifests import MODULE, SHIPPED, documents
from istio.tools import istio
from mesh.mesh import wasm_path

# What Istio's own Bookinfo has; the patches are for any deployment.
BOOKINFO = "bookinfo/platform/kube/bookinfo.yaml"
VOLUMES: dict[str, dict[str, Any]] = {
    "mount.yaml": {"configMap": {"name": "b3relay", "optional": True}},
    "mount-image.yaml": {
        "image": {
            "reference": "registry.example.com/b3relay:0.1.0",
            "pullPolicy": "IfNotPresent",
        }
    },
}


def injected(tmp_path: Path, patch: str) -> dict[str, Any]:
    """The pod of Bookinfo's reviews, patched by kubectl, with the sidecar that the
    injector of a default installation adds."""
    bookinfo = documents((istio().samples / BOOKINFO).read_text())
    (reviews,) = (
        one
        for one in bookinfo
        if one["kind"] == "Deployment" and one["metadata"]["name"] == "reviews-v1"
    )
    deployment = tmp_path / "deployment.yaml"
    deployment.write_text(yaml.safe_dump(reviews))
    words = ("patch", "--local", "-f", deployment, "--patch-file", SHIPPED / patch, "-o", "yaml")
    patched = istio().run("kubectl", *words)
    assert patched.exit_code == 0, patched.text
    deployment.write_text(patched.out)

    configuration = injection(tmp_path)
    done = istio().run("istioctl", "kube-inject", "-r", "default", "-f", deployment, *configuration)
    assert done.exit_code == 0, done.text
    (one,) = documents(done.out)
    spec: dict[str, Any] = one["spec"]["template"]["spec"]
    return spec


def injection(tmp_path: Path) -> list[str | Path]:
    """What kube-inject would ask a cluster for, as the installer writes it."""
    words: list[str | Path] = []
    generated = documents(istio().run("istioctl", "manifest", "generate").out)
    maps = {one["metadata"]["name"]: one for one in generated if one["kind"] == "ConfigMap"}
    injector = maps["istio-sidecar-injector"]
    for option, text in (
        ("--injectConfigFile", injector["data"]["config"]),
        ("--valuesFile", injector["data"]["values"]),
        ("--meshConfigFile", maps["istio"]["data"]["mesh"]),
    ):
        path = tmp_path / option.strip("-")
        path.write_text(text)
        words += [option, path]
    return words


@pytest.mark.parametrize("patch", VOLUMES)
def test_the_sidecar_gets_the_module(tmp_path: Path, patch: str) -> None:
    spec = injected(tmp_path, patch)
    (volume,) = (one for one in spec["volumes"] if one["name"] == "b3relay")
    assert volume == {"name": "b3relay", **VOLUMES[patch]}
    proxies = [*spec["containers"], *spec.get("initContainers", ())]
    (proxy,) = (one for one in proxies if one["name"] == "istio-proxy")
    (mount,) = (one for one in proxy["volumeMounts"] if one["name"] == "b3relay")
    assert mount == {
        "name": "b3relay",
        "mountPath": str(Path(MODULE).parent),
        "readOnly": True,
    }


@pytest.mark.parametrize("injected", [False, True])
def test_a_gateway_gets_the_module(tmp_path: Path, injected: bool) -> None:
    """One as `istioctl install` makes it, and one whose proxy the injector fills in, as
    that of Istio's Helm chart."""
    generated = documents(istio().run("istioctl", "manifest", "generate").out)
    (gateway,) = (
        one
        for one in generated
        if one["kind"] == "Deployment" and one["metadata"]["name"] == "istio-ingressgateway"
    )
    if injected:
        template = gateway["spec"]["template"]
        labels = {"istio": "ingressgateway", "sidecar.istio.io/inject": "true"}
        annotations = {"inject.istio.io/templates": "gateway"}
        template["metadata"] = {"labels": labels, "annotations": annotations}
        template["spec"] = {"containers": [{"name": "istio-proxy", "image": "auto"}]}
    deployment = tmp_path / "deployment.yaml"
    deployment.write_text(yaml.safe_dump(gateway))
    patch = ("--patch-file", SHIPPED / "mount-gateway.yaml")
    done = istio().run("kubectl", "patch", "--local", "-f", deployment, *patch, "-o", "yaml")
    assert done.exit_code == 0, done.text
    if injected:
        deployment.write_text(done.out)
        words = ("kube-inject", "-r", "default", "-f", deployment, *injection(tmp_path))
        done = istio().run("istioctl", *words)
        assert done.exit_code == 0, done.text
    (patched,) = documents(done.out)
    spec = patched["spec"]["template"]["spec"]
    (volume,) = (one for one in spec["volumes"] if one["name"] == "b3relay")
    assert volume == {"name": "b3relay", **VOLUMES["mount.yaml"]}
    (proxy,) = spec["containers"]
    assert proxy["image"] != "auto"
    (mount,) = (one for one in proxy["volumeMounts"] if one["name"] == "b3relay")
    assert mount["mountPath"] == str(Path(MODULE).parent)


def test_a_misspelt_mount_is_not_taken(tmp_path: Path) -> None:
    """The injector says nothing of it: the mount comes out without a path."""
    patch = documents((SHIPPED / "mount.yaml").read_text())[0]
    annotations = patch["spec"]["template"]["metadata"]["annotations"]
    mount = json.loads(annotations["sidecar.istio.io/userVolumeMount"])
    mount["b3relay"]["mountpath_"] = mount["b3relay"].pop("mountPath")
    annotations["sidecar.istio.io/userVolumeMount"] = json.dumps(mount)
    broken = tmp_path / "broken.yaml"
    broken.write_text(yaml.safe_dump(patch))
    spec = injected(tmp_path, str(broken))
    proxies = [*spec["containers"], *spec.get("initContainers", ())]
    (proxy,) = (one for one in proxies if one["name"] == "istio-proxy")
    (found,) = (one for one in proxy["volumeMounts"] if one["name"] == "b3relay")
    assert not found.get("mountPath")


def test_the_config_map_is_not_too_large() -> None:
    """kubectl makes it of the module as it is, under the name that the filter reads.
    A ConfigMap holds at most 1 MiB."""
    words = ("create", "configmap", "b3relay", f"--from-file=plugin.wasm={wasm_path()}")
    namespace = ("-n", cluster.NAMESPACE)
    done = istio().run("kubectl", *namespace, *words, "--dry-run=client", "-o", "yaml")
    assert done.exit_code == 0, done.text
    (made,) = documents(done.out)
    assert base64.b64decode(made["binaryData"]["plugin.wasm"]) == wasm_path().read_bytes()
    assert len(done.out) < 2**20
    assert Path(MODULE).name == "plugin.wasm"
