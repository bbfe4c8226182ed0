//! The request that a call belongs to, among those found under its keys.

use super::Decision;
use super::stored::{Headers, StoredContext};
use crate::b3::{Ids, SpanId};
use crate::request_id;
use crate::rules::Extracted;
use crate::store::{Candidates, Found, MatchedBy, RequestRef};

/// The spans that a call names, which tell requests of one trace apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpanRefs {
    /// Its own: that of its request, if the application forwards the context as it is.
    span: Option<SpanId>,
    /// The same, of its `traceparent`.
    w3c: Option<SpanId>,
    /// The parent of its own: that of its request, if the application's tracing makes
    /// a span for each call.
    parent: Option<SpanId>,
}

impl SpanRefs {
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

    /// The call names the span of this request.
    pub fn names(self, found: &Found) -> bool {
        let stored = StoredContext::decode_context(&found.context);
        let span = stored.and_then(|stored| stored.b3.ids).map(|ids| ids.span);
        self.fits(span) != Self::NOT
    }

    /// How well a request's span fits: 0 is best, [`SpanRefs::NOT`] is not at all.
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
    pub request: (RequestRef, u16),
    /// How it was found.
    pub matched_by: MatchedBy,
    /// What of it may be copied.
    pub stored: StoredContext,
    /// The call names its span.
    pub by_span: bool,
    /// The spans of all that it was chosen among; `None` if there may be others.
    pub spans: Option<Vec<SpanId>>,
}

/// What is stored, in place of a context, under a trace that began in this pod: which
/// request it belongs to is not known.
pub const OF_ANY: &[u8] = &[0xff];
/// What is stored, in place of a context, under the further keys of a request, of which its
/// calls may have any: a call with such a key belongs to it or to another request.
pub const OF_SOME: &[u8] = &[0xfe];

/// The one request that a call belongs to, among those found under its keys.
///
/// Several requests of one trace (a loop, a fan-out, a retry) may share their keys.
/// Then that one is taken whose span the call names; or else, of those still
/// being served rather than answered, that which began last: in a loop the others
/// wait for it. The trace is right in any case; of siblings the parent may be the
/// other one's span.
///
/// A request whose grace is over is none of them, and a call may be a late one of it all the
/// same: if it is of another trace, or if the call names its span, the call belongs to none.
///
/// That is not enough to hand over the headers of the copy list, nor the request ID, nor
/// what the trace context has beside the trace (a `traceparent` of another trace, above
/// all). Where the call does not name the span of one request, only those are left to copy
/// that are the same in all; and none if there may be requests that are not known.
///
/// `headers`: those that were remembered of a request; `None` if they are lost.
pub fn match_request(
    candidates: &Candidates,
    headers: impl Fn(&Found) -> Option<Vec<u8>>,
    named: SpanRefs,
) -> Result<Match, Decision> {
    let mut all = of_one_trace(candidates, &headers)?;
    let spans: Vec<SpanId> = all.iter().filter_map(Candidate::span).collect();
    let Some(at) = best(&all, named) else {
        return Err(Decision::Unknown);
    };
    let mut best = all.swap_remove(at);
    if best.is_past {
        return Err(Decision::Unknown);
    }
    let by_span = named.fits(best.span()) != SpanRefs::NOT;
    if best.stored.b3.ids.is_some() {
        read_headers(&mut best.stored, headers(best.found));
    }
    keep_certain(&mut best, all, by_span, &headers);
    let Candidate {
        found, mut stored, ..
    } = best;
    if !candidates.complete && !by_span {
        stored.opaque.clear();
        stored.copied.clear();
        stored.request_id.clear();
    }
    Ok(Match {
        request: (found.request, found.bucket),
        matched_by: found.matched_by,
        stored,
        by_span,
        spans: candidates.complete.then_some(spans),
    })
}

/// If all have been answered but one: that one. If all have been: one that nobody has.
pub fn last_of(candidates: &Candidates) -> Option<RequestRef> {
    let mut last = None;
    for found in &candidates.found {
        let is_own = found.matched_by == MatchedBy::Own && !is_unsure(found);
        if !is_own || (!found.ended && last.is_some()) {
            return None;
        }
        if !found.ended {
            last = Some(found.request);
        }
    }
    candidates.complete.then_some(last.unwrap_or((u16::MAX, 0)))
}

/// The call may be of another request than the one that was found.
fn is_unsure(found: &Found) -> bool {
    [OF_ANY, OF_SOME].contains(&&*found.context)
}

/// The candidates, decoded, if all are of one trace.
fn of_one_trace<'a>(
    candidates: &'a Candidates,
    headers: impl Fn(&Found) -> Option<Vec<u8>>,
) -> Result<Vec<Candidate<'a>>, Decision> {
    // If the trace began in this pod, an inbound request with it may be the application that
    // calls itself. The call may be of that request, or of the earlier one.
    let is_own = |found: &Found| found.matched_by == MatchedBy::Own && !is_unsure(found);
    if candidates.found.iter().any(is_unsure) && candidates.found.iter().any(is_own) {
        return Err(Decision::Ambiguous);
    }
    if candidates.found.is_empty() {
        return Err(Decision::Unknown);
    }
    let found = candidates.found.iter().map(|found| (found, false));
    let found = found.chain(candidates.past.iter().map(|past| (past, true)));
    let decoded = found.filter_map(|(found, is_past)| {
        let stored = StoredContext::decode_context(&found.context)?;
        let candidate = Candidate {
            found,
            stored,
            is_past,
        };
        Some(candidate)
    });
    let mut all: Vec<Candidate<'_>> = decoded.collect();
    if all.iter().all(|one| one.stored.b3.ids.is_none()) {
        // Without IDs, requests belong together if everything stored of them is equal.
        for one in &mut all {
            read_headers(&mut one.stored, headers(one.found));
        }
    }
    let Some((first, others)) = all.split_first() else {
        return Err(Decision::Unknown);
    };
    let is_of_trace = |other: &Candidate<'_>| same_trace(&first.stored, &other.stored);
    match others.iter().all(is_of_trace) {
        true => Ok(all),
        false => Err(Decision::Ambiguous),
    }
}

/// First the request whose span the call names, then one whose grace is not over, then one
/// still in flight, then the newest; among equals the one that was stored last, as a retry
/// is.
fn best(all: &[Candidate<'_>], named: SpanRefs) -> Option<usize> {
    let rank = |one: &Candidate<'_>| {
        (
            named.fits(one.span()),
            one.is_past,
            one.found.ended,
            u64::MAX - one.found.started_ms,
        )
    };
    let ranked = all.iter().enumerate().rev();
    let best = ranked.min_by_key(|(_, one)| rank(one));
    best.map(|(at, _)| at)
}

/// Leaves of the best candidate what it shares with all others that the call may be of.
fn keep_certain(
    best: &mut Candidate<'_>,
    mut others: Vec<Candidate<'_>>,
    by_span: bool,
    headers: impl Fn(&Found) -> Option<Vec<u8>>,
) {
    if by_span {
        // Attempts of one request have one span, and may differ in nothing else.
        others.retain(|other| other.span() == best.span());
    }
    if !best.stored.copied.is_empty() || !best.stored.opaque.is_empty() {
        let with_ids = |other: &&mut Candidate<'_>| other.stored.b3.ids.is_some();
        for other in others.iter_mut().filter(with_ids) {
            read_headers(&mut other.stored, headers(other.found));
        }
    }
    if !others.is_empty() {
        keep_common(&mut best.stored, others.iter().map(|other| &other.stored));
    }
}

/// A request that a call may belong to.
struct Candidate<'a> {
    found: &'a Found,
    stored: StoredContext,
    /// Its grace is over.
    is_past: bool,
}

impl Candidate<'_> {
    fn span(&self) -> Option<SpanId> {
        self.stored.b3.ids.map(|ids| ids.span)
    }
}

/// What was remembered of a request besides its context. Of what is lost nothing is
/// copied: nobody knows what it was.
fn read_headers(stored: &mut StoredContext, headers: Option<Vec<u8>>) {
    let is_read = headers.is_some_and(|headers| stored.decode_headers(&headers));
    if !is_read {
        stored.opaque.clear();
        stored.copied.clear();
    }
}

/// Leaves of the headers, and of the request ID, what is the same in all.
fn keep_common<'a>(
    stored: &mut StoredContext,
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
    common(&mut stored.opaque, |other| &other.opaque);
    common(&mut stored.copied, |other| &other.copied);
    let id = &stored.request_id;
    let mut others = others.clone();
    if !others.all(|other| request_id::same(&other.request_id, id)) {
        stored.request_id = Vec::new();
    }
}

/// There are requests among those found, and none is of the trace of this one.
pub fn all_of_other_traces(found: &[Found], one: &StoredContext) -> bool {
    let others = found
        .iter()
        .filter(|found| found.matched_by == MatchedBy::Own)
        .filter_map(|found| StoredContext::decode_context(&found.context));
    let same = others.map(|other| other.b3.ids.is_some() && same_trace(&other, one));
    same.reduce(|a, b| a || b) == Some(false)
}

fn same_trace(a: &StoredContext, b: &StoredContext) -> bool {
    match (a.b3.ids, b.b3.ids) {
        (Some(a), Some(b)) => a.trace.same(b.trace),
        // Without IDs, that all fields are equal is the only evidence.
        (None, None) => {
            (a.b3.sampling, &a.opaque, &a.copied) == (b.b3.sampling, &b.opaque, &b.copied)
                && request_id::same(&a.request_id, &b.request_id)
        }
        _ => false,
    }
}
