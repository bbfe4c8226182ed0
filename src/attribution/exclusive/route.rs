//! Which calls requests of a route make, and how often.

use super::super::names::Name;
use super::cells::{add, get};

/// Kinds of calls that are known of one route, at most.
pub(super) const KINDS_PER_ROUTE: usize = 48;
/// The calls of a kind that one request has made are counted up to this.
pub(super) const COUNTED: usize = 5;
/// Requests after which half of what was counted is forgotten.
const HALVED_REQUESTS: f32 = 400.0;

/// How many calls of one kind a request of a route makes.
#[derive(Clone, Debug)]
pub(super) struct CallsPerRequest {
    pub(super) kind: Name,
    /// By the number of calls: requests that made at least so many, and those of them that
    /// made one more.
    pub(super) reached: [f32; COUNTED],
    pub(super) went_on: [f32; COUNTED],
    /// Milliseconds until the first call, and until each further one, and of how many calls
    /// that is the sum.
    pub(super) wait_ms: [f32; 2],
    pub(super) waits: [f32; 2],
}

impl CallsPerRequest {
    /// `requests`: those of the route that made no such call.
    pub(super) fn new(kind: Name, requests: f32) -> Self {
        let mut calls = Self {
            kind,
            reached: [0.0; COUNTED],
            went_on: [0.0; COUNTED],
            wait_ms: [0.0; 2],
            waits: [0.0; 2],
        };
        add(&mut calls.reached, 0, requests);
        calls
    }

    /// The probability that a request which has made so many makes one more.
    pub(super) fn probability_of_one_more(&self, made: usize) -> f32 {
        let mut probability: f32 = 0.5;
        for made in 0..=made.min(COUNTED - 1) {
            let reached = get(&self.reached, made);
            probability = match reached < 1.0 {
                true => 0.5 * probability,
                false => (get(&self.went_on, made) + 0.5) / (reached + 1.0),
            };
        }
        probability
    }

    /// The mean wait for the call after so many, in milliseconds; one wait of `now_ms` is
    /// counted with those that were seen.
    pub(super) fn mean_wait_ms(&self, made: usize, now_ms: f32) -> f32 {
        let at = usize::from(made > 0);
        (get(&self.wait_ms, at) + now_ms) / (get(&self.waits, at) + 1.0)
    }

    /// A request waited so long for the call after so many.
    pub(super) fn learn_wait(&mut self, made: usize, wait_ms: f32) {
        add(&mut self.wait_ms, usize::from(made > 0), wait_ms);
        add(&mut self.waits, usize::from(made > 0), 1.0);
    }

    /// A request has made so many in all.
    pub(super) fn learn(&mut self, made: usize) {
        for at in 0..=made {
            add(&mut self.reached, at.min(COUNTED - 1), 1.0);
            if at < made {
                add(&mut self.went_on, at.min(COUNTED - 1), 1.0);
            }
        }
        if get(&self.reached, 0) > HALVED_REQUESTS {
            self.reached = self.reached.map(|value| 0.5 * value);
            self.went_on = self.went_on.map(|value| 0.5 * value);
            self.wait_ms = self.wait_ms.map(|value| 0.5 * value);
            self.waits = self.waits.map(|value| 0.5 * value);
        }
    }
}

#[derive(Clone, Debug, Default)]
pub(super) struct Route {
    /// Requests that have begun.
    pub(super) begun: u64,
    /// Requests that were the only one in flight from beginning to end.
    pub(super) requests: f32,
    /// How long the longest of them took of late, in milliseconds.
    pub(super) longest: f32,
    /// Until then, an aborted request may make calls of any kind: nothing was known of the
    /// route when it was aborted.
    pub(super) unknown_until_us: u64,
    pub(super) calls: Vec<CallsPerRequest>,
}

impl Route {
    pub(super) fn calls_of(&self, kind: Name) -> Option<&CallsPerRequest> {
        self.calls.iter().find(|calls| calls.kind == kind)
    }

    /// The same; a kind that is new takes the place of the rarest, if there is no room.
    pub(super) fn calls_of_mut(&mut self, kind: Name) -> Option<&mut CallsPerRequest> {
        let at = match self.calls.iter().position(|calls| calls.kind == kind) {
            Some(at) => at,
            None => {
                if self.calls.len() >= KINDS_PER_ROUTE {
                    let rate = |calls: &CallsPerRequest| get(&calls.went_on, 0);
                    let known = self.calls.iter().enumerate();
                    let rarest = known.min_by(|(_, a), (_, b)| rate(a).total_cmp(&rate(b)));
                    let rarest = rarest.map(|(at, _)| at)?;
                    self.calls.swap_remove(rarest);
                }
                self.calls.push(CallsPerRequest::new(kind, self.requests));
                self.calls.len() - 1
            }
        };
        self.calls.get_mut(at)
    }
}
