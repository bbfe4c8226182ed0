"""What `envoyfilter/` ships, with the image, its digest and the version filled in."""

import json
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

# Folders are kustomizations. One file of each is what `kubectl apply -f` takes.
FORMS = (
    "sidecars",
    "sidecars-image",
    "workload",
    "mesh",
    "wasmplugin",
    "trafficextension",
    "no-client-spans",
    "gateway-boundary.yaml",
    "gateway-check.yaml",
    "gateway-spans.yaml",
)
# For `kubectl patch --patch-file`.
PATCHES = ("mount.yaml", "mount-gateway.yaml", "mount-image.yaml")
# For a trial in a checkout.
_LEFT_OUT = ("Dockerfile", "local")
_EXAMPLE = "registry.example.com/b3relay:"


class ManifestError(Exception):
    """A manifest is not as it was expected to be."""


class Filled:
    """The files of `envoyfilter/` for one image.

    ``image`` is repository and tag, ``digest`` 64 hexadecimal digits.
    """

    def __init__(self, shipped: Path, image: str, digest: str) -> None:
        self._files = {
            str(path.relative_to(shipped)): path.read_text()
            for path in sorted(shipped.rglob("*"))
            if path.is_file() and path.relative_to(shipped).parts[0] not in _LEFT_OUT
        }
        tag = image.rpartition(":")[2]
        example = f"{_EXAMPLE}{tag}"
        for name, old, new in (
            ("image/settings.yaml", "sha256: nil", f"sha256: {digest}"),
            ("wasmplugin/wasmplugin.yaml", "# sha256: ...", f"sha256: {digest}"),
            ("trafficextension/trafficextension.yaml", "# sha256: ...", f"sha256: {digest}"),
            ("mount-image.yaml", example, f"{example}@sha256:{digest}"),
        ):
            self._replace(name, old, new)
            self._replace(name, example, image)

    def _replace(self, name: str, old: str, new: str) -> None:
        if (found := self.text(name).count(old)) != 1:
            raise ManifestError(f"envoyfilter/{name}: `{old}` is there {found} times, not once")
        self._files[name] = self._files[name].replace(old, new)

    def text(self, name: str) -> str:
        """One file; its path begins in `envoyfilter/`."""
        if name not in self._files:
            raise ManifestError(f"no envoyfilter/{name}")
        return self._files[name]

    def files(self) -> dict[str, bytes]:
        """All of them, in their folder, for kustomizations of one's own beside it."""
        return {f"envoyfilter/{name}": text.encode() for name, text in self._files.items()}

    def install(self, form: str, labels: Mapping[str, str], kustomize: Path) -> str:
        """One form as kubectl builds it, each object with the labels."""
        with tempfile.TemporaryDirectory() as directory:
            work = Path(directory)
            for name, content in self.files().items():
                path = work / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            overlay = {
                "apiVersion": "kustomize.config.k8s.io/v1beta1",
                "kind": "Kustomization",
                "resources": [f"envoyfilter/{form}"],
                "labels": [{"pairs": dict(labels)}],
            }
            (work / "kustomization.yaml").write_text(json.dumps(overlay))
            done = subprocess.run([kustomize, "build", work], capture_output=True, text=True)
        if done.returncode != 0:
            raise ManifestError(f"kustomize build {form}: {done.stderr.strip()}")
        return self._head(form) + done.stdout

    def _head(self, form: str) -> str:
        """The comment that the source begins with, which kustomize takes away."""
        name = form if form in self._files else f"{form}/kustomization.yaml"
        lines = []
        for line in self.text(name).splitlines(keepends=True):
            if not line.startswith("#"):
                break
            lines.append(line)
        kustomized = f"apply -k envoyfilter/{form}"
        return "".join(lines).replace(kustomized, f"apply -f install-{Path(form).stem}.yaml")
