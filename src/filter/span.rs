//! Beside step 4: the client span of a call. It stands in the headers of the call in
//! place of the span that the call would name otherwise, with that one as its parent.

use super::request::Request;
use super::worker::WorkerState;
use super::write::Plan;
use crate::b3::{Ids, Sampling, SpanId};
use crate::config::{Config, SpanIds};
use crate::headers::{self, Edit};
use crate::host::{Host, Recording};
use crate::metrics::Counter;
use crate::relay::{CallPlan, Injection, Tracer};
use crate::rules::Formats;
use crate::w3c::TraceParent;

/// A span that may begin.
#[derive(Clone, Copy, Debug)]
pub(super) struct Child {
    /// What the call is to say.
    pub injection: Injection,
    /// The formats that stay as they are.
    pub unchanged: Formats,
    /// B3 names its parent.
    names_parent: bool,
}

impl Child {
    /// What is written onto the call.
    pub fn written(&self) -> Injection {
        let mut injection = self.injection;
        if let Some(ids) = &mut injection.b3.ids
            && !self.names_parent
        {
            ids.parent = None;
        }
        injection
    }
}

/// What becomes of the span of a call.
pub(super) enum Planned {
    /// It has none.
    Nothing,
    /// There is no room for it.
    Dropped,
    /// It begins.
    Child(Child),
}

impl Planned {
    /// `call` and `plan`: what is planned for the call. `of`: the IDs of its request's context.
    /// A call that is not sampled has no span. Nor has one whose decision is left open: whether
    /// the callee reports its own span is not known.
    pub fn of(
        worker: &WorkerState,
        host: &impl Host,
        config: &Config,
        request: &Request<'_>,
        (call, plan): (&CallPlan, &Plan),
        of: Option<Ids>,
    ) -> Self {
        let is_sampled = |injection: &Injection| injection.b3.sampling.decided() == Some(true);
        // Most that are not are known by this, before anything is asked or copied.
        if call.injection.as_ref().is_some_and(|i| !is_sampled(i)) {
            return Self::Nothing;
        }
        let recording = host.recording();
        if recording == Recording::Off {
            return Self::Nothing;
        }
        let child = match call.injection {
            Some(injection) => Some(Child {
                injection,
                unchanged: call.unchanged,
                names_parent: false,
            }),
            None => call
                .is_own()
                .then(|| own(worker, config, request, plan, call.added)),
        };
        let Some(mut child) = child.filter(|child| is_sampled(&child.injection)) else {
            return Self::Nothing;
        };
        let Injection {
            b3,
            formats,
            replaces_traceparent,
            ..
        } = &mut child.injection;
        let Some(ids) = b3.ids else {
            return Self::Nothing;
        };
        // A `traceparent` that says what the call's B3 would say gets the client span, too.
        let w3c = request.extracted.w3c;
        if w3c.is_some_and(|w3c| is_same(ids, w3c)) {
            formats.w3c = true;
            *replaces_traceparent = true;
        }
        // By a parent the callee's b3relay tells whether the tracer of its sidecar has renewed the
        // B3 ([`crate::relay::newest`]): one that has names its parent, and one that writes W3C
        // leaves the B3 as it comes. Before the router it may not be known which of the two is to
        // be expected; but a `traceparent` of the trace that stays may name an older span.
        let stays = w3c.is_some_and(|w3c| ids.trace.same(w3c.trace));
        child.names_parent = !formats.w3c
            && match worker.tracer.known() {
                Some(tracer) => tracer != Tracer::W3c,
                None => stays || !host.is_before_router(),
            };
        if recording == Recording::Closed {
            return Self::Dropped;
        }
        // `span_ids` may have given it one already.
        let is_own = request
            .extracted
            .b3
            .ids
            .is_some_and(|own| own.span == ids.span);
        let is_child = |of: Ids| !is_own && ids.span != of.span && ids.parent == Some(of.span);
        if config.span_ids == SpanIds::Child && of.is_some_and(is_child) {
            return Self::Child(child);
        }
        let Some(span) = SpanId::new(new_span(host)) else {
            return Self::Nothing;
        };
        b3.ids = Some(Ids {
            span,
            parent: Some(ids.span),
            ..ids
        });
        Self::Child(child)
    }

    /// The span that begins.
    pub fn child(&self) -> Option<&Child> {
        match self {
            Self::Child(child) => Some(child),
            Self::Nothing | Self::Dropped => None,
        }
    }

    /// What is counted.
    pub fn counter(&self) -> Option<Counter> {
        matches!(self, Self::Dropped).then_some(Counter::SpansDropped(1))
    }
}

/// The context that a call has of its own, in all formats that the tracers of the mesh read.
/// `added`: its decision, where it leaves that open.
fn own(
    worker: &WorkerState,
    config: &Config,
    request: &Request<'_>,
    plan: &Plan,
    added: Sampling,
) -> Child {
    let extracted = &request.extracted;
    let mut formats = Formats {
        w3c: false,
        ..extracted.formats
    };
    let given = formats;
    // Where B3 and `traceparent` name different spans, the client span goes into the format that
    // the tracer of the mesh uses, and the other format stays.
    let is_w3c = worker.tracer.known() == Some(Tracer::W3c);
    let counts = |w3c: &TraceParent| match extracted.b3.ids {
        Some(ids) => is_w3c && !is_same(ids, *w3c),
        None => true,
    };
    let mut b3 = match extracted.w3c.filter(counts) {
        Some(w3c) => {
            formats = Formats {
                w3c: true,
                ..Formats::default()
            };
            w3c.b3()
        }
        None => extracted.b3,
    };
    b3.sampling = b3.sampling.or(added);
    if let Some(injection) = plan.injection {
        formats = formats.and(injection.formats);
    }
    Child {
        injection: Injection {
            b3,
            formats,
            replaces_traceparent: formats.w3c,
            deferred: config.deferred_w3c.sampled(),
        },
        unchanged: given.without(formats),
        names_parent: false,
    }
}

/// For a new span.
pub(super) fn new_span(host: &impl Host) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = host.random();
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

/// Both name the same span.
fn is_same(ids: Ids, w3c: TraceParent) -> bool {
    ids.trace.same(w3c.trace) && ids.span == w3c.span
}

/// The request ID that a call goes on with.
pub(super) fn request_id<'a>(edits: &'a [Edit], request: &'a Request<'_>) -> &'a [u8] {
    let set = edits.iter().rev().find_map(|edit| match edit {
        Edit::Set(name, value) | Edit::Add(name, value) if name == headers::REQUEST_ID => {
            Some(value.as_slice())
        }
        _ => None,
    });
    set.unwrap_or(&request.request_id)
}
