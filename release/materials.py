"""What the module is made of: bill of materials, licences, and the tools of the build."""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

TARGET = "wasm32-wasip1"
_BILL = "b3relay.cdx"


class MaterialsError(Exception):
    """One of the tools failed; the message has its words."""


def _run(*command: str | Path, cwd: Path, environment: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **(environment or {})}, capture_output=True, text=True
    )
    if done.returncode != 0:
        raise MaterialsError(f"{command[0]} failed: {done.stderr.strip()}")
    return done.stdout


@contextmanager
def _shipped(root: Path) -> Iterator[Path]:
    """The crate without what only its tests need, in a folder of its own.

    The tools go by `cargo metadata`, for which a feature that a test switches on is on.
    """
    manifest = (root / "Cargo.toml").read_text()
    kept, found = re.subn(
        r"^\[dev-dependencies[\].].*?(?=^\[|\Z)", "", manifest, flags=re.DOTALL | re.MULTILINE
    )
    if not found:
        raise MaterialsError(
            "Cargo.toml has no dev-dependencies: release/materials.py is out of date"
        )
    with tempfile.TemporaryDirectory() as directory:
        crate = Path(directory).resolve()
        (crate / "Cargo.toml").write_text(kept)
        # Its versions stay; what is no longer needed goes.
        shutil.copy(root / "Cargo.lock", crate)
        (crate / "src").mkdir()
        (crate / "src" / "lib.rs").touch()
        yield crate


def bill(root: Path, tools: Path, date: int) -> str:
    """The bill of materials, CycloneDX as JSON: the crates that are linked into the
    module, and those that its build runs."""
    with _shipped(root) as crate:
        _run(
            *(tools / "cargo" / "bin" / "cargo-cyclonedx", "cyclonedx", "--quiet"),
            *("--format", "json", "--spec-version", "1.5", "--target", TARGET),
            *("--override-filename", _BILL),
            cwd=crate,
            environment={"SOURCE_DATE_EPOCH": str(date)},
        )
        text = (crate / f"{_BILL}.json").read_text()
    # No path of this machine.
    return text.replace(f"path+file://{crate}#", "pkg:cargo/").replace("?download_url=file://.", "")


def licenses(root: Path, tools: Path) -> str:
    """The licences of these crates, with their texts."""
    with _shipped(root) as crate:
        return _run(
            *(tools / "cargo" / "bin" / "cargo-about", "about", "generate", "--fail"),
            *("--config", root / "release" / "about.toml", root / "release" / "licenses.hbs"),
            cwd=crate,
        )


def built_with(root: Path, tools: Path, date: int) -> str:
    """What it takes to build the same bytes again."""
    rustc = dict(
        line.split(": ", 1) for line in _run("rustc", "-vV", cwd=root).splitlines() if ": " in line
    )
    wasm_opt = tools / "npm" / "node_modules" / ".bin" / "wasm-opt"
    return "".join(
        f"{name}: {value}\n"
        for name, value in (
            ("SOURCE_DATE_EPOCH", date),
            ("target", TARGET),
            ("rustc", f"{rustc['release']} ({rustc['commit-hash']})"),
            ("LLVM", rustc["LLVM version"]),
            ("wasm-opt", _run(wasm_opt, "--version", cwd=root).strip()),
        )
    )
