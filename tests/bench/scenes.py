"""What is counted: filters in a state, and the paths that requests take through them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

from bench import shapes
from bench.setups import SPANS, Variant
from bench.shapes import HELD, Headers, Shape

# What is counted as one: a request, or an inbound one with a call while it is served.
Route = Shape | Literal["inbound+hit", "inbound+keyless"]

# Of one number of workers, by scene.
Plan = dict[str, tuple[Route, ...]]

_SHAPES: tuple[Route, ...] = (
    "hit",
    "miss",
    "present",
    "unsampled",
    "forwarded",
    "keyless",
    "inbound",
)
# As they are shown.
ORDER: tuple[Route, ...] = (*_SHAPES, "inbound+hit", "inbound+keyless")


@dataclass(frozen=True)
class Scene:
    """Filters in one state. Each has listeners of its own, and b3relay a memory."""

    name: str
    variant: Variant
    # In this order: a hit makes b3relay know that calls to the host carry keys.
    routes: tuple[Route, ...]
    # Requests that are being served meanwhile.
    held: int = HELD
    # There was a call without a key in the last minute.
    awake: bool = False
    # b3relay's configuration.
    config: Mapping[str, object] = field(default_factory=dict)
    # What becomes of a call without a key.
    keyless: str = "unsure"
    # Client spans are reported up to a second later: that belongs to the requests.
    reports: bool = False


def scenes() -> list[Scene]:
    asleep = tuple(route for route in ORDER if "keyless" not in route)
    return [
        Scene("none", "none", ORDER),
        Scene("tracer", "tracer", ("hit", "present"), reports=True),
        Scene("empty", "empty", ORDER),
        Scene("reads", "reads", ("hit", "present", "inbound")),
        Scene("lua", "lua", ("hit", "miss", "present", "inbound")),
        Scene("asleep", "b3relay", asleep),
        Scene("awake", "b3relay", ORDER, awake=True),
        Scene("alone", "b3relay", ("inbound+keyless",), held=0, awake=True, keyless="exclusive"),
        Scene("idle", "b3relay", ("keyless",), held=0, awake=True),
        Scene(
            "inferred",
            "b3relay",
            ("keyless", "present", "inbound", "inbound+keyless"),
            awake=True,
            config={"attribution": "inferred"},
        ),
        Scene("spans", "b3relay", ("hit", "present"), config={"spans": SPANS}, reports=True),
        Scene("no span", "b3relay", ("unsampled",), config={"spans": SPANS}),
    ]


OURS = [scene.name for scene in scenes() if scene.variant == "b3relay"]

# What is counted for each number of workers; of the short form, and of the long one.
SHORT: dict[int, Plan] = {
    1: {
        "none": ("hit", "present", "keyless", "inbound", "inbound+keyless"),
        "empty": ("hit", "present", "keyless", "inbound", "inbound+keyless"),
        "asleep": ("hit", "present", "inbound"),
        "awake": ("present", "keyless", "inbound"),
        "alone": ("inbound+keyless",),
    },
    8: dict.fromkeys(("none", "empty", "asleep"), ("hit",)),
}
_SEVERAL: Plan = {
    "none": ("hit", "present", "keyless", "inbound"),
    "empty": ("hit", "present", "keyless", "inbound"),
    "asleep": ("hit", "present", "inbound"),
    "awake": ("present", "keyless", "inbound"),
}
LONG: dict[int, Plan] = {
    1: {scene.name: scene.routes for scene in scenes()},
    4: _SEVERAL,
    8: _SEVERAL,
}


def shapes_of(route: Route) -> list[Shape]:
    """Those of one route, the outer one first."""
    match route:
        case "inbound+hit":
            return ["inbound", "hit"]
        case "inbound+keyless":
            return ["inbound", "keyless"]
        case _:
            return [route]


def requests(route: Route, count: int, seed: int) -> Iterator[list[Headers]]:
    """Different ones each time, so often: for each the headers of its `shapes_of`."""
    match route:
        case "inbound+hit" | "inbound+keyless":
            for context in islice(shapes.contexts(seed), count):
                call = shapes.call_headers(context)
                if route == "inbound+keyless":
                    call = shapes.keyless_headers()
                yield [shapes.inbound_headers(context), call]
        case _:
            for headers in shapes.requests(route, count, seed):
                yield [headers]


def counted(scene: Scene, shape: Shape) -> str:
    """The metric of b3relay that counts such a request, as a regular expression."""
    if shape == "inbound":
        return r"b3relay_remembered_total$"
    decisions = {"hit": "copied", "miss": "unknown", "keyless": scene.keyless}
    return rf"decision=\.={decisions.get(shape, 'present')};.*calls_total$"
