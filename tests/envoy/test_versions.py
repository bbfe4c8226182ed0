"""Modules with different versions of the stored record in one Envoy, as while a pod
changes over: docs/upgrade.md says what users see."""

import asyncio
from pathlib import Path

import pytest

from mesh.envoy import Envoy
from mesh.mesh import ROOT, wasm_path
from mesh.procs import MeshError, Processes
from mesh.pushes import Pushes
from mesh.steady import Pod, decisions

pytestmark = pytest.mark.long

OTHER = ROOT / "target/other-version/wasm32-wasip1/release/b3relay.wasm"


def other() -> Path:
    if not OTHER.is_file():
        raise MeshError(f"no {OTHER}: run `make {OTHER.relative_to(ROOT)}`")
    return OTHER


def test_they_are_of_different_versions() -> None:
    assert b"b3relay/0/" not in wasm_path().read_bytes()
    assert b"b3relay/0/" in other().read_bytes()


# Modules with no VM ID at all share their data too.
@pytest.mark.parametrize("vm_id", ["b3relay", ""], ids=["one VM ID", "no VM ID"])
@pytest.mark.parametrize("outbound", ["ours", "other"])
@pytest.mark.parametrize("inbound", ["ours", "other"])
def test_two_versions(inbound: str, outbound: str, vm_id: str) -> None:
    """Of one version: every call is joined. Of two: none is, and none goes astray."""
    modules = {"ours": wasm_path(), "other": other()}
    with Processes() as processes:
        pod = Pod(processes.directory, "exclusive")
        config = pod.bootstrap(
            {}, vm_id, module=modules[inbound], outbound_module=modules[outbound]
        )
        running = Envoy(processes, "versions", config)
        running.start()
        processes.wait_ready({running.process: running.ready})

        async def load() -> None:
            async with pod.load.running():
                await asyncio.sleep(2)

        asyncio.run(load())
        counted = decisions(running)
        log = running.log()
    calls, requests = pod.load.calls, pod.load.requests
    print(requests, "requests,", dict(calls), "calls, counted", dict(counted))
    assert not pod.load.failed, pod.load.failed[:5]
    assert requests > 50
    assert calls["wrong"] == 0
    assert "panic" not in log
    if inbound == outbound:
        assert (calls["right"], calls["missed"]) == (2 * requests, 0)
        assert set(counted) == {"copied"}
    else:
        assert (calls["right"], calls["missed"]) == (0, 2 * requests)
        assert set(counted) <= {"unknown", "unsure"}


def test_an_upgrade_and_back() -> None:
    """Under load, from one version to the other and back: no request is lost, no call
    goes astray, and what comes after the change is joined."""
    with Processes() as processes:
        pod = Pod(processes.directory, "off")
        pushes = Pushes(pod, processes.directory)
        running = Envoy(
            processes,
            "upgraded",
            pushes.bootstrap(pod.bootstrap({}, module=other())),
            arguments=(
                "--disable-hot-restart",
                "--drain-time-s",
                "60",
                "--drain-strategy",
                "immediate",
            ),
        )
        running.start()
        processes.wait_ready({running.process: running.ready})
        joined = []

        async def scenario() -> None:
            async with pod.load.running():
                await asyncio.sleep(0.5)
                for module in (wasm_path(), other(), wasm_path()):
                    await pushes.push(running, pod.bootstrap({}, module=module))
                    # Connections of before stay with the filters of before until they end.
                    joined.append(any([await pod.load.all_are_joined() for _ in range(4)]))

        asyncio.run(scenario())
        log = running.log()
    print(pod.load.requests, "requests,", dict(pod.load.calls), "calls")
    assert not pod.load.failed, pod.load.failed[:5]
    assert pod.load.calls["wrong"] == 0
    assert pod.load.calls["right"] > pod.load.requests, "most of them"
    assert joined == [True, True, True]
    assert pod.load.calls["missed"] > 0, "else the versions were the same"
    assert "panic" not in log
