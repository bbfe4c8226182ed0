"""Pods without Kubernetes: a network namespace each, with Istio's iptables rules,
pilot-agent, Envoy and the application in it.

Only for a world of its own (world.py). Istio's paths are those of its image; a pod's
mounts make them the pod's.
"""

import ctypes
import http.client
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from istio import cluster
from istio.cluster import Pod
from istio.tools import Istio
from mesh import envoy
from mesh.procs import MeshError, Process, Processes

_BRIDGE = "b3relay"
_PROXY_UID = 1337
_ADMIN_PORT = 15000
_READY_PORT = 15021
# Where the agent has Envoy's metrics for Prometheus, and its own.
STATS_PORT = 15020
_CLONE_NEWNET = 0x40000000


def _run(*words: str | Path) -> None:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    if done.returncode != 0:
        raise MeshError(f"{shlex.join(map(str, words))}: {done.stdout}{done.stderr}")


def connect(namespace: str, host: str, port: int, timeout: float) -> socket.socket:
    """A connection made inside a network namespace, for use outside."""
    made: list[socket.socket] = []
    failed: list[OSError] = []

    def inside() -> None:
        # A thread can be in another namespace than its process; this one ends there.
        libc = ctypes.CDLL(None, use_errno=True)
        with open(f"/run/netns/{namespace}") as file:
            if libc.setns(file.fileno(), _CLONE_NEWNET) != 0:
                failed.append(OSError(ctypes.get_errno(), f"setns {namespace}"))
                return
        try:
            made.append(socket.create_connection((host, port), timeout))
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return made[0]


class Node:
    """The network that the pods share; its first address is the machine's."""

    def __enter__(self) -> "Node":
        _run("ip", "link", "add", _BRIDGE, "type", "bridge")
        _run("ip", "addr", "add", f"{cluster.NODE}/{cluster.PREFIX}", "dev", _BRIDGE)
        _run("ip", "link", "set", _BRIDGE, "up")
        return self

    def __exit__(self, *_: object) -> None:
        _run("ip", "link", "del", _BRIDGE)


class RunningPod:
    """One pod."""

    def __init__(
        self,
        processes: Processes,
        pod: Pod,
        istio: Istio,
        hosts: Mapping[str, str],
        certificates: Path | None = None,
    ) -> None:
        self.pod = pod
        self.name = pod.name
        self._processes = processes
        self._istio = istio
        self._directory = processes.directory / f"pod-{pod.name}"
        # What the pod has mounted as /etc/b3relay.
        self.volume = self._directory / "volume"
        self.agent: Process
        self.app: Process | None = None

        self.volume.mkdir(parents=True)
        for place in ("etc/istio/proxy", "etc/istio/pod", "var/lib/istio/envoy", "scratch"):
            (self._directory / place).mkdir(parents=True)
        template = self._directory / "var/lib/istio/envoy/envoy_bootstrap_tmpl.json"
        shutil.copy(istio.bootstrap_template, template)
        labels = "".join(f'{name}="{value}"\n' for name, value in pod.labels)
        (self._directory / "etc/istio/pod/labels").write_text(labels)
        (self._directory / "etc/istio/pod/annotations").touch()
        own = "".join(f"{ip} {name}\n" for name, ip in hosts.items())
        (self._directory / "hosts").write_text("127.0.0.1 localhost\n" + own)
        if certificates:
            shutil.copytree(certificates, self._directory / "etc/certs")
        # Its own copies: the proxy's user may not read where the tools are.
        for program in (istio.binary("pilot-agent"), envoy.binary()):
            copied = processes.directory / "bin" / program.name
            copied.parent.mkdir(exist_ok=True)
            if not copied.exists():
                shutil.copy(program, copied)
        subprocess.run(["chown", "-R", f"{_PROXY_UID}:{_PROXY_UID}", self._directory], check=True)
        self._network()

    def _network(self) -> None:
        name, inside = self.name, ("ip", "-n", self.name)
        host_end = f"v-{name}"[:15]
        _run("ip", "netns", "add", name)
        _run("ip", "link", "add", host_end, "type", "veth", "peer", "name", "eth0", "netns", name)
        _run("ip", "link", "set", host_end, "master", _BRIDGE, "up")
        _run(*inside, "addr", "add", f"{self.pod.ip}/{cluster.PREFIX}", "dev", "eth0")
        _run(*inside, "link", "set", "eth0", "up")
        _run(*inside, "link", "set", "lo", "up")
        # Without it there is no way to the virtual address of a service.
        _run(*inside, "route", "add", "default", "via", cluster.NODE)
        if not self.pod.gateway:
            # What the istio-init container does.
            rules = (
                "-p 15001 -z 15006 -u 1337 -g 1337 -m REDIRECT -i * -x  -b * -d 15090,15021,15020"
            )
            agent = self._processes.directory / "bin" / "pilot-agent"
            words: list[str | Path] = [
                agent,
                "istio-iptables",
                *rules.split(" "),
                "--log_output_level=default:warn",
            ]
            _run("ip", "netns", "exec", name, *words)

    def start_app(self, forward: str, **options: Any) -> None:
        """The service, under the name of the pod."""
        command: list[str | Path] = [sys.executable, "-P", "-m", "mesh.apps", "--name", self.name]
        command += ["--listen", "0.0.0.0", "--port", str(cluster.PORT)]
        command += ["--callee-port", str(cluster.PORT), "--forward", forward]
        for name, value in options.items():
            command += ["--" + name.replace("_", "-"), str(value)]
        python_path = {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}
        self.app = self._inside(f"app-{self.name}", command, python_path)

    def start_forwarder(self, port: int, host: str, to: int) -> None:
        """An application that hands connections to one of its ports on to another host."""
        command: list[str | Path] = [sys.executable, "-P", "-m", "istio.forward"]
        command += [str(port), host, str(to)]
        python_path = {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}
        self._inside(f"app-{self.name}", command, python_path)

    def start_agent(self, environment: Mapping[str, str], drain_seconds: int) -> None:
        """The istio-proxy container. Envoy closes the connections of a listener that was
        replaced after that many seconds, those in use too."""
        log = self._processes.directory / f"agent-{self.name}.log"
        log.touch()
        # Envoy opens it again, through /dev/stdout.
        os.chown(log, _PROXY_UID, _PROXY_UID)
        variables = {
            "POD_NAME": f"{self.name}-1",
            "POD_NAMESPACE": self.pod.namespace,
            "INSTANCE_IP": self.pod.ip,
            "SERVICE_ACCOUNT": self.pod.service_account,
            "TRUST_DOMAIN": "cluster.local",
            "ISTIO_META_CLUSTER_ID": "Kubernetes",
            "ISTIO_META_WORKLOAD_NAME": self.name,
            "ISTIO_META_MESH_ID": "cluster.local",
            "ISTIO_METAJSON_LABELS": json.dumps(dict(self.pod.labels)),
            "ISTIO_META_INTERCEPTION_MODE": "REDIRECT",
            "JWT_POLICY": "none",
            "FILE_MOUNTED_CERTS": "true",
            "PROXY_CONFIG": json.dumps(
                {
                    "discoveryAddress": f"{cluster.NODE}:15010",
                    "controlPlaneAuthPolicy": "NONE",
                    "binaryPath": str(self._processes.directory / "bin" / "envoy"),
                    "concurrency": 1,
                    "terminationDrainDuration": "0.1s",
                    "drainDuration": f"{drain_seconds}s",
                    # Istio leaves out most statistics.
                    "proxyStatsMatcher": {"inclusionSuffixes": ["ssl.handshake"]},
                }
            ),
            **environment,
        }
        kind = "router" if self.pod.gateway else "sidecar"
        user = f"--reuid={_PROXY_UID} --regid={_PROXY_UID} --clear-groups"
        command = ["setpriv", *user.split(), self._processes.directory / "bin" / "pilot-agent"]
        command += ["proxy", kind, "--domain", f"{self.pod.namespace}.svc.cluster.local"]
        command += ["--proxyLogLevel=warning", "--proxyComponentLogLevel=wasm:info,misc:error"]
        command += ["--log_output_level=default:info"]
        self.agent = self._inside(f"agent-{self.name}", command, variables)

    def annotate(self, annotations: Mapping[str, str]) -> None:
        """The annotations of the pod, which the agent reads when it starts."""
        path = self._directory / "etc" / "istio" / "pod" / "annotations"
        lines = (f"{name}={json.dumps(value)}\n" for name, value in annotations.items())
        path.write_text("".join(lines))

    def stop_agent(self) -> None:
        self._processes.stop(self.agent)

    def _inside(
        self, name: str, command: list[Any], environment: Mapping[str, str] | None = None
    ) -> Process:
        """A process in the pod. `ip netns exec` gives it mounts of its own."""
        at = shlex.quote(str(self._directory))
        mounts = f"""
            set -e
            mount --bind {at}/hosts /etc/hosts
            mount -t tmpfs tmpfs {at}/scratch
            mkdir {at}/scratch/upper {at}/scratch/work
            layers=upperdir={at}/scratch/upper,workdir={at}/scratch/work
            mount -t overlay overlay -o lowerdir=/etc,$layers /etc
            mkdir -p /etc/b3relay
            mount --bind {at}/volume /etc/b3relay
            mount --bind {at}/hosts /etc/hosts
            mount -t tmpfs tmpfs /var/lib
            mkdir -p /var/lib/istio/data
            chown -R {_PROXY_UID}:{_PROXY_UID} /var/lib/istio
            cd {at}
            exec "$@"
        """
        words = ["ip", "netns", "exec", self.name, "sh", "-c", mounts, "sh", *command]
        return self._processes.start(name, words, environment)

    def get(
        self, port: int, path: str, method: str = "GET", timeout: float = 20.0
    ) -> tuple[int, str]:
        """A request inside the pod, to one of its own ports."""
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
        connection.sock = connect(self.name, "127.0.0.1", port, timeout)
        try:
            connection.request(method, path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def admin(self, path: str, method: str = "GET") -> str:
        """What Envoy's administration says."""
        status, text = self.get(_ADMIN_PORT, path, method)
        if status != 200:
            raise MeshError(f"{self.name}: {path}: {status} {text}")
        return text

    def stat(self, name: str) -> int:
        """The sum of the counters and gauges whose names contain that."""
        told = json.loads(self.admin("/stats?format=json"))
        found = [one["value"] for one in told["stats"] if name in one.get("name", "")]
        return sum(found)

    def is_draining(self) -> bool:
        """Whether Envoy still has connections to listeners that were replaced."""
        names = ("total_filter_chains_draining", "total_listeners_draining")
        return any(self.stat(f"listener_manager.{name}") > 0 for name in names)

    def app_ready(self) -> bool:
        return self._answers(cluster.PORT, "/ready")

    def agent_ready(self) -> bool:
        return self._answers(_READY_PORT, "/healthz/ready")

    def _answers(self, port: int, path: str) -> bool:
        try:
            return self.get(port, path, timeout=1.0)[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    def remove(self) -> None:
        """After its processes have ended."""
        _run("ip", "netns", "del", self.name)
