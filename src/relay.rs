//! What is remembered of an inbound request, what is copied onto a call, and
//! when a call is left alone.
//!
//! A wrong stitch is worse than a missing one: [`decide`] copies only what it
//! is sure of, and names its reason either way.

use crate::b3::{B3, Ids, Sampling, SpanId, TraceId};
use crate::check::{Checked, Finding, Forms, Fragments};
use crate::header::{self, Edit, Field, TraceHeaders};
use crate::rules::Rule;
use crate::store::Found;

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
    /// The headers of the copy list, repeated ones included.
    pub copied: Vec<(String, Vec<u8>)>,
}

impl Remembered {
    /// From an inbound request. Also returns how many headers of the copy list
    /// had no room ([`COPIED_MOST`]).
    pub fn of(headers: &TraceHeaders<'_>, checked: &Checked<'_>, copy: &[String]) -> (Self, usize) {
        let mut room = COPIED_MOST;
        let mut dropped = 0;
        let mut copied = Vec::new();
        for (index, value) in &headers.copied {
            let Some(name) = copy.get(*index) else {
                continue;
            };
            match room.checked_sub(name.len() + value.len()) {
                Some(rest) => {
                    room = rest;
                    copied.push((name.clone(), value.to_vec()));
                }
                None => dropped += 1,
            }
        }
        let remembered = Self {
            b3: checked.b3,
            forms: checked.forms,
            copied,
        };
        (remembered, dropped)
    }

    /// Encodes for the store: flags u8, then trace (16 bytes), span (8) and
    /// parent (8) as the flags say, then for each copied header its name's
    /// length u8, name, value's length u16, value; integers big-endian.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(48);
        let sampling = match self.b3.sampling {
            Sampling::Defer => 0,
            Sampling::Deny => 1,
            Sampling::Accept => 2,
            Sampling::Debug => 3,
        };
        let ids = self.b3.ids;
        let parent = ids.and_then(|ids| ids.parent);
        let bits = [
            ids.is_some(),
            ids.is_some_and(|ids| ids.trace.is_wide()),
            parent.is_some(),
            self.forms.multi,
            self.forms.single,
        ];
        let flags = bits
            .iter()
            .fold(sampling, |flags, bit| (flags << 1) | u8::from(*bit));
        out.push(flags);
        if let Some(ids) = ids {
            out.extend_from_slice(&ids.trace.value().to_be_bytes());
            out.extend_from_slice(&ids.span.value().to_be_bytes());
        }
        if let Some(parent) = parent {
            out.extend_from_slice(&parent.value().to_be_bytes());
        }
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
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (flags, mut rest) = bytes.split_first()?;
        let bit = |n: u8| flags & (1 << n) != 0;
        let mut ids = None;
        if bit(4) {
            let trace = u128::from_be_bytes(take(&mut rest)?);
            let span = u64::from_be_bytes(take(&mut rest)?);
            let parent = match bit(2) {
                true => Some(SpanId::new(u64::from_be_bytes(take(&mut rest)?))?),
                false => None,
            };
            ids = Some(Ids {
                trace: TraceId::new(trace, bit(3))?,
                span: SpanId::new(span)?,
                parent,
            });
        }
        let sampling = match flags >> 5 {
            0 => Sampling::Defer,
            1 => Sampling::Deny,
            2 => Sampling::Accept,
            _ => Sampling::Debug,
        };
        let mut copied = Vec::new();
        while !rest.is_empty() {
            let [n] = take(&mut rest)?;
            let (name, after) = rest.split_at_checked(usize::from(n))?;
            rest = after;
            let v = u16::from_be_bytes(take(&mut rest)?);
            let (value, after) = rest.split_at_checked(usize::from(v))?;
            rest = after;
            copied.push((String::from_utf8(name.to_vec()).ok()?, value.to_vec()));
        }
        Some(Self {
            b3: B3 { ids, sampling },
            forms: Forms {
                multi: bit(1),
                single: bit(0),
            },
            copied,
        })
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, after) = rest.split_first_chunk::<N>()?;
    *rest = after;
    Some(*taken)
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
    NoKey, "no_key", "the call carries no request ID to look up: left alone";
    Unknown, "unknown", "no request with this request ID is being served: left alone (so also where the application forwards none, and Envoy has made up a new one)";
    NoContext, "no_context", "the inbound request came without a context: nothing to copy";
    Ambiguous, "ambiguous", "requests of different traces with this request ID are being served: left alone";
    Conflict, "conflict", "the call carries a part of some other context: left alone";
    Malformed, "malformed", "the call carries identifiers that cannot be read: left alone";
    SamplingOnly, "sampling_only", "the call says b3: 0, 1 or d, a decision of its own: left alone";
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

/// The one request that a call belongs to, among those found under its key.
///
/// Several requests of one trace (a loop, a diamond, a retry) share their key:
/// the one that began last is taken, and those still being served come before
/// those answered. The trace is right either way; the parent may be another
/// span of it.
pub fn choose(found: &[Found]) -> Result<Remembered, Decision> {
    let mut chosen: Option<(bool, u64, Remembered)> = None;
    for found in found {
        let Some(remembered) = Remembered::decode(&found.payload) else {
            continue;
        };
        let rank = (!found.ended, found.started_ms);
        chosen = match chosen {
            None => Some((rank.0, rank.1, remembered)),
            Some((_, _, other)) if !same_trace(&other, &remembered) => {
                return Err(Decision::Ambiguous);
            }
            Some(better) if (better.0, better.1) > rank => Some(better),
            Some(_) => Some((rank.0, rank.1, remembered)),
        };
    }
    match chosen {
        Some((_, _, remembered)) => Ok(remembered),
        None => Err(Decision::Unknown),
    }
}

fn same_trace(a: &Remembered, b: &Remembered) -> bool {
    match (a.b3.ids, b.b3.ids) {
        (Some(a), Some(b)) => a.trace.same(b.trace),
        (None, None) => a.b3.sampling == b.b3.sampling,
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
    /// The headers of the copy list that it lacks.
    pub edits: Vec<Edit>,
}

/// What to copy onto a call, once the request it belongs to is known: in the
/// forms of that request, and in those that the call has begun itself.
pub fn decide(
    headers: &TraceHeaders<'_>,
    checked: &Checked<'_>,
    remembered: &Remembered,
    copy: &[String],
) -> Relayed {
    let mut b3 = remembered.b3;
    let mut decision = Decision::Copied;
    if let Some(fragments) = checked.fragments.filter(|fragments| !fragments.malformed) {
        if !belongs(&fragments, remembered.b3.ids) {
            return Relayed {
                decision: Decision::Conflict,
                says: None,
                edits: Vec::new(),
            };
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
    let says = if remembered.b3.is_empty() {
        decision = Decision::NoContext;
        None
    } else {
        Some((b3, remembered.forms.and(checked.forms)))
    };
    let mut edits = Vec::new();
    for (name, value) in &remembered.copied {
        let Some(index) = copy.iter().position(|wanted| wanted == name) else {
            continue;
        };
        if !headers.copied.iter().any(|(present, _)| *present == index) {
            edits.push(Edit::Add(name.clone().into(), value.clone()));
        }
    }
    Relayed {
        decision,
        says,
        edits,
    }
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
/// that are right already are not touched.
///
/// Debug is written as `x-b3-flags: 1` and `x-b3-sampled: 1`: the specification
/// asks for the first alone, but Envoy's Zipkin tracer reads only the second.
pub fn rewrite(headers: &TraceHeaders<'_>, b3: &B3, forms: Forms) -> Vec<Edit> {
    let hex = |write: &dyn Fn(&mut Vec<u8>)| {
        let mut text = Vec::with_capacity(32);
        write(&mut text);
        text
    };
    let ids = b3.ids.filter(|_| forms.multi);
    let sampled = b3.sampling.decided();
    let sampled = sampled.map(|yes| if yes { b"1".to_vec() } else { b"0".to_vec() });
    let debug = (b3.sampling == Sampling::Debug).then(|| b"1".to_vec());
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
        (
            header::SAMPLED,
            headers.sampled,
            sampled.filter(|_| forms.multi),
        ),
        (header::FLAGS, headers.flags, debug.filter(|_| forms.multi)),
        (header::B3, headers.b3, b3.single().filter(|_| forms.single)),
    ];
    let mut edits = Vec::with_capacity(4);
    for (name, field, value) in wanted {
        match value {
            Some(value) if field.repeated() || field.value() != Some(value.as_slice()) => {
                edits.push(Edit::set(name, value));
            }
            None if field.value().is_some() => edits.push(Edit::remove(name)),
            _ => {}
        }
    }
    edits
}
