"""What spans say, in a form in which two meshes that do the same say the same."""

import json
import re
from collections.abc import Iterable

from mesh.collector import Span

# Another one each time.
VARIES = frozenset({"guid:x-request-id", "zone"})
# Of b3relay's spans alone.
OWN = frozenset({"b3relay.decision", "b3relay.rules"})


def service(span: Span) -> str:
    """Whose span it is."""
    name: str = span["localEndpoint"]["serviceName"]
    return name


def clients(spans: Iterable[Span], of: str) -> list[Span]:
    """The client spans of a service."""
    return [span for span in spans if span.get("kind") == "CLIENT" and service(span) == of]


def facts(spans: list[Span], varies: Iterable[str] = ()) -> list[str]:
    """What each span says, and below which it hangs; without IDs and times, and without
    tags that are known to differ."""
    names = {span["id"]: f"{service(span)} {span.get('kind')}" for span in spans}
    left_out = VARIES | OWN | set(varies)
    found = []
    for span in spans:
        tags = {name: value for name, value in span["tags"].items() if name not in left_out}
        for name in ("upstream_cluster", "upstream_cluster.name"):
            if tags.get(name, "").startswith("inbound|"):
                tags[name] = "inbound"
        # The port of a listener is another one each time.
        for name in ("http.url", "grpc.authority"):
            if name in tags:
                tags[name] = re.sub(r":\d+(?=/|$)", "", tags[name])
        parent = names.get(span.get("parentId", ""), span.get("parentId"))
        told = [service(span), span.get("kind"), span["name"], parent, span.get("error")]
        found.append(json.dumps([*told, sorted(tags.items())]))
    return sorted(found)
