"""The components of a Kubernetes of one node: their settings and their processes."""

import json
import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from cluster.pki import Authority
from cluster.settings import ADDRESS, API, DOMAIN, NODE, PODS, SERVICES, binary, packages
from docker import debian, registry
from docker.registry import REGISTRY
from mesh.procs import MeshError, Process, Processes

_ETCD = "http://127.0.0.1:2379"
CONTAINERD = "/run/containerd/containerd.sock"
PAUSE = "registry.k8s.io/pause:3.10.1"
_CGROUPS = Path("/sys/fs/cgroup")
_CONTROLLERS = (
    "cpu", "cpuacct", "cpuset", "memory", "pids", "devices", "freezer", "blkio", "systemd",
)  # fmt: skip


def cgroup_obstacle() -> str | None:
    """Why the kubelet could not run here."""
    if all((_CGROUPS / name).is_dir() for name in _CONTROLLERS):
        return None
    return "the kubelet of the tests needs the hierarchies of cgroup v1 in /sys/fs/cgroup"


def make_cgroups(name: str) -> None:
    """A group of one's own in each hierarchy; pods are below it."""
    for controller in _CONTROLLERS:
        (_CGROUPS / controller / name).mkdir()
    for file in ("cpuset.cpus", "cpuset.mems"):
        own = _CGROUPS / "cpuset" / name / file
        own.write_text((_CGROUPS / "cpuset" / file).read_text())


def remove_cgroups(name: str) -> None:
    """When nothing runs there any more. runc has made one for systemd, too."""
    for top in _CGROUPS.glob(f"*/{name}"):
        for path, _, _ in os.walk(top, topdown=False):
            Path(path).rmdir()


class Components:
    """``directory`` gets the settings and the data, ``processes`` the programs."""

    def __init__(self, directory: Path, processes: Processes, cgroup: str) -> None:
        self._directory = directory
        self._processes = processes
        self._cgroup = cgroup
        self._authority = Authority(directory / "pki")

    def _pki(self, name: str) -> Path:
        return self._authority.path(name)

    @property
    def authority(self) -> Path:
        return self._authority.certificate

    @property
    def access(self) -> Path:
        """For kubectl."""
        return self._pki("admin.conf")

    def _flags(self, **flags: object) -> list[str]:
        return [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]

    def _start(self, name: str, *arguments: str) -> Process:
        return self._processes.start(name, [binary(name), *arguments])

    def _yaml(self, name: str, content: dict[str, Any]) -> Path:
        path = self._directory / name
        path.write_text(yaml.safe_dump(content))
        return path

    def ask(self, path: str) -> bool:
        """Whether the API answers to a GET."""
        return self._kubectl("get", "--raw", path).returncode == 0

    def _kubectl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        words: list[str | Path] = [binary("kubectl"), f"--kubeconfig={self.access}", *arguments]
        return subprocess.run(words, capture_output=True, text=True)

    def _ctr(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        options = ("--address", CONTAINERD, "--namespace", "k8s.io")
        words: list[str | Path] = [binary("ctr"), *options, *arguments]
        return subprocess.run(words, capture_output=True, text=True)

    def start_control_plane(self) -> dict[Process, Callable[[], bool]]:
        """etcd, and what asks it. The processes, and how to know that each is ready."""
        etcd = self._flags(
            data_dir=self._directory / "etcd",
            listen_client_urls=_ETCD,
            advertise_client_urls=_ETCD,
            listen_peer_urls="http://127.0.0.1:2380",
            log_level="warn",
        )
        self._start("etcd", *etcd, "--unsafe-no-fsync")
        server = self._start("kube-apiserver", *self._server_flags())
        self._start(
            "kube-controller-manager",
            *self._flags(
                kubeconfig=self._pki("controller-manager.conf"),
                root_ca_file=self.authority,
                service_account_private_key_file=self._pki("accounts.key"),
                use_service_account_credentials="true",
                leader_elect="false",
                controllers="*,-nodeipam,-cloud-node-lifecycle",
            ),
        )
        scheduler = self._flags(kubeconfig=self._pki("scheduler.conf"), leader_elect="false")
        self._start("kube-scheduler", *scheduler)
        return {server: lambda: self.ask("/readyz")}

    def _server_flags(self) -> list[str]:
        return self._flags(
            etcd_servers=_ETCD,
            service_cluster_ip_range=SERVICES,
            advertise_address=ADDRESS,
            bind_address="0.0.0.0",
            secure_port=API.rpartition(":")[2],
            tls_cert_file=self._pki("apiserver.crt"),
            tls_private_key_file=self._pki("apiserver.key"),
            client_ca_file=self.authority,
            authorization_mode="Node,RBAC",
            enable_admission_plugins="NodeRestriction",
            service_account_issuer=f"https://kubernetes.default.svc.{DOMAIN}",
            service_account_key_file=self._pki("accounts.key"),
            service_account_signing_key_file=self._pki("accounts.key"),
            kubelet_client_certificate=self._pki("kubelet-client.crt"),
            kubelet_client_key=self._pki("kubelet-client.key"),
            allow_privileged="true",
            requestheader_client_ca_file=self.authority,
            requestheader_allowed_names="front-proxy",
            requestheader_username_headers="X-Remote-User",
            requestheader_group_headers="X-Remote-Group",
            requestheader_extra_headers_prefix="X-Remote-Extra-",
            proxy_client_cert_file=self._pki("front-proxy.crt"),
            proxy_client_key_file=self._pki("front-proxy.key"),
        )

    def start_containerd(self) -> dict[Process, Callable[[], bool]]:
        networks = self._directory / "networks"
        networks.mkdir()
        network = {
            "cniVersion": "0.4.0",
            "name": "pods",
            "plugins": [
                # Routed, not bridged: what goes from pod to pod passes kube-proxy's rules.
                {
                    "type": "ptp",
                    "ipMasq": False,
                    "ipam": {
                        "type": "host-local",
                        "ranges": [[{"subnet": PODS}]],
                        "routes": [{"dst": "0.0.0.0/0"}],
                        "dataDir": str(self._directory / "addresses"),
                    },
                },
                {"type": "portmap", "capabilities": {"portMappings": True}},
            ],
        }
        (networks / "10-pods.conflist").write_text(json.dumps(network))
        settings = self._directory / "containerd.toml"
        settings.write_text(
            f"""
version = 3
root = "{self._directory}/containerd"
state = "/run/containerd"
[grpc]
  address = "{CONTAINERD}"
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "{PAUSE}"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["{packages()}/usr/lib/cni"]
    conf_dir = "{networks}"
"""
        )
        process = self._start("containerd", "--config", str(settings))
        return {process: self._containerd_answers}

    def _containerd_answers(self) -> bool:
        return self._ctr("version").returncode == 0

    def load(self, archive: Path) -> None:
        """An image, as ``docker save`` writes it."""
        done = self._ctr("images", "import", archive)
        if done.returncode != 0:
            raise MeshError(f"import of {archive}: {done.stdout}{done.stderr}")

    def start_node(self) -> dict[Process, Callable[[], bool]]:
        """The kubelet, what forwards to services, and their names."""
        (self._directory / "resolv.conf").write_text(f"nameserver {ADDRESS}\n")
        kubelet = self._start(
            "kubelet",
            *self._flags(
                kubeconfig=self._pki("kubelet.conf"),
                config=self._yaml("kubelet.yaml", self._kubelet()),
                root_dir=self._directory / "kubelet",
                node_ip=ADDRESS,
                hostname_override=NODE,
            ),
        )
        proxy = {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "iptables",
            "clientConnection": {"kubeconfig": str(self._pki("proxy.conf"))},
            "hostnameOverride": NODE,
            "clusterCIDR": PODS,
            # Else it would set the machine's.
            "conntrack": {
                "maxPerCore": 0,
                "min": 0,
                "tcpEstablishedTimeout": "0s",
                "tcpCloseWaitTimeout": "0s",
            },
        }
        self._start("kube-proxy", f"--config={self._yaml('proxy.yaml', proxy)}")
        names = self._directory / "Corefile"
        names.write_text(
            f""".:53 {{
    errors
    ready :8181
    hosts {{
        {ADDRESS} {REGISTRY}
        fallthrough
    }}
    kubernetes {DOMAIN} {{
        kubeconfig {self._pki("coredns.conf")} test
    }}
}}
"""
        )
        self._start("coredns", "-conf", str(names))
        return {kubelet: self._node_is_ready}

    def _node_is_ready(self) -> bool:
        ready = '{.status.conditions[?(@.type=="Ready")].status}'
        return self._kubectl("get", "node", NODE, "-o", f"jsonpath={ready}").stdout == "True"

    def _kubelet(self) -> dict[str, Any]:
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "failCgroupV1": False,
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{self._cgroup}",
            "enforceNodeAllocatable": [],
            "failSwapOn": False,
            "oomScoreAdj": 0,
            "containerRuntimeEndpoint": f"unix://{CONTAINERD}",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(self.authority)},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": str(self._pki("kubelet.crt")),
            "tlsPrivateKeyFile": str(self._pki("kubelet.key")),
            "clusterDNS": [ADDRESS],
            "clusterDomain": DOMAIN,
            "resolvConf": str(self._directory / "resolv.conf"),
            "imageGCHighThresholdPercent": 100,
            "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%"},
            "featureGates": {"KubeletInUserNamespace": True},
        }

    def start_registry(self) -> dict[Process, Callable[[], bool]]:
        """One that answers to REGISTRY, with a certificate that all here trust."""
        certificate, key = (self._pki(f"registry.{end}") for end in ("crt", "key"))
        storage = self._directory / "registry"
        settings = registry.settings(storage, f"{ADDRESS}:443", certificate, key)
        path = self._yaml("registry.yaml", settings)
        program = debian.unpack() / "usr/bin/docker-registry"
        process = self._processes.start("registry", [program, "serve", path])
        return {process: self._registry_answers}

    def _registry_answers(self) -> bool:
        try:
            socket.create_connection((ADDRESS, 443), timeout=1).close()
        except OSError:
            return False
        return True
