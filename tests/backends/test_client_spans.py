"""Client spans in real trace backends: the trace that Envoy's own give there, and b3relay's."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from mesh.backends import (
    Backend,
    Jaeger,
    Zipkin,
    build_jaeger,
    check_java,
    fetch_zipkin,
    wait_for_trace,
)
from mesh.collector import Address, Span
from mesh.envoy import Tracer
from mesh.facts import clients, facts
from mesh.mesh import Mesh
from mesh.procs import Processes
from mesh.tree import beside, render

# The gateway, four services, three calls.
SPANS = 8
# The apps say in their answers what headers they got. Then who reports; and the address of the
# machine, which here is not that of the sidecars.
VARIES = ("response_size", "otel.scope.name", "otel.scope.version", "net.host.ip")


@dataclass(frozen=True)
class Reported:
    """A backend, and how spans come to it."""

    backend: Backend
    tracer: Tracer
    address: Address

    def click(self, ours: bool, down: bool) -> list[Span]:
        """The trace of a click, as the backend gives it."""
        kind = "otlp" if self.tracer == "opentelemetry" else "zipkin"
        spans = f'{{"spans": {{"cluster": "collector", "format": "{kind}"}}}}'
        everything = "w3c" if self.tracer == "opentelemetry" else "all7"
        with Mesh(
            forward="request-id" if ours else everything,
            filter=ours,
            client_spans=not ours,
            outbound_config=spans,
            tracer=self.tracer,
            collector=self.address,
        ) as mesh:
            if down:
                mesh.envoys["ratings"].stop()
            reply = mesh.click()
            assert reply.status == (502 if down else 200)
            received = reply.received("reviews")
            if self.tracer == "opentelemetry":
                trace_id = received["traceparent"][0].split("-")[1]
            else:
                trace_id = received["x-b3-traceid"][0]
            return wait_for_trace(self.backend, trace_id, SPANS - down)


@pytest.fixture(params=["zipkin", "jaeger", "jaeger over otlp"])
def reported(request: pytest.FixtureRequest) -> Iterator[Reported]:
    if request.param == "zipkin":
        check_java()
    with Processes() as processes:
        if request.param == "zipkin":
            zipkin = Zipkin(processes, fetch_zipkin())
            yield Reported(zipkin, "zipkin", zipkin.address)
        else:
            jaeger = Jaeger(processes, build_jaeger())
            over_otlp = request.param == "jaeger over otlp"
            yield (
                Reported(jaeger, "opentelemetry", jaeger.otlp_address)
                if over_otlp
                else Reported(jaeger, "zipkin", jaeger.address)
            )


def test_the_trace_is_the_same(reported: Reported) -> None:
    """Also where a callee is down. Side by side with `pytest -s`."""
    for down in (False, True):
        theirs, ours = (reported.click(ours, down) for ours in (False, True))
        title = "Envoy's client spans, all forwarded"
        print(beside(f"{title}\n{render(theirs)}", f"b3relay's client spans\n{render(ours)}"))
        assert len(ours) == SPANS - down
        assert facts(ours, VARIES) == facts(theirs, VARIES)
        (call,) = clients(ours, "reviews")
        assert call["tags"]["response_flags"] == ("UF" if down else "-")
        # Jaeger writes it as it has understood it.
        assert call["tags"].get("error", "false").lower() == str(down).lower()
        assert call["tags"]["b3relay.decision"] == "copied"
