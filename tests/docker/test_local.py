"""docs/local.md: every command on the page, and what it says that one sees."""

import copy as copying
import json
import re
import subprocess
from collections.abc import Callable
from typing import Any

import yaml

from docker import standins
from docker.local import Local, answer_of, commands, parts, trees
from mesh.mesh import EXPECTED_TREE, ROOT
from mesh.tree import Node, render

PAGE = ROOT / "docs" / "local.md"

Check = Callable[[Local, str], None]

# A click in pieces: the gateway's trace ends at the first service.
PIECES = tuple(
    sorted(
        [
            Node(
                "gateway",
                "CLIENT",
                "/productpage",
                (Node("productpage", "SERVER", "/productpage"),),
            ),
            Node("details", "SERVER", "/details/0"),
            Node("reviews", "SERVER", "/reviews/0"),
            Node("ratings", "SERVER", "/ratings/0"),
        ]
    )
)


def clicked(*expected: Node, query: str = "") -> Check:
    """A command that clicks: these are the trees, one for each trace."""

    def check(local: Local, printed: str) -> None:
        answer = answer_of(printed)
        services = [part["service"] for part in parts(answer)]
        assert sorted(services) == ["details", "productpage", "ratings", "reviews"]
        traces = local.traces(answer)
        assert len(traces) == len(expected)
        assert trees(traces) == expected
        # The page has a picture of the one with the gateway.
        (first,) = (trace for trace in traces if len(trace) > 1)
        assert f"```text\n{render(first, durations=False)}\n```" in PAGE.read_text()
        # What one sees in the browser.
        title = f"One click, {len(expected)} trace{'s' if len(expected) > 1 else ''}"
        assert f"**{title}**" in PAGE.read_text()
        assert f"<h1>{title}</h1>" in links(local, query, 16686, len(expected))

    return check


def links(local: Local, query: str, jaeger_port: int, traces: int) -> str:
    """The page that a browser gets, with a link to each trace."""
    html: str = local.click(query, accept="text/html").body
    found = re.findall(rf'href="http://localhost:{jaeger_port}/trace/([0-9a-f]{{32}})"', html)
    assert len(set(found)) == len(found) == traces
    return html


def local_is_without(local: Local) -> bool:
    """Whether the sidecars that run have no filter."""
    inspected = local.compose("ps", "--all", "--format", "json", "details-sidecar").stdout
    container = json.loads(inspected.splitlines()[0])["ID"]
    told = subprocess.run(["docker", "inspect", container], capture_output=True, check=True)
    mounts = json.loads(told.stdout)[0]["Mounts"]
    return any(mount["Source"].endswith("without.yaml") for mount in mounts)


def running(without: bool) -> Check:
    def check(local: Local, _printed: str) -> None:
        assert local_is_without(local) == without

    return check


def nothing(_local: Local, _printed: str) -> None:
    """The command did not fail."""


def down(local: Local, _printed: str) -> None:
    assert local.compose("ps", "--all", "--quiet").stdout == ""


COMPOSE = "docker compose -f envoyfilter/local/compose.yaml"
CLICK = "curl -s http://localhost:8080/productpage"
STEPS: list[tuple[str, Check]] = [
    ("make wasm", nothing),
    (f"{COMPOSE} up -d --wait", running(without=False)),
    (CLICK, clicked(EXPECTED_TREE)),
    (f"SIDECARS=without {COMPOSE} up -d --wait", running(without=True)),
    (CLICK, clicked(*PIECES)),
    (f"{CLICK}?forward=all", clicked(EXPECTED_TREE, query="?forward=all")),
    (f"{COMPOSE} logs module-is-readable", nothing),
    (f"{COMPOSE} down", down),
]


def test_page(local: Local) -> None:
    assert commands(PAGE) == [command for command, _ in STEPS]
    for command, check in STEPS:
        check(local, local.shell(command))


def test_other_ports_and_the_way_back(images: None) -> None:
    """Without the filter first, and then with it."""
    ports = {"GATEWAY_PORT": "18080", "JAEGER_PORT": "26686"}
    with Local(ROOT, 18080, 26686) as local:
        for sidecars, expected in (("without", PIECES), ("with", (EXPECTED_TREE,))):
            done = local.compose("up", "-d", "--wait", SIDECARS=sidecars, **ports)
            assert done.returncode == 0, done.stderr
            reply = local.click()
            assert reply.status == 200
            assert trees(local.traces(reply.body)) == expected
            links(local, "", 26686, len(expected))


def test_images() -> None:
    """The stand-ins have the names of the compose file, and what is in them is of
    the versions that the names say."""
    local = Local(ROOT)
    told = local.compose("config", "--images")
    assert told.returncode == 0, told.stderr
    assert set(told.stdout.split()) == set(standins.IMAGES)


def test_versions(images: None) -> None:
    def run(*arguments: str) -> str:
        done = subprocess.run(["docker", "run", "--rm", *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    minor = standins.ENVOY.removeprefix("envoyproxy/envoy:v").removesuffix("-latest")
    assert f"/{minor}." in run(standins.ENVOY, "envoy", "--version")
    assert run(standins.ENVOY, "id", "-un") == "envoy\n"
    minor = standins.PYTHON.removeprefix("python:").removesuffix("-slim")
    assert f"Python {minor}." in run(standins.PYTHON, "python", "--version")
    version = standins.JAEGER.removeprefix("jaegertracing/all-in-one:")
    assert f"jaegertracing/jaeger v{version} " in (ROOT / "tests/jaeger/go.mod").read_text()


def test_a_module_that_is_not_built(copy: Local) -> None:
    (copy.root / "dist" / "b3relay.wasm").unlink()
    done = copy.compose("up", "-d", "--wait")
    assert done.returncode != 0
    assert re.search(r"source path does not exist: \S+/dist/b3relay.wasm", done.stderr)
    # Nor did Docker make a directory of that name.
    assert not (copy.root / "dist" / "b3relay.wasm").exists()


def refused(copy: Local) -> str:
    """What is said when the trial is started, quickly, instead of starting it."""
    done = copy.compose("up", "-d", "--wait")
    assert done.returncode != 0
    assert 'service "module-is-readable" didn\'t complete successfully' in done.stderr
    said = copy.compose("logs", "--no-log-prefix", "module-is-readable").stdout
    return said.replace("\x1b[2K", "")  # compose clears the line, even where there is none


def test_a_module_that_others_cannot_read(copy: Local) -> None:
    (copy.root / "dist" / "b3relay.wasm").chmod(0o600)
    assert refused(copy) == (
        "dist/b3relay.wasm cannot be read by the user of Envoy: chmod a+r dist/b3relay.wasm\n"
    )


def test_a_directory_in_place_of_the_module(copy: Local) -> None:
    (copy.root / "dist" / "b3relay.wasm").unlink()
    (copy.root / "dist" / "b3relay.wasm").mkdir()
    assert refused(copy) == (
        'dist/b3relay.wasm is a directory, not the module: remove it, and run "make wasm"\n'
    )


def test_configurations_that_others_cannot_read(copy: Local) -> None:
    for path in copy.directory.glob("*.yaml"):
        path.chmod(0o600)
    assert refused(copy) == (
        "envoyfilter/local/*.yaml cannot be read by the user of Envoy:"
        " chmod a+r envoyfilter/local/*.yaml\n"
    )


def test_the_sidecars_differ_in_the_filter_alone() -> None:
    directory = ROOT / "envoyfilter" / "local"
    with_filter = yaml.safe_load((directory / "with.yaml").read_text())
    without = yaml.safe_load((directory / "without.yaml").read_text())
    assert without != with_filter
    assert without == less_the_filter(with_filter)


def less_the_filter(config: dict[str, Any]) -> dict[str, Any]:
    config = copying.deepcopy(config)
    for listener in config["static_resources"]["listeners"]:
        manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
        filters = manager["http_filters"]
        manager["http_filters"] = [f for f in filters if f["name"] != "b3relay"]
        filters[-1]["typed_config"].pop("upstream_http_filters", None)
    return config
