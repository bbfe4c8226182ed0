"""A call that was left alone, and whose request the log says when that has ended."""

import json
import re
import time
from contextlib import ExitStack

from mesh.envoy import TICK
from mesh.plain import Answer
from mesh.pod import Pod

# Both routes begin with a call to h1; `/a` makes another one after it.
WAYS = {"/a": ["h1", "h2"], "/b": ["h3"], "/c": ["h1"]}
TIMES, ROUNDS = 40, 10
# What an application does between its calls.
WORK_SECONDS = 0.005
CONFIG = {"attribution": "inferred", "look_back": True, "report_header": "request"}
LINE = re.compile(
    r'call to "(\S+)" with x-request-id="(\S+)" was left alone, and belonged to the request '
    r'with x-request-id="(\S+)" in trace (\S+) \((\S+) % sure, known when that ended\)'
)


class App:
    """Its requests, each with an ID and a trace of its own."""

    def __init__(self, pod: Pod) -> None:
        self._pod = pod
        self._requests = 0
        # Of the calls that were left alone, by their IDs: the ID of the request, and its trace.
        self.left_alone: dict[str, tuple[str, str]] = {}

    def begin(self, stack: ExitStack, path: str) -> tuple[str, str]:
        """A request, which ends with the stack: its ID and its trace."""
        self._requests += 1
        id_ = f"1b9d6bcd-bbfd-4b2d-9b5d-{self._requests:012}"
        trace = f"463ac35c9f6413ad{self._requests:016x}"
        context = {"x-b3-traceid": trace, "x-b3-spanid": "a2fb4a1d1a96d312", "x-b3-sampled": "1"}
        headers = {"x-request-id": id_, **context}
        serving = self._pod.serving(path, [(name, headers[name].encode()) for name in headers])
        stack.enter_context(serving)
        return id_, trace

    def call(self, host: str, belongs_to: tuple[str, str]) -> str:
        """A call; its ID."""
        time.sleep(WORK_SECONDS)
        answer = self._pod.call([], host)
        time.sleep(WORK_SECONDS)
        id_ = received(answer, "x-request-id")
        if "unsure" in received(answer, "x-b3relay"):
            assert received(answer, "x-b3-traceid") == ""
            self.left_alone[id_] = belongs_to
        return id_


def received(answer: Answer, name: str) -> str:
    assert answer.received is not None, answer
    return b" ".join(value for found, value in answer.received if found == name).decode()


def test_the_log_says_to_which_request_a_call_belonged() -> None:
    with Pod(json.dumps(CONFIG)) as pod:
        app = App(pod)
        for _ in range(TIMES):
            for path, hosts in WAYS.items():
                with ExitStack() as alone:
                    request = app.begin(alone, path)
                    for host in hosts:
                        app.call(host, request)
        first_calls = []
        for _ in range(ROUNDS):
            with ExitStack() as later:
                other = app.begin(later, "/c")
                with ExitStack() as sooner:
                    request = app.begin(sooner, "/a")
                    first_calls.append(app.call("h1", request))
                    app.call("h2", request)
                app.call("h1", other)
        time.sleep(3 * TICK)
        told = LINE.findall(pod.log())
    unsure = [call for call in first_calls if call in app.left_alone]
    assert len(unsure) > ROUNDS / 2, app.left_alone
    assert len({line[1] for line in told}.intersection(unsure)) > len(unsure) / 2, told
    for _, call, request_id, trace, percent in told:
        # Once each.
        assert app.left_alone.pop(call) == (request_id, trace), told
        assert float(percent) >= 99.5
