//! The applications that are simulated.

use super::app::{After, App, Call, call, plain};

/// All of them.
pub fn apps() -> Vec<App> {
    let mut all = as_ever();
    all.extend(super::hard::apps());
    all
}

fn as_ever() -> Vec<App> {
    let parallel = vec![
        vec![vec![call(1)], vec![call(2)]],
        vec![vec![call(2), call(3)], vec![call(1)]],
        vec![],
        vec![vec![call(1)]],
    ];
    let maybe = |kind, chance| Call {
        chance,
        ..call(kind)
    };
    vec![
        plain(),
        App {
            name: "token",
            says: "four routes, with an identifier of its own in each request",
            token: true,
            ..plain()
        },
        App {
            name: "cpu-1ms",
            says: "four routes, 1 ms CPU",
            cpu_ms: 1.0,
            ..plain()
        },
        App {
            name: "slow-calls",
            says: "four routes, 100 ms a call",
            io_ms: 100.0,
            ..plain()
        },
        App {
            name: "slow-busier",
            says: "100 ms a call; a burst of CPU is longer by a tenth for each request in flight, and more uneven",
            io_ms: 100.0,
            busier: 0.1,
            tail: 1.0,
            ..plain()
        },
        App {
            name: "slow-background",
            says: "100 ms a call, two at once, 5 background calls a second",
            routes: parallel.clone(),
            io_ms: 100.0,
            background: vec![(1, 5.0)],
            ..plain()
        },
        App {
            name: "background",
            says: "5 background calls a second",
            background: vec![(1, 5.0)],
            ..plain()
        },
        App {
            name: "parallel-background",
            says: "two calls at once, 5 background calls a second",
            routes: parallel.clone(),
            background: vec![(1, 5.0)],
            ..plain()
        },
        App {
            name: "event-loop",
            says: "one event loop",
            cores: Some(1),
            ..plain()
        },
        App {
            name: "event-loop-parallel",
            says: "one event loop, two calls at once",
            cores: Some(1),
            routes: parallel.clone(),
            ..plain()
        },
        App {
            name: "pool-of-8",
            says: "8 threads on 2 cores, the rest queues",
            cores: Some(2),
            threads: Some(8),
            ..plain()
        },
        App {
            name: "caches-retries",
            says: "caches that save calls, retries",
            routes: vec![
                vec![
                    vec![maybe(1, 0.5)],
                    vec![maybe(2, 0.7)],
                    vec![Call {
                        retry: 0.1,
                        ..call(3)
                    }],
                ],
                vec![
                    vec![Call {
                        retry: 0.2,
                        ..call(2)
                    }],
                    vec![maybe(3, 0.3)],
                ],
                vec![vec![maybe(4, 0.1)]],
                vec![vec![call(1)], vec![maybe(1, 0.5)], vec![maybe(1, 0.5)]],
            ],
            ..plain()
        },
        App {
            name: "fan-out-of-6",
            says: "six calls at once",
            routes: vec![
                vec![(1..7).map(call).collect()],
                vec![vec![call(1)], (2..5).map(call).collect()],
                vec![],
            ],
            ..plain()
        },
        App {
            name: "drift",
            says: "calls that become four times as slow",
            drift: 4.0,
            ..plain()
        },
        App {
            name: "deploy",
            says: "other calls from the middle on",
            deploy: Some(vec![
                vec![vec![call(2)], vec![call(1)], vec![call(3)]],
                vec![vec![call(3)]],
                vec![vec![call(1)]],
                vec![vec![call(1), call(2)]],
            ]),
            ..plain()
        },
        App {
            name: "bursts",
            says: "clients that come and go",
            bursts: true,
            ..plain()
        },
        App {
            name: "late-events",
            says: "events that are seen up to 0.2 ms late (several workers)",
            jitter_us: 200,
            ..plain()
        },
        App {
            name: "after-the-answer",
            says: "calls after the answer, for every second request",
            after: Some(After {
                chance: 0.5,
                kinds: vec![9],
                ms: [0.0, 2.0],
            }),
            ..plain()
        },
        App {
            name: "busy-background",
            says: "80 background calls a second",
            background: vec![(1, 50.0), (2, 20.0), (7, 10.0)],
            ..plain()
        },
        App {
            name: "cpu-bound",
            says: "5 ms CPU on 2 cores, 3 ms a call",
            cpu_ms: 5.0,
            io_ms: 3.0,
            cores: Some(2),
            ..plain()
        },
        App {
            name: "one-route",
            says: "one route",
            routes: vec![vec![vec![call(1)], vec![call(2)]]],
            ..plain()
        },
    ]
}
