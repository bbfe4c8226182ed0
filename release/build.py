"""``make release``: everything that a user of b3relay installs from, in ``dist/release``.

The same sources and the same tools give the same bytes, wherever they are built: times
are SOURCE_DATE_EPOCH (by default that of the last commit), owners are 0, and no path of
this machine gets into a file. docs/release.md says what each file is for.
"""

import argparse
import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import images
import manifests
import materials

ROOT = Path(__file__).resolve().parent.parent
# The API server takes no larger ConfigMap.
CONFIG_MAP_BYTES = 1 << 20


class ReleaseError(Exception):
    """A release cannot be made of this; the message says what to do."""


def output(*command: str | Path, cwd: Path = ROOT) -> str:
    """What a command prints; its own words if it fails."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if done.returncode != 0:
        raise ReleaseError(f"{command[0]} failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def source_date() -> int:
    """Seconds since 1970 that every file of the release is said to be of."""
    if told := os.environ.get("SOURCE_DATE_EPOCH"):
        if not told.isdigit():
            raise ReleaseError(f"SOURCE_DATE_EPOCH is {told!r}: seconds since 1970 are needed")
        return int(told)
    try:
        return int(output("git", "log", "-1", "--format=%ct"))
    except (ReleaseError, OSError) as error:
        raise ReleaseError(
            "no date for the release: set SOURCE_DATE_EPOCH, or build in a git checkout"
        ) from error


def version() -> str:
    told = json.loads(output("cargo", "metadata", "--no-deps", "--format-version=1", "--locked"))
    (package,) = (one for one in told["packages"] if one["name"] == "b3relay")
    return str(package["version"])


def config_map(module: bytes, labels: dict[str, str]) -> str:
    """The module as the ConfigMap that mount.yaml mounts."""
    encoded = base64.b64encode(module).decode()
    if len(module) > CONFIG_MAP_BYTES:
        raise ReleaseError(f"the module has {len(module)} bytes: too large for a ConfigMap")
    lines = [
        "# The module of b3relay. Too large for a plain apply:",
        "# kubectl -n NAMESPACE apply --server-side -f module.yaml",
        "apiVersion: v1",
        "kind: ConfigMap",
        "metadata:",
        "  name: b3relay",
        "  labels:",
        *(f"    {name}: {json.dumps(value)}" for name, value in sorted(labels.items())),
        "binaryData:",
        f"  plugin.wasm: {encoded}",
    ]
    return "\n".join(lines) + "\n"


def notes(of: str) -> str:
    """The part of the changelog about a version, and where the rest is."""
    changelog = (ROOT / "CHANGELOG.md").read_text()
    _, found, after = changelog.partition(f"\n## {of}")
    if not found:
        raise ReleaseError(f"CHANGELOG.md has no section `## {of}`: write it, or mend Cargo.toml")
    body = after.partition("\n")[2].partition("\n## ")[0].strip()
    return f"# b3relay {of}\n\n{body}\n\nBefore an upgrade: UPGRADE.md.\n"


def build(module: Path, repository: str, tools: Path, into: Path) -> None:
    """Write all files of the release into an empty folder."""
    date, of = source_date(), version()
    labels = {"app.kubernetes.io/name": "b3relay", "app.kubernetes.io/version": of}
    wasm = module.read_bytes()

    def write(name: str, content: str | bytes) -> None:
        (into / name).write_bytes(content.encode() if isinstance(content, str) else content)

    write("b3relay.wasm", wasm)
    layout, digest = images.layout(wasm, of, date, tools / "go" / "bin" / "oras")
    write(f"b3relay-{of}-oci.tar", layout)
    write("module.yaml", config_map(wasm, labels))
    filled = manifests.Filled(ROOT / "envoyfilter", f"{repository}:{of}", digest)
    kustomize = tools / "go" / "bin" / "kustomize"
    for form in manifests.FORMS:
        write(f"install-{Path(form).stem}.yaml", filled.install(form, labels, kustomize))
    for name in manifests.PATCHES:
        write(name, filled.text(name))
    write(f"b3relay-{of}-manifests.tar", images.tar(filled.files(), date))
    write("check.sh", filled.text("check.sh"))
    write("b3relay.cdx.json", materials.bill(ROOT, tools, date))
    write("THIRD-PARTY-LICENSES.txt", materials.licenses(ROOT, tools))
    write("LICENSE", (ROOT / "LICENSE").read_bytes())
    write("RELEASE_NOTES.md", notes(of))
    write("UPGRADE.md", (ROOT / "docs" / "upgrade.md").read_bytes())
    write("BUILD.txt", materials.built_with(ROOT, tools, date))
    sums = "".join(
        f"{images.sha256(path.read_bytes())}  {path.name}\n" for path in sorted(into.iterdir())
    )
    write("SHA256SUMS", sums)
    for path in into.iterdir():
        path.chmod(0o755 if path.suffix == ".sh" else 0o644)
        os.utime(path, (date, date))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, prog="make release")
    parser.add_argument("--module", type=Path, required=True)
    parser.add_argument("--repository", required=True, help="where the image will be, no tag")
    parser.add_argument("--tools", type=Path, required=True)
    parser.add_argument("--into", type=Path, required=True)
    arguments = parser.parse_args()
    into: Path = arguments.into
    into.parent.mkdir(parents=True, exist_ok=True)
    try:
        # All of it, or what was there before.
        with tempfile.TemporaryDirectory(dir=into.parent) as part:
            made = Path(part) / "release"
            made.mkdir()
            build(arguments.module, arguments.repository, arguments.tools, made)
            shutil.rmtree(into, ignore_errors=True)
            made.rename(into)
    except (
        ReleaseError,
        manifests.ManifestError,
        materials.MaterialsError,
        images.ImageError,
        OSError,
    ) as error:
        print(f"b3relay: {error}", file=sys.stderr)
        return 1
    for path in sorted(into.iterdir()):
        print(f"{path}: {path.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
