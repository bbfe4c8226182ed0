//! The background: calls that no request makes.

use crate::attribution::buckets::ms;
use crate::attribution::names::{NAMES, Name};

/// What a call counts for the background that may be a request's.
const DOUBTED: f32 = 0.05;
/// Calls of the background, and milliseconds, that are taken for seen before anything
/// was. An application that calls all the time must have been idle for a while before its
/// calls are known not to be of the background.
const PRIOR: (f32, f32) = (0.3, 100.0);
/// Milliseconds with one request in flight after which half is forgotten.
const ALONE_HALVED_MS: f32 = 200_000.0;
/// Milliseconds in all after which half is forgotten: a quarter of an hour.
const HALVED_MS: f32 = 900_000.0;

/// What was seen of one kind of call.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    /// Calls of the background: while nothing was in flight, and what others probably
    /// were.
    background: [f32; 2],
    /// Calls while just one request was in flight.
    alone: f32,
    /// All calls.
    all: f32,
}

/// Which kinds of calls the background makes, and how often.
#[derive(Clone, Debug)]
pub(in crate::attribution::inferred) struct Background {
    kinds: Vec<Seen>,
    /// Milliseconds during which nothing was in flight, and something was.
    idle_ms: f32,
    busy_ms: f32,
    /// Milliseconds during which just one request was.
    alone_ms: f32,
}

impl Default for Background {
    fn default() -> Self {
        Self {
            kinds: vec![Seen::default(); NAMES],
            idle_ms: 0.0,
            busy_ms: 0.0,
            alone_ms: 0.0,
        }
    }
}

impl Background {
    fn seen(&self, kind: Name) -> Seen {
        let seen = self.kinds.get(usize::from(kind));
        seen.copied().unwrap_or_default()
    }

    /// Calls of the background of this kind per millisecond. What happens while nothing is
    /// in flight is certain, and counts for more.
    pub(in crate::attribution::inferred) fn rate(&self, kind: Name) -> f32 {
        let [idle, busy] = self.seen(kind).background;
        (idle + DOUBTED * busy + 0.01) / (self.idle_ms + DOUBTED * self.busy_ms + 10.0)
    }

    /// Calls of the background in so much time, of all kinds that were seen.
    pub(in crate::attribution::inferred) fn expected(&self, us: u64) -> f64 {
        let kinds = self.kinds.iter().zip(0..=Name::MAX);
        let seen = kinds.filter(|(seen, _)| seen.all > 0.0);
        seen.map(|(_, kind)| f64::from(self.rate(kind) * ms(us)))
            .sum()
    }

    /// Calls of this kind per millisecond while just one request is in flight: its own, and
    /// those of the background, by the plainest of estimates. What happens while nothing is
    /// in flight must be of the background, and no more than that is while one request is.
    pub(in crate::attribution::inferred) fn rates_alone(&self, kind: Name) -> (f32, f32) {
        let seen = self.seen(kind);
        let [idle, _] = seen.background;
        let background = (idle + PRIOR.0) / (self.idle_ms + PRIOR.1);
        let calls = seen.alone / (self.alone_ms + PRIOR.1);
        ((calls - background).max(0.0), background)
    }

    /// Calls of this kind.
    pub(in crate::attribution::inferred) fn calls(&self, kind: Name) -> f32 {
        self.seen(kind).all
    }

    /// A call has come that is of the background with this probability, while so many
    /// requests were in flight.
    pub(in crate::attribution::inferred) fn learn_call(
        &mut self,
        kind: Name,
        background: f32,
        in_flight: usize,
    ) {
        let Some(seen) = self.kinds.get_mut(usize::from(kind)) else {
            return;
        };
        if in_flight == 1 {
            seen.alone += 1.0;
        }
        let [idle, busy] = &mut seen.background;
        *(if in_flight == 0 { idle } else { busy }) += background;
        seen.all += 1.0;
    }

    /// So much time has passed, with so many requests in flight.
    pub(in crate::attribution::inferred) fn pass(&mut self, us: u64, in_flight: usize) {
        if in_flight == 1 {
            self.alone_ms += ms(us);
            if self.alone_ms > ALONE_HALVED_MS {
                self.alone_ms *= 0.5;
                for seen in &mut self.kinds {
                    seen.alone *= 0.5;
                }
            }
        }
        match in_flight {
            0 => self.idle_ms += ms(us),
            _ => self.busy_ms += ms(us),
        }
        if self.idle_ms + self.busy_ms > HALVED_MS {
            self.idle_ms *= 0.5;
            self.busy_ms *= 0.5;
            for seen in &mut self.kinds {
                seen.background = seen.background.map(|count| 0.5 * count);
            }
        }
    }

    pub(super) fn forget_kind(&mut self, kind: Name) {
        if let Some(seen) = self.kinds.get_mut(usize::from(kind)) {
            *seen = Seen::default();
        }
    }
}
