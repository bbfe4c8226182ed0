"""A bad configuration: Envoy refuses it, and says why."""

import pytest

from mesh import envoy
from mesh.envoy import Wasm
from mesh.mesh import wasm_path
from mesh.ports import HOST, free_port


def validate(config: str | None) -> envoy.Validation:
    wasm = Wasm(wasm_path(), config)
    plain = envoy.plain(
        {free_port(): ("INBOUND", wasm)}, admin_port=free_port(), upstream=(HOST, free_port())
    )
    return envoy.validate(plain)


@pytest.mark.parametrize(
    "config",
    [None, "", "{}", '{"mode": "repair", "copy_headers": ["baggage"], "capacity": 65536}'],
)
def test_good(config: str | None) -> None:
    result = validate(config)
    assert result.exit_code == 0, result.log


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ('{"mod": "repair"}', "configuration key `mod`: not known, allowed: `mode`, "),
        (
            '{"mode": "watch"}',
            'configuration key `mode`: found "watch", '
            'allowed: "observe", "repair" or "enforce" (line 1 column 16)',
        ),
        (
            '{"capacity": 1000000}',
            "configuration key `capacity`: found 1000000, "
            "allowed: a whole number from 64 to 65536 (line 1 column 20)",
        ),
        ('{"relay": true', "configuration: EOF while parsing an object at line 1 column 14"),
        ("[]", "configuration: found a list, allowed: a JSON object such as "),
    ],
)
def test_bad(config: str, reason: str) -> None:
    result = validate(config)
    assert result.exit_code != 0
    assert f"b3relay: {reason}" in result.log
