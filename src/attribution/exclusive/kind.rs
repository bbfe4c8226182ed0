//! What is known of a kind of call.

use super::super::buckets::{BUCKETS, bucket, ms, spans};
use super::super::names::Name;
use super::cells::{add, get};
use super::judge::FEW;

/// A clock is never likelier than so, against none.
pub(super) const CLOCK: f32 = 1e9;
/// One call makes a clock of its own no less likely than this.
pub(super) const UNTIMELY: f32 = 0.7;
/// A background that has just begun: its calls of about so many milliseconds.
pub(super) const LATE_MS: [f32; 3] = [1_000.0, 4_000.0, 16_000.0];

/// Requests that have begun: all; and of the route of the only one in flight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Begun {
    pub(super) all: u64,
    pub(super) route: Name,
    pub(super) of_route: u64,
}

impl Begun {
    /// The request at that time was the one before this one, or of its route the one before.
    pub(super) fn is_next(&self, before: &Begun) -> bool {
        let of_route = self.route != 0 && self.route == before.route;
        self.all == before.all.wrapping_add(1)
            || (of_route && self.of_route == before.of_route.wrapping_add(1))
    }
}

/// What is known of a kind of call.
#[derive(Clone, Debug)]
pub(super) struct Kind {
    /// Requests make it, against the background does.
    pub(super) odds: f32,
    /// Calls given to a request before the odds were good, and what that cost.
    pub(super) given: u8,
    pub(super) charged: f32,
    /// Calls, by cell, and their sum.
    pub(super) cells: Vec<(u8, f32)>,
    pub(super) calls: f32,
    /// The same, by what a request did but for calls of this kind.
    pub(super) apart: Vec<(u8, f32)>,
    /// Calls of the background; and of late, as of a time.
    pub(super) background: f32,
    pub(super) late: [f32; LATE_MS.len()],
    pub(super) late_us: u64,
    /// Of late, calls that were not to be expected, and how many those were to be.
    pub(super) odd: [[f32; 2]; LATE_MS.len()],
    /// While nothing was in flight: calls by the time since the last answer.
    pub(super) after: Vec<(u8, f32)>,
    /// When the last one came; milliseconds at risk and calls, by the time since the
    /// one before.
    pub(super) last_us: u64,
    /// Requests that had begun then.
    pub(super) begun: Begun,
    /// How much likelier a clock of its own makes its calls than any time does. At least 1.
    pub(super) clock: f32,
    /// None had come before it since that request had begun.
    pub(super) once: bool,
    pub(super) at_risk: [f32; BUCKETS],
    pub(super) intervals: [f32; BUCKETS],
}

impl Kind {
    pub(super) fn new(odds: f32) -> Self {
        Self {
            odds,
            given: 0,
            charged: 0.0,
            cells: Vec::new(),
            calls: 0.0,
            apart: Vec::new(),
            background: 0.0,
            late: [0.0; LATE_MS.len()],
            late_us: 0,
            odd: [[0.0; 2]; LATE_MS.len()],
            after: Vec::new(),
            last_us: 0,
            begun: Begun::default(),
            clock: 1.0,
            once: true,
            at_risk: [0.0; BUCKETS],
            intervals: [0.0; BUCKETS],
        }
    }

    /// A call has come, when so many requests had begun. Returns how much likelier it makes
    /// a clock of its own, which stays at least as likely as none. Where each request makes
    /// one, all of them or those of a route, they have the clock of the requests.
    pub(super) fn came(&mut self, now_us: u64, begun: Begun) -> f32 {
        let last_us = std::mem::replace(&mut self.last_us, now_us);
        let before = std::mem::replace(&mut self.begun, begun);
        if last_us == 0 {
            return 1.0;
        }
        // From a millisecond to a quarter of a minute.
        let us = now_us.saturating_sub(last_us) >> 5;
        let at = bucket(us);
        for (at, span) in spans(0, us) {
            add(&mut self.at_risk, at, span);
        }
        let sum = |values: &[f32]| values.iter().sum::<f32>();
        let part = (get(&self.at_risk, at) / sum(&self.at_risk).max(1e-3)).clamp(1e-3, 1.0);
        let found = (get(&self.intervals, at) + FEW * part) / (sum(&self.intervals) + FEW);
        add(&mut self.intervals, at, 1.0);
        let once = std::mem::replace(&mut self.once, begun != before);
        if once && begun.is_next(&before) {
            return 1.0;
        }
        let clock = (self.clock * found / part).clamp(1.0, CLOCK);
        let before = std::mem::replace(&mut self.clock, clock);
        (clock / before).max(UNTIMELY)
    }

    /// The rate of the background of late, per millisecond.
    pub(super) fn late_rate(&self, now_us: u64) -> f32 {
        let passed = ms(now_us.saturating_sub(self.late_us));
        let late = self.late.iter().zip(&self.odd).zip(LATE_MS);
        let rates = late.map(|((late, [was, expected]), span)| {
            let chance = expected.sqrt();
            let calls = (late - 1.0).max(was - expected - chance - 0.5);
            calls * (-passed / span).exp() / span
        });
        rates.fold(0.0, f32::max)
    }

    pub(super) fn learn_background(&mut self, now_us: u64, calls: f32) {
        self.background += calls;
        self.learn_late(now_us, calls, [0.0; 2]);
    }

    /// So many calls of the background; and calls that were not to be expected, with how
    /// many of them were to be.
    pub(super) fn learn_late(&mut self, now_us: u64, calls: f32, odd: [f32; 2]) {
        let passed = ms(now_us.saturating_sub(self.late_us));
        self.late_us = now_us;
        let late = self.late.iter_mut().zip(&mut self.odd).zip(LATE_MS);
        for ((late, [was, expected]), span) in late {
            let kept = (-passed / span).exp();
            *late = kept * *late + calls;
            *was = kept * *was + odd[0];
            *expected = kept * *expected + odd[1];
        }
    }

    pub(super) fn halve(&mut self) {
        self.calls *= 0.5;
        self.background *= 0.5;
        for list in [&mut self.cells, &mut self.apart, &mut self.after] {
            list.retain_mut(|(_, count)| {
                *count *= 0.5;
                *count > 0.05
            });
        }
        self.at_risk = self.at_risk.map(|value| 0.5 * value);
        self.intervals = self.intervals.map(|value| 0.5 * value);
    }
}
