//! Inferred attribution learns an application that is under load from its first request on.

#![allow(clippy::indexing_slicing, clippy::unwrap_used)]

use b3relay::attribution::Call;
use b3relay::attribution::look_back::LeftAlone;
use b3relay::attribution::signature::Token;
use b3relay::attribution::tracker::Tracker;
use b3relay::filter::WorkerState;
use b3relay::store::key::Key;
use b3relay::store::{InMemory, Limits, Ticket};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};

/// The part of all calls that may be wrong.
const WRONG: f64 = 0.005;

/// Random numbers that are the same in each run (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// From half of it to twice of it, in microseconds.
    fn about(&mut self, us: u64) -> u64 {
        us / 2 + self.below(us * 3 / 2)
    }
}

/// An application: each route makes its calls one after the other.
struct App {
    clients: usize,
    routes: Vec<Vec<u32>>,
    /// What they do from the middle on.
    later: Option<Vec<Vec<u32>>>,
    /// Requests that are served at once, and that run at once.
    threads: usize,
    cores: usize,
    /// From the middle on.
    later_threads: Option<usize>,
    /// Each request has an identifier, which its calls carry.
    has_identifiers: bool,
    /// One of so many calls carries a key of its request.
    keyed: Option<u64>,
    /// Of a thousand requests, so many end without a call.
    early: u64,
}

impl Default for App {
    fn default() -> Self {
        Self {
            clients: 8,
            routes: vec![vec![1, 2], vec![2, 3], vec![], vec![1]],
            later: None,
            threads: usize::MAX,
            cores: usize::MAX,
            later_threads: None,
            has_identifiers: false,
            keyed: None,
            early: 0,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Next {
    Arrives,
    Ran(u64),
    Returned(u64, u64),
    Ticks,
}

/// What came of the calls: right, left alone, wrong, by thousands of requests.
type Tally = Vec<[u32; 3]>;

/// What a sidecar sees.
#[derive(Clone, Copy)]
enum Event {
    /// A request, and its route.
    Begun(u64, u32),
    Ended(u64),
    /// A call, its request, and its kind.
    Called(u64, u64, u32),
    Returned(u64),
}

/// Runs an application until so many requests have begun. Returns what came of its calls,
/// how many of those that were left alone were given to the right and to a wrong request when
/// that ended, and how many slices of learning it took.
fn run(app: &App, requests: u64, seed: u64) -> (Tally, [u32; 2], u32) {
    let (tally, looked_back, slices, _) = run_and_record(app, requests, seed);
    (tally, looked_back, slices)
}

/// The same, with what there was to see, and when.
fn run_and_record(
    app: &App,
    requests: u64,
    seed: u64,
) -> (Tally, [u32; 2], u32, Vec<(u64, Event)>) {
    const RUN_US: u64 = 300;
    const CALL_US: u64 = 10_000;
    let mut random = Random(seed);
    let mut tracker = Tracker::default();
    tracker.infer(WRONG);
    let mut queue = BinaryHeap::new();
    let (mut begun, mut numbers, mut slices) = (0u64, 0u64, 0u32);
    let mut seen = Vec::new();
    let (mut made, mut looked_back) = (HashMap::new(), [0; 2]);
    let mut at: HashMap<u64, (usize, usize)> = HashMap::new();
    let (mut waiting, mut ready) = (VecDeque::new(), VecDeque::new());
    let (mut serving, mut running) = (0usize, 0usize);
    let mut tally: Tally = vec![[0; 3]; requests.div_ceil(1000) as usize];
    for client in 0..app.clients as u64 {
        queue.push(Reverse((1_000_000 + 1_000 * client, Next::Arrives)));
    }
    queue.push(Reverse((1_000_000, Next::Ticks)));
    while let Some(Reverse((now, next))) = queue.pop() {
        let mut runs: Vec<u64> = Vec::new();
        let threads = match app.later_threads {
            Some(later) if begun > requests / 2 => later,
            _ => app.threads,
        };
        while serving < threads
            && let Some(request) = waiting.pop_front()
        {
            serving += 1;
            runs.push(request);
        }
        let tokens = |request: u64| match app.has_identifiers {
            true => vec![Token::from_u32(request as u32 | 3)],
            false => vec![],
        };
        match next {
            Next::Ticks => {
                let wanted = tracker.learn();
                slices += u32::from(wanted > 0);
                if begun < requests || !at.is_empty() {
                    queue.push(Reverse((now + 50_000 / wanted.max(1), Next::Ticks)));
                }
            }
            Next::Arrives if begun >= requests => {}
            Next::Arrives => {
                begun += 1;
                numbers += 1;
                let route = random.below(app.routes.len() as u64) as usize;
                let is_early = app.early > 0 && random.below(1000) < app.early;
                let step = if is_early { usize::MAX } else { 0 };
                at.insert(numbers, (route, step));
                let tokens = tokens(numbers);
                tracker.begin(now, numbers, 0, route as u32 + 100, tokens);
                seen.push((now, Event::Begun(numbers, route as u32 + 100)));
                match serving < threads {
                    true => {
                        serving += 1;
                        runs.push(numbers);
                    }
                    false => waiting.push_back(numbers),
                }
            }
            Next::Ran(request) => {
                running -= 1;
                let (route, step) = at[&request];
                let routes = match &app.later {
                    Some(later) if begun > requests / 2 => later,
                    _ => &app.routes,
                };
                match routes[route].get(step) {
                    Some(kind) => {
                        at.insert(request, (route, step + 1));
                        numbers += 1;
                        let is_keyed = app.keyed.is_some_and(|one| random.below(one) == 0);
                        let owner = is_keyed.then_some(request);
                        let call = Call {
                            kind: [*kind, 9],
                            tokens: tokens(request),
                            port: 0,
                        };
                        let verdict = tracker.call(now, numbers, &call, owner);
                        seen.push((now, Event::Called(numbers, request, *kind)));
                        let class = match verdict {
                            Some(verdict) if verdict.request == request => 0,
                            None => {
                                tracker.leave_alone(LeftAlone {
                                    call: numbers,
                                    at_us: now,
                                    least: (1.0 - WRONG) as f32,
                                    ..LeftAlone::default()
                                });
                                made.insert(numbers, request);
                                1
                            }
                            Some(_) => 2,
                        };
                        if !is_keyed {
                            tally[((begun - 1) / 1000) as usize][class] += 1;
                        }
                        let back = Next::Returned(numbers, request);
                        queue.push(Reverse((now + random.about(CALL_US), back)));
                    }
                    None => {
                        at.remove(&request);
                        tracker.end(now, request);
                        seen.push((now, Event::Ended(request)));
                        for told in tracker.take_told() {
                            let is_right = made.remove(&told.call.call) == Some(told.request);
                            looked_back[usize::from(!is_right)] += 1;
                        }
                        serving -= 1;
                        if let Some(request) = waiting.pop_front() {
                            serving += 1;
                            runs.push(request);
                        }
                        queue.push(Reverse((now + random.about(5_000), Next::Arrives)));
                    }
                }
                runs.extend(ready.pop_front());
            }
            Next::Returned(call, request) => {
                tracker.call_end(now, call);
                seen.push((now, Event::Returned(call)));
                runs.push(request);
            }
        }
        for request in runs {
            match running < app.cores {
                true => {
                    running += 1;
                    queue.push(Reverse((now + random.about(RUN_US), Next::Ran(request))));
                }
                false => ready.push_back(request),
            }
        }
    }
    (tally, looked_back, slices, seen)
}

/// What the workers of one sidecar make of what they see, each of a part of it. Returns what
/// came of the calls as [`run`] does.
fn share_out(events: &[(u64, Event)], workers: usize, requests: u64) -> Tally {
    let data = InMemory::default();
    let limits = Limits::for_capacity(1000, 1, 1000);
    let open = |n: usize| WorkerState::open(&data, n as u64 + 1);
    let mut all: Vec<WorkerState> = (0..workers).map(open).collect();
    let mut random = Random(7);
    let mut tickets: HashMap<u64, (usize, Ticket)> = HashMap::new();
    let mut calls: HashMap<u64, (usize, u64)> = HashMap::new();
    let mut tally: Tally = vec![[0; 3]; requests.div_ceil(1000) as usize];
    let (mut begun, mut tick_us) = (0, 1_000_000);
    for (now, event) in events {
        let (now, now_ms) = (*now, *now / 1000);
        while tick_us <= now {
            for WorkerState {
                store, attribution, ..
            } in &mut all
            {
                attribution.learn();
                if tick_us % 1_000_000 == 0 {
                    store.tick(&data, tick_us / 1000);
                    attribution.tick(store, &data, tick_us);
                }
            }
            tick_us += 50_000;
        }
        // A request, and a call, end where they began.
        let at = match event {
            Event::Ended(request) => tickets[request].0,
            Event::Returned(call) => calls[call].0,
            _ => random.below(workers as u64) as usize,
        };
        let WorkerState {
            store, attribution, ..
        } = &mut all[at];
        match *event {
            Event::Begun(request, route) => {
                begun += 1;
                let mut name = [0; 16];
                name[..8].copy_from_slice(&random.next().to_le_bytes());
                let key = Key::unnamed(name);
                let context = request.to_le_bytes();
                let stored = store.insert(&data, limits, now_ms, &[key], &context, &[]);
                assert!(stored.stored);
                attribution.begin(store, &data, now, &stored.ticket, route, vec![]);
                tickets.insert(request, (at, stored.ticket));
            }
            Event::Ended(request) => {
                let (_, ticket) = tickets.remove(&request).unwrap();
                attribution.end(store, &data, now, &ticket, true);
                store.end(&data, limits, now_ms, ticket);
            }
            Event::Called(call, request, kind) => {
                store.refresh(&data, || now_ms);
                let what = Call {
                    kind: [kind, 9],
                    tokens: vec![],
                    port: 0,
                };
                let (number, judged) = attribution.judge(store, &data, now, what, WRONG);
                calls.insert(call, (at, number.unwrap()));
                let class = match judged {
                    Some((_, found)) if found.context == request.to_le_bytes() => 0,
                    None => 1,
                    Some(_) => 2,
                };
                tally[(begun - 1) / 1000][class] += 1;
            }
            Event::Returned(call) => {
                let (_, number) = calls.remove(&call).unwrap();
                attribution.returned(store, &data, now, number);
            }
        }
    }
    tally
}

/// Each judges a part of the calls, and knows what became of all.
#[test]
fn several_workers_do_as_well_as_one() {
    let event_loop = App {
        cores: 1,
        ..App::default()
    };
    for (app, seed) in [(App::default(), 0), (App::default(), 1), (event_loop, 0)] {
        let (_, _, _, events) = run_and_record(&app, 3_000, seed);
        for workers in [1, 2, 3, 4, 8] {
            let tally = share_out(&events, workers, 3_000);
            let (right, _) = shares(&tally[2..]);
            let (_, wrong) = shares(&tally);
            assert!(
                right > 0.8,
                "{workers} workers: {right:.3} right: {tally:?}"
            );
            assert!(wrong <= 1.5 * WRONG, "{workers} workers: {wrong:.4} wrong");
        }
    }
}

/// A long journal is taken in bit by bit: no call waits for it, those that come meanwhile are
/// left alone, and nothing is missing in the end.
#[test]
fn a_worker_that_begins_to_judge_takes_long_journals_in_bit_by_bit() {
    for (wrong, requests, slices) in [(WRONG, 600, 4), (0.0, 1500, 0)] {
        let data = InMemory::default();
        let limits = Limits::for_capacity(1000, 1, 1000);
        let [mut writing, mut judging] = [1, 2].map(|n| WorkerState::open(&data, n));
        let mut now = 1_000_000;
        let begin = |state: &mut WorkerState, now: u64| {
            let WorkerState {
                store, attribution, ..
            } = state;
            let mut name = [0; 16];
            name[..8].copy_from_slice(&now.to_le_bytes());
            let stored = store.insert(&data, limits, now / 1000, &[Key::unnamed(name)], b"c", &[]);
            attribution.begin(store, &data, now, &stored.ticket, 1, vec![]);
            stored.ticket
        };
        let end = |state: &mut WorkerState, now: u64, ticket: Ticket| {
            let WorkerState {
                store, attribution, ..
            } = state;
            attribution.end(store, &data, now, &ticket, true);
            store.end(&data, limits, now / 1000, ticket);
        };
        let judge = |state: &mut WorkerState, now: u64| {
            let WorkerState {
                store, attribution, ..
            } = state;
            store.refresh(&data, || now / 1000);
            let what = Call {
                kind: [1, 9],
                tokens: vec![],
                port: 0,
            };
            let (call, judged) = attribution.judge(store, &data, now, what, wrong);
            attribution.returned(store, &data, now, call.unwrap());
            judged.is_some()
        };
        // Two events each.
        for _ in 0..requests {
            now += 2_000;
            let ticket = begin(&mut writing, now);
            end(&mut writing, now + 1_000, ticket);
        }
        let _click = begin(&mut writing, now + 2_000);
        assert_eq!(judge(&mut judging, now + 3_000), slices == 0);
        for _ in 0..slices {
            assert!(judging.attribution.learn() > 0);
        }
        assert!(judge(&mut judging, now + 4_000));
        assert_eq!(judging.attribution.in_flight(), 1);
    }
}

/// Right and wrong as parts of all calls of some thousands.
fn shares(tally: &[[u32; 3]]) -> (f64, f64) {
    let sum = |class: usize| tally.iter().map(|of| f64::from(of[class])).sum::<f64>();
    let all = sum(0) + sum(1) + sum(2);
    (sum(0) / all, sum(2) / all)
}

fn assert_learns(app: &App, least: f64) {
    for seed in 0..3 {
        let (tally, [told, mistold], slices) = run(app, 4_000, seed);
        assert!(
            told > 50 && mistold <= 5,
            "seed {seed}: {told} told, {mistold} wrong"
        );
        let (right, _) = shares(&tally[3..]);
        let (_, wrong) = shares(&tally);
        assert!(right >= least, "seed {seed}: {right:.3} right: {tally:?}");
        assert!(wrong <= 1.5 * WRONG, "seed {seed}: {wrong:.4} wrong");
        assert!(slices > 5, "all was learned in {slices} slices");
    }
}

#[test]
fn an_application_with_threads_of_their_own() {
    assert_learns(&App::default(), 0.85);
}

/// A request that is invalid, or whose answer is known: such ends are rare, and no sign of a
/// mistake.
#[test]
fn a_few_requests_that_end_early_cost_no_trust() {
    for early in [20, 40] {
        let app = App {
            early,
            routes: vec![vec![1, 2], vec![2, 3], vec![1]],
            ..App::default()
        };
        for seed in 1..4 {
            let (tally, ..) = run(&app, 5_000, seed);
            let (right, wrong) = shares(&tally[3..]);
            let says = format!("{early} of 1,000 end early, seed {seed}: {tally:?}");
            assert!(right > 0.8 && wrong <= WRONG, "{says}");
        }
    }
}

#[test]
fn an_event_loop_serves_who_has_been_ready_for_longest() {
    let app = App {
        cores: 1,
        clients: 12,
        ..App::default()
    };
    assert_learns(&app, 0.9);
}

#[test]
fn requests_wait_for_a_thread_of_a_pool() {
    let app = App {
        threads: 6,
        clients: 16,
        ..App::default()
    };
    assert_learns(&app, 0.8);
}

/// A request that was thought to wait does not: an identifier tells, a key does, or its end.
#[test]
fn a_pool_that_grows_makes_no_call_wrong() {
    let pool = |has_identifiers, keyed| App {
        threads: 6,
        later_threads: Some(16),
        clients: 16,
        has_identifiers,
        keyed,
        ..App::default()
    };
    for (app, most) in [
        (pool(true, None), 0.0),
        (pool(false, Some(10)), WRONG),
        (pool(false, None), WRONG),
    ] {
        let (tally, ..) = run(&app, 4_000, 0);
        let (right, wrong) = shares(&tally[2..]);
        assert!(right > 0.5 && wrong <= most, "{wrong:.4} wrong: {tally:?}");
    }
}

#[test]
fn an_application_that_changes_is_learned_anew() {
    let app = App {
        later: Some(vec![vec![3, 1, 2], vec![1], vec![2, 3], vec![]]),
        ..App::default()
    };
    for seed in 0..2 {
        let (tally, ..) = run(&app, 8_000, seed);
        let (before, _) = shares(&tally[2..4]);
        let (after, _) = shares(&tally[6..]);
        let (_, wrong) = shares(&tally[4..]);
        assert!(
            before > 0.85 && after > 0.8,
            "{before:.3}, {after:.3}: {tally:?}"
        );
        assert!(wrong <= 2.0 * WRONG, "seed {seed}: {wrong:.4} wrong");
    }
}

#[test]
fn nothing_that_happens_is_too_odd() {
    let mut random = Random(1);
    for world in 0..20 {
        let mut tracker = Tracker::default();
        tracker.infer(WRONG);
        let mut now = 1_000_000;
        for _ in 0..8_000 {
            now += random.below(500);
            let number = random.below(40);
            let kind = random.below(if world % 2 == 0 { 4 } else { 400 }) as u32;
            match random.below(8) {
                0 => tracker.begin(now, number, 0, kind, vec![]),
                1 => tracker.end(now, number),
                2 => tracker.broken_off(now, number),
                3 | 4 => {
                    let owner = (random.below(4) == 0).then_some(random.below(40));
                    let call = Call {
                        kind: [kind, kind / 4],
                        tokens: vec![],
                        port: random.below(100) as u16,
                    };
                    tracker.call(now, 100 + number, &call, owner);
                }
                5 => tracker.call_end(now, 100 + number),
                6 => {
                    tracker.learn();
                }
                // The clock may be set back.
                _ => now -= random.below(200),
            }
        }
        // What has begun comes to an end.
        assert!((0..100_000).any(|_| tracker.learn() == 0), "world {world}");
    }
}
