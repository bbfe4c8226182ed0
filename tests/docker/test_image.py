"""docs/image.md: the images that it says how to make, fetched as Istio fetches them."""

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from docker.local import commands
from docker.registry import REGISTRY
from docker.world import FETCH
from mesh import golang
from mesh.mesh import ROOT, wasm_path

PAGE = ROOT / "docs" / "image.md"
MODULE = hashlib.sha256(wasm_path().read_bytes()).hexdigest()


def run(*command: str | Path, cwd: Path = ROOT, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def fetched(image: str) -> str:
    """The hash of the module that Istio gets, or why it refuses the image."""
    told = run(golang.build("istio-fetch", FETCH), image)
    (line,) = (line for line in told.splitlines() if line.startswith(f"{image} "))
    return line.removeprefix(f"{image} ")


def oras() -> Path:
    return golang.TOOLS / "go" / "bin" / "oras"


@pytest.mark.parametrize("builder", ["0", "1"], ids=["classic", "buildkit"])
def test_image(builder: str) -> None:
    image = f"{REGISTRY}/b3relay:builder-{builder}"
    run("make", "image-push", f"IMAGE={image}", DOCKER_BUILDKIT=builder)
    layers = run("docker", "image", "inspect", "--format", '{{join .RootFS.Layers "\\n"}}', image)
    assert len(layers.split()) == 1
    assert fetched(image) == MODULE


def test_page() -> None:
    """Each image that a command of the page pushes is one that Istio takes."""
    pushed = 0
    for command in commands(PAGE):
        run("bash", "-euo", "pipefail", "-c", command)
        if (image := re.search(rf"IMAGE=({REGISTRY}/\S+)", command)) and "push" in command:
            pushed += 1
            assert fetched(image[1]) == MODULE
    assert pushed == 2


def test_layout_of_a_release(tmp_path: Path) -> None:
    """Both images of it, pushed as docs/release.md says, under the digest that the
    manifests of a release name."""
    spec = spec_from_file_location("images", ROOT / "release" / "images.py")
    assert spec and spec.loader
    images = module_from_spec(spec)
    spec.loader.exec_module(images)
    layout, digest = images.layout(wasm_path().read_bytes(), "0.1.0", 0, oras())
    path = tmp_path / "oci.tar"
    path.write_bytes(layout)
    for tag in ("0.1.0", "0.1.0-artifact"):
        image = f"{REGISTRY}/release:{tag}"
        told = run(oras(), "cp", "--no-tty", "--from-oci-layout", f"{path}:{tag}", image)
        assert (f"Digest: sha256:{digest}" in told) == (tag == "0.1.0")
        assert fetched(image) == MODULE
    assert fetched(f"{REGISTRY}/release@sha256:{digest}") == MODULE


@pytest.fixture
def build(tmp_path: Path) -> Callable[[str, str], str]:
    """Builds and pushes an image of another Dockerfile."""

    def build_(name: str, dockerfile: str) -> str:
        image = f"{REGISTRY}/other:{name}"
        (tmp_path / "Dockerfile").write_text(dockerfile)
        (tmp_path / "b3relay.wasm").write_bytes(wasm_path().read_bytes())
        run("docker", "build", "--tag", image, ".", cwd=tmp_path)
        run("docker", "push", image)
        return image

    return build_


def test_what_istio_refuses(build: Callable[[str, str], str]) -> None:
    """So the tests above would notice."""
    copied = "FROM scratch\nCOPY b3relay.wasm /plugin.wasm\n"
    assert fetched(build("same", copied)) == MODULE
    assert "plugin.wasm not found" in fetched(
        build("layer", f"{copied}COPY Dockerfile /Dockerfile\n")
    )
    assert "plugin.wasm not found" in fetched(
        build("name", "FROM scratch\nCOPY b3relay.wasm /b3relay.wasm\n")
    )
    image = f"{REGISTRY}/other:one-layer"
    content = "b3relay.wasm:application/vnd.module.wasm.content.layer.v1+wasm"
    run(oras(), "push", image, content, cwd=wasm_path().parent)
    assert "number of layers must be 2 but got 1" in fetched(image)


def test_hadolint() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    assert run(hadolint, "--failure-threshold", "style", "envoyfilter/Dockerfile") == ""
