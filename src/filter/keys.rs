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
    /// None, for this reason.
    Nobody(Decision, Earlier),
    /// None is known, but one may have been removed from the store for lack of room; or the
    /// request has ended, and its grace is over.
    Forgotten(Decision),
}

/// What is known of earlier calls with the same trace ID, if that is of the application's own.
#[derive(Default)]
pub(super) struct Earlier {
    /// The request that one of them was attributed to.
    pub(super) request: Option<Match>,
    /// When one of them was left alone ([`relay::OF_ANY`]), in milliseconds.
    pub(super) left_alone_ms: Option<u64>,
    /// Requests of several traces have a key of the call: [`relay::last_of`] them.
    pub(super) last: Option<RequestRef>,
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
        if all {
            store.refresh(host, || host.now_ms());
        }
        let is_key = |key: &Key| all || !request.headers.has_new_request_id || !key.is_request_id();
        let mut keys = request.keys(&self.config, Formats::default());
        keys.retain(is_key);
        let mut look_up = LookUp {
            store,
            host,
            request,
            spans: SpanRefs::of(&request.extracted),
            all,
            is_forgotten: false,
            names_unknown: false,
            by_trace: false,
            left_alone_ms: None,
            last: None,
        };
        let found = look_up.by_first_key(&keys);
        let (left_alone_ms, last) = (look_up.left_alone_ms, look_up.last);
        let earlier = |request| Earlier {
            request,
            left_alone_ms,
            last,
        };
        match found {
            Ok(one) if one.matched_by == MatchedBy::Guess => {
                ByKeys::Nobody(Decision::Unknown, earlier(Some(one)))
            }
            Ok(one) => look_up.beside_other_keys(&keys, one),
            // It is of one that is over, or may be of one that had to go.
            Err(decision) if look_up.is_forgotten => ByKeys::Forgotten(decision),
            Err(decision) => ByKeys::Nobody(decision, earlier(None)),
        }
    }
}

/// A look-up under way.
struct LookUp<'a, H> {
    store: &'a mut Store,
    host: &'a H,
    request: &'a Request<'a>,
    /// The spans that the call names.
    spans: SpanRefs,
    /// See [`Filter::by_keys`].
    all: bool,
    /// A key is one of a request that has been forgotten, or may be.
    is_forgotten: bool,
    /// A key of the application's own, not of a trace, is one of no request.
    names_unknown: bool,
    /// The key that decided was a trace, which several requests may have.
    by_trace: bool,
    /// See [`Earlier`].
    left_alone_ms: Option<u64>,
    /// See [`Earlier`].
    last: Option<RequestRef>,
}

impl<H: Host> LookUp<'_, H> {
    /// The requests with this key; for the rules alone, until the one is found whose span the
    /// call names.
    fn candidates(&mut self, key: &Key) -> Candidates {
        let is_enough = |found: &Found| !self.all && self.spans.names(found);
        let now_ms = || self.host.now_ms();
        self.store.find_until(self.host, &now_ms, key, &is_enough)
    }

    /// The request of the call among those that have the first key that any has.
    fn by_first_key(&mut self, keys: &[Key]) -> Result<Match, Decision> {
        let mut among = Candidates::default();
        let mut result = Err(Decision::NoKey);
        for key in keys {
            let mut candidates = self.candidates(key);
            // A late call names its request: it is of no other.
            self.is_forgotten |= !candidates.complete || !candidates.past.is_empty();
            if let Some(first) = candidates.found.first()
                && first.context == relay::OF_ANY
            {
                self.left_alone_ms = Some(first.started_ms);
            }
            if candidates.found.is_empty() {
                let is_made_up = key.is_request_id() && self.request.headers.has_new_request_id;
                self.names_unknown |= !key.is_trace() && !is_made_up;
            }
            if !among.found.is_empty() {
                let is_known =
                    |found: &Found| among.found.iter().any(|one| one.request == found.request);
                candidates.found.retain(is_known);
                if candidates.found.is_empty() {
                    continue;
                }
            }
            match self.match_request(&candidates, key) {
                Err(Decision::Unknown | Decision::Ambiguous) if result.is_ok() => {}
                found => {
                    if matches!(found, Err(Decision::Ambiguous)) {
                        self.last = relay::last_of(&candidates);
                    }
                    result = found;
                    self.by_trace = key.is_trace();
                }
            }
            let is_one = candidates.complete && candidates.found.len() == 1;
            among = candidates;
            if result.as_ref().is_ok_and(|found| found.by_span || is_one) {
                break;
            }
        }
        result
    }

    /// The request of the call among these, which have this key.
    fn match_request(&mut self, candidates: &Candidates, key: &Key) -> Result<Match, Decision> {
        let headers = |found: &Found| self.store.headers(self.host, found);
        let found = relay::match_request(candidates, headers, self.spans)?;
        let missing = &candidates.missing;
        if missing.is_empty() || found.by_span || key.is_trace() {
            return Ok(found);
        }
        // One that is not stored under this key may be of another trace.
        let trace = found.stored.b3.ids.ok_or(Decision::Ambiguous)?.trace;
        let now_ms = || self.host.now_ms();
        let of_trace = self.store.find(self.host, &now_ms, &Key::trace(trace));
        let stored = of_trace.found.iter().map(|found| found.request);
        let of_trace: Vec<RequestRef> = stored.chain(of_trace.missing).collect();
        match missing.iter().all(|request| of_trace.contains(request)) {
            true => Ok(found),
            false => Err(Decision::Ambiguous),
        }
    }

    /// What the other keys of the call say to the request that one key has led to.
    fn beside_other_keys(&mut self, keys: &[Key], mut one: Match) -> ByKeys {
        // It may be a late one of another request of the trace, which has been forgotten.
        let names_span = !self.spans.is_empty();
        if self.names_unknown && !one.by_span && (names_span || self.by_trace) {
            one.stored.opaque.clear();
            one.stored.copied.clear();
        }
        let foreign = foreign_trace(self.request, &one.stored);
        for key in keys {
            if foreign.as_ref() == Some(key) {
                // A call is of one request. A trace that nobody came with is the
                // application's own.
                let now_ms = || self.host.now_ms();
                let candidates = self.store.find(self.host, &now_ms, key);
                if relay::all_of_other_traces(&candidates.found, &one.stored) {
                    return ByKeys::Nobody(Decision::Conflict, Earlier::default());
                }
            } else if !one.by_span && !self.spans.is_empty() && key.is_trace() {
                // The span that a call names says more than a key does.
                let candidates = self.candidates(key);
                let other = self.match_request(&candidates, key);
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
