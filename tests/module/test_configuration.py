"""The JSON Schema of the configuration, the compiled module, and what the documentation
shows: what one of them takes, the others take."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml

from mesh.mesh import wasm_path
from module.proxy_wasm_host import INBOUND, Host, Process, load

ROOT = Path(__file__).parents[2]
SCHEMA: dict[str, Any] = json.loads((ROOT / "docs/config.schema.json").read_text())
KEYS: dict[str, dict[str, Any]] = SCHEMA["properties"]
PAGES = [
    path
    for pattern in ("*.md", "docs/*.md", "envoyfilter/**/*.md", "envoyfilter/**/*.yaml")
    for path in sorted(ROOT.glob(pattern))
]


@functools.cache
def worker() -> Host:
    return Host(load(wasm_path()), Process())


def is_taken(configuration: str) -> bool:
    """By the module."""
    return worker().plugin(configuration.encode(), INBOUND).configured


def is_valid(configuration: object) -> bool:
    """By the schema."""
    return bool(jsonschema.Draft7Validator(SCHEMA).is_valid(configuration))


def objects(text: str) -> Iterator[dict[str, Any]]:
    """The JSON objects in a text that are in no other."""
    decoder = json.JSONDecoder()
    at = text.find("{")
    while at >= 0:
        try:
            found, end = decoder.raw_decode(text, at)
        except json.JSONDecodeError:
            found, end = None, at + 1
        if isinstance(found, dict):
            yield found
        at = text.find("{", end)


def samples(path: Path) -> Iterator[dict[str, Any]]:
    """The configurations in a page or a manifest: whole ones, single keys in backticks
    (`"mode": "repair"`), those of Envoy's StringValue and of Istio's pluginConfig."""
    text = path.read_text()
    yield from (found for found in objects(text) if found.keys() & KEYS.keys())
    names = "|".join(KEYS)
    for key in re.findall(rf'`("(?:{names})":[^`]*)`', text):
        yield json.loads(f"{{{key}}}")
    yield from map(json.loads, re.findall(r"\bvalue: '(\{.*\})'", text))
    if path.suffix == ".yaml":
        for document in yaml.safe_load_all(text):
            yield from plugin_configs(document)


def plugin_configs(value: object) -> Iterator[dict[str, Any]]:
    """What pluginConfig holds, anywhere in a manifest."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name == "pluginConfig":
                yield inner
            else:
                yield from plugin_configs(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from plugin_configs(inner)


SAMPLES = [(path.relative_to(ROOT), sample) for path in PAGES for sample in samples(path)]


def test_the_samples_are_found() -> None:
    pages = {str(path) for path, _ in SAMPLES}
    assert pages >= {
        "README.md",
        "docs/configuration.md",
        "docs/formats.md",
        "docs/instrumented.md",
        "docs/rules.md",
        "docs/trust.md",
        "envoyfilter/README.md",
        "envoyfilter/gateway-check.yaml",
        "envoyfilter/sidecars/envoyfilter.yaml",
        "envoyfilter/trafficextension/trafficextension.yaml",
        "envoyfilter/wasmplugin/wasmplugin.yaml",
    }
    assert len(SAMPLES) >= 25


@pytest.mark.parametrize(("path", "sample"), SAMPLES, ids=str)
def test_samples_are_good(path: Path, sample: dict[str, Any]) -> None:
    assert is_taken(json.dumps(sample)), worker().log[-1]
    jsonschema.Draft7Validator(SCHEMA).validate(sample)


def test_the_schema_is_a_schema() -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)


ODD: list[Any] = [
    *(None, True, False, "", "x", "b3", "off", "error", "new", "received", "Observe"),
    *(0, -1, 0.5, 0.95, 63, 64, 64.0, 64.5, 400, 599, 600, 6000, 6001, 60000, 60001, 65536),
    *(65537, 0.9, 0.8999, 0.9999, 0.99991, 1, 1e99, 2**64),
    *([], {}, [1], [""], ["x"], ["X", "y"], ["x"] * 4, ["x", "x"], [["x"]], [None]),
    *(["b3"], ["w3c", "b3multi"], ["received"], ["B3"], ["Host"], ["te*"], ["*"], ["a b"]),
    *([":path"], ["x-*"], ["x-b3-*"], ["X-B3-TraceID"], ["x-b3-custom"], ["traceparent"]),
    *(["x:root"], ["x:"], ["x:a:b"], ["b3:root"], ["host:root"], ["*.a"], ["10.0.0.0/8"]),
    *(["x" * 255], ["x" * 256], [f"x{n}" for n in range(5)], [f"x{n}" for n in range(16)]),
    *([f"x{n}" for n in range(length)] for length in (17, 32, 33, 64, 65)),
    *([host] for host in ("DB.Example.com.", "*.x.y", "*x.y", "10.0.0.7", "fd00::7", "a:80")),
    *([host] for host in ("[10.0.0.1]", "10.0.0.0/008", "fd00::/0064", "[fd00::7]", "fd00::/8", "::ffff:10.0.0.0/104", "_dns.a", "a..b")),
    *({"L04": "off"}, {"L04": "of"}, {"L99": "off"}, {"L04": None}, {"l04": "off"}),
]


HOSTS = ("mesh_hosts", "outside_hosts", "egress_gateways")


@pytest.mark.parametrize("key", KEYS)
def test_the_schema_takes_what_the_module_takes(key: str) -> None:
    for value in [KEYS[key]["default"], *ODD]:
        # The pattern of hosts does not count the bytes of one.
        if key in HOSTS and value == ["x" * 256]:
            continue
        text = json.dumps({key: value})
        assert is_valid(json.loads(text)) == is_taken(text), text
    assert is_taken(json.dumps({key: KEYS[key]["default"]}))


@pytest.mark.parametrize(
    "text",
    [
        *('{"mod": "repair"}', "[]", "null", "7", '"mode"', "true"),
        '{"incoming_context": "trust", "incoming_b3": "trust"}',
    ],
)
def test_what_both_refuse(text: str) -> None:
    assert not is_valid(json.loads(text))
    assert not is_taken(text)


@pytest.mark.parametrize("host", ["127.1", "1.2.3", "0x7f", "*.5", "10.0.0.0/33", "[::1", ":::"])
def test_what_b3relay_alone_refuses_is_documented(host: str) -> None:
    assert f"`{host}`" in (ROOT / "docs/configuration.md").read_text()
    for key in HOSTS:
        assert is_valid({key: [host]})
        assert not is_taken(json.dumps({key: [host]}))


def test_what_the_schema_alone_refuses_is_documented() -> None:
    assert "takes 0.8999995, which" in (ROOT / "docs/configuration.md").read_text()
    assert not is_valid({"confidence": 0.8999995})
    assert is_taken('{"confidence": 0.8999995}')
    assert not is_taken('{"confidence": 0.8999994}')
