"""What `make release` writes: the same bytes twice, and in them what users need."""

import base64
import gzip
import hashlib
import io
import json
import os
import re
import subprocess
import tarfile
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from mesh.golang import TOOLS
from mesh.mesh import ROOT
from release.made import DATE, PLACES, REPOSITORY

VERSION: str = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]["version"]
LAYOUT = f"b3relay-{VERSION}-oci.tar"
MANIFESTS = f"b3relay-{VERSION}-manifests.tar"
# The patches and gateway files are forms too, of a file.
FOLDERS = ("sidecars", "sidecars-image", "workload", "mesh", "wasmplugin", "trafficextension")


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def contents(archive: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        members = [member for member in opened if member.isfile()]
        for member in members:
            assert (member.uid, member.gid, member.mtime) == (0, 0, DATE), member.name
        files = [opened.extractfile(member) for member in members]
        return {m.name: f.read() for m, f in zip(members, files, strict=True) if f is not None}


def documents(text: str) -> list[dict[str, Any]]:
    return [one for one in yaml.safe_load_all(text) if one]


def installs(release: Path, form: str) -> list[dict[str, Any]]:
    return documents((release / f"install-{form}.yaml").read_text())


def test_two_builds_are_the_same(releases: tuple[Path, ...]) -> None:
    first, second = releases
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in second.iterdir())
    differ = [name for name in names if (first / name).read_bytes() != (second / name).read_bytes()]
    assert differ == []
    for name in ("b3relay.wasm", "SHA256SUMS"):
        print(name, sha256((first / name).read_bytes()))
    modes = [[(release / name).stat().st_mode & 0o777 for name in names] for release in releases]
    assert modes[0] == modes[1], "whatever the mask"


def test_no_path_of_the_machine(releases: tuple[Path, ...]) -> None:
    """Which is what a third machine would differ by."""
    for release in releases:
        home = os.environ.get("CARGO_HOME", str(Path.home() / ".cargo"))
        for path in (str(release.parent.parent), home, str(ROOT), str(TOOLS)):
            found = [one.name for one in release.iterdir() if path.encode() in one.read_bytes()]
            assert found == [], path
    module = (releases[0] / "b3relay.wasm").read_bytes()
    # What is left of them: the check above looks at a module that has paths.
    assert b"src/attribution/" in module and b"crates/proxy-wasm-" in module


def test_sums(release: Path) -> None:
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"],
        cwd=release,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    named = {line.split("  ")[1] for line in (release / "SHA256SUMS").read_text().splitlines()}
    assert named == {path.name for path in release.iterdir()} - {"SHA256SUMS"}


def test_the_page_names_every_file(release: Path) -> None:
    page = (ROOT / "docs" / "release.md").read_text()
    named = {name.replace("VERSION", VERSION) for name in re.findall(r"`([\w.-]+\.?\w*)`", page)}
    for path in release.iterdir():
        name = re.sub(r"^install-[\w-]+\.yaml$", "install-FORM.yaml", path.name)
        assert name in named, name


@pytest.fixture(scope="module")
def layout(release: Path) -> dict[str, bytes]:
    return contents((release / LAYOUT).read_bytes())


def manifest(layout: dict[str, bytes], tag: str) -> tuple[str, dict[str, Any]]:
    """Digest and content."""
    index = json.loads(layout["index.json"])
    name = "org.opencontainers.image.ref.name"
    (one,) = (m for m in index["manifests"] if m["annotations"][name] == tag)
    assert one["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    digest = one["digest"].removeprefix("sha256:")
    return digest, json.loads(layout[f"blobs/sha256/{digest}"])


def test_layout(layout: dict[str, bytes]) -> None:
    assert json.loads(layout["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    assert len(json.loads(layout["index.json"])["manifests"]) == 2
    for name, content in layout.items():
        if name.startswith("blobs/"):
            assert name == f"blobs/sha256/{sha256(content)}"


def test_image(layout: dict[str, bytes], release: Path) -> None:
    """One layer with /plugin.wasm, for the platform that Istio asks for."""
    _, told = manifest(layout, VERSION)
    (layer,) = told["layers"]
    assert layer["mediaType"] == "application/vnd.oci.image.layer.v1.tar+gzip"
    unpacked = gzip.decompress(layout[f"blobs/{layer['digest'].replace(':', '/')}"])
    assert contents(unpacked) == {"plugin.wasm": (release / "b3relay.wasm").read_bytes()}
    assert told["config"]["mediaType"] == "application/vnd.oci.image.config.v1+json"
    config = json.loads(layout[f"blobs/{told['config']['digest'].replace(':', '/')}"])
    assert (config["os"], config["architecture"]) == ("linux", "amd64")
    assert config["rootfs"] == {"type": "layers", "diff_ids": [f"sha256:{sha256(unpacked)}"]}
    assert config["created"] == "2026-01-01T00:00:00Z"


def test_artifact(layout: dict[str, bytes], release: Path) -> None:
    _, told = manifest(layout, f"{VERSION}-artifact")
    module, kind = told["layers"]
    assert module["mediaType"] == "application/vnd.module.wasm.content.layer.v1+wasm"
    assert module["digest"] == f"sha256:{sha256((release / 'b3relay.wasm').read_bytes())}"
    assert (
        kind["mediaType"]
        == told["config"]["mediaType"]
        == "application/vnd.module.wasm.config.v1+json"
    )


def test_oras_takes_the_layout(release: Path, layout: dict[str, bytes], tmp_path: Path) -> None:
    """As docs/release.md says, to a layout instead of a registry. Istio's agent takes what
    comes of it: tests/docker/test_image.py."""
    for tag in (VERSION, f"{VERSION}-artifact"):
        copied = subprocess.run(
            [
                *(TOOLS / "go" / "bin" / "oras", "cp", "--no-tty", "--from-oci-layout"),
                *(f"{release / LAYOUT}:{tag}", "--to-oci-layout", f"{tmp_path / 'copy'}:{tag}"),
            ],
            capture_output=True,
            text=True,
        )
        assert copied.returncode == 0, copied.stderr
        assert f"Digest: sha256:{manifest(layout, tag)[0]}" in copied.stdout


def test_module_as_a_config_map(release: Path) -> None:
    (one,) = documents((release / "module.yaml").read_text())
    assert (one["kind"], one["metadata"]["name"]) == ("ConfigMap", "b3relay")
    module = one["binaryData"]["plugin.wasm"]
    assert base64.b64decode(module) == (release / "b3relay.wasm").read_bytes()
    assert len((release / "module.yaml").read_bytes()) < 1 << 20


def test_every_form_is_there(release: Path) -> None:
    shipped = ROOT / "envoyfilter"
    folders = {
        path.parent.name
        for path in shipped.glob("*/kustomization.yaml")
        if documents(path.read_text())[0]["kind"] != "Component"
    }
    files = {path.stem for path in shipped.glob("gateway-*.yaml")}
    assert {path.name for path in release.glob("install-*.yaml")} == {
        f"install-{name}.yaml" for name in folders | files
    }
    assert set(FOLDERS) <= folders
    for path in release.glob("install-*.yaml"):
        for one in documents(path.read_text()):
            labels = one["metadata"]["labels"]
            assert labels["app.kubernetes.io/version"] == VERSION, path.name
            assert "selector" not in one["spec"] or "app.kubernetes.io/version" not in str(
                one["spec"]["selector"]
            )


def test_forms_name_the_image_and_its_digest(release: Path, layout: dict[str, bytes]) -> None:
    digest, _ = manifest(layout, VERSION)
    url = f"oci://{REPOSITORY}:{VERSION}"
    (plugin,) = (one for one in installs(release, "wasmplugin") if one["kind"] == "WasmPlugin")
    assert (plugin["spec"]["url"], plugin["spec"]["sha256"]) == (url, digest)
    (extension,) = (
        one for one in installs(release, "trafficextension") if one["kind"] == "TrafficExtension"
    )
    assert (extension["spec"]["wasm"]["url"], extension["spec"]["wasm"]["sha256"]) == (url, digest)
    (filter_,) = (
        one for one in installs(release, "sidecars-image") if one["kind"] == "EnvoyFilter"
    )
    codes = [
        patch["patch"]["value"]["typed_config"]["config"]["vm_config"]["code"]
        for patch in filter_["spec"]["configPatches"]
        if patch["applyTo"] == "EXTENSION_CONFIG"
    ]
    assert [code["remote"]["sha256"] for code in codes] == [digest, digest]
    assert [code["remote"]["http_uri"]["uri"] for code in codes] == [url, url]
    assert f"{REPOSITORY}:{VERSION}@sha256:{digest}" in (release / "mount-image.yaml").read_text()
    for path in release.iterdir():
        if path.suffix == ".yaml" or path.name == MANIFESTS:
            assert b"registry.example.com" not in path.read_bytes(), path.name


def test_the_folder_builds_the_forms(release: Path, tmp_path: Path) -> None:
    """Without the labels, which are of the release."""
    with tarfile.open(release / MANIFESTS) as archive:
        archive.extractall(tmp_path, filter="data")
    for form in FOLDERS:
        done = subprocess.run(
            [TOOLS / "go" / "bin" / "kustomize", "build", tmp_path / "envoyfilter" / form],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        installed = installs(release, form)
        for one in installed:
            del one["metadata"]["labels"]
        assert documents(done.stdout) == installed
    assert os.access(tmp_path / "envoyfilter" / "check.sh", os.X_OK)


def crates() -> set[tuple[str, str]]:
    """What cargo links into the module, or runs to build it."""
    done = subprocess.run(
        [
            *("cargo", "tree", "--locked", "--target", "wasm32-wasip1", "--prefix", "none"),
            *("--edges", "normal,build", "--no-dedupe", "--format", "{p}"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    found = {tuple(line.split()[:2]) for line in done.stdout.splitlines() if line.strip()}
    return {(name, version.removeprefix("v")) for name, version in found} - {("b3relay", VERSION)}


def test_bill_of_materials(release: Path) -> None:
    bill = json.loads((release / "b3relay.cdx.json").read_text())
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.5")
    assert bill["metadata"]["component"]["name"] == "b3relay"
    listed = {(one["name"], one["version"]) for one in bill["components"]}
    assert listed == crates()
    assert len(listed) > 3
    assert all(one["licenses"] and one["hashes"] for one in bill["components"])


def test_licenses(release: Path) -> None:
    text = (release / "THIRD-PARTY-LICENSES.txt").read_text()
    for name, version in crates():
        assert f"  {name} {version}\n" in text, name
    assert "Permission is hereby granted" in text


def test_notes(release: Path) -> None:
    notes = (release / "RELEASE_NOTES.md").read_text()
    assert notes.startswith(f"# b3relay {VERSION}\n")
    assert "The first release." in notes
    assert "Unreleased" not in notes


def test_places_differ() -> None:
    """Otherwise the comparison would show nothing."""
    first, second = PLACES
    for name in ("folder", "locale", "time_zone", "umask", "own_cargo_home"):
        assert getattr(first, name) != getattr(second, name)
