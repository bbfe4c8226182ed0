"""Gunicorn before a WSGI application, and requests, with a session in each process.

A fifth argument names the workers: sync has 8 processes of one request each, gthread 2 of 8
threads each. A request more than that waits: where sync has them in the queue of the
socket, gthread accepts the connection first and lets the request wait for a thread.
"""

import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import requests
import service
import sessions
import threads
from gunicorn.app.base import BaseApplication
from requests.adapters import HTTPAdapter

KIND = sys.argv[5]
PROCESSES, THREADS = {"sync": (8, 1), "gthread": (2, 8)}[KIND]


# Of each process: they are made where they are first asked for, after the fork.
@cache
def session(host: str) -> requests.Session:
    """One for each service, as in app.py."""
    made = requests.Session()
    made.mount("http://", HTTPAdapter(pool_maxsize=2 * THREADS + 1))
    return made


@cache
def executor() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(2 * THREADS)


CALL = sessions.calling(session)


class Server(BaseApplication):  # type: ignore[misc]  # It has no types.
    def load_config(self) -> None:
        def forked(_server: object, _worker: object) -> None:
            for host in service.HOSTS:
                session(host)
            threads.start_background(CALL, PROCESSES)

        settings = {
            "bind": f"127.0.0.1:{service.PORT}",
            "worker_class": KIND,
            "workers": PROCESSES,
            "threads": THREADS,
            "preload_app": True,
            # Longer than the sidecar keeps a connection of no use.
            "keepalive": 75,
            "post_fork": forked,
        }
        for name, value in settings.items():
            self.cfg.set(name, value)

    def load(self) -> Callable[..., Iterable[bytes]]:
        return threads.application(CALL, executor)


if __name__ == "__main__":
    Server().run()
