//! Step 3, the second way: finds the inbound request that a call belongs to by its keys.

use super::Filter;
use super::request::Request;
use crate::host::Host;
use crate::relay::{self, Decision, Match, SpanRefs, StoredContext};
use crate::rules::{Extracted, Formats};
use crate::store::key::Key;
use crate::store::{Candidates, Found, MatchedBy, RequestRef, Store};

/// What a look-up by keys has found.
pub(super) enum ByKeys {
    /// The request.
    Found(Match),
    /// None, for this reason. With a match: a trace ID of the application's own, which an
    /// earlier call had that was attributed to this request.
    Nobody(Decision, Option<Match>),
    /// None is known, but one may have been removed from the store for lack of room; or the
    /// request has ended, and its grace is over.
    Forgotten(Decision),
}

impl Filter {
    /// Looks the call up by its keys. The first key that any request has decides; where
    /// several requests have that key, the later keys tell which of them it is.
    ///
    /// With `all`, every worker is asked. Without, this is for the rules alone: only workers
    /// that are already known are asked, none after the request is found whose span the call
    /// names, and a request ID that Envoy has generated for the call is not a key.
    pub(super) fn by_keys(
        &self,
        store: &mut Store,
        host: &impl Host,
        request: &Request<'_>,
        all: bool,
    ) -> ByKeys {
        let spans = SpanRefs::of(&request.extracted);
        let now_ms = || host.now_ms();
        let match_request = |store: &mut Store, candidates: &Candidates, key: &Key| {
            let headers = |found: &Found| store.headers(host, found);
            let found = relay::match_request(candidates, headers, spans)?;
            let missing = &candidates.missing;
            if missing.is_empty() || found.by_span || key.is_trace() {
                return Ok(found);
            }
            // One that is not stored under this key may be of another trace.
            let trace = found.stored.b3.ids.ok_or(Decision::Ambiguous)?.trace;
            let of_trace = store.find(host, &now_ms, &Key::trace(trace));
            let stored = of_trace.found.iter().map(|found| found.request);
            let of_trace: Vec<RequestRef> = stored.chain(of_trace.missing).collect();
            match missing.iter().all(|request| of_trace.contains(request)) {
                true => Ok(found),
                false => Err(Decision::Ambiguous),
            }
        };
        if all {
            store.refresh(host, now_ms);
        }
        let names_span = |found: &Found| !all && spans.names(found);
        let is_key = |key: &Key| all || !request.headers.has_new_request_id || !key.is_request_id();
        let mut keys = request.keys(&self.config, Formats::default());
        keys.retain(is_key);
        let mut among = Candidates::default();
        let mut result = Err(Decision::NoKey);
        let (mut is_forgotten, mut names_unknown) = (false, false);
        for key in &keys {
            let mut candidates = store.find_until(host, &now_ms, key, &names_span);
            if candidates.found.is_empty() {
                // A late call names its request: it is of no other.
                is_forgotten |= !candidates.complete || !candidates.past.is_empty();
                let is_made_up = key.is_request_id() && request.headers.has_new_request_id;
                names_unknown |= !key.is_trace() && !is_made_up;
            }
            if !among.found.is_empty() {
                let is_known =
                    |found: &Found| among.found.iter().any(|one| one.request == found.request);
                candidates.found.retain(is_known);
                if candidates.found.is_empty() {
                    continue;
                }
            }
            match match_request(store, &candidates, key) {
                Err(Decision::Unknown | Decision::Ambiguous) if result.is_ok() => {}
                found => result = found,
            }
            let is_one = candidates.complete && candidates.found.len() == 1;
            among = candidates;
            if result.as_ref().is_ok_and(|found| found.by_span || is_one) {
                break;
            }
        }
        let mut one = match result {
            Ok(one) if one.matched_by == MatchedBy::Guess => {
                return ByKeys::Nobody(Decision::Unknown, Some(one));
            }
            Ok(one) => one,
            // It is of one that is over, or may be of one that had to go.
            Err(decision) if is_forgotten => return ByKeys::Forgotten(decision),
            Err(decision) => return ByKeys::Nobody(decision, None),
        };
        // It may be a late one of another request of the trace, which has been forgotten.
        if names_unknown && !one.by_span && !spans.is_empty() {
            one.stored.opaque.clear();
            one.stored.copied.clear();
        }
        let foreign = foreign_trace(request, &one.stored);
        for key in &keys {
            if foreign.as_ref() == Some(key) {
                // A call is of one request. A trace that nobody came with is the
                // application's own.
                let candidates = store.find(host, &now_ms, key);
                if relay::all_of_other_traces(&candidates.found, &one.stored) {
                    return ByKeys::Nobody(Decision::Conflict, None);
                }
            } else if !one.by_span && !spans.is_empty() && key.is_trace() {
                // The span that a call names says more than a key does.
                let candidates = store.find_until(host, &now_ms, key, &names_span);
                let other = match_request(store, &candidates, key);
                if let Some(other) = other.ok().filter(|other| other.by_span) {
                    return ByKeys::Found(other);
                }
            }
        }
        ByKeys::Found(one)
    }
}

/// The trace ID of the call's `traceparent`, if that is the call's only context and its trace
/// is not the request's.
fn foreign_trace(request: &Request<'_>, one: &StoredContext) -> Option<Key> {
    let Extracted { b3, w3c, .. } = &request.extracted;
    let trace = w3c.filter(|_| b3.ids.is_none())?.trace;
    let same = one.b3.ids.is_some_and(|ids| ids.trace.same(trace));
    (!same).then(|| Key::trace(trace))
}
