"""A bad neighbour in the same shared data, a wall clock that jumps, and any number of
workers: no request fails, and no call gets the context of another request."""

import asyncio
import re
import subprocess
import time
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection
from pathlib import Path

import pytest

from mesh import envoy
from mesh.envoy import Envoy, Wasm
from mesh.mesh import ROOT
from mesh.ports import HOST
from mesh.procs import MeshError, Processes
from mesh.steady import USERS, Pod, decisions

NEIGHBOUR = ROOT / "target/wasm32-wasip1/release/b3relay_neighbour.wasm"
# As src/store/shared_data.rs has it.
(PREFIX,) = set(
    re.findall(r'PREFIX: &\[u8\] = b"([^"]+)"', (ROOT / "src/store/shared_data.rs").read_text())
)


def neighbour(what: str) -> Wasm:
    if not NEIGHBOUR.is_file():
        raise MeshError(f"no {NEIGHBOUR}: run `make {NEIGHBOUR.relative_to(ROOT)}`")
    return Wasm(NEIGHBOUR, f"{what} {PREFIX}", root_id="neighbour")


def run(
    bad: Wasm | None,
    workers: int = 2,
    may_fail: int = 0,
    users: int = USERS,
    capacity: int = 4096,
) -> tuple[Pod, str, float]:
    """Load for some seconds: also the log of the Envoy, and how many requests it has
    forgotten for lack of room. ``may_fail`` is how many somebody else makes fail."""
    with Processes() as processes:
        pod = Pod(processes.directory, "exclusive")
        running = Envoy(
            processes,
            "faults",
            pod.bootstrap({"capacity": capacity}, neighbour=bad),
            concurrency=workers,
        )
        pod.load.users = users
        running.start()
        processes.wait_ready({running.process: running.ready})

        async def load() -> None:
            async with pod.load.running():
                await asyncio.sleep(3)

        asyncio.run(load())
        counted = decisions(running)
        evicted = running.stats("b3relay_evicted_total")["b3relay_evicted_total{}"]
        assert running.process.exit_code is None, running.log()[-2000:]
        log = running.log()
    print(pod.load.requests, "requests,", dict(pod.load.calls), "calls, counted", dict(counted))
    failed = pod.load.failed
    assert len(failed) <= may_fail, f"{len(failed)}: {failed[:5]}"
    assert pod.load.requests > 50
    assert sum(pod.load.calls.values()) == 2 * (pod.load.requests - len(failed))
    assert pod.load.calls["wrong"] == 0
    return pod, log, evicted


@pytest.mark.long
def test_a_neighbour_that_panics() -> None:
    """In a VM of its own, since its code is another: b3relay does not notice. Envoy answers
    the request in which a VM panics with 503, once for each worker, and goes on without
    that filter."""
    pod, log, _ = run(neighbour("panic"), workers=2, may_fail=2)
    assert log.count("neighbour: panics, as it was told to") == len(pod.load.failed) > 0
    assert all(line.endswith("status 503") for line in pod.load.failed)
    assert pod.load.calls["missed"] == 0


@pytest.mark.long
@pytest.mark.parametrize("what", ["truncated", "random", "another", "large"])
def test_a_neighbour_that_spoils_what_is_stored(what: str) -> None:
    """Traces are lost, and nothing else."""
    _, log, _ = run(neighbour(what))
    spoiled = [int(n) for n in re.findall(rf"neighbour: (\d+) values are {what}", log)]
    assert sum(spoiled) > 20, log[-2000:]
    assert "panicked" not in log and "critical" not in log, log[-2000:]


@pytest.mark.long
def test_a_neighbour_that_fills_the_shared_data() -> None:
    pod, log, _ = run(neighbour("many"))
    assert pod.load.calls["right"] == 2 * pod.load.requests
    assert "panicked" not in log and "critical" not in log, log[-2000:]


@pytest.mark.parametrize("workers", [1, 2, *(pytest.param(n, marks=pytest.mark.long) for n in (4, 8))])
def test_any_number_of_workers(workers: int) -> None:
    pod, _, evicted = run(None, workers)
    assert pod.load.calls["right"] == 2 * pod.load.requests
    assert evicted == 0


@pytest.mark.long
def test_no_room() -> None:
    """More requests at once than the smallest store holds: the oldest are forgotten."""
    pod, _, evicted = run(None, workers=1, users=400, capacity=64)
    assert evicted > 0
    assert pod.load.calls["right"] > 0


class Clock:
    """An Envoy whose wall clock can be moved."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "clock"
        library = directory / "clock.so"
        source = ROOT / "tests/mesh/clock.c"
        subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, source], check=True)
        self.move(0)
        self.program = directory / "envoy-with-clock"
        self.program.write_text(
            "#!/bin/sh\n"
            f"export LD_PRELOAD='{library}' B3RELAY_CLOCK='{self._file}'\n"
            f"exec '{envoy.binary()}' \"$@\"\n"
        )
        self.program.chmod(0o755)

    def move(self, seconds: int) -> None:
        """By so much from what it is in truth."""
        self._file.touch()
        # In place: it is mapped.
        with self._file.open("r+b") as file:
            file.write(seconds.to_bytes(8, "little", signed=True))


def ahead(running: Envoy) -> float:
    """Seconds by which Envoy's wall clock is ahead."""
    connection = HTTPConnection(HOST, running.admin_port, timeout=20)
    connection.request("GET", "/ready")
    told = connection.getresponse().headers["date"]
    connection.close()
    return parsedate_to_datetime(told).timestamp() - time.time()


HOUR = 3600


@pytest.mark.long
def test_a_clock_that_jumps() -> None:
    """Forwards, backwards and by years. What was in flight may be forgotten; what comes
    afterwards is joined."""
    with Processes() as processes:
        pod = Pod(processes.directory, "exclusive")
        clock = Clock(processes.directory)
        running = Envoy(processes, "clock", pod.bootstrap({}), program=clock.program)
        running.start()
        processes.wait_ready({running.process: running.ready})
        joined = []

        async def scenario() -> None:
            async with pod.load.running():
                await asyncio.sleep(1)
                for seconds in (HOUR, 0, -HOUR, -2 * HOUR, 24 * 365 * HOUR, 1, 0):
                    clock.move(seconds)
                    await asyncio.sleep(1)
                    assert abs(await asyncio.to_thread(ahead, running) - seconds) < 30
                    joined.append(any([await pod.load.all_are_joined() for _ in range(2)]))

        asyncio.run(scenario())
        counted = decisions(running)
        log = running.log()
    print(pod.load.requests, "requests,", dict(pod.load.calls), "calls, counted", dict(counted))
    assert not pod.load.failed, pod.load.failed[:5]
    assert pod.load.calls["wrong"] == 0
    assert joined == [True] * 7
    assert "panicked" not in log and "critical" not in log, log[-2000:]
