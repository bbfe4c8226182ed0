"""The sidecars that check.sh looks at in these tests, each recorded once, and what is held
against what it says of them."""

from functools import cache
from pathlib import Path

from check.cluster import Cluster, Said
from check.sidecar import MODULE, Recorded, Setup, record

SETUPS = {
    "right": Setup(),
    "before": Setup(filter=False),
    "no clicks": Setup(clicks=0),
    "no file": Setup(module=Path(MODULE)),
    "refused outbound": Setup(outbound={"modus": "repair"}),
    "client spans": Setup(client_spans=True),
    "not traced": Setup(tracer="none"),
    "one per cent": Setup(sampling=1),
    "none sampled": Setup(sampling=0),
    "opentelemetry": Setup(tracer="opentelemetry"),
    "both forms": Setup(tracer="zipkin+w3c"),
    "no labels": Setup(tags=()),
    "nothing forwarded": Setup(
        forwards=(), outbound={"attribution": "off"}, inbound={"attribution": "off"}
    ),
    "refused later": Setup(afterwards={"modus": "repair"}),
    "corrected later": Setup(outbound={"modus": "repair"}, afterwards={"mode": "observe"}),
    "changed later": Setup(afterwards={"mode": "repair"}),
    "two configurations": Setup(outbound={"copy_headers": ["x-tenant"]}),
}


@cache
def sidecar(name: str) -> Recorded:
    return record(SETUPS[name])


def cluster(name: str = "right") -> Cluster:
    return Cluster(sidecars={"front-1": sidecar(name)})


def wrong(said: Said, *parts: str) -> None:
    """It says so in as many lines, each with its remedy, and in its exit status."""
    found = said.lines("WRONG")
    assert len(found) == len(parts), said.text + said.errors
    for part in parts:
        assert any(part in line for line in found), f"{part}: {said.text}"
    assert said.exit_code == 1
    assert said.text.endswith(f"\nWrong: {len(parts)}.\n")


def right(said: Said) -> None:
    assert said.lines("WRONG") == [], said.text
    assert (said.exit_code, said.errors) == (0, ""), said.text
    assert said.text.endswith("\nAll right.\n")
