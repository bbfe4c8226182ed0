"""A click as the user sees it in the end: on the page of a real Zipkin, in a real browser.

With ``B3RELAY_PICTURES`` in the environment the pages are kept there as pictures.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page

from browser.chromium import Row, browser, open_trace, tags
from mesh.backends import Zipkin, check_java, fetch_zipkin, wait_for_trace
from mesh.mesh import Mesh
from mesh.procs import Processes

SPANS = json.dumps({"spans": {"cluster": "collector", "format": "zipkin"}})
LARGEST = 150_000


@pytest.fixture(scope="module")
def zipkin() -> Iterator[Zipkin]:
    check_java()
    with Processes() as processes:
        yield Zipkin(processes, fetch_zipkin())


@pytest.fixture
def page() -> Iterator[Page]:
    with browser() as found:
        yield found


def name(service: str) -> str:
    return f"{service}:9080/*"


def server(service: str, *below: Row) -> Row:
    return Row(service, name(service), below)


def call(caller: str, callee: str, *below: Row) -> Row:
    return Row(caller, name(callee), below)


# As with Envoy's own client spans, and an application that forwards everything.
INSTRUMENTED = call(
    "gateway",
    "productpage",
    server(
        "productpage",
        call("productpage", "details", server("details")),
        call(
            "productpage",
            "reviews",
            server("reviews", call("reviews", "ratings", server("ratings"))),
        ),
    ),
)


def picture(page: Page, what: str, tmp_path: Path) -> None:
    folder = Path(os.environ.get("B3RELAY_PICTURES") or tmp_path)
    path = folder / f"zipkin-{what}.png"
    page.screenshot(path=path)
    assert 10_000 < path.stat().st_size < LARGEST, "for the docs"


def click(mesh: Mesh, zipkin: Zipkin, spans: int, status: int = 200) -> str:
    """The trace of a click, when so many of its spans have come."""
    reply = mesh.click()
    assert reply.status == status
    trace = reply.received("productpage")["x-b3-traceid"][0]
    wait_for_trace(zipkin, trace, spans)
    return trace


def test_instrumented(zipkin: Zipkin, page: Page) -> None:
    """The reference: Envoy's client spans, and apps that forward everything."""
    with Mesh(forward="all7", filter=False, client_spans=True, collector=zipkin.address) as mesh:
        shown = open_trace(page, zipkin.url, click(mesh, zipkin, 8))
    assert str(shown.tree) == str(INSTRUMENTED)


def test_before(zipkin: Zipkin, page: Page, tmp_path: Path) -> None:
    with Mesh(forward="request-id", filter=False, collector=zipkin.address) as mesh:
        shown = open_trace(page, zipkin.url, click(mesh, zipkin, 2))
    assert (shown.services, shown.spans) == (2, 2)
    assert shown.tree == call("gateway", "productpage", server("productpage"))
    picture(page, "before", tmp_path)


def test_after(zipkin: Zipkin, page: Page, tmp_path: Path) -> None:
    with Mesh(forward="request-id", outbound_config=SPANS, collector=zipkin.address) as mesh:
        shown = open_trace(page, zipkin.url, click(mesh, zipkin, 8))
    assert (shown.services, shown.spans) == (5, 8)
    assert str(shown.tree) == str(INSTRUMENTED)
    picture(page, "after", tmp_path)
    said = tags(page, "reviews: ratings:9080/*")
    assert said["b3relay.decision"] == "copied"
    assert said["http.status_code"] == "200"


def test_a_callee_that_is_down(zipkin: Zipkin, page: Page, tmp_path: Path) -> None:
    with Mesh(forward="request-id", outbound_config=SPANS, collector=zipkin.address) as mesh:
        mesh.envoys["ratings"].stop()
        shown = open_trace(page, zipkin.url, click(mesh, zipkin, 7, status=502))
    expected = str(INSTRUMENTED).splitlines()
    assert str(shown.tree).splitlines() == expected[:-1], "all but the span of ratings itself"
    said = tags(page, "reviews: ratings:9080/*")
    assert said["http.status_code"] == "503"
    assert said["response_flags"] == "UF"
    assert said["error"] == "true"
    picture(page, "down", tmp_path)
