//! What has been learned of a kind of call.

use super::super::buckets::{BUCKETS, bucket, ms, spans};
use super::super::names::Name;
use super::cells::{Counts, add, get};
use super::judge::FEW;

/// The likelihood ratio of a timer is at most this.
pub(super) const TIMER_CEILING: f32 = 1e9;
/// One call multiplies it by no less than this.
pub(super) const TIMER_FLOOR: f32 = 0.7;
/// A background that has just begun has no average yet. Its rate of late is taken over three
/// spans.
pub(super) const RECENT_MS: [f32; 3] = [1_000.0, 4_000.0, 16_000.0];

/// The number of requests begun so far: in all, and on the route of the only request in
/// flight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Begun {
    pub(super) all: u64,
    pub(super) route: Name,
    pub(super) of_route: u64,
}

impl Begun {
    /// One request has begun since `before`, of all or of the route.
    pub(super) fn is_next(&self, before: &Begun) -> bool {
        let of_route = self.route != 0 && self.route == before.route;
        self.all == before.all.wrapping_add(1)
            || (of_route && self.of_route == before.of_route.wrapping_add(1))
    }
}

/// What has been learned of a kind of call.
#[derive(Clone, Debug)]
pub(super) struct Kind {
    /// The odds that requests make such calls, against a background that does.
    pub(super) odds: f32,
    /// Calls that were given to a request before the odds were good, and what they cost of
    /// the budget.
    pub(super) given_early: u8,
    pub(super) charged_early: f32,
    /// Calls by cell, and their sum.
    pub(super) cells: Counts,
    pub(super) calls: f32,
    /// The same, in the cells as they are if calls of this kind are left out.
    pub(super) other_cells: Counts,
    /// Calls that are taken for the background's; and those of late, as of `recent_us`, by
    /// span.
    pub(super) background: f32,
    pub(super) recent: [f32; RECENT_MS.len()],
    pub(super) recent_us: u64,
    /// Calls of late that were unexpected, and how many unexpected ones requests make.
    pub(super) unexpected: [[f32; 2]; RECENT_MS.len()],
    /// Calls while nothing was in flight, by the time since the last answer.
    pub(super) after_answer: Counts,
    /// When the last call came, and how many requests had begun then.
    pub(super) last_us: u64,
    pub(super) begun: Begun,
    /// The likelihood ratio of a timer that makes these calls, against any other background.
    /// At least 1.
    pub(super) timer: f32,
    /// The last call was the first since a request had begun.
    pub(super) once: bool,
    /// Milliseconds that passed, and calls that came, by the time since the call before.
    pub(super) at_risk: [f32; BUCKETS],
    pub(super) intervals: [f32; BUCKETS],
}

impl Kind {
    pub(super) fn new(odds: f32) -> Self {
        Self {
            odds,
            given_early: 0,
            charged_early: 0.0,
            cells: Counts::new(),
            calls: 0.0,
            other_cells: Counts::new(),
            background: 0.0,
            recent: [0.0; RECENT_MS.len()],
            recent_us: 0,
            unexpected: [[0.0; 2]; RECENT_MS.len()],
            after_answer: Counts::new(),
            last_us: 0,
            begun: Begun::default(),
            timer: 1.0,
            once: true,
            at_risk: [0.0; BUCKETS],
            intervals: [0.0; BUCKETS],
        }
    }

    /// A call has come. Returns the likelihood ratio, for this call, of a timer. It is 1 where
    /// each request makes one such call (each of all, or of a route): then the interval is
    /// that of the requests.
    pub(super) fn observe(&mut self, now_us: u64, begun: Begun) -> f32 {
        let last_us = std::mem::replace(&mut self.last_us, now_us);
        let before = std::mem::replace(&mut self.begun, begun);
        if last_us == 0 {
            return 1.0;
        }
        // The buckets are for shorter times: here from a millisecond to 16 seconds.
        let us = now_us.saturating_sub(last_us) >> 5;
        let at = bucket(us);
        for (at, span) in spans(0, us) {
            add(&mut self.at_risk, at, span);
        }
        let sum = |values: &[f32]| values.iter().sum::<f32>();
        let share = (get(&self.at_risk, at) / sum(&self.at_risk).max(1e-3)).clamp(1e-3, 1.0);
        let found = (get(&self.intervals, at) + FEW * share) / (sum(&self.intervals) + FEW);
        add(&mut self.intervals, at, 1.0);
        let once = std::mem::replace(&mut self.once, begun != before);
        if once && begun.is_next(&before) {
            return 1.0;
        }
        let timer = (self.timer * found / share).clamp(1.0, TIMER_CEILING);
        let before = std::mem::replace(&mut self.timer, timer);
        (timer / before).max(TIMER_FLOOR)
    }

    /// The rate of the background of late, in calls per millisecond.
    pub(super) fn recent_rate(&self, now_us: u64) -> f32 {
        let passed = ms(now_us.saturating_sub(self.recent_us));
        let recent = self.recent.iter().zip(&self.unexpected).zip(RECENT_MS);
        let rates = recent.map(|((calls, [unexpected, usual]), span)| {
            let deviation = usual.sqrt();
            let calls = (calls - 1.0).max(unexpected - usual - deviation - 0.5);
            calls * (-passed / span).exp() / span
        });
        rates.fold(0.0, f32::max)
    }

    /// So many calls were the background's.
    pub(super) fn learn_background(&mut self, now_us: u64, calls: f32) {
        self.background += calls;
        self.learn_recent(now_us, calls, false, 0.0);
    }

    /// So many calls were the background's; whether a call was unexpected; and how many
    /// unexpected calls requests usually make.
    pub(super) fn learn_recent(
        &mut self,
        now_us: u64,
        calls: f32,
        is_unexpected: bool,
        usual: f32,
    ) {
        let unexpected = f32::from(u8::from(is_unexpected));
        let passed = ms(now_us.saturating_sub(self.recent_us));
        self.recent_us = now_us;
        let recent = self.recent.iter_mut().zip(&mut self.unexpected);
        for ((recent, sums), span) in recent.zip(RECENT_MS) {
            let decay = (-passed / span).exp();
            *recent = decay * *recent + calls;
            *sums = [decay * sums[0] + unexpected, decay * sums[1] + usual];
        }
    }

    /// Half of what was counted is forgotten.
    pub(super) fn halve(&mut self) {
        self.calls *= 0.5;
        self.background *= 0.5;
        for counts in [
            &mut self.cells,
            &mut self.other_cells,
            &mut self.after_answer,
        ] {
            counts.retain_mut(|(_, count)| {
                *count *= 0.5;
                *count > 0.05
            });
        }
        self.at_risk = self.at_risk.map(|value| 0.5 * value);
        self.intervals = self.intervals.map(|value| 0.5 * value);
    }
}
