"""What must hold in every world, held against what happened.

A *root* is a request of a client, or a call of a timer, with all that is done for it.
The server span of a request is the one that its Envoy reported and that was not known
to anyone before the application got its ID.
"""

import math
from collections import Counter, defaultdict
from dataclasses import dataclass, replace

from worlds.apps import Made, Received, Run, contexts, read_multi, read_single, read_w3c
from worlds.http1 import Headers
from worlds.mesh import Evidence
from worlds.spans import Span
from worlds.world import BAD, ODD, SHARED, WELL, Service

GUESSES = ("exclusive", "token", "inferred")
CONTEXT = ("b3", "x-b3-traceid", "x-b3-spanid", "x-b3-parentspanid", "x-b3-sampled", "x-b3-flags")
W3C = ("traceparent", "tracestate")
# The share of calls that `exclusive` and `inferred` may give to a wrong request.
WRONG_SHARE = 0.005

# What may go wrong, and which invariant it breaks.
KINDS = {
    "crossed": "1: a call is in the trace of another request",
    "parent": "1: a call hangs from a span of another request",
    "id": "1: a call has the request ID of another request",
    "own_id": "2: the application's own request ID was replaced",
    "leak": "2: a header of another request was copied",
    "guess": "2: a guessed call got headers of the copy list",
    "outside": "2: something was written onto a call that leaves the mesh, or left on it",
    "status": "3: a status is another one than without the filter",
    "body": "3: a body is another one than without the filter",
    "span": "4: an application no longer gets its own span",
    "edge": "4: an edge is lost that is there without the filter",
    "piece": "5: a key was forwarded, and yet the tree is in pieces",
    "alone": "5: a call of the only request in its pod was not given to it",
    "metrics": "6: the metrics do not add up",
    "finding": "7: a finding, or a decision, is not true",
    "client": "9: a client span is missing, hangs from another span, or is not accounted for",
    "alarm": "8: a panic, a crash, or a call to Envoy that failed",
}


@dataclass(frozen=True)
class Fault:
    kind: str
    text: str
    # Of the same kind and cause, as far as one can see.
    detail: str = ""


@dataclass
class Verdict:
    faults: list[Fault]
    # Outbound calls that were guessed, and those of them that were given to a wrong request.
    calls: int = 0
    guessed: int = 0
    guessed_wrong: int = 0
    # How often each invariant was asked.
    asked: Counter[str] | None = None

    def kinds(self) -> Counter[str]:
        return Counter(
            f"{fault.kind}{':' if fault.detail else ''}{fault.detail}" for fault in self.faults
        )


def masked(request_id: bytes) -> bytes:
    """Without the character that Envoy rewrites, and regardless of case."""
    return (request_id[:14] + request_id[15:] if len(request_id) == 36 else request_id).lower()


def values(headers: Headers, name: str) -> list[bytes]:
    return [value for each, value in headers if each == name]


class Facts:
    """Of one run: whose span is whose."""

    def __init__(self, evidence: Evidence, run: Run) -> None:
        self.world, self.run = evidence.world, run
        # Without the client spans that b3relay reports: what hangs from those hangs from what
        # they hang from.
        self.relayed = {span.id: span for span in evidence.relayed}
        spans = [*evidence.spans, *run.spans]
        # What each hangs from, as it was reported.
        self.reported_parent = {span.id: span.parent for span in spans}
        self.spans = {span.id: replace(span, parent=self._above(span)) for span in spans}
        self.traced = evidence.world.tracer != "none"
        # By the ID of the span.
        self.owner: dict[str, Received] = {}
        self.sdk_owner: dict[str, Received] = {}
        self.sdk_call: dict[str, Made] = {}
        self.server: dict[int, Span] = {}
        for got in run.received:
            if got.service is None or not self.traced:
                continue
            # What the tracer has written comes first: beside it there may be a context that
            # names the span of another request.
            found = contexts(got.headers)
            first = ("tracecontext",) if self.world.tracer == "otel" else ("b3", "b3multi")
            order = sorted(found, key=lambda form: form not in first)
            for context in (found[form] for form in order):
                span = self.spans.get(context.span)
                if span and span.envoys and span.kind == "SERVER" and span.id not in self.owner:
                    self.owner[span.id] = got
                    self.server[got.number] = span
                    break
        for got in run.received:
            if got.sdk:
                self.sdk_owner[got.sdk.server.span] = got
        for made in run.made:
            if made.sdk:
                self.sdk_call[made.sdk.span] = made
        self._legitimate()

    def _above(self, span: Span) -> str | None:
        parent = span.parent
        if parent in self.relayed and self.relayed[parent].trace == span.trace:
            return self.relayed[parent].parent
        return parent

    def is_unreported(self, got: Received) -> bool:
        """It may hang from a client span that a bad collector did not get."""
        span = self.server.get(got.number)
        return self.world.spans in BAD and span is not None and span.parent not in self.spans

    def trace(self, got: Received) -> str | None:
        """The trace that a request is in."""
        if span := self.server.get(got.number):
            return span.trace
        found = contexts(got.headers)
        order = ("tracecontext",) if self.world.tracer == "otel" else ("b3multi", "b3")
        for form in (*order, "tracecontext", "b3multi", "b3"):
            if form in found:
                return found[form].trace
        return None

    def _legitimate(self) -> None:
        """Which roots a trace belongs to: those that brought it, or their applications,
        or the one in which it began."""
        owners: dict[str, set[int]] = defaultdict(set)
        for made in self.run.made:
            root = made.root.id
            if made.by is None:
                for context in contexts(made.sent).values():
                    owners[context.trace].add(root)
            if made.sdk and (made.by is None or made.by.call is not None):
                if made.by is None or made.by.sdk is None or made.by.sdk.server.parent is None:
                    owners[made.sdk.trace].add(root)
        # Those that Envoys began, by a span without a parent; and what a client's
        # request is in, since no filter was asked before.
        for got in self.run.received:
            span = self.server.get(got.number)
            if got.call and span:
                if span.parent is None or got.call.by is None and not got.call.background:
                    owners[span.trace].add(got.call.root.id)
        # The rest: of the gateway, or not reported. Who had it first.
        order = {False: 0, True: 1}
        for got in sorted(
            self.run.received,
            key=lambda g: (order[g.call is None or g.call.by is not None], g.began),
        ):
            trace = self.trace(got)
            if got.call and trace and trace not in owners:
                owners[trace].add(got.call.root.id)
        self.owners = owners

    def shared(self, trace: str | None) -> bool:
        """Several roots have it, each by right."""
        return trace is not None and len(self.owners.get(trace, ())) > 1

    def chain(self, got: Received) -> str:
        """What the server span of a request hangs from, as far as it is reported: the
        call's own span of the SDK, the caller's server span (of the SDK, or of its
        Envoy), another span of the caller's, or something else."""
        span = self.server.get(got.number)
        call = got.call
        if span is None or call is None:
            return "no span"
        if call.by is None:
            return "root"
        seen: set[str] = set()
        parent = span.parent
        first = True
        while parent is not None and parent not in seen:
            seen.add(parent)
            owner = self.owner.get(parent) or self.sdk_owner.get(parent)
            reported = parent in self.spans
            if not reported or self.spans[parent].trace != span.trace:
                return "broken"
            if self.sdk_call.get(parent) is call:
                return "call"
            if owner is call.by:
                return "caller" if first else "below caller"
            if owner is not None and owner.call is not None and owner.call.root is call.root:
                # Another request of the same root: an ancestor, or a sibling.
                above: Received | None = call.by
                while above is not None:
                    if above is owner:
                        return "ancestor"
                    above = above.call.by if above.call else None
                return "relative"
            if owner is not None:
                return "stranger"
            parent, first = self.spans[parent].parent, False
        return "nothing" if parent is None else "circle"


def report_of(got: Received) -> list[str]:
    """What the caller's filter says about the call: rules, and what was done."""
    for value in values(got.headers, "x-b3relay"):
        text = value.decode("latin-1")
        if text.startswith("outbound"):
            return text.split("; ")[1:]
    return []


DECISIONS = (
    "present copied completed exclusive token inferred unsure no_key unknown no_context ambiguous "
    "conflict malformed sampling_only outside too_large off"
).split()


def decision_of(got: Received) -> str | None:
    return next((part for part in report_of(got) if part in DECISIONS), None)


class Judge:
    def __init__(self, evidence: Evidence) -> None:
        self.evidence, self.world = evidence, evidence.world
        self.facts = Facts(evidence, evidence.runs["with"])
        self.reference = Facts(evidence, evidence.runs["without"])
        self.verdict = Verdict([], asked=Counter())
        # Of a root, for the invariants about identity.
        self.marks = {
            mark: made.id for made in self.facts.run.made if made.by is None for mark in made.marks
        }
        self.ids: dict[bytes, set[int]] = defaultdict(set)
        for got in self.facts.run.received:
            # As the requests of clients came in; what comes later may be a fault.
            if got.call and got.call.by is None and not got.call.background:
                for value in values(got.headers, "x-request-id"):
                    self.ids[masked(value)].add(got.call.root.id)

    def fault(
        self, kind: str, text: str, got: Received | Made | None = None, detail: str = ""
    ) -> None:
        if isinstance(got, Received):
            call = got.call
            where = f" [{call.key if call else '?'} {call.host if call else ''}{call.path if call else ''}]"
            where += f" {'; '.join(report_of(got))}"
            if call:
                where += f" sent {show(call.sent)} got {show(got.headers)}"
        elif isinstance(got, Made):
            where = f" [{got.key} {got.host}{got.path}]"
        else:
            where = ""
        self.verdict.faults.append(Fault(kind, text + where, detail))

    def ask(self, kind: str) -> None:
        assert self.verdict.asked is not None
        self.verdict.asked[kind] += 1

    def _mixed(self) -> set[str]:
        """Traces into which a wrong guess has brought a call: what follows from it is no
        fault of its own."""
        mixed = set()
        for got in self.facts.run.received:
            call, trace = got.call, self.facts.trace(got)
            if call is None or trace is None or (call.by is None and not call.background):
                continue
            own = {context.trace for context in contexts(call.sent).values()}
            owners = self.facts.owners.get(trace, set())
            if self.guessed(got) and call.root.id not in owners and trace not in own:
                mixed.add(trace)
        return mixed

    def judge(self) -> Verdict:
        self.mixed = self._mixed()
        for got in self.facts.run.received:
            if got.call is not None and got.call.by is None and not got.call.background:
                self.leaks(got)
            if got.call is None or (got.call.by is None and not got.call.background):
                continue
            self.verdict.calls += 1
            self.leaks(got)
            if got.service is None:
                self.outside(got)
            else:
                self.crossed(got)
                self.whole(got)
                self.alone(got)
            self.request_id(got)
            self.true(got)
        self.unchanged()
        self.edges()
        self.metrics()
        self.clients()
        for alarm in self.evidence.alarms:
            self.fault("alarm", alarm)
        return self.verdict

    # What is known of a call.

    def sender(self, call: Made) -> Service:
        if call.by is not None and call.by.service is not None:
            return self.world.services[call.by.service]
        number = int(call.place.removeprefix("timer").split(".")[0])
        return self.world.services[self.world.background[number].service]

    def unseen(self, by: Received) -> bool:
        """As an ordinary HTTP filter it sees what the request came with: here, nothing."""
        service = self.world.services[by.service or 0]
        span = self.facts.server.get(by.number)
        return service.position == "http" and (span is None or span.parent is None)

    def writes(self, sender: Service) -> bool:
        """Its filter writes a form that the Envoys of the mesh read."""
        emit = sender.config_out.get("emit", "received")
        forms = {"otel": {"w3c"}, "zipkin": {"b3", "b3multi"}}.get(
            self.world.tracer, {"b3", "b3multi", "w3c"}
        )
        return emit == "received" or not forms.isdisjoint(emit)

    def guessed(self, got: Received) -> bool:
        """The caller's filter has guessed whose call it is."""
        decision = decision_of(got)
        if decision is not None and decision != "no_context":
            return decision in GUESSES
        call = got.call
        if call is None:
            return False
        sender = self.sender(call)
        out = sender.config_out
        if not sender.filter or out.get("attribution", "exclusive") == "off":
            return False
        # What it carries of the request that it is made for.
        keys = out.get("keys", ["x-request-id", "traceparent", "b3"])
        given = [] if call.by is None else call.by.headers
        parts = ("x-b3-traceid", "x-b3-spanid")
        for key in keys:
            names = {"b3": ("b3", *parts), "traceparent": ("traceparent", *parts)}.get(key, (key,))
            for name in names:
                if key in ("b3", "traceparent"):
                    sent = {context.trace for context in contexts(call.sent).values()}
                    had = {context.trace for context in contexts(given).values()}
                    if sent & had or (name in parts and values(call.sent, name)):
                        return False
                elif set(map(masked, values(call.sent, name))) & set(
                    map(masked, values(given, name))
                ):
                    return False
        return True

    # 1

    def crossed(self, got: Received) -> None:
        call = got.call
        assert call is not None
        trace = self.facts.trace(got)
        if trace is None:
            return
        self.ask("crossed")
        guessed = self.guessed(got)
        self.verdict.guessed += guessed
        own = {context.trace for context in contexts(call.sent).values()}
        root = call.root.id
        owners = self.facts.owners.get(trace, set())
        wrong = root not in owners and trace not in own
        if wrong:
            by = call.by
            # A trace that was brought into this root wrongly is no new fault below.
            inherited = by is not None and by.call is not None and self.facts.trace(by) == trace
            if inherited:
                return
            if guessed:
                self.verdict.guessed_wrong += 1
                return
            names = sorted(owners)
            self.fault(
                "crossed",
                f"trace {trace} is of {names}, the call of {root}",
                got,
                decision_of(got) or "",
            )
            return
        span = self.facts.server.get(got.number)
        if span and span.parent and call.by is not None:
            self.ask("parent")
            owner = self.facts.owner.get(span.parent) or self.facts.sdk_owner.get(span.parent)
            other = (
                owner is not None and owner.call is not None and owner.call.root is not call.root
            )
            sent = span.parent in {context.span for context in contexts(call.sent).values()}
            mixed = trace in self.mixed
            if other and not self.facts.shared(trace) and not mixed and not guessed and not sent:
                self.fault("parent", f"parent {span.parent} is of another root", got)

    def request_id(self, got: Received) -> None:
        call = got.call
        assert call is not None
        ids = [masked(value) for value in values(got.headers, "x-request-id")]
        sent = {masked(value) for value in values(call.sent, "x-request-id")}
        for value in ids:
            self.ask("id")
            owners = self.ids.get(value, set())
            if owners and call.root.id not in owners and value not in sent:
                if self.guessed(got) or self.facts.trace(got) in self.mixed:
                    continue
                # A context that its caller was given by a wrong guess, carried on.
                carried = contexts(call.by.headers).values() if call.by is not None else ()
                if any(call.root.id not in self.facts.owners.get(c.trace, {call.root.id}) for c in carried):
                    continue
                shared = self.facts.shared(self.facts.trace(got))
                self.fault(
                    "id",
                    f"x-request-id {value!r} is of {sorted(owners)}",
                    got,
                    "of one trace" if shared else "",
                )
        own = call.own_id or next(iter(values(call.sent, "x-request-id")), None)
        if own is not None and got.service is not None:
            self.ask("own_id")
            first = own.split(b",")[0].strip()
            if masked(own) not in ids and masked(first) not in ids:
                self.fault("own_id", f"sent {own!r}", got)

    # 2

    def leaks(self, got: Received) -> None:
        call = got.call
        assert call is not None
        self.ask("leak")
        for name, value in got.headers:
            at = value.find(b"mark")
            if at < 0:
                continue
            mark = value[at : at + 16]
            root = self.marks.get(mark)
            if root is not None and root != call.root.id:
                self.fault(
                    "leak",
                    f"{name} of root {root} in root {call.root.id}",
                    got,
                    decision_of(got) or "",
                )
                return
            sent = {n for n, _ in call.sent}
            if call.by is not None or call.background:
                if decision_of(got) in GUESSES and name not in sent:
                    self.fault("guess", f"{name} copied by a guess", got, decision_of(got) or "")
                    return

    def outside(self, got: Received) -> None:
        call = got.call
        assert call is not None
        sender = self.sender(call)
        mode = sender.config_out.get("outside", "leave")
        if not sender.filter or mode == "relay":
            return
        self.ask("outside")
        ours = (
            *CONTEXT,
            *W3C,
            "x-ot-span-context",
            "x-tenant-id",
            "end-user",
            "authorization",
            "baggage",
        )
        if mode == "leave":
            for name in ours:
                if values(got.headers, name) != values(call.sent, name):
                    self.fault("outside", f"{name} was changed", got, call.host)
                    return
            sent, ids = values(call.sent, "x-request-id"), values(got.headers, "x-request-id")
            known = {masked(i) for i in ids} & set(self.ids)
            if not sent and known:
                self.fault("outside", "x-request-id was restored", got, call.host)
        else:
            copied = sender.config_out.get("copy_headers", [])
            for name, _ in got.headers:
                listed = any(
                    name == each or (each.endswith("*") and name.startswith(each[:-1]))
                    for each in copied
                )
                if name in (*CONTEXT, *W3C, "x-ot-span-context") or listed:
                    self.fault("outside", f"{name} was not removed", got, call.host)
                    return

    # 3

    def unchanged(self) -> None:
        before = {made.key: made for made in self.reference.run.made if not made.root.background}
        for made in self.facts.run.made:
            if made.root.background:
                continue
            was = before.get(made.key)
            self.ask("status")
            if was is None:
                if made.root.id == made.id:
                    self.fault("status", "not made without the filter", made)
            elif was.status != made.status:
                error = (made.answer or was.answer or {}).get("error", "")
                self.fault(
                    "status",
                    f"{was.status} without, {made.status} with {error}",
                    made,
                    f"{was.status}-{made.status}",
                )
            elif was.answer != made.answer:
                self.fault("body", f"{was.answer} without, {made.answer} with", made)

    # 4

    RANK = {"call": 5, "caller": 4, "below caller": 3, "ancestor": 2, "relative": 1}

    def edges(self) -> None:
        if not self.facts.traced:
            return
        before = {
            (got.call.key, got.call.received.index(got)): got
            for got in self.reference.run.received
            if got.call is not None
        }
        for got in self.facts.run.received:
            call = got.call
            if call is None or got.service is None or call.root.background:
                continue
            was = before.get((call.key, call.received.index(got)))
            if was is None:
                continue
            self.ask("edge")
            was_span, span = (
                self.reference.server.get(was.number),
                self.facts.server.get(got.number),
            )
            if was_span and not span:
                # What the tracer of the mesh does not write may be of an SDK above.
                written = {
                    form: context
                    for form, context in contexts(got.headers).items()
                    if form != "tracecontext" or self.world.tracer != "zipkin"
                }
                if any(c.span in self.facts.spans for c in written.values()):
                    self.fault("span", "its server span is not among what the application got", got)
                elif self.facts.trace(got) is None or not self._unsampled(got):
                    self.fault("span", "without the filter it had a span", got)
                continue
            if call.by is None:
                continue
            rank, now = self.reference.chain(was), self.facts.chain(got)
            lost = self.RANK.get(rank, 0) > self.RANK.get(now, 0)
            # As an ordinary HTTP filter it knows the caller's parent alone.
            if rank in ("caller", "below caller") and now in ("caller", "below caller"):
                lost = False
            if self.facts.is_unreported(got):
                continue
            if self._came_in_another_form(was, call):
                continue
            if lost and not self._changes_what_is_forwarded(was, call) and not self._ambiguous(got):
                self.fault("edge", f"hung from: {rank}; now: {now}", got, f"{rank}-{now}")

    def _changes_what_is_forwarded(self, was: Received, call: Made) -> bool:
        """The user has asked for other forms than those that were received (`emit`), and
        the application carries on by hand what it does not find then, or finds beside what
        its own tracing writes. Envoy 1.40 renews `b3` alone, and leaves what stands beside
        it: so it is for a callee without the filter, too, and for one whose filter comes
        before the tracer."""
        emits = [
            config.get("emit", "received")
            for service in self.world.services
            for config in (service.config_in, service.config_out)
        ]
        if all(emit == "received" for emit in emits):
            return False
        sender = self.sender(call)
        assert was.call is not None
        names, before = (
            {name for name, _ in sent if name in (*CONTEXT, "traceparent")}
            for sent in (call.sent, was.call.sent)
        )
        can_renew = sender.filter and sender.position == "upstream"
        return bool(sender.sdk) or names != before or not can_renew

    def _came_in_another_form(self, was: Received, call: Made) -> bool:
        """The request that makes the call was stitched to its client's trace, and so has the
        client's form (`b3` alone, say). The application does not carry that on; without the
        filter the request began a trace of its own, in the form that it does carry on."""
        by = call.by
        assert was.call is not None
        if by is None or by.call is None or decision_of(by) not in ("copied", "exclusive", "inferred"):
            return False
        sent, before = (
            {name for name, _ in one if name in (*CONTEXT, "traceparent")}
            for one in (call.sent, was.call.sent)
        )
        return not sent and bool(before)

    def _ambiguous(self, got: Received) -> bool:
        """A call that was found by what other requests of its trace in the pod have too."""
        call = got.call
        if call is None or call.by is None or decision_of(got) not in ("copied", "completed"):
            return False
        trace, by = self.facts.trace(call.by), call.by
        for other in self.facts.run.received:
            if other is by or other.service != by.service or other.began > call.at + 0.05:
                continue
            if self.facts.trace(other) == trace and (
                other.ended is None or other.ended + 6 > call.at
            ):
                return True
        return False

    def _unsampled(self, got: Received) -> bool:
        return any(context.sampled == "0" for context in contexts(got.headers).values())

    # 5

    def whole(self, got: Received) -> None:
        call = got.call
        assert call is not None
        by = call.by
        if by is None or by.call is None or by.service is None or got.service is None:
            return
        sender = self.world.services[by.service]
        root = call.root
        if not self.facts.traced or root.background or root.kind in ODD or root.kind in SHARED:
            return
        if not sender.filter or sender.sdk or sender.own_id or not self.writes(sender):
            return
        if by.number not in self.facts.server or self.unseen(by):
            return
        ids_in, ids_out = values(by.headers, "x-request-id"), values(call.sent, "x-request-id")
        keys = [
            set(c.get("keys", ["x-request-id", "traceparent", "b3"]))
            for c in (sender.config_in, sender.config_out)
        ]
        common = keys[0] & keys[1]
        keyed = "x-request-id" in common and len(ids_out) == 1 and ids_in == ids_out
        trace = self.facts.trace(by)
        read = contexts(call.sent)
        part = values(call.sent, "x-b3-traceid")
        by_trace = bool(read) or bool(part)
        traces_sent = {c.trace for c in read.values()} | {
            p.decode("latin-1").rjust(32, "0") for p in part
        }
        if traces_sent and traces_sent != {trace}:
            return
        # What an application says in full is its own word, though it be an old one.
        server = self.facts.server[by.number].id
        whole = (read_multi(call.sent), read_single(call.sent))
        if any(full and full.span != server for full in whole):
            return
        if by_trace and ("b3" in common or "traceparent" in common):
            keyed = True
        if not keyed:
            return
        # Others of the same trace or ID in the same pod make it ambiguous whose it is.
        grace = sender.config_in.get("grace_ms", 1000) / 1000
        grace = min(grace, sender.config_out.get("grace_ms", 1000) / 1000)
        late = by.ended is not None and call.at > by.ended
        if late and by.ended is not None and call.at > by.ended + grace - 0.3:
            return
        alone = True
        for other in self.facts.run.received:
            if other is by or other.service != by.service or other.began > call.at + 0.05:
                continue
            if other.call is None:
                alone = False
                continue
            has_id = set(values(other.headers, "x-request-id")) & set(ids_in)
            same = self.facts.trace(other) == trace or has_id
            gone = other.ended is not None and other.ended + 0.05 < call.at and not late
            if same and not gone:
                alone = False
            # It says that it is of this trace, and is in another: it is left open whose
            # the call is that says the same.
            came = values(other.call.sent, "x-b3-traceid")
            named = [p.decode("latin-1").rjust(32, "0") for p in came]
            # The same where both have the ID that the call has, and that alone: a caller
            # without the filter began a trace with each of its calls.
            is_open = trace in named if not same else has_id and not traces_sent
            if is_open and not gone and self.facts.trace(other) != trace:
                if decision_of(got) == "ambiguous":
                    return
        self.ask("piece")
        if self.facts.trace(got) != trace:
            owners = self.facts.owners.get(trace or "", set())
            if len(owners) > 1 and not alone:
                return
            self.fault(
                "piece",
                f"trace {self.facts.trace(got)}, of the caller {trace}",
                got,
                decision_of(got) or "",
            )
            return
        if alone and sender.position == "upstream":
            chain = self.facts.chain(got)
            if chain not in ("call", "caller") and not self.facts.is_unreported(got):
                self.fault(
                    "piece", f"hangs from: {chain}", got, f"{chain} {decision_of(got) or ''}"
                )

    def alone(self, got: Received) -> None:
        """An application that forwards nothing, with one request at a time."""
        call = got.call
        assert call is not None
        by = call.by
        if by is None or by.call is None or by.service is None or call.later:
            return
        root, sender = call.root, self.world.services[by.service]
        if not self.facts.traced or root.background or root.kind in ODD:
            return
        # Where keys are forwarded at times, a call without one is left alone.
        if not sender.filter or sender.sdk or sender.forward or not self.writes(sender):
            return
        names = {name for name, _ in call.sent}
        if names & {*CONTEXT, "traceparent", "x-request-id", "x-correlation-id"}:
            return
        sides = (sender.config_in, sender.config_out)
        if any(side.get("attribution", "exclusive") == "off" for side in sides):
            return
        # Calls of the background, and those after the answer, look like these.
        if any(each.service == by.service for each in self.world.background):
            return
        if any(route.later for route in self.world.routes if route.service == by.service):
            return
        if by.number not in self.facts.server or self.unseen(by):
            return
        for other in self.facts.run.received:
            if other is by or other.service != by.service:
                continue
            before = other.ended is not None and other.ended + 0.002 < call.at
            if not before and other.began < call.at + 0.02:
                return
        self.ask("alone")
        # A wrong guess is counted as such.
        if self.facts.trace(got) != self.facts.trace(by) and decision_of(got) not in GUESSES:
            self.fault("alone", "not in the trace of its request", got, decision_of(got) or "")

    # 6

    def metrics(self) -> None:
        filtered = {number for number, each in enumerate(self.world.services) if each.filter}
        run = self.facts.run
        stats = self.evidence.stats
        self.ask("metrics")

        def total(family: str, *labels: str) -> float:
            return sum(
                value
                for name, value in stats.items()
                if name.rsplit(";.;", 1)[-1] == family and all(label in name for label in labels)
            )

        inbound = sum(got.service in filtered for got in run.received)
        outbound = sum(
            (m.by is not None or m.background)
            and self._service_of(m) in filtered
            and m.status not in (0, 431)
            for m in run.made
        )
        # Those that an Envoy has answered did not all get to the filter.
        refused = sum(m.status in (0, 400, 431, 503, 413) for m in run.made)
        counted_in = total("requests_total", "direction=.=inbound")
        counted_out = total("requests_total", "direction=.=outbound")
        decisions = total("calls_total")
        if not inbound <= counted_in <= inbound + refused:
            self.fault("metrics", f"{counted_in} inbound requests counted, {inbound} received")
        if not outbound - refused <= counted_out <= outbound + refused:
            self.fault("metrics", f"{counted_out} outbound requests counted, {outbound} made")
        rejected = total("rejected_total", "direction=.=outbound")
        if decisions + rejected != counted_out:
            self.fault("metrics", f"{counted_out} outbound requests, {decisions} decisions")
        known = total("remembered_total") + total("not_remembered_total")
        if known > counted_in:
            self.fault("metrics", f"{known} remembered or not, {counted_in} inbound requests")
        if total("host_errors_total"):
            self.fault("alarm", f"{total('host_errors_total')} host errors")
        # Each finding that is counted was reported, where all is reported.
        if (
            all(s.config_out.get("report_header") == "request" for s in self.world.services)
            and not refused
        ):
            reported: Counter[str] = Counter()
            for got in run.received:
                if (
                    got.call
                    and (got.call.by or got.call.background)
                    and self.sender(got.call).filter
                ):
                    reported.update(part for part in report_of(got) if part in DECISIONS)
            # The routers' own retries are reported again, and counted once.
            if not self.world.retries:
                for label, count in reported.items():
                    counted = total("calls_total", f"decision=.={label};")
                    # A request without room for it carries no report.
                    full = any(kind.startswith("huge") for kind in self.kinds())
                    if counted != count and not (full and counted > count):
                        self.fault("metrics", f"{label}: {counted} counted, {count} reported")

    # 9

    def clients(self) -> None:
        """Client spans of b3relay's: all that have begun are accounted for, and with a
        collector that is well each is there, between the spans of the caller and the callee."""
        self.ask("client")
        relayed = self.evidence.relayed
        sent, dropped, lost = (
            sum(
                value
                for name, value in self.evidence.stats.items()
                if name == f"spans_{what}_total"
            )
            for what in ("sent", "dropped", "lost")
        )
        if len(self.facts.relayed) != len(relayed):
            self.fault("client", "two client spans have one ID")
        if sent != len(relayed):
            self.fault("client", f"{sent} sent, {len(relayed)} received")
        if self.world.spans not in WELL:
            if sent:
                self.fault("client", f"{sent} sent to a collector that is {self.world.spans!r}")
            return
        if dropped or lost:
            self.fault("client", f"{dropped} dropped, {lost} lost")
        for span in relayed:
            above = self.facts.spans.get(span.parent or "")
            if span.kind != "CLIENT" or span.parent is None:
                self.fault("client", f"{span} is no client span of a call")
            elif above is not None and above.trace != span.trace:
                self.fault("client", f"{span} hangs from {above}")
        for got in self.facts.run.received:
            self._has_client_span(got)

    def _has_client_span(self, got: Received) -> None:
        """A call that was given the context of a request whose span was reported."""
        call, span = got.call, self.facts.server.get(got.number)
        if call is None or call.by is None or span is None:
            return
        by, sender = self.facts.server.get(call.by.number), self.sender(call)
        if by is None or not sender.filter or not self.writes(sender):
            return
        if decision_of(got) not in ("copied", "exclusive", "inferred") or span.parent != by.id:
            return
        # The application has said something of its own beside it.
        if contexts(call.sent) or not self._is_sampled(call.by) or self._is_sampling_said(call):
            return
        parent = self.facts.reported_parent[span.id]
        if parent not in self.facts.relayed:
            self.fault("client", "no client span between it and its caller", got)

    def _is_sampled(self, got: Received) -> bool:
        return any(context.sampled == "1" for context in contexts(got.headers).values())

    def _is_sampling_said(self, call: Made) -> bool:
        return bool(values(call.sent, "x-b3-sampled") or values(call.sent, "x-b3-flags"))

    def kinds(self) -> set[str]:
        """Of the clients."""
        return {made.root.kind for made in self.facts.run.made}

    def _service_of(self, made: Made) -> int | None:
        if made.by is not None:
            return made.by.service
        if made.background:
            number = int(made.place.removeprefix("timer").split(".")[0])
            return self.world.background[number].service
        return None

    # 7

    def _is_forgotten(self, call: Made) -> bool:
        """The call came after the grace of its request, whose ID others share: it is held
        against one of those."""
        by = call.by
        if by is None or by.service is None or by.ended is None or call.root.kind not in SHARED:
            return False
        grace = self.world.services[by.service].config_in.get("grace_ms", 1000) / 1000
        return bool(call.at > by.ended + grace - 0.3)

    def _looks_like_b3(self, by: Received | None) -> bool:
        """A request as a tracer of Zipkin's leaves it: with B3 of another trace than its
        ``traceparent``, and a parent in it. A filter before the router does not always know that
        the tracers write W3C, and names the parent of its client spans."""
        if by is None or by.call is None or by.call.by is None:
            return False
        if self.sender(by.call).position != "http":
            return False
        b3, w3c = read_multi(by.headers) or read_single(by.headers), read_w3c(by.headers)
        return bool(b3 and b3.parent and w3c and b3.trace != w3c.trace)

    def true(self, got: Received) -> None:
        call = got.call
        assert call is not None
        report = report_of(got)
        if not report:
            return
        self.ask("finding")
        sent = contexts(call.sent)
        decision = decision_of(got)
        rules = {part.split(" ")[0] for part in report if part not in DECISIONS}
        b3 = read_multi(call.sent) or read_single(call.sent)
        w3c = read_w3c(call.sent)
        any_context = any(name in CONTEXT or name == "traceparent" for name, _ in call.sent)
        trace = self.facts.trace(call.by) if call.by is not None else None
        if "P01" in rules:
            read = self.world.tracer in ("otel", "zipkin+w3c")
            carried = read and w3c is not None and w3c.trace == trace
            # Of a trace that began behind the filter it knows nothing.
            carried = carried and call.by is not None and not self.unseen(call.by)
            carried = carried and not self._looks_like_b3(call.by)
            if b3 is not None or carried:
                self.fault("finding", "P01, and yet the call has a context", got, "P01")
        if "P02" in rules:
            own = {c.trace for c in sent.values()}
            is_its = trace is not None and own == {trace} and not self._looks_like_b3(call.by)
            if is_its and not self._is_forgotten(call):
                self.fault("finding", "P02, and yet it is the trace of its request", got, "P02")
            if not any_context:
                self.fault("finding", "P02, and yet the call has no context", got, "P02")
        if "P03" in rules and call.by is not None:
            was = {c.sampled for c in contexts(call.by.headers).values()}
            now = {c.sampled for c in sent.values()} | {
                value.decode("latin-1") for value in values(call.sent, "x-b3-sampled")
            }
            if len(was | now) == 1:
                self.fault("finding", "P03, and yet sampling is the same", got, "P03")
        clean = self._clean(call.sent)
        if clean and (
            bad := {
                r
                for r in rules
                if r[0] in "LSBWD" and r not in ("S05", "S06", "D04", "D02", "B09", "B08", "L14")
            }
        ):
            self.fault("finding", f"{sorted(bad)} of a clean request", got, ",".join(sorted(bad)))
        if "R01" in rules:
            self.fault("finding", "R01 of a call that Envoy has given an ID", got, "R01")
        if decision == "present" and not sent and not any_context:
            self.fault("finding", "present, and yet there is no context", got, "present")
        if (
            decision in ("copied", "exclusive", "token", "inferred", "completed")
            and got.service is None
        ):
            if self.sender(call).config_out.get("outside", "leave") != "relay":
                self.fault("finding", f"{decision}, and yet outside", got, "outside")
        if decision == "outside" and got.service is not None:
            self.fault("finding", "outside, and yet in the mesh", got, "inside")
        if decision == "no_context" and call.by is not None and call.by.number in self.facts.server:
            if not self.guessed(got) and not self.unseen(call.by) and not self.facts.shared(trace):
                self.fault("finding", "no_context, and yet its request has one", got, "no_context")
        # A context may be a sampling decision and nothing else.
        wrote = decision == "copied" and trace is not None and self.writes(self.sender(call))
        if call.by is not None:
            # A call after the grace is of nobody, or of another one with its key.
            grace = self.sender(call).config_in.get("grace_ms", 1000) / 1000
            is_late = call.by.ended is not None and call.at > call.by.ended + grace - 0.05
            wrote = wrote and not self.unseen(call.by) and not is_late
        if wrote and got.service is not None and self.facts.traced and call.by is not None:
            if self.facts.trace(got) != trace and not self.facts.shared(self.facts.trace(got)):
                self.fault(
                    "finding", "copied, and yet not in the trace of its request", got, "copied"
                )

    def _clean(self, headers: Headers) -> bool:
        """Well-formed, of whole forms, and all say the same."""
        names = [name for name, _ in headers if name in (*CONTEXT, "traceparent", "x-request-id")]
        if len(names) != len(set(names)):
            return False
        found = []
        if any(name.startswith("x-b3-") for name in names):
            found.append(read_multi(headers))
            if (
                not {v for n, v in headers if n == "x-b3-sampled"} <= {b"0", b"1"}
                or "x-b3-flags" in names
            ):
                return False
            parent = values(headers, "x-b3-parentspanid")
            if parent and (len(parent[0]) != 16 or parent == values(headers, "x-b3-spanid")):
                return False
        if "b3" in names:
            found.append(read_single(headers))
        if "traceparent" in names:
            found.append(read_w3c(headers))
        said = {(f.trace, f.span, f.sampled) for f in found if f}
        return None not in found and len(said) <= 1


def show(headers: Headers) -> str:
    """What matters of them."""
    names = (
        "x-request-id",
        "x-ot-span-context",
        *CONTEXT,
        *W3C,
        "x-tenant-id",
        "end-user",
        "authorization",
        "baggage",
        "x-correlation-id",
    )
    return (
        "{" + ", ".join(f"{n}: {v[:90].decode('latin-1')}" for n, v in headers if n in names) + "}"
    )


def too_many_wrong(calls: int, wrong: int) -> bool:
    """More than the documented share, beyond chance."""
    expected = calls * WRONG_SHARE
    return wrong > expected + 3 * math.sqrt(expected) + 1


def judge(evidence: Evidence) -> Verdict:
    return Judge(evidence).judge()
