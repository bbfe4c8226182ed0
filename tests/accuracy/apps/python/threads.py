"""The services in Python whose requests have a thread each: a WSGI application."""

import logging
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from typing import Any

import service

Call = Callable[[str, str, bytes, str | None, bool], None]


def application(call: Call, executor: Callable[[], Executor]) -> Callable[..., Iterable[bytes]]:
    """``call(host, user, truth, request_id, ours)``; ``executor``: of calls at once."""

    def serve(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        truth: bytes = environ["wsgi.input"].read()
        steps, user = service.asked(environ["PATH_INFO"])
        request_id = environ.get("HTTP_X_REQUEST_ID")
        service.work()
        for hosts in steps:
            # The thread makes a call of its own where there is nothing to wait for meanwhile.
            others = [
                executor().submit(call, host, user, truth, request_id, True) for host in hosts[1:]
            ]
            call(hosts[0], user, truth, request_id, True)
            for other in others:
                other.result()
            service.work()
        start("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "2")])
        return [b"ok"]

    return serve


def start_background(call: Call, processes: int = 1) -> None:
    def background() -> None:
        while True:
            time.sleep(service.pause(processes))
            try:
                call("h1", "", service.BACKGROUND_TRUTH, None, False)
            except Exception as error:
                logging.error("%s", error)

    if service.HAS_BACKGROUND:
        threading.Thread(target=background, daemon=True).start()
