"""Programs that are built with Go, kept in the directory ``B3RELAY_TOOLS``."""

import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path

from mesh.mesh import ROOT
from mesh.procs import MeshError

TOOLS = Path(os.environ.get("B3RELAY_TOOLS") or ROOT / ".tools")


def missing() -> str | None:
    """What to do where there is no Go, or one before 1.21, which cannot read our go.mod files."""
    if shutil.which("go") is not None:
        told = subprocess.run(["go", "env", "GOVERSION"], capture_output=True, text=True).stdout
        if (version := re.search(r"go1\.(\d+)", told)) and int(version[1]) >= 21:
            return None
    return "Go is missing, or too old: install Go 1.26 or newer (go.dev)"


def build(
    name: str, source: Path, package: str = ".", takes: str = "a minute", tags: str = ""
) -> Path:
    """The program of a package of the module in ``source``, built if it is not there yet.

    ``takes`` says how long the first time is, ``tags`` are build tags, by comma.
    """
    files = sorted([*source.glob("*.go"), source / "go.mod", source / "go.sum"])
    content = b"\0".join(file.read_bytes() for file in files) + tags.encode()
    program = TOOLS / f"{name}-{hashlib.sha256(content).hexdigest()[:12]}"
    if not program.is_file():
        if (why := missing()) is not None:
            raise MeshError(f"{why}, which builds {name}")
        print(f"    building {name} with Go, {takes} the first time ...", flush=True)
        TOOLS.mkdir(parents=True, exist_ok=True)
        # Beside it, so that there is never a half of it, whoever else builds.
        part = program.with_name(f"{program.name}.part-{os.getpid()}")
        options = ["-mod=readonly", "-trimpath", "-ldflags=-s -w", f"-tags={tags}", "-o", str(part)]
        try:
            subprocess.run(
                ["go", "build", *options, package],
                cwd=source,
                env={**os.environ, "CGO_ENABLED": "0"},
                check=True,
            )
            part.rename(program)
        finally:
            part.unlink(missing_ok=True)
    return program
