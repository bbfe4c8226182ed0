"""A service in Python with threads: waitress before a WSGI application, urllib3's pools."""

import logging
from concurrent.futures import ThreadPoolExecutor

import service
import threads
import urllib3
import waitress

THREADS = 16

# One pool for each service: it keeps connections by address, and here all
# services have the sidecar's.
POOLS = {
    host: urllib3.HTTPConnectionPool(
        "127.0.0.1", service.OUTBOUND, maxsize=2 * THREADS, retries=False
    )
    for host in service.HOSTS
}
EXECUTOR = ThreadPoolExecutor(2 * THREADS)


def call(host: str, user: str, truth: bytes, request_id: str | None, ours: bool) -> None:
    headers = service.headers(host, truth, request_id, ours)
    response = POOLS[host].request("POST", service.target(host, user), body=truth, headers=headers)
    service.check(host, response.status)


if __name__ == "__main__":
    # It warns when all threads are busy, which is what this is for.
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)
    threads.start_background(call)
    serve = threads.application(call, lambda: EXECUTOR)
    waitress.serve(serve, host="127.0.0.1", port=service.PORT, threads=THREADS)
