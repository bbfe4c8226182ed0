//! What requests at one progress do next, and when.

use super::kinds::KindWeights;
use super::progress::{Progress, Step};
use crate::attribution::buckets::{BUCKETS, begin_ms, bucket, ms};
use crate::attribution::names::Name;

/// A node that was left so often is halved: what the application did long ago is
/// forgotten.
const HALVED_AT: f32 = 400.0;
/// The same, for requests of which every step was certain.
const CERTAIN_HALVED_AT: f32 = 400.0;

/// Index of a node.
pub(in crate::attribution::inferred) type NodeId = u16;

/// A value for each bucket of the time since a request came to a node.
type ByTime = [f32; BUCKETS];

/// Rates per millisecond.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rates {
    pub(super) call: f32,
    pub(super) end: f32,
}

/// The rates of a node by bucket, worked out once for each time that something is learned.
#[derive(Clone, Copy, Debug)]
pub(super) struct Curve {
    rates: [Rates; BUCKETS],
    /// Calls and ends that are expected before each bucket begins.
    expected: ByTime,
}

impl Curve {
    /// Of the rates in each bucket.
    pub(super) fn new(rates: impl Fn(usize) -> Rates) -> Self {
        let mut curve = Self {
            rates: [Rates::default(); BUCKETS],
            expected: [0.0; BUCKETS],
        };
        let mut sum = 0.0;
        let buckets = curve.rates.iter_mut().zip(&mut curve.expected);
        for (at, (here, expected)) in buckets.enumerate() {
            *here = rates(at);
            *expected = sum;
            sum += (here.call + here.end) * (begin_ms(at + 1) - begin_ms(at));
        }
        curve
    }

    /// The rates after so long in the node.
    pub(super) fn at(&self, us: u64) -> Rates {
        self.rates.get(bucket(us)).copied().unwrap_or_default()
    }

    /// Calls and ends that are expected until then.
    pub(super) fn expected(&self, us: u64) -> f32 {
        let at = bucket(us);
        let Rates { call, end } = self.rates.get(at).copied().unwrap_or_default();
        let before = self.expected.get(at).copied().unwrap_or_default();
        before + (call + end) * (ms(us) - begin_ms(at)).max(0.0)
    }
}

/// What was seen of requests at one progress.
#[derive(Clone, Copy, Debug)]
pub(super) struct Node {
    pub(super) progress: Progress,
    /// The node of [`Progress::general`].
    pub(super) general: NodeId,
    /// Milliseconds at risk, calls and ends, by bucket of the time since the request came
    /// here.
    at_risk: ByTime,
    calls: ByTime,
    ends: ByTime,
    /// The sums of these three.
    sums: [f32; 3],
    kinds: KindWeights,
    /// Times that a request left.
    pub(super) exits: f32,
    /// The same, of requests of which every step was certain; and how many of them ended.
    pub(super) certain: [f32; 2],
    /// The rates that are reckoned with.
    pub(super) curve: Curve,
    /// Something has been learned since these were worked out.
    pub(super) is_stale: bool,
}

impl Node {
    /// `curve`: of the general node, if there is one.
    pub(super) fn new(progress: Progress, general: NodeId, curve: Option<Curve>) -> Self {
        let prior = prior(progress);
        Self {
            progress,
            general,
            at_risk: [0.0; BUCKETS],
            calls: [0.0; BUCKETS],
            ends: [0.0; BUCKETS],
            sums: [0.0; 3],
            kinds: KindWeights::default(),
            exits: 0.0,
            certain: [0.0; 2],
            curve: curve.unwrap_or_else(|| Curve::new(|_| prior)),
            is_stale: false,
        }
    }

    /// Rates in a bucket of the time, by this node alone.
    pub(super) fn rates(&self, at: usize) -> Rates {
        let prior = prior(self.progress);
        // A little of the node's mean, so that times which were never seen are
        // neither impossible nor the rule.
        let [risk, calls, ends] = self.sums;
        let mean = |events: f32, prior: f32| (events + 0.02 * prior) / (risk + 0.02);
        let pseudo = 0.1 * risk / (self.exits + 1.0) + 0.01;
        let here = smooth(&self.at_risk, at) + pseudo;
        let rate = |values: &ByTime, events: f32, prior: f32| {
            (smooth(values, at) + 0.5 * pseudo * mean(events, prior)) / here
        };
        Rates {
            call: rate(&self.calls, calls, prior.call),
            end: rate(&self.ends, ends, prior.end),
        }
    }

    /// The part of the calls that are of this kind.
    pub(super) fn kind_share(&self, kind: Name) -> f32 {
        let [_, calls, _] = self.sums;
        (self.kinds.of(kind) + 0.002) / (calls + 0.02)
    }

    /// A request has left after so long, with this probability.
    pub(super) fn learn(&mut self, us: u64, step: Step, weight: f32) {
        let last = bucket(us);
        for (at, at_risk) in self.at_risk.iter_mut().enumerate().take(last + 1) {
            let end = if at == last { ms(us) } else { begin_ms(at + 1) };
            *at_risk += weight * (end - begin_ms(at)).max(0.0);
        }
        let [risk, calls, ends] = &mut self.sums;
        *risk += weight * ms(us);
        let values = match step {
            Step::Called(kind) => {
                *calls += weight;
                self.kinds.add(kind, weight);
                Some(&mut self.calls)
            }
            Step::Ended => {
                *ends += weight;
                Some(&mut self.ends)
            }
            Step::Returned => None,
        };
        if let Some(count) = values.and_then(|values| values.get_mut(last)) {
            *count += weight;
        }
        self.exits += weight;
        if self.exits > HALVED_AT {
            self.halve();
        }
    }

    /// A request has left of which every step was certain, as far as this weight says.
    pub(super) fn learn_certain(&mut self, ended: bool, weight: f32) {
        let [exits, ends] = &mut self.certain;
        *exits += weight;
        *ends += weight * f32::from(u8::from(ended));
        if *exits > CERTAIN_HALVED_AT {
            self.certain = self.certain.map(|count| 0.5 * count);
        }
    }

    pub(super) fn forget_kind(&mut self, kind: Name) {
        self.kinds.forget(kind);
    }

    fn halve(&mut self) {
        for values in [&mut self.at_risk, &mut self.calls, &mut self.ends] {
            for value in values {
                *value *= 0.5;
            }
        }
        self.kinds.halve();
        self.exits *= 0.5;
        for sum in &mut self.sums {
            *sum *= 0.5;
        }
    }
}

/// What an application does that nobody has watched yet.
fn prior(progress: Progress) -> Rates {
    let waits = progress.outstanding > 0;
    Rates {
        call: if waits { 0.01 } else { 0.1 },
        end: if waits { 0.001 } else { 0.1 },
    }
}

/// A bucket's value with a share of its neighbours'.
fn smooth(values: &ByTime, at: usize) -> f32 {
    let value = |at: Option<usize>| at.and_then(|at| values.get(at)).copied().unwrap_or(0.0);
    0.5 * value(Some(at)) + 0.25 * (value(at.checked_sub(1)) + value(Some(at + 1)))
}
