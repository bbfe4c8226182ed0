//! The only request in flight, and those that were broken off.

use super::super::buckets::BUCKETS;
use super::super::names::Name;
use super::Exclusive;
use super::judge::KNOWN;

pub(super) const OUTSTANDING: usize = 64;

/// For so long a request may still make calls after it was broken off, at least; for so long
/// the first one of a route that is not known may make calls of any kind; and at most.
const STRAY_US: (u64, u64, u64) = (2_000, 1_000_000, 10_000_000);
/// Requests that were broken off and are watched, at most.
const STRAYS: usize = 32;
/// A stray is not expected to make a call that is less likely.
const UNLIKELY: f32 = 0.02;

/// A call that has not returned, and whether it is taken for one of the request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Out {
    pub(super) call: u64,
    pub(super) kind: Name,
    pub(super) own: bool,
}

/// The only request in flight.
#[derive(Clone, Debug)]
pub(super) struct Solo {
    pub(super) number: u64,
    pub(super) route: Name,
    pub(super) began_us: u64,
    /// Others were in flight at the same time, or may have made calls.
    pub(super) mixed: bool,
    /// The last event of its own; the same, with the kind of call, and the last one before
    /// of another kind. 0 is its beginning.
    pub(super) last_us: u64,
    pub(super) heard: [(Name, u64); 2],
    /// Calls of its own, and those that have not returned.
    pub(super) made: u8,
    pub(super) out: Vec<Out>,
    /// The kind of the last one that has, of whomever, and when.
    pub(super) returned: (Name, u64),
    /// By kind: calls, and when the last one came.
    pub(super) kinds: Vec<(Name, u8, u64)>,
}

impl Solo {
    pub(super) fn made(&self, kind: Name) -> (usize, u64) {
        let found = self.kinds.iter().find(|(known, _, _)| *known == kind);
        found.map_or((0, self.began_us), |(_, made, last_us)| {
            (usize::from(*made), *last_us)
        })
    }

    /// Its first cell. `but`: calls of this kind do not count.
    pub(super) fn cells(&self, but: Option<Name>) -> usize {
        let counts = |kind: Name| but != Some(kind);
        let waits = self.out.iter().any(|out| out.own && counts(out.kind));
        let of_kind = but.map_or(0, |kind| self.made(kind).0);
        let made = usize::from(self.made).saturating_sub(of_kind);
        let state = match self.mixed {
            true => 0,
            false => 1 + 2 * made.min(2) + usize::from(waits),
        };
        1 + BUCKETS * state
    }

    /// Something has happened to it: a call of this kind has begun, or returned.
    pub(super) fn hears(&mut self, kind: Name, now_us: u64) {
        let [(last, _), _] = self.heard;
        if last != kind {
            self.heard[1] = self.heard[0];
        }
        self.heard[0] = (kind, now_us);
        self.last_us = now_us;
    }

    /// When something last happened to it, but for calls of this kind.
    pub(super) fn heard_but(&self, kind: Name) -> u64 {
        let [(last, last_us), (_, before_us)] = self.heard;
        if last == kind { before_us } else { last_us }
    }
}

/// A request that was broken off: the application may go on making calls for it.
#[derive(Clone, Debug)]
pub(super) struct Stray {
    pub(super) route: Name,
    pub(super) until_us: u64,
    /// Calls that it had made, by kind.
    pub(super) made: Vec<(Name, u8, u64)>,
}

impl Exclusive {
    pub(super) fn stray(&mut self, route: Name, began_us: u64, solo: Option<Solo>) {
        let now_us = self.now_us;
        let lasted = now_us.saturating_sub(began_us);
        let Some(known) = self.routes.get_mut(usize::from(route)) else {
            return;
        };
        let longest = (1000.0 * known.longest) as u64;
        let mut us = (longest + longest / 2).saturating_sub(lasted);
        us = us.max(longest / 2) + STRAY_US.0;
        if known.requests < KNOWN {
            us = us.max(2 * lasted);
            if known.unknown_until_us == 0 {
                let until_us = us.max(STRAY_US.1).min(STRAY_US.2);
                known.unknown_until_us = now_us.saturating_add(until_us);
            }
        }
        let us = us.min(STRAY_US.2);
        let until_us = known.unknown_until_us;
        if self.strays.len() >= STRAYS {
            self.strays.remove(0);
        }
        self.strays.push(Stray {
            route,
            until_us: now_us.saturating_add(us).max(until_us),
            made: solo
                .filter(|solo| !solo.mixed)
                .map_or(Vec::new(), |solo| solo.kinds),
        });
    }

    /// A request that was broken off may still make calls of this kind.
    pub(super) fn is_astray(&self, kind: Name) -> bool {
        self.strays.iter().any(|stray| {
            let Some(route) = self.routes.get(usize::from(stray.route)) else {
                return true;
            };
            if self.now_us < route.unknown_until_us {
                return true;
            }
            let made = stray.made.iter().find(|(known, _, _)| *known == kind);
            let made = made.map_or(0, |(_, made, _)| usize::from(*made));
            let pair = route.pair(kind);
            pair.is_some_and(|pair| pair.one_more(made) > UNLIKELY)
        })
    }
}
