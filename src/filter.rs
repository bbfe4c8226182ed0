//! One request: check it, repair or answer it, remember it or relay to it.

use crate::attribution::tracker::Basis;
use crate::attribution::{Attribution, Call, text};
use crate::b3::{B3, Ids, Sampling};
use crate::check::{Checked, Finding, Forms, check};
use crate::config::{
    AttributionMode, Config, Direction, Incoming, KeyOf, Mode, Outside, ReportHeader,
};
use crate::header::{self, Edit, Field, TraceHeaders};
use crate::key::{self, Key};
use crate::mesh_hosts::Routes;
use crate::metrics::{Counter, direction_label};
use crate::relay::{self, Decision, Relayed, Remembered};
use crate::request_id;
use crate::rules::{Rule, Severity};
use crate::store::{Limits, RequestOf, SharedData, Store, Ticket};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// What the filter asks of the proxy while it looks at a request.
pub trait Host: SharedData {
    /// Microseconds since the epoch.
    fn now_us(&self) -> u64;
    /// Milliseconds since the epoch.
    fn now_ms(&self) -> u64 {
        self.now_us() / 1000
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
pub struct Memory {
    /// Their contexts.
    pub store: Store,
    /// What they are doing.
    pub attribution: Attribution,
    /// Where their calls are routed to.
    pub routes: Routes,
}

impl Memory {
    /// Of a worker that has just begun. `random`: a number that no other worker of
    /// the process has.
    pub fn open(data: &impl SharedData, random: u64) -> Self {
        Self {
            store: Store::open(data, random),
            attribution: Attribution::default(),
            routes: Routes::default(),
        }
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
    /// The answer to send instead of forwarding the request.
    pub reply: Option<Reply>,
    /// The value of the header [`REPORT`] for the response.
    pub response_report: Option<String>,
}

/// The header in which b3relay says what it found and did, if it is told to.
pub const REPORT: &str = "x-b3relay";

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
    checked: Checked<'a>,
    /// As the application or the callee will see it.
    request_id: Vec<u8>,
    /// What it is to say in B3, and in which forms; `None` to leave it.
    says: Option<(B3, Forms)>,
    /// The forms that stay as they are.
    kept: Forms,
}

/// What is known of the request that a call belongs to.
struct LookedUp {
    /// Why the call is left alone whatever is found.
    before: Result<(), Decision>,
    found: Result<Found, Decision>,
}

/// The request that a call belongs to.
struct Found {
    remembered: Remembered,
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
        let limits = Limits::for_capacity(config.capacity, config.keys.len(), config.grace_ms);
        Self { config, limits }
    }

    /// Looks at the headers of a request. `memory` is that of the worker;
    /// `direction` is the configured one, or else that of the listener, if it has
    /// one.
    pub fn request<'a>(
        &self,
        memory: &mut Memory,
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
        outcome.findings = core::mem::take(&mut checked.findings);
        let mut request = Request {
            request_id: headers.request_id.value().unwrap_or_default().to_vec(),
            headers,
            checked,
            says: None,
            kept: Forms::default(),
        };
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
                    .push(Edit::set(header::REQUEST_ID, id.as_slice()));
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
            if repaired {
                request.says = Some((request.checked.b3, request.checked.forms));
            }
            if direction.is_some() {
                self.convert(&mut request);
            }
            if direction == Some(Direction::Outbound) {
                self.outbound(memory, host, &mut request, &looked_up, &mut outcome);
            }
            if repairing {
                request.says = request.says.map(readable_by_all);
            }
            // Once, so that no edit is made up for what another one removes.
            let mut edits = match request.says {
                Some((b3, forms)) => relay::rewrite(&request.headers, &b3, forms, request.kept),
                None => Vec::new(),
            };
            if repaired {
                let first = first_of(request.headers.request_id);
                let id = request.request_id.as_slice();
                edits.extend(first.map(|_| Edit::set(header::REQUEST_ID, id)));
            }
            if repaired && !edits.is_empty() {
                outcome.counters.push(Counter::Repaired(direction));
            }
            match outcome.edits.is_empty() {
                true => outcome.edits = edits,
                false => outcome.edits.extend(edits),
            }
            if direction == Some(Direction::Inbound) {
                self.inbound(memory, host, &mut request, &mut outcome);
            }
        }
        match self.config.report_header {
            ReportHeader::Off => {}
            ReportHeader::Request => {
                let report = summary(direction, &outcome);
                outcome.edits.push(Edit::set(REPORT, report));
            }
            ReportHeader::Response => outcome.response_report = Some(summary(direction, &outcome)),
        }
        outcome
    }

    /// The request that the ticket was given for has been served, or broken
    /// off, perhaps before it was `answered`. False if the store could not be updated;
    /// its entry then stays until room is needed.
    pub fn end(
        &self,
        memory: &mut Memory,
        host: &impl Host,
        ticket: Ticket,
        answered: bool,
    ) -> bool {
        let Memory {
            store, attribution, ..
        } = memory;
        let now_us = host.now_us();
        if self.attributes() {
            attribution.end(store, host, now_us, &ticket, answered);
        }
        store.end(host, self.limits, now_us / 1000, ticket)
    }

    /// The call of this number has returned, or was broken off.
    pub fn returned(&self, memory: &mut Memory, host: &impl Host, call: u64) {
        let Memory {
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
            let trusted = incoming == Incoming::Trust || !header::is_context(pair.0);
            if !trusted {
                distrusted.push(*pair);
            }
            trusted
        });
        let mut headers = TraceHeaders::read(pairs, &self.config.wanted);
        match incoming {
            Incoming::Trust => {}
            Incoming::Ignore => {
                for (name, value) in &distrusted {
                    headers.size.headers += 1;
                    headers.size.bytes += name.len() + value.len();
                }
                outcome
                    .counters
                    .extend(distrusted.first().map(|_| Counter::Ignored));
            }
            Incoming::Drop => {
                let names = distrusted.iter().map(|(name, _)| *name);
                for name in names.filter_map(|name| core::str::from_utf8(name).ok()) {
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

    /// Adds the forms that `emit` asks for to a context of the request's own.
    fn convert(&self, request: &mut Request<'_>) {
        let Some(emit) = self.config.emit else { return };
        let Request { checked, .. } = request;
        let b3 = match checked.w3c {
            Some(w3c) if checked.b3.is_empty() && checked.fragments.is_none() => w3c.b3(),
            _ => checked.b3,
        };
        if b3.ids.is_none() {
            return;
        }
        if request.says.is_none() {
            request.kept = checked.forms;
        }
        request.says = Some((b3, checked.forms.and(emit)));
    }

    /// The keys that a request can be looked up by, best first. `emitted`: the
    /// forms that it is given.
    fn keys(&self, request: &Request<'_>, emitted: Forms) -> Vec<Key> {
        let Request {
            headers, checked, ..
        } = request;
        let mut keys: Vec<Key> = Vec::with_capacity(self.config.keys.len());
        let b3 = checked.b3.ids.map(|ids| ids.trace);
        for key in &self.config.keys {
            let key = match *key {
                KeyOf::RequestId => Key::request_id(&request.request_id),
                KeyOf::TraceParent => {
                    let made = b3.filter(|_| emitted.w3c && headers.traceparent.value().is_none());
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
        memory: &mut Memory,
        host: &impl Host,
        request: &mut Request<'a>,
        outcome: &mut Outcome<'a>,
    ) {
        if request.request_id.is_empty() && self.config.generate_request_id {
            request.request_id = request_id::generate(host.random()).to_vec();
            let value = request.request_id.as_slice();
            outcome.edits.push(Edit::set(header::REQUEST_ID, value));
            outcome.counters.push(Counter::RequestIds);
        }
        if !self.config.relay {
            return;
        }
        let forms = request.says.map_or(request.checked.forms, |says| says.1);
        let mut keys = self.keys(request, forms);
        if keys.is_empty() {
            outcome.counters.push(Counter::NoKey);
            if !self.attributes() {
                return;
            }
            keys.push(Key::unnamed(host.random()));
        }
        let (mut remembered, dropped) = Remembered::of(&request.headers, &request.checked);
        remembered.forms = match request.says {
            Some((_, forms)) => forms,
            None => remembered.forms,
        };
        let by_id = keys.len() == 1 && self.config.keys.first() == Some(&KeyOf::RequestId);
        if !by_id || self.attributes() {
            // Whole, or not at all.
            let id = Some(&request.request_id).filter(|id| id.len() <= key::LONGEST);
            remembered.request_id = id.cloned().unwrap_or_default();
        }
        for _ in 0..dropped {
            outcome.counters.push(Counter::CopyDropped);
        }
        // A request without a context is remembered too: another one with the
        // same request ID must not lend it its own.
        let payload = remembered.encode();
        let Memory {
            store, attribution, ..
        } = memory;
        let now_us = host.now_us();
        match store.insert(host, self.limits, now_us / 1000, &keys, &payload) {
            Some(inserted) => {
                if self.attributes() {
                    let headers = &request.headers;
                    let method = headers.method.value().unwrap_or_default();
                    let path = headers.path.value().unwrap_or_default();
                    let route = text::route(method, path);
                    let tokens = self.tokens(store, headers);
                    attribution.begin(store, host, now_us, &inserted.ticket, route, tokens);
                }
                outcome.ticket = Some(inserted.ticket);
                outcome.counters.push(Counter::Remembered);
                for _ in 0..inserted.evicted {
                    outcome.counters.push(Counter::Evicted);
                }
            }
            None => outcome.counters.push(Counter::NotStored),
        }
    }

    fn outbound<'a>(
        &self,
        memory: &mut Memory,
        host: &impl Host,
        request: &mut Request<'a>,
        looked_up: &LookedUp,
        outcome: &mut Outcome<'a>,
    ) {
        let Request {
            headers, checked, ..
        } = request;
        let mut relayed = match (looked_up.before, &looked_up.found) {
            (Ok(()), Ok(Found { remembered, by })) => {
                let new_span = || {
                    let [a, b, c, d, e, f, g, h, ..] = host.random();
                    u64::from_le_bytes([a, b, c, d, e, f, g, h])
                };
                let mut relayed =
                    relay::decide(headers, checked, remembered, &self.config, new_span);
                if let (Some((by, _)), Decision::Copied) = (by, relayed.decision) {
                    relayed.decision = *by;
                }
                relayed
            }
            // Its own context is in a traceparent, which `emit` has put into B3.
            (
                Ok(()),
                Err(
                    Decision::Unknown
                    | Decision::NoKey
                    | Decision::Ambiguous
                    | Decision::Conflict
                    | Decision::Unsure,
                ),
            ) if request.says.is_some() && checked.b3.ids.is_none() && checked.w3c.is_some() => {
                Relayed::not(Decision::Present)
            }
            (Ok(()), Err(decision)) => Relayed::not(*decision),
            (Err(Decision::Present), Ok(Found { remembered, .. })) => {
                let trace = |b3: &B3| b3.ids.map(|ids| ids.trace.value());
                let mut relayed = Relayed::not(Decision::Present);
                if trace(&checked.b3) == trace(&remembered.b3) {
                    relayed.edits = relay::copied(headers, remembered, self.config.emit);
                }
                relayed
            }
            (Err(decision), _) => Relayed::not(decision),
        };
        let asked = match self.config.outside {
            Outside::Relay => false,
            Outside::Leave => relayed.writes() || request.says.is_some(),
            Outside::Strip => relayed.writes() || !headers.present().is_empty(),
        };
        let [authority, path] = [headers.authority, headers.path];
        let to = [authority, path].map(|field| field.value().unwrap_or_default());
        let Memory { store, routes, .. } = memory;
        if asked && routes.is_outside(host, store.seed(), to, &self.config.hosts) {
            if relayed.writes() || self.config.outside == Outside::Strip {
                relayed = Relayed::not(Decision::Outside);
            }
            // Repairing what it carries itself is not adding to it.
            if let Some((_, forms)) = &mut request.says {
                *forms = request.checked.forms;
            }
            if self.config.outside == Outside::Strip {
                request.says = None;
                let names = request.headers.present();
                let names = names
                    .iter()
                    .filter_map(|name| core::str::from_utf8(name).ok());
                let removed = names.map(|name| Edit::remove(name.to_string()));
                outcome.edits.extend(removed);
            }
        }
        let size = request.headers.size;
        if size.headers + relayed.edits.len() > 80 || size.bytes > 40 * 1024 {
            let (b3, forms) = relayed.says.or(request.says).unwrap_or_default();
            let mut written = relay::rewrite(&request.headers, &b3, forms, request.kept);
            written.extend(relayed.edits.iter().cloned());
            if !size.has_room(&written) {
                if relayed.writes() {
                    relayed = Relayed::not(Decision::TooLarge);
                }
                if let Some((_, forms)) = &mut request.says {
                    *forms = request.checked.forms;
                }
            }
        }
        outcome.counters.push(Counter::Calls(relayed.decision));
        if let (Decision::Token | Decision::Inferred, Ok(found)) =
            (relayed.decision, &looked_up.found)
        {
            let doubt = found.by.map(|(_, doubt)| Counter::Doubt(doubt));
            outcome.counters.extend(doubt);
        }
        if relayed
            .edits
            .iter()
            .any(|edit| edit.name() == header::REQUEST_ID)
        {
            outcome.counters.push(Counter::Restored);
        }
        outcome.edits.extend(relayed.edits);
        if let Some(says) = relayed.says {
            request.says = Some(says);
            request.kept = Forms::default();
        }
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
        memory: &mut Memory,
        host: &impl Host,
        request: &Request<'a>,
        outcome: &mut Outcome<'a>,
    ) -> LookedUp {
        let before = relay::before_lookup(&request.checked, self.config.mode == Mode::Repair);
        if let Err(decision) = before {
            let asked = [Rule::P02, Rule::P03].map(|rule| self.config.severity(rule).is_some());
            let copies = !self.config.wanted.copy.is_empty();
            if decision != Decision::Present || (asked == [false; 2] && !copies) {
                return LookedUp {
                    before,
                    found: Err(decision),
                };
            }
        }
        // For the rules alone it need not be the latest.
        let all = before.is_ok() || !self.config.wanted.copy.is_empty();
        let Memory {
            store, attribution, ..
        } = memory;
        let found = match self.look_up(store, host, request, all) {
            Ok((owner, remembered)) => {
                if self.attributes() && before.is_ok() {
                    attribution.carries_key(host_of(&request.headers));
                }
                if self.attributes() && attribution.is_awake() {
                    let tokens = self.tokens(store, &request.headers);
                    let call = describe(&request.headers, tokens);
                    let now_us = host.now_us();
                    outcome.call = Some(attribution.called(store, host, now_us, call, owner));
                }
                Ok(Found {
                    remembered,
                    by: None,
                })
            }
            // An ID that Envoy has made up, since the application forwarded none.
            Err(Decision::Unknown | Decision::NoKey)
                if before.is_ok()
                    && self.attributes()
                    && names_nothing(request)
                    && !attribution.is_named(host_of(&request.headers)) =>
            {
                self.attribute(memory, host, request, outcome)
            }
            Err(decision) => Err(decision),
        };
        if let Ok(Found {
            remembered,
            by: None,
        }) = &found
        {
            let findings = relay::propagation(&request.headers, &request.checked, remembered);
            outcome.findings.extend(findings);
        }
        LookedUp { before, found }
    }

    /// The last rungs, for a call that says nothing of itself.
    fn attribute(
        &self,
        memory: &mut Memory,
        host: &impl Host,
        request: &Request<'_>,
        outcome: &mut Outcome<'_>,
    ) -> Result<Found, Decision> {
        let Memory {
            store, attribution, ..
        } = memory;
        let tokens = self.tokens(store, &request.headers);
        let call = describe(&request.headers, tokens);
        let exclusive = self.config.attribution == AttributionMode::Exclusive;
        let wrong = match exclusive {
            true => 0.0,
            false => 1.0 - f64::from(self.config.confidence) / 1e6,
        };
        let (number, judged) = attribution.judge(store, host, host.now_us(), call, wrong);
        outcome.call = number;
        let (verdict, payload) = judged.ok_or(Decision::Unsure)?;
        let by = match verdict.basis {
            Basis::Alone => Decision::Exclusive,
            Basis::Token => Decision::Token,
            Basis::Evidence => Decision::Inferred,
        };
        if exclusive && by != Decision::Exclusive {
            return Err(Decision::Unsure);
        }
        let remembered = Remembered::decode(&payload).ok_or(Decision::Unsure)?;
        let doubt = (1e6 * (1.0 - f64::from(verdict.share))) as u32 + 1;
        Ok(Found {
            remembered,
            by: Some((by, doubt)),
        })
    }

    /// By the first key that is known, among the requests of `all` workers or of
    /// those that are known here. Where requests of several traces have it,
    /// a later key may tell which of them it is.
    fn look_up(
        &self,
        store: &mut Store,
        host: &impl Host,
        request: &Request<'_>,
        all: bool,
    ) -> Result<(RequestOf, Remembered), Decision> {
        let named = relay::named_span(&request.checked);
        let mut result = Err(Decision::NoKey);
        let mut among: Option<Vec<RequestOf>> = None;
        let mut find = |key: &Key| store.find(host, self.limits, || host.now_ms(), key, all);
        let mut keys = self.keys(request, Forms::default()).into_iter();
        for key in keys.by_ref() {
            let mut found = find(&key);
            if let Some(among) = &among {
                found.retain(|found| among.contains(&found.request));
            }
            match relay::choose(&found, named) {
                Ok(one) => {
                    result = Ok(one);
                    break;
                }
                Err(Decision::Ambiguous) => {
                    among = Some(found.iter().map(|found| found.request).collect());
                    result = Err(Decision::Ambiguous);
                }
                Err(decision) if among.is_none() => result = Err(decision),
                Err(_) => {}
            }
        }
        // It cannot be of two. A trace that nobody came with is the application's own.
        if let Ok((_, one)) = &result {
            let foreign = foreign_trace(request, one).filter(|key| keys.any(|later| later == *key));
            if foreign.is_some_and(|key| relay::all_of_other_traces(&find(&key), one)) {
                return Err(Decision::Conflict);
            }
        }
        result
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
            status: self.config.enforce_status,
            body,
        })
    }
}

/// The call has neither a key nor a part of a context of its own. A request ID that
/// is not of Envoy's form, or a trace ID, is of a request that is not known here.
fn names_nothing(request: &Request<'_>) -> bool {
    let Request {
        headers, checked, ..
    } = request;
    let id = &request.request_id;
    (id.is_empty() || request_id::is_envoys(id))
        && headers.keys.is_empty()
        && checked.fragments.is_none()
        && checked.w3c.is_none()
}

/// The trace of a `traceparent`, if it is another one than this request's, and all that
/// the call says of its own context.
fn foreign_trace(request: &Request<'_>, one: &Remembered) -> Option<Key> {
    let Checked { b3, w3c, .. } = &request.checked;
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

/// The rule is one that repair rewrites a request for.
fn rewrites(finding: &Finding<'_>) -> bool {
    finding.rule.repair().rewrites()
}

/// What a single header cannot say so that everybody reads it: debug (D04) goes
/// into the multiple headers, and a parent without a decision (B06), for which
/// the grammar has no place, is left out of both.
fn readable_by_all((mut b3, mut forms): (B3, Forms)) -> (B3, Forms) {
    if forms.single && b3.sampling == Sampling::Debug {
        forms = Forms {
            multi: true,
            single: false,
            ..forms
        };
    }
    if forms.single && b3.sampling == Sampling::Defer {
        b3.ids = b3.ids.map(|ids| Ids {
            parent: None,
            ..ids
        });
    }
    (b3, forms)
}

/// The first of several request IDs, which Envoy joins with commas; `None` if
/// there is just one.
fn first_of(request_id: Field<'_>) -> Option<&[u8]> {
    let given = request_id.value()?;
    let first = given.split(|&byte| byte == b',').next()?.trim_ascii();
    (!first.is_empty() && (request_id.repeated() || first != given)).then_some(first)
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
