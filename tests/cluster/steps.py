"""What several tests of the walk do: click, wait, look."""

import json
import re
import secrets
import shlex
import time
from collections.abc import Callable

from cluster.traces import Jaeger, Tree
from cluster.traffic import SHOP_HOST
from cluster.walk import GUIDE, Walk, wait_for
from mesh.collector import Span
from mesh.tree import traces as by_trace

# The connections that Envoy is about to close are closed.
_CLOSED_SECONDS = 2
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
    assert "front orders stock" in _clicked(lambda: walk.run(GUIDE, "exec deploy/stock"))


def click_in_bookinfo(walk: Walk) -> None:
    printed = _clicked(lambda: walk.run(GUIDE, "curl -sS localhost:8080/productpage"))
    assert "<title>Simple Bookstore App</title>" in printed


def _clicked(click: Callable[[], str]) -> str:
    """What a click prints. In the 45 s after listeners were replaced Envoy may close a
    connection with a request on it, whatever was changed (docs/upgrade.md): one that is lost
    is done again, once. Where none may be lost: Traffic."""
    try:
        return click()
    except AssertionError as error:
        print(f"lost, and done again: {error}")
    time.sleep(_CLOSED_SECONDS)
    return click()


_SHOP_FROM_OUTSIDE = f"""\
apiVersion: networking.istio.io/v1
kind: Gateway
metadata:
  name: from-outside
spec:
  selector:
    istio: ingressgateway
  servers:
  - port: {{number: 8080, name: http, protocol: HTTP}}
    hosts: [{SHOP_HOST}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: from-outside
spec:
  hosts: [{SHOP_HOST}]
  gateways: [from-outside]
  http:
  - route:
    - destination: {{host: front, port: {{number: 8080}}}}
"""


def apply(walk: Walk, objects: str, namespace: str = "shop") -> None:
    """Objects of a test's own."""
    path = walk.directory / "objects.yaml"
    path.write_text(objects)
    walk.quiet(f"kubectl -n {namespace} apply -f {path}")


def open_shop(walk: Walk) -> None:
    """A way in for traffic; the clicks of the pages come from inside."""
    apply(walk, _SHOP_FROM_OUTSIDE)


def settle(walk: Walk, namespace: str = "shop") -> None:
    """Until the pods of before a change are gone."""

    ending = "jsonpath='{.items[*].metadata.deletionTimestamp}'"

    def gone() -> bool:
        return walk.quiet(f"kubectl -n {namespace} get pods -o {ending}") == ""

    wait_for(gone, 180, lambda: f"old pods in {namespace}")


def module_is_in_every_pod(walk: Walk) -> bool:
    """A kubelet looks every minute or two for what is new in a ConfigMap, where pods run
    already that have it mounted."""
    look = "test -e /etc/b3relay/plugin.wasm && echo here || echo absent"
    pods = walk.quiet("kubectl -n shop get pods -o name").split()
    return all(
        walk.quiet(f"kubectl -n shop exec {pod} -c istio-proxy -- sh -c {shlex.quote(look)}")
        == "here\n"
        for pod in pods
    )


def warnings_are_known(printed: str) -> None:
    told = [line for line in printed.splitlines() if "Warning" in line]
    assert all(any(known in line for known in WARNINGS) for line in told), told


def trees_of_shop(
    walk: Walk, spans: int, paths: bool = True, patience: float = 25
) -> list[Tree]:
    return Jaeger().trees(
        lambda: click_in_shop(walk), SHOP, spans, paths, patience=patience
    )


# For the spans of a click that is tried again.
PATIENCE = 5


def spans_of_shop(walk: Walk, count: int) -> list[Span]:
    """Of one click, in whichever traces, when that many have arrived."""
    return Jaeger().spans(lambda: click_in_shop(walk), SHOP, count, patience=PATIENCE)


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


_CONTEXT = {"x-b3-spanid": "a2fb4a1d1a96d312", "x-b3-sampled": "1"}


def click_with_context(walk: Walk) -> None:
    """A click on front that belongs to a trace, as one does that comes through a gateway."""
    headers = json.dumps({"x-b3-traceid": secrets.token_hex(16), **_CONTEXT})
    script = (
        "import urllib.request as it;"
        f" it.urlopen(it.Request('http://front:8080/', headers={headers}))"
    )
    walk.quiet(f"kubectl -n shop exec deploy/stock -c shop -- python -c {shlex.quote(script)}")


def flat(walk: Walk) -> bool:
    """One trace of three server spans, which all hang from the span of the click."""
    spans = Jaeger().spans(lambda: click_with_context(walk), SHOP, 3, patience=PATIENCE)
    return (
        number_of_traces(spans) == 1
        and [span["kind"] for span in spans] == ["SERVER"] * 3
        and {span.get("parentId") for span in spans} == {_CONTEXT["x-b3-spanid"]}
    )


def until_joined(walk: Walk) -> None:
    """Clicks that come with a context, until they are whole: as a tree, or flat."""

    def joined() -> bool:
        spans = Jaeger().spans(lambda: click_with_context(walk), SHOP, 3, patience=PATIENCE)
        return number_of_traces(spans) == 1 and len(spans) == 3

    eventually(joined, "one trace")


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
