"""What the services in Python have in common: all but the server and the client.

Arguments and behaviour as ../go/main.go has them.
"""

import math
import os
import random
import sys
import time

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
HOSTS = list(PATHS)
WORK_MS = float(os.environ.get("WORK_MS", "0.3"))
BACKGROUND_MS = 200
BACKGROUND_TRUTH = b"background".ljust(58)

PORT, OUTBOUND, VARIANT, FORWARD = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
HAS_BACKGROUND = VARIANT == "parallel-background"


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


def work() -> None:
    spin(round(ROUNDS_MS * WORK_MS * math.exp(random.gauss(0, 0.5))))


def asked(path: str) -> tuple[list[list[str]], str]:
    """The steps of a request, and the user whom it names."""
    parts = path.split("/")
    return ROUTES[VARIANT][parts[-1]], parts[2] if parts[1] == "users" else ""


def target(host: str, user: str) -> str:
    plain, of_user = PATHS[host]
    return of_user.format(user) if user else plain


def headers(host: str, truth: bytes, request_id: str | None, ours: bool) -> dict[str, str]:
    """Of a call; ``ours``: not of the background."""
    found = {"Host": host}
    if FORWARD == "request-id" and request_id:
        found["X-Request-Id"] = request_id
    elif FORWARD == "truth" and ours:
        found["X-Truth"] = truth.split()[0].decode()
    return found


def pause(processes: int = 1) -> float:
    """Seconds until the next call of the background, if so many processes have one."""
    return random.expovariate(1) * BACKGROUND_MS * processes / 1000


def check(host: str, status: int) -> None:
    if status != 200:
        raise RuntimeError(f"{host}: status {status}")
