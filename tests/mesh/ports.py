"""Free TCP ports on loopback for the processes of a mesh."""

import os
import random
import socket
from collections.abc import Iterable

HOST = "127.0.0.1"

# Below the range from which Linux takes the local ports of outgoing
# connections (32768 and up), or such a connection could take a port between
# the moment we choose it and the moment a process listens on it. And below the node ports
# of Kubernetes (30000 to 32767): on a node they lead elsewhere, though nothing listens.
_RANGE = range(15000, 30000)
# Test processes that run side by side (pytest-xdist: gw0, gw1, ...) do not
# choose among the same ones, for the same reason.
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_OURS = _RANGE[_WORKER % 8 :: 8]
# Held for each: Envoys share their ports (SO_REUSEPORT), so that two runs of tests at
# the same time could listen on one, and each would get some of the other's requests.
_given: dict[int, socket.socket] = {}


def free_port() -> int:
    """A port that nothing listens on and that was not handed out before."""
    for port in random.sample(_OURS, len(_OURS)):
        if port in _given:
            continue
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
                _given[port] = _hold(port)
            except OSError:
                continue
        return port
    raise RuntimeError(f"no free port in {_OURS}")


def _hold(port: int) -> socket.socket:
    """A name in the kernel's abstract namespace, which one process at a time can have."""
    lock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        lock.bind(f"\0b3relay-port-{port}")
    except OSError:
        lock.close()
        raise
    return lock


def release(ports: Iterable[int]) -> None:
    """These may be handed out again: what listened there has ended."""
    for port in ports:
        _given.pop(port).close()
