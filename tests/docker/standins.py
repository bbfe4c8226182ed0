"""Images under the names that the compose file uses, made of what this machine has.

The real ones are in a registry, out of reach of a test that is to run without one.
These hold the real programs: the Envoy of the tests, the Python of the tests, and
Jaeger as the tests build it; and of the images' ways what the trial depends on, such
as the entry point of Envoy's, which gives up root.
"""

import io
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from shutil import which

from mesh import envoy
from mesh.backends import build_jaeger
from mesh.procs import MeshError

ENVOY = "envoyproxy/envoy:v1.40-latest"
PYTHON = "python:3.11-slim"
JAEGER = "jaegertracing/all-in-one:1.76.0"

_ENVOY_ENTRY_POINT = """\
#!/bin/sh
set -e
chown envoy:envoy /dev/stdout /dev/stderr
[ "$(id -u)" != 0 ] || exec /usr/bin/setpriv --reuid=envoy --regid=envoy --init-groups "$@"
exec "$@"
"""
ACCOUNTS = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nenvoy:x:101:101::/nonexistent:/bin/sh\n",
    "etc/group": "root:x:0:\nenvoy:x:101:\n",
    "etc/nsswitch.conf": "hosts: files dns\n",
}


@dataclass
class Image:
    """The files of an image, and how it starts."""

    changes: Sequence[str]
    # By path in the image: the text of a file, or a file to copy.
    files: dict[str, str | Path] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)

    def program(self, at: str, path: Path) -> None:
        """A program with the libraries that it is linked to."""
        self.files[at] = path
        for library in _libraries(path):
            self.files[os.path.normpath(library).lstrip("/")] = library

    def write(self, archive: tarfile.TarFile) -> None:
        """Its files, as its one layer."""
        archive.addfile(_entry("tmp", tarfile.DIRTYPE, 0o1777))
        for at, content in self.files.items():
            data = content.encode() if isinstance(content, str) else content.read_bytes()
            entry = _entry(at, tarfile.REGTYPE, 0o755)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
        for at, target in self.links.items():
            entry = _entry(at, tarfile.SYMTYPE, 0o777)
            entry.linkname = target
            archive.addfile(entry)

    def load(self, name: str) -> None:
        """Hand it to the Docker engine."""
        command = ["docker", "import"]
        for change in self.changes:
            command += ["--change", change]
        process = subprocess.Popen(
            [*command, "-", name], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
        )
        assert process.stdin is not None
        with process.stdin, tarfile.open(fileobj=process.stdin, mode="w|") as archive:
            self.write(archive)
        if process.wait() != 0:
            raise MeshError(f"docker import of {name} failed")


def _entry(at: str, kind: bytes, mode: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(at)
    entry.type, entry.mode = kind, mode
    return entry


def _libraries(path: Path) -> Iterator[Path]:
    told = subprocess.run(["ldd", path], capture_output=True, text=True).stdout
    return map(Path, re.findall(r"(/\S+) \(0x", told))


def program(name: str) -> Path:
    found = which(name)
    if found is None:
        raise MeshError(f"{name} not found")
    return Path(found)


def envoy_image() -> Image:
    image = Image(
        [
            'ENTRYPOINT ["/docker-entrypoint.sh"]',
            'CMD ["envoy", "-c", "/etc/envoy/envoy.yaml"]',
            "ENV PATH=/usr/local/bin:/usr/bin:/bin",
        ],
        {**ACCOUNTS, "docker-entrypoint.sh": _ENVOY_ENTRY_POINT},
        {f"bin/{name}": "busybox" for name in ("sh", "chown", "grep", "id")},
    )
    image.program("usr/local/bin/envoy", envoy.binary())
    image.program("bin/busybox", program("busybox"))
    image.program("bin/bash", program("bash"))
    image.program("usr/bin/setpriv", program("setpriv"))
    return image


def python_image() -> Image:
    image = Image(
        ['CMD ["python3"]', "ENV PATH=/usr/local/bin:/usr/bin:/bin"],
        dict(ACCOUNTS),
        {"bin/sh": "busybox", "usr/local/bin/python": "python3"},
    )
    image.program("bin/busybox", program("busybox"))
    image.program("usr/local/bin/python3", Path(sys.executable).resolve())
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    left_out = {"site-packages", "dist-packages", "test", "__pycache__", "idlelib", "ensurepip"}
    for place in {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}:
        for path in Path(place).rglob("*"):
            inside = path.relative_to(place)
            if path.is_file() and not left_out.intersection(inside.parts):
                at = f"usr/local/lib/{version}/{inside}"
                if path.suffix == ".so":
                    image.program(at, path)
                else:
                    image.files[at] = path
    return image


def jaeger_image() -> Image:
    image = Image(['ENTRYPOINT ["/go/bin/all-in-one-linux"]'], dict(ACCOUNTS))
    image.program("go/bin/all-in-one-linux", build_jaeger())
    return image


IMAGES = {ENVOY: envoy_image, PYTHON: python_image, JAEGER: jaeger_image}


def load() -> None:
    """Make and load them all."""
    for name, make in IMAGES.items():
        make().load(name)
