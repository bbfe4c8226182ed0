"""Client spans of calls of every kind, in meshes with B3 and W3C; see tests/envoy."""

import pytest

from mesh.envoy import Tracer
from mesh.scenarios import compare

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.parametrize("callee", ["zipkin+w3c", "opentelemetry"])
async def test_calls_of_every_kind(callee: Tracer) -> None:
    assert await compare(("zipkin+w3c", callee)) == []
