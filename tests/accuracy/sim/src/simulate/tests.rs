use super::app::{App, call, plain};
use super::apps::apps;
use super::random::drawn;
use super::tables::by_level;
use super::*;

const WRONG: f64 = 0.005;

/// Clients: the tables have more levels.
const TESTED: [usize; 4] = [1, 8, 16, 64];

/// Half of the 95 % interval of a share, after Wilson.
fn wilson(hits: u32, of: f64) -> f64 {
    let (share, z) = (f64::from(hits) / of, 1.96);
    z / (1.0 + z * z / of) * (share * (1.0 - share) / of + z * z / (4.0 * of * of)).sqrt()
}

/// What docs/accuracy-simulated.md shows, with fewer requests than the tables have.
#[test]
#[ignore = "takes a minute or more: make test-simulated"]
fn no_more_than_one_call_in_200_is_wrong_whatever_the_application() {
    let size = Size {
        requests: 4000,
        quiet: 1000,
    };
    let plan = Plan {
        size,
        levels: TESTED.to_vec(),
        seeds: 100..102,
        bound: false,
    };
    let measured = measure_all(&[], &plan, WRONG);
    for Measured { app, by_level, .. } in &measured {
        for (level, seeds) in TESTED.into_iter().zip(by_level) {
            let sum = Tally::of(seeds);
            let (right, wrong) = (sum.share(sum.right), sum.share(sum.wrong));
            let margin = 2.0 * wilson(sum.wrong, sum.calls());
            let says = format!(
                "{} at {level}: {right:.4} right, {wrong:.4} wrong",
                app.name
            );
            // Jobs of many requests in one queue are not modelled, and not always found out.
            let most = match (app.name, level) {
                ("queue-of-jobs", 64) => 2.0 * WRONG,
                _ => WRONG,
            };
            assert!(wrong <= most + margin, "{says}");
            let [_, alone] = sum.exclusive;
            let margin = 2.0 * wilson(alone, sum.calls());
            let of_them = sum.share(alone);
            assert!(
                of_them <= WRONG + margin,
                "{says}; `exclusive` {of_them:.4} wrong"
            );
            let least = match (app.name, level) {
                ("threads", 1) => 0.995,
                ("threads", 8) => 0.88,
                ("threads", 16) => 0.78,
                ("slow-calls", 64) => 0.85,
                ("token", _) => 0.99,
                _ => 0.0,
            };
            assert!(right >= least, "{says}");
            assert!(app.name != "token" || wrong <= 0.001, "{says}");
        }
        // What the filter says of itself is not much too good. That a call is made for a request
        // that is gone, and of a kind that others make, it cannot see.
        let is_blind = ["job-", "cancelled-", "queue-of-jobs"];
        if is_blind.iter().any(|name| app.name.starts_with(name)) {
            continue;
        }
        let sums: Vec<Tally> = by_level.iter().map(|seeds| Tally::of(seeds)).collect();
        let sum = Tally::of(&sums);
        let (was, expected) = (f64::from(sum.wrong), sum.expected);
        let says = format!("{}: expected {expected:.1} wrong, were {was}", app.name);
        assert!(was <= 2.0 * expected + 10.0, "{says}");
    }
    for (level, sum) in TESTED.into_iter().zip(by_level(&measured)).skip(1) {
        let (was, expected) = (f64::from(sum.wrong), sum.expected);
        let says = format!("at {level}: expected {expected:.1} wrong, were {was}");
        assert!(was <= 1.5 * expected && expected <= 6.0 * was, "{says}");
    }
}

fn assert_a_start_under_load_is_safe(requests: u64, levels: &[usize]) {
    let size = Size { requests, quiet: 1 };
    for app in &apps() {
        for &level in levels {
            let sum = measure(app, level, size, 7, WRONG);
            let wrong = sum.share(sum.wrong);
            let margin = 2.0 * wilson(sum.wrong, sum.calls());
            assert!(wrong <= WRONG + margin, "{} at {level}: {wrong}", app.name);
        }
    }
}

#[test]
fn a_start_under_load_is_safe() {
    assert_a_start_under_load_is_safe(2000, &[8]);
}

#[test]
#[ignore = "takes a minute or more: make test-simulated"]
fn a_start_under_load_is_safe_with_few_clients_and_with_many() {
    assert_a_start_under_load_is_safe(4000, &[1, 4, 16]);
}

fn assert_jobs_in_a_queue_are_found_out(
    levels: &[usize],
    seeds: impl Iterator<Item = u64> + Clone,
) {
    let size = Size {
        requests: 5000,
        quiet: 1,
    };
    let apps = apps();
    let app = apps.iter().find(|app| app.name == "queue-of-jobs").unwrap();
    for &level in levels {
        for seed in seeds.clone() {
            let found = measure(app, level, size, seed, WRONG);
            let says = format!("{level} clients, seed {seed}: {}", found.worst);
            assert!(found.worst <= WRONG, "{says}");
        }
    }
}

/// The first study, of a few requests, may find no rival of a wrong model: with these seeds it
/// finds none.
#[test]
fn jobs_in_a_queue_are_found_out_after_a_start_under_load() {
    assert_jobs_in_a_queue_are_found_out(&[8], [4, 7].into_iter());
}

#[test]
#[ignore = "takes half a minute: make test-simulated"]
fn jobs_in_a_queue_are_found_out_whatever_the_seed() {
    assert_jobs_in_a_queue_are_found_out(&[8, 16], 0..8);
}

/// What docs/attribution.md says of a pod that starts under load.
#[test]
fn a_start_under_load_is_learned() {
    let size = Size {
        requests: 4000,
        quiet: 1,
    };
    // The application, clients, and what is right of the calls of the fourth thousand of
    // requests at least.
    let least = [
        ("threads", 8, 0.86),
        ("parallel-background", 8, 0.85),
        ("event-loop", 8, 0.97),
        ("event-loop", 16, 0.94),
        ("pool-of-8", 16, 0.80),
        ("caches-retries", 8, 0.75),
        ("fan-out-of-6", 8, 0.85),
        ("fan-out-of-6", 16, 0.78),
        ("cancelled-5", 8, 0.80),
        ("client-per-connection", 16, 0.97),
        ("keyed-fan-out", 8, 0.88),
        ("keyed-threads", 8, 0.86),
    ];
    let apps = apps();
    for (name, level, least) in least {
        let app = apps.iter().find(|app| app.name == name).unwrap();
        let tallies: Vec<Tally> = (0..3)
            .map(|seed| measure(app, level, size, seed, WRONG))
            .collect();
        let sum = Tally::of(&tallies);
        let [right, unsure, wrong] = sum.thousands[3].map(f64::from);
        let share = right / (right + unsure + wrong);
        assert!(share >= least, "{name} at {level}: {share:.3} right");
    }
}

/// Pools whose limit is not that of the outstanding calls: requests make several at once, or
/// the background has some.
#[test]
fn a_pool_that_makes_calls_at_once_is_safe() {
    let size = Size {
        requests: 3000,
        quiet: 1,
    };
    let app = App {
        threads: Some(4),
        routes: vec![
            vec![vec![call(1), call(2)], vec![call(3)]],
            vec![vec![call(1)]],
        ],
        ..plain()
    };
    for level in [12, 16, 32] {
        let sum = measure(&app, level, size, 0, WRONG);
        assert!(sum.worst <= 1.6 * WRONG, "at {level}: {}", sum.worst);
        let [right, unsure, wrong] = sum.thousands[2].map(f64::from);
        let share = right / (right + unsure + wrong);
        assert!(share >= 0.8, "at {level}: {share:.3} right");
    }
    for seed in [15, 27, 159, 188] {
        let sum = drawn(seed).measure(WRONG);
        let [all, wrong, _] = sum.all.map(f64::from);
        assert!(wrong <= WRONG * all, "seed {seed}: {wrong} of {all}");
    }
}

/// Applications that are drawn by lot. Of others a few are not: `b3relay-accuracy --random`.
#[test]
#[ignore = "takes a minute or more: make test-simulated"]
fn applications_that_nobody_has_thought_of_are_safe() {
    let found = measure_random(150..190, WRONG);
    for (drawn, sum) in &found {
        let [all, wrong, alone] = sum.all.map(f64::from);
        let margin = 2.0 * wilson(sum.all[1], all.max(1.0));
        let says = format!("seed {}: {wrong} of {all}, `exclusive` {alone}", drawn.seed);
        assert!(wrong <= (WRONG + margin) * all, "{says}");
        assert!(alone <= (WRONG + margin) * all, "{says}");
    }
}

/// No 2,000 calls in a row have more wrong ones than chance explains: of 0.5 % promised, no
/// more than 0.8 %.
#[test]
#[ignore = "takes a minute or more: make test-simulated"]
fn no_stretch_of_calls_is_worse_than_promised() {
    let size = Size {
        requests: 6000,
        quiet: 1,
    };
    for app in &apps() {
        // Of jobs in a queue, too much was believed once with one of these seeds.
        let seeds: &[u64] = match app.name {
            "queue-of-jobs" => &[0, 1, 2, 3],
            _ => &[3],
        };
        for (level, seed) in [8, 16]
            .into_iter()
            .flat_map(|l| seeds.iter().map(move |s| (l, *s)))
        {
            let worst = measure(app, level, size, seed, WRONG).worst;
            let says = format!("{} at {level}, seed {seed}: {worst}", app.name);
            assert!(worst <= 1.6 * WRONG, "{says}");
        }
    }
}
