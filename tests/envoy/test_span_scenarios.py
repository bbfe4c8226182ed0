"""Client spans of calls of every kind, as Envoy's own tell them where the app forwards all."""

import pytest

from mesh.envoy import Tracer
from mesh.scenarios import compare

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


# Meshes of two kinds: tests/backends.
@pytest.mark.parametrize("tracer", ["zipkin", "opentelemetry"])
async def test_calls_of_every_kind(tracer: Tracer) -> None:
    assert await compare((tracer, tracer)) == []
