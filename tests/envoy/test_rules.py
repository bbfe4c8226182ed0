"""What the rules about request IDs say of Envoy: R01, R02, R03 and R06, without the filter."""

import re
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from mesh import envoy
from mesh.collector import Collector
from mesh.envoy import Common, Envoy
from mesh.plain import Connection, Echo
from mesh.ports import free_port
from mesh.procs import Processes

UUID = rb"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"


@pytest.fixture(scope="module")
def sidecar() -> Iterator[Connection]:
    """The inbound side of one that samples half of the requests."""
    with ExitStack() as stack:
        echo = stack.enter_context(Echo())
        collector = stack.enter_context(Collector())
        processes = stack.enter_context(Processes())
        port = free_port()
        bootstrap = envoy.sidecar(
            Common(collector.address),
            "pod",
            admin_port=free_port(),
            inbound_port=port,
            outbound_port=free_port(),
            app_port=echo.address[1],
            callees={},
        )
        listener = bootstrap["static_resources"]["listeners"][0]
        [manager] = listener["filter_chains"][0]["filters"]
        manager["typed_config"]["tracing"]["random_sampling"] = {"value": 50.0}
        manager["typed_config"]["append_x_forwarded_port"] = True
        started = Envoy(processes, "pod", bootstrap, concurrency=1)
        started.start()
        processes.wait_ready({started.process: started.ready}, 60)
        connection = Connection(port)
        stack.callback(connection.close)
        yield connection


def received(sidecar: Connection, *ids: bytes) -> tuple[list[bytes], bytes]:
    """The request IDs that the upstream got, and x-b3-sampled."""
    headers = sidecar.get([("x-request-id", value) for value in ids]).received
    assert headers is not None
    [sampled] = [value for name, value in headers if name == "x-b3-sampled"]
    return [value for name, value in headers if name == "x-request-id"], sampled


@pytest.mark.parametrize("given", [[], [b""]], ids=["missing", "empty"])
def test_a_missing_id_is_filled_in(sidecar: Connection, given: list[bytes]) -> None:
    [found], _ = received(sidecar, *given)
    # Its 15th character says why the request is traced.
    assert re.fullmatch(UUID, found[:14] + b"4" + found[15:]), found


def test_a_made_up_id_stands_behind_what_envoy_adds_before(sidecar: Connection) -> None:
    headers = sidecar.get([("a", b"b")]).received
    assert headers is not None
    names = [name for name, _ in headers]
    at = names.index("x-request-id")
    assert names.index("a") < at
    assert names[at - 2 : at] == ["x-forwarded-proto", "x-forwarded-port"]


def test_the_first_digits_decide(sidecar: Connection) -> None:
    """Half are sampled, by the rest of a division by 10,000; what is no number, never."""
    for number in (0, 4999, 5000, 9999, 123_454_321, 123_456_789):
        _, sampled = received(sidecar, b"%08x-1b2d-4c3e-9d4f-5a6b7c8d9e0f" % number)
        assert sampled == (b"1" if number % 10_000 < 5_000 else b"0"), number
    for odd in (b"checkout-17", b"1234", b"zzzzzzzz-1b2d-4c3e-9d4f-5a6b7c8d9e0f"):
        assert received(sidecar, odd)[1] == b"0", odd


def test_the_reason_is_written_into_what_is_no_uuid(sidecar: Connection) -> None:
    given = b"00000000" + b"abcdefghijklmnopqrstuvwxyzab"
    [found], sampled = received(sidecar, given)
    assert sampled == b"1"
    assert found == given[:14] + b"9" + given[15:]
    # Of any other length it stays.
    assert received(sidecar, given + b"c")[0] == [given + b"c"]


def test_several_are_joined(sidecar: Connection) -> None:
    [found], _ = received(sidecar, b"one", b"two")
    assert found == b"one,two"
