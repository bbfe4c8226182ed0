"""Each target of the Makefile installs the Python packages that its programs import."""

import ast
import functools
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh.mesh import ROOT

TESTS = ROOT / "tests"
# Modules that are called differently from their packages.
PACKAGES = {
    "google": "protobuf",
    "grpc": "grpcio",
    "opentelemetry": "opentelemetry-api",
    "yaml": "pyyaml",
}
VENV = "$(TOOLS)/venv/"
MAKEFILE = (ROOT / "Makefile").read_text().replace("\\\n", " ")
# "RECORD = $(PYTHON) -m ...", "ENVOY_TESTS ?= ..."
VARIABLES = dict(re.findall(r"^(\w+) \??:?= (.*)$", MAKEFILE, re.M))


def rules() -> dict[str, tuple[list[str], str]]:
    """Of each target its prerequisites, and its recipe."""
    found = re.findall(r"^([^\s:=#]+): ?(?!=)([^#\n]*)(?:#.*)?\n((?:\t.*\n)*)", MAKEFILE, re.M)
    return {
        target: (needs.replace("|", " ").split(), _filled(recipe))
        for target, needs, recipe in found
        if target != ".PHONY"
    }


def _filled(recipe: str) -> str:
    for name in ("RECORD", "ENVOY_TESTS"):
        recipe = recipe.replace(f"$({name})", VARIABLES[name])
    return recipe


RULES = rules()


def needed(target: str) -> set[str]:
    """A target, and all that is made before it."""
    found = {target}
    for one in RULES.get(target, ([], ""))[0]:
        found |= needed(one)
    return found


def installed(target: str) -> set[str]:
    return {
        line.split("=")[0].split("[")[0].lower()
        for one in needed(target)
        if one.startswith(VENV)
        for path in RULES[one][0]
        if path.endswith(".txt")
        for line in (ROOT / path).read_text().splitlines()
        if line and not line.startswith("#")
    }


def begins(recipe: str) -> Iterator[Path]:
    """The files that Python is told to run."""
    for line in recipe.splitlines():
        if "$(PYTHON)" not in line:
            continue
        for place in re.findall(r"\btests/\S+", line):
            path = ROOT / place
            yield from path.rglob("*.py") if path.is_dir() else [path]
            yield TESTS / "conftest.py"
        names = [*re.findall(r"-m ([\w.]+)", line), *re.findall(r"from ([\w.]+) import", line)]
        for name in names:
            yield from files(name)


@functools.cache
def files(name: str) -> list[Path]:
    """Those of a module of ours, and of the packages that it is in."""
    parts = name.split(".")
    path = TESTS.joinpath(*parts)
    packages = [TESTS.joinpath(*parts[:end], "__init__.py") for end in range(1, len(parts) + 1)]
    return [one for one in (path.with_suffix(".py"), *packages) if one.is_file()]


@functools.cache
def imports(path: Path) -> frozenset[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {one.name for one in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{one.name}" for one in node.names)}
    return frozenset(found)


def foreign(start: Iterator[Path]) -> dict[str, Path]:
    """The packages of others that are imported from there on, and a file that does it."""
    # What has a program and packages of its own is started, and not imported.
    waiting = [path for path in start if "apps" not in path.parts]
    seen, found = set(waiting), dict[str, Path]()
    while waiting:
        path = waiting.pop()
        for name in imports(path):
            top = name.split(".")[0]
            if ours := files(name) or files(top):
                waiting += [one for one in ours if one not in seen]
                seen.update(ours)
            elif top not in sys.stdlib_module_names:
                found.setdefault(PACKAGES.get(top, top), path.relative_to(ROOT))
    return found


@pytest.mark.parametrize("target", [name for name in RULES if any(begins(RULES[name][1]))])
def test_what_is_imported_is_installed(target: str) -> None:
    there = installed(target)
    imported = foreign(begins(RULES[target][1]))
    assert not {name: path for name, path in imported.items() if name not in there}


def test_this_sees_what_is_missing() -> None:
    for target, package in (
        ("test-browser", "playwright"),
        ("test-release", "trustme"),
        ("monitoring", "matplotlib"),
    ):
        assert package in foreign(begins(RULES[target][1]))
        assert package in installed(target) and package not in installed("test-wasm")
