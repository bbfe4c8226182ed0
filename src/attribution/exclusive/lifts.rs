//! Where in the time calls of a kind come, and how often the background makes them.

use super::super::buckets::{BUCKETS, bucket, ms};
use super::super::names::Name;
use super::Exclusive;
use super::cells::{IDLE, OVERLAPPED_CELLS, SPARSE_KIND, count_at, get, increment, lift, smoothed};
use super::judge::{FEW, ODDS, REFUTED, WEIGHTS};
use super::kind::{Begun, Kind};
use crate::attribution::numbers::sort_key;

/// Half octaves by which a background call after an answer may be later than others were.
const LATER: usize = 6;
/// Calls of the background that are presumed, and in how many milliseconds, before any was
/// seen.
pub(super) const PRIOR_BACKGROUND: (f32, f32) = (0.1, 50.0);

/// When a call came, beside the others of its kind.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timing {
    /// The likelihood ratio of a timer that makes such calls, from this one.
    pub(super) timer: f32,
    /// Microseconds since the last one.
    pub(super) since_us: u64,
}

impl Exclusive {
    pub(super) fn known_mut(&mut self, kind: Name) -> Option<&mut Kind> {
        self.kinds.get_mut(usize::from(kind))?.as_deref_mut()
    }

    pub(super) fn known(&self, kind: Name) -> Option<&Kind> {
        self.kinds.get(usize::from(kind))?.as_deref()
    }

    /// Requests of the route have made calls of this kind, while each was the only one.
    pub(super) fn makes(&self, route: Name, kind: Name) -> bool {
        let route = self.routes.get(usize::from(route));
        route.is_some_and(|route| route.calls_of(kind).is_some())
    }

    pub(super) fn odds(&self, kind: Name) -> f32 {
        self.known(kind).map_or(1.0, |kind| kind.odds)
    }

    /// A call of this kind has come. A kind that is new begins with the odds of its class.
    pub(super) fn observe(&mut self, kind: Name, class: Name) -> Timing {
        let known_class = self.known(class).filter(|class| class.calls >= 2.0 * FEW);
        let odds = known_class.map_or(1.0, |class| class.odds.clamp(1.2 * REFUTED, 20.0));
        let now_us = self.now_us;
        let route = self.only.as_ref().map_or(0, |only| only.route);
        let of_route = self.routes.get(usize::from(route));
        let begun = Begun {
            all: self.begun,
            route,
            of_route: of_route.map_or(0, |route| route.begun),
        };
        let mut timing = Timing {
            timer: 1.0,
            since_us: 0,
        };
        // Of one that has the name of its class, once.
        let names = [Some(class).filter(|class| *class != kind), Some(kind)];
        for name in names.into_iter().flatten() {
            if let Some(kind) = self.kinds.get_mut(usize::from(name)) {
                let kind = kind.get_or_insert_with(|| Box::new(Kind::new(odds)));
                let since_us = now_us.saturating_sub(kind.last_us);
                let timer = kind.observe(now_us, begun);
                timing = Timing { timer, since_us };
            }
        }
        timing
    }

    /// A call came while nothing was in flight.
    pub(super) fn learn_background_call(&mut self, kind: Name, weight: f32) {
        let (now_us, ended_us) = (self.now_us, self.ended_us);
        if let Some(kind) = self.known_mut(kind) {
            kind.learn_background(now_us, 1.0);
            let after = bucket(now_us.saturating_sub(ended_us));
            increment(&mut kind.after_answer, after);
        }
        self.learn_odds(kind, [IDLE; 2], weight);
    }

    /// A call came in this cell. `weight`: its likelihood ratio, of requests against the
    /// background.
    pub(super) fn learn_odds(&mut self, kind: Name, [cell, other_cell]: [usize; 2], weight: f32) {
        if let Some(kind) = self.known_mut(kind) {
            let odds = kind.odds * weight.clamp(*WEIGHTS.start(), *WEIGHTS.end());
            kind.odds = odds.clamp(*ODDS.start(), *ODDS.end());
            kind.calls += 1.0;
            increment(&mut kind.cells, cell);
            increment(&mut kind.other_cells, other_cell);
        }
    }

    /// How much likelier a call of a request is in these cells than at any time: with calls
    /// of its kind counted, and without. The smaller of the two counts.
    pub(super) fn lift(&self, kind: Name, [cell, other_cell]: [usize; 2]) -> f32 {
        let kind = self.known(kind);
        let calls = kind.map_or(0.0, |kind| kind.calls);
        let here = kind.map_or(0.0, |kind| smoothed(&kind.cells, cell));
        let lift = self.lift_of(cell, [here, calls]);
        if other_cell == cell {
            return lift;
        }
        let here = kind.map_or(0.0, |kind| smoothed(&kind.other_cells, other_cell));
        lift.min(self.lift_of(other_cell, [here, calls]))
    }

    fn lift_of(&self, cell: usize, of_kind: [f32; 2]) -> f32 {
        let [time, calls] = self.sums;
        // While nothing is in flight requests make none.
        let busy = 1.0 - get(&self.time, IDLE) / time.max(0.05);
        let share = self.time_share(cell);
        lift(share, busy, [get(&self.calls, cell), calls], of_kind)
    }

    /// The same, among requests that overlapped others. How many calls come during those, and
    /// how much of the time is theirs, depends on the load and says nothing of the kind.
    pub(super) fn overlapped_lift(&self, kind: Name, cell: usize) -> f32 {
        let sum = |values: &[f32]| {
            let cells = values.iter().skip(OVERLAPPED_CELLS.start).take(BUCKETS);
            cells.sum::<f32>()
        };
        let share = get(&self.time, cell).max(0.05) / sum(&self.time).max(0.05);
        let cells = self.known(kind).map_or(&[][..], |kind| &kind.cells);
        let overlapped = cells
            .iter()
            .filter(|(cell, _)| OVERLAPPED_CELLS.contains(&usize::from(*cell)));
        let of_kind = overlapped.map(|(_, count)| count).sum::<f32>();
        lift(
            share.clamp(1e-4, 1.0),
            1.0,
            [get(&self.calls, cell), sum(&self.calls)],
            [smoothed(cells, cell), of_kind],
        )
    }

    /// The share of the time that was spent in a cell.
    fn time_share(&self, cell: usize) -> f32 {
        let all = get(&self.sums, 0).max(0.05);
        (get(&self.time, cell).max(0.05) / all).clamp(1e-4, 1.0)
    }

    /// A lower limit of the lift. If a cell has had little time, it proves nothing that no call
    /// was seen there.
    pub(super) fn sparse_lift(&self, kind: Name, cells: [usize; 2]) -> f32 {
        let calls = self.known(kind).map_or(0.0, |kind| kind.calls);
        let lift = |cell: usize| SPARSE_KIND / (calls * self.time_share(cell) + SPARSE_KIND);
        cells.into_iter().map(lift).fold(1.0, f32::min)
    }

    /// The rate at which the background makes calls of this kind now, per millisecond: an
    /// upper limit. `always`: each request of the route makes just one such call. That few make
    /// two says more of the background then than where in time the calls come: of those that
    /// work for long, or now longer and now shorter, nearly all of the time is like any other.
    pub(super) fn background_rate(&self, kind: &Kind, always: bool) -> f32 {
        let now_us = self.now_us;
        let presumed = PRIOR_BACKGROUND.0 / (1.0 + self.halved);
        let upper = |calls: f32| calls + calls.sqrt() + presumed;
        let mut rate = upper(kind.background) / (get(&self.sums, 0) + PRIOR_BACKGROUND.1);
        if !always {
            let (calls, time) = self.quiet_half(kind);
            rate = rate.max(upper(calls) / (time + PRIOR_BACKGROUND.1));
        }
        rate = rate.max(kind.recent_rate(now_us));
        let after = bucket(now_us.saturating_sub(self.ended_us));
        for at in after.saturating_sub(LATER)..=after {
            let calls = count_at(&kind.after_answer, at);
            rate = rate.max(calls / (get(&self.after_answer, at) + 1.0));
        }
        rate
    }

    /// Calls of this kind, and milliseconds, in the half of the time in which there were the
    /// fewest of them. The background makes its calls in that half as in the other.
    fn quiet_half(&self, kind: &Kind) -> (f32, f32) {
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

    /// How likely it is that no call of this kind came earlier in this cell, this time, if
    /// requests make calls as the lift says.
    pub(super) fn silence(&self, kind: Name, lift: f32, silent_us: u64) -> f32 {
        let calls = self.known(kind).map_or(0.0, |kind| kind.calls);
        let rate = calls / (get(&self.sums, 0) + 1.0);
        (-(lift - 1.0).max(0.0) * rate * ms(silent_us)).exp()
    }
}
