"""Applications with an SDK of their own: what b3relay does for them, and to them.

Every cell of docs/instrumented.md, on real SDKs and Envoys, clicks one after the other.
``SDKS`` in the environment names the stacks, all of them if it does not.
"""

import os
from collections.abc import Iterator

import pytest

from mesh.apps import CALLS
from sdks.cells import CELLS, DEFAULT, JOINED, UNREPORTED, Cell
from sdks.measure import CLICKS, Measured, own, row, spans_missing
from sdks.run import PAGE, rows_of
from sdks.stacks import STACKS, fetch
from sdks.world import CALLERS, Seen

RUN = os.environ.get("SDKS", "").split() or list(STACKS)
HERE = [cell for cell in CELLS if cell.stack in RUN]
CONFIGURED = [(cell, config) for cell in HERE for config in cell.configurations()]
_NAMES = {DEFAULT: "", UNREPORTED: "-unreported", JOINED: "-joined"}
each_cell = pytest.mark.parametrize("cell", HERE, ids=str)
each_configured = pytest.mark.parametrize(
    ("cell", "config"),
    CONFIGURED,
    ids=[f"{cell}{_NAMES[config]}" for cell, config in CONFIGURED],
)


@pytest.fixture(scope="module")
def measured() -> Iterator[Measured]:
    fetch(RUN)
    with Measured() as found:
        yield found


def pictures(without: Seen, with_it: Seen) -> str:
    """For whom a test fails."""
    return f"\nwithout b3relay:\n{without}\nwith b3relay:\n{with_it}"


@each_cell
def test_all_spans_come(measured: Measured, cell: Cell) -> None:
    """Else the tests below would compare what is not there."""
    for config in (None, DEFAULT):
        seen = measured.seen(cell, config)
        assert spans_missing(cell, seen.judged) == (0, 0), f"{config}\n{seen}"


@each_configured
def test_no_edge_is_lost(measured: Measured, cell: Cell, config: str) -> None:
    """Parent and child by span IDs, the application's own spans among them.

    Where two traces become one, the sidecar's span comes between those of two applications.
    """
    without, with_it = measured.seen(cell, None), measured.seen(cell, config)
    now = with_it.judged.chains if config == JOINED else with_it.judged.edges
    lost = without.judged.edges - now
    assert not lost, f"{dict(lost)}{pictures(without, with_it)}"


@each_configured
def test_nothing_is_worse(measured: Measured, cell: Cell, config: str) -> None:
    without, with_it = measured.seen(cell, None), measured.seen(cell, config)
    said = pictures(without, with_it)
    assert with_it.judged.traces <= without.judged.traces, said
    assert with_it.judged.whole >= without.judged.whole, said
    assert not without.judged.placed - with_it.judged.placed, said
    assert with_it.judged.crossed == 0, said


@each_configured
def test_whole_where_it_can_be(measured: Measured, cell: Cell, config: str) -> None:
    seen = measured.seen(cell, config)
    assert seen.judged.whole == (CLICKS if cell.whole(config) else 0), f"\n{seen}"


@each_configured
def test_decisions(measured: Measured, cell: Cell, config: str) -> None:
    seen = measured.seen(cell, config)
    for caller in CALLERS:
        found = seen.decisions[caller]
        assert set(found) <= cell.decisions(config), f"{caller}\n{seen}"
        assert sum(found.values()) == CLICKS * len(CALLS[caller]), f"{caller}\n{seen}"


@pytest.mark.parametrize("stack", RUN)
def test_a_made_up_trace_stays_the_applications_own(measured: Measured, stack: str) -> None:
    """With B3 alone in the mesh, the SDK's trace is whole beside that of the sidecars."""
    seen = measured.seen(Cell(stack, "B3", "reports", "none"), DEFAULT)
    assert seen.judged.traces == 2 * CLICKS, f"\n{seen}"
    assert sum(n for edge, n in seen.judged.edges.items() if own(edge)) == 4 * CLICKS, f"\n{seen}"


@pytest.mark.parametrize("forward", ["none", "request-id"])
@pytest.mark.parametrize("stack", RUN)
def test_two_traces_can_be_made_one(measured: Measured, stack: str, forward: str) -> None:
    seen = measured.seen(Cell(stack, "B3", "reports", forward), JOINED)
    assert seen.judged.traces == CLICKS, f"\n{seen}"


@each_configured
def test_the_page_says_so(measured: Measured, cell: Cell, config: str) -> None:
    """docs/instrumented.md is written by `make instrumented`."""
    found = row(measured.seen(cell, None).judged, measured.seen(cell, config).judged)
    assert rows_of(PAGE.read_text())[cell, config] == found
