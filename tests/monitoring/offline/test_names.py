"""What rules and dashboard name is there: metrics and labels, decisions and rules.

The tables of docs/metrics.md and docs/rules.md are made from src/ (tests/docs.rs).
"""

import json
import re
import subprocess
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import yaml

from mesh.mesh import ROOT
from mesh.pages import commands
from mesh.prometheus import DASHBOARD, RULES, queries

# What whoever scrapes gives a target, and what the rules make of it.
OF_TARGETS = {"namespace", "pod", "container"}
MADE = {"workload", "result"}
# Of Istio, Envoy and the kubelet, with those of their labels that are used.
OTHERS = {
    "istio_requests_total": {"reporter", "response_code"},
    "envoy_server_memory_allocated": set[str](),
    "container_cpu_usage_seconds_total": set[str](),
}
DIRECTIONS = {"inbound", "outbound", "unknown"}


def rows(page: str, table: str) -> list[list[str]]:
    """The cells of a table that is made from the code."""
    text = (ROOT / "docs" / page).read_text()
    body = text.partition(f"<!-- generated: {table} -->\n")[2].partition("<!-- end -->")[0]
    # The first table of the part, without its head.
    body = body.strip().partition("\n\n")[0]
    lines = [line for line in body.splitlines() if line.startswith("|")][2:]
    assert lines, f"{page} has no table {table}"
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


METRICS = {
    row[0].strip("` "): set(re.findall(r"`(\w+)`", row[1])) for row in rows("metrics.md", "metrics")
}
DECISIONS = {row[0].strip("` ") for row in rows("metrics.md", "decisions")}
SEVERITIES = {
    re.findall(r"\[(\w+)\]", row[0])[0]: row[1].strip() for row in rows("rules.md", "rules")
}


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return list(chain.from_iterable(group["rules"] for group in groups))


def expressions() -> Iterator[tuple[str, str]]:
    for rule in rules():
        name = rule.get("record") or rule["alert"]
        yield name, rule["expr"]
        for text in rule.get("annotations", {}).values():
            for inner in re.findall(r'printf "(.*?)"\s*\$labels', text):
                yield name, inner.replace('\\"', '"').replace("%q", '"x"')
    for query in queries():
        yield query.panel, query.expr
    for variable in json.loads(DASHBOARD.read_text())["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["name"], variable["definition"]


ALL = list(expressions())
RECORDED = {rule["record"] for rule in rules() if "record" in rule}
# A metric's name, and the matchers behind it.
SELECTOR = re.compile(
    r"(?<![\w:$\"])([a-z]\w*:)?((?:b3relay|istio|envoy|container)_\w+)(:\w+)?(\{.*?\})?"
)
MATCHER = re.compile(r"(\w+)\s*(=~|!~|!=|=)\s*\"([^\"]*)\"")


def selectors(expr: str) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    # Regular expressions have braces of their own.
    plain = re.sub(r"\{(\d+(?:,\d+)?)\}", r"<\1>", expr)
    for before, name, after, matchers in SELECTOR.findall(plain):
        yield f"{before}{name}{after}", MATCHER.findall(matchers)


def test_the_reader_of_expressions_finds_what_is_there() -> None:
    expr = 'sum by (a) (rate(b3relay_x_total{pod=~"(.+)[0-9]{5}", rule!="L01"}[5m])) > 1'
    found = list(selectors(expr))
    assert found == [("b3relay_x_total", [("pod", "=~", "(.+)[0-9]<5>"), ("rule", "!=", "L01")])]
    (recorded,) = selectors("workload:b3relay_x:rate5m * 2")
    assert recorded == ("workload:b3relay_x:rate5m", [])


@pytest.mark.parametrize(("where", "expr"), ALL, ids=[where for where, _ in ALL])
def test_metrics_and_labels_are_there(where: str, expr: str) -> None:
    known = set(METRICS) | RECORDED | set(OTHERS)
    labels: set[str] = set(OF_TARGETS | MADE)
    for name, matchers in selectors(expr):
        assert name in known, f"{where} names {name}, which is not in docs/metrics.md"
        own = METRICS.get(name, OTHERS.get(name))
        if own is None:
            own = {label for labels_ in METRICS.values() for label in labels_} | MADE
        labels |= own
        for label, _, value in matchers:
            assert label in own | OF_TARGETS, f"{where}: {name} has no label {label}"
            words = set(value.split("|"))
            if label == "decision":
                assert words <= DECISIONS, f"{where}: {words - DECISIONS} are no decisions"
            if label == "rule":
                assert words <= set(SEVERITIES), f"{where}: {words - set(SEVERITIES)} are no rules"
            if label == "direction":
                assert words <= DIRECTIONS
    for group in re.findall(r"(?:by|on|without|ignoring|group_left) \(([^)]*)\)", expr):
        for label in filter(None, map(str.strip, group.split(","))):
            assert label in labels, f"{where} groups by {label}, which nothing in it has"


def words_of(label: str, operator: str) -> set[frozenset[str]]:
    return {
        frozenset(value.split("|"))
        for _, expr in ALL
        for _, matchers in selectors(expr)
        for name, how, value in matchers
        if name == label and how == operator
    }


def test_every_decision_is_either_with_a_context_or_in_pieces_or_needs_none() -> None:
    """A new decision has to be put somewhere."""
    without = words_of("decision", "!~")
    assert len(without) == 1, "one list in all places"
    (needs_none,) = without
    kinds = words_of("decision", "=~")
    guesses = frozenset({"token", "inferred"})
    assert guesses in kinds
    (pieces,) = kinds - {guesses}
    joined = {"present", "copied", "completed", "exclusive", "token", "inferred"}
    assert sorted([*needs_none, *pieces, *joined]) == sorted(DECISIONS)


def test_the_alert_about_broken_headers_has_the_rules_of_severity_error() -> None:
    (listed,) = words_of("rule", "=~")
    assert listed == {rule for rule, severity in SEVERITIES.items() if severity == "error"}


def test_the_command_of_the_page_makes_a_prometheusrule(tmp_path: Path) -> None:
    (command,) = [one for one in commands("docs/monitoring.md") if "PrometheusRule" in one]
    (tmp_path / "envoyfilter").symlink_to(ROOT / "envoyfilter")
    subprocess.run(["sh", "-euc", command], cwd=tmp_path, check=True)
    made = yaml.safe_load((tmp_path / "b3relay-rules.yaml").read_text())
    assert made["kind"] == "PrometheusRule"
    assert made["metadata"] == {"name": "b3relay"}
    assert made["spec"] == yaml.safe_load(RULES.read_text())


def test_every_alert_is_explained() -> None:
    page = Path(ROOT / "docs/monitoring.md").read_text()
    alerts = [rule for rule in rules() if "alert" in rule]
    assert alerts
    for rule in alerts:
        assert f"### {rule['alert']}\n" in page
        assert rule["annotations"]["runbook"] == f"docs/monitoring.md#{rule['alert'].lower()}"
        assert {"summary", "description"} <= set(rule["annotations"])
