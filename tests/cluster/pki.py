"""The certificates of a cluster of one node, and the files by which kubectl and the
components find its API."""

from pathlib import Path

import trustme
import yaml

from cluster.settings import ADDRESS, API, DOMAIN, NODE
from docker.registry import REGISTRY

# By the name of its files: the user, and the group, that the API takes it for.
_USERS = {
    "admin": ("admin", "system:masters"),
    "controller-manager": ("system:kube-controller-manager", "none"),
    "coredns": ("coredns", "system:masters"),
    "kubelet": (f"system:node:{NODE}", "system:nodes"),
    "kubelet-client": ("apiserver", "system:masters"),
    "proxy": ("system:kube-proxy", "none"),
    "scheduler": ("system:kube-scheduler", "none"),
    "front-proxy": ("front-proxy", "none"),
}


class Authority:
    """One authority for all; ``directory`` gets NAME.crt, NAME.key and NAME.conf."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.directory = directory
        self._authority = trustme.CA()
        self.certificate = directory / "ca.crt"
        self._authority.cert_pem.write_to_path(str(self.certificate))
        for name, (user, group) in _USERS.items():
            # Go refuses a certificate without a name.
            hosts = (NODE, ADDRESS, "127.0.0.1") if name == "kubelet" else (name,)
            self._issue(name, hosts, user, group)
            self._write_access(name)
        services = ("kubernetes", "kubernetes.default", "kubernetes.default.svc")
        kubernetes = (*services, f"kubernetes.default.svc.{DOMAIN}", "localhost")
        self._issue("apiserver", (*kubernetes, ADDRESS, "127.0.0.1", "10.96.0.1"))
        self._issue("registry", (REGISTRY,))
        # The key that signs the tokens of service accounts.
        self._issue("accounts", ("accounts",))

    def path(self, name: str) -> Path:
        return self.directory / name

    def _issue(
        self,
        name: str,
        hosts: tuple[str, ...],
        user: str | None = None,
        group: str | None = None,
    ) -> None:
        made = self._authority.issue_cert(*hosts, common_name=user, organization_name=group)
        made.private_key_pem.write_to_path(str(self.path(f"{name}.key")))
        self.path(f"{name}.crt").write_bytes(b"".join(pem.bytes() for pem in made.cert_chain_pems))

    def _write_access(self, name: str) -> None:
        cluster = {"server": API, "certificate-authority": str(self.certificate)}
        user = {f"client-{kind}": str(self.path(f"{name}.{end}")) for kind, end in
                (("certificate", "crt"), ("key", "key"))}
        access = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": name, "user": user}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": name}}],
            "current-context": "test",
        }
        self.path(f"{name}.conf").write_text(yaml.safe_dump(access))
