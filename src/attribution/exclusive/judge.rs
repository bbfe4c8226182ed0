//! Whether a call is of the only request in flight, and how sure that is.

use super::super::buckets::{BUCKETS, bucket, ms};
use super::super::names::Name;
use super::Exclusive;
use super::cells::{ANYWHERE, IDLE, MIXED_CELLS, SPARSE_OWN, around, count, get, lift, of};
use super::kind::{Begun, Kind};
use super::route::Pair;
use super::solo::Solo;
use crate::attribution::sort::sort_key;

/// Odds from which on a kind is known to be made by requests. A background passes them
/// with a probability of one to this number.
const PROVEN: f32 = 400.0;
/// Calls of a kind that may be given to a request before the odds are good; and odds that
/// will do from then on. A background passes these with a probability of one to this number.
const UNPROVEN: u8 = 9;
const LIKELY: f32 = 20.0;
/// The doubt that may be spent at once, in calls.
pub(super) const BUDGET: f32 = 3.0;
/// A doubt is an estimate, and costs so much more.
const SAFE: f32 = 5.0;
/// What the first call of a kind costs of which nothing is known, and each further one
/// before the odds are good.
const FIRST: f32 = 0.3;
const EARLY: f32 = 0.1;
/// No call is given to a request that is the background's with a greater probability.
const DOUBT: f32 = 0.1;
/// Half-octaves by which a call after an answer may be later than others were.
const LATER: usize = 6;
/// Calls of the background that are taken for seen before any was, and for how long.
const BEFORE: (f32, f32) = (0.1, 50.0);
/// A route of which so many requests were seen, alone from beginning to end, is known.
pub(super) const KNOWN: f32 = 5.0;
/// Odds never become better or worse than so: a change is noticed.
const ODDS: std::ops::RangeInclusive<f32> = 1e-3..=1e5;
/// One call changes the odds by no more than these.
pub(super) const WEIGHS: std::ops::RangeInclusive<f32> = 0.05..=200.0;
/// Odds below which requests are known not to make a kind.
pub(super) const REFUTED: f32 = 0.04;
/// Of fewer calls of a kind only the odds count.
pub(super) const FEW: f32 = 4.0;

/// What is known of a call, if requests make calls of its kind.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Judged {
    /// The probability that it is of the background.
    pub(super) doubt: f32,
    /// Little is known so far.
    pub(super) young: bool,
    /// Each request of the route makes just one such call.
    pub(super) always: bool,
    /// See [`Kind::odd`].
    pub(super) odd: [f32; 2],
}

impl Exclusive {
    pub(super) fn known_mut(&mut self, kind: Name) -> Option<&mut Kind> {
        self.kinds.get_mut(usize::from(kind))?.as_deref_mut()
    }

    pub(super) fn known(&self, kind: Name) -> Option<&Kind> {
        self.kinds.get(usize::from(kind))?.as_deref()
    }

    pub(super) fn odds(&self, kind: Name) -> f32 {
        self.known(kind).map_or(1.0, |kind| kind.odds)
    }

    /// A call of this kind has come. Returns how much likelier a clock of its own makes
    /// it now than at another time, and the time since the last one.
    pub(super) fn meet(&mut self, kind: Name, coarse: Name) -> (f32, u64) {
        let siblings = self.known(coarse).filter(|coarse| coarse.calls >= 8.0);
        let odds = siblings.map_or(1.0, |coarse| coarse.odds.clamp(1.2 * REFUTED, 20.0));
        let now_us = self.now_us;
        let route = self.solo.as_ref().map_or(0, |solo| solo.route);
        let of_route = self.routes.get(usize::from(route));
        let begun = Begun {
            all: self.begun,
            route,
            of_route: of_route.map_or(0, |route| route.begun),
        };
        let mut found = (1.0, 0);
        for name in [coarse, kind] {
            if let Some(place) = self.kinds.get_mut(usize::from(name)) {
                let kind = place.get_or_insert_with(|| Box::new(Kind::new(odds)));
                let since_us = now_us.saturating_sub(kind.last_us);
                found = (kind.came(now_us, begun), since_us);
            }
        }
        found
    }

    pub(super) fn called_by_nobody(&mut self, kind: Name, weight: f32) {
        let (now_us, ended_us) = (self.now_us, self.ended_us);
        if let Some(kind) = self.known_mut(kind) {
            kind.learn_background(now_us, 1.0);
            count(&mut kind.after, bucket(now_us.saturating_sub(ended_us)));
        }
        self.weigh(kind, 0, [IDLE; 2], weight);
    }

    /// How much likelier a call of a request is in a cell than it would be if it came at
    /// any time.
    pub(super) fn lift(&self, kind: Name, cell: usize, apart: usize) -> f32 {
        let kind = self.known(kind);
        let calls = kind.map_or(0.0, |kind| kind.calls);
        let here = kind.map_or(0.0, |kind| around(&kind.cells, cell));
        let lift = self.lift_of(here, calls, cell);
        if apart == cell {
            return lift;
        }
        let here = kind.map_or(0.0, |kind| around(&kind.apart, apart));
        lift.min(self.lift_of(here, calls, apart))
    }

    /// The same, of so many calls of all of a kind.
    pub(super) fn lift_of(&self, here: f32, all: f32, cell: usize) -> f32 {
        let [time, calls] = self.sums;
        // While nothing is in flight requests make none.
        let busy = 1.0 - get(&self.time, IDLE) / time.max(0.05);
        let part = self.part(cell);
        lift(part, busy, [get(&self.calls, cell), calls], [here, all])
    }

    /// The same, among requests that were not alone all the time. How many of the calls
    /// come during those, and how much of the time is theirs, tells of the load alone.
    pub(super) fn mixed_lift(&self, kind: Name, cell: usize) -> f32 {
        let sum = |values: &[f32]| {
            values
                .iter()
                .skip(MIXED_CELLS.start)
                .take(BUCKETS)
                .sum::<f32>()
        };
        let part = get(&self.time, cell).max(0.05) / sum(&self.time).max(0.05);
        let cells = self.known(kind).map_or(&[][..], |kind| &kind.cells);
        let mixed = cells
            .iter()
            .filter(|(at, _)| MIXED_CELLS.contains(&usize::from(*at)));
        let all = mixed.map(|(_, count)| count).sum::<f32>();
        let calls = [get(&self.calls, cell), sum(&self.calls)];
        lift(
            part.clamp(1e-4, 1.0),
            1.0,
            calls,
            [around(cells, cell), all],
        )
    }

    /// The part of the time that was spent in a cell.
    pub(super) fn part(&self, cell: usize) -> f32 {
        let all = get(&self.sums, 0).max(0.05);
        (get(&self.time, cell).max(0.05) / all).clamp(1e-4, 1.0)
    }

    /// A lift that nothing speaks against: in so little time there were none to be expected.
    pub(super) fn sparse(&self, kind: Name, cells: [usize; 2]) -> f32 {
        let calls = self.known(kind).map_or(0.0, |kind| kind.calls);
        let lift = |cell: usize| SPARSE_OWN / (calls * self.part(cell) + SPARSE_OWN);
        cells.into_iter().map(lift).fold(1.0, f32::min)
    }

    /// Learns that a call came in this cell. Nothing if it is of the kind `but`.
    pub(super) fn weigh(&mut self, kind: Name, but: Name, [cell, apart]: [usize; 2], weight: f32) {
        if kind == but {
            return;
        }
        if let Some(kind) = self.known_mut(kind) {
            let odds = kind.odds * weight.clamp(*WEIGHS.start(), *WEIGHS.end());
            kind.odds = odds.clamp(*ODDS.start(), *ODDS.end());
            kind.calls += 1.0;
            count(&mut kind.cells, cell);
            count(&mut kind.apart, apart);
        }
    }

    /// Calls of the background of this kind, per millisecond: no fewer are to be expected.
    pub(super) fn background(&self, kind: &Kind) -> f32 {
        let now_us = self.now_us;
        let upper = |calls: f32| calls + calls.sqrt() + BEFORE.0;
        let mut most = upper(kind.background) / (get(&self.sums, 0) + BEFORE.1);
        let (calls, time) = self.quiet(kind);
        most = most.max(upper(calls) / (time + BEFORE.1));
        most = most.max(kind.late_rate(now_us));
        let after = bucket(now_us.saturating_sub(self.ended_us));
        // Calls that were seen so soon after an answer may come a little later, too.
        for at in after.saturating_sub(LATER)..=after {
            most = most.max(of(&kind.after, at) / (get(&self.after, at) + 1.0));
        }
        most
    }

    /// Calls of this kind, and milliseconds, in the half of the time in which there were the
    /// fewest of them. The background takes no notice of where requests are.
    pub(super) fn quiet(&self, kind: &Kind) -> (f32, f32) {
        let half = 0.5 * get(&self.sums, 0);
        let cells = kind.cells.iter().map(|(cell, calls)| {
            let time = get(&self.time, usize::from(*cell)).max(0.05);
            (*calls, time)
        });
        let mut cells: Vec<(f32, f32)> = cells.collect();
        let known: f32 = cells.iter().map(|(_, time)| time).sum();
        let mut quiet = (0.0, (get(&self.sums, 0) - known).max(0.0));
        // The lowest rate first.
        cells.sort_by_cached_key(|(calls, time)| sort_key(f64::from(calls / time)));
        for (calls, time) in cells {
            if quiet.1 >= half {
                break;
            }
            quiet = (quiet.0 + calls, quiet.1 + time);
        }
        quiet
    }

    /// What speaks for it that a call is of the background, if requests make calls of its
    /// kind.
    pub(super) fn doubt(&self, solo: &Solo, kind: Name, lift: f32) -> Judged {
        let Some(known) = self.known(kind) else {
            return Judged::default();
        };
        let own = self.routes.get(usize::from(solo.route));
        let route = own.filter(|route| route.requests >= KNOWN);
        let route = route.or(self.routes.first());
        let none = Pair::new(kind, route.map_or(0.0, |route| route.requests));
        let pair = route.and_then(|route| route.pair(kind)).unwrap_or(&none);
        let (made, before_us) = match solo.mixed {
            true => (0, solo.last_us),
            false => solo.made(kind),
        };
        let more = pair.one_more(made);
        let waited = ms(self.now_us.saturating_sub(before_us));
        let mean = more / pair.wait(made, waited).max(0.05);
        let rate = lift * (known.calls + 2.0 * BEFORE.0) / (get(&self.sums, 0) + 1.0);
        let rate = if made == 0 { rate } else { rate * more };
        // One that is due may be late.
        let late = more >= 0.5 && waited >= 0.8 * pair.wait(made, waited);
        let rate = rate.max(if late { mean } else { mean * lift.min(1.0) });
        let background = self.background(known);
        let doubt = background / (background + rate);
        let young = known.calls < FEW || get(&pair.reached, made.min(1)) < FEW - 1.0;
        let always = get(&pair.reached, 0) >= 30.0
            && get(&pair.went_on, 0) > 0.98 * get(&pair.reached, 0)
            && get(&pair.went_on, 1) < 0.02 * get(&pair.reached, 0);
        // One more than to be expected, or out of time; and how many such there are to be.
        let again = made > 0 && more < 0.5;
        let off = !late && lift < 0.5;
        let next = pair.one_more(made + 1);
        let next = if next < 0.5 { next } else { 0.0 };
        let usual = 0.2 * ANYWHERE;
        let odd = [f32::from(u8::from(again || off)), next + usual];
        let doubt = if young { doubt.min(0.02) } else { doubt };
        Judged {
            doubt,
            young,
            always,
            odd,
        }
    }

    /// Whether to believe it, and with how much doubt.
    pub(super) fn decide(
        &mut self,
        kind: Name,
        coarse: Name,
        odds: f32,
        doubt: f32,
        always: bool,
    ) -> Option<f32> {
        let unknown = self
            .known(coarse)
            .is_none_or(|coarse| coarse.calls < 1.0 || coarse.odds < REFUTED);
        let budget = self.budget;
        let room = budget / BUDGET;
        let known = self.known_mut(kind)?;
        if odds < REFUTED || doubt > DOUBT {
            return None;
        }
        let good = if known.given < UNPROVEN {
            PROVEN
        } else {
            LIKELY
        };
        if odds >= good || always {
            // It was right.
            let back = std::mem::take(&mut known.charged);
            let doubt = doubt + if always { 0.0 } else { 1.0 / odds };
            let sure = doubt <= DOUBT * room * room;
            let spent = if sure { SAFE * doubt } else { 0.0 };
            self.budget = (budget + back - spent).min(BUDGET);
            return sure.then_some(doubt);
        }
        let first = known.calls < 1.0 && unknown;
        let costs = if first { FIRST } else { EARLY };
        if known.given >= UNPROVEN || costs > budget {
            return None;
        }
        known.given += 1;
        known.charged += costs;
        self.budget -= costs;
        Some(costs.min(doubt + 1.0 / (1.0 + odds)))
    }
}
