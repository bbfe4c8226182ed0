"""The module as the two kinds of image that Istio takes, in one OCI image layout.

Tag ``VERSION`` is an image whose one layer has the module as ``/plugin.wasm``: for
WasmPlugin, the form `sidecars-image`, and image volumes. Tag ``VERSION-artifact`` is an
OCI artifact, of the module and of what kind of module it is: for Istio alone.
"""

import gzip
import hashlib
import io
import json
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

_OCI = "application/vnd.oci.image"
_WASM = "application/vnd.module.wasm"
_TITLE = "b3relay"
_DESCRIPTION = "Keeps B3 traces whole: a proxy-wasm filter for Istio sidecars"
# What Istio reads in an artifact besides the module.
_KIND = {"type": "envoy_proxy", "abiVersions": ["v0-2-1"], "config": {"rootIds": ["b3relay"]}}


class ImageError(Exception):
    """oras did not do what it was asked to."""


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def tar(files: Mapping[str, bytes], date: int) -> bytes:
    """A tar archive of files by path, in order of the path, owned by 0. Scripts may be run."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.USTAR_FORMAT) as writer:
        for name in sorted(files):
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(files[name]), date
            info.mode = 0o755 if name.endswith(".sh") else 0o644
            writer.addfile(info, io.BytesIO(files[name]))
    return archive.getvalue()


def layout(module: bytes, version: str, date: int, oras: Path) -> tuple[bytes, str]:
    """An OCI image layout as a tar archive, and the digest of the image's manifest: 64
    hexadecimal digits, without `sha256:`."""
    created = datetime.fromtimestamp(date, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    about = {
        "org.opencontainers.image.created": created,
        "org.opencontainers.image.description": _DESCRIPTION,
        "org.opencontainers.image.licenses": "Apache-2.0",
        "org.opencontainers.image.title": _TITLE,
        "org.opencontainers.image.version": version,
    }
    layer = tar({"plugin.wasm": module}, date)
    config = {
        "architecture": "amd64",
        "config": {"Labels": about},
        "created": created,
        "history": [{"created": created, "created_by": "make release"}],
        "os": "linux",
        "rootfs": {"diff_ids": [f"sha256:{sha256(layer)}"], "type": "layers"},
    }
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        (work / "layer.tar.gz").write_bytes(gzip.compress(layer, 9, mtime=0))
        (work / "config.json").write_text(_json(config))
        (work / "module.json").write_text(_json(_KIND))
        (work / "b3relay.wasm").write_bytes(module)
        image = _push(
            oras,
            work,
            version,
            about,
            f"config.json:{_OCI}.config.v1+json",
            f"layer.tar.gz:{_OCI}.layer.v1.tar+gzip",
        )
        _push(
            oras,
            work,
            f"{version}-artifact",
            about,
            f"module.json:{_WASM}.config.v1+json",
            f"b3relay.wasm:{_WASM}.content.layer.v1+wasm",
            # Istio takes two layers, and looks at one of them.
            f"module.json:{_WASM}.config.v1+json",
        )
        return tar(_files(work / "layout"), date), image


def _push(
    oras: Path, work: Path, tag: str, about: Mapping[str, str], config: str, *layers: str
) -> str:
    annotations = [
        part for name in sorted(about) for part in ("--annotation", f"{name}={about[name]}")
    ]
    done = subprocess.run(
        [
            *(oras, "push", "--no-tty", "--oci-layout", "--concurrency", "1"),
            *("--config", config, "--export-manifest", f"{tag}.json"),
            *annotations,
            f"layout:{tag}",
            *layers,
        ],
        cwd=work,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise ImageError(f"oras push: {done.stderr.strip()}")
    return sha256((work / f"{tag}.json").read_bytes())


def _files(layout: Path) -> dict[str, bytes]:
    """What belongs to the layout, its index in order of the tags."""
    files = {
        str(path.relative_to(layout)): path.read_bytes()
        for path in layout.rglob("*")
        if path.is_file() and path.parts[len(layout.parts)] in ("blobs", "oci-layout", "index.json")
    }
    index = json.loads(files["index.json"])
    name = "org.opencontainers.image.ref.name"
    index["manifests"].sort(key=lambda manifest: manifest["annotations"][name])
    files["index.json"] = _json(index).encode()
    return files


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), sort_keys=True)
