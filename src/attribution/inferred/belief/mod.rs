//! What is believed of requests that doubts have entangled: hypotheses about which
//! of them made which calls, each with its probability.

mod branch;
mod settle;
mod silence;
mod state;

use super::model::{Connection, Counts, Model, NodeId, Progress, Step};
use crate::attribution::in_flight::Request;
use crate::attribution::names::Name;
use crate::attribution::numbers::{ln, sort_key};
use state::State;

pub(super) use silence::Ready;

/// Hypotheses of a cluster at most.
const HYPOTHESES: usize = 32;
/// What is less likely than this, beside the likeliest, is given up.
const NEGLIGIBLE: f64 = 1e-5;
/// What is less likely than this teaches nothing.
const TAUGHT: f32 = 0.003;
/// What is less likely than this teaches nothing of connections: no two hypotheses are
/// likelier.
const LIKELY: f32 = 0.5;
/// The logarithm of the probability of what no hypothesis allows.
const IMPOSSIBLE: f64 = -20.0;
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
    /// The logarithm of the probability of what has happened since this was last taken.
    pub(super) evidence: f64,
}

impl Cluster {
    /// Makes the weights sum up to 1, and drops what is negligible.
    fn normalize(&mut self) {
        let most = self.hypotheses.iter().map(|h| h.weight).fold(0.0, f64::max);
        let is_impossible = most <= 0.0 || !most.is_finite();
        if is_impossible {
            // Every hypothesis is impossible: all stay, evenly.
            for hypothesis in &mut self.hypotheses {
                hypothesis.weight = 1.0;
            }
        } else {
            self.hypotheses.retain(|h| h.weight >= most * NEGLIGIBLE);
        }
        let sum: f64 = self.hypotheses.iter().map(|h| h.weight).sum();
        if !self.hypotheses.is_empty() {
            self.evidence += if is_impossible { IMPOSSIBLE } else { ln(sum) };
        }
        for hypothesis in &mut self.hypotheses {
            hypothesis.weight /= sum;
        }
    }

    /// About how much work an event is.
    pub(super) fn size(&self) -> usize {
        4 + self.hypotheses.len() * self.members.len()
    }

    /// The model has been replaced.
    pub(super) fn renew(&mut self, model: &mut Model) {
        let states = self.hypotheses.iter_mut().flat_map(|h| &mut h.states);
        for state in states {
            state.renew(model);
        }
    }

    /// The probability that a member has made this call.
    pub(super) fn share(&self, member: usize, call: u64) -> f64 {
        let hypotheses = self.hypotheses.iter();
        let made = hypotheses.map(|h| match h.states.get(member) {
            Some(state) => h.weight * f64::from(state.made(call)),
            None => 0.0,
        });
        made.sum()
    }

    /// How many ends that would be surprises were to be expected on the way of a member.
    pub(super) fn usual_surprises(&self, model: &mut Model, member: usize) -> f64 {
        let hypotheses = self.hypotheses.iter();
        let usual = hypotheses.map(|h| match h.states.get(member) {
            Some(state) => h.weight * state.usual_surprises(model),
            None => 0.0,
        });
        usual.sum()
    }

    /// Some of the steps of a member may not be remembered.
    pub(super) fn is_full(&self, member: usize) -> bool {
        let likeliest = self.hypotheses.first();
        let state = likeliest.and_then(|h| h.states.get(member));
        state.is_some_and(State::is_full)
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
            evidence: self.evidence + other.evidence,
            members: self.members,
            calls: self.calls,
        };
        merged.members.extend(other.members);
        merged.calls.extend(other.calls);
        merged.normalize();
        merged
    }

    /// A request that has just begun.
    pub(super) fn new(request: &Request, progress: Progress, node: NodeId, now_us: u64) -> Self {
        let connection = Connection::to_application(request.connection);
        Self {
            members: vec![request.number],
            calls: Vec::new(),
            hypotheses: vec![Hypothesis {
                weight: 1.0,
                states: vec![State::new(progress, node, now_us, connection)],
                owners: Vec::new(),
            }],
            at_us: now_us,
            evidence: 0.0,
        }
    }

    /// Calls of this kind, with this connection, per millisecond that the member is expected
    /// to make.
    pub(super) fn rate(
        &self,
        model: &Model,
        member: usize,
        now_us: u64,
        (kind, connection): (Name, Connection),
    ) -> f64 {
        let rates = self.hypotheses.iter().map(|hypothesis| {
            let state = hypothesis.states.get(member);
            let rate = state.map_or(0.0, |state| {
                state.call_rate(model, now_us, (kind, connection))
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
                state.step(model, now_us, Step::Returned, (0, Connection::NONE));
            }
        }
    }

    /// A member has been answered: weighs the hypotheses by how likely each made
    /// that. Returns how probable it was, by what is certain of its route, that
    /// it ended rather than made a call.
    pub(super) fn ended(
        &mut self,
        model: &Model,
        now_us: u64,
        member: usize,
        counts: Option<&mut Counts>,
    ) -> f64 {
        self.advance(model, now_us);
        let mut expected = 0.0;
        for hypothesis in &mut self.hypotheses {
            if let Some(state) = hypothesis.states.get(member) {
                expected +=
                    hypothesis.weight * f64::from(model.nodes.certain_end_share(state.node));
                let us = state.waited_us(now_us);
                hypothesis.weight *= f64::from(state.gain * model.nodes.end_rate(state.node, us));
            }
        }
        self.normalize();
        if let Some(counts) = counts {
            for hypothesis in &self.hypotheses {
                let state = hypothesis.states.get(member);
                if let Some(position) = state.and_then(|state| state.position) {
                    counts.went_on(position, hypothesis.weight as f32);
                }
            }
        }
        expected
    }

    /// Teaches a model the steps of a member that has been answered. `certain`: the weight
    /// from which on a hypothesis is taken for certain; `None`: as far as it is likely.
    pub(super) fn teach(
        &self,
        model: &mut Model,
        now_us: u64,
        (member, connection): (usize, u8),
        certain: Option<f32>,
    ) {
        for hypothesis in &self.hypotheses {
            let Some(state) = hypothesis.states.get(member) else {
                continue;
            };
            let weight = hypothesis.weight as f32;
            if weight < TAUGHT {
                continue;
            }
            let certain = |weight: f32| match certain {
                Some(least) => f32::from(u8::from(weight > least)),
                None => weight,
            };
            let (mut next, mut first) = (Connection::NONE, Connection::NONE);
            let us = state.waited_us(now_us);
            model.learn_step(state.progress(), us, Step::Ended, weight);
            model.learn_certain(state.progress(), true, certain(weight));
            let mut path = state.path.as_deref();
            while let Some(step) = path {
                let weight = weight * step.share;
                model.learn_step(step.progress, step.us, step.step, weight);
                model.learn_certain(step.progress, false, certain(weight));
                if matches!(step.step, Step::Called(_)) {
                    first = Connection::NONE;
                    if weight > LIKELY {
                        model.connections.learn(step.connection, next, weight);
                        (first, next) = (step.connection, step.connection);
                    }
                }
                path = step.previous.as_deref();
            }
            let connection = Connection::to_application(connection);
            model.first_connections.learn(connection, first, weight);
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
