"""README.md: b3relay from the files of a release, without a clone and a compiler; and the
demo, which needs no cluster."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cluster import steps
from cluster.steps import settle
from cluster.walk import FORMS, GUIDE, README, Walk
from mesh.mesh import wasm_path
from mesh.pages import ROOT

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def release(walk: Walk, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a release that the page names, as `make release` writes them."""
    folder = tmp_path_factory.mktemp("release")
    shutil.copy(ROOT / "envoyfilter" / "mount.yaml", folder)
    shutil.copy(ROOT / "envoyfilter" / "check.sh", folder)
    (folder / "install-sidecars.yaml").write_text(
        walk.quiet("kubectl kustomize envoyfilter/sidecars")
    )
    write = (
        "import sys, build; module = open(sys.argv[1], 'rb').read();"
        " sys.stdout.write(build.config_map(module, {}))"
    )
    made = subprocess.run(
        [sys.executable, "-c", write, wasm_path()],
        cwd=ROOT / "release",
        capture_output=True,
        text=True,
        check=True,
    )
    (folder / "module.yaml").write_text(made.stdout)
    return folder


def test_from_a_release(walk: Walk, release: Path) -> None:
    walk.run(README, "kubectl -n shop apply --server-side -f module.yaml", folder=release)
    walk.run(README, "--patch-file mount.yaml", folder=release)
    printed = walk.run(README, "kubectl -n shop apply -f install-sidecars.yaml", folder=release)
    steps.warnings_are_known(printed)
    settle(walk)
    steps.until_one_trace(walk)


def test_check_of_a_release(walk: Walk, release: Path) -> None:
    # As the remark behind the command says.
    assert "# from a release: sh check.sh shop" in (ROOT / README).read_text()
    assert "WRONG" not in walk.shell("sh check.sh shop", release)
    assert "WRONG" not in walk.run(README, "envoyfilter/check.sh shop")


def test_uninstall_of_a_release(walk: Walk, release: Path) -> None:
    assert "# from a release: delete -f install-sidecars.yaml" in (ROOT / README).read_text()
    walk.shell("kubectl -n shop delete -f install-sidecars.yaml", release)
    walk.run(FORMS, '"sidecar.istio.io/userVolume": null')
    walk.run(FORMS, "kubectl -n shop delete configmap b3relay")
    walk.run(GUIDE, "for d in front orders stock")
    settle(walk)
    steps.until_in_pieces(walk)


def test_demo(walk: Walk) -> None:
    printed = walk.run(README, "make demo")
    assert "1 trace" in printed
