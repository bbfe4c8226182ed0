//! Step 3: finds the inbound request that a call belongs to.
//!
//! The steps of the look-up, best evidence first. A step that is not sure goes on to the next
//! one; after the last one the call is left alone:
//!
//! 1. a context of its own,
//! 2. a key ([`Filter::by_keys`]),
//! 3. an identifier that one request in flight has,
//! 4. only one request in flight,
//! 5. what requests do, and when: [`crate::attribution`] for these three.

use super::Filter;
use super::keys::{ByKeys, Earlier};
use super::request::Request;
use super::worker::WorkerState;
use crate::attribution::tracker::Basis;
use crate::attribution::{Call, signature};
use crate::b3::Sampling;
use crate::config::{AttributionMode, KeyOf, Mode, RestoreRequestId};
use crate::headers::TraceHeaders;
use crate::host::Host;
use crate::relay::{self, Decision, Match, StoredContext, W3cState};
use crate::request_id;
use crate::rules::{Extracted, Finding, Rule};
use crate::store::key::Key;
use crate::store::{Limits, Store};

/// For so long it is known that a trace began in this pod, in milliseconds.
const MADE_UP_MS: u64 = 30_000;

/// What is known of the request that a call belongs to.
pub(super) struct LookedUp<'a> {
    /// Why the call is left alone whatever is found.
    pub before: Result<(), Decision>,
    /// The request, or why there is none.
    pub owner: Result<Owner, Decision>,
    /// The rules that the call breaks beside its request.
    pub findings: Vec<Finding<'a>>,
    /// The call's number in the journal; `None` if it is not written there.
    pub number: Option<u64>,
}

impl LookedUp<'_> {
    /// Nothing, for this reason.
    pub fn nothing(decision: Decision) -> Self {
        Self {
            before: Err(decision),
            owner: Err(decision),
            findings: Vec::new(),
            number: None,
        }
    }
}

/// The request that a call belongs to.
pub(super) struct Owner {
    pub stored: StoredContext,
    /// How it was guessed, and the probability that it is a wrong one, in millionths:
    /// `None` by a key.
    pub guess: Option<(Decision, u32)>,
}

impl Filter {
    /// Goes through these steps for a call.
    pub(super) fn look_up<'a>(
        &self,
        worker: &mut WorkerState,
        host: &impl Host,
        request: &Request<'a>,
    ) -> LookedUp<'a> {
        let config = &self.config;
        let before = relay::before_lookup(&request.extracted, config.mode == Mode::Repair);
        // A call with a context of its own may still get something of its request.
        let b3 = &request.extracted.b3;
        let gets_more = !config.wanted.copy.is_empty()
            || (b3.ids.is_some() && b3.sampling == Sampling::Defer)
            || (config.restore_request_id != RestoreRequestId::Never
                && request.headers.has_new_request_id);
        if let Err(decision) = before {
            let asked = [Rule::P02, Rule::P03, Rule::P04];
            let asked = asked.map(|rule| config.severity(rule).is_some());
            if decision != Decision::Present || (asked == [false; 3] && !gets_more) {
                return LookedUp::nothing(decision);
            }
        }
        // For the rules alone, one of the requests is enough, and not all workers are asked.
        let all = before.is_ok() || gets_more;
        let mut looked_up = LookedUp {
            before,
            owner: Err(Decision::Off),
            findings: Vec::new(),
            number: None,
        };
        let mut by_keys = self.by_keys(&mut worker.store, host, request, all);
        let may_be_of_another = !all
            && match &by_keys {
                // Before a finding is reported, all are asked: the first look-up may have found
                // another request than that of the call.
                ByKeys::Found(found) => !self.propagation(request, found).is_empty(),
                // The request may be the first one of a worker that is new.
                _ => worker.store.refresh(host, || host.now_ms()),
            };
        if may_be_of_another {
            by_keys = self.by_keys(&mut worker.store, host, request, true);
        }
        match by_keys {
            ByKeys::Found(found) => {
                looked_up.number = self.note_call(worker, host, request, &found, before.is_ok());
                looked_up.findings = self.propagation(request, &found);
                looked_up.owner = Ok(Owner {
                    stored: found.stored,
                    guess: None,
                });
            }
            // An ID that Envoy has made up, since the application forwarded none.
            ByKeys::Nobody(Decision::Unknown | Decision::NoKey, earlier)
                if before.is_ok()
                    && self.attributes()
                    && self.names_nothing(request, worker)
                    && !lacks_key(request, worker, host) =>
            {
                (looked_up.owner, looked_up.number) =
                    self.attribute(worker, host, request, earlier);
            }
            ByKeys::Nobody(decision, earlier)
                if before.is_ok() && self.attributes() && earlier.last.is_some() =>
            {
                let (owner, number) = self.attribute(worker, host, request, earlier);
                looked_up.owner = owner.map_err(|_| decision);
                looked_up.number = number;
            }
            ByKeys::Nobody(decision, ..) | ByKeys::Forgotten(decision) => {
                looked_up.owner = Err(decision);
            }
        }
        if matches!(looked_up.owner, Err(Decision::Unknown | Decision::Unsure)) {
            self.note_trace(worker, host, request);
        }
        looked_up
    }

    /// The rules that a call breaks beside its request.
    fn propagation<'a>(&self, request: &Request<'a>, found: &Match) -> Vec<Finding<'a>> {
        relay::propagation(
            &request.headers,
            &request.extracted,
            &found.stored,
            self.config.own_spans,
            found.spans.as_deref(),
        )
    }

    /// Tells attribution of a call whose request a key has named. Returns its number.
    fn note_call(
        &self,
        worker: &mut WorkerState,
        host: &impl Host,
        request: &Request<'_>,
        found: &Match,
        has_no_context: bool,
    ) -> Option<u64> {
        if !self.attributes() {
            return None;
        }
        let WorkerState {
            store, attribution, ..
        } = worker;
        // Of another trace, which not all requests bring, a call without it lacks nothing.
        let by_other_trace =
            request.headers.has_new_request_id && found.stored.w3c_state == W3cState::Other;
        if has_no_context && !by_other_trace {
            attribution.carries_key(host_of(&request.headers));
        }
        attribution.is_awake().then(|| {
            let tokens = self.tokens(store, &request.headers);
            let call = describe(&request.headers, tokens);
            attribution.called(store, host, host.now_us(), call, found.request.0)
        })
    }

    /// Stores a trace ID that the application generated, on a call that is left alone. A
    /// request that comes in with that trace ID later may be an effect of this call (the
    /// application calls itself). So the trace ID alone does not say whose a further call is.
    fn note_trace(&self, worker: &mut WorkerState, host: &impl Host, request: &Request<'_>) {
        let Extracted { b3, w3c, .. } = &request.extracted;
        let made_up = w3c.filter(|_| b3.ids.is_none() && !worker.writes_w3c());
        let by_trace = self.config.keys.contains(&KeyOf::TraceParent);
        let Some(w3c) = made_up.filter(|_| by_trace) else {
            return;
        };
        let (store, now_ms) = (&mut worker.store, host.now_ms());
        let key = Key::trace(w3c.trace);
        let known = store.find(host, &|| now_ms, &key).found;
        if known.iter().all(|found| found.context != relay::OF_ANY) {
            let limits = Limits {
                grace_ms: self.limits.grace_ms.max(MADE_UP_MS),
                ..self.limits
            };
            let inserted = store.insert(host, limits, now_ms, &[key], relay::OF_ANY, &[]);
            store.end(host, limits, now_ms, inserted.ticket);
        }
    }

    /// The last three steps, for a call without any context, or with nothing but a trace ID
    /// that the application has generated. `earlier`: of earlier calls with that trace ID. Returns
    /// the call's number, too.
    fn attribute(
        &self,
        worker: &mut WorkerState,
        host: &impl Host,
        request: &Request<'_>,
        earlier: Earlier,
    ) -> (Result<Owner, Decision>, Option<u64>) {
        let WorkerState {
            store, attribution, ..
        } = worker;
        let tokens = self.tokens(store, &request.headers);
        let mut call = describe(&request.headers, tokens);
        let is_exclusive = self.config.attribution == AttributionMode::Exclusive;
        if !is_exclusive {
            call.port = host.source_port();
        }
        let wrong = match is_exclusive {
            true => 0.0,
            false => 1.0 - f64::from(self.config.confidence.millionths()) / 1e6,
        };
        let now_us = host.now_us();
        let (number, judged) = attribution.judge(store, host, now_us, call, wrong);
        // A trace that an earlier call had is not of a request that began later, nor of another
        // one than that call.
        let judged = judged.filter(|(verdict, found)| {
            let is_same = |of: &Match| of.request.0 == found.request;
            (!is_exclusive || verdict.basis == Basis::Exclusive)
                && earlier
                    .left_alone_ms
                    .is_none_or(|ms| found.started_ms <= ms)
                && earlier.request.as_ref().is_none_or(is_same)
                && earlier.last.is_none_or(|last| last == found.request)
        });
        let (mut stored, guess) = match (judged, earlier.request) {
            (Some((verdict, found)), _) => {
                let headers = store.headers(host, &found).unwrap_or_default();
                let Some(stored) = StoredContext::decode(&found.context, &headers) else {
                    return (Err(Decision::Unsure), number);
                };
                // The calls of one request share the trace that its application makes up.
                let made_up = request
                    .extracted
                    .w3c
                    .filter(|_| stored.w3c_state == W3cState::Absent);
                if let Some(w3c) = made_up {
                    let (key, of) = (Key::trace(w3c.trace), (found.request, found.bucket));
                    store.alias(host, self.limits, now_us / 1000, &key, of, true);
                }
                let decision = match verdict.basis {
                    Basis::Exclusive => Decision::Exclusive,
                    Basis::Token => Decision::Token,
                    Basis::Evidence => Decision::Inferred,
                };
                let doubt = (1e6 * (1.0 - f64::from(verdict.share))) as u32 + 1;
                (stored, (decision, doubt))
            }
            // With only one request in flight, the verdict would have named it.
            (None, Some(earlier)) if attribution.in_flight() > 1 => {
                let decision = match is_exclusive {
                    true => Decision::Exclusive,
                    false => Decision::Inferred,
                };
                (earlier.stored, (decision, 1))
            }
            (None, _) => {
                self.leave_alone(worker, (number, wrong), request);
                return (Err(Decision::Unsure), number);
            }
        };
        if !self.config.copy_to_attributed {
            // A guess may say of which trace a call is, but not whose it is.
            stored.copied.clear();
        }
        let owner = Owner {
            stored,
            guess: Some(guess),
        };
        (Ok(owner), number)
    }

    /// The call has neither a key nor a part of a context: it names no request. A request ID
    /// that Envoy cannot have made up (it has another form, or stands before what Envoy adds
    /// first; where it is a key, and a user does not say that any gives way), or a trace ID, names
    /// a request that is not known here. But a `traceparent` that the application's own tracing
    /// has generated, because the sidecar gave it none, names no request.
    fn names_nothing(&self, request: &Request<'_>, worker: &WorkerState) -> bool {
        let Request {
            headers, extracted, ..
        } = request;
        let id = &request.request_id;
        let is_own = headers.has_clients_request_id
            && self.config.keys.contains(&KeyOf::RequestId)
            && self.config.restore_request_id != RestoreRequestId::AnyUuid;
        (id.is_empty() || (!is_own && request_id::is_envoys(id)))
            && headers.keys.is_empty()
            && extracted.fragments.is_none()
            && (extracted.w3c.is_none() || !worker.writes_w3c())
    }

    pub(super) fn attributes(&self) -> bool {
        self.config.attribution != AttributionMode::Off
    }

    /// The identifiers in a request, if they are asked for.
    pub(super) fn tokens(
        &self,
        store: &Store,
        headers: &TraceHeaders<'_>,
    ) -> Vec<signature::Token> {
        let path = headers.path.value().unwrap_or_default();
        match self.config.attribution {
            AttributionMode::Inferred => {
                signature::tokens(store.seed(), path, headers.tokens.iter().copied())
            }
            AttributionMode::Exclusive | AttributionMode::Off => Vec::new(),
        }
    }
}

/// The application gives keys to such calls, and this one has none.
fn lacks_key(request: &Request<'_>, worker: &mut WorkerState, host: &impl Host) -> bool {
    let headers = &request.headers;
    let attribution = &mut worker.attribution;
    let to = host_of(headers);
    if !attribution.gives_keys(to) {
        return false;
    }
    let [kind, _] = kind_of(headers);
    attribution.lacks_key(host, host.now_us(), to, kind)
}

/// Where a call goes, for attribution.
fn host_of(headers: &TraceHeaders<'_>) -> u32 {
    signature::host(headers.authority.value().unwrap_or_default())
}

/// What kind of call it is, for attribution.
fn kind_of(headers: &TraceHeaders<'_>) -> [u32; 2] {
    let [method, authority, path] = [headers.method, headers.authority, headers.path];
    let [method, authority, path] =
        [method, authority, path].map(|field| field.value().unwrap_or_default());
    signature::kind(method, authority, path)
}

/// The signature of a call.
fn describe(headers: &TraceHeaders<'_>, tokens: Vec<signature::Token>) -> Call {
    let kind = kind_of(headers);
    Call {
        kind,
        tokens,
        port: 0,
    }
}
