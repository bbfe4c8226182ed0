"""What the bench counts, and what it lets pass."""

from dataclasses import replace
from typing import Any

import pytest

from accuracy import recordings, report
from accuracy.pod import Result, counters
from accuracy.record import events, file_name, stage
from mesh.clicks import Clicks, Visit, judge
from mesh.procs import MeshError

STAGE = Result(
    concurrency=8, requests=100, seconds=1, right=90, abstained=10, wrong=0, other_parent=0,
    background_alone=5, background_taken=0, calling=80, whole=70, crossed=0, failed=0, in_flight=7,
    metrics={"calls_total inferred": 90, "calls_total unsure": 15, report.DOUBT: 1000},
)  # fmt: skip


def failures(mode: str, *stages: Result) -> list[str]:
    runs = [report.Run(mode, "go", "parallel-background", list(stages), False)]
    return report.failures(report.Findings(0.99, runs, [], [], [], []))


def visit(trace: str, span: str, parent: str | None, *calls: Visit) -> Visit:
    return Visit(f"service-{span}", trace, span, parent, calls)


def test_a_click_is_whole_if_each_call_hangs_below_its_caller() -> None:
    found = judge(
        [visit("t", "1", "0", visit("t", "2", "1"), visit("t", "3", "1", visit("t", "4", "3")))]
    )
    assert (found.whole, found.wrong, found.calls, found.calls_right) == (1, 0, 3, 3)


def test_a_call_that_began_a_trace_of_its_own_is_missing_but_not_wrong() -> None:
    found = judge([visit("t", "1", "0", visit("u", "2", None, visit("u", "3", "2")))])
    assert (found.whole, found.wrong, found.calls_right, found.calls_wrong) == (0, 0, 1, 0)


@pytest.mark.parametrize(
    "callee", [visit("other", "2", "1"), visit("t", "2", "other")], ids=["trace", "parent"]
)
def test_a_call_below_another_span_is_wrong(callee: Visit) -> None:
    found = judge([visit("t", "1", "0", callee), visit("other", "9", "8")])
    assert (found.whole, found.wrong, found.calls_wrong) == (1, 1, 1)


def test_clicks_that_share_a_trace_from_the_start_are_no_ground_truth() -> None:
    with pytest.raises(MeshError):
        judge([visit("t", "1", "0"), visit("t", "2", "0")])


def test_what_holds_passes() -> None:
    assert failures("inferred", STAGE) == []


@pytest.mark.parametrize(
    ("mode", "change", "said"),
    [
        # One wrong call of these is what 0.99 allows; three may be chance, twenty are not.
        ("inferred", {"right": 70, "wrong": 20}, "wrong"),
        ("inferred", {"right": 70, "background_taken": 20, "background_alone": 5}, "wrong"),
        ("inferred", {"abstained": 13}, "without a context"),
        ("inferred", {"right": 93, "abstained": 10}, "with a context"),
        ("inferred", {"metrics": {**STAGE.metrics, report.DOUBT: 0}}, "never in doubt"),
        ("forwarded", {}, "not all right"),
        ("off", {}, "not all left alone"),
    ],
)
def test_what_does_not_hold_fails(mode: str, change: dict[str, Any], said: str) -> None:
    found = failures(mode, replace(STAGE, **change))
    assert any(said in failure for failure in found), found


@pytest.mark.parametrize(
    ("setting", "right", "wrong", "holds"),
    [
        (report.UNFILTERED, 0, 0, True),
        (report.UNFILTERED, 1, 0, False),
        (report.UNFILTERED, 0, 1, False),
        (report.FORWARDED, 300, 0, False),  # ten of the clicks are not whole
        ("inferred", 300, 3, True),
        ("inferred", 300, 20, False),
        ("exclusive", 300, 20, False),
    ],
)
def test_clicks_that_fail(setting: str, right: int, wrong: int, holds: bool) -> None:
    clicks = Clicks(100, 90, wrong, right + wrong, right, wrong)
    runs = [report.ClicksRun(setting, False, {"8": clicks})]
    found = report.failures(report.Findings(0.99, [], runs, [], [], []))
    assert (found == []) == holds, found


def test_a_few_wrong_calls_may_be_chance() -> None:
    assert failures("inferred", replace(STAGE, right=87, wrong=3)) == []


def test_wrong_counts_what_was_given_to_the_background_too() -> None:
    stage = replace(STAGE, wrong=1, background_taken=2, background_alone=3)
    assert (report.bad(stage), report.made(stage)) == (3, 106)


def test_stages_add_up() -> None:
    both = report.pooled([STAGE, replace(STAGE, right=80, abstained=20, in_flight=5)])
    assert (both.right, both.abstained, both.in_flight) == (170, 30, 6)
    assert both.metrics == {name: 2 * value for name, value in STAGE.metrics.items()}


def test_what_the_filter_learned_from_is_not_counted() -> None:
    run = report.Run("inferred", "go", "token", [STAGE, replace(STAGE, right=1)], learning=True)
    assert report.by_level([run])[8].right == 1


def test_of_nothing_nothing_is_known() -> None:
    assert report.interval(0, 0) == (0, 1)
    low, high = report.interval(0, 100)
    assert low == 0 and 0.03 < high < 0.04


def test_metrics_by_name_and_labels() -> None:
    lines = ['b3relay_calls_total{decision="inferred",envoy_x="y"} 3', "b3relay_evicted_total{} 1"]
    assert counters(lines) == {"calls_total inferred": 3, "evicted_total": 1}


def entry(side: str, start_us: int, truth: str | None, **more: object) -> dict[str, object]:
    common = {"us": 2000, "total_us": 2100, "method": "POST", "host": "h1", "path": "/users/7/a"}
    common |= {"connection": 1, "upstream_connection": 2, "status": 200}
    common |= {"port": 40000, "upstream_port": 50000, "sent_us": 100}
    return {"side": side, "start_us": str(start_us), "truth": truth, **common, **more}


def test_access_logs_become_events() -> None:
    found = events(
        [
            entry("outbound", 900, None, status=503),  # the background, before the sink was there
            entry("outbound", 2500, "00000004"),
            entry("inbound", 1000, "00000004"),
            entry("outbound", 2700, None),
            entry("inbound", 3000, "00000005"),
        ]
    )
    assert [(row["side"], row["start_ms"], row["request"]) for row in found] == [
        ("inbound", 0, 4), ("outbound", 1.5, 4), ("outbound", 1.7, None), ("inbound", 2, 5),
    ]  # fmt: skip
    assert (found[0]["route"], found[0]["ms"], found[1]["host"]) == ("a", 2, "h1")
    assert (found[1]["port"], found[0]["upstream_port"], found[0]["sent_ms"]) == (40000, 50000, 0.1)


def test_recordings_have_names_of_their_own() -> None:
    assert (stage("8"), stage("8x100")) == ((8, None), (8, 100))
    names = [
        file_name("go", "sequential", call_ms, cold)
        for call_ms in (10.0, 100.0)
        for cold in ([], [(8, 100)], [(16, 100)])
    ]
    assert names[0] == "go-sequential" and names[4] == "go-sequential-100ms-cold-8"
    assert len(set(names)) == 6


def test_a_cold_start_is_told_by_thousands() -> None:
    about = {
        "stages": [
            {"clients": 1, "requests": 100, "busy": 0.1},
            {"clients": 8, "requests": 2500, "busy": 0.5},
        ]
    }
    assert recordings.slices(about, cold=False) == [(1, 100, 0.1), (8, 2500, 0.5)]
    assert [size for _, size, _ in recordings.slices(about, cold=True)] == [100, 1000, 1000, 500]


def test_what_the_replay_prints_is_read() -> None:
    printed = "x.jsonl | 1: 100.0 % right, 0.00 % wrong (0.00 expected)"
    printed += " | 8: 72.6 % right, 1.25 % wrong (0.10 expected)"
    read = recordings.read(printed, [(1, 100, 0.1), (8, 200, 0.95)])
    assert [str(cell) for cell in read] == ["100.0 / 0.0 / 0.00", "72.6 / 26.2 / 1.25*"]
    with pytest.raises(ValueError):
        recordings.read(printed, [(1, 100, 0.1)])


def test_a_request_without_an_answer_spoils_a_recording() -> None:
    with pytest.raises(MeshError):
        events([entry("inbound", 1000, "00000004", status=503)])
