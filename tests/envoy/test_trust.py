"""The snippet of docs/trust.md: what a client sends does not reach the tracer."""

import re
from typing import Any

import pytest
import yaml

from mesh import envoy
from mesh.collector import Collector
from mesh.envoy import Common, Config, Envoy
from mesh.mesh import ROOT, request
from mesh.plain import Echo
from mesh.ports import free_port
from mesh.procs import Processes

TRACE = "463ac35c9f6413ad48485a3953bb6124"
FORGED = {"x-b3-traceid": TRACE, "x-b3-spanid": "a2fb4a1d1a96d312", "x-b3-sampled": "1"}
SINGLE = {"b3": f"{TRACE}-a2fb4a1d1a96d312-1"}


def snippet() -> dict[str, Any]:
    (text,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/trust.md").read_text(), re.DOTALL)
    loaded: Config = yaml.safe_load(text)
    return loaded


def trace_of_a_click(headers: dict[str, str], early: dict[str, Any]) -> str:
    """The trace ID of the gateway's span for a client that sends these headers."""
    with Collector() as collector, Echo() as echo, Processes() as processes:
        port = free_port()
        bootstrap = envoy.gateway(
            Common(collector.address),
            admin_port=free_port(),
            port=port,
            callee="plain",
            callee_port=echo.address[1],
        )
        (listener,) = bootstrap["static_resources"]["listeners"]
        listener["filter_chains"][0]["filters"][0]["typed_config"].update(early)
        gateway = Envoy(processes, "gateway", bootstrap, concurrency=1)
        gateway.start()
        processes.wait_ready({gateway.process: gateway.ready}, 60)
        assert request(port, "/", headers=headers).status == 200
        assert collector.wait_for(lambda spans: len(spans) == 1, 15)
        (span,) = collector.spans()
        return str(span["traceId"])


@pytest.mark.parametrize("forged", [FORGED, SINGLE], ids=["multi", "single"])
def test_a_client_joins_a_trace_unless_its_headers_are_removed_early(
    forged: dict[str, str],
) -> None:
    assert trace_of_a_click(forged, early={}) == TRACE, "else the test shows nothing"
    assert trace_of_a_click(forged, early=snippet()) != TRACE
