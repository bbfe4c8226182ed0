"""Bookinfo in small, in pods, with Istio's control plane: the whole of it."""

import http.client
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from istio import cluster
from istio.cluster import GATEWAY, PODS
from istio.manifests import Document, text_of
from istio.pods import Node, RunningPod
from istio.tools import CONTROL_PLANE, Istio, istio
from mesh.apps import PATHS
from mesh.collector import Collector, Span
from mesh.mesh import Headers, Reply, wasm_path
from mesh.procs import MeshError, Processes

# Envoy hands its spans over every five seconds; then that long without one is the end.
_QUIET_SECONDS = 1.5
_FLUSH_SECONDS = 12.0


class SidecarMesh:
    """Brings everything up on entry and stops everything on exit.

    program       Istio's programs, of one version
    forward       what the apps copy
    mounted       whether the sidecars have the module as a file
    mtls          Istio's mode: DISABLE or STRICT
    certificates  by pod, for STRICT
    environment   further variables of the agents
    """

    def __init__(
        self,
        program: Istio | None = None,
        forward: str = "request-id",
        mounted: bool = True,
        mtls: str = "DISABLE",
        certificates: Callable[[Path, cluster.Pod], Path] | None = None,
        environment: Mapping[str, str] | None = None,
        mesh: Mapping[str, Any] | None = None,
    ) -> None:
        self._istio = program or istio()
        self._forward = forward
        self._mounted = mounted
        self._mtls = mtls
        self._certificates = certificates
        self._environment = dict(environment or {})
        self._mesh = mesh
        self._next_click = 1
        self.pods: dict[str, RunningPod] = {}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(Node())
            stack.callback(lambda: [pod.remove() for pod in self.pods.values()])
            self.collector = stack.enter_context(Collector((cluster.NODE, cluster.ZIPKIN_PORT)))
            self.processes = stack.enter_context(Processes())
            try:
                self._start()
            except MeshError:
                print(self.processes.tails(), file=sys.stderr)
                raise
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        type_: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if type_ is not None and issubclass(type_, Exception):
            print(self.processes.tails(), file=sys.stderr)
        self._stack.__exit__(type_, error, traceback)

    def _start(self) -> None:
        # The proxies have a user of their own.
        self.processes.directory.chmod(0o711)
        self._configuration = self.processes.directory / "configuration"
        self._configuration.mkdir()
        (self._configuration / "cluster.yaml").write_text(cluster.dump(cluster.objects(self._mtls)))
        mesh = self.processes.directory / "mesh.yaml"
        mesh.write_text(json.dumps(self._mesh or cluster.mesh_config()))
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
        for pod in (*PODS.values(), GATEWAY):
            certificates = (
                self._certificates(self.processes.directory, pod) if self._certificates else None
            )
            running = RunningPod(self.processes, pod, self._istio, hosts, certificates)
            self.pods[pod.name] = running
            if self._mounted:
                shutil.copy(wasm_path(), running.volume / "plugin.wasm")
            if not pod.gateway:
                running.start_app(self._forward)
            running.start_agent(self._environment)
        self.wait_ready()

    def wait_ready(self, timeout: float = 60.0) -> None:
        """Until all apps and proxies are."""
        checks = {pod.agent: pod.agent_ready for pod in self.pods.values()}
        checks |= {pod.app: pod.app_ready for pod in self.pods.values() if pod.app}
        self.processes.wait_ready(checks, timeout)

    @property
    def sidecars(self) -> list[RunningPod]:
        return [self.pods[name] for name in PODS]

    # Configuration.

    def apply(self, name: str, shipped: Iterable[Document]) -> None:
        """As `kubectl apply`; the name is for `delete`."""
        # Written apart and moved, so that no half of it is read.
        written = self.processes.directory / "written.yaml"
        written.write_text(text_of(list(shipped)))
        os.replace(written, self._configuration / f"{name}.yaml")

    def delete(self, name: str) -> None:
        (self._configuration / f"{name}.yaml").unlink()

    def wait_until(self, what: str, check: Callable[[], bool], timeout: float = 30.0) -> None:
        deadline = time.monotonic() + timeout
        while not check():
            if time.monotonic() > deadline:
                raise MeshError(f"not within {timeout:.0f} s: {what}\n{self.processes.tails()}")
            time.sleep(0.1)

    # Traffic.

    def get(self, path: str, headers: Headers = (), timeout: float = 15.0) -> Reply:
        """A request to the gateway."""
        connection = http.client.HTTPConnection(GATEWAY.ip, cluster.GATEWAY_PORT, timeout=timeout)
        try:
            connection.request("GET", path, headers=dict(headers))
            response = connection.getresponse()
            raw = response.read()
        finally:
            connection.close()
        try:
            body = json.loads(raw)
        except ValueError:
            body = raw.decode("latin-1")
        return Reply(response.status, response.getheaders(), body)

    def click(self, headers: Headers = ()) -> tuple[int, Reply]:
        """One click at the gateway, and its number."""
        number = self._next_click
        self._next_click += 1
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

    def spans(self, expected: int) -> list[Span]:
        """All spans so far, once that many have come (or the time is over) and no more do."""
        self.collector.wait_for(lambda spans: len(spans) >= expected, _FLUSH_SECONDS)
        self.collector.wait_quiet(_QUIET_SECONDS, _FLUSH_SECONDS)
        return self.collector.spans()


def _control_plane_ready() -> bool:
    connection = http.client.HTTPConnection(cluster.NODE, 8080, timeout=1)
    try:
        connection.request("GET", "/ready")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()
