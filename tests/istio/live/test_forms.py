"""Each form of attachment, in sidecars under Istio's control plane: the clicks, and
the traces that they leave."""

import shutil
import subprocess
import time
from collections.abc import Iterator

import pytest

from istio.clicks import CLICKS, FLAT, TREE, apply, joined, whole
from istio.cluster import PODS, ROOT_NAMESPACE
from istio.images import INSECURE, MISSING, REGISTRY, changed, misconfigured, ours, push, serve
from istio.manifests import Document, load
from istio.sidecar_mesh import SidecarMesh
from istio.tools import istio
from mesh.apps import PATHS
from mesh.mesh import wasm_path
from mesh.tree import score

FORMS_OF_IMAGE = ("docker", "oci", "artifact")


@pytest.fixture(scope="module")
def mesh() -> Iterator[SidecarMesh]:
    """Sidecars that have the module as a file, and reach a registry with its image."""
    with SidecarMesh(environment=INSECURE) as mesh:
        serve(mesh)
        yield mesh


@pytest.fixture(autouse=True)
def nothing_applied(mesh: SidecarMesh) -> Iterator[None]:
    yield
    if mesh.applied:
        mesh.delete_all()
        # Of several connections, one may still be with the listener of before.
        mesh.wait_until(
            "the filter is gone", lambda: all(joined(mesh) is False for _ in range(5))
        )
        mesh.wait_drained()


def test_without_it_a_click_is_in_pieces(mesh: SidecarMesh) -> None:
    clicks = mesh.clicks(CLICKS)
    # Without it, its Telemetry is not there either: a client span for each call.
    found = score(mesh.spans_of(clicks, CLICKS * (TREE.size + 3)), TREE, clicks)
    assert (found.whole, found.traces) == (0, 4 * CLICKS)


@pytest.mark.parametrize("form", ["sidecars", "sidecars-image"])
def test_a_click_is_a_tree(mesh: SidecarMesh, form: str) -> None:
    apply(mesh, ours(form))
    assert whole(mesh, TREE)


@pytest.mark.parametrize("form", ["wasmplugin", "trafficextension"])
def test_a_click_is_whole_but_flat(mesh: SidecarMesh, form: str) -> None:
    apply(mesh, ours(form))
    assert whole(mesh, FLAT)


def test_the_whole_mesh(mesh: SidecarMesh) -> None:
    """The entry that switches client spans off goes into the mesh's own Telemetry, and
    the gateway keeps its spans by the one for it."""
    (entry,) = load("no-client-spans")
    mesh.change_cluster("Telemetry", lambda spec: spec["tracing"].extend(entry["spec"]["tracing"]))
    mesh.apply("gateway", ours("gateway-spans.yaml", namespace=ROOT_NAMESPACE))
    apply(mesh, ours("mesh"))
    assert whole(mesh, TREE)


@pytest.mark.parametrize("form", FORMS_OF_IMAGE)
def test_an_image_by_its_digest(mesh: SidecarMesh, form: str) -> None:
    """``sha256`` is the digest of the manifest."""
    digest = push(form, form)
    assert digest is not None and len(digest) == 64
    image = f"oci://{REGISTRY}/b3relay:{form}"
    apply(mesh, changed(ours("sidecars-image", image), "sha256: nil", f"sha256: {digest}"))


def test_one_workload(mesh: SidecarMesh) -> None:
    """Of four services one has the filter: its calls are joined, the others are not."""
    before = {pod.name: pod.stat("requests_total") for pod in mesh.sidecars}
    mesh.apply("b3relay", ours("workload"))

    def calls_joined() -> bool:
        _, reply = mesh.click()
        ids = {name: reply.received(name)["x-b3-traceid"][0] for name in PATHS}
        return ids["ratings"] == ids["reviews"] != ids["productpage"] != ids["details"]

    mesh.wait_until("the calls of reviews are joined", calls_joined)
    after = {pod.name: pod.stat("requests_total") for pod in mesh.sidecars}
    assert {name for name in after if after[name] != before[name]} == {"reviews"}


def test_the_trust_boundary(mesh: SidecarMesh) -> None:
    """A client's trace ID does not get in; without the boundary it does."""
    sent = {"x-b3-traceid": "a" * 32, "x-b3-spanid": "b" * 16, "x-b3-sampled": "1"}

    def got_in() -> bool:
        _, reply = mesh.click(sent)
        return reply.received("productpage")["x-b3-traceid"] == ["a" * 32]

    assert got_in()
    mesh.apply("boundary", ours("gateway-boundary.yaml", namespace=ROOT_NAMESPACE))
    mesh.wait_until("the boundary holds", lambda: not got_in())


def test_the_check_at_a_gateway(mesh: SidecarMesh) -> None:
    """It refuses what breaks a rule, when told to, and nothing else."""
    check = ours("gateway-check.yaml", namespace=ROOT_NAMESPACE)
    enforcing = changed(check, '"relay": false', '"relay": false, "mode": "enforce"')
    mesh.apply("check", enforcing)
    wrong = {"x-b3-traceid": "xyz", "x-b3-spanid": "b" * 16}
    mesh.wait_until("it refuses", lambda: mesh.click(wrong)[1].status == 400)
    assert mesh.click()[1].status == 200


def stays_joined(mesh: SidecarMesh) -> None:
    assert [joined(mesh) for _ in range(10)] == [True] * 10


def stays_apart(mesh: SidecarMesh) -> None:
    assert [joined(mesh) for _ in range(10)] == [False] * 10


def apply_and_wait(mesh: SidecarMesh, shipped: list[Document], told: str) -> None:
    """Until the agent or Envoy of reviews says what is wrong."""
    log = mesh.pods["reviews"].agent
    before = log.log().count(told)
    mesh.apply("b3relay", shipped)
    mesh.wait_until(f"it says {told!r}", lambda: log.log().count(told) > before)
    time.sleep(1)
    mesh.wait_drained()


# What the sidecar's log says of what goes wrong.
REFUSED = "rejected: Unable to create Wasm plugin"
UNKNOWN_KEY = "configuration key `modus`: not known"
NO_IMAGE = "MANIFEST_UNKNOWN"
NO_FILE = "Invalid path"
NOT_WASM = "Failed to load Wasm code"


def corrected(mesh: SidecarMesh, form: str) -> None:
    """A right one takes over from a refused one, without a restart."""
    apply(mesh, ours(form))


@pytest.mark.parametrize("form", ["sidecars", "sidecars-image", "wasmplugin", "trafficextension"])
def test_a_refused_configuration_leaves_the_one_before(mesh: SidecarMesh, form: str) -> None:
    apply(mesh, ours(form))
    apply_and_wait(mesh, misconfigured(form), REFUSED)
    stays_joined(mesh)
    assert UNKNOWN_KEY in mesh.pods["reviews"].agent.log()
    corrected(mesh, form)


def test_a_listener_that_changes_meanwhile(mesh: SidecarMesh) -> None:
    """Envoy holds on to the refused configuration, and tries it on each new listener: a
    port that is new in the mesh has to wait until it is corrected.

    Only the outbound filter is misconfigured. Of two that are refused in one push, the
    one that Envoy takes up second is not even looked at until the next push, and which
    one that is differs from sidecar to sidecar."""
    apply(mesh, ours("sidecars"))
    outbound = '"direction": "outbound"'
    wrong = changed(ours("sidecars"), outbound, f'"modus": "repair", {outbound}')
    apply_and_wait(mesh, wrong, REFUSED)
    port = {"number": 9099, "name": "http-new", "protocol": "HTTP"}

    def with_new_port(spec: Document) -> None:
        if spec["hosts"] == [PODS["ratings"].host]:
            spec["ports"].append(port)

    def listens() -> bool:
        return "0.0.0.0_9099" in mesh.pods["reviews"].admin("/listeners")

    mesh.change_cluster("ServiceEntry", with_new_port)
    log = mesh.pods["reviews"].agent
    refused = "lds: listener '0.0.0.0_9099' config rejected"
    mesh.wait_until("the listener is refused", lambda: refused in log.log())
    stays_joined(mesh)
    assert not listens()
    corrected(mesh, "sidecars")
    # The next change of whatever kind brings it along.
    mesh.apply("another", ours("gateway-boundary.yaml", namespace=ROOT_NAMESPACE))
    mesh.wait_until("the new port has a listener", listens)


def test_an_image_that_is_missing_leaves_the_filter_before(mesh: SidecarMesh) -> None:
    apply(mesh, ours("sidecars-image"))
    apply_and_wait(mesh, ours("sidecars-image", MISSING), NO_IMAGE)
    stays_joined(mesh)


@pytest.mark.parametrize("form", ["sidecars", "sidecars-image"])
def test_a_refused_configuration_from_the_first(mesh: SidecarMesh, form: str) -> None:
    """Traffic goes on, without the filter; so in a sidecar that starts with it."""
    apply_and_wait(mesh, misconfigured(form), REFUSED)
    stays_apart(mesh)
    restart(mesh, "reviews")
    stays_apart(mesh)
    corrected(mesh, form)


def test_an_image_that_is_missing_from_the_first(mesh: SidecarMesh) -> None:
    apply_and_wait(mesh, ours("sidecars-image", MISSING), NO_IMAGE)
    stays_apart(mesh)
    restart(mesh, "reviews")
    stays_apart(mesh)


def test_an_image_that_is_no_module(mesh: SidecarMesh) -> None:
    """Its file has the magic number of a module, which is all that the agent looks at."""
    broken = mesh.processes.directory / "broken.wasm"
    broken.write_bytes(wasm_path().read_bytes()[:5000])
    done = istio().run("registry", "push", "oci", broken, f"{REGISTRY}/b3relay:broken")
    assert done.exit_code == 0, done.text
    apply_and_wait(mesh, ours("sidecars-image", f"oci://{REGISTRY}/b3relay:broken"), NOT_WASM)
    stays_apart(mesh)
    corrected(mesh, "sidecars-image")


def test_a_file_that_is_missing(mesh: SidecarMesh) -> None:
    """Traffic goes on without the filter; with the file, and a restart, it is there."""
    for pod in mesh.sidecars:
        (pod.volume / "plugin.wasm").unlink()
    try:
        apply_and_wait(mesh, ours("sidecars"), NO_FILE)
        stays_apart(mesh)
    finally:
        for pod in mesh.sidecars:
            shutil.copy(wasm_path(), pod.volume / "plugin.wasm")
    for pod in mesh.sidecars:
        restart(mesh, pod.name)
    mesh.wait_until("the filter works", lambda: all(joined(mesh) for _ in range(3)))


@pytest.mark.parametrize("form", ["wasmplugin", "trafficextension"])
def test_a_plugin_without_its_image(mesh: SidecarMesh, form: str) -> None:
    """As shipped, traffic goes on, but without the filter that was there before. With
    Istio's default for failStrategy there is no traffic."""
    apply(mesh, ours(form))
    apply_and_wait(mesh, ours(form, MISSING), NO_IMAGE)
    stays_apart(mesh)
    closed = changed(ours(form, MISSING), "FAIL_OPEN", "FAIL_CLOSE")
    mesh.apply("b3relay", closed)
    mesh.wait_until("traffic is denied", lambda: mesh.click()[1].status == 403)


def test_a_plugin_of_another_digest(mesh: SidecarMesh) -> None:
    """The digest of the file is not that of the image."""
    told = subprocess.run(["sha256sum", wasm_path()], capture_output=True, text=True, check=True)
    digest = told.stdout.split()[0]
    plugin = changed(ours("wasmplugin"), "pluginName:", f"sha256: {digest}\n  pluginName:")
    apply_and_wait(mesh, plugin, "which does not match")
    stays_apart(mesh)


@pytest.mark.parametrize("form", ["wasmplugin", "trafficextension"])
def test_a_plugin_refused_from_the_first(mesh: SidecarMesh, form: str) -> None:
    """Envoy would have no filter to put there, and answer for it: so it is taken, and
    does nothing until it is corrected."""
    apply_and_wait(mesh, misconfigured(form), "nothing is done until it is corrected")
    stays_apart(mesh)
    assert [mesh.click()[1].status for _ in range(10)] == [200] * 10
    corrected(mesh, form)


@pytest.mark.parametrize("form", ["wasmplugin", "trafficextension"])
def test_a_plugin_that_is_wrong_in_the_same_way_again(mesh: SidecarMesh, form: str) -> None:
    """Envoy remembers that it has taken this configuration, and does not try it apart
    from the VM that is at work: refused then, it would end that VM, and a right one would
    not be taken any more. So it is taken again, and does nothing until it is corrected."""
    idle = "nothing is done until it is corrected"
    before = len(mesh.pods["reviews"].agent.log())
    apply_and_wait(mesh, misconfigured(form), idle)
    corrected(mesh, form)
    apply_and_wait(mesh, misconfigured(form), idle)
    assert [mesh.click()[1].status for _ in range(10)] == [200] * 10
    corrected(mesh, form)
    assert REFUSED not in mesh.pods["reviews"].agent.log()[before:]


def restart(mesh: SidecarMesh, name: str) -> None:
    """The proxy of a pod, as a new pod would start."""
    pod = mesh.pods[name]
    pod.stop_agent()
    mesh.start_agent(pod)
    mesh.wait_ready()
