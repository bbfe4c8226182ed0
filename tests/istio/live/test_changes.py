"""What changes under traffic cost, in sidecars that drain as Istio's do: no click."""

import os
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from istio.clicks import TREE, joined
from istio.cluster import NAMESPACE, ROOT_NAMESPACE
from istio.images import (
    INSECURE,
    MISSING,
    another,
    changed,
    misconfigured,
    ours,
    repairing,
    serve,
)
from istio.manifests import Document
from istio.sidecar_mesh import SidecarMesh
from mesh.mesh import Reply
from mesh.tree import score

# At least so many clicks follow each push.
CLICKS = int(os.environ.get("B3RELAY_CLICKS", "100"))
USERS = 3
# Of the clicks, the share whose spans are looked at.
EVERY = 10

Push = tuple[str, list[Document]]


@pytest.fixture(scope="module")
def mesh() -> Iterator[SidecarMesh]:
    with SidecarMesh(environment=INSECURE, drain_seconds=45) as mesh:
        serve(mesh)
        yield mesh


class Traffic:
    """Users who click without a pause, each on a connection of its own per click."""

    def __init__(self, mesh: SidecarMesh, pool: ThreadPoolExecutor) -> None:
        self._mesh = mesh
        self._running = True
        self.answers: list[tuple[int, Reply]] = []
        self._users: list[Future[None]] = [pool.submit(self._click) for _ in range(USERS)]

    def _click(self) -> None:
        while self._running:
            self.answers.append(self._mesh.click())

    def more(self, clicks: int) -> None:
        """Wait until so many more are answered."""
        target = len(self.answers) + clicks
        self._mesh.wait_until(
            f"{clicks} clicks",
            lambda: len(self.answers) >= target or any(user.done() for user in self._users),
            timeout=60.0 + clicks / 5,
        )

    def stop(self) -> None:
        self._running = False
        for user in self._users:
            user.result()


def missing(form: str, namespace: str) -> list[Document]:
    """The module is not where the form says."""
    if "plugin.wasm" in str(ours(form, namespace=namespace)):
        return changed(ours(form, namespace=namespace), "plugin.wasm", "missing.wasm")
    return ours(form, MISSING, namespace)


def pushes(form: str, namespace: str) -> list[Push]:
    """Refused and missing from the first and later, put on, changed, corrected."""
    return [
        ("refused from the first", misconfigured(form, namespace)),
        ("missing from the first", missing(form, namespace)),
        ("right", ours(form, namespace=namespace)),
        ("changed", repairing(form, namespace)),
        ("refused", misconfigured(form, namespace)),
        ("missing", missing(form, namespace)),
        ("right again", ours(form, namespace=namespace)),
    ]


def at_work(mesh: SidecarMesh) -> None:
    """What was applied came through: the filter counts requests."""
    reviews = mesh.pods["reviews"]
    before = reviews.stat("requests_total")
    mesh.wait_until("the filter is at work", lambda: reviews.stat("requests_total") > before)


@pytest.mark.timeout(180 + CLICKS)
@pytest.mark.parametrize(
    ("form", "namespace"),
    [
        ("sidecars", NAMESPACE),
        ("sidecars-image", NAMESPACE),
        ("workload", NAMESPACE),
        ("mesh", ROOT_NAMESPACE),
        ("wasmplugin", NAMESPACE),
        ("trafficextension", NAMESPACE),
    ],
)
def test_no_push_costs_a_click(mesh: SidecarMesh, form: str, namespace: str) -> None:
    """Every click is answered, and none is put into the trace of another."""
    after: dict[str, int] = {}
    with ThreadPoolExecutor(USERS) as pool:
        traffic = Traffic(mesh, pool)
        try:
            for name, documents in pushes(form, namespace):
                before = len(traffic.answers)
                mesh.apply("b3relay", documents)
                # The control plane and the agents need a second or two.
                time.sleep(2)
                traffic.more(CLICKS)
                if name.startswith("right"):
                    at_work(mesh)
                after[name] = len(traffic.answers) - before
            mesh.delete_all()
            time.sleep(2)
            traffic.more(CLICKS)
        finally:
            mesh.delete_all()
            traffic.stop()
    print(f"{form}: {len(traffic.answers)} clicks, after each push:", after)
    assert min(after.values()) >= CLICKS
    lost = [(number, reply) for number, reply in traffic.answers if reply.status != 200]
    assert lost == [], f"of {len(traffic.answers)}"
    clicks = [number for number, _ in traffic.answers[::EVERY]]
    found = score(mesh.spans_of(clicks, len(clicks) * TREE.size), TREE, clicks)
    assert found.wrong_trace == 0


# Within Istio's drain of 45 s.
PAUSE_SECONDS = 41
# As many users at once as there are connections that nobody used meanwhile, and fewer later.
MANY, FEW = 12, 4


def burst(mesh: SidecarMesh, users: int, clicks: int) -> Counter[int]:
    """How often each status was answered."""
    with ThreadPoolExecutor(users) as pool:
        return Counter(pool.map(lambda _: mesh.click()[1].status, range(clicks)))


@pytest.mark.long
@pytest.mark.parametrize("change", ["nothing", "configuration", "another", "b3relay"])
def test_a_burst_after_a_pause(mesh: SidecarMesh, change: str) -> None:
    """Envoy closes a connection of a listener that was replaced, with a request on it, where
    several users come at the same time after a pause: whoever's filter was put on. A change
    of a configuration replaces no listener, and costs nothing."""
    if change == "configuration":
        mesh.apply("b3relay", ours("sidecars"))
        mesh.wait_until("the filter works", lambda: joined(mesh) is True)
        mesh.wait_drained()
    documents = {
        "nothing": [],
        "configuration": repairing("sidecars"),
        "another": another(),
        "b3relay": ours("sidecars"),
    }[change]
    burst(mesh, MANY, 5 * MANY)
    mesh.apply("b3relay", documents)
    time.sleep(PAUSE_SECONDS)
    statuses = burst(mesh, FEW, 300)
    mesh.delete_all()
    mesh.wait_drained()
    print(f"{change}: clicks of {FEW} users after {PAUSE_SECONDS} s, by status: {dict(statuses)}")
    may_be_lost = change in ("another", "b3relay")
    assert set(statuses) <= ({200, 502, 503} if may_be_lost else {200})
