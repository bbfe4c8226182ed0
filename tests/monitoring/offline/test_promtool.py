"""Rules and dashboard by the programs that will read them: promtool, and Grafana's schema."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml

from mesh import golang
from mesh.mesh import ROOT
from mesh.prometheus import DASHBOARD, RULES, dashboard_check, promtool, queries

TESTS = ROOT / "tests/monitoring/rules_test.yaml"

if (why := golang.missing()) is not None and os.environ.get("CI") != "true":
    pytest.skip(f"b3relay: NOT RUN: promtool: {why}", allow_module_level=True)


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True)


def test_rules_are_good() -> None:
    done = run(promtool(), "check", "rules", "--lint=all", "--lint-fatal", RULES)
    assert done.returncode == 0, done.stdout + done.stderr


def test_rules_do_what_they_should() -> None:
    done = run(promtool(), "test", "rules", TESTS)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_is_tested_both_ways(tmp_path: Path) -> None:
    """The tests fail if an alert never fires, and if it always does."""
    document = yaml.safe_load(RULES.read_text())
    alerts = [rule for group in document["groups"] for rule in group["rules"] if "alert" in rule]
    tests = yaml.safe_load(TESTS.read_text())
    tests["rule_files"] = [str(tmp_path / "rules.yaml")]
    groups = tests["tests"]
    for rule in alerts:
        expr = rule["expr"]
        # Those that are about this one.
        tests["tests"] = [
            group
            for group in groups
            if any(one["alertname"] == rule["alert"] for one in group.get("alert_rule_test", ()))
        ]
        assert tests["tests"], rule["alert"]
        (tmp_path / "tests.yaml").write_text(yaml.safe_dump(tests))
        # Never; and for something more than it should.
        for wrong in (f"({expr}) > 1e9", f"({expr}) or vector(1)"):
            rule["expr"] = wrong
            (tmp_path / "rules.yaml").write_text(yaml.safe_dump(document))
            done = run(promtool(), "test", "rules", tmp_path / "tests.yaml")
            assert done.returncode != 0, f"{rule['alert']}: {wrong} passes the tests"
            assert rule["alert"] in done.stdout + done.stderr
        rule["expr"] = expr


def test_the_dashboard_is_one_of_grafanas(tmp_path: Path) -> None:
    done = run(dashboard_check(), DASHBOARD)
    assert done.returncode == 0, done.stderr
    wrong = json.loads(DASHBOARD.read_text())
    wrong["panels"][0]["titel"] = wrong["panels"][0].pop("title")
    (tmp_path / "wrong.json").write_text(json.dumps(wrong))
    done = run(dashboard_check(), tmp_path / "wrong.json")
    assert done.returncode == 1 and "titel" in done.stderr


def test_the_queries_of_the_dashboard_can_be_read(tmp_path: Path) -> None:
    """As rules, since these promtool checks."""
    named = [
        {"record": f"panel:{number}", "expr": query.expr} for number, query in enumerate(queries())
    ]
    path = tmp_path / "queries.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": named}]}))
    done = run(promtool(), "check", "rules", path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(named)} rules found" in done.stdout
    assert not [query for query in queries() if "$" in query.expr.replace('"$1"', "")]


def test_the_dashboard_is_one_screen() -> None:
    """Without gaps and overlaps: 24 columns, and 20 rows of 38 pixels."""
    taken: set[tuple[int, int]] = set()
    panels = json.loads(DASHBOARD.read_text())["panels"]
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
        assert panel["description"], panel["title"]
    assert taken == {(x, y) for x in range(24) for y in range(20)}
    assert len({panel["id"] for panel in panels}) == len(panels)
