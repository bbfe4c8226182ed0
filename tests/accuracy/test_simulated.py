"""What the plots of simulated applications show."""

import json
from pathlib import Path

import pytest

from accuracy import simulated


def run(app: str, start: str, clients: int) -> dict[str, object]:
    return {
        "app": app,
        "says": app,
        "start": start,
        "clients": clients,
        "bound": [[95, 4, 1], [0, 0, 0]],
        "tracker": [[80, 20, 0], [90, 9, 1]],
    }


def test_shares_are_of_all_calls() -> None:
    assert simulated.in_all([[80, 20, 0], [90, 9, 1]]) == [170, 29, 1]
    assert simulated.percent([170, 29, 1], 2) == 0.5
    assert simulated.percent([0, 0, 0], 0) == 0


def test_each_plot_has_what_the_simulator_found(tmp_path: Path) -> None:
    found = [
        run(app, start, clients)
        for app in simulated.TITLES
        for start in ("warm", "cold")
        for clients in (1, 8, 16)
    ]
    source = tmp_path / "figures.json"
    source.write_text(json.dumps(found))
    simulated.main(str(source), str(tmp_path))
    for name in ("accuracy-simulated.svg", "accuracy-simulated-start.svg"):
        assert "Bayes bound" in (tmp_path / name).read_text(), name


def test_an_application_that_is_not_there_is_told(tmp_path: Path) -> None:
    source = tmp_path / "figures.json"
    source.write_text(json.dumps([run("threads", "warm", 8)]))
    with pytest.raises(SystemExit, match="event-loop"):
        simulated.main(str(source), str(tmp_path))
