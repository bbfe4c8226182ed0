"""Istio's Bookinfo, unmodified: its sources come with Istio's module, what they need from
package registries. The images have the names that Istio's bookinfo.yaml gives them."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from cluster.images import Tagged
from cluster.settings import packages
from docker.standins import ACCOUNTS, Image, program, python_image
from istio.tools import istio
from mesh.golang import TOOLS
from mesh.procs import MeshError

_NAME = "registry.istio.io/release/examples-bookinfo-{service}:1.20.3"
_LIBERTY = "24.0.0.12"
_AT = "opt/microservices"
# What the Dockerfile of reviews is built with for each version.
_REVIEWS = {
    "v1": {"ENABLE_RATINGS": "false", "STAR_COLOR": "black"},
    "v2": {"ENABLE_RATINGS": "true", "STAR_COLOR": "black"},
    "v3": {"ENABLE_RATINGS": "true", "STAR_COLOR": "red"},
}


def sources() -> Path:
    return istio().samples / "bookinfo" / "src"


def prepare() -> Path:
    """What is fetched and compiled, once: packages of Python and Node, Open Liberty, and
    the class of reviews."""
    digest = hashlib.sha256(_LIBERTY.encode())
    for name in ("productpage/requirements.txt", "ratings/package.json"):
        digest.update((sources() / name).read_bytes())
    done = TOOLS / "bookinfo" / digest.hexdigest()[:12]
    if not done.is_dir():
        print("    fetching what Bookinfo needs with pip, npm and mvn (250 MB) ...", flush=True)
        part = done.with_name(f"{done.name}.part-{os.getpid()}")
        try:
            part.mkdir(parents=True)
            _fetch_python(part / "productpage")
            _fetch_node(part / "ratings")
            _fetch_liberty(part)
            part.rename(done)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return done


def _run(*words: str | Path) -> None:
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode != 0:
        raise MeshError(f"{' '.join(map(str, words))}: {done.stdout}{done.stderr}")


def _fetch_python(to: Path) -> None:
    # The file was resolved for another Python: each package that it names, and no other.
    _run(
        sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
        "--no-deps", "--target", to, "-r", sources() / "productpage/requirements.txt",
    )  # fmt: skip


def _fetch_node(to: Path) -> None:
    to.mkdir()
    shutil.copy(sources() / "ratings/package.json", to)
    _run("npm", "install", "--silent", "--no-fund", "--no-audit", "--prefix", to)


def _fetch_liberty(to: Path) -> None:
    _run(
        "mvn", "-B", "-q", "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy",
        f"-Dartifact=io.openliberty:openliberty-runtime:{_LIBERTY}:zip",
        f"-DoutputDirectory={to}", "-Dmdep.useBaseVersion=true",
    )  # fmt: skip
    (archive,) = to.glob("openliberty-runtime-*.zip")
    whole = to / "whole"
    shutil.unpack_archive(archive, whole)
    archive.unlink()
    # Of its 400 MB, what the server of reviews needs. And what its class is compiled with.
    server = ("sh", whole / "wlp/bin/server")
    _run(*server, "create", "defaultServer")
    shutil.copy(_server(), whole / "wlp/usr/servers/defaultServer/server.xml")
    small = to / "small.zip"
    _run(*server, "package", "defaultServer", "--include=minify", f"--archive={small}")
    shutil.unpack_archive(small, to)
    small.unlink()
    _compile_reviews(to, whole / "wlp/dev/api/spec")
    shutil.rmtree(whole)


def _server() -> Path:
    return sources() / "reviews/reviews-wlpcfg/servers/LibertyProjectServer/server.xml"


def _compile_reviews(to: Path, specifications: Path) -> None:
    application = sources() / "reviews/reviews-application/src/main"
    classes = to / "reviews/WEB-INF/classes"
    classes.mkdir(parents=True)
    _run(
        "javac", "-nowarn", "--release", "8", "-d", classes,
        "-cp", ":".join(map(str, specifications.glob("*.jar"))), *application.rglob("*.java"),
    )  # fmt: skip
    for file in (application / "webapp").rglob("*"):
        if file.is_file():
            place = to / "reviews" / file.relative_to(application / "webapp")
            place.parent.mkdir(exist_ok=True)
            shutil.copy(file, place)


def _tree(image: Image, at: str, folder: Path, without: tuple[str, ...] = ()) -> None:
    for path in folder.rglob("*"):
        inside = path.relative_to(folder)
        if path.is_file() and not set(without).intersection(inside.parts):
            place = f"{at}/{inside}"
            if path.suffix == ".so" or ".so." in path.name:
                image.program(place, path)
            else:
                image.files[place] = path


def details() -> list[Tagged]:
    """With Debian's Ruby in the place of the image's."""
    image = Image([], dict(ACCOUNTS))
    root = packages()
    _tree(image, "usr", root / "usr", ("doc", "man", "cni", "sbin"))
    image.program("usr/bin/ruby", (root / "usr/bin/ruby3.1").resolve())
    image.files[f"{_AT}/details.rb"] = sources() / "details/details.rb"
    start = ["ruby", "details.rb", "9080"]
    environment = {"SERVICE_VERSION": "v1", "ENABLE_EXTERNAL_BOOK_SERVICE": "false"}
    name = _NAME.format(service="details-v1")
    return [Tagged(name, image, [], environment, "1000", f"/{_AT}", start)]


def ratings() -> list[Tagged]:
    image = Image([], dict(ACCOUNTS))
    image.program("usr/local/bin/node", program("node").resolve())
    image.files[f"{_AT}/ratings.js"] = sources() / "ratings/ratings.js"
    _tree(image, _AT, prepare() / "ratings")
    start = ["node", f"/{_AT}/ratings.js", "9080"]
    name = _NAME.format(service="ratings-v1")
    return [Tagged(name, image, [], {"SERVICE_VERSION": "v1"}, "1000", f"/{_AT}", start)]


def productpage() -> list[Tagged]:
    image = python_image()
    at = "usr/local/lib/packages"
    _tree(image, at, prepare() / "productpage", ("bin", "__pycache__", "tests"))
    _tree(image, _AT, sources() / "productpage", ("tests",))
    # As the Dockerfile starts it, with fewer processes: eight of them take a minute.
    start = "python -m gunicorn -b [::]:9080 productpage:app -w 2 --keep-alive 2 -k gevent"
    environment = {"FLOOD_FACTOR": "0", "PYTHONPATH": f"/{at}"}
    name = _NAME.format(service="productpage-v1")
    return [Tagged(name, image, [], environment, "1000", f"/{_AT}", start.split())]


_NO_JAVA = ("man", "include", "jmods", "docs", "legal", "src.zip", "ct.sym")


def reviews() -> list[Tagged]:
    """With the machine's Java in the place of the image's."""
    image = Image([], dict(ACCOUNTS))
    java = program("java").resolve().parents[1]
    _tree(image, "opt/java", java, _NO_JAVA)
    image.program("opt/java/bin/java", java / "bin/java")
    _tree(image, "opt/ol/wlp", prepare() / "wlp")
    server = "opt/ol/wlp/usr/servers/defaultServer"
    image.files[f"{server}/server.xml"] = _server()
    # Liberty takes a folder of this name as well as an archive.
    _tree(image, f"{server}/apps/reviews-application-1.0.war", prepare() / "reviews")
    environment = {
        "JAVA_HOME": "/opt/java",
        "WLP_OUTPUT_DIR": "/opt/ol/wlp/output",
        "PATH": "/usr/local/bin:/usr/bin:/bin:/opt/java/bin",
    }
    start = ["java", "-jar", "/opt/ol/wlp/bin/tools/ws-server.jar", "defaultServer"]
    return [
        Tagged(
            _NAME.format(service=f"reviews-{version}"),
            image,
            [],
            {**environment, "SERVICE_VERSION": version, **told},
            "",
            "/opt/ol/wlp",
            start,
        )
        for version, told in _REVIEWS.items()
    ]
