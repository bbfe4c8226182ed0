//! A call has come: each hypothesis goes on with each request that may have made it.

use super::{Cluster, HYPOTHESES, NEGLIGIBLE, NO_OWNER};
use crate::attribution::inferred::candidates::Candidate;
use crate::attribution::inferred::model::{Model, Rank, Step};
use crate::attribution::names::Name;
use crate::attribution::sort::sort_key;

/// A hypothesis, continued with one of the candidates for a call.
#[derive(Clone, Copy, Debug)]
struct Branch {
    weight: f64,
    hypothesis: usize,
    /// Index into the candidates; their number for the background.
    candidate: usize,
    /// Index into the members of the cluster, or [`NO_OWNER`].
    member: u8,
    since_us: u64,
    rank: Option<Rank>,
}

/// Weighs the candidates for a call by how long each has waited, among those that may
/// well have made it.
fn weigh_by_rank(model: &Model, branches: &mut [Branch]) {
    let total: f64 = branches.iter().map(|branch| branch.weight).sum();
    let may = |branch: &&mut Branch| branch.weight > 0.02 * total;
    let mut queue: Vec<&mut Branch> = branches.iter_mut().filter(may).collect();
    if queue.len() < 2 {
        return;
    }
    // The earliest first.
    queue.sort_by_cached_key(|branch| branch.since_us);
    let shares: Vec<f64> = queue.iter().map(|branch| branch.weight / total).collect();
    let mut weighed = 0.0;
    for (branch, rank) in queue.iter_mut().zip(Rank::all(&shares)) {
        branch.weight *= f64::from(model.ranks.ratio(rank));
        branch.rank = Some(rank);
        weighed += branch.weight;
    }
    // Ranks say which of them it was, and not that it was one of them.
    let sum = total * shares.iter().sum::<f64>();
    for branch in queue {
        branch.weight *= sum / weighed;
    }
}

impl Cluster {
    /// Continues each hypothesis with each of the candidates for a call, and with the
    /// background at this rate per millisecond. Returns the probability of each, the
    /// background's last.
    pub(in crate::attribution::inferred) fn branch(
        &mut self,
        model: &mut Model,
        now_us: u64,
        (call, kind): (u64, Name),
        candidates: &[Candidate],
        background: f64,
    ) -> Vec<f64> {
        let mut members = Vec::with_capacity(candidates.len());
        for candidate in candidates {
            let is_it = |member: &u64| *member == candidate.request;
            members.push(self.members.iter().position(is_it));
        }
        let mut next: Vec<Branch> = Vec::new();
        for (at, hypothesis) in self.hypotheses.iter().enumerate() {
            let first = next.len();
            for ((index, candidate), member) in candidates.iter().enumerate().zip(&members) {
                let state = member.and_then(|member| hypothesis.states.get(member));
                let (Some(member), Some(state)) = (member, state) else {
                    continue;
                };
                let us = state.waited_us(now_us);
                let rate = f64::from(model.nodes.call_rate(state.node, us, kind));
                let rate = rate.max(candidate.least());
                next.push(Branch {
                    weight: hypothesis.weight * rate * candidate.tokens,
                    hypothesis: at,
                    candidate: index,
                    member: u8::try_from(*member).unwrap_or(NO_OWNER),
                    since_us: state.since_us,
                    rank: None,
                });
            }
            weigh_by_rank(model, next.get_mut(first..).unwrap_or_default());
            if background > 0.0 {
                next.push(Branch {
                    weight: hypothesis.weight * background,
                    hypothesis: at,
                    candidate: candidates.len(),
                    member: NO_OWNER,
                    since_us: now_us,
                    rank: None,
                });
            }
        }
        let total: f64 = next.iter().map(|branch| branch.weight).sum();
        let mut shares = vec![0.0; candidates.len() + 1];
        for branch in &next {
            if let Some(share) = shares.get_mut(branch.candidate) {
                *share += branch.weight / total;
            }
        }
        next.sort_by_cached_key(|branch| !sort_key(branch.weight));
        next.truncate(HYPOTHESES);
        let most = next.first().map_or(0.0, |first| first.weight);
        next.retain(|branch| branch.weight >= most * NEGLIGIBLE);
        let hypotheses = std::mem::take(&mut self.hypotheses);
        for branch in next {
            let Some(mut hypothesis) = hypotheses.get(branch.hypothesis).cloned() else {
                continue;
            };
            hypothesis.weight = branch.weight;
            hypothesis.owners.push(branch.member);
            if let Some(state) = hypothesis.states.get_mut(usize::from(branch.member)) {
                state.step(model, now_us, Step::Called(kind), branch.rank);
            }
            self.hypotheses.push(hypothesis);
        }
        self.calls.push(call);
        self.at_us = now_us;
        self.normalize();
        shares
    }
}
