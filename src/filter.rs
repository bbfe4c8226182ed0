//! One request: check it, repair or answer it, remember it or relay to it.

use crate::attribution::tracker::Basis;
use crate::attribution::{Attribution, Call, text};
use crate::b3::{B3, Ids, Sampling};
use crate::config::{
    AttributionMode, Config, Direction, Incoming, KeyOf, Mode, Outside, ReportHeader,
    RestoreRequestId,
};
use crate::headers::{self, Edit, Field, TraceHeaders};
use crate::key::{self, Key};
use crate::mesh_hosts::Routes;
use crate::metrics::{Counter, direction_label};
use crate::relay::{
    self, CallPlan, Decision, Injection, Match, SpanRefs, StoredContext, Tracer, W3cState,
};
use crate::request_id;
use crate::rules::{Extracted, Finding, Formats, check};
use crate::rules::{Rule, Severity};
use crate::setup::Expected;
use crate::store::{Candidates, Found, Limits, MatchedBy, SharedData, Store, Ticket};

/// What the filter asks of the proxy while it looks at a request.
pub trait Host: SharedData {
    /// Microseconds since the epoch.
    fn now_us(&self) -> u64;
    /// Milliseconds since the epoch.
    fn now_ms(&self) -> u64 {
        self.now_us() / 1000
    }
    /// The filter sits before the router, as an ordinary HTTP filter: the headers are not
    /// yet those that the sidecar's tracer writes.
    fn is_before_router(&self) -> bool {
        false
    }
    /// 16 random bytes.
    fn random(&self) -> [u8; 16];
    /// The name of the Envoy cluster that the request is routed to.
    fn cluster(&self) -> Option<Vec<u8>>;
    /// The ID of this Envoy, which in Istio names the domain of the cluster.
    fn node_id(&self) -> Option<Vec<u8>> {
        None
    }
    /// Istio has configured this Envoy.
    fn is_istio(&self) -> bool {
        false
    }
}

/// What a worker knows of the requests in flight.
#[derive(Debug)]
pub struct WorkerState {
    /// Their contexts.
    pub store: Store,
    /// What they are doing.
    pub attribution: Attribution,
    /// Where their calls are routed to.
    pub routes: Routes,
    /// Which formats the sidecar's tracer writes; `None` until a request has shown it.
    tracer: Option<Tracer>,
}

impl WorkerState {
    /// Of a worker that has just begun. `random`: a number that no other worker of
    /// the process has.
    pub fn open(data: &impl SharedData, random: u64) -> Self {
        Self {
            store: Store::open(data, random),
            attribution: Attribution::default(),
            routes: Routes::default(),
            tracer: None,
        }
    }

    /// The sidecar's tracer is known to write W3C.
    fn writes_w3c(&self) -> bool {
        matches!(self.tracer, Some(Tracer::W3c | Tracer::Both))
    }

    /// To be called every second or so.
    pub fn tick(&mut self, host: &impl Host) {
        let now_us = host.now_us();
        self.store.tick(host, now_us / 1000);
        self.routes.tick(now_us / 1000);
        self.attribution.tick(&mut self.store, host, now_us);
    }
}

/// An answer in place of the request's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The status code.
    pub status: u32,
    /// The body, plain text.
    pub body: String,
}

/// What is to be done with a request.
#[derive(Debug, Default)]
pub struct Outcome<'a> {
    /// Changes to its headers, in order.
    pub edits: Vec<Edit>,
    /// The rules that it breaks, without those that are off.
    pub findings: Vec<Finding<'a>>,
    /// What to count besides the findings.
    pub counters: Vec<Counter>,
    /// Given back to [`Filter::end`] when the request has been served.
    pub ticket: Option<Ticket>,
    /// A call's number; given back to [`Filter::returned`] when it has returned.
    pub call: Option<u64>,
    /// What a call was given that got its request's context.
    pub expected: Option<Expected>,
    /// The answer to send instead of forwarding the request.
    pub reply: Option<Reply>,
    /// The value of the header [`REPORT`] for the response.
    pub response_report: Option<String>,
}

/// The header in which b3relay says what it found and did, if it is told to.
pub const REPORT: &str = "x-b3relay";

/// For so long it is remembered that a trace began in this pod.
const MADE_UP_MS: u64 = 30_000;

/// A configured filter.
#[derive(Debug)]
pub struct Filter {
    /// Its configuration.
    pub config: Config,
    limits: Limits,
}

/// A request on its way through the filter.
struct Request<'a> {
    headers: TraceHeaders<'a>,
    checked: Extracted<'a>,
    /// As the application or the callee will see it.
    request_id: Vec<u8>,
    /// Of an inbound request: its context, and what its `traceparent` is beside it.
    newest: (B3, W3cState),
    /// Its context breaks rules that implementations read differently.
    is_odd: bool,
}

impl Request<'_> {
    /// Reads the newer one of two formats that are at odds, and notes which of them the
    /// sidecar's tracer writes.
    fn take_newest(&mut self, memory: &mut WorkerState) {
        memory.tracer = Tracer::shown(&self.headers, &self.checked).or(memory.tracer);
        self.newest = relay::newest(&self.checked, memory.tracer);
        let (b3, w3c_state) = self.newest;
        if !self.checked.b3.is_empty() {
            if w3c_state == W3cState::Current && self.checked.b3.ids != b3.ids {
                self.checked.stale.multi = self.checked.formats.multi;
                self.checked.stale.single = self.checked.formats.single;
            }
            self.checked.b3 = b3;
            self.checked.formats.w3c |= w3c_state == W3cState::Current;
        }
    }
}

/// What is to be written onto a request.
#[derive(Debug, Default)]
struct Plan<'a> {
    /// What mode `repair` writes.
    repaired: Option<Injection>,
    /// The one of several request IDs that mode `repair` keeps.
    request_id: Option<&'a [u8]>,
    /// What it is to say in the end; `None` to leave it.
    converted: Option<Injection>,
    /// The formats that stay as they are.
    unchanged: Formats,
    /// What else is to change.
    edits: Vec<Edit>,
}

impl Plan<'_> {
    /// Something would be written.
    fn writes(&self) -> bool {
        self.converted.is_some() || self.request_id.is_some()
    }
}

/// What was written.
struct Written {
    /// All that was planned.
    whole: bool,
    /// What mode `repair` writes.
    repaired: bool,
    /// The formats that the request has now.
    formats: Formats,
    /// All of them say the same.
    agree: bool,
}

/// What is known of the request that a call belongs to.
struct LookedUp {
    /// Why the call is left alone whatever is found.
    before: Result<(), Decision>,
    found: Result<Owner, Decision>,
}

/// What a look-up by keys has found.
enum LookUp {
    /// The request.
    Found(Match),
    /// None, for this reason; or by a guess, this one.
    Nobody(Decision, Option<Match>),
    /// None, but there was one that had to go for lack of room.
    Forgotten(Decision),
}

/// The request that a call belongs to.
struct Owner {
    stored: StoredContext,
    /// How it was found, and the probability that it is a wrong one, in millionths:
    /// `None` by a key.
    by: Option<(Decision, u32)>,
}

impl Filter {
    /// A filter with this configuration.
    pub fn new(mut config: Config) -> Self {
        if config.attribution != AttributionMode::Inferred {
            config.wanted.tokens.clear();
        }
        let limits = Limits::for_capacity(
            config.capacity.get(),
            config.keys.len(),
            config.grace_ms.get().into(),
        );
        Self { config, limits }
    }

    /// Looks at the headers of a request. `memory` is that of the worker;
    /// `direction` is the configured one, or else that of the listener, if it has
    /// one.
    pub fn request<'a>(
        &self,
        memory: &mut WorkerState,
        host: &impl Host,
        direction: Option<Direction>,
        pairs: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
    ) -> Outcome<'a> {
        let mut counters = Vec::with_capacity(4);
        counters.push(Counter::Requests(direction));
        let mut outcome = Outcome {
            counters,
            ..Outcome::default()
        };
        // What the application sends is its own.
        let incoming = match direction {
            Some(Direction::Outbound) => Incoming::Trust,
            _ => self.config.incoming,
        };
        let headers = self.read(incoming, pairs, &mut outcome);
        let mut checked = check(&headers);
        outcome.findings = std::mem::take(&mut checked.findings);
        let mut request = Request {
            request_id: request_id::one(headers.request_id.value().unwrap_or_default()).to_vec(),
            headers,
            checked,
            newest: (B3::default(), W3cState::Absent),
            is_odd: outcome.findings.iter().any(is_read_differently),
        };
        if direction != Some(Direction::Outbound) {
            request.take_newest(memory);
        }
        let repairing = self.config.mode == Mode::Repair;
        if repairing {
            if let Some(first) = first_of(request.headers.request_id) {
                request.request_id = first.to_vec();
            }
        }
        // The ID says, too, whether Envoy is to trace.
        if incoming == Incoming::Drop {
            if let Some(id) = request_id::undecided(&request.request_id) {
                outcome
                    .edits
                    .push(Edit::set(headers::REQUEST_ID, id.as_slice()));
                request.request_id = id;
            }
        }
        let mut looked_up = LookedUp {
            before: Err(Decision::Off),
            found: Err(Decision::Off),
        };
        if direction == Some(Direction::Outbound) && self.config.relay {
            looked_up = self.find(memory, host, &request, &mut outcome);
        }
        let enabled = |rule| self.config.severity(rule).is_some();
        outcome.findings.retain(|finding| enabled(finding.rule));

        if self.config.mode == Mode::Enforce {
            outcome.reply = self.rejection(&outcome.findings);
        }
        if outcome.reply.is_some() {
            outcome.counters.push(Counter::Rejected(direction));
        } else {
            let repaired = repairing && outcome.findings.iter().any(rewrites);
            let plan = self.plan(&request, repaired, direction);
            let written = match direction {
                Some(Direction::Outbound) => {
                    self.outbound(memory, host, &request, plan, &looked_up, &mut outcome)
                }
                _ => self.write(&request, plan, &mut outcome),
            };
            if written.repaired {
                outcome.counters.push(Counter::Repaired(direction));
            }
            if !written.whole {
                outcome.counters.push(Counter::NoRoom(direction));
            }
            if direction == Some(Direction::Inbound) {
                self.inbound(memory, host, &mut request, &written, &mut outcome);
            }
        }
        match self.config.report_header {
            ReportHeader::Off => {}
            ReportHeader::Request => {
                let report = summary(direction, &outcome);
                outcome.edits.push(Edit::set(REPORT, report));
                if !request.headers.has_room(&outcome.edits) {
                    outcome.edits.pop();
                }
            }
            ReportHeader::Response => outcome.response_report = Some(summary(direction, &outcome)),
        }
        outcome
    }

    /// What the request is to say of its own context: what repair writes, and what it is
    /// besides in the formats that `emit` asks for.
    fn plan<'r>(
        &self,
        request: &'r Request<'_>,
        repaired: bool,
        direction: Option<Direction>,
    ) -> Plan<'r> {
        let Request {
            checked,
            newest: (_, w3c_state),
            ..
        } = request;
        let deferred = self.config.deferred_w3c.sampled();
        let injection = |b3: B3, formats: Formats| Injection {
            b3,
            formats,
            replaces_traceparent: false,
            deferred,
        };
        let mut plan = Plan::default();
        if repaired {
            plan.repaired = Some(injection(checked.b3, checked.formats));
            let first = first_of(request.headers.request_id);
            plan.request_id = first.map(|_| request.request_id.as_slice());
        }
        plan.converted = plan.repaired;
        let emit = self.config.emit.filter(|_| direction.is_some());
        let Some(emit) = emit else { return plan };
        let b3 = match checked.w3c {
            Some(w3c) if checked.b3.is_empty() && checked.fragments.is_none() => w3c.b3(),
            _ => checked.b3,
        };
        if b3.ids.is_none() {
            return plan;
        }
        if plan.repaired.is_none() {
            // What is there stays, but for an older span: Envoy renews one form, and the
            // application may carry on the other.
            plan.unchanged = checked.formats.without(checked.stale);
        }
        // One that cannot be read says nothing, and one with an older span is wrong.
        let is_malformed = request.headers.traceparent.value().is_some() && checked.w3c.is_none();
        let is_stale = *w3c_state == W3cState::Stale && direction == Some(Direction::Inbound);
        let replaces_traceparent = emit.w3c && (is_malformed || is_stale);
        if replaces_traceparent {
            plan.unchanged.w3c = false;
        }
        plan.converted = Some(Injection {
            replaces_traceparent,
            ..injection(b3, checked.formats.and(emit))
        });
        plan
    }

    /// Turns a plan into edits: the whole of it, or if the request would become larger
    /// than the next proxy takes, only the repair, or nothing.
    fn write(&self, request: &Request<'_>, plan: Plan<'_>, outcome: &mut Outcome<'_>) -> Written {
        let Request {
            headers, checked, ..
        } = request;
        let readable = |injection: Injection| match self.config.mode {
            Mode::Repair => readable_by_all(injection),
            Mode::Observe | Mode::Enforce => injection,
        };
        // A form that the tracer of this sidecar leaves as it was, the next one will too.
        let renewed = checked.formats.without(checked.stale);
        let unchanged = match renewed.multi || renewed.single {
            true => Formats {
                w3c: checked.formats.w3c,
                ..renewed
            },
            false => checked.formats,
        };
        let formats = |injection: Option<Injection>| {
            injection
                .map(readable)
                .map_or(unchanged, |injection| injection.formats)
        };
        let agree = |injection: Option<Injection>| injection.is_some() || checked.stale.is_empty();
        let rewritten = |injection: Option<Injection>, unchanged: Formats| {
            injection.map_or_else(Vec::new, |injection| {
                relay::rewrite(headers, &readable(injection), unchanged)
            })
        };
        let Plan { repaired, .. } = plan;
        let before = outcome.edits.len();
        let request_id = plan.request_id;
        let request_id = request_id.map(|id| Edit::set(headers::REQUEST_ID, id));
        outcome.edits.extend(request_id);
        let common = outcome.edits.len();
        let repair = rewritten(repaired, Formats::default());
        let mut written = Written {
            whole: true,
            repaired: repaired.is_some() && (!repair.is_empty() || common > before),
            formats: formats(plan.converted),
            agree: agree(plan.converted),
        };
        outcome
            .edits
            .extend(rewritten(plan.converted, plan.unchanged));
        outcome.edits.extend(plan.edits);
        if headers.has_room(&outcome.edits) {
            return written;
        }
        written.whole = false;
        outcome.edits.truncate(common);
        outcome.edits.extend(repair);
        if headers.has_room(&outcome.edits) {
            written.formats = formats(repaired);
            written.agree = agree(repaired);
            return written;
        }
        outcome.edits.truncate(before);
        Written {
            whole: false,
            repaired: false,
            formats: unchanged,
            agree: agree(None),
        }
    }

    /// The request that the ticket was given for has been served, or broken
    /// off, perhaps before it was `answered`. False if the store could not be updated;
    /// other workers then take it for one that is being served for a while.
    pub fn end(
        &self,
        memory: &mut WorkerState,
        host: &impl Host,
        ticket: Ticket,
        answered: bool,
    ) -> bool {
        let WorkerState {
            store, attribution, ..
        } = memory;
        let now_us = host.now_us();
        if self.attributes() {
            attribution.end(store, host, now_us, &ticket, answered);
        }
        store.end(host, self.limits, now_us / 1000, ticket)
    }

    /// The call of this number has returned, or was broken off.
    pub fn returned(&self, memory: &mut WorkerState, host: &impl Host, call: u64) {
        let WorkerState {
            store, attribution, ..
        } = memory;
        attribution.returned(store, host, host.now_us(), call);
    }

    fn attributes(&self) -> bool {
        self.config.attribution != AttributionMode::Off
    }

    /// The identifiers in a request, if they are asked for.
    fn tokens(&self, store: &Store, headers: &TraceHeaders<'_>) -> Vec<text::Token> {
        let path = headers.path.value().unwrap_or_default();
        match self.config.attribution {
            AttributionMode::Inferred => {
                text::tokens(store.seed(), path, headers.tokens.iter().copied())
            }
            AttributionMode::Exclusive | AttributionMode::Off => Vec::new(),
        }
    }

    /// The headers; a trace context that is not trusted is not even looked at, so that
    /// nothing of it can be remembered, copied or taken for a key.
    fn read<'a>(
        &self,
        incoming: Incoming,
        pairs: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
        outcome: &mut Outcome<'a>,
    ) -> TraceHeaders<'a> {
        let mut distrusted: Vec<(&[u8], &[u8])> = Vec::new();
        let pairs = pairs.into_iter().filter(|pair| {
            let trusted = incoming == Incoming::Trust || !headers::is_context(pair.0);
            if !trusted {
                distrusted.push(*pair);
            }
            trusted
        });
        let mut headers = TraceHeaders::read(pairs, &self.config.wanted);
        match incoming {
            Incoming::Trust => {}
            Incoming::Ignore => {
                headers.all.extend(&distrusted);
                outcome
                    .counters
                    .extend(distrusted.first().map(|_| Counter::Ignored));
            }
            Incoming::Drop => {
                let names = distrusted.iter().map(|(name, _)| *name);
                for name in names.filter_map(|name| std::str::from_utf8(name).ok()) {
                    if !outcome.edits.iter().any(|edit| edit.name() == name) {
                        outcome.edits.push(Edit::remove(name.to_string()));
                    }
                }
                outcome
                    .counters
                    .extend(distrusted.first().map(|_| Counter::Dropped));
            }
        }
        headers
    }

    /// The keys that a request can be looked up by, best first. `emitted`: the
    /// formats that it is given.
    fn keys(&self, request: &Request<'_>, emitted: Formats) -> Vec<Key> {
        let Request {
            headers, checked, ..
        } = request;
        let mut keys: Vec<Key> = Vec::with_capacity(self.config.keys.len());
        let b3 = checked.b3.ids.map(|ids| ids.trace);
        for key in &self.config.keys {
            let key = match *key {
                KeyOf::RequestId => Key::request_id(&request.request_id),
                KeyOf::TraceParent => {
                    let made = b3.filter(|_| emitted.w3c);
                    let given = checked.w3c.map(|w3c| w3c.trace);
                    given.or(made).map(Key::trace)
                }
                KeyOf::B3 => {
                    let part = checked.fragments.and_then(|fragments| fragments.trace);
                    b3.or(part).map(Key::trace)
                }
                KeyOf::Header(index) => {
                    let value = headers.keys.iter().find(|(named, _)| *named == index);
                    let name = self.config.wanted.keys.get(index);
                    name.zip(value)
                        .and_then(|(name, (_, value))| Key::header(name, value))
                }
            };
            keys.extend(key.filter(|key| !keys.contains(key)));
        }
        keys
    }

    fn inbound<'a>(
        &self,
        memory: &mut WorkerState,
        host: &impl Host,
        request: &mut Request<'a>,
        written: &Written,
        outcome: &mut Outcome<'a>,
    ) {
        let formats = written.formats;
        if request.request_id.is_empty() && self.config.generate_request_id {
            let id = request_id::generate(host.random());
            outcome
                .edits
                .push(Edit::set(headers::REQUEST_ID, id.as_slice()));
            if request.headers.has_room(&outcome.edits) {
                request.request_id = id.to_vec();
                outcome.counters.push(Counter::RequestIds);
            } else {
                outcome.edits.pop();
                outcome
                    .counters
                    .push(Counter::NoRoom(Some(Direction::Inbound)));
            }
        }
        if !self.config.relay {
            return;
        }
        let mut keys = self.keys(request, formats);
        if keys.is_empty() {
            if !self.attributes() {
                outcome.counters.push(Counter::NoKey);
                return;
            }
            keys.push(Key::unnamed(host.random()));
        }
        let (mut stored, dropped) =
            StoredContext::of(&request.headers, &request.checked, request.newest);
        stored.formats = Formats {
            w3c: formats.w3c && stored.b3.ids.is_some(),
            ..formats
        };
        // Whole, or not at all.
        let id = Some(&request.request_id).filter(|id| id.len() <= key::LONGEST);
        stored.request_id = id.cloned().unwrap_or_default();
        stored.has_clients_b3 = stored.w3c_state == W3cState::Current && !written.agree;
        stored.is_callers = host.is_before_router();
        let has_b3 = request.checked.b3.ids.is_some();
        stored.is_uncertain = stored.is_callers && (request.is_odd || !has_b3);
        for _ in 0..dropped {
            outcome.counters.push(Counter::CopyDropped);
        }
        // A request without a context is remembered too: another one with the
        // same request ID must not lend it its own.
        let (context, headers) = (stored.encode_context(), stored.encode_headers());
        let WorkerState {
            store, attribution, ..
        } = memory;
        let now_us = host.now_us();
        let now_ms = now_us / 1000;
        let inserted = store.insert(host, self.limits, now_ms, &keys, &context, &headers);
        if self.attributes() && inserted.stored {
            let headers = &request.headers;
            let method = headers.method.value().unwrap_or_default();
            let path = headers.path.value().unwrap_or_default();
            let route = text::route(method, path);
            let tokens = self.tokens(store, headers);
            attribution.begin(store, host, now_us, &inserted.ticket, route, tokens);
        }
        outcome.counters.push(match inserted.stored {
            true => Counter::Remembered,
            false => Counter::NotStored,
        });
        for _ in 0..inserted.evicted {
            outcome.counters.push(Counter::Evicted);
        }
        for _ in 0..inserted.shed {
            outcome.counters.push(Counter::CopyDropped);
        }
        outcome.ticket = Some(inserted.ticket);
    }

    fn outbound(
        &self,
        memory: &mut WorkerState,
        host: &impl Host,
        request: &Request<'_>,
        mut plan: Plan<'_>,
        looked_up: &LookedUp,
        outcome: &mut Outcome<'_>,
    ) -> Written {
        let Request {
            headers, checked, ..
        } = request;
        let mut relayed = match (looked_up.before, &looked_up.found) {
            // A guess has nothing to give but the context.
            (
                Ok(()),
                Ok(Owner {
                    stored,
                    by: Some(_),
                }),
            ) if stored.b3.is_empty() => CallPlan::leave(Decision::NoContext),
            (Ok(()), Ok(Owner { stored, by })) => {
                let new_span = || {
                    let [a, b, c, d, e, f, g, h, ..] = host.random();
                    u64::from_le_bytes([a, b, c, d, e, f, g, h])
                };
                let mut relayed = relay::decide(headers, checked, stored, &self.config, new_span);
                if let (Some((by, _)), Decision::Copied | Decision::Completed) =
                    (by, relayed.decision)
                {
                    relayed.decision = *by;
                }
                relayed
            }
            (
                Ok(()),
                Err(
                    Decision::Unknown
                    | Decision::NoKey
                    | Decision::Ambiguous
                    | Decision::Conflict
                    | Decision::Unsure,
                ),
            ) if self.has_own_traceparent(memory, checked) => CallPlan::leave(Decision::Present),
            (Ok(()), Err(decision)) => CallPlan::leave(*decision),
            (Err(Decision::Present), Ok(Owner { stored, .. })) => {
                relay::present(headers, checked, stored, &self.config)
            }
            (Err(decision), _) => CallPlan::leave(decision),
        };
        // The request's decision stands in for one that the call leaves open.
        let own = plan
            .converted
            .as_mut()
            .filter(|_| relayed.injection.is_none());
        if let (Some(injection), Ok(Owner { stored, .. })) = (own, &looked_up.found) {
            let trace = |b3: &B3| b3.ids.map(|ids| ids.trace.value());
            if trace(&injection.b3) == trace(&stored.b3) {
                injection.deferred = stored.b3.sampling.decided().or(injection.deferred);
            }
        }
        let asked = match self.config.outside {
            Outside::Relay => false,
            Outside::Leave => relayed.writes() || plan.writes(),
            Outside::Strip => relayed.writes() || !headers.present().is_empty(),
        };
        let [authority, path] = [headers.authority, headers.path];
        let to = [authority, path].map(|field| field.value().unwrap_or_default());
        let WorkerState { store, routes, .. } = memory;
        if asked && routes.is_outside(host, store.seed(), to, &self.config.hosts) {
            if relayed.writes() || self.config.outside == Outside::Strip {
                relayed = CallPlan::leave(Decision::Outside);
            }
            // Not even repaired: that might add to what the application sends there.
            plan = Plan::default();
            if self.config.outside == Outside::Strip {
                let names = headers.present();
                let names = names
                    .iter()
                    .filter_map(|name| std::str::from_utf8(name).ok());
                let removed = names.map(|name| Edit::remove(name.to_string()));
                outcome.edits.extend(removed);
            }
        }
        if let Some(injection) = relayed.injection {
            plan.converted = Some(injection);
            plan.unchanged = relayed.unchanged;
        }
        let writes = relayed.writes();
        plan.edits = relayed.edits;
        let restores = |edit: &Edit| edit.name() == headers::REQUEST_ID;
        let restores = plan.edits.iter().any(restores);
        let mut written = self.write(request, plan, outcome);
        if let Some(injection) = relayed.injection.filter(|_| written.whole) {
            outcome.expected = Expected::of(&injection);
        }
        if writes && !written.whole {
            relayed.decision = Decision::TooLarge;
            // Counted as a decision.
            written.whole = true;
        } else if restores {
            outcome.counters.push(Counter::Restored);
        }
        outcome.counters.push(Counter::Calls(relayed.decision));
        if let (Decision::Token | Decision::Inferred, Ok(found)) =
            (relayed.decision, &looked_up.found)
        {
            let doubt = found.by.map(|(_, doubt)| Counter::Doubt(doubt));
            outcome.counters.extend(doubt);
        }
        written
    }

    /// The call's own context is in a `traceparent`: the tracers of the mesh write W3C, or
    /// `emit` has put it into B3.
    fn has_own_traceparent(&self, memory: &WorkerState, checked: &Extracted<'_>) -> bool {
        let is_read = self.config.emit.is_some() || memory.writes_w3c();
        checked.w3c.is_some() && checked.b3.ids.is_none() && is_read
    }

    /// The ladder, best evidence first. A rung that is not sure hands over to the
    /// next, and the last one leaves the call alone:
    ///
    /// 1. a context of its own,
    /// 2. a key: [`Filter::look_up`],
    /// 3. an identifier that one request in flight has,
    /// 4. only one request in flight,
    /// 5. what requests do, and when: [`crate::attribution`] for these three.
    ///
    /// Adds what the call breaks of the rules about propagation.
    fn find<'a>(
        &self,
        memory: &mut WorkerState,
        host: &impl Host,
        request: &Request<'a>,
        outcome: &mut Outcome<'a>,
    ) -> LookedUp {
        let before = relay::before_lookup(&request.checked, self.config.mode == Mode::Repair);
        // A call with a context of its own may still get headers of its request.
        let gets_headers = !self.config.wanted.copy.is_empty()
            || (self.config.restore_request_id != RestoreRequestId::Never
                && request.headers.has_new_request_id);
        if let Err(decision) = before {
            let asked = [Rule::P02, Rule::P03, Rule::P04];
            let asked = asked.map(|rule| self.config.severity(rule).is_some());
            if decision != Decision::Present || (asked == [false; 3] && !gets_headers) {
                return LookedUp {
                    before,
                    found: Err(decision),
                };
            }
        }
        // For the rules alone it need not be the latest.
        let all = before.is_ok() || gets_headers;
        let names_nothing = names_nothing(request, memory);
        let WorkerState {
            store, attribution, ..
        } = memory;
        let mut spans = None;
        let found = match self.look_up(store, host, request, all) {
            LookUp::Found(chosen) => {
                spans = chosen.spans;
                if self.attributes() && before.is_ok() {
                    attribution.carries_key(host_of(&request.headers));
                }
                if self.attributes() && attribution.is_awake() {
                    let tokens = self.tokens(store, &request.headers);
                    let call = describe(&request.headers, tokens);
                    let (now_us, owner) = (host.now_us(), chosen.request.0);
                    outcome.call = Some(attribution.called(store, host, now_us, call, owner));
                }
                Ok(Owner {
                    stored: chosen.stored,
                    by: None,
                })
            }
            // An ID that Envoy has made up, since the application forwarded none.
            LookUp::Nobody(Decision::Unknown | Decision::NoKey, guess)
                if before.is_ok()
                    && self.attributes()
                    && names_nothing
                    && !attribution.is_named(host_of(&request.headers)) =>
            {
                self.attribute(memory, host, request, guess, outcome)
            }
            LookUp::Nobody(decision, _) | LookUp::Forgotten(decision) => Err(decision),
        };
        if let Ok(Owner { stored, by: None }) = &found {
            let own_spans = self.config.own_spans;
            let findings = relay::propagation(
                &request.headers,
                &request.checked,
                stored,
                own_spans,
                spans.as_deref(),
            );
            outcome.findings.extend(findings);
        }
        if matches!(found, Err(Decision::Unknown | Decision::Unsure)) {
            self.note_trace(memory, host, request);
        }
        LookedUp { before, found }
    }

    /// A trace that the application made up, on a call that is left alone: should a
    /// request come in with it, the call that was left alone may have been its cause, and
    /// further calls with this trace may be of either.
    fn note_trace(&self, memory: &mut WorkerState, host: &impl Host, request: &Request<'_>) {
        let Extracted { b3, w3c, .. } = &request.checked;
        let made_up = w3c.filter(|_| b3.ids.is_none() && !memory.writes_w3c());
        let by_trace = self.config.keys.contains(&KeyOf::TraceParent);
        let Some(w3c) = made_up.filter(|_| by_trace) else {
            return;
        };
        let (store, now_ms) = (&mut memory.store, host.now_ms());
        let key = Key::trace(w3c.trace);
        let known = store.find(host, || now_ms, &key, false).found;
        if known.iter().all(|found| found.context != relay::OF_ANY) {
            let limits = Limits {
                grace_ms: self.limits.grace_ms.max(MADE_UP_MS),
                ..self.limits
            };
            let inserted = store.insert(host, limits, now_ms, &[key], relay::OF_ANY, &[]);
            store.end(host, limits, now_ms, inserted.ticket);
        }
    }

    /// The last rungs, for a call that says nothing of itself, or nothing but a trace that
    /// the application has made up. `guess`: an earlier call with that trace was found to be
    /// of this request.
    fn attribute(
        &self,
        memory: &mut WorkerState,
        host: &impl Host,
        request: &Request<'_>,
        guess: Option<Match>,
        outcome: &mut Outcome<'_>,
    ) -> Result<Owner, Decision> {
        let WorkerState {
            store, attribution, ..
        } = memory;
        let tokens = self.tokens(store, &request.headers);
        let call = describe(&request.headers, tokens);
        let exclusive = self.config.attribution == AttributionMode::Exclusive;
        let wrong = match exclusive {
            true => 0.0,
            false => 1.0 - f64::from(self.config.confidence.millionths()) / 1e6,
        };
        let now_us = host.now_us();
        let (number, judged) = attribution.judge(store, host, now_us, call, wrong);
        outcome.call = number;
        let judged = judged.filter(|(verdict, _)| !exclusive || verdict.basis == Basis::Exclusive);
        let (mut stored, by) = match (judged, guess) {
            (Some((verdict, found)), _) => {
                let headers = store.headers(host, &found).unwrap_or_default();
                let stored = StoredContext::decode(&found.context, &headers);
                let stored = stored.ok_or(Decision::Unsure)?;
                // The calls of one request share the trace that its application makes up.
                let made_up = request
                    .checked
                    .w3c
                    .filter(|_| stored.w3c_state == W3cState::Absent);
                if let Some(w3c) = made_up {
                    let (key, of) = (Key::trace(w3c.trace), (found.request, found.bucket));
                    store.alias(host, self.limits, now_us / 1000, &key, of, true);
                }
                let by = match verdict.basis {
                    Basis::Exclusive => Decision::Exclusive,
                    Basis::Token => Decision::Token,
                    Basis::Evidence => Decision::Inferred,
                };
                (
                    stored,
                    (by, (1e6 * (1.0 - f64::from(verdict.share))) as u32 + 1),
                )
            }
            // Of one that is alone in flight it would have been said.
            (None, Some(chosen)) if attribution.in_flight() > 1 => {
                let by = match exclusive {
                    true => Decision::Exclusive,
                    false => Decision::Inferred,
                };
                (chosen.stored, (by, 1))
            }
            (None, _) => return Err(Decision::Unsure),
        };
        if !self.config.copy_to_attributed {
            // A guess may say of which trace a call is, but not whose it is.
            stored.copied.clear();
        }
        Ok(Owner {
            stored,
            by: Some(by),
        })
    }

    /// By the keys of the call, among the requests of `all` workers or of those that are
    /// known here. The first key that any request has counts. Where several requests
    /// have it, later keys may tell which of them it is.
    fn look_up(
        &self,
        store: &mut Store,
        host: &impl Host,
        request: &Request<'_>,
        all: bool,
    ) -> LookUp {
        fn choose(
            store: &Store,
            host: &impl Host,
            candidates: &Candidates,
            named: SpanRefs,
        ) -> Result<Match, Decision> {
            relay::match_request(candidates, |found| store.headers(host, found), named)
        }
        let named = SpanRefs::of(&request.checked);
        let now_ms = || host.now_ms();
        let mut keys = self.keys(request, Formats::default()).into_iter();
        let mut among = Candidates::default();
        let mut result = Err(Decision::NoKey);
        let mut is_forgotten = false;
        for key in keys.by_ref() {
            let mut candidates = store.find(host, now_ms, &key, all);
            if candidates.found.is_empty() {
                is_forgotten |= !candidates.complete;
            }
            if !among.found.is_empty() {
                let known =
                    |found: &Found| among.found.iter().any(|one| one.request == found.request);
                candidates.found.retain(known);
                if candidates.found.is_empty() {
                    continue;
                }
            }
            match choose(store, host, &candidates, named) {
                Err(Decision::Unknown) if result.is_ok() => {}
                chosen => result = chosen,
            }
            let is_one = candidates.complete && candidates.found.len() == 1;
            among = candidates;
            match &result {
                Ok(chosen) if chosen.by_span || is_one => break,
                Ok(_) | Err(_) => {}
            }
        }
        let one = match result {
            Ok(one) if one.under == MatchedBy::Guess => {
                return LookUp::Nobody(Decision::Unknown, Some(one));
            }
            Ok(one) => one,
            // It may be of one that had to go.
            Err(decision) if is_forgotten => return LookUp::Forgotten(decision),
            Err(decision) => return LookUp::Nobody(decision, None),
        };
        let foreign = foreign_trace(request, &one.stored);
        for key in keys {
            if foreign.as_ref() == Some(&key) {
                // It cannot be of two. A trace that nobody came with is the
                // application's own.
                let candidates = store.find(host, now_ms, &key, all);
                if relay::all_of_other_traces(&candidates.found, &one.stored) {
                    return LookUp::Nobody(Decision::Conflict, None);
                }
            } else if !one.by_span && !named.is_empty() && key.is_trace() {
                // The span that a call names says more than a key does.
                let candidates = store.find(host, now_ms, &key, all);
                match choose(store, host, &candidates, named) {
                    Ok(other) if other.by_span => return LookUp::Found(other),
                    Ok(_) | Err(_) => {}
                }
            }
        }
        LookUp::Found(one)
    }

    /// The answer to a request that breaks a rule of severity error.
    fn rejection(&self, findings: &[Finding<'_>]) -> Option<Reply> {
        let mut body = String::new();
        for finding in findings {
            let rule = finding.rule;
            if self.config.severity(rule) == Some(Severity::Error) {
                body.push_str(&format!(
                    "b3relay: {} {}: {}; right: {}\n",
                    rule.id(),
                    finding.header,
                    rule.condition(),
                    rule.right()
                ));
            }
        }
        (!body.is_empty()).then_some(Reply {
            status: self.config.enforce_status.get(),
            body,
        })
    }
}

/// The call has neither a key nor a part of a context of its own. A request ID that
/// is not of Envoy's form, or a trace ID, is of a request that is not known here; but a
/// `traceparent` that the application's own tracing has made up, since the sidecar's
/// gave it none, names nothing.
fn names_nothing(request: &Request<'_>, memory: &WorkerState) -> bool {
    let Request {
        headers, checked, ..
    } = request;
    let id = &request.request_id;
    (id.is_empty() || request_id::is_envoys(id))
        && headers.keys.is_empty()
        && checked.fragments.is_none()
        && (checked.w3c.is_none() || !memory.writes_w3c())
}

/// The trace of a `traceparent`, if it is another one than this request's, and all that
/// the call says of its own context.
fn foreign_trace(request: &Request<'_>, one: &StoredContext) -> Option<Key> {
    let Extracted { b3, w3c, .. } = &request.checked;
    let trace = w3c.filter(|_| b3.ids.is_none())?.trace;
    let same = one.b3.ids.is_some_and(|ids| ids.trace.same(trace));
    (!same).then(|| Key::trace(trace))
}

/// Where a call goes, for attribution.
fn host_of(headers: &TraceHeaders<'_>) -> u32 {
    text::host(headers.authority.value().unwrap_or_default())
}

/// What kind of call it is, for attribution.
fn describe(headers: &TraceHeaders<'_>, tokens: Vec<text::Token>) -> Call {
    let [method, authority, path] = [headers.method, headers.authority, headers.path];
    let [method, authority, path] =
        [method, authority, path].map(|field| field.value().unwrap_or_default());
    Call {
        kind: text::kind(method, authority, path),
        tokens,
    }
}

/// Not every implementation reads the context that broke the rule.
fn is_read_differently(finding: &Finding<'_>) -> bool {
    let is_of_id = finding.header == headers::REQUEST_ID;
    finding.rule.severity() != Severity::Info && !is_of_id
}

/// The rule is one that repair rewrites a request for.
fn rewrites(finding: &Finding<'_>) -> bool {
    finding.rule.repair().rewrites()
}

/// What a single header cannot say so that everybody reads it: debug (D04) goes
/// into the multiple headers beside it, and a parent without a decision (B06), for which
/// the grammar has no place, is left out of both.
fn readable_by_all(injection: Injection) -> Injection {
    let Injection {
        mut b3,
        mut formats,
        ..
    } = injection;
    formats.multi |= formats.single && b3.sampling == Sampling::Debug;
    if formats.single && b3.sampling == Sampling::Defer {
        b3.ids = b3.ids.map(|ids| Ids {
            parent: None,
            ..ids
        });
    }
    Injection {
        b3,
        formats,
        ..injection
    }
}

/// The first of several request IDs, which Envoy joins with commas; `None` if
/// there is just one.
fn first_of(request_id: Field<'_>) -> Option<&[u8]> {
    let given = request_id.value()?;
    // Of a very long one no more than its beginning is looked at.
    let looked_at = given.get(..512).unwrap_or(given);
    let first = match looked_at.iter().position(|&byte| byte == b',') {
        Some(at) => given.get(..at)?.trim_ascii(),
        None => given,
    };
    (!first.is_empty() && (request_id.repeated() || first.len() != given.len())).then_some(first)
}

/// What was found and done, in one line: the direction, the rules that are
/// broken, and each counter.
fn summary(direction: Option<Direction>, outcome: &Outcome<'_>) -> String {
    let mut text = direction_label(direction).to_string();
    for finding in &outcome.findings {
        for part in ["; ", finding.rule.id(), " ", finding.header] {
            text.push_str(part);
        }
    }
    for counter in &outcome.counters {
        let done = match counter {
            Counter::Calls(decision) => decision.label(),
            Counter::Remembered => "remembered",
            Counter::Restored => "restored x-request-id",
            Counter::RequestIds => "generated x-request-id",
            Counter::Repaired(_) => "repaired",
            Counter::Rejected(_) => "rejected",
            Counter::Ignored => "ignored context",
            Counter::Dropped => "dropped context",
            _ => continue,
        };
        text.push_str("; ");
        text.push_str(done);
    }
    text
}
