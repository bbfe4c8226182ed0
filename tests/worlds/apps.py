"""The applications of a world, all in one event loop, and the clients.

They keep the truth: which call was made for which request. It travels in bodies, where
no filter reads it.
"""

import asyncio
import json
import random
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from worlds import http1
from worlds.http1 import Headers, Message
from worlds.spans import Span, trace_id
from worlds.world import EVERYTHING, NAMES, Batch, Call, Sdk, Service, World

_HEX = frozenset("0123456789abcdef")
# What an Envoy takes, and applications too (Go takes more, Node less).
_MOST_HEADERS, _MOST_BYTES = 100, 60 * 1024
_HOP = ("host", "content-length", "transfer-encoding", "connection", "x-b3relay", "expect")


@dataclass(frozen=True)
class Context:
    """What a request says of its trace, in one form."""

    trace: str
    span: str
    sampled: str | None
    parent: str | None = None


def is_id(text: str, *lengths: int) -> bool:
    return len(text) in lengths and _HEX.issuperset(text) and text.strip("0") != ""


def _text(headers: Headers, name: str) -> str | None:
    return next((v.decode("latin-1") for n, v in headers if n == name), None)


def read_multi(headers: Headers) -> Context | None:
    """By the letter; the first of repeated headers."""
    trace, span = _text(headers, "x-b3-traceid"), _text(headers, "x-b3-spanid")
    if trace is None or span is None or not is_id(trace, 16, 32) or not is_id(span, 16):
        return None
    sampled = _text(headers, "x-b3-sampled")
    if _text(headers, "x-b3-flags") == "1":
        sampled = "1"
    return Context(trace_id(trace), span, sampled, _text(headers, "x-b3-parentspanid"))


def read_single(headers: Headers) -> Context | None:
    parts = (_text(headers, "b3") or "").split("-")
    if len(parts) < 2 or not is_id(parts[0], 16, 32) or not is_id(parts[1], 16):
        return None
    sampled = parts[2] if len(parts) > 2 else None
    return Context(
        trace_id(parts[0]),
        parts[1],
        "1" if sampled == "d" else sampled,
        parts[3] if len(parts) > 3 else None,
    )


def read_w3c(headers: Headers) -> Context | None:
    parts = (_text(headers, "traceparent") or "").split("-")
    if len(parts) != 4 or parts[0] != "00" or not is_id(parts[1], 32) or not is_id(parts[2], 16):
        return None
    return Context(parts[1], parts[2], "1" if parts[3][1:] in "13579bdf" else "0")


READERS: dict[str, Callable[[Headers], Context | None]] = {
    "b3multi": read_multi,
    "b3": read_single,
    "tracecontext": read_w3c,
}


def contexts(headers: Headers) -> dict[str, Context]:
    """All that can be read."""
    found = {form: reader(headers) for form, reader in READERS.items()}
    return {form: context for form, context in found.items() if context}


def new_span() -> str:
    return uuid.uuid4().hex[:16]


@dataclass
class SdkSpans:
    """What an SDK makes of a request."""

    server: Context
    # By span ID of the calls.
    clients: set[str] = field(default_factory=set)


@dataclass(eq=False)
class Made:
    """A call, or a request of a client."""

    id: int
    # Who made it: a request that an application serves; None for a client, or the background.
    by: "Received | None"
    # Which of the calls of that request; of a client: which request.
    place: str
    host: str
    service: int | None
    # The route.
    path: str
    sent: Headers
    at: float
    later: bool = False
    # It is nobody's call: of a timer.
    background: bool = False
    # What a client's request is recognised by.
    marks: tuple[bytes, ...] = ()
    kind: str = ""
    # Of the SDK's span for this call.
    sdk: Context | None = None
    own_id: bytes | None = None
    status: int | None = None
    answer: Any = None
    answer_headers: Headers = field(default_factory=list)
    received: list["Received"] = field(default_factory=list)

    @property
    def root(self) -> "Made":
        return self if self.by is None or self.by.call is None else self.by.call.root

    @property
    def key(self) -> str:
        """Its place in the load: the same with and without the filter."""
        if self.by is None:
            return self.place
        return f"{self.by.call.key if self.by.call else '?'}/{self.place}"


@dataclass(eq=False)
class Received:
    """A request as an application, or a host outside, got it."""

    number: int
    # None outside the mesh.
    service: int | None
    headers: Headers
    began: float
    ended: float | None = None
    call: Made | None = None
    calls: list[Made] = field(default_factory=list)
    sdk: SdkSpans | None = None


class Run:
    """The load of a world, once, in one variant."""

    def __init__(
        self,
        world: World,
        entry: int,
        outbound: dict[int, int],
    ) -> None:
        self.world, self.entry, self.outbound = world, entry, outbound
        self.client = http1.Client()
        self.received: list[Received] = []
        self.made: list[Made] = []
        # Reported by the SDKs.
        self.spans: list[Span] = []
        self.tasks: set[asyncio.Task[None]] = set()
        self._attempts: dict[int, int] = {}
        self._token = uuid.uuid4().hex
        self._routes = {(r.service, r.path): r for r in world.routes}

    # Serving.

    async def serve(self, service: int, request: Message) -> tuple[int, Headers, bytes]:
        got = Received(len(self.received), service, request.headers, time.monotonic())
        self.received.append(got)
        self._known(got, request)
        base, _, user = request.start[1].partition("/for/")
        route = self._routes.get((service, base))
        if route is None:
            return 404, [], b""
        chooser = random.Random(f"{self.world.seed} {got.call.key if got.call else ''}")
        if got.call is not None:
            attempt = self._attempts[got.call.id] = self._attempts.get(got.call.id, 0) + 1
            if attempt == 1 and chooser.random() * 100 < route.flaky:
                got.ended = time.monotonic()
                return 503, [], b'{"n": -1}'
        size = sum(len(name) + len(value) + 4 for name, value in request.headers)
        if len(request.headers) > _MOST_HEADERS or size > _MOST_BYTES:
            got.ended = time.monotonic()
            return 431, [], json.dumps({"n": got.number}).encode()
        this = self.world.services[service]
        sampled_span = None
        if this.sdk:
            sampled_span = self._sdk_serves(this.sdk, got)
        if route.work_ms:
            await asyncio.sleep(route.work_ms * (0.5 + random.random()) / 1000)
        statuses = []
        for number, step in enumerate(route.steps):
            calls = [
                self.call(service, call, f"{number}.{at}", got, user)
                for at, call in enumerate(step.calls)
            ]
            if step.parallel:
                statuses += await asyncio.gather(*calls)
            else:
                for each in calls:
                    statuses.append(await each)
        for number, call in enumerate(route.later):
            self.start(self._later(service, call, f"later.{number}", got, user))
        got.ended = time.monotonic()
        if sampled_span:
            self.spans.append(sampled_span)
        return 200, [], json.dumps({"n": got.number, "calls": statuses}).encode()

    async def serve_outside(self, request: Message) -> tuple[int, Headers, bytes]:
        got = Received(len(self.received), None, request.headers, time.monotonic())
        self.received.append(got)
        self._known(got, request)
        got.ended = time.monotonic()
        return 200, [], json.dumps({"n": got.number, "calls": []}).encode()

    def _known(self, got: Received, request: Message) -> None:
        if request.body:
            said = json.loads(request.body)
            if said["run"] == self._token:  # else of a world before that was broken off
                self._belongs(got, self.made[said["call"]])

    async def stop(self) -> None:
        """Break off what is still going on."""
        tasks = list(self.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.client.close()

    def _belongs(self, got: Received, call: Made) -> None:
        if got.call is None:
            got.call = call
            call.received.append(got)

    def start(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def _sdk_serves(self, sdk: Sdk, got: Received) -> Span | None:
        """Extracts, and makes a server span."""
        parent = None
        for propagator in sdk.propagators:
            parent = READERS[propagator](got.headers) or parent
        trace = parent.trace if parent else uuid.uuid4().hex
        # OpenTelemetry reads an open decision as a no.
        sampled = "1" if parent is None or parent.sampled == "1" else "0"
        span = Context(trace, new_span(), sampled, parent.span if parent else None)
        got.sdk = SdkSpans(span)
        if not sdk.reports or sampled == "0":
            return None
        return Span(trace, span.span, span.parent, "SERVER", int(time.time() * 1e6), envoys=False)

    # Calling.

    async def _later(self, service: int, call: Call, place: str, got: Received, user: str) -> None:
        await asyncio.sleep(random.choice((0.001, 0.02, 0.1)))
        await self.call(service, call, place, got, user, later=True)

    async def call(
        self,
        service: int,
        call: Call,
        place: str,
        got: Received | None,
        user: str = "",
        later: bool = False,
    ) -> int:
        """As an application, for a request or of its own accord."""
        this = self.world.services[service]
        headers, span, own = self._headers(this, got)
        path = "/" if call.route is None else self.world.routes[call.route].path
        made = Made(
            len(self.made),
            got,
            place,
            call.host,
            None if call.route is None else self.world.routes[call.route].service,
            path,
            headers,
            time.monotonic(),
            later=later,
            background=got is None,
            sdk=span,
            own_id=own,
        )
        self.made.append(made)
        if got is not None:
            got.calls.append(made)
        began = int(time.time() * 1e6)
        await self._send(made, self.outbound[service], path + (f"/for/{user}" if user else ""))
        if span and this.sdk and this.sdk.reports and span.sampled == "1":
            self.spans.append(
                Span(span.trace, span.span, span.parent, "CLIENT", began, envoys=False)
            )
        return made.status or 0

    def _headers(
        self, this: Service, got: Received | None
    ) -> tuple[Headers, Context | None, bytes | None]:
        """Of a call, by what the service does."""
        headers: Headers = []
        if got is not None:
            for name, value in got.headers:
                listed = name in this.forward
                if EVERYTHING in this.forward:
                    listed = name not in _HOP and not name.startswith(("x-envoy-", "x-forwarded-"))
                if listed:
                    headers.append((name, value))
        span = own = None
        if this.sdk:
            if got is not None and got.sdk is not None:
                server = got.sdk.server
                span = Context(server.trace, new_span(), server.sampled, server.span)
                got.sdk.clients.add(span.span)
            else:
                span = Context(uuid.uuid4().hex, new_span(), "1")
            injected: Headers = []
            for propagator in this.sdk.propagators:
                injected += _inject(propagator, span)
            names = {name for name, _ in injected}
            if names & {"x-b3-traceid"}:
                names |= {"x-b3-parentspanid", "x-b3-flags"}
            headers = [pair for pair in headers if pair[0] not in names] + injected
        if this.own_id:
            own = str(uuid.uuid4()).encode()
            headers = [pair for pair in headers if pair[0] != "x-request-id"]
            headers.insert(0, ("x-request-id", own))
        return headers, span, own

    async def _send(self, made: Made, port: int, path: str) -> None:
        body = None
        if self.world.bodies:
            body = json.dumps({"call": made.id, "run": self._token}).encode()
        try:
            answer = await self.client.request(
                port, "POST" if body else "GET", path, made.host, made.sent, body
            )
        except (OSError, TimeoutError) as error:
            made.status, made.answer = 0, {"error": repr(error)}
            return
        made.status, made.answer_headers = answer.status, answer.headers
        try:
            made.answer = json.loads(answer.body)
        except ValueError:
            made.answer = {"text": answer.body.decode("latin-1")}
        number = made.answer.pop("n", -1)
        if number >= 0:
            self._belongs(self.received[number], made)

    # The clients.

    async def batch(self, number: int) -> None:
        """One of the world's, until all is answered and what comes later is over."""
        batch = self.world.batches[number]
        rng = random.Random(f"{self.world.seed} batch {number}")
        clients = Clients(batch, rng, f"b{number}")
        waiting = iter([clients.request(at) for at in range(batch.requests)])

        async def user() -> None:
            for made, user_name in waiting:
                made.id = len(self.made)
                made.at = time.monotonic()
                made.service, made.path = self.world.routes[0].service, self.world.routes[0].path
                made.host = NAMES[made.service]
                self.made.append(made)
                path = made.path + (f"/for/{user_name}" if user_name else "")
                await self._send(made, self.entry, path)
                if batch.pause_ms:
                    await asyncio.sleep(batch.pause_ms / 1000)

        ticking = [
            asyncio.create_task(self._background(at)) for at in range(len(self.world.background))
        ]
        try:
            await asyncio.gather(*(user() for _ in range(batch.concurrency)))
        finally:
            for task in ticking:
                task.cancel()
            await asyncio.gather(*ticking, return_exceptions=True)
        while self.tasks:
            await asyncio.wait(self.tasks)

    async def _background(self, number: int) -> None:
        background = self.world.background[number]
        count = 0
        while True:
            await asyncio.sleep(background.every_ms * (0.5 + random.random()) / 1000)
            if len(self.tasks) < 4:  # else more begin than end
                place = f"timer{number}.{count}"
                self.start(self._tick(background.service, background.call, place))
                count += 1

    async def _tick(self, service: int, call: Call, place: str) -> None:
        await self.call(service, call, place, None)


def _inject(propagator: str, span: Context) -> Headers:
    sampled = span.sampled or "0"
    match propagator:
        case "tracecontext":
            return [("traceparent", f"00-{span.trace}-{span.span}-0{sampled}".encode())]
        case "b3":
            return [("b3", f"{span.trace}-{span.span}-{sampled}".encode())]
        case _:
            return [
                ("x-b3-traceid", span.trace.encode()),
                ("x-b3-spanid", span.span.encode()),
                ("x-b3-sampled", sampled.encode()),
            ]


class Clients:
    """What the requests of a batch bring."""

    def __init__(self, batch: Batch, rng: random.Random, name: str) -> None:
        self._batch, self._rng, self._name = batch, rng, name
        self._shared = (self._hex(32), self._hex(16), self._uuid())
        self._last: tuple[str, str] | None = None

    def _hex(self, length: int) -> str:
        return f"{self._rng.getrandbits(length * 4) | 1 << (length * 4 - 2):0{length}x}"

    def _uuid(self) -> str:
        return str(uuid.UUID(int=self._rng.getrandbits(128), version=4))

    def request(self, at: int) -> tuple[Made, str]:
        kind = self._rng.choice(self._batch.clients)
        headers = [(name, value.encode("latin-1")) for name, value in self._context(kind)]
        marks = []
        for name in self._batch.tenants:
            mark = f"mark{self._hex(12)}".encode()
            marks.append(mark)
            value = {"authorization": b"Bearer ", "baggage": b"user="}.get(name, b"") + mark
            headers.append((name, value))
        if self._rng.random() < 0.3:
            headers.append(("x-correlation-id", self._hex(20).encode()))
        user = self._hex(12) if self._batch.user_in_path else ""
        made = Made(
            0, None, f"{self._name}.{at}", "", None, "", headers, 0, marks=tuple(marks), kind=kind
        )
        return made, user

    def _context(self, kind: str) -> list[tuple[str, str]]:
        trace, span, request_id = self._hex(32), self._hex(16), self._uuid()
        if kind in ("shared", "shared_trace"):
            trace = self._shared[0]
        if kind in ("shared", "shared_id"):
            request_id = self._shared[2]
        multi = [("x-b3-traceid", trace), ("x-b3-spanid", span), ("x-b3-sampled", "1")]
        w3c = [("traceparent", f"00-{trace}-{span}-01")]
        ids = [("x-request-id", request_id)]
        match kind:
            case "plain":
                return []
            case "id":
                return ids
            case "b3":
                return [("b3", f"{trace}-{span}-1")]
            case "w3c":
                return [*w3c, ("tracestate", f"vendor={self._hex(8)}")]
            case "both":
                return [*multi, *w3c]
            case "malformed":
                bad = self._rng.choice(
                    ["xyz", trace[:-1] + "g", trace + "0", "0" * 32, f"{trace},{trace}", "\xff\xfe"]
                )
                return self._rng.choice(
                    [
                        [("x-b3-traceid", bad), ("x-b3-spanid", span)],
                        [("b3", f"{bad}-{span}-1"), *ids],
                        [("traceparent", f"00-{bad}-{span}-01")],
                        [("x-b3-traceid", trace), ("x-b3-spanid", span[:-1] + "z"), *w3c],
                        [*multi, ("x-b3-parentspanid", "nope")],
                        [*multi[:2], ("x-b3-sampled", "maybe")],
                    ]
                )
            case "upper":
                return [(name, value.upper()) for name, value in [*multi, *ids]]
            case "repeated":
                other = self._hex(32)
                return self._rng.choice(
                    [
                        [multi[0], ("x-b3-traceid", other), *multi[1:]],
                        [multi[0], *multi],
                        [*ids, *ids],
                        [*ids, ("x-request-id", self._uuid())],
                        [*w3c, ("traceparent", f"00-{other}-{span}-01")],
                    ]
                )
            case "at_odds":
                return [*multi, ("traceparent", f"00-{self._hex(32)}-{self._hex(16)}-01")]
            case "stale_traceparent":
                return [*multi, ("traceparent", f"00-{trace}-{self._hex(16)}-01")]
            case "stale_b3":
                return [*multi, ("b3", f"{trace}-{self._hex(16)}-1")]
            case "huge_headers":
                more = self._rng.randint(60, 94)
                return [*ids, *((f"x-filler-{n}", "f") for n in range(more))]
            case "huge_bytes":
                return [*multi, ("x-filler", "f" * self._rng.randint(8000, 57000))]
            case "empty":
                return self._rng.choice(
                    [[("b3", ""), *multi], [("x-b3-traceid", ""), *ids], [("x-request-id", "")]]
                )
            case "short":
                return self._rng.choice(
                    [
                        [("b3", self._rng.choice(["1-1", "dead-beef"]))],
                        [("x-b3-traceid", "1234"), ("x-b3-spanid", "1")],
                    ]
                )
            case "anothers_trace":
                if self._last is not None:
                    trace = self._last[0]
                    multi[0] = ("x-b3-traceid", trace)
                self._last = (trace, request_id)
                return multi
            case "unsampled":
                return [*multi[:2], ("x-b3-sampled", "0")]
            case "debug":
                return [*multi[:2], ("x-b3-flags", "1")]
            case "sampling_only":
                return self._rng.choice([[("b3", "0")], [("x-b3-sampled", "1")], [("b3", "1")]])
            case "shared_id":
                return [*ids, *(multi if self._rng.random() < 0.5 else [])]
            case "shared" | "shared_trace":
                return [*ids, *multi]
            case _:
                return [*multi, *(ids if self._rng.random() < 0.5 else [])]
