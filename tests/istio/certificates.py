"""Certificates of workloads, made by openssl, as Istio's authority would sign them."""

import subprocess
from pathlib import Path

from istio.cluster import Pod

_NEW_KEY = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"


def issue(directory: Path, pod: Pod) -> Path:
    """A folder for a pod's /etc/certs; all pods of a mesh share the authority."""
    authority = directory / "authority"
    root, root_key = authority / "root-cert.pem", authority / "root-key.pem"
    if not authority.exists():
        authority.mkdir()
        _openssl(
            f"req -x509 {_NEW_KEY} -days 2 -subj /O=cluster.local -keyout {root_key} -out {root}"
        )
    own = directory / f"certificates-{pod.name}"
    own.mkdir()
    identity = f"spiffe://cluster.local/ns/{pod.namespace}/sa/{pod.service_account}"
    (own / "extensions").write_text(
        f"subjectAltName=critical,URI:{identity}\n"
        "extendedKeyUsage=serverAuth,clientAuth\nkeyUsage=critical,digitalSignature\n"
    )
    _openssl(f"req {_NEW_KEY} -subj /O=workload -keyout {own}/key.pem -out {own}/request.pem")
    _openssl(
        f"x509 -req -in {own}/request.pem -days 2 -CA {root} -CAkey {root_key} -CAcreateserial"
        f" -extfile {own}/extensions -out {own}/leaf.pem"
    )
    (own / "cert-chain.pem").write_text((own / "leaf.pem").read_text() + root.read_text())
    (own / "root-cert.pem").write_text(root.read_text())
    return own


def _openssl(words: str) -> None:
    subprocess.run(["openssl", *words.split()], check=True, capture_output=True)
