//! Applications that nobody has thought of: the same ones for the same seeds.

use super::app::{After, App, Call, Clients, Keyed, Polls, Route, call};
use super::seen::Size;
use super::tally::{Tally, measure};
use rand::prelude::*;
use rand::rngs::SmallRng;

/// Kinds of calls that no request makes, but jobs and the background.
const OWN: u32 = 40;
/// Applications of each list.
const WORST: usize = 12;

/// An application with its load.
pub struct Drawn {
    pub app: App,
    pub clients: usize,
    pub size: Size,
    pub seed: u64,
}

struct Random(SmallRng);

impl Random {
    fn chance(&mut self, chance: f64) -> bool {
        self.0.random::<f64>() < chance
    }

    fn one_of<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.0.random_range(0..values.len())]
    }

    /// Small values are as likely as great ones.
    fn between(&mut self, from: f64, to: f64) -> f64 {
        let value = from * (to / from).powf(self.0.random());
        // For people to read.
        let digits = 10f64.powf(2.0 - value.log10().ceil());
        (value * digits).round() / digits
    }

    /// `usual`, or with this probability between the others.
    fn or(&mut self, usual: f64, chance: f64, [from, to]: [f64; 2]) -> f64 {
        match self.chance(chance) {
            true => self.between(from, to),
            false => usual,
        }
    }

    fn call(&mut self, times: &[f64]) -> Call {
        let kind = self.0.random_range(0..times.len());
        Call {
            chance: self.or(1.0, 0.2, [0.03, 0.97]),
            retry: self.or(0.0, 0.1, [0.01, 0.5]),
            times: times[kind],
            ..call(1 + kind as u32)
        }
    }

    fn route(&mut self, times: &[f64]) -> Route {
        let mut route = Route::new();
        for _ in 0..self.one_of(&[0, 1, 1, 2, 2, 2, 3, 4]) {
            let at_once = self.one_of(&[1, 1, 1, 1, 1, 2, 3, 6]);
            let step: Vec<Call> = (0..at_once).map(|_| self.call(times)).collect();
            // One after the other, of a list.
            let again = if self.chance(0.05) { 4 } else { 1 };
            route.extend(vec![step; again]);
        }
        route
    }

    fn routes(&mut self, times: &[f64]) -> Vec<Route> {
        let routes = self.one_of(&[1, 1, 2, 3, 4, 6, 10]);
        (0..routes).map(|_| self.route(times)).collect()
    }

    /// Of requests, or of its own.
    fn kind(&mut self, of_requests: bool) -> u32 {
        match of_requests {
            true => self.one_of(&[1, 2, 3]),
            false => self.one_of(&[OWN, OWN + 1, OWN + 2]),
        }
    }

    fn background(&mut self) -> Vec<(u32, f64)> {
        let of_requests = self.chance(0.5);
        let kinds = self.one_of(&[0, 0, 0, 1, 1, 2, 3]);
        let one = |_| (self.kind(of_requests), self.between(0.2, 100.0));
        (0..kinds).map(one).collect()
    }

    fn job(&mut self) -> After {
        let of_requests = self.chance(0.5);
        let kinds = self.one_of(&[1, 1, 2, 3]);
        After {
            chance: self.or(1.0, 0.8, [0.02, 1.0]),
            kinds: (0..kinds).map(|_| self.kind(of_requests)).collect(),
            ms: match self.chance(0.5) {
                true => [0.0, self.between(0.5, 20.0)],
                false => [2.0, self.between(20.0, 3000.0)],
            },
        }
    }

    /// What other routes do from the middle on.
    fn deploy(&mut self, routes: &[Route], times: &[f64]) -> Vec<Route> {
        let mut routes = routes.to_vec();
        match self.one_of(&[0, 1, 2]) {
            0 => routes.shuffle(&mut self.0),
            1 => routes.fill_with(|| self.route(times)),
            _ => {
                let one = self.0.random_range(0..routes.len());
                routes[one] = self.route(times);
            }
        }
        routes
    }

    fn app(&mut self) -> App {
        let kinds = self.one_of(&[3, 3, 4, 6, 12, 30]);
        let uneven = self.chance(0.4);
        let times = |_| self.or(1.0, if uneven { 1.0 } else { 0.0 }, [0.2, 5.0]);
        let times: Vec<f64> = (0..kinds).map(times).collect();
        let mut routes = self.routes(&times);
        let workers = if self.chance(0.06) {
            self.one_of(&[1, 2, 4])
        } else {
            0
        };
        if workers > 0 {
            for call in routes.iter_mut().flatten().flatten() {
                call.queued = self.chance(0.5);
            }
        }
        let threads = match self.chance(0.25) {
            true => Some(self.one_of(&[1, 2, 4, 8, 16])),
            false => None,
        };
        App {
            name: "random",
            says: "drawn by lot",
            skew: self.or(1.0, 0.3, [1.2, 4.0]),
            early: self.or(0.0, 0.15, [0.003, 0.3]),
            hosts: self.one_of(&[1, 2, 30]),
            cpu_ms: self.between(0.1, 3.0),
            io_ms: self.between(1.0, 200.0),
            io_tail: self.or(0.6, 0.4, [0.05, 1.5]),
            pause_ms: self.or(5.0, 0.5, [0.1, 300.0]),
            cores: self.one_of(&[None, None, None, None, Some(1), Some(1), Some(2), Some(4)]),
            busier: self.or(0.0, 0.1, [0.01, 0.3]),
            tail: self.or(0.5, 0.4, [0.05, 1.5]),
            threads,
            workers,
            background: self.background(),
            late_background: self.chance(0.3),
            after: self.chance(0.15).then(|| self.job()),
            cancelled: self.or(0.0, 0.15, [0.003, 0.4]),
            polls: self.chance(0.06).then(|| Polls {
                clients: self.one_of(&[1, 4, 20]),
                seconds: self.between(1.0, 60.0),
            }),
            stalls: match self.chance(0.06) {
                true => Some(self.one_of(&[[2000, 200], [500, 20], [10_000, 1000]])),
                false => None,
            },
            deploy: self.chance(0.2).then(|| self.deploy(&routes, &times)),
            drift: self.or(1.0, 0.1, [0.25, 4.0]),
            bursts: self.chance(0.12),
            jitter_us: self.one_of(&[0, 0, 0, 0, 0, 50, 200, 500]),
            token: self.chance(0.04),
            keyed: self.chance(0.1).then(|| Keyed {
                share: self.between(0.02, 0.9),
                kind: self.one_of(&[None, Some(1), Some(2)]),
            }),
            clients: match (self.chance(0.15), threads) {
                (false, _) => Clients::Shared,
                (true, None) => Clients::PerConnection,
                (true, Some(_)) => Clients::PerThread,
            },
            routes,
        }
    }
}

pub fn drawn(seed: u64) -> Drawn {
    let mut random = Random(SmallRng::seed_from_u64(seed));
    Drawn {
        app: random.app(),
        clients: random.one_of(&[1, 2, 3, 4, 6, 8, 8, 12, 16, 24, 32, 64]),
        size: Size {
            requests: 6000,
            quiet: random.one_of(&[1, 1, 1000]),
        },
        seed,
    }
}

impl Drawn {
    pub fn measure(&self, wrong: f64) -> Tally {
        measure(&self.app, self.clients, self.size, self.seed, wrong)
    }

    fn line(&self, tally: &Tally) -> String {
        let percent = |count: u32, of: u32| 100.0 * f64::from(count) / f64::from(of.max(1));
        let [all, wrong, alone_wrong] = tally.all;
        let of = tally.right + tally.unsure + tally.wrong;
        let load = format!("{} clients, {} quiet", self.clients, self.size.quiet);
        format!(
            "seed {}: {load}: {all} calls; right {:.1}, wrong {:.2}, at worst {:.2}; \
             `exclusive` {:.1}, {:.2}, {:.2} | {:?}\n",
            self.seed,
            percent(tally.right, of),
            percent(wrong, all),
            100.0 * tally.worst,
            percent(tally.exclusive[0], of),
            percent(alone_wrong, all),
            100.0 * tally.worst_exclusive,
            self.app,
        )
    }
}

/// The part of the calls that is wrong, by one of the ways to count.
type Wrong = fn(&Tally) -> f64;

/// The worst of these applications.
pub fn worst(found: &[(Drawn, Tally)], promised: f64) -> String {
    let by: [(&str, Wrong); 4] = [
        ("`inferred`, of all calls", |tally| tally.of_all(1)),
        ("`inferred`, of 2,000 in a row", |tally| tally.worst),
        ("`exclusive`, of all calls", |tally| tally.of_all(2)),
        ("`exclusive`, of 2,000 in a row", |tally| {
            tally.worst_exclusive
        }),
    ];
    let mut text = String::new();
    for (says, wrong) in by {
        let mut sorted: Vec<_> = found.iter().collect();
        sorted.sort_by(|(_, a), (_, b)| wrong(b).total_cmp(&wrong(a)));
        let above = |times: f64| {
            let above = |(_, tally): &&(Drawn, Tally)| wrong(tally) > times * promised;
            found.iter().filter(above).count()
        };
        text += &format!(
            "# Wrong by {says}: {} of {} above what is promised, {} above twice as much\n",
            above(1.0),
            found.len(),
            above(2.0),
        );
        for (drawn, tally) in sorted.into_iter().take(WORST) {
            if wrong(tally) > promised {
                text += &drawn.line(tally);
            }
        }
    }
    text
}
