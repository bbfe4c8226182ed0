"""Smaller worlds than one that fails, which may fail as well."""

from collections.abc import Callable, Iterator
from copy import deepcopy

from worlds.world import ALL7, NAMES, Batch, Call, Route, World


def smaller(world: World) -> Iterator[World]:
    """One step each, the largest first."""
    return (each for each in _steps(world) if each != world)


def _steps(world: World) -> Iterator[World]:

    def changed(change: Callable[[World], object]) -> World:
        copy = deepcopy(world)
        change(copy)
        return copy

    if len(world.batches) > 1:
        for at in range(len(world.batches)):
            yield changed(lambda w, at=at: w.batches.pop(at))  # type: ignore[misc]
    for at, batch in enumerate(world.batches):
        for halved in _batches(batch):
            yield changed(lambda w, at=at, b=halved: w.batches.__setitem__(at, b))  # type: ignore[misc]
    if world.background:
        yield changed(lambda w: w.background.clear())
    for how in ("", "well"):
        if world.spans not in ("", how):
            yield changed(lambda w, how=how: setattr(w, "spans", how))  # type: ignore[misc]
    for at, route in enumerate(world.routes):
        for less in _routes(route):
            yield _tidy(changed(lambda w, at=at, r=less: w.routes.__setitem__(at, r)))  # type: ignore[misc]
    everywhere = {key for s in world.services for key in (*s.config_in, *s.config_out)}
    for key in sorted(everywhere - {"report_header"}):
        yield _without(world, key)
    if len(world.services) > 1:
        yield changed(_plain)
    if len(world.envoys) > 1:
        yield changed(_one_envoy)
    for at, each in enumerate(world.envoys):
        if each.workers > 1:
            yield changed(lambda w, at=at: setattr(w.envoys[at], "workers", 1))  # type: ignore[misc]
        if each.version != "1.40.0":
            yield changed(lambda w, at=at: setattr(w.envoys[at], "version", "1.40.0"))  # type: ignore[misc]
    for name, plain in (("gateway", False), ("http2", False), ("retries", False), ("wide", True)):
        if getattr(world, name) != plain:
            yield changed(lambda w, n=name, p=plain: setattr(w, n, p))  # type: ignore[misc]
    for at, service in enumerate(world.services):
        options: list[tuple[str, object]] = [
            ("sdk", None),
            ("own_id", False),
            ("position", "upstream"),
            ("forward", []),
            ("forward", list(ALL7)),
        ]
        for name, value in options:
            now = getattr(service, name)
            if now != value and not (name == "forward" and now in ([], list(ALL7))):
                yield changed(lambda w, at=at, n=name, v=value: setattr(w.services[at], n, v))  # type: ignore[misc]
        for side in ("config_in", "config_out"):
            for key in getattr(service, side):
                if key != "report_header":
                    yield changed(lambda w, at=at, s=side, k=key: getattr(w.services[at], s).pop(k))  # type: ignore[misc]


def _batches(batch: Batch) -> Iterator[Batch]:
    if batch.requests > 1:
        yield Batch(**{**vars(batch), "requests": batch.requests // 2})
        yield Batch(**{**vars(batch), "requests": batch.requests - 1})
    if batch.concurrency > 1:
        yield Batch(**{**vars(batch), "concurrency": batch.concurrency // 2})
    if len(batch.clients) > 1:
        for client in batch.clients:
            yield Batch(**{**vars(batch), "clients": [client]})
    if batch.tenants:
        yield Batch(**{**vars(batch), "tenants": batch.tenants[1:]})
    if batch.user_in_path:
        yield Batch(**{**vars(batch), "user_in_path": False})
    if batch.pause_ms:
        yield Batch(**{**vars(batch), "pause_ms": 0})


def _routes(route: Route) -> Iterator[Route]:
    if route.flaky:
        yield Route(**{**vars(route), "flaky": 0})
    if route.later:
        yield Route(**{**vars(route), "later": []})
    for at, step in enumerate(route.steps):
        steps = deepcopy(route.steps)
        del steps[at]
        yield Route(**{**vars(route), "steps": steps})
        if len(step.calls) > 1:
            for n in range(len(step.calls)):
                steps = deepcopy(route.steps)
                del steps[at].calls[n]
                yield Route(**{**vars(route), "steps": steps})


def _without(world: World, key: str) -> World:
    """No filter has this key in its configuration."""
    copy = deepcopy(world)
    for service in copy.services:
        service.config_in.pop(key, None)
        service.config_out.pop(key, None)
    return copy


def _plain(world: World) -> None:
    for service in world.services:
        service.sdk, service.position, service.own_id = None, "upstream", False


def _one_envoy(world: World) -> None:
    world.envoys = world.envoys[:1]
    for service in world.services:
        service.envoy = 0


def _tidy(world: World) -> World:
    """Without routes and services that nothing leads to."""

    def calls(of: World) -> list[Call]:
        found = [call for r in of.routes for s in r.steps for call in s.calls]
        return [*found, *(c for r in of.routes for c in r.later), *(b.call for b in of.background)]

    while True:
        used = {0, *(call.route for call in calls(world) if call.route is not None)}
        unused = [at for at in range(len(world.routes)) if at not in used]
        if not unused:
            break
        gone = unused[-1]
        del world.routes[gone]
        for call in calls(world):
            if call.route is not None and call.route > gone:
                call.route -= 1
    used = {r.service for r in world.routes} | {b.service for b in world.background}
    numbers = {old: new for new, old in enumerate(sorted(used))}
    world.services = [world.services[old] for old in numbers]
    for route in world.routes:
        route.service = numbers[route.service]
    for background in world.background:
        background.service = numbers[background.service]
    for call in calls(world):
        if call.route is not None:
            # The name has the same form for each service.
            _, *rest = call.host.replace(":", ".").split(".")
            name = NAMES[world.routes[call.route].service]
            call.host = name if not rest else f"{name}:9080"
    return world
