//! What triggers calls, and how soon.

use crate::attribution::buckets::{BUCKETS, begin_ms, bucket, ms};

/// Rates by the time since a trigger, for each pair of trigger and kind.
#[derive(Debug, Default)]
pub(super) struct Triggers {
    kinds: usize,
    rates: Vec<[f32; BUCKETS]>,
    counts: Vec<[f32; BUCKETS]>,
    /// Milliseconds, for each trigger.
    at_risk: Vec<[f32; BUCKETS]>,
}

impl Triggers {
    /// Of so many triggers and kinds, with a rate for each trigger to begin with.
    pub(super) fn new(triggers: usize, kinds: usize, rate: impl Fn(usize) -> f32) -> Self {
        let mut rates = vec![[0.0; BUCKETS]; triggers * kinds];
        for (pair, rates) in rates.iter_mut().enumerate() {
            rates.fill(rate(pair / kinds));
        }
        Self {
            kinds,
            rates,
            counts: vec![[0.0; BUCKETS]; triggers * kinds],
            at_risk: vec![[0.0; BUCKETS]; triggers],
        }
    }

    /// Calls of a kind per millisecond, in a bucket of the time since the trigger.
    pub(super) fn rate(&self, trigger: usize, kind: usize, at: usize) -> f32 {
        let rates = self.rates.get(trigger * self.kinds + kind);
        rates
            .and_then(|rates| rates.get(at))
            .copied()
            .unwrap_or(0.0)
    }

    /// A trigger has triggered a call of a kind, with this probability.
    pub(super) fn count(&mut self, trigger: usize, kind: usize, at: usize, weight: f32) {
        let counts = self.counts.get_mut(trigger * self.kinds + kind);
        if let Some(count) = counts.and_then(|counts| counts.get_mut(at)) {
            *count += weight;
        }
    }

    /// A trigger could trigger calls for so long.
    pub(super) fn wait(&mut self, trigger: usize, us: u64) {
        let Some(at_risk) = self.at_risk.get_mut(trigger) else {
            return;
        };
        let last = bucket(us);
        for (at, at_risk) in at_risk.iter_mut().enumerate().take(last + 1) {
            let end = if at == last { ms(us) } else { begin_ms(at + 1) };
            *at_risk += (end - begin_ms(at)).max(0.0);
        }
    }

    /// New rates, by what was counted.
    pub(super) fn learn(&mut self) {
        let smooth = |values: &[f32; BUCKETS], at: usize| {
            let value = |at: usize| values.get(at).copied().unwrap_or(0.0);
            0.5 * value(at)
                + 0.25 * (value(at.saturating_sub(1)) + value((at + 1).min(BUCKETS - 1)))
        };
        let pairs = self.rates.iter_mut().zip(&mut self.counts).enumerate();
        for (pair, (rates, counts)) in pairs {
            let Some(at_risk) = self.at_risk.get(pair / self.kinds.max(1)) else {
                continue;
            };
            for (at, rate) in rates.iter_mut().enumerate() {
                *rate = (smooth(counts, at) + 0.0002) / (smooth(at_risk, at) + 0.1);
            }
            *counts = [0.0; BUCKETS];
        }
        for at_risk in &mut self.at_risk {
            *at_risk = [0.0; BUCKETS];
        }
    }
}
