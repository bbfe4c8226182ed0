//! What is believed of requests whose fates hang together: hypotheses about which
//! of them made which calls, each with its probability.

use super::model::{Model, Name, NodeId, Place, Step, Turn};
use std::rc::Rc;

/// A number that sorts like `x`, which is not negative. With `u64` as the key of every
/// sort, the module has one copy of std's sort; each further key type adds 6 KB.
pub(super) fn sort_key(x: f64) -> u64 {
    x.abs().to_bits()
}

/// Hypotheses of a cluster at most.
const HYPOTHESES: usize = 32;
/// What is less likely than this, beside the likeliest, is given up.
const NEGLIGIBLE: f64 = 1e-5;
/// Steps of one request that are remembered to learn from.
const STEPS: u16 = 64;
/// With this probability something else than the application holds a request
/// up (the machine is busy, a collector runs): no silence proves more than so.
const STALL: f32 = 0.05;
/// A call's owner in a hypothesis: no request in flight.
const NOBODY: u8 = u8::MAX;

#[derive(Clone, Debug)]
struct Path {
    node: NodeId,
    us: u64,
    step: Step,
    turn: Option<Turn>,
    length: u16,
    before: Option<Rc<Path>>,
}

/// Where a request is, in one hypothesis.
#[derive(Clone, Debug)]
struct State {
    place: Place,
    node: NodeId,
    since_us: u64,
    path: Option<Rc<Path>>,
}

impl State {
    fn is(&self, other: &Self) -> bool {
        self.node == other.node && self.since_us == other.since_us && self.place == other.place
    }

    fn step(&mut self, model: &mut Model, now_us: u64, step: Step, turn: Option<Turn>) {
        let length = self.path.as_ref().map_or(0, |path| path.length);
        if length < STEPS {
            self.path = Some(Rc::new(Path {
                node: self.node,
                us: now_us.saturating_sub(self.since_us),
                step,
                turn,
                length: length + 1,
                before: self.path.take(),
            }));
        }
        self.place = match step {
            Step::Called(kind) => self.place.called(kind),
            Step::Returned | Step::Ended => self.place.returned(),
        };
        self.node = model.node(self.place);
        self.since_us = now_us;
    }
}

#[derive(Clone, Debug)]
struct Hypothesis {
    weight: f64,
    /// Of each member.
    states: Vec<State>,
    /// Of each call: an index into the members, or [`NOBODY`].
    owners: Vec<u8>,
}

/// A request that a call may be of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Owner {
    pub(super) request: u64,
    /// How much likelier what is known besides makes it.
    pub(super) factor: f64,
    /// Calls per millisecond that are to be expected of it at least.
    pub(super) least: f64,
}

/// A hypothesis, continued with one of the owners that a call may have.
#[derive(Clone, Copy, Debug)]
struct Branch {
    weight: f64,
    hypothesis: usize,
    /// Index into the owners; one more than they are for nobody.
    owner: usize,
    member: u8,
    since_us: u64,
    turn: Option<Turn>,
}

/// Weighs the owners of a call by whose turn it was, among those that may well
/// have made it.
fn take_turns(model: &Model, branches: &mut [Branch]) {
    let total: f64 = branches.iter().map(|branch| branch.weight).sum();
    let may = |branch: &&mut Branch| branch.weight > 0.02 * total;
    let mut queue: Vec<&mut Branch> = branches.iter_mut().filter(may).collect();
    if queue.len() < 2 {
        return;
    }
    // The earliest first.
    queue.sort_by_cached_key(|branch| branch.since_us);
    let shares: Vec<f64> = queue.iter().map(|branch| branch.weight / total).collect();
    let mut after = 0.0;
    for (branch, turn) in queue.iter_mut().zip(Turn::all(&shares)) {
        branch.weight *= f64::from(model.turn_ratio(turn));
        branch.turn = Some(turn);
        after += branch.weight;
    }
    // Turns say which of them it was, and not that it was one of them.
    let before = total * shares.iter().sum::<f64>();
    for branch in queue {
        branch.weight *= before / after;
    }
}

/// Requests whose fates hang together.
#[derive(Clone, Debug, Default)]
pub(super) struct Cluster {
    pub(super) members: Vec<u64>,
    /// Calls that have not returned.
    pub(super) calls: Vec<u64>,
    hypotheses: Vec<Hypothesis>,
    /// The time of the weights.
    at_us: u64,
}

impl Cluster {
    fn normalize(&mut self) {
        let most = self.hypotheses.iter().map(|h| h.weight).fold(0.0, f64::max);
        if most <= 0.0 || !most.is_finite() {
            // Every hypothesis is impossible: as before, evenly.
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

    /// Weighs what has not happened since.
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
                        let survival = model.survival(node, from, now_us.saturating_sub(since));
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

    /// Calls that are nobody's in every hypothesis say nothing any more.
    fn forget_calls_of_nobody(&mut self) {
        let owned = |at: usize| {
            let mut hypotheses = self.hypotheses.iter();
            hypotheses.any(|h| h.owners.get(at).is_some_and(|owner| *owner != NOBODY))
        };
        let kept: Vec<bool> = (0..self.calls.len()).map(owned).collect();
        if kept.iter().all(|kept| *kept) {
            return;
        }
        let mut place = kept.iter();
        self.calls
            .retain(|_| place.next().is_some_and(|kept| *kept));
        for hypothesis in &mut self.hypotheses {
            let mut place = kept.iter();
            hypothesis
                .owners
                .retain(|_| place.next().is_some_and(|kept| *kept));
        }
    }

    /// Joins hypotheses that say the same now.
    fn join(&mut self) {
        let mut kept: Vec<Hypothesis> = Vec::with_capacity(self.hypotheses.len());
        let mut hypotheses = std::mem::take(&mut self.hypotheses);
        hypotheses.sort_by_cached_key(|hypothesis| !sort_key(hypothesis.weight));
        for hypothesis in hypotheses {
            let same = kept.iter_mut().find(|other| {
                other.owners == hypothesis.owners
                    && other
                        .states
                        .iter()
                        .zip(&hypothesis.states)
                        .all(|(a, b)| a.is(b))
            });
            match same {
                Some(other) => other.weight += hypothesis.weight,
                None => kept.push(hypothesis),
            }
        }
        self.hypotheses = kept;
    }

    /// A member of which every hypothesis says the same.
    fn agreed(&self) -> Option<usize> {
        let first = self.hypotheses.first()?;
        (0..self.members.len()).find(|&member| {
            let state = first.states.get(member);
            let index = u8::try_from(member).unwrap_or(NOBODY);
            self.hypotheses.iter().all(|h| {
                let same = match (state, h.states.get(member)) {
                    (Some(a), Some(b)) => a.is(b),
                    _ => false,
                };
                let mut owners = first.owners.iter().zip(&h.owners);
                same && owners.all(|(a, b)| (*a == index) == (*b == index))
            })
        })
    }

    /// Takes a member out, with the calls that are its in every hypothesis.
    fn split(&mut self, member: usize) -> Cluster {
        let mut apart = Cluster {
            at_us: self.at_us,
            ..Cluster::default()
        };
        let index = u8::try_from(member).unwrap_or(NOBODY);
        let Some(first) = self.hypotheses.first() else {
            return apart;
        };
        apart.members.push(self.members.remove(member));
        let own: Vec<bool> = first.owners.iter().map(|owner| *owner == index).collect();
        apart.hypotheses.push(Hypothesis {
            weight: 1.0,
            states: first.states.get(member).cloned().into_iter().collect(),
            owners: vec![0; own.iter().filter(|own| **own).count()],
        });
        let mut place = own.iter();
        self.calls.retain(|call| {
            let own = place.next().is_some_and(|own| *own);
            if own {
                apart.calls.push(*call);
            }
            !own
        });
        for hypothesis in &mut self.hypotheses {
            hypothesis.states.remove(member);
            let mut place = own.iter();
            hypothesis
                .owners
                .retain(|_| !place.next().is_some_and(|own| *own));
            for owner in &mut hypothesis.owners {
                if *owner != NOBODY && *owner > index {
                    *owner -= 1;
                }
            }
        }
        apart
    }

    /// This one and the other as one.
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
            NOBODY => NOBODY,
            owner => u8::try_from(usize::from(owner) + offset).unwrap_or(NOBODY),
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
    pub(super) fn of(request: u64, place: Place, node: NodeId, now_us: u64) -> Self {
        let state = State {
            place,
            node,
            since_us: now_us,
            path: None,
        };
        Self {
            members: vec![request],
            calls: Vec::new(),
            hypotheses: vec![Hypothesis {
                weight: 1.0,
                states: vec![state],
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
                model.call_rate(state.node, now_us.saturating_sub(state.since_us), kind)
            });
            hypothesis.weight * f64::from(rate)
        });
        rates.sum()
    }

    /// Continues each hypothesis with each of the owners that a call may have:
    /// requests, or nobody, at this rate. Returns the probability of each.
    pub(super) fn branch(
        &mut self,
        model: &mut Model,
        now_us: u64,
        (call, kind): (u64, Name),
        owners: &[Owner],
        nobody: f64,
    ) -> Vec<f64> {
        let mut members = Vec::with_capacity(owners.len());
        for owner in owners {
            members.push(self.members.iter().position(|m| *m == owner.request));
        }
        let mut next: Vec<Branch> = Vec::new();
        for (at, hypothesis) in self.hypotheses.iter().enumerate() {
            let first = next.len();
            for ((index, owner), member) in owners.iter().enumerate().zip(&members) {
                let state = member.and_then(|member| hypothesis.states.get(member));
                let (Some(member), Some(state)) = (member, state) else {
                    continue;
                };
                let us = now_us.saturating_sub(state.since_us);
                let rate = f64::from(model.call_rate(state.node, us, kind)).max(owner.least);
                next.push(Branch {
                    weight: hypothesis.weight * rate * owner.factor,
                    hypothesis: at,
                    owner: index,
                    member: u8::try_from(*member).unwrap_or(NOBODY),
                    since_us: state.since_us,
                    turn: None,
                });
            }
            take_turns(model, next.get_mut(first..).unwrap_or_default());
            if nobody > 0.0 {
                next.push(Branch {
                    weight: hypothesis.weight * nobody,
                    hypothesis: at,
                    owner: owners.len(),
                    member: NOBODY,
                    since_us: now_us,
                    turn: None,
                });
            }
        }
        let total: f64 = next.iter().map(|branch| branch.weight).sum();
        let mut shares = vec![0.0; owners.len() + 1];
        for branch in &next {
            if let Some(share) = shares.get_mut(branch.owner) {
                *share += branch.weight / total;
            }
        }
        next.sort_by_cached_key(|branch| !sort_key(branch.weight));
        next.truncate(HYPOTHESES);
        let most = next.first().map_or(0.0, |first| first.weight);
        next.retain(|branch| branch.weight >= most * NEGLIGIBLE);
        let before = std::mem::take(&mut self.hypotheses);
        for branch in next {
            let Some(mut hypothesis) = before.get(branch.hypothesis).cloned() else {
                continue;
            };
            hypothesis.weight = branch.weight;
            hypothesis.owners.push(branch.member);
            if let Some(state) = hypothesis.states.get_mut(usize::from(branch.member)) {
                state.step(model, now_us, Step::Called(kind), branch.turn);
            }
            self.hypotheses.push(hypothesis);
        }
        self.calls.push(call);
        self.at_us = now_us;
        self.normalize();
        shares
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
                expected += hypothesis.weight * f64::from(model.sure_end(state.node));
                let us = now_us.saturating_sub(state.since_us);
                hypothesis.weight *= f64::from(model.end_rate(state.node, us));
            }
        }
        self.normalize();
        expected
    }

    /// Learns from the way of a member that has been answered. `certain`: the
    /// weight from which on a hypothesis is taken for certain.
    pub(super) fn learn(&self, model: &mut Model, now_us: u64, member: usize, certain: f32) {
        for hypothesis in &self.hypotheses {
            let Some(state) = hypothesis.states.get(member) else {
                continue;
            };
            let weight = hypothesis.weight as f32;
            let certain = weight > certain;
            let us = now_us.saturating_sub(state.since_us);
            model.learn(state.node, us, Step::Ended, weight);
            if certain {
                model.learn_sure(state.node, true);
            }
            let mut path = state.path.as_deref();
            while let Some(step) = path {
                model.learn(step.node, step.us, step.step, weight);
                if let Some(turn) = step.turn.filter(|_| weight > 0.95) {
                    model.learn_turn(turn);
                }
                if certain {
                    model.learn_sure(step.node, false);
                }
                path = step.before.as_deref();
            }
        }
    }

    /// Takes a member out that is gone; calls that it has not waited for are
    /// nobody's from now on.
    pub(super) fn remove(&mut self, member: usize) {
        let index = u8::try_from(member).unwrap_or(NOBODY);
        if member < self.members.len() {
            self.members.remove(member);
        }
        for hypothesis in &mut self.hypotheses {
            if member < hypothesis.states.len() {
                hypothesis.states.remove(member);
            }
            for owner in &mut hypothesis.owners {
                *owner = match *owner {
                    NOBODY => NOBODY,
                    gone if gone == index => NOBODY,
                    later if later > index => later - 1,
                    earlier => earlier,
                };
            }
        }
    }

    /// Takes it apart into members that nobody doubts, one by one, and the rest.
    pub(super) fn settle(mut self) -> Vec<Self> {
        self.forget_calls_of_nobody();
        self.join();
        let mut parts = Vec::new();
        while self.members.len() > 1 {
            let Some(member) = self.agreed() else { break };
            parts.push(self.split(member));
        }
        if !self.members.is_empty() {
            parts.push(self);
        }
        parts
    }
}
