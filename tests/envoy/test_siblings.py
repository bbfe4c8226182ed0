"""The headers of the copy list, among requests of one trace (`make accuracy-siblings`)."""

import pytest

from load import siblings


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_no_call_gets_the_headers_of_another_request(workers: int) -> None:
    result = siblings.run(workers, 1600)
    assert result.failures() == []
    assert sum(map(len, result.calls.values())) >= 1600
    # They are copied where the call tells its request.
    assert result.calls["B3"].own > 50
