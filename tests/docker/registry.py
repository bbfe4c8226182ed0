"""The registry of images that the tests run: Debian's docker-registry, under the name of
the examples in the docs."""

from pathlib import Path
from typing import Any

REGISTRY = "registry.example.com"


def settings(storage: Path, address: str, certificate: Path, key: Path) -> dict[str, Any]:
    """What goes into its configuration file. ``address`` is host and port."""
    return {
        "version": "0.1",
        "log": {"level": "warn"},
        "storage": {"filesystem": {"rootdirectory": str(storage)}},
        "http": {"addr": address, "tls": {"certificate": str(certificate), "key": str(key)}},
    }
