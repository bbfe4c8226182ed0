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


def says(walk: Walk, level: str, *parts: str) -> bool:
    """Whether check.sh has a line of that level with all parts in it, about one of the pods."""
    pod = walk.quiet("kubectl -n shop get pods -l app=front -o name").split()[0]
    printed = walk.quiet(f"{CHECK} {pod.removeprefix('pod/')} || true")
    lines = [line for line in printed.splitlines() if line.startswith(level)]
    return any(all(part in line for part in parts) for line in lines)


def test_a_wrong_key(walk: Walk) -> None:
    apply(walk, "sidecars", r'\{"direction"', '{"modus": "repair", "direction"')
    in_table("configuration key `...`: not known, allowed: ...")
    eventually(lambda: "configuration key `modus`: not known" in log(walk), "it is said")
    # The configuration before stays.
    steps.until_one_trace(walk)
    refused = ("that came last is refused, and the one before is still at work", "`modus`")
    eventually(lambda: says(walk, "WRONG", *refused), "check.sh says so")
    walk.run(FORMS, "kubectl -n shop apply -k envoyfilter/sidecars")
    eventually(lambda: "modus" not in configured(walk), "the right one is back")
    steps.until_one_trace(walk)
    # What is still in the log is no fault.
    assert "WRONG" not in walk.run(FORMS, CHECK)


def test_a_wrong_key_from_the_first(walk: Walk) -> None:
    """A pod that starts with it has no configuration before."""
    apply(walk, "sidecars", r'\{"direction": "outbound"', '{"modus": "repair", "direction": "outbound"')
    walk.shell("kubectl -n shop rollout restart deployment front")
    walk.shell("kubectl -n shop rollout status deployment front")
    settle(walk)
    click_in_shop(walk)
    eventually(lambda: says(walk, "WRONG", "outbound, no calls seen", "`modus`"), "check.sh says so")
    walk.run(FORMS, "kubectl -n shop apply -k envoyfilter/sidecars")
    steps.until_one_trace(walk)
    assert "WRONG" not in walk.run(FORMS, CHECK)


def test_old_pods_are_ending(walk: Walk) -> None:
    """What they log is of no interest: the page says to wait, check.sh leaves them out."""
    (old,) = walk.quiet("kubectl -n shop get pods -l app=front -o name").split()
    walk.quiet(f"kubectl -n shop delete {old} --wait=false")
    printed = walk.quiet(f"{CHECK} || true")
    name = old.removeprefix("pod/")
    noted = [line for line in printed.splitlines() if "still terminating" in line]
    assert noted and name in noted[0], printed
    assert printed.count(name) == 1, printed
    walk.shell("kubectl -n shop rollout status deployment front")
    settle(walk)
    steps.until_one_trace(walk)


TRACED = """\
apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata:
  name: another
spec:
  tracing:
  - providers:
    - name: zipkin
    randomSamplingPercentage: {share}
"""


def test_client_spans_are_on(walk: Walk) -> None:
    walk.quiet("kubectl -n shop delete telemetry b3relay-no-client-spans")
    steps.apply(walk, TRACED.format(share=0))
    eventually(lambda: says(walk, "WRONG", "client spans are on"), "check.sh says so")
    assert says(walk, "WRONG", "0 % of the traces are sampled")


def test_two_telemetries_without_a_selector(walk: Walk) -> None:
    walk.run(FORMS, "kubectl -n shop apply -k envoyfilter/sidecars")
    assert says(walk, "WRONG", "telemetry: another b3relay-no-client-spans have no selector")
    walk.quiet("kubectl -n shop delete telemetry another")
    steps.until_one_trace(walk)


@pytest.mark.parametrize("purpose", [False, True])
def test_a_pod_without_a_sidecar(walk: Walk, purpose: bool) -> None:
    """That of a namespace labelled too late is a fault, one that says so itself is none."""
    image = "docker.io/library/python:3.12-slim"
    label = " --labels sidecar.istio.io/inject=false" if purpose else ""
    if not purpose:
        walk.quiet("kubectl label namespace shop istio-injection-")
    walk.quiet(
        f"kubectl -n shop run bare --image {image}{label}"
        " --command -- python -m http.server"
    )
    if not purpose:
        walk.quiet("kubectl label namespace shop istio-injection=enabled")
    walk.quiet("kubectl -n shop wait --for=condition=Ready pod/bare")
    assert says(walk, "WRONG", "pods: bare without a sidecar:") == (not purpose)
    assert says(walk, "note", "pods: bare without a sidecar on purpose") == purpose
    walk.quiet("kubectl -n shop delete pod bare --now")


def test_a_config_map_with_another_key(walk: Walk) -> None:
    command = walk.command(GUIDE, "kubectl -n shop create configmap b3relay")
    walk.quiet("kubectl -n shop delete configmap b3relay")
    walk.quiet(command.replace("--from-file=plugin.wasm=", "--from-file="))
    assert says(walk, "WRONG", "the ConfigMap b3relay has no key plugin.wasm")
    walk.quiet("kubectl -n shop delete configmap b3relay")
    walk.run(FORMS, "kubectl -n shop create configmap b3relay")
    assert not says(walk, "WRONG", "")


def test_two_forms_at_once(walk: Walk) -> None:
    walk.run(FORMS, "kubectl -n shop apply -k envoyfilter/wasmplugin")
    click_in_shop(walk)

    eventually(lambda: says(walk, "WRONG", "the filter is there twice"), "check.sh says so")
    # Their Telemetry is the same.
    walk.shell("kubectl -n shop delete wasmplugin b3relay")
    steps.until_one_trace(walk)


def test_an_image_that_is_not_there(walk: Walk) -> None:
    walk.run(FORMS, "kubectl -n shop delete -k envoyfilter/sidecars")
    apply(walk, "wasmplugin", "b3relay:0.1.0", "b3relay:missing")
    in_table("MANIFEST_UNKNOWN")
    eventually(lambda: "MANIFEST_UNKNOWN" in log(walk), "it is said")
    click_in_shop(walk)
    unfetched = ("the filter is not there: its image could not be fetched", "MANIFEST_UNKNOWN")
    eventually(lambda: says(walk, "WRONG", *unfetched), "check.sh says so")


def test_a_wrong_digest(walk: Walk) -> None:
    url = f"  url: oci://{REGISTRY}"
    apply(walk, "wasmplugin", url, f"  sha256: '{'0' * 64}'\n{url}")
    in_table("has checksum ..., which does not match")
    eventually(lambda: "which does not match" in log(walk), "it is said")
    click_in_shop(walk)
    unfetched = ("the filter is not there: its image could not be fetched", "does not match")
    eventually(lambda: says(walk, "WRONG", *unfetched), "check.sh says so")


def test_a_plugin_that_fails_closed(walk: Walk) -> None:
    """As Istio does by default."""
    walk.run(FORMS, "kubectl -n shop apply -k envoyfilter/wasmplugin")
    closed = "[{\"op\": \"remove\", \"path\": \"/spec/failStrategy\"}]"
    walk.quiet(f"kubectl -n shop patch wasmplugin b3relay --type=json -p '{closed}'")
    assert says(walk, "WRONG", "WasmPlugin shop/b3relay has not failStrategy FAIL_OPEN")
    walk.shell("kubectl -n shop delete -k envoyfilter/wasmplugin")
