//! Which calls requests of a route make, and how often.

use super::super::names::Name;
use super::cells::{add, get};

/// Kinds that are known of one route, at most; and calls outstanding of one request.
pub(super) const PAIRS: usize = 48;
/// How many calls of a kind a request has made is counted up to this.
pub(super) const COUNTED: usize = 5;

/// How often requests of a route make a call of one kind.
#[derive(Clone, Debug)]
pub(super) struct Pair {
    pub(super) kind: Name,
    /// By the number of calls before: requests that came so far, and those that made
    /// one more.
    pub(super) reached: [f32; COUNTED],
    pub(super) went_on: [f32; COUNTED],
    /// Milliseconds to the first call, and to each further one; and how many those were.
    pub(super) waits: [f32; 2],
    pub(super) waited: [f32; 2],
}

impl Pair {
    /// `requests`: those of the route that made no such call.
    pub(super) fn new(kind: Name, requests: f32) -> Self {
        let mut pair = Self {
            kind,
            reached: [0.0; COUNTED],
            went_on: [0.0; COUNTED],
            waits: [0.0; 2],
            waited: [0.0; 2],
        };
        add(&mut pair.reached, 0, requests);
        pair
    }

    /// The probability that a request which has made so many makes one more.
    pub(super) fn one_more(&self, made: usize) -> f32 {
        let mut chance: f32 = 0.5;
        for made in 0..=made.min(COUNTED - 1) {
            let reached = get(&self.reached, made);
            chance = match reached < 1.0 {
                true => 0.5 * chance,
                false => (get(&self.went_on, made) + 0.5) / (reached + 1.0),
            };
        }
        chance
    }

    /// How long a request waits with its first call or a further one; now so long.
    pub(super) fn wait(&self, made: usize, now_ms: f32) -> f32 {
        let at = usize::from(made > 0);
        (get(&self.waits, at) + now_ms) / (get(&self.waited, at) + 1.0)
    }

    /// A request has made so many in all.
    pub(super) fn learn(&mut self, made: usize) {
        for at in 0..=made {
            add(&mut self.reached, at.min(COUNTED - 1), 1.0);
            if at < made {
                add(&mut self.went_on, at.min(COUNTED - 1), 1.0);
            }
        }
        if get(&self.reached, 0) > 400.0 {
            self.reached = self.reached.map(|value| 0.5 * value);
            self.went_on = self.went_on.map(|value| 0.5 * value);
            self.waits = self.waits.map(|value| 0.5 * value);
            self.waited = self.waited.map(|value| 0.5 * value);
        }
    }
}

#[derive(Clone, Debug, Default)]
pub(super) struct Route {
    /// Requests that have begun.
    pub(super) begun: u64,
    /// Requests that were alone from beginning to end.
    pub(super) requests: f32,
    /// Of late, the longest of them, in milliseconds.
    pub(super) longest: f32,
    /// Until then one that was broken off when nothing was known may make any calls.
    pub(super) unknown_until_us: u64,
    pub(super) pairs: Vec<Pair>,
}

impl Route {
    pub(super) fn pair(&self, kind: Name) -> Option<&Pair> {
        self.pairs.iter().find(|pair| pair.kind == kind)
    }

    pub(super) fn pair_mut(&mut self, kind: Name) -> Option<&mut Pair> {
        let at = match self.pairs.iter().position(|pair| pair.kind == kind) {
            Some(at) => at,
            None => {
                if self.pairs.len() >= PAIRS {
                    // The one that is made most rarely.
                    let rate = |pair: &Pair| get(&pair.went_on, 0);
                    let pairs = self.pairs.iter().enumerate();
                    let rarest = pairs.min_by(|(_, a), (_, b)| rate(a).total_cmp(&rate(b)));
                    let rarest = rarest.map(|(at, _)| at)?;
                    self.pairs.swap_remove(rarest);
                }
                self.pairs.push(Pair::new(kind, self.requests));
                self.pairs.len() - 1
            }
        };
        self.pairs.get_mut(at)
    }
}
