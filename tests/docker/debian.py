"""A Docker engine and a registry from Debian's packages, without installing them.

They are unpacked below ``.tools/debian``, with their dependencies but for those that every
Debian has, and run from there: nothing of the machine is changed, and what else is installed
on it makes no difference.
"""

import hashlib
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from mesh.golang import TOOLS
from mesh.procs import MeshError

RELEASE = "bookworm"
PACKAGES = ("docker.io", "docker-registry", "iptables", "iproute2", "busybox-static")
# The command line's plugins: Debian 12 has compose 1 and no buildx, but those of
# the next release run on it.
NEXT_RELEASE = "trixie"
NEXT_PACKAGES = ("docker-compose", "docker-buildx")

UNPACKED = TOOLS / "debian"
_STATUS = Path("/var/lib/dpkg/status")
PLUGINS = Path("usr/libexec/docker/cli-plugins")


def missing() -> str | None:
    """Why the packages cannot be used on this machine; None if they can."""
    release = ""
    if Path("/etc/os-release").is_file():
        release = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    if release != RELEASE or shutil.which("apt-get") is None:
        return f"the Docker engine comes from the packages of Debian 12 ({RELEASE})"
    return None


def unpack(
    packages: Sequence[str] = PACKAGES,
    next_packages: Sequence[str] = NEXT_PACKAGES,
    what: str = "Docker and a registry (85 MB)",
) -> Path:
    """The directory with the unpacked packages; fetched if they are not there yet."""
    wanted = " ".join((RELEASE, *packages, NEXT_RELEASE, *next_packages)).encode()
    # And how that is done, which is in this file.
    key = hashlib.sha256(wanted + Path(__file__).read_bytes())
    root = UNPACKED / key.hexdigest()[:12]
    if not root.is_dir():
        print(f"    fetching {what} from Debian's packages ...", flush=True)
        UNPACKED.mkdir(parents=True, exist_ok=True)
        part = Path(f"{root}.part-{os.getpid()}")
        try:
            _fetch(part, packages, next_packages)
            try:
                part.rename(root)
            except OSError:
                # Somebody else was quicker.
                if not root.is_dir():
                    raise
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return root


def _fetch(part: Path, packages: Sequence[str], next_packages: Sequence[str]) -> None:
    root, state, cache = part, part / "apt-state", part / "apt-cache"
    for directory in (state / "lists/partial", cache / "archives/partial"):
        directory.mkdir(parents=True)
    sources = part / "sources.list"
    sources.write_text("".join(_sources()))
    status = part / "apt-status"
    status.write_text(_essential_status())
    options = [
        f"-oDir::Etc::sourcelist={sources}",
        "-oDir::Etc::sourceparts=/dev/null",
        "-oDir::Etc::preferencesparts=/dev/null",
        f"-oDir::State={state}",
        f"-oDir::State::status={status}",
        f"-oDir::Cache={cache}",
        f"-oAPT::Default-Release={RELEASE}",
        "-oAPT::Sandbox::User=root",
        "-oDebug::NoLocking=1",
        "-qq",
    ]
    _run("apt-get", *options, "update")
    # With what they depend on, and nothing is installed.
    _run(
        "apt-get",
        *options,
        "install",
        "--yes",
        "--reinstall",
        "--download-only",
        "--no-install-recommends",
        *packages,
    )
    for package in next_packages:
        _run("apt-get", *options, "download", f"{package}/{NEXT_RELEASE}", cwd=cache / "archives")
    for archive in sorted((cache / "archives").glob("*.deb")):
        _run("dpkg", "-x", str(archive), str(root))
    status.unlink()
    shutil.rmtree(state)
    shutil.rmtree(cache)
    # What the packages would set up when they are installed.
    programs = root / "usr/sbin"
    if (programs / "xtables-nft-multi").exists():
        for name in ("iptables", "ip6tables"):
            link = programs / name
            link.unlink(missing_ok=True)
            link.symlink_to("xtables-nft-multi")


def _essential_status() -> str:
    """What dpkg knows of the essential packages of this machine, and of what they need."""
    blocks = {}
    pending = []
    for block in _STATUS.read_text().split("\n\n"):
        fields = dict(re.findall(r"^([\w-]+): (.*)$", block, re.MULTILINE))
        if fields.get("Status") != "install ok installed":
            continue
        names = [fields["Package"], *_names(fields.get("Provides", ""))]
        blocks.update(dict.fromkeys(names, (block, fields)))
        if fields.get("Essential") == "yes":
            pending.append(fields["Package"])
    found: dict[str, str] = {}
    while pending:
        name = pending.pop()
        if name in found or name not in blocks:
            continue
        found[name], fields = blocks[name]
        for kind in ("Depends", "Pre-Depends"):
            pending += _names(fields.get(kind, ""))
    # A package comes once, whatever else it provides.
    return "\n\n".join(dict.fromkeys(found.values())) + "\n"


def _names(packages: str) -> list[str]:
    """Of ``name (>= 1), other:any | another``."""
    return re.findall(r"(?:^|[,|])\s*([\w.+-]+)", packages)


def _sources() -> list[str]:
    """The machine's own places for Debian's packages, and the next release there."""
    told = subprocess.run(
        [
            "apt-get",
            "indextargets",
            "--format",
            "$(REPO_URI) $(RELEASE) $(COMPONENT)",
            "Created-By: Packages",
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    lines = set()
    for uri, release, component in (line.split() for line in told.splitlines()):
        if component == "main" and release in (
            RELEASE,
            f"{RELEASE}-updates",
            f"{RELEASE}-security",
        ):
            lines.add((uri, release))
        if component == "main" and release == RELEASE:
            lines.add((uri, NEXT_RELEASE))
    key = "/usr/share/keyrings/debian-archive-keyring.gpg"
    return [f"deb [signed-by={key}] {uri} {release} main\n" for uri, release in sorted(lines)]


def _run(*command: str, cwd: Path | None = None) -> None:
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd)
    if done.returncode != 0:
        raise MeshError(f"{' '.join(command)}: {done.stderr or done.stdout}")


def environment(root: Path) -> dict[str, str]:
    """What finds the programs, their libraries and iptables' extensions."""
    triplet = f"{platform.machine()}-linux-gnu"
    libraries = [root / place / triplet for place in ("usr/lib", "lib")]
    programs = [root / place for place in ("usr/sbin", "usr/bin", "sbin", "bin")]
    return {
        "PATH": os.pathsep.join((*map(str, programs), os.environ["PATH"])),
        "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries)),
        "XTABLES_LIBDIR": str(libraries[0] / "xtables"),
    }
