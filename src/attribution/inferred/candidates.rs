//! The requests that a call may belong to, before the belief has weighed them.

use super::engine::Engine;
use super::model::Connection;
use crate::attribution::in_flight::InFlight;
use crate::attribution::names::Name;
use crate::attribution::signature::Token;

/// A request that a call may belong to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    /// Its number.
    pub(super) request: u64,
    /// Index of its cluster.
    pub(super) cluster: usize,
    /// Calls of this kind per millisecond.
    pub(super) rate: f64,
    /// The rate is not that of the belief, but at least to be expected.
    pub(super) is_least: bool,
    /// The least that the rate may be taken for, since the belief may be wrong.
    pub(super) usual: f64,
    /// How much likelier tokens make it.
    pub(super) tokens: f64,
}

impl Candidate {
    /// A request that is known to have made the call.
    pub(super) fn known(request: u64, cluster: usize) -> Self {
        Self {
            request,
            cluster,
            rate: 1e-6,
            is_least: true,
            usual: 1e-6,
            tokens: 1.0,
        }
    }

    /// In proportion to the probability that it has made the call.
    pub(super) fn weight(&self) -> f64 {
        self.rate * self.tokens
    }

    /// The same, if the belief is wrong about where it is.
    pub(super) fn usual_weight(&self) -> f64 {
        self.usual * self.tokens
    }

    /// Calls per millisecond that are to be expected of it at least.
    pub(super) fn least(&self) -> f64 {
        if self.is_least { self.rate } else { 0.0 }
    }
}

/// The only request in flight makes calls of a kind if no more than this part of them, by
/// the plainest of estimates, is of the background.
const EXCLUSIVE: f32 = 0.05;

impl Engine {
    /// Every request in flight, as a candidate for a call of this kind with this connection
    /// and these tokens; and the rate of the background per millisecond.
    pub(super) fn candidates(
        &mut self,
        now_us: u64,
        (kind, connection): (Name, Connection),
        tokens: &[Token],
        in_flight: &InFlight,
    ) -> (Vec<Candidate>, f64) {
        let doubt = self.surprises.doubt();
        let mut candidates = Vec::with_capacity(self.requests.len());
        for (at, cluster) in self.clusters.iter_mut().enumerate() {
            cluster.advance(&self.model, now_us);
            for (member, request) in cluster.members.iter().enumerate() {
                let known = self.requests.iter().find(|known| known.number == *request);
                let Some(known) = known else {
                    continue;
                };
                let usual = doubt * f64::from(self.model.routes.call_rate(known.route, kind));
                let rate = cluster.rate(&self.model, member, now_us, (kind, connection));
                let shared = tokens.iter().filter(|token| known.tokens.contains(token));
                let of_tokens = &self.model.tokens;
                let ratios = shared.map(|token| f64::from(of_tokens.likelihood_ratio(*token)));
                // One that is in several parts of a request is no more than one.
                let ratio = ratios.reduce(f64::max);
                let ratio =
                    ratio.unwrap_or_else(|| f64::from(of_tokens.likelihood_ratio_without(kind)));
                // A token of its own makes up for a belief that is wrong.
                let is_least = ratio > 1.0 && rate < usual;
                candidates.push(Candidate {
                    request: *request,
                    cluster: at,
                    rate: if is_least { usual } else { rate },
                    is_least,
                    usual,
                    tokens: ratio,
                });
            }
        }
        let mut background = f64::from(self.model.background.rate(kind));
        if in_flight.active(now_us) == 1 && in_flight.all_tracked() {
            let is_active = |candidate: &&mut Candidate| {
                let request = in_flight.get(candidate.request);
                request.is_some_and(|request| request.is_active(now_us))
            };
            let (own, others) = self.model.background.rates_alone(kind);
            if others <= EXCLUSIVE * own
                && let Some(only) = candidates.iter_mut().find(is_active)
            {
                only.is_least |= only.rate < f64::from(own);
                only.rate = only.rate.max(f64::from(own));
                background = background.min(f64::from(others));
            }
        }
        (candidates, background)
    }
}
