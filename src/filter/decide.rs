//! Step 4: what is to be written onto a request, before it is known whether there is room.

use super::Filter;
use super::lookup::{LookedUp, Owner};
use super::request::{Request, removed};
use super::span::{Planned, new_span};
use super::worker::WorkerState;
use super::write::Plan;
use crate::b3::B3;
use crate::config::{Direction, Mode, Outside};
use crate::headers::{self, TraceHeaders};
use crate::host::Host;
use crate::mesh_hosts::{Destination, Routes};
use crate::metrics::Counter;
use crate::relay::{self, CallPlan, Decision, Injection, W3cState};
use crate::rules::{Extracted, Finding, Formats, Severity};
use crate::setup::Expected;

/// An answer in place of the request's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The status code.
    pub status: u32,
    /// The body, plain text.
    pub body: String,
}

/// What is to be done with a call.
pub(super) struct Decided {
    decision: Decision,
    /// What is to be written.
    pub plan: Plan,
    /// The context that the call is to get.
    injection: Option<Injection>,
    /// The client span that it is to get.
    pub span: Planned,
    /// Something of its request would be written.
    writes: bool,
    restores_request_id: bool,
    doubt: Option<u32>,
    watched: Option<Watched>,
}

/// A call whose route may be changed by headers of the copy list that it is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watched {
    kind: u64,
    /// Envoy was asked where it goes without them.
    asked: bool,
}

/// What was done with a call.
pub(super) struct Done {
    pub counters: [Option<Counter>; 4],
    pub decision: Decision,
    /// The client span that begins.
    pub span: Option<B3>,
    /// What the call was given that got its request's context.
    pub expected: Option<Expected>,
    pub watched: Option<Watched>,
}

impl Filter {
    /// What the request is to say of its own context: what repair writes, and what it is
    /// besides in the formats that `emit` asks for. `findings`: the rules that it breaks.
    pub(super) fn plan(
        &self,
        host: &impl Host,
        request: &Request<'_>,
        findings: &[Finding<'_>],
        direction: Option<Direction>,
    ) -> Plan {
        let Request {
            extracted,
            context: (_, w3c_state),
            ..
        } = request;
        let deferred = self.config.deferred_w3c.sampled();
        let injection = |b3: B3, formats: Formats| Injection {
            b3,
            formats,
            replaces_traceparent: false,
            deferred,
        };
        let mut plan = Plan {
            always: request.distrust.clone(),
            ..Plan::default()
        };
        let is_repair = self.config.mode == Mode::Repair;
        if is_repair && findings.iter().any(|found| found.rule.repair().rewrites()) {
            plan.repair = Some(injection(extracted.b3, extracted.formats));
            plan.request_id = request.first_request_id().map(<[u8]>::to_vec);
        }
        plan.injection = plan.repair;
        // Before the router a request has not got the span yet that it is served in. Of two
        // formats of B3 the tracer that follows would renew just one.
        let has_b3 = extracted.formats.multi || extracted.formats.single;
        let is_early = direction == Some(Direction::Inbound) && host.is_before_router();
        let emit = self.config.emit.filter(|_| direction.is_some());
        let emit = emit.map(|emit| match is_early && has_b3 {
            true => Formats {
                w3c: emit.w3c,
                ..extracted.formats
            },
            false => emit,
        });
        let Some(emit) = emit else { return plan };
        let b3 = match extracted.w3c {
            Some(w3c) if extracted.b3.is_empty() && extracted.fragments.is_none() => w3c.b3(),
            _ => extracted.b3,
        };
        if b3.ids.is_none() {
            return plan;
        }
        if plan.repair.is_none() {
            // What is there stays, but for an older span: Envoy renews one format, and the
            // application may carry on the other.
            plan.unchanged = extracted.formats.without(extracted.stale);
        }
        // One that cannot be read says nothing, and one with an older span is wrong.
        let is_malformed = request.headers.traceparent.value().is_some() && extracted.w3c.is_none();
        let is_stale = *w3c_state == W3cState::Stale && direction == Some(Direction::Inbound);
        let replaces_traceparent = emit.w3c && (is_malformed || is_stale);
        if replaces_traceparent {
            plan.unchanged.w3c = false;
        }
        plan.injection = Some(Injection {
            replaces_traceparent,
            ..injection(b3, extracted.formats.and(emit))
        });
        plan
    }

    /// What is to be done with a call. `plan`: what it is to say of its own context.
    pub(super) fn decide(
        &self,
        worker: &mut WorkerState,
        host: &impl Host,
        request: &Request<'_>,
        looked_up: &LookedUp<'_>,
        mut plan: Plan,
    ) -> Decided {
        let headers = &request.headers;
        let mut call = self.relayed(worker, host, request, looked_up);
        // The request's decision stands in for one that the call leaves open.
        let own = plan.injection.as_mut().filter(|_| call.injection.is_none());
        if let (Some(injection), Ok(Owner { stored, .. })) = (own, &looked_up.owner) {
            let trace = |b3: &B3| b3.ids.map(|ids| ids.trace.value());
            if trace(&injection.b3) == trace(&stored.b3) {
                injection.deferred = stored.b3.sampling.decided().or(injection.deferred);
                // An SDK reads a decision left open as a no.
                injection.b3.sampling = injection.b3.sampling.or(stored.b3.sampling);
            }
        }
        let owner = looked_up.owner.as_ref().ok();
        let of = owner.and_then(|owner| owner.stored.b3.ids);
        let span = Planned::of(worker, host, &self.config, request, (&call, &plan), of);
        let mut child = span.child();
        let outside = self.config.outside;
        let is_asked = match outside {
            Outside::Relay => false,
            Outside::Leave => call.writes() || plan.writes() || child.is_some(),
            Outside::Strip => call.writes() || !headers.present().is_empty(),
        };
        let destination = is_asked.then(|| self.destination(worker, host, headers, &call, owner));
        let watched = destination.and_then(|(_, watched)| watched);
        let destination = destination.map(|(destination, _)| destination);
        if destination == Some(Destination::OutsideByCopies) {
            call = CallPlan::leave(Decision::Outside);
            child = None;
        }
        if destination == Some(Destination::Outside) {
            if call.writes() || outside == Outside::Strip {
                call = CallPlan::leave(Decision::Outside);
            }
            // Not even repaired: that might add to what the application sends there. Nor does
            // its span go there.
            plan = Plan::default();
            child = None;
            if outside == Outside::Strip {
                plan.always = removed(headers.present().into_iter());
            }
        }
        // The repair and the span write the decision, too.
        let unchanged = match (plan.repair, child) {
            (Some(_), _) => Formats::default(),
            (None, Some(child)) => child.unchanged,
            (None, None) => Formats::ALL,
        };
        call.edits.retain(|edit| match edit.name() {
            headers::B3 => unchanged.single,
            headers::SAMPLED | headers::FLAGS => unchanged.multi,
            _ => true,
        });
        if let Some(injection) = call.injection {
            plan.injection = Some(injection);
            plan.unchanged = call.unchanged;
        }
        if let Some(child) = child {
            plan.injection = Some(child.written());
            plan.unchanged = child.unchanged;
        }
        let writes = call.writes();
        plan.edits = call.edits;
        let mut edits = plan.edits.iter();
        let doubt = looked_up.owner.as_ref().ok().and_then(|owner| owner.guess);
        Decided {
            decision: call.decision,
            restores_request_id: edits.any(|edit| edit.name() == headers::REQUEST_ID),
            plan,
            injection: child.map(|child| child.injection).or(call.injection),
            span,
            writes,
            doubt: doubt.map(|(_, doubt)| doubt),
            watched,
        }
    }

    /// Where a call goes, and whether that is to be looked at again when it is over.
    fn destination(
        &self,
        worker: &mut WorkerState,
        host: &impl Host,
        headers: &TraceHeaders<'_>,
        call: &CallPlan,
        owner: Option<&Owner>,
    ) -> (Destination, Option<Watched>) {
        let [authority, path] =
            [headers.authority, headers.path].map(|field| field.value().unwrap_or_default());
        let copied = owner.map_or(&[][..], |owner| owner.stored.copied.as_slice());
        let mut edits = call.edits.iter();
        let copies = edits.any(|edit| copied.iter().any(|(name, _)| edit.name() == name));
        let WorkerState { store, routes, .. } = worker;
        let kind = Routes::kind(store.seed(), authority, path);
        let destination = routes.destination(host, kind, authority, copies, &self.config.hosts);
        let watched = match destination {
            Destination::Inside { asked } if copies => kind.map(|kind| Watched { kind, asked }),
            _ => None,
        };
        (destination, watched)
    }

    /// A call is over, while the host still knows where it was routed to.
    pub fn sent(&self, worker: &mut WorkerState, host: &impl Host, watched: Watched) {
        let Watched { kind, asked } = watched;
        worker.routes.sent(host, kind, asked, &self.config.hosts);
    }

    /// What is copied onto a call of its request's context, wherever it goes.
    fn relayed(
        &self,
        worker: &WorkerState,
        host: &impl Host,
        request: &Request<'_>,
        looked_up: &LookedUp<'_>,
    ) -> CallPlan {
        let Request {
            headers, extracted, ..
        } = request;
        let new_span = || new_span(host);
        let owner = match (looked_up.before, &looked_up.owner) {
            (Ok(()), Ok(owner)) => owner,
            (Err(Decision::Present), Ok(owner)) => {
                let stored = &owner.stored;
                return relay::present(headers, extracted, stored, &self.config, new_span);
            }
            (Err(decision), _) => return CallPlan::leave(decision),
            (
                Ok(()),
                Err(
                    Decision::Unknown
                    | Decision::NoKey
                    | Decision::Ambiguous
                    | Decision::Conflict
                    | Decision::Unsure,
                ),
            ) if self.has_own_traceparent(worker, extracted) => {
                return CallPlan::leave(Decision::Present);
            }
            (Ok(()), Err(decision)) => return CallPlan::leave(*decision),
        };
        // A guess has nothing to give but the context.
        if owner.guess.is_some() && owner.stored.b3.is_empty() {
            return CallPlan::leave(Decision::NoContext);
        }
        let mut call = relay::decide(headers, extracted, &owner.stored, &self.config, new_span);
        if let (Some((decision, _)), Decision::Copied | Decision::Completed) =
            (owner.guess, call.decision)
        {
            call.decision = decision;
        }
        call
    }

    /// The call's own context is in a `traceparent`: the tracers of the mesh write W3C, or
    /// `emit` has put it into B3.
    fn has_own_traceparent(&self, worker: &WorkerState, extracted: &Extracted<'_>) -> bool {
        let is_read = self.config.emit.is_some() || worker.writes_w3c();
        extracted.w3c.is_some() && extracted.b3.ids.is_none() && is_read
    }

    /// The answer to a request that breaks a rule of severity error, in mode `enforce`.
    pub(super) fn rejection(&self, findings: &[Finding<'_>]) -> Option<Reply> {
        if self.config.mode != Mode::Enforce {
            return None;
        }
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

impl Decided {
    /// What was done, now that it is known whether there was room for all of it.
    pub fn done(self, is_whole: bool) -> Done {
        let is_too_large = self.writes && !is_whole;
        let decision = match is_too_large {
            true => Decision::TooLarge,
            false => self.decision,
        };
        let restored = self.restores_request_id && !is_too_large;
        // What had no room for the span in its headers gets none.
        let child = self.span.child().filter(|_| is_whole);
        let is_doubtful = matches!(decision, Decision::Token | Decision::Inferred);
        let counters = [
            restored.then_some(Counter::Restored),
            Some(Counter::Calls(decision)),
            self.doubt.filter(|_| is_doubtful).map(Counter::Doubt),
            self.span.counter(),
        ];
        let injection = self.injection.filter(|_| is_whole);
        let keeps_b3 = child.is_some_and(|child| child.unchanged.multi || child.unchanged.single);
        Done {
            counters,
            decision,
            span: child.map(|child| child.injection.b3),
            expected: injection.and_then(|injection| Expected::of(&injection, keeps_b3)),
            watched: self.watched.filter(|_| is_whole),
        }
    }
}
