//! What is remembered of an inbound request, what is copied onto a call, and
//! when a call is left alone.
//!
//! A wrong stitch is worse than a missing one: [`decide`] copies only what it
//! is sure of, and names its reason either way.

use crate::b3::{B3, Ids, Sampling, SpanId, TraceId};
use crate::bytes::{split, take};
use crate::check::{Checked, Finding, Forms, Fragments};
use crate::config::{Config, SpanIds};
use crate::header::{self, Edit, Field, TraceHeaders};
use crate::key;
use crate::request_id;
use crate::rules::Rule;
use crate::store::{Found, RequestOf};
use crate::w3c;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// Bytes of copied headers (names and values) that are remembered of one
/// request, the context not counted. Memory is bounded.
pub const COPIED_MOST: usize = 8192;

/// What is remembered of an inbound request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Remembered {
    /// Its context as the application sees it; empty if it came without one.
    pub b3: B3,
    /// The forms that the context came in, which are those it is copied in.
    pub forms: Forms,
    /// Its request ID, up to 255 bytes, where a call may be found without it.
    pub request_id: Vec<u8>,
    /// The headers of the copy list, repeated ones included, and those of W3C
    /// that cannot be made from the context.
    pub copied: Vec<(String, Vec<u8>)>,
}

impl Remembered {
    /// From an inbound request. Also returns how many headers of the copy list
    /// had no room ([`COPIED_MOST`]).
    ///
    /// A `traceparent` of the same trace is made anew for each call, with the
    /// span that the application serves the request in. One of another trace
    /// (the application's own tracing, beside the mesh's) is copied as it is, as
    /// an application would that forwards it.
    pub fn of(headers: &TraceHeaders<'_>, checked: &Checked<'_>) -> (Self, usize) {
        let mut b3 = checked.b3;
        let mut forms = checked.forms;
        if let Some(w3c) = checked.w3c.filter(|_| b3.is_empty()) {
            b3 = w3c.b3();
        }
        forms.w3c &= b3.ids.is_some();
        let w3c = [
            (header::TRACEPARENT, headers.traceparent, !forms.w3c),
            (header::TRACESTATE, headers.tracestate, true),
        ];
        let w3c = w3c
            .into_iter()
            .filter(|(_, _, opaque)| *opaque && checked.w3c.is_some())
            .filter_map(|(name, field, _)| Some((name.as_bytes(), field.value()?)));
        let mut room = COPIED_MOST;
        let mut dropped = 0;
        let mut copied = Vec::new();
        for (name, value) in w3c.chain(headers.copied.iter().copied()) {
            let rest = room.checked_sub(name.len() + value.len());
            match (rest, core::str::from_utf8(name)) {
                (Some(rest), Ok(name)) if !name.is_empty() && name.len() < 256 => {
                    room = rest;
                    copied.push((name.to_string(), value.to_vec()));
                }
                _ => dropped += 1,
            }
        }
        let remembered = Self {
            b3,
            forms,
            request_id: Vec::new(),
            copied,
        };
        (remembered, dropped)
    }

    /// Encodes for the store: two bytes of flags, then trace (16 bytes), span (8)
    /// and parent (8) as the flags say, then the request ID's length u8 and the
    /// request ID, then for each copied header its name's length u8, name,
    /// value's length u16, value; integers big-endian.
    pub fn encode(&self) -> Vec<u8> {
        let copied = self.copied.iter().map(|(n, v)| n.len() + v.len() + 3);
        let mut out = Vec::with_capacity(40 + self.request_id.len() + copied.sum::<usize>());
        out.push(match self.b3.sampling {
            Sampling::Defer => 0,
            Sampling::Deny => 1,
            Sampling::Accept => 2,
            Sampling::Debug => 3,
        });
        let ids = self.b3.ids;
        let parent = ids.and_then(|ids| ids.parent);
        let bits = [
            ids.is_some(),
            ids.is_some_and(|ids| ids.trace.is_wide()),
            parent.is_some(),
            self.forms.multi,
            self.forms.single,
            self.forms.w3c,
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
        for (name, value) in &self.copied {
            if let (Ok(n), Ok(v)) = (u8::try_from(name.len()), u16::try_from(value.len())) {
                out.push(n);
                out.extend_from_slice(name.as_bytes());
                out.extend_from_slice(&v.to_be_bytes());
                out.extend_from_slice(value);
            }
        }
        out
    }

    /// The inverse of [`Remembered::encode`]; `None` if the bytes are not its.
    pub fn decode(mut rest: &[u8]) -> Option<Self> {
        let [sampling, flags] = take(&mut rest)?;
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
        let sampling = match sampling {
            0 => Sampling::Defer,
            1 => Sampling::Deny,
            2 => Sampling::Accept,
            _ => Sampling::Debug,
        };
        let [length] = take(&mut rest)?;
        let request_id = split(&mut rest, usize::from(length))?.to_vec();
        let mut copied = Vec::new();
        while !rest.is_empty() {
            let [n] = take(&mut rest)?;
            let name = split(&mut rest, usize::from(n))?.to_vec();
            let v = u16::from_be_bytes(take(&mut rest)?);
            let value = split(&mut rest, usize::from(v))?.to_vec();
            copied.push((String::from_utf8(name).ok()?, value));
        }
        Some(Self {
            b3: B3 { ids, sampling },
            forms: Forms {
                multi: bit(2),
                single: bit(1),
                w3c: bit(0),
            },
            request_id,
            copied,
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
pub fn before_lookup(checked: &Checked<'_>, discard_malformed: bool) -> Result<(), Decision> {
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

/// The one request that a call belongs to, among those found under its keys.
///
/// Several requests of one trace (a loop, a diamond, a retry) share their keys.
/// Then that one is taken whose span the call names; or else, of those still
/// being served rather than answered, that which began last: in a loop the others
/// wait for it. The trace is right in any case; of siblings in a diamond the parent
/// may be the other one's span.
pub fn choose(found: &[Found], named: Option<SpanId>) -> Result<(RequestOf, Remembered), Decision> {
    let mut chosen: Option<(Rank, RequestOf, Remembered)> = None;
    for found in found {
        let Some(remembered) = Remembered::decode(&found.payload) else {
            continue;
        };
        let span = remembered.b3.ids.map(|ids| ids.span);
        let rank = (
            named.is_none() || span != named,
            found.ended,
            u64::MAX - found.started_ms,
        );
        match &chosen {
            Some((_, _, other)) if !same_trace(other, &remembered) => {
                return Err(Decision::Ambiguous);
            }
            // Equal in everything: what came last, as a retry does.
            Some((best, _, _)) if *best < rank => {}
            _ => chosen = Some((rank, found.request, remembered)),
        }
    }
    match chosen {
        Some((_, request, remembered)) => Ok((request, remembered)),
        None => Err(Decision::Unknown),
    }
}

/// There are requests among those found, and none is of the trace of this one.
pub fn all_of_other_traces(found: &[Found], one: &Remembered) -> bool {
    let others = found
        .iter()
        .filter_map(|found| Remembered::decode(&found.payload));
    let same = others.map(|other| same_trace(&other, one));
    same.reduce(|a, b| a || b) == Some(false)
}

/// The span is another one than the call names, the request has been answered,
/// age. The least is the best.
type Rank = (bool, bool, u64);

/// A span that the call itself names: its trace context has one, if in parts
/// or in another form.
pub fn named_span(checked: &Checked<'_>) -> Option<SpanId> {
    let fragments = checked.fragments;
    fragments
        .and_then(|fragments| fragments.span.or(fragments.parent))
        .or(checked.w3c.map(|w3c| w3c.span))
}

fn same_trace(a: &Remembered, b: &Remembered) -> bool {
    match (a.b3.ids, b.b3.ids) {
        (Some(a), Some(b)) => a.trace.same(b.trace),
        // Nothing says that they belong together, but for that all is the same.
        (None, None) => {
            (a.b3.sampling, &a.copied) == (b.b3.sampling, &b.copied)
                && request_id::same(&a.request_id, &b.request_id)
        }
        _ => false,
    }
}

/// What to do with a call, once the request it belongs to is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relayed {
    /// What, and why.
    pub decision: Decision,
    /// What the call is to say in B3, and in which forms; `None` to leave it.
    pub says: Option<(B3, Forms)>,
    /// The headers of the copy list that it lacks, and the request ID.
    pub edits: Vec<Edit>,
}

impl Relayed {
    /// Nothing, for this reason.
    pub fn not(decision: Decision) -> Self {
        Self {
            decision,
            says: None,
            edits: Vec::new(),
        }
    }

    /// Something would be written.
    pub fn writes(&self) -> bool {
        self.says.is_some() || !self.edits.is_empty()
    }
}

/// What to copy onto a call, once the request it belongs to is known: in the
/// forms of that request (or those that `emit` lists), and in those that the
/// call has begun itself.
///
/// `new_span`: eight random bytes for a span of the call's own.
pub fn decide(
    headers: &TraceHeaders<'_>,
    checked: &Checked<'_>,
    remembered: &Remembered,
    config: &Config,
    new_span: impl FnOnce() -> u64,
) -> Relayed {
    let mut b3 = remembered.b3;
    let mut decision = Decision::Copied;
    if let Some(fragments) = checked.fragments.filter(|fragments| !fragments.malformed) {
        if !belongs(&fragments, remembered.b3.ids) {
            return Relayed::not(Decision::Conflict);
        }
        decision = Decision::Completed;
    }
    if let Some(decided) = checked.b3.sampling.decided() {
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
    let says = if remembered.b3.is_empty() {
        decision = Decision::NoContext;
        None
    } else {
        let begun = Forms {
            w3c: false,
            ..checked.forms
        };
        Some((b3, config.emit.unwrap_or(remembered.forms).and(begun)))
    };
    let mut edits = copied(headers, remembered, config.emit);
    if let Some(edit) = restored(headers, remembered) {
        edits.push(edit);
    }
    Relayed {
        decision,
        says,
        edits,
    }
}

/// The headers of the copy list that a call lacks.
pub fn copied(
    headers: &TraceHeaders<'_>,
    remembered: &Remembered,
    emit: Option<Forms>,
) -> Vec<Edit> {
    let lacks = |name: &str| match name {
        // W3C's two belong together, and give way to one made from B3.
        header::TRACEPARENT | header::TRACESTATE => {
            let made = name == header::TRACEPARENT && emit.is_some_and(|emit| emit.w3c);
            headers.traceparent.value().is_none() && !made
        }
        _ => !headers
            .copied
            .iter()
            .any(|(present, _)| *present == name.as_bytes()),
    };
    let copied = remembered.copied.iter().filter(|(name, _)| lacks(name));
    copied
        .map(|(name, value)| Edit::Add(name.clone().into(), value.clone()))
        .collect()
}

/// The request ID of the inbound request, where Envoy has made up a new one for
/// the call. One that has not Envoy's form is the application's own, and stays.
fn restored(headers: &TraceHeaders<'_>, remembered: &Remembered) -> Option<Edit> {
    let given = headers.request_id.value().unwrap_or_default();
    let known = &remembered.request_id;
    let other = !known.is_empty() && !request_id::same(given, known);
    (other && (given.is_empty() || request_id::is_envoys(given)))
        .then(|| Edit::set(header::REQUEST_ID, known.as_slice()))
}

/// What a call breaks of the rules about propagation, beside the request that
/// it was made for.
pub fn propagation<'a>(
    headers: &TraceHeaders<'a>,
    checked: &Checked<'a>,
    remembered: &Remembered,
) -> Option<Finding<'a>> {
    let found = |rule, multi: (&'static str, Field<'a>)| {
        let (header, field) = match checked.forms.single {
            true => (header::B3, headers.b3),
            false => multi,
        };
        let value = field.value().unwrap_or_default();
        Some(Finding {
            rule,
            header,
            value,
        })
    };
    let trace_id = (header::TRACE_ID, headers.trace_id);
    let decision = |b3: &B3| b3.sampling.decided();
    match (checked.b3.ids, remembered.b3.ids) {
        (None, Some(_)) => found(Rule::P01, trace_id),
        (Some(ids), Some(inbound)) if !ids.trace.same(inbound.trace) => found(Rule::P02, trace_id),
        (Some(_), Some(_)) => match (decision(&checked.b3), decision(&remembered.b3)) {
            (Some(now), Some(then)) if now != then => {
                found(Rule::P03, (header::SAMPLED, headers.sampled))
            }
            _ => None,
        },
        _ => None,
    }
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

/// The edits after which a request says just `b3`, in these forms. Headers
/// that are right already are not touched, nor are those of a form in `kept`, nor
/// a `traceparent` that is there: it may be of a span that the application
/// reports itself.
///
/// Debug is written as `x-b3-flags: 1` and `x-b3-sampled: 1`: the specification
/// asks for the first alone, but Envoy's Zipkin tracer reads only the second.
pub fn rewrite(headers: &TraceHeaders<'_>, b3: &B3, forms: Forms, kept: Forms) -> Vec<Edit> {
    let hex = |write: &dyn Fn(&mut Vec<u8>)| {
        let mut text = Vec::with_capacity(32);
        write(&mut text);
        text
    };
    let ids = b3.ids.filter(|_| forms.multi);
    let sampled = b3.sampling.decided().filter(|_| forms.multi);
    let sampled = sampled.map(|yes| if yes { b"1".to_vec() } else { b"0".to_vec() });
    let debug = (forms.multi && b3.sampling == Sampling::Debug).then(|| b"1".to_vec());
    let wanted: [(&'static str, Field<'_>, Option<Vec<u8>>); 6] = [
        (
            header::TRACE_ID,
            headers.trace_id,
            ids.map(|ids| hex(&|to| ids.trace.write(to))),
        ),
        (
            header::SPAN_ID,
            headers.span_id,
            ids.map(|ids| hex(&|to| ids.span.write(to))),
        ),
        (
            header::PARENT_SPAN_ID,
            headers.parent_span_id,
            ids.and_then(|ids| ids.parent)
                .map(|id| hex(&|to| id.write(to))),
        ),
        (header::SAMPLED, headers.sampled, sampled),
        (header::FLAGS, headers.flags, debug),
        (
            header::B3,
            headers.b3,
            forms.single.then(|| b3.single()).flatten(),
        ),
    ];
    let mut edits = Vec::with_capacity(5);
    for (name, field, value) in wanted {
        if (name == header::B3 && kept.single) || (name != header::B3 && kept.multi) {
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
    if let Some(ids) = b3.ids.filter(|_| forms.w3c && !kept.w3c) {
        if headers.traceparent.value().is_none() {
            edits.push(Edit::set(header::TRACEPARENT, w3c::write(ids, b3.sampling)));
        }
    }
    edits
}
