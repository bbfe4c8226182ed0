use super::*;
use crate::simulate::apps::apps;
use crate::simulate::tally::{in_all, measure};

const WRONG: f64 = 0.005;

fn named(name: &str) -> App {
    apps().into_iter().find(|app| app.name == name).unwrap()
}

fn size(requests: u64) -> Size {
    Size { requests, quiet: 1 }
}

fn share(counts: [u32; 3], at: usize) -> f64 {
    f64::from(counts[at]) / f64::from(counts.iter().sum::<u32>())
}

#[test]
fn with_one_client_and_no_background_all_is_right() {
    for name in [
        "threads",
        "event-loop",
        "pool-of-8",
        "fan-out-of-6",
        "caches-retries",
        "deploy",
    ] {
        let bound = bound(&named(name), 1, size(1000), 5, WRONG).unwrap();
        let [right, unsure, wrong] = in_all(bound.thousands);
        assert!(right > 500, "{name}: {right}");
        assert_eq!((unsure, wrong, bound.lost), (0, 0, 0), "{name}");
    }
}

#[test]
fn what_is_not_modelled_has_no_bound() {
    for name in [
        "late-events",
        "job-later",
        "cancelled-5",
        "queue-of-jobs",
        "stalls",
        "slow-busier",
    ] {
        assert!(
            bound(&named(name), 2, size(10), 5, WRONG).is_none(),
            "{name}"
        );
    }
}

/// The probabilities are those of the simulation: else it is no bound.
#[test]
fn the_guesses_are_as_often_right_as_they_are_expected_to_be() {
    for app in apps() {
        for clients in [4, 16] {
            let Some(bound) = bound(&app, clients, size(1500), 11, WRONG) else {
                continue;
            };
            let says = format!("{} at {clients}: {bound:?}", app.name);
            let [expected, was, variance] = bound.guessed;
            // A wrong guess makes others wrong: they are not independent.
            let apart = (was - expected).abs() / (variance + 1.0).sqrt();
            assert!(apart < 5.0, "{says}");
            assert_eq!(bound.lost, 0, "{says}");
        }
    }
}

#[test]
fn the_events_are_most_likely_with_the_true_parameters() {
    let size = size(2000);
    for name in ["threads", "event-loop", "pool-of-8", "caches-retries"] {
        let app = named(name);
        let evidence = |cpu: f64, tail: f64| {
            let told = App {
                cpu_ms: cpu * app.cpu_ms,
                tail: tail * app.tail,
                ..app.clone()
            };
            let model = Model::of(&told).unwrap();
            of_run(model, run(&app, 8, size, 17), size, WRONG).evidence
        };
        let with_true = evidence(1.0, 1.0);
        for (cpu, tail) in [(0.9, 1.0), (1.1, 1.0), (1.0, 0.9), (1.0, 1.1)] {
            let other = evidence(cpu, tail);
            let says = format!("{name}, {cpu} {tail}: {other:.1}, true {with_true:.1}");
            assert!(other < with_true - 10.0, "{says}");
        }
    }
}

#[test]
fn the_tracker_is_not_above_the_bound() {
    let names = [
        "threads",
        "event-loop",
        "parallel-background",
        "fan-out-of-6",
        "caches-retries",
        "busy-background",
        "pool-of-8",
    ];
    // The tracker has learned when it counts.
    let size = Size {
        requests: 3500,
        quiet: 1000,
    };
    for (name, clients) in names.iter().flat_map(|name| [(name, 1), (name, 8)]) {
        let app = named(name);
        let bound = bound(&app, clients, size, 13, WRONG).unwrap();
        let bound = in_all(bound.thousands);
        let tracker = measure(&app, clients, size, 13, WRONG);
        let (reached, most) = (tracker.share(tracker.right), share(bound, 0));
        let says = format!("{name} at {clients}: {reached:.4}, bound {bound:?}");
        // Both see the same events; the tracker may have a little more wrong by chance.
        assert!(reached <= most + 0.005, "{says}");
        // Nor is the bound a matter of course.
        assert!(most > 0.8 && share(bound, 2) < 0.009, "{says}");
    }
}
