"""Bookinfo in small, in pods, with Istio's control plane: the whole of it."""

import http.client
import itertools
import json
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from istio import cluster
from istio.cluster import GATEWAY, PODS
from istio.manifests import Document, text_of
from istio.pods import Node, RunningPod
from istio.tools import CONTROL_PLANE, Istio, istio
from mesh.apps import PATHS
from mesh.collector import Collector, Span
from mesh.mesh import Headers, Reply, request, wasm_path
from mesh.procs import MeshError, Processes, Stacked
from mesh.tree import click_of

# Envoy hands its spans over every five seconds.
_FLUSH_SECONDS = 15.0


class SidecarMesh(Stacked):
    """Brings everything up on entry and stops everything on exit.

    program       Istio's programs, of one version
    forward       what the apps copy
    mounted       whether the sidecars have the module as a file
    mtls          Istio's mode: DISABLE or STRICT
    certificates  by pod, for STRICT
    environment   further variables of the agents
    collect       whether to take the traces; else something else is to
    drain_seconds how long Envoy keeps a listener that was replaced, and what it was
                  refused; Istio's default is 45
    work_ms       how long each app works before it makes its calls
    annotations   of all pods
    collector_pod whether a pod with a sidecar takes the spans, and hands them on
    """

    def __init__(
        self,
        program: Istio | None = None,
        forward: str = "request-id",
        mounted: bool = True,
        mtls: str = "DISABLE",
        certificates: Callable[[Path, cluster.Pod], Path] | None = None,
        environment: Mapping[str, str] | None = None,
        collect: bool = True,
        drain_seconds: int = 2,
        work_ms: float = 2,
        annotations: Mapping[str, str] | None = None,
        collector_pod: bool = False,
    ) -> None:
        self._istio = program or istio()
        self._forward = forward
        self._mounted = mounted
        self._mtls = mtls
        self._certificates = certificates
        self._environment = dict(environment or {})
        self._collect = collect
        self._drain_seconds = drain_seconds
        self._work_ms = work_ms
        self._annotations = dict(annotations or {})
        self._collector_pod = collector_pod
        self._numbers = itertools.count(1)
        self.applied: set[str] = set()
        self.pods: dict[str, RunningPod] = {}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(Node())
            stack.callback(self._remove_pods)
            port = cluster.BEHIND_PORT if self._collector_pod else cluster.ZIPKIN_PORT
            self.collector = Collector((cluster.NODE, port))
            if self._collect:
                stack.enter_context(self.collector)
            self.processes = stack.enter_context(Processes(show_tails=True))
            self._start()
            self._stack = stack.pop_all()
        return self

    def _objects(self) -> list[Document]:
        return cluster.objects(self._mtls, self._collector_pod)

    def _remove_pods(self) -> None:
        for pod in self.pods.values():
            pod.remove()

    def _start(self) -> None:
        # The proxies have a user of their own.
        self.processes.directory.chmod(0o711)
        self._configuration = self.processes.directory / "configuration"
        self._configuration.mkdir()
        self._write("cluster", self._objects())
        mesh = self.processes.directory / "mesh.yaml"
        mesh.write_text(json.dumps(cluster.mesh_config()))
        self.istiod = self.processes.start(
            "istiod",
            [
                self._istio.binary("istiod"),
                *("--directory", self._configuration),
                *("--mesh", mesh),
                *("--address", cluster.NODE),
            ],
            CONTROL_PLANE,
        )
        self.processes.wait_ready({self.istiod: _control_plane_ready})
        hosts = {pod.name: pod.service_ip for pod in PODS.values()}
        collector = cluster.COLLECTOR
        hosts[collector.host] = collector.ip if self._collector_pod else cluster.NODE
        others = (GATEWAY, collector) if self._collector_pod else (GATEWAY,)
        for pod in (*PODS.values(), *others):
            certificates = (
                self._certificates(self.processes.directory, pod) if self._certificates else None
            )
            running = RunningPod(self.processes, pod, self._istio, hosts, certificates)
            self.pods[pod.name] = running
            if self._mounted:
                shutil.copy(wasm_path(), running.volume / "plugin.wasm")
            if pod == collector:
                running.start_forwarder(cluster.ZIPKIN_PORT, cluster.NODE, cluster.BEHIND_PORT)
            elif not pod.gateway:
                running.start_app(self._forward, work_ms=self._work_ms)
            running.annotate(self._annotations)
            self.start_agent(running)
        self.wait_ready()

    def start_agent(self, pod: RunningPod) -> None:
        pod.start_agent(self._environment, self._drain_seconds)

    def wait_ready(self, timeout: float = 180.0) -> None:
        """Until all apps and proxies are."""
        checks = {pod.agent: pod.agent_ready for pod in self.pods.values()}
        checks |= {pod.app: pod.app_ready for pod in self.pods.values() if pod.app}
        self.processes.wait_ready(checks, timeout)

    @property
    def sidecars(self) -> list[RunningPod]:
        return [self.pods[name] for name in PODS]

    # Configuration.

    def apply(self, name: str, shipped: Iterable[Document]) -> None:
        """As `kubectl apply`; the name is of all of it together."""
        self.applied.add(name)
        self._write(name, shipped)

    def apply_and_push(self, name: str, shipped: Iterable[Document]) -> None:
        """The same, and wait until every sidecar was told. Each push has all listeners,
        taken or refused; the filters that they ask for follow within the second."""

        def pushes() -> list[int]:
            answers = ("listener_manager.lds.update_success", "listener_manager.lds.update_rejected")
            return [sum(pod.stat(answer) for answer in answers) for pod in self.sidecars]

        before = pushes()
        self.apply(name, shipped)
        self.wait_until(
            f"{name} is pushed",
            lambda: all(now > then for now, then in zip(pushes(), before, strict=True)),
        )
        time.sleep(1)

    def change_cluster(self, kind: str, change: Callable[[Document], object]) -> None:
        """The specification of the objects of that kind that were there before."""
        objects = self._objects()
        for document in objects:
            if document["kind"] == kind:
                change(document["spec"])
        self.apply("cluster", objects)

    def delete_all(self) -> None:
        """What was applied."""
        for name in self.applied - {"cluster"}:
            (self._configuration / f"{name}.yaml").unlink()
        if "cluster" in self.applied:
            self._write("cluster", self._objects())
        self.applied.clear()

    def _write(self, name: str, shipped: Iterable[Document]) -> None:
        # Written apart and moved, so that no half of it is read.
        written = self.processes.directory / "written.yaml"
        written.write_text(text_of(list(shipped)))
        os.replace(written, self._configuration / f"{name}.yaml")

    def wait_until(self, what: str, check: Callable[[], bool], timeout: float = 30.0) -> None:
        """A request of the check that Envoy breaks off, since it replaces the listener,
        says no more than that it is not yet so."""

        def holds() -> bool:
            try:
                return check()
            except ConnectionError:
                return False

        deadline = time.monotonic() + timeout
        while not holds():
            if time.monotonic() > deadline:
                raise MeshError(f"not within {timeout:.0f} s: {what}\n{self.processes.tails()}")
            time.sleep(0.1)

    def wait_drained(self) -> None:
        """Until no connection leads to a listener that was replaced. Envoy closes those
        connections at the end, the ones in use too: a rare click that meets that moment
        is lost (503, UC), whatever was changed in the listener."""
        self.wait_until(
            "listeners are drained",
            lambda: not any(pod.is_draining() for pod in self.pods.values()),
            timeout=self._drain_seconds + 30.0,
        )

    # Traffic.

    def get(self, path: str, headers: Headers = (), timeout: float = 15.0) -> Reply:
        """A request to the gateway."""
        return request(
            cluster.GATEWAY_PORT, path, headers=headers, timeout=timeout, address=GATEWAY.ip
        )

    def click(self, headers: Headers = ()) -> tuple[int, Reply]:
        """One click at the gateway, and its number."""
        number = next(self._numbers)
        return number, self.get(f"{PATHS['productpage']}?click={number}", headers)

    def clicks(self, total: int) -> list[int]:
        """That many, which must succeed."""
        numbers = []
        for _ in range(total):
            number, reply = self.click()
            if reply.status != 200:
                raise MeshError(f"click {number}: {reply}")
            numbers.append(number)
        return numbers

    def spans_of(self, clicks: Collection[int], expected: int) -> list[Span]:
        """The traces of these clicks, once that many spans of them have come (or the
        time is over). What others left is on its way for seconds."""

        wanted = frozenset(clicks)

        def chosen(spans: list[Span]) -> list[Span]:
            traces = {span["traceId"] for span in spans if click_of(span) in wanted}
            return [span for span in spans if span["traceId"] in traces]

        self.collector.wait_for(lambda spans: len(chosen(spans)) >= expected, _FLUSH_SECONDS)
        return chosen(self.collector.spans())


def _control_plane_ready() -> bool:
    try:
        return request(8080, "/ready", timeout=1, address=cluster.NODE).status == 200
    except (OSError, http.client.HTTPException):
        return False
