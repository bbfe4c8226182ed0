"""Users that click all the time, through the gateway."""

import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from types import TracebackType
from typing import Self

SHOP_HOST = "shop.example.com"
_ADDRESS = "http://localhost:8080"
_USERS = 3
_PAUSE_SECONDS = 0.02


class Traffic:
    """``host`` chooses the application; ``path`` is what is clicked on."""

    def __init__(self, host: str = "localhost", path: str = "/") -> None:
        self._request = urllib.request.Request(f"{_ADDRESS}{path}", headers={"host": host})
        # When, and what was answered: a status, or what went wrong.
        self.answers: list[tuple[float, int | str]] = []
        self._end = threading.Event()
        self._users = [threading.Thread(target=self._run) for _ in range(_USERS)]

    def __enter__(self) -> Self:
        for user in self._users:
            user.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._end.set()
        for user in self._users:
            user.join()

    def _run(self) -> None:
        while not self._end.wait(_PAUSE_SECONDS):
            began = time.time()
            self.answers.append((began, self._click()))

    def _click(self) -> int | str:
        try:
            with urllib.request.urlopen(self._request, timeout=20) as answer:
                answer.read()
                status: int = answer.status
                return status
        except urllib.error.HTTPError as error:
            return f"{error.code} {error.read().decode(errors='replace')}"
        except OSError as error:
            return str(error)

    def none_failed(self, what: str, least: int = 50) -> None:
        """Of at least so many clicks."""
        answers = Counter(answer for _, answer in self.answers)
        print(f"    {len(self.answers)} clicks during {what}: {dict(answers)}")
        assert len(self.answers) >= least
        failed = [(when, answer) for when, answer in self.answers if answer != 200]
        assert failed == []
