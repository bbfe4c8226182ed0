"""Names and addresses of the cluster, and where its programs are."""

import os
from pathlib import Path

from docker import debian
from mesh.procs import MeshError

NODE = "node"
# The node, the control plane and the DNS server. Pods have a network of their own.
ADDRESS = "10.77.0.1"
PODS = "10.88.0.0/16"
SERVICES = "10.96.0.0/16"
DOMAIN = "cluster.local"
API = f"https://{ADDRESS}:6443"

# The version of the images. The programs are those of tests/istio.
ISTIO_TAG = "1.31.0"
OLDER_TAG = "1.30.8"
HUB = "docker.io/istio"

_PACKAGES = ("runc", "containernetworking-plugins", "busybox-static", "ruby", "ruby-webrick")


def packages() -> Path:
    """Debian's packages that the cluster needs, unpacked."""
    return debian.unpack(_PACKAGES, (), "runc, CNI's plugins and Ruby (30 MB)")


def programs() -> Path:
    """The folder with the programs, which the Makefile builds."""
    given = os.environ.get("B3RELAY_CLUSTER")
    if given is None:
        raise MeshError("B3RELAY_CLUSTER is not set: run the tests with `make test-cluster`")
    return Path(given) / "bin"


def older_manifests() -> Path:
    """What an istioctl of the older version would install."""
    return programs().parent / "manifests-1.30"


def binary(name: str) -> Path:
    path = programs() / name
    if not path.is_file():
        raise MeshError(f"no {path}: run `make cluster-tools`")
    return path
