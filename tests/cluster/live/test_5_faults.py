"""What goes wrong for users, what they see of it, and of some what check.sh says.

The texts are those of the table in envoyfilter/README.md. Requests pass all the while.
"""

import re

import pytest

from cluster import steps
from cluster.steps import click_in_shop, configured, eventually, settle
from cluster.walk import FORMS, GUIDE, Walk
from docker.registry import REGISTRY
from mesh.pages import ROOT

pytestmark = pytest.mark.timeout(900)

CHECK = "envoyfilter/check.sh shop"


def checked(walk: Walk) -> str:
    """What check.sh says of a namespace in which something is wrong."""
    return walk.run(FORMS, CHECK, status=1)


def log(walk: Walk) -> str:
    return walk.quiet("kubectl -n shop logs deploy/front -c istio-proxy")


def in_table(part: str) -> None:
    """The page has it in its table of what the log says."""
    rows = [line for line in (ROOT / FORMS).read_text().splitlines() if line.startswith("| `")]
    assert any(part in row for row in rows), part


def apply(walk: Walk, form: str, pattern: str, replacement: str) -> None:
    """A shipped form with a change to it."""
    text = walk.quiet(f"kubectl kustomize envoyfilter/{form}")
    changed, count = re.subn(pattern, replacement, text)
    assert count > 0, text
    path = walk.directory / "changed.yaml"
    path.write_text(changed)
    walk.shell(f"kubectl -n shop apply -f {path}")


def test_nothing_is_installed(walk: Walk) -> None:
    assert "WRONG  form: nothing of b3relay" in checked(walk)


def test_the_module_is_too_large_for_a_plain_apply(walk: Walk) -> None:
    command = walk.command(GUIDE, "kubectl -n shop create configmap b3relay")
    assert command.count(" --server-side") == 1
    printed = walk.shell(command.replace(" --server-side", ""), status=1)
    assert "metadata.annotations: Too long" in printed


def test_the_module_is_missing(walk: Walk) -> None:
    walk.run(FORMS, "kubectl -n shop apply -k envoyfilter/sidecars")
    eventually(lambda: "b3relay" in configured(walk), "the filter is told")
    in_table("Invalid path: /etc/b3relay/plugin.wasm")
    eventually(lambda: "Invalid path: /etc/b3relay/plugin.wasm" in log(walk), "it is said")
    click_in_shop(walk)
    assert "the module is not mounted" in checked(walk)
    assert "rejected" in walk.run(FORMS, "logs deploy/front -c istio-proxy | grep")


def test_what_to_do_about_it(walk: Walk) -> None:
    walk.run(FORMS, "kubectl -n shop create configmap b3relay")
    walk.run(FORMS, "--patch-file envoyfilter/mount.yaml")
    settle(walk)
    steps.until_one_trace(walk)
    assert "WRONG" not in walk.run(FORMS, CHECK)


def test_a_wrong_key(walk: Walk) -> None:
    apply(walk, "sidecars", r'\{"direction"', '{"modus": "repair", "direction"')
    in_table("configuration key `...`: not known, allowed: ...")
    eventually(lambda: "configuration key `modus`: not known" in log(walk), "it is said")
    # The configuration before stays.
    steps.until_one_trace(walk)
    walk.run(FORMS, "kubectl -n shop apply -k envoyfilter/sidecars")
    eventually(lambda: "modus" not in configured(walk), "the right one is back")
    steps.until_one_trace(walk)


def test_two_forms_at_once(walk: Walk) -> None:
    walk.run(FORMS, "kubectl -n shop apply -k envoyfilter/wasmplugin")
    click_in_shop(walk)

    def twice() -> bool:
        return "the filter is there twice" in walk.quiet(f"{CHECK} || true")

    eventually(twice, "check.sh says so")
    # Their Telemetry is the same.
    walk.shell("kubectl -n shop delete wasmplugin b3relay")
    steps.until_one_trace(walk)


def test_an_image_that_is_not_there(walk: Walk) -> None:
    walk.run(FORMS, "kubectl -n shop delete -k envoyfilter/sidecars")
    apply(walk, "wasmplugin", "b3relay:0.1.0", "b3relay:missing")
    in_table("MANIFEST_UNKNOWN")
    eventually(lambda: "MANIFEST_UNKNOWN" in log(walk), "it is said")
    click_in_shop(walk)


def test_a_wrong_digest(walk: Walk) -> None:
    url = f"  url: oci://{REGISTRY}"
    apply(walk, "wasmplugin", url, f"  sha256: '{'0' * 64}'\n{url}")
    in_table("has checksum ..., which does not match")
    eventually(lambda: "which does not match" in log(walk), "it is said")
    click_in_shop(walk)
    walk.shell("kubectl -n shop delete -k envoyfilter/wasmplugin")
    walk.run(FORMS, '"sidecar.istio.io/userVolume": null')
    walk.run(FORMS, "kubectl -n shop delete configmap b3relay")
    walk.run(GUIDE, "for d in front orders stock")
    settle(walk)
