//! Applications that do what misleads a learner.

use super::app::{After, App, Call, Clients, Keyed, Polls, call, plain};

fn job(ms: [f64; 2]) -> Option<After> {
    Some(After {
        chance: 0.5,
        kinds: vec![1, 2],
        ms,
    })
}

fn six_at_once() -> App {
    App {
        routes: vec![
            vec![(1..7).map(call).collect()],
            vec![vec![call(1)], (2..5).map(call).collect()],
            vec![],
        ],
        ..plain()
    }
}

pub fn apps() -> Vec<App> {
    let tenth = Some(Keyed {
        share: 0.1,
        kind: None,
    });
    let queued = |kind| Call {
        queued: true,
        ..call(kind)
    };
    let mut swapped = plain().routes;
    swapped.swap(0, 1);
    vec![
        App {
            name: "job-at-once",
            says: "a job up to 2 ms after every second answer, of two calls of the kinds that requests make",
            after: job([0.0, 2.0]),
            ..plain()
        },
        App {
            name: "job-later",
            says: "such a job 2 ms to 3 s after every second answer",
            after: job([2.0, 3000.0]),
            ..plain()
        },
        App {
            name: "cancelled-5",
            says: "5 % of the requests broken off by their clients; the application goes on",
            cancelled: 0.05,
            ..plain()
        },
        App {
            name: "cancelled-30",
            says: "30 % of the requests broken off by their clients; the application goes on",
            cancelled: 0.3,
            ..plain()
        },
        App {
            name: "background-begins",
            says: "20 background calls a second, from the middle on",
            background: vec![(1, 10.0), (2, 10.0)],
            late_background: true,
            ..plain()
        },
        App {
            name: "flag",
            says: "two routes swap their calls in the middle",
            deploy: Some(swapped),
            ..plain()
        },
        App {
            name: "long-polls",
            says: "100 ms a call; 10 more clients whose requests wait 30 s and make one call at the end",
            io_ms: 100.0,
            polls: Some(Polls {
                clients: 10,
                seconds: 30.0,
            }),
            ..plain()
        },
        App {
            name: "stalls",
            says: "the application stands still for 200 ms every 2 s",
            stalls: Some([2000, 200]),
            ..plain()
        },
        App {
            name: "event-loop-stalls",
            says: "one event loop that stands still for 200 ms every 2 s",
            cores: Some(1),
            stalls: Some([2000, 200]),
            ..plain()
        },
        App {
            name: "queue-of-jobs",
            says: "two routes put three jobs into a queue; 2 workers make their calls",
            routes: vec![
                vec![vec![queued(1), queued(2), queued(3)]],
                vec![vec![call(4)], vec![queued(1), queued(2), queued(2)]],
                vec![],
                vec![vec![call(4)], vec![call(5)]],
            ],
            workers: 2,
            ..plain()
        },
        App {
            name: "client-per-connection",
            says: "a thread for each inbound connection, with an outbound connection of its own",
            clients: Clients::PerConnection,
            ..plain()
        },
        App {
            name: "client-per-thread",
            says: "8 threads, each with an outbound connection of its own; the rest queues",
            threads: Some(8),
            clients: Clients::PerThread,
            ..plain()
        },
        App {
            name: "keyed-threads",
            says: "a tenth of the calls has a key, the others are counted",
            keyed: tenth,
            ..plain()
        },
        App {
            name: "keyed-event-loop",
            says: "one event loop; a tenth of the calls has a key",
            cores: Some(1),
            keyed: tenth,
            ..plain()
        },
        App {
            name: "keyed-fan-out",
            says: "six calls at once; a tenth of the calls has a key",
            keyed: tenth,
            ..six_at_once()
        },
        App {
            name: "keyed-one-kind",
            says: "half of the calls of one kind have a key",
            keyed: Some(Keyed {
                share: 0.5,
                kind: Some(2),
            }),
            ..plain()
        },
    ]
}
