"""The vectors of `tests/vectors`, as Python sees them."""

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

Headers = list[tuple[str, bytes]]

_DIRECTORY = Path(__file__).resolve().parents[1] / "vectors"
GOOD_REQUEST_ID = ("x-request-id", b"0f7a1c2e-1b2d-4c3e-9d4f-5a6b7c8d9e0f")


@dataclass(frozen=True)
class Vector:
    """See the head of `rules.toml`."""

    name: str
    headers: Headers
    findings: list[str]
    repaired: Headers


def header(line: str) -> tuple[str, bytes]:
    """``name: value``, with ``\\xNN`` for a byte."""
    name, value = line.split(": ", 1)
    raw = re.sub(r"\\x(..)", lambda match: chr(int(match[1], 16)), value)
    return name, raw.encode("latin-1")


def b3_of(headers: Headers) -> Headers:
    """The B3 headers, sorted."""
    return sorted((n, v) for n, v in headers if n == "b3" or n.startswith("x-b3-"))


def load() -> list[Vector]:
    vectors = []
    for entry in tomllib.loads((_DIRECTORY / "rules.toml").read_text())["vector"]:
        headers = [header(line) for line in entry["headers"]]
        own = any(name == "x-request-id" for name, _ in headers)
        if not own and entry.get("request_id", True):
            headers.insert(0, GOOD_REQUEST_ID)
        repaired = entry.get("repaired")
        vectors.append(
            Vector(
                entry["name"],
                headers,
                entry.get("findings", []),
                b3_of(headers) if repaired is None else b3_of([header(line) for line in repaired]),
            )
        )
    return vectors
