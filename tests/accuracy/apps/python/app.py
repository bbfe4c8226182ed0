"""A service in Python with threads: waitress before a WSGI application, urllib3's pools.

Arguments and behaviour as ../go/main.go has them.
"""

import logging
import math
import random
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import urllib3
import waitress

ROUTES = {
    "sequential": {"a": [["h1"], ["h2"]], "b": [["h2"], ["h3"]], "c": [], "d": [["h1"]]},
    "parallel-background": {
        "a": [["h1"], ["h2"]], "b": [["h2", "h3"], ["h1"]], "c": [], "d": [["h1"]]
    },
}  # fmt: skip
# What a call asks for, without and with the user that the request named.
PATHS = {
    "h1": ("/items", "/items?user={}"),
    "h2": ("/profiles", "/profiles/{}"),
    "h3": ("/ratings", "/ratings/{}/all"),
}
WORK_MS = 0.3
BACKGROUND_MS = 200
THREADS = 16

PORT, OUTBOUND, VARIANT, FORWARD = sys.argv[1:]
STEPS: dict[str, list[list[str]]] = ROUTES[VARIANT]


def spin(rounds: int) -> None:
    x = 2463534242
    for _ in range(rounds):
        x ^= x << 13 & 0xFFFFFFFF
        x ^= x >> 17
        x ^= x << 5 & 0xFFFFFFFF
    if x == 0:
        raise AssertionError("xorshift never gives 0")


def calibrate() -> float:
    """How many rounds take a millisecond on a core that has nothing else to do."""
    rounds, best = 10_000, math.inf
    for _ in range(30):
        began = time.perf_counter()
        spin(rounds)
        best = min(best, 1000 * (time.perf_counter() - began))
    return rounds / best


ROUNDS_MS = calibrate()
# One pool for each service: it keeps connections by address, and here all
# services have the sidecar's.
POOLS = {
    host: urllib3.HTTPConnectionPool("127.0.0.1", int(OUTBOUND), maxsize=2 * THREADS, retries=False)
    for host in PATHS
}
EXECUTOR = ThreadPoolExecutor(2 * THREADS)


def work() -> None:
    spin(round(ROUNDS_MS * WORK_MS * math.exp(random.gauss(0, 0.5))))


def call(host: str, user: str, truth: bytes, request_id: str | None, ours: bool = True) -> None:
    headers = {"Host": host}
    if FORWARD == "request-id" and request_id:
        headers["X-Request-Id"] = request_id
    elif FORWARD == "truth" and ours:
        headers["X-Truth"] = truth.split()[0].decode()
    plain, of_user = PATHS[host]
    path = of_user.format(user) if user else plain
    response = POOLS[host].request("POST", path, body=truth, headers=headers)
    if response.status != 200:
        raise RuntimeError(f"{host}: status {response.status}")


def serve(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
    truth: bytes = environ["wsgi.input"].read()
    parts: list[str] = environ["PATH_INFO"].split("/")
    user = parts[2] if parts[1] == "users" else ""
    request_id = environ.get("HTTP_X_REQUEST_ID")
    work()
    for hosts in STEPS[parts[-1]]:
        # The thread makes a call of its own where there is nothing to wait for meanwhile.
        others = [EXECUTOR.submit(call, host, user, truth, request_id) for host in hosts[1:]]
        call(hosts[0], user, truth, request_id)
        for other in others:
            other.result()
        work()
    start("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "2")])
    return [b"ok"]


def background() -> None:
    while True:
        time.sleep(random.expovariate(1) * BACKGROUND_MS / 1000)
        try:
            call("h1", "", b"background".ljust(58), None, ours=False)
        except (RuntimeError, urllib3.exceptions.HTTPError) as error:
            logging.error("%s", error)


if __name__ == "__main__":
    # It warns when all threads are busy, which is what this is for.
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)
    if VARIANT == "parallel-background":
        threading.Thread(target=background, daemon=True).start()
    waitress.serve(serve, host="127.0.0.1", port=int(PORT), threads=THREADS)
