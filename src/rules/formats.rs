//! One format beside another: `b3`, `x-b3-*` and `traceparent` of one request.

use super::check::{Checker, beginning};
use super::multi::MultiFormat;
use super::single::SingleFormat;
use super::{Formats, Fragments, Rule};
use crate::b3::{B3, Ids, Sampling, TraceId};
use crate::bytes::contains;
use crate::headers::{self, Field, TraceHeaders};
use crate::w3c::TraceParent;

impl<'a> Checker<'a> {
    pub(super) fn w3c(
        &mut self,
        field: Field<'a>,
        b3: &B3,
        fragments: Option<Fragments>,
    ) -> Option<TraceParent> {
        let value = field.value()?;
        let name = headers::TRACEPARENT;
        // As the specification has it: none of them is taken.
        if field.repeated() || contains(beginning(value), b',') {
            self.found(Rule::W06, name, value);
            return None;
        }
        let Some(read) = TraceParent::read(value) else {
            self.found(Rule::W04, name, value);
            return None;
        };
        match b3.ids {
            Some(ids) if !ids.trace.same(read.trace) => self.found(Rule::W01, name, value),
            Some(_) => {
                if b3.sampling.decided().is_some_and(|yes| yes != read.sampled) {
                    self.found(Rule::W02, name, value);
                }
                if is_older(read, b3) {
                    self.found(Rule::W05, name, value);
                }
            }
            None if fragments.is_some_and(|fragments| fragments.malformed) => {
                self.found(Rule::W03, name, value);
            }
            None => {}
        }
        Some(read)
    }

    /// The two formats side by side, the one reading of both, and which of them is
    /// stale.
    pub(super) fn both(
        &mut self,
        headers: &TraceHeaders<'a>,
        multi: &MultiFormat,
        single: SingleFormat,
    ) -> (B3, Formats) {
        let name = headers::B3;
        let value = headers.b3.value().unwrap_or_default();
        let multi = multi.b3;
        let mut stale = Formats::default();
        let b3 = match single {
            SingleFormat::Absent | SingleFormat::Malformed => multi,
            SingleFormat::Read(single) => {
                let (ours, theirs) = (single.sampling.decided(), multi.sampling.decided());
                if ours.is_some() && theirs.is_some() && ours != theirs {
                    self.found(Rule::B05, name, value);
                }
                if single.ids.is_some() && ours.is_none() && theirs.is_some() {
                    self.found(Rule::B08, name, value);
                }
                let mut ids = single.ids.or(multi.ids);
                if let (Some(one), Some(other)) = (single.ids, multi.ids) {
                    stale = older(&one, &other);
                    let newer = if stale.single { other } else { one };
                    if one.trace.same(other.trace) {
                        ids = Some(newer);
                        if one.span != other.span {
                            let multi = (headers::SPAN_ID, headers.span_id);
                            let single = (name, headers.b3);
                            let (name, field) = if stale.multi { multi } else { single };
                            self.found(Rule::B03, name, field.value().unwrap_or_default());
                        } else if ours.or(theirs).is_some() {
                            if one.parent.is_none() && other.parent.is_some() {
                                self.found(Rule::B09, name, value);
                            }
                            let parent = one.parent.or(other.parent);
                            ids = Some(Ids { parent, ..one });
                        }
                    } else if is_cut(one.trace, other.trace) {
                        self.found(Rule::B04, name, value);
                        // The longer one is the original.
                        let wide = one.trace.value().max(other.trace.value());
                        let trace = TraceId::new(wide, true).unwrap_or(one.trace);
                        let is_one = one.span == other.span && ours.or(theirs).is_some();
                        let parent = newer.parent.or(other.parent.filter(|_| is_one));
                        ids = Some(Ids {
                            trace,
                            parent,
                            ..newer
                        });
                    } else {
                        self.found(Rule::B02, name, value);
                    }
                } else if multi.ids.is_some() {
                    self.found(Rule::B07, name, value);
                }
                let (first, second) = match stale.single {
                    true => (multi.sampling, single.sampling),
                    false => (single.sampling, multi.sampling),
                };
                let sampling = match (first, second) {
                    (Sampling::Defer, other) => other,
                    // One decision, of which debug says more.
                    (Sampling::Accept, Sampling::Debug) => Sampling::Debug,
                    (decided, _) => decided,
                };
                if sampling == Sampling::Defer && single.ids.is_some() {
                    // Without a decision there is no place in b3 for a parent.
                    ids = ids.map(|ids| Ids {
                        parent: None,
                        ..ids
                    });
                }
                B3 { ids, sampling }
            }
        };
        if !b3.is_empty() && b3.ids.is_some() == (b3.sampling == Sampling::Defer) {
            let (name, value) = match headers.multi().iter().find(|(_, f)| f.value().is_some()) {
                Some((name, field)) => (*name, field.value().unwrap_or_default()),
                None => (name, value),
            };
            self.found(Rule::S06, name, value);
        }
        (b3, stale)
    }
}

/// The `traceparent` is of the trace, and names the parent of its span.
pub(super) fn is_older(w3c: TraceParent, b3: &B3) -> bool {
    b3.ids
        .is_some_and(|ids| ids.trace.same(w3c.trace) && ids.parent == Some(w3c.span))
}

/// One of the two trace IDs is the other, cut to its low 64 bits somewhere.
fn is_cut(one: TraceId, other: TraceId) -> bool {
    let narrow = |trace: TraceId| trace.value() == u128::from(trace.low());
    one.low() == other.low() && (narrow(one) || narrow(other))
}

/// Which of the two formats names an older span: the parent of the other's. None
/// where they are of different traces, or it cannot be told.
fn older(single: &Ids, multi: &Ids) -> Formats {
    let same = single.trace.same(multi.trace) || is_cut(single.trace, multi.trace);
    let single_is = same && multi.parent == Some(single.span);
    let multi_is = same && single.parent == Some(multi.span);
    Formats {
        single: single_is && !multi_is,
        multi: multi_is && !single_is,
        w3c: false,
    }
}
