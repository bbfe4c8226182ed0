//! The only request in flight, and requests that were aborted.

use super::super::buckets::BUCKETS;
use super::super::names::Name;
use super::judge::KNOWN;
use super::{Exclusive, SILENT_US};

/// The calls of one request that are watched until they return, at most.
pub(super) const OUTSTANDING: usize = 64;

/// How long an aborted request may still make calls, at least and at most.
const ABORTED_MIN_US: u64 = 2_000;
const ABORTED_MAX_US: u64 = 10_000_000;
/// How long calls of any kind may be its own, at least, if it is the first of a route that is
/// not known.
const ANY_KIND_MIN_US: u64 = 1_000_000;
/// Aborted requests that are watched, at most.
const ABORTED: usize = 32;
/// An aborted request is not expected to make a call with a smaller probability.
const UNLIKELY: f32 = 0.02;

/// A call that has not returned.
#[derive(Clone, Copy, Debug)]
pub(super) struct OutstandingCall {
    pub(super) call: u64,
    pub(super) kind: Name,
    /// It is taken for a call of the only request.
    pub(super) own: bool,
}

/// The only request in flight.
#[derive(Clone, Debug)]
pub(super) struct OnlyRequest {
    pub(super) number: u64,
    pub(super) route: Name,
    pub(super) began_us: u64,
    /// For a part of its time others were in flight, or an aborted request may have made
    /// calls: what it has done is not known for certain.
    pub(super) overlapped: bool,
    /// When its last event was: its beginning, or one of its own calls began or returned.
    pub(super) last_event_us: u64,
    /// The last event with the kind of the call, and the last one of another kind; kind 0
    /// is the beginning.
    pub(super) last_events: [(Name, u64); 2],
    /// The number of its own calls, and the calls that have not returned.
    pub(super) made: u8,
    pub(super) outstanding: Vec<OutstandingCall>,
    /// The kind of the last call that has returned, its own or not, and when.
    pub(super) returned: (Name, u64),
    /// By kind: the number of calls, and when the last one came.
    pub(super) calls: Vec<(Name, u8, u64)>,
}

impl OnlyRequest {
    /// It is open for long, as a stream is, and others were in flight beside it: what comes now
    /// may as well be of those.
    pub(super) fn is_old(&self, now_us: u64) -> bool {
        self.overlapped && now_us.saturating_sub(self.began_us) >= SILENT_US
    }

    /// How many calls of a kind it has made, and when the last one was; if there was none,
    /// when the request began.
    pub(super) fn made(&self, kind: Name) -> (usize, u64) {
        let found = self.calls.iter().find(|(known, _, _)| *known == kind);
        found.map_or((0, self.began_us), |(_, made, last_us)| {
            (usize::from(*made), *last_us)
        })
    }

    /// The first of the cells for the state that it is in. `without`: calls of this kind do
    /// not count.
    pub(super) fn first_cell(&self, without: Option<Name>) -> usize {
        let counts = |kind: Name| without != Some(kind);
        let waits = self
            .outstanding
            .iter()
            .any(|call| call.own && counts(call.kind));
        let of_kind = without.map_or(0, |kind| self.made(kind).0);
        let made = usize::from(self.made).saturating_sub(of_kind);
        let state = match self.overlapped {
            true => 0,
            false => 1 + 2 * made.min(2) + usize::from(waits),
        };
        1 + BUCKETS * state
    }

    /// One of its own calls, of this kind, has begun or returned.
    pub(super) fn record_event(&mut self, kind: Name, now_us: u64) {
        let [(last, _), _] = self.last_events;
        if last != kind {
            self.last_events[1] = self.last_events[0];
        }
        self.last_events[0] = (kind, now_us);
        self.last_event_us = now_us;
    }

    /// When its last event was, apart from those of this kind.
    pub(super) fn last_event_without(&self, kind: Name) -> u64 {
        let [(last, last_us), (_, before_us)] = self.last_events;
        if last == kind { before_us } else { last_us }
    }
}

/// A request that was aborted: the application may go on making calls for it.
#[derive(Clone, Debug)]
pub(super) struct AbortedRequest {
    pub(super) route: Name,
    pub(super) until_us: u64,
    /// The calls that it had made, as in [`OnlyRequest::calls`].
    pub(super) calls: Vec<(Name, u8, u64)>,
}

impl Exclusive {
    /// A request was aborted. `only`: what is known of it, if it was the only one.
    pub(super) fn abort(&mut self, route: Name, began_us: u64, only: Option<OnlyRequest>) {
        let now_us = self.now_us;
        let lasted = now_us.saturating_sub(began_us);
        let Some(known) = self.routes.get_mut(usize::from(route)) else {
            return;
        };
        // It may go on for half as long again as the longest request of its route.
        let longest = (1000.0 * known.longest) as u64;
        let mut us = (longest + longest / 2).saturating_sub(lasted);
        us = us.max(longest / 2) + ABORTED_MIN_US;
        if known.requests < KNOWN {
            us = us.max(2 * lasted);
            if known.unknown_until_us == 0 {
                let until_us = us.clamp(ANY_KIND_MIN_US, ABORTED_MAX_US);
                known.unknown_until_us = now_us.saturating_add(until_us);
            }
        }
        let us = us.min(ABORTED_MAX_US);
        let until_us = known.unknown_until_us;
        if self.aborted.len() >= ABORTED {
            self.aborted.remove(0);
        }
        self.aborted.push(AbortedRequest {
            route,
            until_us: now_us.saturating_add(us).max(until_us),
            calls: only
                .filter(|only| !only.overlapped)
                .map_or(Vec::new(), |only| only.calls),
        });
    }

    /// Whether an aborted request may still make a call of this kind.
    pub(super) fn may_be_of_aborted(&self, kind: Name) -> bool {
        self.aborted.iter().any(|aborted| {
            let Some(route) = self.routes.get(usize::from(aborted.route)) else {
                return true;
            };
            if self.now_us < route.unknown_until_us {
                return true;
            }
            let made = aborted.calls.iter().find(|(known, _, _)| *known == kind);
            let made = made.map_or(0, |(_, made, _)| usize::from(*made));
            let per_request = route.calls_of(kind);
            per_request.is_some_and(|calls| calls.probability_of_one_more(made) > UNLIKELY)
        })
    }
}
