"""README.md and docs/release.md: b3relay from the files that `make release` wrote, without a
clone and a compiler; and the demo, which needs no cluster."""

import os
import shutil
from pathlib import Path

import pytest

from cluster import steps
from cluster.steps import settle
from cluster.walk import FORMS, GUIDE, README, RELEASE, Walk
from mesh.pages import ROOT

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a user has downloaded, and nothing else."""
    folder = tmp_path_factory.mktemp("downloads")
    shutil.copytree(ROOT / "dist" / "release", folder, dirs_exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def user() -> str:
    """Of the programs in the path kubectl, istioctl and what the system has."""
    tools, *_ = os.environ["PATH"].split(":")
    path = f"{tools}:/usr/bin:/bin"
    assert all(shutil.which(name, path=path) is None for name in ("cargo", "rustc", "go"))
    return path


def test_the_sums(walk: Walk, release: Path, user: str) -> None:
    walk.run(RELEASE, "sha256sum --check", folder=release, PATH=user)


def test_from_a_release(walk: Walk, release: Path, user: str) -> None:
    """Three commands; the fourth is a click, the fifth looks."""
    walk.run(README, "kubectl -n shop apply --server-side -f module.yaml", folder=release, PATH=user)
    walk.run(README, "--patch-file mount.yaml", folder=release, PATH=user)
    printed = walk.run(
        README, "kubectl -n shop apply -f install-sidecars.yaml", folder=release, PATH=user
    )
    steps.warnings_are_known(printed)
    settle(walk)
    steps.until_one_trace(walk)
    # As the remark behind the command says.
    assert "# from a release: sh check.sh shop" in (ROOT / README).read_text()
    printed = walk.shell("sh check.sh shop", release, PATH=user)
    assert "WRONG" not in printed and "All right" in printed
    assert "WRONG" not in walk.run(README, "envoyfilter/check.sh shop")


def test_uninstall_of_a_release(walk: Walk, release: Path) -> None:
    assert "# from a release: delete -f install-sidecars.yaml" in (ROOT / README).read_text()
    walk.shell("kubectl -n shop delete -f install-sidecars.yaml", release)
    walk.run(FORMS, '"sidecar.istio.io/userVolume": null')
    walk.run(FORMS, "kubectl -n shop delete configmap b3relay")
    walk.run(GUIDE, "for d in front orders stock")
    settle(walk)
    steps.until_in_pieces(walk)


def test_the_layout_of_a_release_is_pushed(walk: Walk) -> None:
    """Both images, from where `make release` has left them."""
    walk.run(RELEASE, "oras cp --from-oci-layout dist/release/b3relay-0.1.0-oci.tar:0.1.0 ")
    walk.run(RELEASE, "oci.tar:0.1.0-artifact ")


@pytest.mark.parametrize("form", ["sidecars-image", "wasmplugin"])
def test_from_the_image_of_a_release(walk: Walk, release: Path, form: str) -> None:
    """Taken from the registry by the digest that the release names."""
    name = f"install-{form}.yaml"
    assert "sha256: " in (release / name).read_text()
    walk.shell(f"kubectl -n shop apply -f {name}", release)
    steps.until_joined(walk)
    assert "WRONG" not in walk.run(README, "envoyfilter/check.sh shop")
    walk.shell(f"kubectl -n shop delete -f {name}", release)
    steps.until_in_pieces(walk)


def test_demo(walk: Walk) -> None:
    printed = walk.run(README, "make demo")
    assert "1 trace" in printed
