"""A real Prometheus scrapes real sidecars while the mesh of the demo works: every query of
every panel has data, and the recording rules come to what the sidecars say themselves."""

import json
import re
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import yaml

from mesh.mesh import ROOT, SERVICES
from mesh.prometheus import DASHBOARD, RULES, Query, panels, queries
from monitoring.world import World, labels_of, world

# Nothing of these happens here: they are there, and 0.
ZERO = {
    "requests not remembered",
    "Contexts overwritten by Envoy (1 h)",
    "requests evicted",
    "copied headers dropped",
    "requests without room",
    "calls refused by Envoy",
    "keys that filters hold differently",
}


@pytest.fixture(scope="module")
def shop() -> Iterator[World]:
    with world() as found:
        # Each counter begins before it grows: a rate needs two values.
        found.broken(1)
        # Alone, so that it is learned what requests do; then several at once.
        found.users(40, 1, 0.05)
        found.users(150, 8, 0.4)
        found.broken()
        found.collector.failing = True
        for _ in range(4):
            found.users(20, 4, 0.3)
        # Two scrapes and what is made of them.
        time.sleep(3)
        yield found


@pytest.mark.parametrize("query", queries(), ids=lambda query: f"{query.panel}: {query.legend}")
def test_every_query_has_data(shop: World, query: Query) -> None:
    found = shop.prometheus.query(query.expr)
    assert found, query.expr
    assert all(value == value for value in found.values()), "not a number"
    if not {query.panel, query.legend} & ZERO:
        assert any(value > 0 for value in found.values()), found
    over_time = shop.prometheus.range(query.expr, shop.began, time.time())
    assert over_time


@pytest.mark.parametrize("service", SERVICES)
def test_a_workload_can_be_chosen(shop: World, service: str) -> None:
    """With the variables as Grafana fills them in when one is chosen."""
    values = {"$namespace": "shop", "$workload": f"{service}-v1", "$__rate_interval": "1m"}
    found = {query.panel: shop.prometheus.query(query.expr) for query in queries(values)}
    assert found["Sidecars with b3relay"] == {"{}": 1}
    (memory,) = found["Cost: memory of the sidecars"]
    assert memory == f'{{"namespace": "shop", "workload": "{service}-v1"}}'
    other = {**values, "$workload": service}
    assert shop.prometheus.query(queries(other)[1].expr) == {}, "not by the beginning of its name"


def test_the_variables_of_the_dashboard_find_the_workloads(shop: World) -> None:
    pods = shop.prometheus.get("label/pod/values", **{"match[]": "b3relay_requests_total"})
    assert sorted(pods) == sorted(labels_of(name)["pod"] for name in SERVICES)
    variables = json.loads(DASHBOARD.read_text())["templating"]["list"]
    (workload,) = [one for one in variables if one["name"] == "workload"]
    regex = re.compile(workload["regex"].strip("/"))
    names = {match[1] for pod in pods if (match := regex.search(pod))}
    assert names == {f"{name}-v1" for name in SERVICES}


def test_recording_rules_have_data_and_no_rule_fails(shop: World) -> None:
    recorded = {
        rule["record"]
        for group in yaml.safe_load(RULES.read_text())["groups"]
        for rule in group["rules"]
        if "record" in rule
    }
    for name in recorded - {"workload:b3relay_not_remembered:rate5m"}:
        assert shop.prometheus.query(name), name
    for group in shop.prometheus.get("rules")["groups"]:
        for rule in group["rules"]:
            assert rule["health"] == "ok", rule


def test_counts_are_those_of_the_sidecars(shop: World) -> None:
    envoy = shop.mesh.envoys["productpage"]
    pod = labels_of("productpage")["pod"]
    own = {
        match[1]: value
        for name, value in envoy.stats("b3relay_calls_total").items()
        if (match := re.search(r'decision="(\w+)"', name))
    }
    assert own
    found = shop.prometheus.get("query", query=f'b3relay_calls_total{{pod="{pod}"}}')["result"]
    assert {one["metric"]["decision"]: float(one["value"][1]) for one in found} == own


def test_alerts_of_what_is_wrong_are_pending(shop: World) -> None:
    """They would fire after some minutes; nothing is wrong that these do not say."""
    alerts = shop.prometheus.get("alerts")["alerts"]
    names = {alert["labels"]["alertname"] for alert in alerts}
    assert "B3relayCallsInPieces" in names
    assert "B3relaySpansLost" in names
    assert names.isdisjoint({"B3relayClientSpansOn", "B3relayMisconfigured", "B3relayHostErrors"})


def relabelling() -> list[dict[str, Any]]:
    text = (ROOT / "docs/monitoring.md").read_text()
    block = text.partition("<!-- relabel -->\n```yaml\n")[2].partition("```")[0]
    found: list[dict[str, Any]] = yaml.safe_load(block)
    return found


def test_labels_can_be_taken_out_of_the_names_by_prometheus() -> None:
    """Without extraStatTags, with the relabelling of the page."""
    with world(tags=(), relabel=relabelling()) as found:
        found.users(5, 1)
        found.broken(1)
        calls = 'b3relay_calls_total{decision="exclusive"}'
        found.prometheus.wait(partial(_has, found, calls), calls)
        findings = 'b3relay_findings_total{rule="L01",direction="inbound"}'
        found.prometheus.wait(partial(_has, found, findings), findings)
        names = found.prometheus.get("label/__name__/values")
        assert not [name for name in names if name.startswith("b3relay") and "___" in name]
        assert found.prometheus.query('b3relay_requests_total{direction="inbound"}')


def _has(shop: World, expr: str) -> bool:
    return bool(shop.prometheus.query(expr))


def test_the_panels_ask_for_nothing_twice() -> None:
    exprs = [query.expr for query in queries()]
    assert len(exprs) == len(set(exprs))
    assert len(panels()) > 10
