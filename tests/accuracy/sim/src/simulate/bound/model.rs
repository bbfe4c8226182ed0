//! What one knows who has the true parameters of an application.

use crate::simulate::app::{App, Call, Clients, Route};
use libm::erfc;
use std::f64::consts::SQRT_2;

/// What a request may do when a burst of CPU is over.
pub struct Outcome {
    /// The logarithm of its probability.
    pub ln: f64,
    /// The step that follows, when the calls have returned.
    pub step: usize,
    /// The calls that it makes, in this order; none: it answers. Places in `Model::calls`.
    pub calls: Vec<usize>,
}

/// By route and step.
type Outcomes = Vec<Vec<Vec<Outcome>>>;

pub struct Model {
    pub burst: Burst,
    pub cores: usize,
    pub threads: usize,
    pub calls: Vec<Call>,
    before: Outcomes,
    /// From the middle of the run on, if it is otherwise then.
    after: Option<Outcomes>,
    background: Vec<(u32, f64)>,
    late_background: bool,
    keyed: Option<crate::simulate::app::Keyed>,
}

impl Model {
    /// `None` for an application that does what is not modelled: its bound is not known.
    pub fn of(app: &App) -> Option<Self> {
        let every = || app.deploy.iter().flatten().chain(&app.routes);
        let queued = every().flatten().flatten().any(|call| call.queued);
        let modelled = !queued
            && app.workers == 0
            && app.busier == 0.0
            && app.after.is_none()
            && app.cancelled == 0.0
            && app.polls.is_none()
            && app.stalls.is_none()
            && app.jitter_us == 0
            && !app.token
            && app.clients == Clients::Shared;
        if !modelled {
            return None;
        }
        let mut calls = Vec::new();
        let before = outcomes(&app.routes, &mut calls);
        let after = app.deploy.as_ref();
        let after = after.map(|routes| outcomes(routes, &mut calls));
        Some(Self {
            burst: Burst::new(app.cpu_ms, app.tail),
            cores: app.cores.unwrap_or(usize::MAX),
            threads: app.threads.unwrap_or(usize::MAX),
            calls,
            before,
            after,
            background: app.background.clone(),
            late_background: app.late_background,
            keyed: app.keyed,
        })
    }

    pub fn outcomes(&self, route: usize, step: usize, is_late: bool) -> &[Outcome] {
        let now = self.after.as_ref().filter(|_| is_late);
        let steps = &now.unwrap_or(&self.before)[route];
        // A request that began before the change may be past the end of the new route.
        &steps[step.min(steps.len() - 1)]
    }

    /// The logarithm of the probability that in a given microsecond the background makes
    /// a call of this kind.
    pub fn background(&self, kind: u32, is_late: bool) -> f64 {
        let runs = is_late || !self.late_background;
        let of_kind = self.background.iter().filter(|(of, _)| runs && *of == kind);
        (of_kind.map(|(_, rate)| rate / 1e6).sum::<f64>()).ln()
    }

    /// The logarithm of the probability that a call of a request has no key.
    pub fn without_key(&self, kind: u32) -> f64 {
        let keyed = self
            .keyed
            .filter(|keyed| keyed.kind.is_none_or(|of| of == kind));
        (1.0 - keyed.map_or(0.0, |keyed| keyed.share)).ln()
    }
}

fn outcomes(routes: &[Route], calls: &mut Vec<Call>) -> Outcomes {
    let mut of_route = |route: &Route| {
        let mut places = Vec::new();
        for step in route {
            places.push((calls.len()..).take(step.len()).collect::<Vec<_>>());
            calls.extend(step);
        }
        let steps = 0..=route.len();
        steps.map(|step| from(route, &places, step)).collect()
    };
    routes.iter().map(&mut of_route).collect()
}

/// A step whose calls are all saved is skipped.
fn from(route: &Route, places: &[Vec<usize>], first: usize) -> Vec<Outcome> {
    let mut found = Vec::new();
    let mut reached: f64 = 1.0;
    for (step, calls) in route.iter().enumerate().skip(first) {
        for set in 0..1_u32 << calls.len() {
            let is_made = |n: usize| set >> n & 1 == 1;
            let chances = calls.iter().enumerate().map(|(n, call)| match is_made(n) {
                true => call.chance,
                false => 1.0 - call.chance,
            });
            let chance = reached * chances.product::<f64>();
            let made = places[step].iter().enumerate();
            let made: Vec<usize> = made.filter(|(n, _)| is_made(*n)).map(|(_, c)| *c).collect();
            if chance > 0.0 && !made.is_empty() {
                found.push(Outcome {
                    ln: chance.ln(),
                    step: step + 1,
                    calls: made,
                });
            }
        }
        reached *= calls.iter().map(|call| 1.0 - call.chance).product::<f64>();
    }
    if reached > 0.0 {
        found.push(Outcome {
            ln: reached.ln(),
            step: route.len(),
            calls: vec![],
        });
    }
    found
}

/// How long a burst of CPU takes: lognormal, in whole microseconds.
pub struct Burst {
    /// The logarithm of the probability that it takes so long at least.
    alive: Vec<f64>,
    /// The logarithm of the probability that it then ends within the microsecond.
    ends: Vec<f64>,
}

impl Burst {
    fn new(ms: f64, deviation: f64) -> Self {
        // In the unit of erfc: the distance from the median.
        let x = |us: u64| (us as f64 / 1000.0 / ms).ln() / deviation / SQRT_2;
        let (mut alive, mut ends) = (Vec::new(), Vec::new());
        for us in 0.. {
            let (from, to) = (x(us), x(us + 1));
            if from > 9.0 {
                break;
            }
            let lives = 0.5 * erfc(from);
            // The difference of the two tails that are small.
            let ending = match from > 0.0 {
                true => erfc(from) - erfc(to),
                false => erfc(-to) - erfc(-from),
            };
            alive.push(lives.ln());
            ends.push((0.5 * ending / lives).max(f64::MIN_POSITIVE).ln());
        }
        Self { alive, ends }
    }

    /// It took so long, in microseconds; that it then takes so long at least.
    pub fn survives(&self, from: u64, to: u64) -> f64 {
        let last = self.alive.len() - 1;
        let alive = |us: u64| {
            let at = (us as usize).min(last);
            self.alive[at] - (us as usize - at) as f64 * self.ends[last].exp()
        };
        alive(to) - alive(from)
    }

    pub fn ends(&self, us: u64) -> f64 {
        self.ends[(us as usize).min(self.ends.len() - 1)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::app::{call, plain};

    #[test]
    fn a_burst_ends_once() {
        let burst = Burst::new(0.3, 0.5);
        let each = |us| (burst.survives(0, us) + burst.ends(us)).exp();
        let sum: f64 = (0..20_000).map(each).sum();
        assert!((sum - 1.0).abs() < 1e-6, "{sum}");
        // Half of the bursts take the median at most.
        let half = burst.survives(0, 300).exp();
        assert!((half - 0.5).abs() < 1e-3, "{half}");
    }

    #[test]
    fn what_a_request_may_do_next_has_a_probability_of_1_in_all() {
        let maybe = Call {
            chance: 0.3,
            ..call(2)
        };
        let app = App {
            routes: vec![vec![vec![maybe, call(1)], vec![maybe, maybe], vec![maybe]]],
            ..plain()
        };
        let model = Model::of(&app).unwrap();
        for (step, count) in [(0, 2), (1, 5), (2, 2), (3, 1)] {
            let outcomes = model.outcomes(0, step, false);
            let sum: f64 = outcomes.iter().map(|outcome| outcome.ln.exp()).sum();
            assert!((sum - 1.0).abs() < 1e-9, "step {step}: {sum}");
            assert_eq!(outcomes.len(), count, "step {step}");
        }
    }
}
