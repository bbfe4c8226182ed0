"""The commands of the documentation. There is no cluster to run them on, so each is run
with one that does not answer: kubectl and istioctl read their arguments and their files
before they find that out, and complain of those first."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from istio.manifests import SHIPPED, documents, load
from istio.tools import istio
from mesh.mesh import ROOT
from mesh.pages import blocks, commands
from mesh.ports import HOST, free_port

DOCS = (
    "README.md",
    "envoyfilter/README.md",
    "docs/istio-guide.md",
    "docs/metrics.md",
    "docs/release.md",
)
# For these there is nothing to see without a cluster.
_NOT_RUN = re.compile(r"^(make |curl |istioctl (install|uninstall|dashboard)|git )")


KUBECTL = [
    (path, command)
    for path in DOCS
    for command in commands(path)
    if "kubectl" in command and not _NOT_RUN.match(command)
]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A cluster at a port on which nobody listens."""
    directory = tmp_path_factory.mktemp("cluster")
    settings = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "none", "cluster": {"server": f"http://{HOST}:{free_port()}"}}],
        "contexts": [{"name": "none", "context": {"cluster": "none", "user": "none"}}],
        "users": [{"name": "none", "user": {}}],
        "current-context": "none",
    }
    (directory / "config").write_text(yaml.safe_dump(settings))
    programs = istio().binary("kubectl").parent
    samples = directory / "istio"
    samples.mkdir()
    (samples / "samples").symlink_to(istio().samples)
    return {
        **os.environ,
        "KUBECONFIG": str(directory / "config"),
        "PATH": f"{programs}:{os.environ['PATH']}",
        "ISTIO": str(samples),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone, and beside its folders the files of a release that the commands name."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("envoyfilter", "dist"):
        (folder / name).symlink_to(ROOT / name)
    for name in ("mount.yaml", "check.sh"):
        shutil.copy(SHIPPED / name, folder)
    module = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "b3relay"}}
    (folder / "module.yaml").write_text(yaml.safe_dump(module))
    (folder / "install-sidecars.yaml").write_text(yaml.safe_dump_all(load("sidecars")))
    return folder


@pytest.mark.parametrize("path, command", KUBECTL)
def test_a_command_is_well_formed(
    environment: dict[str, str], folder: Path, path: str, command: str
) -> None:
    for named in re.findall(r"(?:envoyfilter|dist|samples)/[\w./-]+", command):
        at = istio().directory if named.startswith("samples/") else ROOT
        assert (at / named).exists(), f"{path} names {named}"
    listed = "$(kubectl -n shop get deployments,statefulsets,daemonsets -o name)"
    command = command.replace(listed, "deployment.apps/front")
    command = command.removesuffix("&")
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    # What is left when the arguments and the files are right.
    assert "refused" in done.stderr, done.stderr
    for complaint in ("unknown", "error: ", "no such file", "Error: "):
        told = [line for line in done.stderr.splitlines() if complaint in line]
        assert all("refused" in line for line in told), done.stderr


def test_there_are_commands() -> None:
    assert {path for path, _ in KUBECTL} == set(DOCS)
    assert len(KUBECTL) > 20


def test_the_entry_of_the_whole_mesh() -> None:
    """The patch of a Telemetry that is there adds what the shipped one says."""
    (text,) = re.findall(r"-p '(\[.*\])'\n", (SHIPPED / "README.md").read_text())
    (shipped,) = load("no-client-spans")
    assert json.loads(text) == [
        {"op": "add", "path": "/spec/tracing/-", "value": shipped["spec"]["tracing"][0]}
    ]


def test_unmounting_takes_away_what_mounting_has_added(tmp_path: Path) -> None:
    (patch,) = re.findall(r"-p '(\{.*?\})'", (SHIPPED / "README.md").read_text(), re.DOTALL)
    (front,) = (
        one
        for one in load("example/shop.yaml")
        if one["kind"] == "Deployment" and one["metadata"]["name"] == "front"
    )
    path = tmp_path / "deployment.yaml"
    path.write_text(yaml.safe_dump(front))
    # Twice: nothing is there the second time, and that is no error.
    mounting, unmounting = ("--patch-file", SHIPPED / "mount.yaml"), ("-p", patch)
    for arguments in (mounting, unmounting, unmounting):
        done = istio().run("kubectl", "patch", "--local", "-f", path, *arguments, "-o", "yaml")
        assert done.exit_code == 0, done.text
        mounted = "sidecar.istio.io/userVolume" in done.out
        assert mounted == (arguments is mounting)
        path.write_text(done.out)
    (after,) = documents(path.read_text())
    after["spec"]["template"]["metadata"].pop("annotations", None)
    assert after == front


def test_an_overlay_of_ones_own(tmp_path: Path) -> None:
    """The kustomization of the section Configure, in a folder beside ours."""
    (text,) = blocks("envoyfilter/README.md", "yaml")
    shutil.copytree(SHIPPED, tmp_path / "envoyfilter")
    own = tmp_path / "own"
    own.mkdir()
    (own / "kustomization.yaml").write_text(text)
    built = {one["kind"]: one for one in load("own", tmp_path)}
    patches = built["EnvoyFilter"]["spec"]["configPatches"]
    configured = {
        one["patch"]["value"]["name"]: json.loads(
            one["patch"]["value"]["typed_config"]["config"]["configuration"]["value"]
        )
        for one in patches
        if one["applyTo"] == "EXTENSION_CONFIG"
    }
    assert configured == {
        f"b3relay.{direction}": {"direction": direction, "mode": "repair"}
        for direction in ("outbound", "inbound")
    }
    assert all(one["metadata"]["namespace"] == "shop" for one in built.values())


def test_the_default_installation_has_a_gateway() -> None:
    """With the labels and the service that the guide and the manifests go by."""
    done = istio().run("istioctl", "manifest", "generate", "-f", SHIPPED / "example/istio.yaml")
    gateway = {
        one["kind"]: one
        for one in documents(done.out)
        if one["metadata"]["name"] == "istio-ingressgateway"
    }
    labels = gateway["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert labels["istio"] == "ingressgateway"
    assert 80 in {port["port"] for port in gateway["Service"]["spec"]["ports"]}
