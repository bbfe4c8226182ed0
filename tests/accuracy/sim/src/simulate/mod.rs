//! Simulated applications behind a simulated sidecar: the events go through the
//! tracker of the core, and its answers are held against the truth.

mod app;
mod apps;
mod beside;
mod bound;
mod hard;
mod random;
mod run;
#[cfg(test)]
mod run_tests;
mod seen;
mod tables;
mod tally;
#[cfg(test)]
mod tests;
mod threads;

pub use beside::{Beside, beside, figures};
pub use random::worst;
pub use seen::Size;
pub use tables::{calibration, exclusive, table, thousands, windows};

use app::App;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use tally::{Tally, measure};

/// Requests in flight.
pub const LEVELS: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];

/// At which the Bayes bound is computed: with more, it takes minutes.
pub const BOUND_LEVELS: [usize; 5] = [1, 2, 4, 8, 16];

/// What is simulated of each application.
pub struct Plan {
    pub size: Size,
    pub levels: Vec<usize>,
    pub seeds: Range<u64>,
    /// The Bayes bound too, of the applications that it is known of; the others are left out.
    pub bound: bool,
}

/// What came out for an application: by level, and by seed.
pub struct Measured {
    app: App,
    levels: Vec<usize>,
    by_level: Vec<Vec<Tally>>,
}

impl Measured {
    /// At these levels only.
    pub fn at(&self, levels: &[usize]) -> Self {
        let all = self.levels.iter().zip(&self.by_level);
        let (levels, by_level) = all
            .filter(|(level, _)| levels.contains(level))
            .map(|(level, tallies)| (*level, tallies.clone()))
            .unzip();
        let app = self.app.clone();
        Self {
            app,
            levels,
            by_level,
        }
    }
}

/// All applications; or those of these names, or whose names hold one of them.
fn named(names: &[String]) -> Vec<App> {
    let all = apps::apps();
    let exact = |name: &String| all.iter().any(|app| app.name == name);
    let exact: Vec<bool> = names.iter().map(exact).collect();
    let asked = |app: &App| {
        let is_it = |(name, exact): (&String, &bool)| match exact {
            true => app.name == name,
            false => app.name.contains(name),
        };
        names.is_empty() || names.iter().zip(&exact).any(is_it)
    };
    all.iter().filter(|app| asked(app)).cloned().collect()
}

/// Runs every application, or those of these names, on all cores.
pub fn measure_all(names: &[String], plan: &Plan, wrong: f64) -> Vec<Measured> {
    let mut apps = named(names);
    apps.retain(|app| !plan.bound || bound::is_known(app));
    let seeds: Vec<u64> = plan.seeds.clone().collect();
    let per_app = plan.levels.len() * seeds.len();
    let found = on_all_cores(apps.len() * per_app, |job| {
        let app = &apps[job / per_app];
        let level = plan.levels[job % per_app / seeds.len()];
        let seed = seeds[job % seeds.len()];
        let mut tally = measure(app, level, plan.size, seed, wrong);
        if plan.bound {
            tally.bound = bound::bound(app, level, plan.size, seed, wrong);
        }
        tally
    });
    let by_app = apps.into_iter().zip(found.chunks(per_app.max(1)));
    by_app
        .map(|(app, tallies)| Measured {
            app,
            levels: plan.levels.clone(),
            by_level: tallies.chunks(seeds.len()).map(<[_]>::to_vec).collect(),
        })
        .collect()
}

/// Runs applications that are drawn with these seeds.
pub fn measure_random(seeds: Range<u64>, wrong: f64) -> Vec<(random::Drawn, Tally)> {
    let drawn: Vec<_> = seeds.map(random::drawn).collect();
    let found = on_all_cores(drawn.len(), |job| drawn[job].measure(wrong));
    drawn.into_iter().zip(found).collect()
}

fn on_all_cores(jobs: usize, work: impl Fn(usize) -> Tally + Sync) -> Vec<Tally> {
    let next = AtomicUsize::new(0);
    let found = Mutex::new(vec![Tally::default(); jobs]);
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                loop {
                    let job = next.fetch_add(1, Ordering::Relaxed);
                    if job >= jobs {
                        break;
                    }
                    let tally = work(job);
                    found.lock().unwrap()[job] = tally;
                }
            });
        }
    });
    found.into_inner().unwrap()
}
