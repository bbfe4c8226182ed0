//! What is remembered of an inbound request, what is copied onto a call, and
//! when a call is left alone.
//!
//! A wrong stitch is worse than a missing one: [`decide`] copies only what it
//! is sure of, and names its reason either way.
//!
//! The trace context and the headers of the copy list are two things. A trace context
//! says of which trace a call is, and requests of one trace may stand for each other.
//! The headers of the copy list say whose a request is (a tenant, a user), and no
//! request may stand for another: see [`choose`].

use crate::b3::{B3, Ids, Sampling, SpanId, TraceId};
use crate::bytes::{split, take};
use crate::config::{Config, Mode, OwnSpans, RestoreRequestId, SpanIds};
use crate::headers::{self, Edit, Field, TraceHeaders};
use crate::key;
use crate::request_id;
use crate::rules::Rule;
use crate::rules::{Extracted, Finding, Formats, Fragments};
use crate::store::{Candidates, Found, MatchedBy, RequestOf};
use crate::w3c::{self, TraceParent};

/// Bytes of copied headers (names and values) that are remembered of one
/// request, the context not counted. WorkerState is bounded.
pub const COPIED_MOST: usize = 8192;

/// Header names and values.
pub type Headers = Vec<(String, Vec<u8>)>;

/// What an inbound request had of W3C Trace Context.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum W3cState {
    /// No `traceparent` that can be read.
    #[default]
    Absent,
    /// One of another trace than its B3: the application's own tracing.
    Other,
    /// One of the same trace, with an older span than B3: the sidecar's tracer does
    /// not write W3C.
    Stale,
    /// The request's own context: the sidecar's tracer writes W3C.
    Current,
}

/// Which formats the tracer of a sidecar writes, as far as inbound requests showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tracer {
    /// B3: Envoy's Zipkin tracer.
    B3,
    /// W3C: Envoy's OpenTelemetry tracer.
    W3c,
    /// Both: the Zipkin tracer with `USE_B3_WITH_W3C_PROPAGATION`.
    Both,
}

impl Tracer {
    /// What one request shows. An inbound filter behind the router sees what the tracer
    /// has written, and what the client sent in the other format.
    ///
    /// Envoy's OpenTelemetry tracer writes a `tracestate` in any case, if an empty one;
    /// the Zipkin tracer names the parent of a span in a trace that it continues. Both
    /// were seen with Envoy 1.36 to 1.40.
    pub fn shown(headers: &TraceHeaders<'_>, checked: &Extracted<'_>) -> Option<Self> {
        let has_b3 = checked.formats.multi || checked.formats.single;
        let has_empty_state = headers.tracestate.value() == Some(b"");
        match (checked.b3.ids, checked.w3c) {
            (Some(_), None) if headers.traceparent.value().is_none() => Some(Self::B3),
            (None, Some(_)) if !has_b3 => Some(Self::W3c),
            (Some(ids), Some(w3c)) => {
                let is_same_trace = ids.trace.same(w3c.trace);
                if is_same_trace && ids.span == w3c.span {
                    Some(Self::Both)
                } else if is_same_trace && ids.parent == Some(w3c.span) {
                    Some(Self::B3)
                } else if has_empty_state && ids.parent.is_none() {
                    Some(Self::W3c)
                } else {
                    None
                }
            }
            _ => None,
        }
    }
}

/// The context of an inbound request, of its B3 and its `traceparent` the newer one, and
/// what the `traceparent` is beside it.
///
/// Of two spans of one trace that one is newer whose parent is the other. A `traceparent`
/// does not name its parent. So it is newer where B3 names none either: a sidecar's tracer
/// that had continued the trace in B3 would have. Else, and where they are of different
/// traces, B3 counts, unless the tracer is known to write W3C alone.
pub fn newest(checked: &Extracted<'_>, tracer: Option<Tracer>) -> (B3, W3cState) {
    let b3 = checked.b3;
    let Some(w3c) = checked.w3c else {
        return (b3, W3cState::Absent);
    };
    // A decision alone is not a context: a tracer that writes B3 writes identifiers.
    let Some(ids) = b3.ids else {
        return (w3c.b3(), W3cState::Current);
    };
    if !ids.trace.same(w3c.trace) {
        match tracer {
            Some(Tracer::W3c) => (w3c.b3(), W3cState::Current),
            _ => (b3, W3cState::Other),
        }
    } else if ids.span == w3c.span {
        (b3, W3cState::Current)
    } else if ids.parent == Some(w3c.span) {
        (b3, W3cState::Stale)
    } else if tracer == Some(Tracer::W3c) || (tracer.is_none() && ids.parent.is_none()) {
        (w3c.b3(), W3cState::Current)
    } else {
        (b3, W3cState::Stale)
    }
}

/// What is remembered of an inbound request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoredContext {
    /// Its context as the application sees it; empty if it came without one.
    pub b3: B3,
    /// The formats that the context is copied in: those that it came in.
    pub formats: Formats,
    /// What it had of W3C.
    pub received: W3cState,
    /// The application got a `traceparent`, and beside it B3 of a client that the tracers
    /// of the mesh do not read.
    pub has_clients_b3: bool,
    /// It was seen before the sidecar's tracer: the span is that of the caller.
    pub is_callers: bool,
    /// Whether that tracer continues the trace is not known: implementations read such a
    /// request differently, or it came without B3.
    pub is_uncertain: bool,
    /// Its request ID, up to 255 bytes, where a call may be found without it.
    pub request_id: Vec<u8>,
    /// Headers of the trace context that are copied verbatim: `x-ot-span-context`,
    /// `tracestate`, and a `traceparent` of another trace. Repeated ones included.
    pub opaque: Headers,
    /// The headers of the copy list, likewise.
    pub copied: Headers,
}

impl StoredContext {
    /// From an inbound request with this context ([`newest`]). Also returns how many
    /// headers had no room ([`COPIED_MOST`]).
    ///
    /// A `traceparent` of the same trace is made anew for each call, with the
    /// span that the application serves the request in. One of another trace
    /// (the application's own tracing, beside the mesh's) is copied as it is, as
    /// an application would that forwards it.
    pub fn of(
        headers: &TraceHeaders<'_>,
        checked: &Extracted<'_>,
        (b3, received): (B3, W3cState),
    ) -> (Self, usize) {
        let mut formats = checked.formats;
        formats.w3c &= b3.ids.is_some();
        let other = headers.traceparent.value();
        let other = other.filter(|_| received == W3cState::Other);
        let other = other.map(|value| (headers::TRACEPARENT.as_bytes(), value));
        let has_state =
            |name: &[u8]| name != headers::TRACESTATE.as_bytes() || received != W3cState::Absent;
        let opaque = headers.opaque.iter().copied();
        let opaque = other
            .into_iter()
            .chain(opaque.filter(|(name, _)| has_state(name)));
        let (mut room, mut dropped) = (COPIED_MOST, 0);
        let mut taken = |(name, value): (&[u8], &[u8])| {
            let rest = room.checked_sub(name.len() + value.len());
            match (rest, std::str::from_utf8(name)) {
                (Some(rest), Ok(name)) if !name.is_empty() && name.len() < 256 => {
                    room = rest;
                    Some((name.to_string(), value.to_vec()))
                }
                _ => {
                    dropped += 1;
                    None
                }
            }
        };
        let opaque = opaque.filter_map(&mut taken).collect();
        let copied = headers.copied.iter().copied();
        let copied = copied.filter_map(&mut taken).collect();
        let remembered = Self {
            b3,
            formats,
            received,
            has_clients_b3: false,
            is_callers: false,
            is_uncertain: false,
            request_id: Vec::new(),
            opaque,
            copied,
        };
        (remembered, dropped)
    }

    /// The trace of the `traceparent` that the request came with.
    fn w3c_trace(&self) -> Option<TraceId> {
        match self.received {
            W3cState::Absent => None,
            W3cState::Stale | W3cState::Current => self.b3.ids.map(|ids| ids.trace),
            W3cState::Other => {
                let mut opaque = self.opaque.iter();
                let (_, value) = opaque.find(|(name, _)| name == headers::TRACEPARENT)?;
                Some(TraceParent::read(value)?.trace)
            }
        }
    }

    /// Encodes all but the headers for the store: two bytes of flags, then
    /// trace (16 bytes), span (8) and parent (8) as the flags say, then the request
    /// ID's length u8 and the request ID; integers big-endian.
    pub fn encode_context(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(40 + self.request_id.len());
        let sampling: u8 = match self.b3.sampling {
            Sampling::Defer => 0,
            Sampling::Deny => 1,
            Sampling::Accept => 2,
            Sampling::Debug => 3,
        };
        let received: u8 = match self.received {
            W3cState::Absent => 0,
            W3cState::Other => 1,
            W3cState::Stale => 2,
            W3cState::Current => 3,
        };
        let bits = [self.is_callers, self.is_uncertain, self.has_clients_b3].map(u8::from);
        let [is_callers, is_uncertain, has_clients_b3] = bits;
        let first = sampling | (received << 2) | (is_callers << 4) | (is_uncertain << 5);
        out.push(first | (has_clients_b3 << 6));
        let ids = self.b3.ids;
        let parent = ids.and_then(|ids| ids.parent);
        let bits = [
            ids.is_some(),
            ids.is_some_and(|ids| ids.trace.is_wide()),
            parent.is_some(),
            self.formats.multi,
            self.formats.single,
            self.formats.w3c,
        ];
        out.push(
            bits.iter()
                .fold(0, |flags, bit| (flags << 1) | u8::from(*bit)),
        );
        if let Some(ids) = ids {
            out.extend_from_slice(&ids.trace.value().to_be_bytes());
            out.extend_from_slice(&ids.span.value().to_be_bytes());
        }
        if let Some(parent) = parent {
            out.extend_from_slice(&parent.value().to_be_bytes());
        }
        let request_id = Some(self.request_id.as_slice());
        let request_id = request_id.filter(|id| id.len() <= key::LONGEST);
        let request_id = request_id.unwrap_or_default();
        out.push(request_id.len() as u8);
        out.extend_from_slice(request_id);
        out
    }

    /// Encodes the headers for the store: for each its name's length u8, name,
    /// value's length u16, value; integers big-endian.
    pub fn encode_headers(&self) -> Vec<u8> {
        let headers = || self.opaque.iter().chain(&self.copied);
        let lengths = headers().map(|(n, v)| n.len() + v.len() + 3);
        let mut out = Vec::with_capacity(lengths.sum::<usize>());
        for (name, value) in headers() {
            if let (Ok(n), Ok(v)) = (u8::try_from(name.len()), u16::try_from(value.len())) {
                out.push(n);
                out.extend_from_slice(name.as_bytes());
                out.extend_from_slice(&v.to_be_bytes());
                out.extend_from_slice(value);
            }
        }
        out
    }

    /// The inverse of [`StoredContext::encode_headers`], for a request of which the context
    /// is known. False if the bytes are not its.
    pub fn decode_headers(&mut self, mut rest: &[u8]) -> bool {
        fn next(rest: &mut &[u8]) -> Option<(String, Vec<u8>)> {
            let [n] = take(rest)?;
            let name = split(rest, usize::from(n))?.to_vec();
            let v = u16::from_be_bytes(take(rest)?);
            let value = split(rest, usize::from(v))?.to_vec();
            Some((String::from_utf8(name).ok()?, value))
        }
        while !rest.is_empty() {
            let Some((name, value)) = next(&mut rest) else {
                return false;
            };
            let of_context = name == headers::TRACEPARENT || headers::is_opaque(name.as_bytes());
            match of_context {
                true => self.opaque.push((name, value)),
                false => self.copied.push((name, value)),
            }
        }
        true
    }

    /// The inverse of both; `None` if the bytes are not theirs.
    pub fn decode(context: &[u8], headers: &[u8]) -> Option<Self> {
        let mut remembered = Self::decode_context(context)?;
        remembered.decode_headers(headers).then_some(remembered)
    }

    /// The inverse of [`StoredContext::encode_context`], without headers; `None` if the
    /// bytes are not its.
    pub fn decode_context(mut rest: &[u8]) -> Option<Self> {
        let [first, flags] = take(&mut rest)?;
        let bit = |n: u8| flags & (1 << n) != 0;
        let mut ids = None;
        if bit(5) {
            let trace = u128::from_be_bytes(take(&mut rest)?);
            let span = u64::from_be_bytes(take(&mut rest)?);
            let parent = match bit(3) {
                true => Some(SpanId::new(u64::from_be_bytes(take(&mut rest)?))?),
                false => None,
            };
            ids = Some(Ids {
                trace: TraceId::new(trace, bit(4))?,
                span: SpanId::new(span)?,
                parent,
            });
        }
        let sampling = match first & 3 {
            0 => Sampling::Defer,
            1 => Sampling::Deny,
            2 => Sampling::Accept,
            _ => Sampling::Debug,
        };
        let received = match (first >> 2) & 3 {
            0 => W3cState::Absent,
            1 => W3cState::Other,
            2 => W3cState::Stale,
            _ => W3cState::Current,
        };
        let [length] = take(&mut rest)?;
        let request_id = split(&mut rest, usize::from(length))?.to_vec();
        if !rest.is_empty() {
            return None;
        }
        Some(Self {
            b3: B3 { ids, sampling },
            formats: Formats {
                multi: bit(2),
                single: bit(1),
                w3c: bit(0),
            },
            received,
            is_callers: first & (1 << 4) != 0,
            is_uncertain: first & (1 << 5) != 0,
            has_clients_b3: first & (1 << 6) != 0,
            request_id,
            opaque: Vec::new(),
            copied: Vec::new(),
        })
    }
}

macro_rules! decisions {
    ($($name:ident, $label:literal, $meaning:literal;)*) => {
        /// What was done with an outbound call, and why.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Decision {
            $(#[doc = $meaning] $name,)*
        }

        impl Decision {
            /// Every decision.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The metric's label.
            pub fn label(self) -> &'static str {
                match self { $(Self::$name => $label,)* }
            }

            /// In words.
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$name => $meaning,)* }
            }
        }
    };
}

decisions! {
    Present, "present", "the call carries a context of its own: left as it is";
    Copied, "copied", "the call carried none: the remembered context was copied onto it";
    Completed, "completed", "the call carried a part of the remembered context: the rest was copied";
    Exclusive, "exclusive", "the call carried nothing, and only one request is being served: its context was copied (`attribution`)";
    Token, "token", "the call carried nothing but an identifier that one request in flight has: its context was copied (`attribution`)";
    Inferred, "inferred", "the call carried nothing, and by what requests do it is almost certainly of one of those in flight: its context was copied (`attribution`)";
    Unsure, "unsure", "the call carried nothing, and may be of several requests in flight, or of none: left alone (`attribution`)";
    NoKey, "no_key", "the call carries nothing to look it up by (`keys`): left alone";
    Unknown, "unknown", "no request with this request ID (or other key) is being served: left alone (so also where the application forwards none, and Envoy has made up a new one)";
    NoContext, "no_context", "the inbound request came without a context: nothing to copy";
    Ambiguous, "ambiguous", "requests of different traces with this request ID (or other key) are being served: left alone";
    Conflict, "conflict", "the call carries a part of some other context: left alone";
    Malformed, "malformed", "the call carries identifiers that cannot be read: left alone";
    SamplingOnly, "sampling_only", "the call says b3: 0, 1 or d, a decision of its own: left alone";
    Outside, "outside", "the call goes to a host outside the mesh: nothing was copied (`outside`)";
    TooLarge, "too_large", "with the context the call would have more headers than the next Envoy takes (100, or 60 KiB): left alone";
    Off, "off", "the relay is switched off";
}

/// Whether a call needs a look-up at all. `Err` holds the decision where it
/// doesn't.
///
/// `discard_malformed`: identifiers that cannot be read count as absent, since
/// they are about to be removed.
pub fn before_lookup(checked: &Extracted<'_>, discard_malformed: bool) -> Result<(), Decision> {
    if checked.b3.ids.is_some() {
        return Err(Decision::Present);
    }
    if checked.single_decides {
        return Err(Decision::SamplingOnly);
    }
    let malformed = checked
        .fragments
        .is_some_and(|fragments| fragments.malformed);
    if malformed && !discard_malformed {
        return Err(Decision::Malformed);
    }
    Ok(())
}

/// The spans that a call names, which tell requests of one trace apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Named {
    /// Its own: that of its request, if the application forwards the context as it is.
    span: Option<SpanId>,
    /// The same, of its `traceparent`.
    w3c: Option<SpanId>,
    /// The parent of its own: that of its request, if the application's tracing makes
    /// a span for each call.
    parent: Option<SpanId>,
}

impl Named {
    /// By a call's B3, whole or in parts, and by its `traceparent`.
    pub fn of(checked: &Extracted<'_>) -> Self {
        let ids = checked.b3.ids;
        let parts = checked.fragments;
        let parent = |ids: Ids| ids.parent;
        Self {
            span: ids
                .map(|ids| ids.span)
                .or(parts.and_then(|parts| parts.span)),
            w3c: checked.w3c.map(|w3c| w3c.span),
            parent: ids
                .and_then(parent)
                .or(parts.and_then(|parts| parts.parent)),
        }
    }

    /// The call names no span.
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }

    /// How well a request's span fits: 0 is best, [`Named::NOT`] is not at all.
    fn fits(self, span: Option<SpanId>) -> u8 {
        let Some(span) = span.map(Some) else {
            return Self::NOT;
        };
        let names = [self.span, self.w3c, self.parent];
        let at = names.iter().position(|name| *name == span);
        at.and_then(|at| u8::try_from(at).ok()).unwrap_or(Self::NOT)
    }

    const NOT: u8 = u8::MAX;
}

/// The request that a call belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Match {
    /// Its number, and where the store has it.
    pub request: (RequestOf, u16),
    /// How it was found.
    pub under: MatchedBy,
    /// What of it may be copied.
    pub remembered: StoredContext,
    /// The call names its span.
    pub is_named: bool,
    /// The spans of all that it was chosen among; `None` if there may be others.
    pub spans: Option<Vec<SpanId>>,
}

/// What is remembered in place of a context under a trace that the application made up:
/// it is known to be of a request of this pod, but not of which.
pub const OF_ANY: &[u8] = &[0xff];

/// The one request that a call belongs to, among those found under its keys.
///
/// Several requests of one trace (a loop, a fan-out, a retry) may share their keys.
/// Then that one is taken whose span the call names; or else, of those still
/// being served rather than answered, that which began last: in a loop the others
/// wait for it. The trace is right in any case; of siblings the parent may be the
/// other one's span.
///
/// That is not enough to hand over the headers of the copy list, nor the request ID, nor
/// what the trace context has beside the trace (a `traceparent` of another trace, above
/// all). Where the call does not name the span of one request, only those are left to copy
/// that are the same in all; and none if there may be requests that are not known.
///
/// `headers`: those that were remembered of a request; `None` if they are lost.
pub fn choose(
    candidates: &Candidates,
    headers: impl Fn(&Found) -> Option<Vec<u8>>,
    named: Named,
) -> Result<Match, Decision> {
    // The trace began in this pod: a request that came with it is one that the first of
    // its requests has called, directly or not.
    let is_own = |found: &Found| found.under == MatchedBy::Own && found.context != OF_ANY;
    let began_here = candidates.found.iter().any(|found| found.context == OF_ANY);
    if began_here && candidates.found.iter().any(is_own) {
        return Err(Decision::Ambiguous);
    }
    let found = candidates.found.iter();
    let decoded =
        found.filter_map(|found| Some((found, StoredContext::decode_context(&found.context)?)));
    let mut all: Vec<(&Found, StoredContext)> = decoded.collect();
    if all
        .iter()
        .all(|(_, remembered)| remembered.b3.ids.is_none())
    {
        // Whether they belong together, all of what is known of them tells.
        for (found, remembered) in &mut all {
            read_headers(remembered, headers(found));
        }
    }
    let Some(((_, first), others)) = all.split_first() else {
        return Err(Decision::Unknown);
    };
    if !others.iter().all(|(_, other)| same_trace(first, other)) {
        return Err(Decision::Ambiguous);
    }
    let span = |remembered: &StoredContext| remembered.b3.ids.map(|ids| ids.span);
    let spans: Vec<SpanId> = all.iter().filter_map(|(_, r)| span(r)).collect();
    // The span named, served rather than answered, the latest; equal in everything: what
    // came last, as a retry does.
    let rank = |(found, remembered): &(&Found, StoredContext)| {
        (
            named.fits(span(remembered)),
            found.ended,
            u64::MAX - found.started_ms,
        )
    };
    let best = all.iter().enumerate().rev().min_by_key(|(_, c)| rank(c));
    let Some(at) = best.map(|(at, _)| at) else {
        return Err(Decision::Unknown);
    };
    let (found, mut remembered) = all.swap_remove(at);
    let is_named = named.fits(span(&remembered)) != Named::NOT;
    if remembered.b3.ids.is_some() {
        read_headers(&mut remembered, headers(found));
    }
    // Attempts of one request have one span, and may differ in nothing else.
    let others = all.iter_mut();
    let same_span = |(_, other): &&mut (&Found, StoredContext)| span(other) == span(&remembered);
    let mut others: Vec<&mut (&Found, StoredContext)> = match is_named {
        true => others.filter(same_span).collect(),
        false => others.collect(),
    };
    if !remembered.copied.is_empty() || !remembered.opaque.is_empty() {
        for (found, other) in others.iter_mut().filter(|o| o.1.b3.ids.is_some()) {
            read_headers(other, headers(found));
        }
    }
    keep_common(&mut remembered, others.iter().map(|(_, other)| other));
    if !candidates.complete && !is_named {
        remembered.opaque.clear();
        remembered.copied.clear();
        remembered.request_id.clear();
    }
    Ok(Match {
        request: (found.request, found.bucket),
        under: found.under,
        remembered,
        is_named,
        spans: candidates.complete.then_some(spans),
    })
}

/// What was remembered of a request besides its context. Of what is lost nothing is
/// copied: nobody knows what it was.
fn read_headers(remembered: &mut StoredContext, headers: Option<Vec<u8>>) {
    let is_read = headers.is_some_and(|headers| remembered.decode_headers(&headers));
    if !is_read {
        remembered.opaque.clear();
        remembered.copied.clear();
    }
}

/// Leaves of the headers, and of the request ID, what is the same in all.
fn keep_common<'a>(
    remembered: &mut StoredContext,
    others: impl Iterator<Item = &'a StoredContext> + Clone,
) {
    fn values<'a>(headers: &'a Headers, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        let named = headers.iter().filter(move |(known, _)| known == name);
        named.map(|(_, value)| value.as_slice())
    }
    let common = |mine: &mut Headers, theirs: fn(&StoredContext) -> &Headers| {
        let all = std::mem::take(mine);
        let is_common = |name: &str| {
            let mut others = others.clone();
            others.all(|other| values(theirs(other), name).eq(values(&all, name)))
        };
        let common = all.iter().filter(|(name, _)| is_common(name)).cloned();
        *mine = common.collect();
    };
    common(&mut remembered.opaque, |other| &other.opaque);
    common(&mut remembered.copied, |other| &other.copied);
    let id = &remembered.request_id;
    let mut others = others.clone();
    if !others.all(|other| request_id::same(&other.request_id, id)) {
        remembered.request_id = Vec::new();
    }
}

/// There are requests among those found, and none is of the trace of this one.
pub fn all_of_other_traces(found: &[Found], one: &StoredContext) -> bool {
    let others = found
        .iter()
        .filter(|found| found.under == MatchedBy::Own)
        .filter_map(|found| StoredContext::decode_context(&found.context));
    let same = others.map(|other| other.b3.ids.is_some() && same_trace(&other, one));
    same.reduce(|a, b| a || b) == Some(false)
}

fn same_trace(a: &StoredContext, b: &StoredContext) -> bool {
    match (a.b3.ids, b.b3.ids) {
        (Some(a), Some(b)) => a.trace.same(b.trace),
        // Nothing says that they belong together, but for that all is the same.
        (None, None) => {
            (a.b3.sampling, &a.opaque, &a.copied) == (b.b3.sampling, &b.opaque, &b.copied)
                && request_id::same(&a.request_id, &b.request_id)
        }
        _ => false,
    }
}

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
    pub says: Option<Injection>,
    /// The formats that stay as the application has written them.
    pub kept: Formats,
    /// The headers of the copy list that it lacks, and the request ID.
    pub edits: Vec<Edit>,
}

impl CallPlan {
    /// Nothing, for this reason.
    pub fn not(decision: Decision) -> Self {
        Self {
            decision,
            says: None,
            kept: Formats::default(),
            edits: Vec::new(),
        }
    }

    /// Something would be written.
    pub fn writes(&self) -> bool {
        self.says.is_some() || !self.edits.is_empty()
    }
}

/// What the `traceparent` of a call without B3 is, beside the request it was made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnTrace {
    /// There is none, or it says nothing about the mesh's trace.
    Beside,
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
    /// Of a request that was seen before the sidecar's tracer it is not known what that
    /// wrote: a `traceparent` of its trace has a newer span than the caller's.
    pub fn of(checked: &Extracted<'_>, remembered: &StoredContext, own_spans: OwnSpans) -> Self {
        let (None, Some(w3c)) = (checked.b3.ids, checked.w3c) else {
            return Self::Beside;
        };
        let is_current = remembered.received == W3cState::Current;
        if remembered
            .b3
            .ids
            .is_some_and(|ids| ids.trace.same(w3c.trace))
        {
            return match own_spans {
                OwnSpans::Unreported => Self::Unreported,
                _ if remembered.is_callers => Self::OwnInB3(w3c),
                _ if is_current => Self::Own,
                OwnSpans::Reported => Self::OwnInB3(w3c),
                OwnSpans::Auto => Self::Beside,
            };
        }
        match remembered.w3c_trace() {
            None => Self::Beside,
            Some(trace) if trace.same(w3c.trace) => Self::Beside,
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
    remembered: &StoredContext,
    config: &Config,
    new_span: impl FnOnce() -> u64,
) -> CallPlan {
    let own = OwnTrace::of(checked, remembered, config.own_spans);
    let formats = config.emit.unwrap_or(remembered.formats);
    match own {
        OwnTrace::Own => return present(headers, checked, remembered, config),
        OwnTrace::OwnInB3(_) if !formats.multi && !formats.single => {
            return present(headers, checked, remembered, config);
        }
        OwnTrace::Another => return CallPlan::not(Decision::Present),
        OwnTrace::Contradiction => return CallPlan::not(Decision::Conflict),
        OwnTrace::Beside | OwnTrace::OwnInB3(_) | OwnTrace::Unreported => {}
    }
    let mut b3 = remembered.b3;
    let mut decision = Decision::Copied;
    let mut kept = Formats::default();
    if let Some(fragments) = checked.fragments.filter(|fragments| !fragments.malformed) {
        if !belongs(&fragments, remembered.b3.ids) {
            return CallPlan::not(Decision::Conflict);
        }
        decision = Decision::Completed;
    }
    if is_clients_decision(checked, remembered, formats) {
        kept = Formats {
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
    if let (SpanIds::Child, Some(ids)) = (config.span_ids, b3.ids) {
        b3.ids = SpanId::new(new_span())
            .map(|span| Ids {
                span,
                parent: Some(ids.span),
                ..ids
            })
            .or(b3.ids);
    }
    if let OwnTrace::OwnInB3(w3c) = own {
        b3 = w3c.b3();
    }
    let deferred = config.deferred_w3c.sampled();
    let mut formats = formats.without(kept).and(Formats {
        w3c: false,
        ..checked.formats.without(kept)
    });
    formats.w3c &= w3c::sampled(b3.sampling, deferred).is_some();
    if formats.is_empty() {
        // Better in another form than not at all.
        formats.multi = true;
        kept.multi = false;
    }
    // One that cannot be read is replaced where it is asked for, and else left alone.
    let is_malformed = headers.traceparent.value().is_some() && checked.w3c.is_none();
    let may_replace = config.emit.is_some() || config.mode == Mode::Repair;
    if is_malformed && formats.w3c && !may_replace {
        return CallPlan::not(Decision::Malformed);
    }
    let replaces_traceparent = own == OwnTrace::Unreported || is_malformed;
    let says = Injection {
        b3,
        formats,
        replaces_traceparent,
        deferred,
    };
    let says = (!remembered.b3.is_empty()).then_some(says);
    if says.is_none() {
        decision = Decision::NoContext;
    }
    let writes_w3c = says.is_some_and(|says| says.formats.w3c);
    let mut edits = copied(headers, remembered, writes_w3c, replaces_traceparent);
    edits.extend(restored(headers, remembered, config.restore_request_id));
    CallPlan {
        decision,
        says,
        kept,
        edits,
    }
}

/// A sampling decision in B3, and nothing else of it, on a call whose request has its
/// context in `traceparent` alone: it is what a client has sent, carried on. The tracers
/// of such a mesh do not read it, and it does not decide for the `traceparent`. `formats`:
/// those that the call is to get.
fn is_clients_decision(
    checked: &Extracted<'_>,
    remembered: &StoredContext,
    formats: Formats,
) -> bool {
    let has_b3 = |formats: Formats| formats.multi || formats.single;
    let is_w3c = remembered.received == W3cState::Current;
    let is_clients = remembered.has_clients_b3 || !(has_b3(remembered.formats) || has_b3(formats));
    let is_alone = checked.b3.sampling != Sampling::Defer && checked.fragments.is_none();
    is_w3c && is_clients && is_alone
}

/// A call with a context of its own: left as it is, but for the headers of the copy list
/// and the request ID, if it is of the request's trace; and for its span, if `own_spans`
/// says that another one counts.
pub fn present(
    headers: &TraceHeaders<'_>,
    checked: &Extracted<'_>,
    remembered: &StoredContext,
    config: &Config,
) -> CallPlan {
    let own = checked.b3.ids.map(|ids| (ids.trace, ids.span));
    let w3c = checked.w3c.map(|w3c| (w3c.trace, w3c.span));
    let Some(ids) = remembered.b3.ids else {
        return CallPlan::not(Decision::Present);
    };
    let is_of_the_trace =
        |of: Option<(TraceId, SpanId)>| of.is_some_and(|(trace, _)| trace.same(ids.trace));
    let is_current = remembered.received == W3cState::Current;
    if !is_of_the_trace(own) && !(is_of_the_trace(w3c) && (own.is_none() || is_current)) {
        return CallPlan::not(Decision::Present);
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
        OwnSpans::Unreported => (is_of_its_own(own) || is_of_its_own(w3c)).then_some(remembered.b3),
    };
    let says = b3.map(|b3| Injection {
        b3: B3 {
            sampling: match checked.b3.sampling {
                Sampling::Defer => b3.sampling,
                decided => decided,
            },
            ..b3
        },
        formats: checked.formats,
        replaces_traceparent: config.own_spans == OwnSpans::Unreported,
        deferred: config.deferred_w3c.sampled(),
    });
    let mut edits = copied(headers, remembered, false, false);
    edits.extend(restored(headers, remembered, config.restore_request_id));
    CallPlan {
        decision: match says {
            Some(_) => Decision::Copied,
            None => Decision::Present,
        },
        says,
        kept: Formats::default(),
        edits,
    }
}

/// The headers that a call lacks: those of the copy list, and of the trace context those
/// that are copied verbatim. `writes_w3c`: it gets a `traceparent` of the request's trace,
/// also in place of its own if it `replaces` that.
fn copied(
    headers: &TraceHeaders<'_>,
    remembered: &StoredContext,
    writes_w3c: bool,
    replaces: bool,
) -> Vec<Edit> {
    let has_traceparent = headers.traceparent.value().is_some() && !replaces;
    let other = remembered.received == W3cState::Other;
    let lacks = |name: &str| match name {
        // W3C's two belong together: a state is of the traceparent that it came with.
        headers::TRACEPARENT => !has_traceparent && !writes_w3c,
        headers::TRACESTATE => !has_traceparent && writes_w3c != other && !headers.has(name),
        _ => !headers.has(name),
    };
    let all = remembered.opaque.iter().chain(&remembered.copied);
    all.filter(|(name, _)| lacks(name))
        .map(|(name, value)| Edit::Add(name.clone().into(), value.clone()))
        .collect()
}

/// The request ID of the inbound request, where Envoy has made up a new one for
/// the call.
fn restored(
    headers: &TraceHeaders<'_>,
    remembered: &StoredContext,
    which: RestoreRequestId,
) -> Option<Edit> {
    let given = headers.request_id.value().unwrap_or_default();
    let known = &remembered.request_id;
    let other = !known.is_empty() && !request_id::same(given, known);
    let gives_way = match which {
        RestoreRequestId::New => {
            given.is_empty() || (headers.has_new_request_id && request_id::is_envoys(given))
        }
        RestoreRequestId::AnyUuid => given.is_empty() || request_id::is_envoys(given),
        RestoreRequestId::Never => false,
    };
    (other && gives_way).then(|| Edit::set(headers::REQUEST_ID, known.as_slice()))
}

/// What a call breaks of the rules about propagation, beside the request that
/// it was made for. `spans`: those in which the requests of its trace are served
/// that it may be of.
pub fn propagation<'a>(
    headers: &TraceHeaders<'a>,
    checked: &Extracted<'a>,
    remembered: &StoredContext,
    own_spans: OwnSpans,
    spans: Option<&[SpanId]>,
) -> Vec<Finding<'a>> {
    let found = |rule, (header, field): (&'static str, Field<'a>)| {
        let value = field.value().unwrap_or_default();
        Finding {
            rule,
            header,
            value,
        }
    };
    // What was read, if there are two.
    let b3 =
        |multi: (&'static str, Field<'a>)| match checked.formats.single && !checked.stale.single {
            true => (headers::B3, headers.b3),
            false => multi,
        };
    let traceparent = (headers::TRACEPARENT, headers.traceparent);
    let trace_id = (headers::TRACE_ID, headers.trace_id);
    let mut findings = Vec::new();
    let Some(inbound) = remembered.b3.ids else {
        return findings;
    };
    let changed = |now: Option<bool>| {
        let then = remembered.b3.sampling.decided();
        now.is_some() && then.is_some() && now != then
    };
    let is_known = !remembered.is_uncertain;
    // Where the tracers write W3C, B3 of another trace is the client's, carried on.
    let has_w3c = |w3c: TraceParent| w3c.trace.same(inbound.trace);
    let is_w3c = remembered.received == W3cState::Current && checked.w3c.is_some_and(has_w3c);
    let is_clients = |ids: &Ids| is_w3c && !ids.trace.same(inbound.trace);
    if checked.b3.ids.as_ref().is_some_and(is_clients) {
        return findings;
    }
    if let Some(ids) = checked.b3.ids.filter(|_| is_known) {
        if !ids.trace.same(inbound.trace) {
            findings.push(found(Rule::P02, b3(trace_id)));
            return findings;
        }
        if changed(checked.b3.sampling.decided()) {
            findings.push(found(Rule::P03, b3((headers::SAMPLED, headers.sampled))));
        }
        let named = |span: &SpanId| *span == ids.span || Some(*span) == ids.parent;
        if spans.is_some_and(|spans| !spans.iter().any(named)) {
            findings.push(found(Rule::P04, b3((headers::SPAN_ID, headers.span_id))));
        }
        return findings;
    }
    if !is_known && (checked.b3.ids.is_some() || checked.w3c.is_some()) {
        return findings;
    }
    let finding = match OwnTrace::of(checked, remembered, own_spans) {
        OwnTrace::Own if changed(checked.w3c.map(|w3c| w3c.sampled)) => {
            Some(found(Rule::P03, traceparent))
        }
        OwnTrace::Another => Some(found(Rule::P02, traceparent)),
        _ if checked.w3c.is_some_and(|w3c| w3c.trace.same(inbound.trace)) => None,
        _ => Some(found(Rule::P01, b3(trace_id))),
    };
    findings.extend(finding);
    findings
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

/// The edits after which a request says just this, in these formats. Headers
/// that are right already are not touched, nor are those of a form in `kept`, nor
/// a `traceparent` that is there, unless it is to be replaced: it may be of a span
/// that the application reports itself.
///
/// Debug is written as `x-b3-flags: 1` and `x-b3-sampled: 1`: the specification
/// asks for the first alone, but Envoy's Zipkin tracer reads only the second. Where
/// they say it, `b3` says `1`: not everybody who reads `b3` knows its `d`.
pub fn rewrite(headers: &TraceHeaders<'_>, says: &Injection, kept: Formats) -> Vec<Edit> {
    let Injection { b3, formats, .. } = says;
    let hex = |write: &dyn Fn(&mut Vec<u8>)| {
        let mut text = Vec::with_capacity(32);
        write(&mut text);
        text
    };
    let ids = b3.ids.filter(|_| formats.multi);
    let sampled = b3.sampling.decided().filter(|_| formats.multi);
    let sampled = sampled.map(|yes| if yes { b"1".to_vec() } else { b"0".to_vec() });
    let debug = (formats.multi && b3.sampling == Sampling::Debug).then(|| b"1".to_vec());
    let mut single = *b3;
    if debug.is_some() {
        single.sampling = Sampling::Accept;
    }
    let wanted: [(&'static str, Field<'_>, Option<Vec<u8>>); 6] = [
        (
            headers::TRACE_ID,
            headers.trace_id,
            ids.map(|ids| hex(&|to| ids.trace.write(to))),
        ),
        (
            headers::SPAN_ID,
            headers.span_id,
            ids.map(|ids| hex(&|to| ids.span.write(to))),
        ),
        (
            headers::PARENT_SPAN_ID,
            headers.parent_span_id,
            ids.and_then(|ids| ids.parent)
                .map(|id| hex(&|to| id.write(to))),
        ),
        (headers::SAMPLED, headers.sampled, sampled),
        (headers::FLAGS, headers.flags, debug),
        (
            headers::B3,
            headers.b3,
            formats.single.then(|| single.single()).flatten(),
        ),
    ];
    let mut edits = Vec::with_capacity(5);
    for (name, field, value) in wanted {
        if (name == headers::B3 && kept.single) || (name != headers::B3 && kept.multi) {
            continue;
        }
        match value {
            Some(value) if field.repeated() || field.value() != Some(value.as_slice()) => {
                edits.push(Edit::set(name, value));
            }
            None if field.value().is_some() => edits.push(Edit::remove(name)),
            _ => {}
        }
    }
    let sampled = w3c::sampled(b3.sampling, says.deferred);
    let w3c = b3.ids.zip(sampled).filter(|_| formats.w3c && !kept.w3c);
    if let Some((ids, sampled)) = w3c {
        let value = w3c::write(ids, sampled);
        let given = headers.traceparent;
        let is_right = given.value() == Some(&value) && !given.repeated();
        if given.value().is_none() || (says.replaces_traceparent && !is_right) {
            edits.push(Edit::set(headers::TRACEPARENT, value));
        }
    }
    edits
}
