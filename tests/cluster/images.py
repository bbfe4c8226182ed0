"""Images under the names that Istio's manifests and the examples use, made of what this
machine has: no registry of images is within reach.

They hold the real programs: Istio's own as the Makefile builds them, the Envoy and the
Python of the tests, and Jaeger as the tests build it.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.components import PAUSE
from cluster.settings import HUB, ISTIO_TAG, OLDER_TAG, binary, packages
from docker.standins import ACCOUNTS, Image, python_image
from istio.tools import istio
from mesh import envoy
from mesh.backends import build_jaeger

PYTHON = "docker.io/library/python:3.12-slim"
JAEGER = "docker.io/jaegertracing/jaeger:2.17.0"
_PROXY_USER = "1337:1337"
_MACHINE_IPTABLES = Path("/usr/sbin/xtables-nft-multi")
_IPTABLES_EXTENSIONS = Path("/usr/lib/x86_64-linux-gnu/xtables")


@dataclass
class Tagged:
    """An image with its name, and how it starts. Several may share their files."""

    name: str
    image: Image
    start: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    user: str = ""
    folder: str = "/"
    command: Sequence[str] = ()

    def config(self, layer: str) -> bytes:
        environment = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin", **self.environment}
        config: dict[str, Any] = {
            "Entrypoint": list(self.start),
            "Cmd": list(self.command),
            "Env": [f"{name}={value}" for name, value in environment.items()],
            "User": self.user,
            "WorkingDir": self.folder,
        }
        root = {"type": "layers", "diff_ids": [f"sha256:{layer}"]}
        described = {"architecture": "amd64", "os": "linux", "config": config, "rootfs": root}
        return json.dumps(described).encode()


def write(images: Sequence[Tagged], archive: Path) -> None:
    """As ``docker save`` does it. The images share one layer."""
    layer = archive.with_suffix(".layer")
    with tarfile.open(layer, "w") as files:
        images[0].image.write(files)
    with layer.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    manifest = []
    with tarfile.open(archive, "w") as saved:
        saved.add(layer, "layer.tar")
        for tagged in images:
            config = tagged.config(digest)
            name = f"{hashlib.sha256(config).hexdigest()}.json"
            _add(saved, name, config)
            manifest.append({"Config": name, "RepoTags": [tagged.name], "Layers": ["layer.tar"]})
        _add(saved, "manifest.json", json.dumps(manifest).encode())
    layer.unlink()


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def _shell(image: Image) -> None:
    """What one looks around with."""
    image.files["bin/busybox"] = packages() / "bin/busybox"
    image.links |= {f"bin/{name}": "busybox" for name in ("sh", "cat", "ls", "ip", "wget", "kill")}


def _accounts() -> dict[str, str | Path]:
    files: dict[str, str | Path] = dict(ACCOUNTS)
    files["etc/passwd"] = f"{ACCOUNTS['etc/passwd']}istio-proxy:x:1337:1337::/:/bin/sh\n"
    files["etc/group"] = f"{ACCOUNTS['etc/group']}istio-proxy:x:1337:\n"
    return files


def pause() -> list[Tagged]:
    image = Image([], _accounts())
    image.files["bin/busybox"] = packages() / "bin/busybox"
    return [Tagged(PAUSE, image, ["/bin/busybox", "sleep", "1000000000"])]


def pilot() -> list[Tagged]:
    image = Image([], _accounts())
    found = []
    for tag, name in ((ISTIO_TAG, "pilot-discovery"), (OLDER_TAG, "pilot-discovery-1.30")):
        image.program(f"usr/local/bin/{name}", binary(name))
        start = [f"/usr/local/bin/{name}"]
        found.append(Tagged(f"{HUB}/pilot:{tag}", image, start, user=_PROXY_USER))
    return found


def proxy(authority: Path, version: str, tag: str) -> list[Tagged]:
    """Sidecar and gateway, with the public build of Envoy."""
    image = Image([], _accounts())
    _shell(image)
    image.program("usr/local/bin/pilot-agent", istio(version).binary("pilot-agent"))
    image.program("usr/local/bin/envoy", envoy.binary())
    image.program("usr/sbin/xtables-nft-multi", _MACHINE_IPTABLES)
    for family in ("iptables", "ip6tables"):
        for end in ("", "-save", "-restore"):
            image.links[f"usr/sbin/{family}{end}"] = "xtables-nft-multi"
    for extension in _IPTABLES_EXTENSIONS.glob("*.so"):
        image.files[str(extension).lstrip("/")] = extension.resolve()
    template = "var/lib/istio/envoy/envoy_bootstrap_tmpl.json"
    image.files[template] = istio(version).bootstrap_template
    image.files["etc/ssl/certs/ca-certificates.crt"] = authority
    start = ["/usr/local/bin/pilot-agent"]
    return [Tagged(f"{HUB}/proxyv2:{tag}", image, start, user=_PROXY_USER)]


def python() -> list[Tagged]:
    return [Tagged(PYTHON, python_image(), [], command=["python3"])]


_JAEGER_START = """\
#!/bin/sh
# As the addon's configuration has it, for which this Jaeger has flags.
exec /go/bin/jaeger --query.base-path=/jaeger --admin.http.host-port=:13133 \\
  --collector.zipkin.host-port=:9411 --collector.otlp.enabled=true
"""


def jaeger() -> list[Tagged]:
    image = Image([], _accounts())
    _shell(image)
    image.program("go/bin/jaeger", build_jaeger())
    image.files["go/bin/start"] = _JAEGER_START
    return [Tagged(JAEGER, image, ["/bin/sh", "/go/bin/start"])]
