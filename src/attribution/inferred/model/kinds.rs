//! A number for each of a few kinds of calls.

use crate::attribution::names::Name;

/// Kinds at most.
const KINDS_MOST: usize = 16;

/// A weight for each of the kinds of call that have most.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct KindWeights([(Name, f32); KINDS_MOST]);

impl KindWeights {
    #[inline(never)]
    pub(super) fn of(&self, kind: Name) -> f32 {
        let found = self.0.iter().find(|(of, _)| *of == kind);
        found.map_or(0.0, |(_, weight)| *weight)
    }

    /// One more. If there are too many kinds, the least goes.
    #[inline(never)]
    pub(super) fn add(&mut self, kind: Name, weight: f32) {
        let known = self.0.iter().position(|(of, _)| *of == kind);
        let least = || {
            let kinds = self.0.iter().enumerate();
            let least = kinds.min_by(|a, b| a.1.1.total_cmp(&b.1.1));
            least.map_or(0, |(at, _)| at)
        };
        let at = known.unwrap_or_else(least);
        if let Some((of, sum)) = self.0.get_mut(at) {
            if *of != kind {
                (*of, *sum) = (kind, 0.0);
            }
            *sum += weight;
        }
    }

    #[inline(never)]
    pub(super) fn halve(&mut self) {
        for (_, weight) in &mut self.0 {
            *weight *= 0.5;
        }
    }

    pub(super) fn forget(&mut self, kind: Name) {
        for (of, weight) in &mut self.0 {
            if *of == kind {
                (*of, *weight) = (0, 0.0);
            }
        }
    }
}
