"""What is made of the instructions that were counted."""

import json
from copy import deepcopy

import pytest

from bench.counts import KEPT, Figures, grown, middle, rows
from bench.figures import TARGETS
from bench.instructions import VMS_MOST, envoys
from bench.scenes import LONG, SHORT
from mesh.procs import MeshError


def kept() -> Figures:
    return Figures.read(json.loads(KEPT.read_text())["now"])


def test_a_path_that_grew_by_more_than_a_tenth_is_told() -> None:
    before, now = kept(), kept()
    added = before.added(1, "asleep", "hit")
    assert added is not None and grown(now, before) == {}
    now.counts[1]["asleep"]["hit"] += round(0.09 * added)
    assert grown(now, before) == {}
    now.counts[1]["asleep"]["hit"] += round(0.02 * added)
    assert list(grown(now, before)) == ["asleep, hit, workers: 1"]


def test_the_middle_of_several_envoys_counts() -> None:
    several = [kept().counts for _ in range(3)]
    for by, each in zip((-900, 500, 100), several, strict=True):
        each[8]["asleep"]["hit"] += by
    found = middle(several)
    assert found[8]["asleep"]["hit"] == kept().counts[8]["asleep"]["hit"] + 100
    assert {**found, 8: None} == {**kept().counts, 8: None}


def test_what_others_cost_is_not_judged() -> None:
    now = kept()
    now.counts[1]["lua"]["hit"] *= 2
    assert grown(now, kept()) == {}


def test_figures_that_have_nothing_in_common_are_an_error() -> None:
    now = kept()
    with pytest.raises(MeshError):
        grown(Figures(now.of, {}, {}), now)


def test_a_ratio_is_that_of_what_is_added() -> None:
    figures = Figures("", {1: {"none": {"hit": 100}, "empty": {"hit": 110}}}, {})
    figures.counts[1]["asleep"] = {"hit": 125}
    assert figures.ratio(1, "asleep", "hit") == 2.5
    assert figures.ratio(1, "asleep", "present") is None
    assert rows(figures, deepcopy(figures), 1)[-1][4:6] == [f"<= {TARGETS['hit']}", "yes"]


def test_what_the_short_form_counts_is_kept() -> None:
    for workers, plan in SHORT.items():
        for scene, routes in plan.items():
            assert set(routes) <= kept().counts[workers][scene].keys()


@pytest.mark.parametrize("workers", LONG)
def test_each_scene_is_in_one_envoy_and_no_envoy_has_too_many(workers: int) -> None:
    groups = list(envoys(LONG[workers], workers))
    assert sorted(scene.name for group in groups for scene in group) == sorted(LONG[workers])
    for group in groups:
        wasm = [scene for scene in group if scene.variant not in ("none", "tracer", "lua")]
        assert len(wasm) * (workers + 1) <= VMS_MOST
