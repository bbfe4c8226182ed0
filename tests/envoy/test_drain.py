"""Configurations pushed and an Envoy replaced, under load: no request is lost, no call goes astray."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from mesh.envoy import Envoy
from mesh.procs import Processes
from mesh.pushes import Pushes, listeners
from mesh.steady import Pod, decisions, judge, until

# With this strategy Envoy says `connection: close` in each answer from the
# beginning of the draining on.
AT_ONCE = ("--drain-strategy", "immediate")
# What is in flight at its end is cut off, and the time runs while each worker
# starts a VM before it does anything else: seconds, on a busy machine. In earnest
# it is 600.
PUSH_DRAIN_SECONDS, RESTART_DRAIN_SECONDS = 60, 4
# The least of what filters do about calls whose key nobody knows, and the default. One
# that has taken over knows nothing of the requests before it, and gives no call of theirs
# to another request: the application forwards their IDs.
ATTRIBUTION = pytest.mark.parametrize("attribution", ["off", "exclusive"])


def another_module(path: Path) -> Path:
    """The same module with a custom section at its end: to Envoy, another one."""
    name = b"another"
    changed = path.with_name("another.wasm")
    changed.write_bytes(path.read_bytes() + bytes([0, len(name) + 1, len(name)]) + name)
    return changed


@ATTRIBUTION
def test_pushed_configurations(attribution: str) -> None:
    with Processes() as processes:
        pod = Pod(processes.directory, attribution)
        pushes = Pushes(pod, processes.directory)
        running = Envoy(
            processes,
            "pushed",
            pushes.bootstrap(pod.bootstrap({})),
            concurrency=2,
            arguments=(
                "--disable-hot-restart",
                "--drain-time-s",
                str(PUSH_DRAIN_SECONDS),
                *AT_ONCE,
            ),
        )
        running.start()
        processes.wait_ready({running.process: running.ready})

        async def scenario() -> AsyncIterator[str]:
            async with pod.load.running():
                await asyncio.sleep(0.5)
                await pushes.push(running, pod.bootstrap({"capacity": 128}))
                yield "another configuration"
                bad = pod.bootstrap({"capacity": 1})
                await pushes.push(running, bad, "update_rejected")
                yield "a bad configuration"
                module = another_module(pod.module)
                await pushes.push(running, pod.bootstrap({}, module=module))
                yield "another module"
                await pushes.push(running, pod.bootstrap({}, vm_configuration="another"))
                yield "another VM"
                await pushes.push(running, pod.bootstrap({}, vm_id="another"))
                yield "another VM ID"
                # Listeners that differ in a filter alone are changed in place.
                drained = listeners(running, "total_filter_chains_draining")
                assert drained == 8, "two listeners, four times"

        async def told() -> None:
            missed = 0
            async for step in scenario():
                print(f"{step}: {pod.load.calls['missed'] - missed} calls missed")
                missed = pod.load.calls["missed"]

        asyncio.run(told())
        judge(pod.load, decisions(running))
        # And the refused one was refused for that reason.
        assert "b3relay: configuration key `capacity`: found 1, " in running.log()
        assert "panic" not in running.log()


def wakes(running: Envoy, seconds: float = 5) -> int:
    """How often its threads wake up in so many seconds."""

    def so_far() -> int:
        statuses = Path("/proc", str(running.process.pid), "task").glob("*/status")
        lines = [line for each in statuses for line in each.read_text().splitlines()]
        return sum(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt"))

    before = so_far()
    time.sleep(seconds)
    return so_far() - before


@pytest.mark.long
def test_configurations_that_are_gone_wake_nobody_up() -> None:
    with Processes() as processes:
        pod = Pod(processes.directory, "exclusive")
        pushes = Pushes(pod, processes.directory)
        running = Envoy(
            processes,
            "gone",
            pushes.bootstrap(pod.bootstrap({})),
            concurrency=2,
            arguments=("--disable-hot-restart", "--drain-time-s", "1", *AT_ONCE),
        )
        running.start()
        processes.wait_ready({running.process: running.ready})

        async def push() -> None:
            async with pod.load.running():
                for capacity in range(64, 76):
                    await pushes.push(running, pod.bootstrap({"capacity": capacity}))

        time.sleep(2)
        before = wakes(running)
        asyncio.run(push())
        time.sleep(4)
        now = wakes(running)
        print(before, now)
        # Two filters, twelve times, on two workers: with a timer each, 240 more.
        assert now < before + 100


@pytest.mark.long
@ATTRIBUTION
def test_hot_restart(attribution: str) -> None:
    with Processes() as processes:
        pod = Pod(processes.directory, attribution)
        base_id = processes.directory / "base-id"
        times = (
            *("--drain-time-s", str(RESTART_DRAIN_SECONDS), *AT_ONCE),
            *("--parent-shutdown-time-s", str(RESTART_DRAIN_SECONDS + 1)),
        )
        # What the earlier Envoy has counted since its last flush the later one adds
        # to its own numbers, whenever it flushes: so that it gets all of it.
        flush = ("60s", "0.2s")

        def epoch(number: int, *arguments: str) -> Envoy:
            started = Envoy(
                processes,
                f"epoch-{number}",
                pod.bootstrap({}) | {"stats_flush_interval": flush[number]},
                concurrency=2,
                arguments=("--restart-epoch", str(number), *times, *arguments),
            )
            started.start()
            return started

        def serves(running: Envoy, number: int) -> bool:
            # Both have the same admin address; the later one takes it over.
            try:
                info = json.loads(running.admin("/server_info"))
            except (OSError, ValueError):
                return False
            options: dict[str, Any] = info["command_line_options"]
            return bool(info["state"] == "LIVE" and options["restart_epoch"] == number)

        parent = epoch(0, "--use-dynamic-base-id", "--base-id-path", str(base_id))
        processes.wait_ready({parent.process: lambda: serves(parent, 0)})

        async def scenario() -> Envoy:
            async with pod.load.running():
                await asyncio.sleep(0.5)
                child = epoch(1, "--base-id", base_id.read_text().strip())
                await until("epoch 1", lambda: serves(child, 1))
                await until("epoch 0 ended", lambda: parent.process.exit_code is not None)
                await asyncio.sleep(0.5)
            return child

        try:
            child = asyncio.run(scenario())
        finally:
            # Envoy leaves it behind; the number is ten times the ID.
            shared = f"envoy_shared_memory_{base_id.read_text().strip()}0"
            Path("/dev/shm", shared).unlink(missing_ok=True)
        judge(pod.load, decisions(child))
        for each in (parent, child):
            assert "panic" not in each.log() and "critical" not in each.log()
