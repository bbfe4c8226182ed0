"""The table: what a mesh propagates, what the SDK does, what the application forwards;
and what is to become of each.
"""

import json
from collections.abc import Set
from dataclasses import dataclass
from typing import get_args

from sdks.stacks import STACKS, Sdk
from sdks.world import FORWARDS, MESHES

DEFAULT = "{}"
# For applications whose SDK reports to nobody: their calls are of the sidecar's span.
UNREPORTED = json.dumps({"own_spans": "unreported"})
# For applications whose SDK reports and reads no B3, where the mesh writes nothing else:
# they are given a traceparent, and the span that comes back is put into B3.
JOINED = json.dumps({"emit": ["b3multi", "w3c"], "own_spans": "reported"})


@dataclass(frozen=True)
class Cell:
    """One cell of the table."""

    stack: str
    mesh: str
    sdk: Sdk
    forward: str

    def __str__(self) -> str:
        return f"{self.stack}-{self.mesh}-sdk_{self.sdk}-forwards_{self.forward}"

    def configurations(self) -> tuple[str, ...]:
        """What is worth a try: the default, and what is meant for such an application."""
        if self.sdk == "silent":
            return DEFAULT, UNREPORTED
        # What copies B3 by hand as well has the sidecar's span read first.
        if self.sdk == "reports" and self.mesh == "B3" and not self.copies_b3:
            return DEFAULT, JOINED
        return (DEFAULT,)

    @property
    def carries_on(self) -> bool:
        """The SDK finds the context of the mesh, and its calls are of that trace."""
        return self.sdk != "none" and self.mesh != "B3"

    @property
    def copies_b3(self) -> bool:
        """The calls carry the B3 of the sidecar, whatever else."""
        return self.mesh != "W3C" and self.forward == "all"

    def whole(self, config: str) -> bool:
        """Whether the sidecars' spans can be one whole tree.

        Not where each call is of a span that the SDK made and nobody reports, unless
        b3relay is told so, or the call carries B3 besides, which Envoy reads first.
        """
        return not (self.carries_on and self.sdk == "silent") or (
            self.copies_b3 or config == UNREPORTED
        )

    def decisions(self, config: str) -> Set[str]:
        """What b3relay may say of the calls."""
        if self.carries_on:
            # The call names a span of the trace of its request: the application's word.
            if config != UNREPORTED:
                return {"present"}
            # The sidecar's span takes the place of the application's, beside B3 too.
            return {"copied"}
        if self.forward == "all":
            return {"present"}
        if self.forward == "request-id":
            return {"copied"}
        if self.sdk == "none":
            return {"exclusive"}
        if config == JOINED:
            return {"copied"}
        # The SDK has found nothing and begun a trace of its own: no contradiction. Once
        # a request is known to be of that trace, its calls are found by it.
        return {"exclusive", "copied"}


CELLS = tuple(
    Cell(stack, mesh, sdk, forward)
    for stack in STACKS
    for mesh in MESHES
    for sdk in get_args(Sdk)
    for forward in FORWARDS
)
