//! A call has come: each hypothesis goes on with each request that may have made it.

use super::{Cluster, HYPOTHESES, NEGLIGIBLE, NO_OWNER};
use crate::attribution::inferred::candidates::Candidate;
use crate::attribution::inferred::model::{Connection, Counts, Model, Position, Step};
use crate::attribution::names::Name;
use crate::attribution::numbers::sort_key;

/// A hypothesis, continued with one of the candidates for a call.
#[derive(Clone, Copy, Debug)]
struct Branch {
    weight: f64,
    hypothesis: usize,
    /// Index into the candidates; their number for the background.
    candidate: usize,
    /// Index into the members of the cluster, or [`NO_OWNER`].
    member: u8,
    position: Option<Position>,
}

impl Cluster {
    /// Continues each hypothesis with each of the candidates for a call, and with the
    /// background at this rate per millisecond. Returns the probability of each, the
    /// background's last.
    pub(in crate::attribution::inferred) fn branch(
        &mut self,
        model: &mut Model,
        now_us: u64,
        (call, kind, connection): (u64, Name, Connection),
        candidates: &[Candidate],
        background: f64,
        counts: Option<&mut Counts>,
    ) -> Vec<f64> {
        let mut members = Vec::with_capacity(candidates.len());
        for candidate in candidates {
            let is_it = |member: &u64| *member == candidate.request;
            members.push(self.members.iter().position(is_it));
        }
        let mut next: Vec<Branch> = Vec::new();
        for (at, hypothesis) in self.hypotheses.iter().enumerate() {
            for ((index, candidate), member) in candidates.iter().enumerate().zip(&members) {
                let state = member.and_then(|member| hypothesis.states.get(member));
                let (Some(member), Some(state)) = (member, state) else {
                    continue;
                };
                let rate = f64::from(state.call_rate(model, now_us, (kind, connection)));
                let rate = rate.max(candidate.least());
                next.push(Branch {
                    weight: hypothesis.weight * rate * candidate.tokens,
                    hypothesis: at,
                    candidate: index,
                    member: u8::try_from(*member).unwrap_or(NO_OWNER),
                    position: state.position,
                });
            }
            if background > 0.0 {
                next.push(Branch {
                    weight: hypothesis.weight * background,
                    hypothesis: at,
                    candidate: candidates.len(),
                    member: NO_OWNER,
                    position: None,
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
        if let Some(counts) = counts {
            for branch in &next {
                if let Some(position) = branch.position {
                    counts.went_on(position, (branch.weight / total) as f32);
                }
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
                state.step(model, now_us, Step::Called(kind), (call, connection));
            }
            self.hypotheses.push(hypothesis);
        }
        self.calls.push(call);
        self.at_us = self.at_us.max(now_us);
        self.normalize();
        shares
    }
}
