"""Mode `enforce`: who is answered, with what, and what becomes of the connection."""

from collections.abc import Iterator

import httpx
import pytest

from mesh.envoy import Direction
from mesh.mesh import ROOT, Mesh, request
from mesh.plain import Connection, Plain, RawHeaders
from mesh.ports import HOST

GOOD = [("x-request-id", b"0f7a1c2e-1b2d-4c3e-9d4f-5a6b7c8d9e0f")]
# Also what Envoy's own tracer lets pass: no span at this hop.
BAD = [*GOOD, ("x-b3-traceid", b"xyz"), ("x-b3-spanid", b"a2fb4a1d1a96d312")]
BODY = (
    b"b3relay: L01 x-b3-traceid: an ID has a character that is not a hexadecimal digit; "
    b"right: only 0-9 and a-f\n"
)


def encoded(headers: RawHeaders) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value) for name, value in headers]


@pytest.fixture(scope="module")
def plain() -> Iterator[Plain]:
    listeners: dict[str, tuple[Direction, str | None]] = {
        "enforce": ("INBOUND", '{"mode": "enforce"}'),
        "422": ("OUTBOUND", '{"mode": "enforce", "enforce_status": 422}'),
        "reported": ("INBOUND", '{"mode": "enforce", "report_header": "response"}'),
    }
    with Plain(listeners) as plain:
        yield plain


def counted(plain: Plain, name: str) -> float:
    return plain.envoy.stats(name).get(name, 0)


def test_other_statuses_keep_the_connection(plain: Plain) -> None:
    connection = Connection(plain.ports["422"])
    try:
        for _ in range(3):
            bad = connection.get(BAD)
            assert (bad.status, bad.received, bad.body) == (422, None, BODY)
            assert connection.get(GOOD).status == 200
    finally:
        connection.close()


def test_http2_keeps_the_connection_after_a_400_too(plain: Plain) -> None:
    port = plain.ports["enforce"]
    connections = f"http.plain_{port}.downstream_cx_http2_total"
    with httpx.Client(http1=False, http2=True, base_url=f"http://{HOST}:{port}") as client:
        for _ in range(3):
            bad = client.get("/", headers=encoded(BAD))
            assert (bad.status_code, bad.content) == (400, BODY)
            assert client.get("/", headers=encoded(GOOD)).status_code == 200
        stats = plain.envoy.stats(f"http.plain_{port}.")
        assert stats.get(connections) == 1


def test_the_metrics_add_up(plain: Plain) -> None:
    names = {
        "requests": 'b3relay_requests_total{direction="outbound"}',
        "rejected": 'b3relay_rejected_total{direction="outbound"}',
        "errors": 'b3relay_findings_total{rule="L01",direction="outbound"}',
        "warnings": 'b3relay_findings_total{rule="L04",direction="outbound"}',
    }
    before = {key: counted(plain, name) for key, name in names.items()}
    upper = [*GOOD, ("x-b3-traceid", b"ABCDEFABCDEFABCD"), ("x-b3-spanid", b"a2fb4a1d1a96d312")]
    statuses = [plain.get("422", headers).status for headers in (GOOD, BAD, upper, BAD, GOOD)]
    assert statuses == [200, 422, 200, 422, 200]
    after = {key: counted(plain, name) - before[key] for key, name in names.items()}
    assert after == {"requests": 5, "rejected": 2, "errors": 2, "warnings": 1}


def test_the_response_says_what_was_found(plain: Plain) -> None:
    url = f"http://{HOST}:{plain.ports['reported']}/"
    bad = httpx.get(url, headers=encoded(BAD))
    assert bad.headers["x-b3relay"] == "inbound; L01 x-b3-traceid; rejected"
    good = httpx.get(url)
    expected = "inbound; R01 x-request-id; generated x-request-id; remembered"
    assert good.headers["x-b3relay"] == expected


def test_the_example_in_the_readme() -> None:
    with Mesh(config='{"report_header": "response"}') as mesh:
        headers = {"x-b3-traceid": "xyz", "x-b3-spanid": "a2fb4a1d1a96d312"}
        reply = request(mesh.inbound_ports["details"], "/details/0?click=1", headers=headers)
    (report,) = [value for name, value in reply.headers if name == "x-b3relay"]
    readme = (ROOT / "README.md").read_text()
    assert f"{' -H '.join(['', *(repr(f'{n}: {v}') for n, v in headers.items())])} |" in readme
    assert f"\nx-b3relay: {report}\n" in readme


@pytest.mark.long
def test_as_an_upstream_filter() -> None:
    """Behind the router: the answer goes back as the upstream's would."""
    with Mesh(config='{"mode": "enforce"}', extra_stat_tags=["direction"]) as mesh:
        port = mesh.inbound_ports["details"]
        path = "/details/0?click=1"
        bad = request(port, path, headers=[(name, value.decode()) for name, value in BAD])
        assert (bad.status, bad.body) == (400, BODY.decode())
        assert request(port, path).status == 200
        stats = mesh.envoys["details"].stats("b3relay_rejected_total")
        assert stats['b3relay_rejected_total{direction="inbound"}'] == 1
