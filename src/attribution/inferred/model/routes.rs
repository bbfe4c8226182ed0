//! What the requests of a route do in all, however far they are.

use super::kinds::KindWeights;
use crate::attribution::buckets::ms;
use crate::attribution::names::{NAMES, Name};

/// Milliseconds in flight after which half is forgotten.
const HALVED_MS: f32 = 200_000.0;

#[derive(Clone, Copy, Debug, Default)]
struct Totals {
    /// Milliseconds in flight.
    ms: f32,
    /// Calls.
    kinds: KindWeights,
}

/// What the requests of each route do in all; 0 is of all routes together.
#[derive(Clone, Debug)]
pub(in crate::attribution::inferred) struct Routes(Vec<Totals>);

impl Default for Routes {
    fn default() -> Self {
        Self(vec![Totals::default(); NAMES])
    }
}

impl Routes {
    /// Calls of this kind per millisecond by a request of this route of which
    /// nothing else is known.
    pub(in crate::attribution::inferred) fn call_rate(&self, route: Name, kind: Name) -> f32 {
        let Some(totals) = self.0.get(usize::from(route)) else {
            return 0.0;
        };
        (totals.kinds.of(kind) + 0.002) / (totals.ms + 1.0)
    }

    /// A request of this route was in flight for so long.
    pub(in crate::attribution::inferred) fn learn_duration(&mut self, route: Name, us: u64) {
        for route in [route, 0] {
            if let Some(totals) = self.0.get_mut(usize::from(route)) {
                totals.ms += ms(us);
                if totals.ms > HALVED_MS {
                    totals.ms *= 0.5;
                    totals.kinds.halve();
                }
            }
        }
    }

    /// A request of this route has made such a call, with this probability.
    pub(super) fn learn_call(&mut self, route: Name, kind: Name, weight: f32) {
        for route in [route, 0] {
            if let Some(totals) = self.0.get_mut(usize::from(route)) {
                totals.kinds.add(kind, weight);
            }
        }
    }

    pub(super) fn forget_route(&mut self, route: Name) {
        if let Some(totals) = self.0.get_mut(usize::from(route)) {
            *totals = Totals::default();
        }
    }

    pub(super) fn forget_kind(&mut self, kind: Name) {
        for totals in &mut self.0 {
            totals.kinds.forget(kind);
        }
    }
}
