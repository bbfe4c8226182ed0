//! Hypotheses that say the same become one, and requests without doubt leave a cluster:
//! the work grows with the doubt and not with the load.

use super::{Cluster, Hypothesis, NO_OWNER};
use crate::attribution::numbers::sort_key;

impl Cluster {
    /// Clusters of one member each, for the members without doubt, and one of the others.
    pub(in crate::attribution::inferred) fn settle(mut self) -> Vec<Self> {
        self.forget_calls_without_owner();
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

    /// Forgets calls that have no owner in any hypothesis.
    fn forget_calls_without_owner(&mut self) {
        let owned = |at: usize| {
            let mut hypotheses = self.hypotheses.iter();
            hypotheses.any(|h| h.owners.get(at).is_some_and(|owner| *owner != NO_OWNER))
        };
        let has_owner: Vec<bool> = (0..self.calls.len()).map(owned).collect();
        if has_owner.iter().all(|has| *has) {
            return;
        }
        self.keep_calls(&has_owner);
    }

    /// Forgets the other calls.
    #[inline(never)]
    fn keep_calls(&mut self, kept: &[bool]) {
        let mut each = kept.iter();
        self.calls.retain(|_| each.next().is_some_and(|kept| *kept));
        for hypothesis in &mut self.hypotheses {
            let mut each = kept.iter();
            let owners = &mut hypothesis.owners;
            owners.retain(|_| each.next().is_some_and(|kept| *kept));
        }
    }

    /// Makes one hypothesis of several that say the same now.
    fn join(&mut self) {
        let mut different: Vec<Hypothesis> = Vec::with_capacity(self.hypotheses.len());
        let mut hypotheses = std::mem::take(&mut self.hypotheses);
        hypotheses.sort_by_cached_key(|hypothesis| !sort_key(hypothesis.weight));
        for hypothesis in hypotheses {
            let same = different.iter_mut().find(|other| {
                other.owners == hypothesis.owners
                    && other
                        .states
                        .iter()
                        .zip(&hypothesis.states)
                        .all(|(a, b)| a.is(b))
            });
            match same {
                Some(other) => {
                    let part = hypothesis.weight / (other.weight + hypothesis.weight);
                    for (state, joined) in other.states.iter_mut().zip(&hypothesis.states) {
                        state.join(joined, part as f32);
                    }
                    other.weight += hypothesis.weight;
                }
                None => different.push(hypothesis),
            }
        }
        self.hypotheses = different;
    }

    /// A member of which every hypothesis says the same.
    fn agreed(&self) -> Option<usize> {
        let first = self.hypotheses.first()?;
        (0..self.members.len()).find(|&member| {
            let state = first.states.get(member);
            let index = u8::try_from(member).unwrap_or(NO_OWNER);
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

    /// Makes a cluster of one member, with the calls that are its own in every hypothesis.
    fn split(&mut self, member: usize) -> Cluster {
        let mut apart = Cluster {
            at_us: self.at_us,
            ..Cluster::default()
        };
        let index = u8::try_from(member).unwrap_or(NO_OWNER);
        let Some(first) = self.hypotheses.first() else {
            return apart;
        };
        let mut state = first.states.get(member).cloned();
        let mut weight = first.weight;
        for hypothesis in self.hypotheses.iter().skip(1) {
            if let (Some(state), Some(joined)) = (&mut state, hypothesis.states.get(member)) {
                weight += hypothesis.weight;
                state.join(joined, (hypothesis.weight / weight) as f32);
            }
        }
        apart.members.push(self.members.remove(member));
        let others: Vec<bool> = first.owners.iter().map(|owner| *owner != index).collect();
        for (call, is_other) in self.calls.iter().zip(&others) {
            if !is_other {
                apart.calls.push(*call);
            }
        }
        apart.hypotheses.push(Hypothesis {
            weight: 1.0,
            states: state.into_iter().collect(),
            owners: vec![0; apart.calls.len()],
        });
        self.keep_calls(&others);
        for hypothesis in &mut self.hypotheses {
            hypothesis.states.remove(member);
            for owner in &mut hypothesis.owners {
                if *owner != NO_OWNER && *owner > index {
                    *owner -= 1;
                }
            }
        }
        apart
    }
}
