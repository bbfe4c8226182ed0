"""Istio's own programs, which the Makefile builds, and Kubernetes' kubectl."""

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mesh.procs import MeshError

# The public Envoy lacks the extensions of Istio's own build, which these leave out;
# and there is no cluster, and no certificate authority.
CONTROL_PLANE = {
    "PILOT_ENABLE_METADATA_EXCHANGE": "false",
    "PILOT_ENABLE_ALPN_FILTER": "false",
    "PILOT_ENABLE_AMBIENT": "false",
    "ENABLE_CA_SERVER": "false",
    "PILOT_CERT_PROVIDER": "none",
}

# Those whose control plane, generator and agent are built. istioctl is of the first.
VERSIONS = ("1.31", "1.30")


@dataclass(frozen=True)
class Done:
    """A program that has run."""

    exit_code: int
    out: str
    errors: str

    @property
    def text(self) -> str:
        return self.out + self.errors


@dataclass(frozen=True)
class Istio:
    """What was built of one version."""

    version: str
    directory: Path

    def binary(self, name: str) -> Path:
        path = self.directory / "bin" / name
        if not path.is_file():
            raise MeshError(f"no {path}: run `make istio-tools`")
        return path

    @property
    def bootstrap_template(self) -> Path:
        """What pilot-agent makes Envoy's bootstrap from."""
        return self.directory / "envoy_bootstrap.json"

    @property
    def samples(self) -> Path:
        """The examples of the release."""
        return self.directory / "samples"

    def run(
        self,
        name: str,
        *arguments: str | Path,
        stdin: str = "",
        env: Mapping[str, str] | None = None,
    ) -> Done:
        """Run one of the programs, whatever comes of it."""
        done = subprocess.run(
            [self.binary(name), *map(str, arguments)],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, **(env or {})},
        )
        return Done(done.returncode, done.stdout, done.stderr)


def istio(version: str = VERSIONS[0]) -> Istio:
    """What the Makefile says it has built."""
    name = "B3RELAY_ISTIO_" + version.replace(".", "_")
    directory = os.environ.get(name)
    if directory is None:
        raise MeshError(f"{name} is not set: run the tests with `make test-istio`")
    return Istio(version, Path(directory))
