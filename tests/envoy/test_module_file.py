"""When an Envoy reads the module, where it is a file: with each configuration that is new, as
the file is then, and not when the file changes (envoyfilter/README.md, docs/upgrade.md)."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from check.sidecar import Running, Setup, running
from mesh.mesh import wasm_path

# What makes another module of it, that does the same: a section of its own.
SECTION = b"\x00\x05\x04abcd"


@pytest.fixture
def front(tmp_path: Path) -> Iterator[Running]:
    module = tmp_path / "plugin.wasm"
    module.write_bytes(wasm_path().read_bytes())
    with running(Setup(module=module)) as front:
        yield front


def replace(front: Running, content: bytes) -> None:
    """At once, as the kubelet does when a ConfigMap has changed."""
    new = front.setup.module.with_suffix(".new")
    new.write_bytes(content)
    os.rename(new, front.setup.module)


def stat(front: Running, name: str) -> int:
    lines = front.envoy.admin(f"/stats?filter={name}$").splitlines()
    return sum(int(line.rpartition(": ")[2]) for line in lines if line)


def copied(front: Running) -> bool:
    """Whether the calls of some clicks get the context of their requests."""
    before = stat(front, "decision=.=copied;.;calls_total")
    front.click()
    return stat(front, "decision=.=copied;.;calls_total") == before + front.setup.clicks


VMS = r"wasm.envoy.wasm.runtime.v8.active"


def test_it_reads_the_file_with_a_new_configuration(front: Running) -> None:
    """The outbound filter is then of the new file, and the inbound one of the old."""
    assert copied(front)
    modules = stat(front, VMS)
    front.tell_outbound({"mode": "repair"})
    assert copied(front)
    assert stat(front, VMS) == modules
    replace(front, wasm_path().read_bytes() + SECTION)
    assert copied(front)
    assert stat(front, VMS) == modules
    front.tell_outbound({"mode": "observe"})
    assert copied(front)
    assert stat(front, VMS) > modules


@pytest.mark.parametrize("broken", [True, False])
def test_a_file_that_is_broken_or_gone(front: Running, broken: bool) -> None:
    """Nothing comes of that until there is a new configuration; that one is refused."""
    if broken:
        replace(front, wasm_path().read_bytes()[:5000])
    else:
        front.setup.module.unlink()
    assert copied(front)
    front.tell_outbound({"mode": "repair"})
    assert stat(front, "b3relay.outbound.config_fail") == 1
    assert copied(front)
