"""How the services in Python that use requests make a call."""

from collections.abc import Callable

import requests
import service
from threads import Call


def calling(session: Callable[[str], requests.Session]) -> Call:
    """``session(host)``: the one for calls to this service."""

    def call(host: str, user: str, truth: bytes, request_id: str | None, ours: bool) -> None:
        response = session(host).post(
            f"http://127.0.0.1:{service.OUTBOUND}{service.target(host, user)}",
            data=truth,
            headers=service.headers(host, truth, request_id, ours),
        )
        service.check(host, response.status_code)

    return call
