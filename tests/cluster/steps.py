"""What several tests of the walk do: click, wait, look."""

import json
import re
from collections.abc import Callable

from cluster.traces import Jaeger, Tree
from cluster.walk import GUIDE, Walk, wait_for
from mesh.collector import Span
from mesh.tree import traces as by_trace

SHOP = ("front.shop", "orders.shop", "stock.shop")
GATEWAY = "istio-ingressgateway.istio-system"
# What the page on the forms says that kubectl may print.
WARNINGS = (
    "EnvoyFilter exposes internal implementation details that may change at any time",
    "multiple tracing is not currently supported",
)


def pods(printed: str) -> list[list[str]]:
    """Name, ready, status and so on, of what ``kubectl get pods`` prints."""
    return [line.split() for line in printed.splitlines()[1:]]


def click_in_shop(walk: Walk) -> None:
    assert "front orders stock" in walk.run(GUIDE, "exec deploy/stock")


def click_in_bookinfo(walk: Walk) -> None:
    printed = walk.run(GUIDE, "curl -sS localhost:8080/productpage")
    assert "<title>Simple Bookstore App</title>" in printed


def settle(walk: Walk, namespace: str = "shop") -> None:
    """Until the pods of before a change are gone."""

    ending = "jsonpath='{.items[*].metadata.deletionTimestamp}'"

    def gone() -> bool:
        return walk.quiet(f"kubectl -n {namespace} get pods -o {ending}") == ""

    wait_for(gone, 180, lambda: f"old pods in {namespace}")


def warnings_are_known(printed: str) -> None:
    told = [line for line in printed.splitlines() if "Warning" in line]
    assert all(any(known in line for known in WARNINGS) for line in told), told


def trees_of_shop(walk: Walk, spans: int, paths: bool = True) -> list[Tree]:
    return Jaeger().trees(lambda: click_in_shop(walk), SHOP, spans, paths)


def spans_of_shop(walk: Walk, count: int) -> list[Span]:
    """Of one click, in whichever traces, when that many have arrived."""
    return Jaeger().spans(lambda: click_in_shop(walk), SHOP, count)


def number_of_traces(spans: list[Span]) -> int:
    return len(by_trace(spans))


def until_one_trace(walk: Walk, seconds: float = 90) -> list[Span]:
    """Clicks, until the three services are in one trace. A change takes a second or two."""
    found: list[Span] = []

    def whole() -> bool:
        nonlocal found
        found = spans_of_shop(walk, 3)
        return number_of_traces(found) == 1 and len(found) == 3

    wait_for(whole, seconds, lambda: f"one trace: {found}")
    return found


def until_in_pieces(walk: Walk) -> None:
    """Clicks, until each call is a trace of its own again."""
    eventually(lambda: number_of_traces(spans_of_shop(walk, 6)) == 3, "three traces")


def statistics(walk: Walk, pod: str = "deploy/front", namespace: str = "shop") -> dict[str, int]:
    """Of b3relay in a sidecar, or in a gateway."""
    printed = walk.quiet(
        f"kubectl -n {namespace} exec {pod} -c istio-proxy -- pilot-agent request GET stats"
    )
    found = re.findall(r"^(\S*b3relay\S*): (\d+)$", printed, re.MULTILINE)
    return {name: int(value) for name, value in found}


def configured(walk: Walk, pod: str = "deploy/front", namespace: str = "shop") -> str:
    """The configuration that a sidecar runs with."""
    return walk.quiet(
        f"kubectl -n {namespace} exec {pod} -c istio-proxy --"
        " pilot-agent request GET 'config_dump?include_eds=false'"
    )


def listeners(walk: Walk, pod: str, namespace: str) -> str:
    """Those that take connections, without what is drained for 45 s."""
    printed = walk.quiet(
        f"kubectl -n {namespace} exec {pod} -c istio-proxy --"
        " pilot-agent request GET 'config_dump?resource=dynamic_listeners'"
    )
    return json.dumps([one.get("active_state") for one in json.loads(printed)["configs"]])


def eventually(check: Callable[[], bool], why: str, seconds: float = 60) -> None:
    wait_for(check, seconds, lambda: why)
