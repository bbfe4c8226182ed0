//! A number for each of a few kinds of calls.

use crate::attribution::names::Name;

/// A weight for each kind of call that has one.
#[derive(Clone, Debug, Default)]
pub(super) struct KindWeights(Vec<(Name, f32)>);

impl KindWeights {
    #[inline(never)]
    pub(super) fn of(&self, kind: Name) -> f32 {
        let found = self.0.iter().find(|(of, _)| *of == kind);
        found.map_or(0.0, |(_, count)| *count)
    }

    #[inline(never)]
    pub(super) fn add(&mut self, kind: Name, weight: f32) {
        match self.0.iter_mut().find(|(of, _)| *of == kind) {
            Some((_, count)) => *count += weight,
            None => self.0.push((kind, weight)),
        }
    }

    #[inline(never)]
    pub(super) fn halve(&mut self) {
        self.0.retain_mut(|(_, count)| {
            *count *= 0.5;
            *count > 1e-3
        });
    }

    pub(super) fn forget(&mut self, kind: Name) {
        self.0.retain(|(of, _)| *of != kind);
    }
}
