//! What is done with a call, once the request that it belongs to is known.

use super::Decision;
use super::copy::{copied, restored};
use super::inject::added_decision;
use super::stored::StoredContext;
use super::tracer::W3cState;
use crate::b3::{B3, Ids, Sampling, SpanId, TraceId};
use crate::config::{Config, Mode, OwnSpans, SpanIds};
use crate::headers::{Edit, TraceHeaders};
use crate::rules::{Extracted, Formats, Fragments};
use crate::w3c::{self, TraceParent};

/// What a request is to say of its context, and in which formats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Injection {
    /// In B3.
    pub b3: B3,
    /// In these formats.
    pub formats: Formats,
    /// A `traceparent` that is there is replaced.
    pub replaces_traceparent: bool,
    /// What a `traceparent` says where B3 leaves the decision open; `None`: there is none.
    pub deferred: Option<bool>,
}

impl Injection {
    /// These formats as well.
    pub fn and(self, formats: Formats) -> Self {
        Self {
            formats: self.formats.and(formats),
            ..self
        }
    }
}

/// What to do with a call, once the request it belongs to is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallPlan {
    /// What, and why.
    pub decision: Decision,
    /// What the call is to say; `None` to leave it.
    pub injection: Option<Injection>,
    /// The formats that stay as the application has written them.
    pub unchanged: Formats,
    /// The headers of the copy list that it lacks, the request ID, and the sampling decision.
    pub edits: Vec<Edit>,
    /// The sampling decision that `edits` add to a context of its own.
    pub added: Sampling,
}

impl CallPlan {
    /// Nothing, for this reason.
    pub fn leave(decision: Decision) -> Self {
        Self {
            decision,
            injection: None,
            unchanged: Formats::default(),
            edits: Vec::new(),
            added: Sampling::Defer,
        }
    }

    /// The call goes on with a context of its own.
    pub fn is_own(&self) -> bool {
        self.decision == Decision::Present || self.added != Sampling::Defer
    }

    /// Something would be written.
    pub fn writes(&self) -> bool {
        self.injection.is_some() || !self.edits.is_empty()
    }
}

/// What the `traceparent` of a call without B3 is, compared with the request that the call
/// was made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnTrace {
    /// There is none, or it says nothing about the mesh's trace.
    Irrelevant,
    /// The call's own context, of the request's trace: its tracer reads it.
    Own,
    /// The same, but the mesh's tracers read only B3.
    OwnInB3(TraceParent),
    /// Of the request's trace, with a span that nobody reports.
    Unreported,
    /// The call's own context, of another trace.
    Another,
    /// Of another trace than the one that the request brought for the application to
    /// carry on: the call is not of this request.
    Contradiction,
}

impl OwnTrace {
    /// Where the tracers of the mesh write W3C, an application whose tracing makes a
    /// span for each call says so in `traceparent`, and that is the context of the call.
    /// Where they write B3 alone, the application finds no `traceparent`, and its tracing
    /// makes a trace up: that contradicts nothing.
    ///
    /// If the filter saw the request before the sidecar's tracer did, it does not know what the
    /// tracer wrote: a `traceparent` of the request's trace then has a newer span than the
    /// caller's.
    pub fn of(checked: &Extracted<'_>, stored: &StoredContext, own_spans: OwnSpans) -> Self {
        let (None, Some(w3c)) = (checked.b3.ids, checked.w3c) else {
            return Self::Irrelevant;
        };
        let is_current = stored.w3c_state == W3cState::Current;
        if stored.b3.ids.is_some_and(|ids| ids.trace.same(w3c.trace)) {
            return match own_spans {
                OwnSpans::Unreported => Self::Unreported,
                _ if stored.is_callers => Self::OwnInB3(w3c),
                _ if is_current => Self::Own,
                OwnSpans::Reported => Self::OwnInB3(w3c),
                OwnSpans::Auto => Self::Irrelevant,
            };
        }
        match stored.w3c_trace() {
            None => Self::Irrelevant,
            Some(trace) if trace.same(w3c.trace) => Self::Irrelevant,
            Some(_) if is_current => Self::Another,
            Some(_) => Self::Contradiction,
        }
    }
}

/// What to copy onto a call, once the request it belongs to is known: in the
/// formats of that request (or those that `emit` lists), and in those that the
/// call has begun itself.
///
/// `new_span`: eight random bytes for a span of the call's own.
pub fn decide(
    headers: &TraceHeaders<'_>,
    checked: &Extracted<'_>,
    stored: &StoredContext,
    config: &Config,
    new_span: impl FnOnce() -> u64,
) -> CallPlan {
    let own = OwnTrace::of(checked, stored, config.own_spans);
    let formats = config.emit.unwrap_or(stored.formats);
    match own {
        OwnTrace::Own => return present(headers, checked, stored, config, new_span),
        OwnTrace::OwnInB3(_) if !formats.multi && !formats.single => {
            return present(headers, checked, stored, config, new_span);
        }
        OwnTrace::Another => return CallPlan::leave(Decision::Present),
        OwnTrace::Contradiction => return CallPlan::leave(Decision::Conflict),
        OwnTrace::Irrelevant | OwnTrace::OwnInB3(_) | OwnTrace::Unreported => {}
    }
    let mut b3 = stored.b3;
    let mut decision = Decision::Copied;
    let mut unchanged = Formats::default();
    if let Some(fragments) = checked.fragments.filter(|fragments| !fragments.malformed) {
        if !belongs(&fragments, stored.b3.ids) {
            return CallPlan::leave(Decision::Conflict);
        }
        decision = Decision::Completed;
    }
    if is_clients_decision(checked, stored, formats) {
        unchanged = Formats {
            multi: true,
            single: true,
            w3c: false,
        };
    } else if let Some(decided) = checked.b3.sampling.decided() {
        // A decision of the application's own stays.
        if b3.sampling.decided() != Some(decided) || checked.b3.sampling == Sampling::Debug {
            b3.sampling = checked.b3.sampling;
        }
        decision = Decision::Completed;
    }
    b3.ids = b3.ids.map(|ids| span_for_call(ids, config, new_span));
    if let OwnTrace::OwnInB3(w3c) = own {
        let own = w3c.b3();
        let sampling = match b3.sampling {
            // W3C has no debug.
            Sampling::Debug if w3c.sampled => Sampling::Debug,
            _ if unchanged.multi => own.sampling,
            _ => checked.b3.sampling.or(own.sampling),
        };
        b3 = B3 { sampling, ..own };
    }
    let deferred = config.deferred_w3c.sampled();
    let mut formats = formats.without(unchanged).and(Formats {
        w3c: false,
        ..checked.formats.without(unchanged)
    });
    formats.w3c &= b3.ids.is_some() && w3c::sampled(b3.sampling, deferred).is_some();
    if formats.is_empty() {
        // Better in another form than not at all.
        formats.multi = true;
        unchanged.multi = false;
    }
    // One that cannot be read is replaced where it is asked for, and else left alone.
    let is_malformed = headers.traceparent.value().is_some() && checked.w3c.is_none();
    let may_replace = config.emit.is_some() || config.mode == Mode::Repair;
    if is_malformed && formats.w3c && !may_replace {
        return CallPlan::leave(Decision::Malformed);
    }
    let replaces_traceparent = own == OwnTrace::Unreported || is_malformed;
    let has_context = !stored.b3.is_empty();
    let writes_w3c = has_context && formats.w3c;
    let mut edits = copied(headers, stored, writes_w3c, replaces_traceparent);
    edits.extend(restored(headers, stored, config.restore_request_id));
    // A `traceparent` that stays is not what the call is told to say.
    formats.w3c &= headers.traceparent.value().is_none() || replaces_traceparent;
    let injection = Injection {
        b3,
        formats,
        replaces_traceparent,
        deferred,
    };
    CallPlan {
        decision: if has_context {
            decision
        } else {
            Decision::NoContext
        },
        injection: has_context.then_some(injection),
        unchanged,
        edits,
        added: Sampling::Defer,
    }
}

/// The identifiers that a call gets: those of its request, or of a child of its span.
fn span_for_call(ids: Ids, config: &Config, new_span: impl FnOnce() -> u64) -> Ids {
    let child = match config.span_ids {
        SpanIds::Child => SpanId::new(new_span()),
        SpanIds::Forward => None,
    };
    match child {
        Some(span) => Ids {
            span,
            parent: Some(ids.span),
            ..ids
        },
        None => ids,
    }
}

/// A sampling decision in B3, and nothing else of it, on a call whose request has its
/// context in `traceparent` alone: it is what a client has sent, carried on. The tracers
/// of such a mesh do not read it, and it does not decide for the `traceparent`. `formats`:
/// those that the call is to get.
fn is_clients_decision(checked: &Extracted<'_>, stored: &StoredContext, formats: Formats) -> bool {
    let has_b3 = |formats: Formats| formats.multi || formats.single;
    let is_w3c = stored.w3c_state == W3cState::Current;
    let is_clients = stored.has_clients_b3 || !(has_b3(stored.formats) || has_b3(formats));
    let is_alone = checked.b3.sampling != Sampling::Defer && checked.fragments.is_none();
    is_w3c && is_clients && is_alone
}

/// A call with a context of its own, of the request's trace: it is left as it is, but for
///
/// - the headers of the copy list and the request ID,
/// - a sampling decision that it leaves open and the request does not,
/// - its span, if `own_spans` says that another one counts.
pub fn present(
    headers: &TraceHeaders<'_>,
    checked: &Extracted<'_>,
    stored: &StoredContext,
    config: &Config,
    new_span: impl FnOnce() -> u64,
) -> CallPlan {
    let own = checked.b3.ids.map(|ids| (ids.trace, ids.span));
    let w3c = checked.w3c.map(|w3c| (w3c.trace, w3c.span));
    let Some(ids) = stored.b3.ids else {
        return CallPlan::leave(Decision::Present);
    };
    let is_of_the_trace =
        |of: Option<(TraceId, SpanId)>| of.is_some_and(|(trace, _)| trace.same(ids.trace));
    let is_current = stored.w3c_state == W3cState::Current;
    if !is_of_the_trace(own) && !(is_of_the_trace(w3c) && (own.is_none() || is_current)) {
        return CallPlan::leave(Decision::Present);
    }
    let is_of_its_own =
        |of: Option<(TraceId, SpanId)>| of.is_some_and(|(t, s)| t.same(ids.trace) && s != ids.span);
    let b3 = match config.own_spans {
        OwnSpans::Auto => None,
        // Copied by hand, beside the span that the application's tracing made.
        OwnSpans::Reported => {
            let is_newer = own.is_some_and(|(_, span)| span == ids.span) && is_of_its_own(w3c);
            checked.w3c.filter(|_| is_newer).map(TraceParent::b3)
        }
        OwnSpans::Unreported => {
            let is_replaced = is_of_its_own(own) || is_of_its_own(w3c);
            is_replaced.then(|| B3 {
                ids: Some(span_for_call(ids, config, new_span)),
                ..stored.b3
            })
        }
    };
    let mut plan = CallPlan::leave(Decision::Present);
    plan.edits = copied(headers, stored, false, false);
    plan.edits
        .extend(restored(headers, stored, config.restore_request_id));
    if let Some(b3) = b3 {
        plan.decision = Decision::Copied;
        let replaces_traceparent = config.own_spans == OwnSpans::Unreported;
        plan.injection = Some(Injection {
            b3: B3 {
                sampling: checked.b3.sampling.or(b3.sampling),
                ..b3
            },
            formats: Formats {
                w3c: checked.formats.w3c && replaces_traceparent,
                ..checked.formats
            },
            replaces_traceparent,
            deferred: config.deferred_w3c.sampled(),
        });
    } else if is_of_the_trace(own) {
        let (added, edits) = added_decision(headers, checked, stored.b3.sampling);
        if !edits.is_empty() {
            plan.decision = Decision::Completed;
            plan.edits.extend(edits);
            plan.added = added;
        }
    }
    plan
}

/// The identifiers that the call carries are those of the remembered context.
fn belongs(fragments: &Fragments, ids: Option<Ids>) -> bool {
    let Some(ids) = ids else { return false };
    fragments.trace.is_none_or(|trace| trace.same(ids.trace))
        && fragments.span.is_none_or(|span| span == ids.span)
        && fragments
            .parent
            .is_none_or(|parent| ids.parent == Some(parent))
}
