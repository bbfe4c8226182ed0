"""A world: what is random about a mesh, as plain data, so that it can be kept and shrunk."""

import json
import random
from dataclasses import asdict, dataclass, field
from typing import Any

from mesh import apps

Config = dict[str, Any]

VERSIONS = ("1.36.4", "1.37.0", "1.38.2", "1.39.3", "1.40.0")
NAMES = ("frontend", "orders", "users", "stock", "prices", "mail")
PATHS = ("/list", "/item", "/check", "/price", "/sync", "/status", "/rates", "/cart")
ALL7 = tuple(name.decode() for name in apps.FORWARD["all7"])
EVERYTHING = "*"
FORWARD: tuple[tuple[str, ...], ...] = (
    (),
    ("x-request-id",),
    ALL7,
    ("traceparent",),
    ("traceparent", "tracestate"),
    ("b3",),
    ("x-b3-traceid",),
    ("x-b3-traceid", "x-b3-spanid"),
    ("x-b3-sampled",),
    ("x-request-id", "x-b3-traceid"),
    ("x-correlation-id",),
    (EVERYTHING,),
)
# The name that a call uses, and the cluster that its sidecar has for it: all outside.
OUTSIDE = {
    "api.example.com": "outbound|443||api.example.com",
    "partner.example.org": "outbound|80||istio-egressgateway.istio-system.svc.cluster.local",
    "files.svc.ms": "outbound|443||files.svc.ms",
    "a.svc.evil.com": "PassthroughCluster",
    "somehost": "PassthroughCluster",
    "x.svc": "PassthroughCluster",
    "2130706433": "PassthroughCluster",
    "10.1.2.3:8080": "PassthroughCluster",
}
TENANT_HEADERS = ("x-tenant-id", "end-user", "authorization", "baggage")
ODD = (
    "malformed",
    "upper",
    "repeated",
    "at_odds",
    "stale_traceparent",
    "stale_b3",
    "huge_headers",
    "huge_bytes",
    "empty",
    "short",
    "anothers_trace",
    "unsampled",
    "debug",
    "sampling_only",
)
SANE = ("plain", "id", "b3multi", "b3", "w3c", "both")
# Where the client spans of calls go; see SPANS.
WELL = ("well", "slow")
BAD = ("500", "down", "missing")
# All requests of a batch have the same request ID and trace, or just one of them.
SHARED = ("shared", "shared_id", "shared_trace")


@dataclass
class Call:
    """To a route of a service, or to a host outside (then ``route`` is None)."""

    route: int | None
    host: str


@dataclass
class Step:
    calls: list[Call]
    parallel: bool = False


@dataclass
class Route:
    service: int
    path: str
    work_ms: float = 2
    steps: list[Step] = field(default_factory=list)
    # Made after the answer.
    later: list[Call] = field(default_factory=list)
    # Percentage of calls of which the first attempt is answered with 503.
    flaky: int = 0


@dataclass
class Sdk:
    """tracecontext, b3multi, b3; with several, the last that reads something wins."""

    propagators: list[str]
    reports: bool


@dataclass
class Service:
    envoy: int = 0
    position: str = "upstream"
    filter: bool = True
    forward: list[str] = field(default_factory=list)
    sdk: Sdk | None = None
    # Each call gets a UUIDv4 of its own as x-request-id.
    own_id: bool = False
    config_in: Config = field(default_factory=dict)
    config_out: Config = field(default_factory=dict)


@dataclass
class Background:
    service: int
    every_ms: float
    call: Call


@dataclass
class EnvoyOf:
    version: str = "1.40.0"
    workers: int = 1


@dataclass
class Batch:
    requests: int
    concurrency: int
    clients: list[str]
    # Headers that each request has with a value of its own.
    tenants: list[str] = field(default_factory=list)
    # Part of the path of a request and of all the calls made for it.
    user_in_path: bool = False
    pause_ms: float = 0


@dataclass
class World:
    seed: int
    tracer: str = "zipkin"
    wide: bool = True
    http2: bool = False
    gateway: bool = True
    spawn_upstream_span: bool = True
    retries: bool = False
    # How the collector of client spans is; none are reported if empty.
    spans: str = ""
    # Requests have bodies, in which the truth travels; else it does in the answers alone.
    bodies: bool = True
    envoys: list[EnvoyOf] = field(default_factory=lambda: [EnvoyOf()])
    services: list[Service] = field(default_factory=list)
    # Route 0 is where requests enter.
    routes: list[Route] = field(default_factory=list)
    background: list[Background] = field(default_factory=list)
    batches: list[Batch] = field(default_factory=list)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> "World":
        data = json.loads(text)

        def call(value: dict[str, Any]) -> Call:
            return Call(**value)

        for route in data["routes"]:
            route["steps"] = [
                Step([call(each) for each in step["calls"]], step["parallel"])
                for step in route["steps"]
            ]
            route["later"] = [call(each) for each in route["later"]]
        for service in data["services"]:
            service["sdk"] = Sdk(**service["sdk"]) if service["sdk"] else None
        for background in data["background"]:
            background["call"] = call(background["call"])
        data["envoys"] = [EnvoyOf(**each) for each in data["envoys"]]
        data["services"] = [Service(**each) for each in data["services"]]
        data["routes"] = [Route(**each) for each in data["routes"]]
        data["background"] = [Background(**each) for each in data["background"]]
        data["batches"] = [Batch(**each) for each in data["batches"]]
        return cls(**data)

    def describe(self) -> str:
        """In a few lines."""
        lines = [
            f"seed {self.seed}: {self.tracer}{'' if self.wide else ', 64 bit'}, "
            f"{'HTTP/2' if self.http2 else 'HTTP/1.1'}, "
            f"{'gateway' if self.gateway else 'no gateway'}"
            f"{', retries' if self.retries else ''}"
            f"{f', client spans ({self.spans})' if self.spans else ''}, envoys "
            + ", ".join(f"{each.version} x{each.workers}" for each in self.envoys)
        ]
        for number, service in enumerate(self.services):
            sdk = service.sdk
            lines.append(
                f"  {NAMES[number]}: forwards {','.join(service.forward) or 'nothing'}"
                + (
                    f", SDK {'+'.join(sdk.propagators)}"
                    f" that {'reports' if sdk.reports else 'does not report'}"
                    if sdk
                    else ""
                )
                + (", request IDs of its own" if service.own_id else "")
                + ("" if service.filter else ", no filter")
                + (f", filter as {service.position}" if service.position != "upstream" else "")
                + f", in {json.dumps(service.config_in)}, out {json.dumps(service.config_out)}"
            )

        def name(call: Call) -> str:
            if call.route is None:
                return call.host
            return NAMES[self.routes[call.route].service] + self.routes[call.route].path

        for route in self.routes:
            steps = [
                (" & " if step.parallel else ", ").join(name(call) for call in step.calls)
                for step in route.steps
            ]
            lines.append(
                f"  {NAMES[route.service]}{route.path} ({route.work_ms} ms): "
                + "; ".join(steps or ["no calls"])
                + "".join(f"; later {name(call)}" for call in route.later)
                + (f"; {route.flaky} % fail first" if route.flaky else "")
            )
        for each in self.background:
            lines.append(
                f"  background: {NAMES[each.service]} calls {name(each.call)} every {each.every_ms} ms"
            )
        for batch in self.batches:
            lines.append(
                f"  {batch.requests} requests, {batch.concurrency} at once: {','.join(batch.clients)}"
                + (f"; own {','.join(batch.tenants)}" if batch.tenants else "")
                + ("; user in the path" if batch.user_in_path else "")
            )
        return "\n".join(lines)


def simple(seed: int) -> World:
    """The simplest world: three services that forward everything."""
    services = [Service(forward=list(ALL7)) for _ in range(3)]
    routes = [
        Route(0, "/list", steps=[Step([Call(1, "orders")]), Step([Call(2, "users")])]),
        Route(1, "/item", steps=[Step([Call(2, "users")])]),
        Route(2, "/price"),
    ]
    return World(seed, services=services, routes=routes, batches=[Batch(20, 4, ["plain"])])


def generate(seed: int) -> World:
    """The world of this number."""
    rng = random.Random(seed)
    chance = rng.random

    def some(options: tuple[str, ...], most: int) -> list[str]:
        return rng.sample(options, rng.randint(1, most))

    tracer = rng.choices(("zipkin", "zipkin+w3c", "otel", "none"), (5, 3, 4, 1))[0]
    count = rng.randint(2, 6)
    envoys = [
        EnvoyOf(rng.choices(VERSIONS, (1, 1, 2, 2, 4))[0], rng.choice((1, 1, 2, 2, 3, 4)))
        for _ in range(rng.choice((1, 1, 1, 2, 2, 3)))
    ]
    world = World(
        seed,
        tracer=tracer,
        wide=tracer == "otel" or chance() < 0.8,
        http2=chance() < 0.25,
        gateway=chance() < 0.6,
        spawn_upstream_span=chance() < 0.7,
        bodies=chance() < 0.8,
        envoys=envoys,
    )
    world.retries = world.bodies and chance() < 0.3
    # As in a cluster: a process for each pod.
    each_its_own = chance() < 0.1
    if each_its_own:
        world.envoys = [EnvoyOf(envoys[0].version, rng.choice((1, 2))) for _ in range(count)]

    tenants = some(TENANT_HEADERS, 3) if chance() < 0.6 else []
    base: Config = {}
    if chance() < 0.3:
        base["mode"] = "repair"
    if chance() < 0.35:
        base["emit"] = rng.choice(
            (["b3multi"], ["b3"], ["w3c"], ["b3multi", "w3c"], ["b3", "w3c"], ["b3multi", "b3"])
        )
    if chance() < 0.15:
        base["keys"] = rng.choice(
            (["x-correlation-id", "x-request-id"], ["x-request-id"], ["b3", "traceparent"])
        )
    base["attribution"] = rng.choices(("exclusive", "off", "inferred"), (5, 3, 3))[0]
    if chance() < 0.6:
        base["copy_headers"] = rng.choice(
            (["x-tenant-*"], ["end-user", "x-tenant-*"], ["authorization"], ["baggage"])
        )
    outside = rng.choices(("leave", "strip", "relay"), (6, 2, 1))[0]
    if outside != "leave":
        base["outside"] = outside
    if chance() < 0.2:
        base["grace_ms"] = rng.choice((0, 50, 5000))
    reports = chance() < 0.75

    kinds = rng.sample(FORWARD, rng.choice((1, 1, 2, 3)))
    with_sdk = chance() < 0.45
    for number in range(count):
        config_in, config_out = dict(base), dict(base)
        if chance() < 0.12:
            changed = rng.choice((config_in, config_out))
            match rng.randrange(4):
                case 0:
                    changed["emit"] = rng.choice((["b3multi"], ["w3c"], ["b3multi", "w3c"]))
                case 1:
                    changed.pop("copy_headers", None)
                case 2:
                    changed["mode"] = "repair"
                case 3:
                    changed["attribution"] = rng.choice(("exclusive", "off", "inferred"))
        if reports:
            config_in["report_header"] = "response"
            config_out["report_header"] = "request"
        sdk = None
        if with_sdk and chance() < 0.6:
            sdk = Sdk(
                rng.choice(
                    (
                        ["tracecontext"],
                        ["tracecontext"],
                        ["b3multi"],
                        ["b3"],
                        ["b3multi", "tracecontext"],
                        ["tracecontext", "b3multi"],
                        ["b3", "tracecontext"],
                    )
                ),
                chance() < 0.6,
            )
        world.services.append(
            Service(
                envoy=number if each_its_own else rng.randrange(len(envoys)) if number else 0,
                position=rng.choices(("upstream", "http"), (6, 1))[0],
                filter=chance() < 0.93,
                forward=list(rng.choice(kinds)),
                sdk=sdk,
                own_id=chance() < 0.12,
                config_in=config_in,
                config_out=config_out,
            )
        )
    cost = _routes(world, rng)
    for _ in range(rng.choice((0, 0, 0, 1, 2))):
        target = rng.choice([at for at, calls in enumerate(cost) if calls <= 3])
        service = rng.randrange(count)
        world.background.append(
            Background(service, rng.choice((20, 50, 200, 1000)), _call(world, rng, target))
        )
    for _ in range(rng.choice((1, 2, 2, 3))):
        clients = some(SANE, 3)
        if chance() < 0.5:
            clients += some(ODD, 3)
        if chance() < 0.25:
            clients = [rng.choice(SHARED)]
        world.batches.append(
            Batch(
                max(8, min(rng.choice((10, 20, 30, 40)), 160 // cost[0])),
                rng.choice((1, 1, 2, 4, 8, 16)),
                clients,
                tenants=tenants,
                user_in_path=base["attribution"] == "inferred" and chance() < 0.5,
                pause_ms=rng.choice((0, 0, 0, 5)),
            )
        )
    # Drawn apart, so that worlds stay what they were before there were spans.
    apart = random.Random(f"spans of {seed}")
    if apart.random() < 0.6:
        world.spans = apart.choices((*WELL, *BAD), (6, 2, 1, 1, 1))[0]
    return world


def _call(world: World, rng: random.Random, target: int) -> Call:
    name = NAMES[world.routes[target].service]
    return Call(
        target, rng.choice((name, f"{name}:9080", f"{name}.default.svc.cluster.local:9080"))
    )


def _routes(world: World, rng: random.Random) -> list[int]:
    """A route calls none before it, so there is an end; services may call each other
    and themselves all the same, by other routes. Returns how many requests each means."""
    count = len(world.services)
    owners = [0, *(rng.randrange(count) for _ in range(rng.randint(count, count + 3)))]
    for service in range(1, count):
        if service not in owners:
            owners.append(service)
    paths = [f"{PATHS[at % len(PATHS)]}{at // len(PATHS) or ''}" for at in range(len(owners))]
    slow = rng.choice((0, 0, 1))
    for owner, path in zip(owners, paths, strict=True):
        work = rng.choice((0, 1, 2, 5)) if not slow else rng.choice((0, 2, 10, 30))
        world.routes.append(Route(owner, path, work))
    hosts = tuple(OUTSIDE)
    # So that the number of calls of one request stays small.
    cost = [1] * len(owners)
    for at in range(len(owners) - 1, -1, -1):
        route = world.routes[at]
        for _ in range(rng.choice((1, 1, 2, 3)) if at == 0 else rng.choice((0, 0, 1, 1, 2))):
            step = Step([], rng.random() < 0.4)
            for _ in range(rng.choice((1, 1, 2, 3))):
                if rng.random() < 0.08:
                    step.calls.append(Call(None, rng.choice(hosts)))
                    cost[at] += 1
                elif at + 1 < len(owners):
                    target = rng.randrange(at + 1, len(owners))
                    if cost[at] + cost[target] <= 12:
                        cost[at] += cost[target]
                        step.calls.append(_call(world, rng, target))
            if step.calls:
                route.steps.append(step)
        if at + 1 < len(owners) and rng.random() < 0.12:
            target = rng.randrange(at + 1, len(owners))
            if cost[at] + cost[target] <= 12:
                cost[at] += cost[target]
                route.later.append(_call(world, rng, target))
        if world.retries and at and rng.random() < 0.4:
            route.flaky = rng.choice((10, 30, 100))
    return cost
