//! What is believed of requests that doubts have entangled: hypotheses about which
//! of them made which calls, each with its probability.

mod branch;
mod settle;
mod state;

use super::model::{Model, NodeId, Progress, Step};
use crate::attribution::names::Name;
use crate::attribution::sort::sort_key;
use state::State;

/// Hypotheses of a cluster at most.
const HYPOTHESES: usize = 32;
/// What is less likely than this, beside the likeliest, is given up.
const NEGLIGIBLE: f64 = 1e-5;
/// With this probability something else than the application holds a request
/// up (the machine is busy, a collector runs): no silence proves more than so.
const STALL: f32 = 0.05;
/// Owner of a call of the background, or of a request that has gone.
const NO_OWNER: u8 = u8::MAX;

/// Which request made which call, and how far each request is.
#[derive(Clone, Debug)]
struct Hypothesis {
    /// Its probability.
    weight: f64,
    /// Of each member.
    states: Vec<State>,
    /// Of each call: an index into the members, or [`NO_OWNER`].
    owners: Vec<u8>,
}

/// A set of requests that doubts have entangled.
#[derive(Clone, Debug, Default)]
pub(super) struct Cluster {
    /// Requests, by number.
    pub(super) members: Vec<u64>,
    /// Calls that have not returned.
    pub(super) calls: Vec<u64>,
    hypotheses: Vec<Hypothesis>,
    /// The time of the weights.
    at_us: u64,
}

impl Cluster {
    /// Makes the weights sum up to 1, and drops what is negligible.
    fn normalize(&mut self) {
        let most = self.hypotheses.iter().map(|h| h.weight).fold(0.0, f64::max);
        if most <= 0.0 || !most.is_finite() {
            // Every hypothesis is impossible: all stay, evenly.
            for hypothesis in &mut self.hypotheses {
                hypothesis.weight = 1.0;
            }
        } else {
            self.hypotheses.retain(|h| h.weight >= most * NEGLIGIBLE);
        }
        let sum: f64 = self.hypotheses.iter().map(|h| h.weight).sum();
        for hypothesis in &mut self.hypotheses {
            hypothesis.weight /= sum;
        }
    }

    /// Weighs the hypotheses by what has not happened since the last time.
    pub(super) fn advance(&mut self, model: &Model, now_us: u64) {
        let from_us = std::mem::replace(&mut self.at_us, now_us);
        if self.hypotheses.len() < 2 || now_us <= from_us {
            return;
        }
        let mut known: Vec<(NodeId, u64, f64)> = Vec::new();
        for member in 0..self.members.len() {
            let mut states = self.hypotheses.iter().filter_map(|h| h.states.get(member));
            let Some(first) = states.next() else { continue };
            if states.all(|state| state.is(first)) {
                continue;
            }
            known.clear();
            for hypothesis in &mut self.hypotheses {
                let Some(state) = hypothesis.states.get(member) else {
                    continue;
                };
                let (node, since) = (state.node, state.since_us);
                let factor = match known.iter().find(|k| k.0 == node && k.1 == since) {
                    Some((_, _, factor)) => *factor,
                    None => {
                        let from = from_us.saturating_sub(since);
                        let survival =
                            model
                                .nodes
                                .survival(node, from, now_us.saturating_sub(since));
                        let factor = f64::from(STALL + (1.0 - STALL) * survival);
                        known.push((node, since, factor));
                        factor
                    }
                };
                hypothesis.weight *= factor;
            }
        }
        self.normalize();
    }

    /// This one and the other as one: each hypothesis of one with each of the other.
    pub(super) fn merge(self, other: Cluster) -> Cluster {
        let offset = self.members.len();
        let mut pairs: Vec<(f64, &Hypothesis, &Hypothesis)> = Vec::new();
        for a in &self.hypotheses {
            for b in &other.hypotheses {
                pairs.push((a.weight * b.weight, a, b));
            }
        }
        pairs.sort_by_cached_key(|(weight, ..)| !sort_key(*weight));
        pairs.truncate(HYPOTHESES);
        let shifted = |owner: &u8| match *owner {
            NO_OWNER => NO_OWNER,
            owner => u8::try_from(usize::from(owner) + offset).unwrap_or(NO_OWNER),
        };
        let hypotheses = pairs
            .into_iter()
            .map(|(weight, a, b)| Hypothesis {
                weight,
                states: a.states.iter().chain(&b.states).cloned().collect(),
                owners: a
                    .owners
                    .iter()
                    .copied()
                    .chain(b.owners.iter().map(shifted))
                    .collect(),
            })
            .collect();
        let mut merged = Cluster {
            hypotheses,
            at_us: self.at_us,
            members: self.members,
            calls: self.calls,
        };
        merged.members.extend(other.members);
        merged.calls.extend(other.calls);
        merged.normalize();
        merged
    }

    /// A request that has just begun.
    pub(super) fn new(request: u64, progress: Progress, node: NodeId, now_us: u64) -> Self {
        Self {
            members: vec![request],
            calls: Vec::new(),
            hypotheses: vec![Hypothesis {
                weight: 1.0,
                states: vec![State::new(progress, node, now_us)],
                owners: Vec::new(),
            }],
            at_us: now_us,
        }
    }

    /// Calls of this kind per millisecond that the member is expected to make.
    pub(super) fn rate(&self, model: &Model, member: usize, now_us: u64, kind: Name) -> f64 {
        let rates = self.hypotheses.iter().map(|hypothesis| {
            let state = hypothesis.states.get(member);
            let rate = state.map_or(0.0, |state| {
                model
                    .nodes
                    .call_rate(state.node, state.waited_us(now_us), kind)
            });
            hypothesis.weight * f64::from(rate)
        });
        rates.sum()
    }

    /// A call has returned.
    pub(super) fn returned(&mut self, model: &mut Model, now_us: u64, call: u64) {
        self.advance(model, now_us);
        let Some(at) = self.calls.iter().position(|known| *known == call) else {
            return;
        };
        self.calls.remove(at);
        for hypothesis in &mut self.hypotheses {
            if at >= hypothesis.owners.len() {
                continue;
            }
            let owner = hypothesis.owners.remove(at);
            if let Some(state) = hypothesis.states.get_mut(usize::from(owner)) {
                state.step(model, now_us, Step::Returned, None);
            }
        }
    }

    /// A member has been answered: weighs the hypotheses by how likely each made
    /// that. Returns how probable it was, by what is certain of its route, that
    /// it ended rather than made a call.
    pub(super) fn ended(&mut self, model: &Model, now_us: u64, member: usize) -> f64 {
        self.advance(model, now_us);
        let mut expected = 0.0;
        for hypothesis in &mut self.hypotheses {
            if let Some(state) = hypothesis.states.get(member) {
                expected +=
                    hypothesis.weight * f64::from(model.nodes.certain_end_share(state.node));
                let us = state.waited_us(now_us);
                hypothesis.weight *= f64::from(model.nodes.end_rate(state.node, us));
            }
        }
        self.normalize();
        expected
    }

    /// Learns from the steps of a member that has been answered. `certain`: the
    /// weight from which on a hypothesis is taken for certain.
    pub(super) fn learn(&self, model: &mut Model, now_us: u64, member: usize, certain: f32) {
        for hypothesis in &self.hypotheses {
            let Some(state) = hypothesis.states.get(member) else {
                continue;
            };
            let weight = hypothesis.weight as f32;
            let certain = weight > certain;
            let us = state.waited_us(now_us);
            model.learn_step(state.node, us, Step::Ended, weight);
            if certain {
                model.nodes.learn_certain(state.node, true);
            }
            let mut path = state.path.as_deref();
            while let Some(step) = path {
                model.learn_step(step.node, step.us, step.step, weight);
                if let Some(rank) = step.rank.filter(|_| weight > 0.95) {
                    model.ranks.learn(rank);
                }
                if certain {
                    model.nodes.learn_certain(step.node, false);
                }
                path = step.previous.as_deref();
            }
        }
    }

    /// Removes a member that has ended. Its calls that have not returned have no owner
    /// from now on.
    pub(super) fn remove(&mut self, member: usize) {
        let index = u8::try_from(member).unwrap_or(NO_OWNER);
        if member < self.members.len() {
            self.members.remove(member);
        }
        for hypothesis in &mut self.hypotheses {
            if member < hypothesis.states.len() {
                hypothesis.states.remove(member);
            }
            for owner in &mut hypothesis.owners {
                *owner = match *owner {
                    NO_OWNER => NO_OWNER,
                    gone if gone == index => NO_OWNER,
                    later if later > index => later - 1,
                    earlier => earlier,
                };
            }
        }
    }
}
