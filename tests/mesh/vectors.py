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
    # The inbound request that `headers` are an outbound call of, if any.
    inbound: Headers | None
    findings: list[str]
    # All headers, with the B3 headers that repair leaves.
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
    def request(lines: list[str]) -> Headers:
        headers = [header(line) for line in lines]
        own = any(name == "x-request-id" for name, _ in headers)
        return headers if own or not entry.get("request_id", True) else [GOOD_REQUEST_ID, *headers]

    vectors = []
    for entry in tomllib.loads((_DIRECTORY / "rules.toml").read_text())["vector"]:
        vectors.append(
            Vector(
                name=entry["name"],
                headers=request(entry["headers"]),
                inbound=request(entry["inbound"]) if "inbound" in entry else None,
                findings=entry.get("findings", []),
                repaired=request(entry.get("repaired", entry["headers"])),
            )
        )
    return vectors
