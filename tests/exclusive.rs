//! One client, an application that forwards nothing, and calls of the background, in
//! virtual time: what `exclusive` gets right and wrong.
// A test may panic: that is how it fails.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use b3relay::attribution::tracker::{Basis, Tracker};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Of so many calls in a row no more than `WRONG` may be given to a wrong request.
const WINDOW: usize = 2000;
const WRONG: u32 = 10;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// From 0 to 1.
    fn part(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn between(&mut self, least: f64, most: f64) -> f64 {
        least + (most - least) * self.part()
    }

    fn exponential(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.part()).ln()
    }
}

/// How long the client waits after an answer.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Pause {
    None,
    /// From 0.1 to 1 ms.
    Short,
    /// So many milliseconds on average.
    Mean(f64),
}

/// Calls of one kind that a request may make, one after the other.
#[derive(Clone, Copy, Debug)]
struct Makes {
    kind: u32,
    /// The probability of each number of calls.
    times: &'static [f64],
    /// From this request on.
    from: usize,
}

fn makes(kind: u32, times: &'static [f64]) -> Makes {
    Makes {
        kind,
        times,
        from: 0,
    }
}

#[derive(Clone, Debug)]
struct App {
    /// Milliseconds of work before the first call, and of a call.
    work_ms: f64,
    call_ms: f64,
    /// What the requests of each route make.
    routes: Vec<Vec<Makes>>,
    pause: Pause,
    requests: usize,
}

#[derive(Clone, Copy, Debug)]
enum Clock {
    /// At any time.
    Poisson,
    /// With so much more or less than its period.
    Timer(f64),
}

#[derive(Clone, Copy, Debug)]
struct Background {
    kind: u32,
    per_second: f64,
    clock: Clock,
    /// From this part of the requests on.
    from: f64,
}

/// The probability that a client breaks a request off, and that the application goes on
/// all the same.
#[derive(Clone, Copy, Debug, Default)]
struct Breaks {
    often: f64,
    goes_on: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Begin,
    Resume(u64),
    Returned(u64, u64),
    Break(u64),
    Background(usize),
    /// A call after the answer.
    Job,
}

/// A call: its kind, whether a request made it, and whether it was given to that one, to
/// none, or to a wrong one.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Right,
    Alone,
    Wrong,
}

#[derive(Clone, Debug, Default)]
struct Found {
    calls: Vec<(u32, bool, Fate)>,
}

impl Found {
    /// The part of the calls of requests that was right; of all kinds but these.
    fn right(&self, but: &[u32]) -> f64 {
        let own = self
            .calls
            .iter()
            .filter(|(kind, own, _)| *own && !but.contains(kind));
        let (mut all, mut right) = (0u32, 0u32);
        for (_, _, fate) in own {
            all += 1;
            right += u32::from(*fate == Fate::Right);
        }
        f64::from(right) / f64::from(all.max(1))
    }

    fn wrong(&self) -> u32 {
        self.calls
            .iter()
            .filter(|call| call.2 == Fate::Wrong)
            .count() as u32
    }

    /// The most of any window.
    fn worst(&self) -> u32 {
        let (mut now, mut most) = (0, 0);
        for (at, call) in self.calls.iter().enumerate() {
            now += u32::from(call.2 == Fate::Wrong);
            if at >= WINDOW {
                now -= u32::from(self.calls[at - WINDOW].2 == Fate::Wrong);
            }
            most = most.max(now);
        }
        most
    }
}

fn us(ms: f64) -> u64 {
    (ms * 1000.0) as u64
}

struct Live {
    route: usize,
    left: Vec<u32>,
    /// The client has gone.
    gone: bool,
}

/// `jobs`: the probability of a call of kind 8 after an answer.
fn run(app: &App, background: &[Background], breaks: Breaks, jobs: f64, seed: u64) -> Found {
    let mut random = Random(seed);
    let mut queue: BinaryHeap<Reverse<(u64, u64, Event)>> = BinaryHeap::new();
    let mut order = 0;
    let mut now = 1_000_000;
    let mut tracker = Tracker::default();
    tracker.plain = true;
    let mut found = Found::default();
    let mut live: std::collections::HashMap<u64, Live> = std::collections::HashMap::new();
    let (mut begun, mut ids) = (0usize, 0u64);
    macro_rules! at {
        ($us:expr, $event:expr) => {{
            order += 1;
            queue.push(Reverse((now + $us, order, $event)));
        }};
    }
    // Now and then the machine is busy with something else.
    macro_rules! took {
        ($ms:expr) => {{
            let stall = if random.part() < 0.005 {
                random.exponential(5.0)
            } else {
                0.0
            };
            us($ms * random.between(0.9, 1.15) + random.exponential(0.08) + stall)
        }};
    }
    macro_rules! call {
        ($kind:expr, $owner:expr) => {{
            ids += 1;
            let kind: u32 = $kind;
            let owner: Option<u64> = $owner;
            let verdict = tracker.call(now, ids, [kind, 1000 + kind % 3], &[], None, 0.0);
            let given = verdict.map(|verdict| {
                assert_eq!(verdict.basis, Basis::Alone);
                verdict.request
            });
            let fate = match given {
                None => Fate::Alone,
                given if given == owner => Fate::Right,
                Some(_) => Fate::Wrong,
            };
            found.calls.push((kind, owner.is_some(), fate));
            at!(took!(app.call_ms), Event::Returned(ids, owner.unwrap_or(0)));
        }};
    }
    macro_rules! pause {
        () => {{
            let pause = match app.pause {
                Pause::None => 0.0,
                Pause::Short => random.between(0.1, 1.0),
                Pause::Mean(ms) => random.exponential(ms),
            };
            at!(us(pause), Event::Begin);
        }};
    }
    at!(0, Event::Begin);
    let mut waiting: Vec<usize> = (0..background.len()).collect();
    while let Some(Reverse((then, _, event))) = queue.pop() {
        now = then;
        waiting.retain(|n| {
            let here = begun as f64 >= background[*n].from * app.requests as f64;
            if here {
                let first = random.exponential(1000.0 / background[*n].per_second);
                at!(us(first), Event::Background(*n));
            }
            !here
        });
        match event {
            Event::Begin if begun >= app.requests => break,
            Event::Begin => {
                begun += 1;
                ids += 1;
                let id = ids;
                let route = (random.next() % app.routes.len() as u64) as usize;
                let mut left = Vec::new();
                for makes in &app.routes[route] {
                    let (mut times, mut part) = (0, random.part());
                    for (n, chance) in makes.times.iter().enumerate() {
                        if part >= 0.0 {
                            times = n;
                        }
                        part -= chance;
                    }
                    if begun > makes.from {
                        left.extend(std::iter::repeat_n(makes.kind, times));
                    }
                }
                left.reverse();
                tracker.begin(now, id, 0, 100 + route as u32, vec![]);
                live.insert(
                    id,
                    Live {
                        route,
                        left,
                        gone: false,
                    },
                );
                if random.part() < breaks.often {
                    let whole = app.work_ms + 3.0 * app.call_ms;
                    at!(us(random.between(0.0, whole)), Event::Break(id));
                }
                at!(took!(app.work_ms), Event::Resume(id));
            }
            Event::Resume(id) => {
                let Some(request) = live.get_mut(&id) else {
                    continue;
                };
                match request.left.pop() {
                    Some(kind) => call!(kind, Some(id)),
                    None => {
                        let gone = request.gone;
                        assert!(request.route < app.routes.len());
                        live.remove(&id);
                        if !gone {
                            tracker.end(now, id);
                            if random.part() < jobs {
                                at!(us(random.between(0.0, 2.0)), Event::Job);
                            }
                            pause!();
                        }
                    }
                }
            }
            Event::Returned(call, owner) => {
                tracker.call_end(now, call);
                if live.contains_key(&owner) {
                    at!(took!(0.15), Event::Resume(owner));
                }
            }
            Event::Break(id) => {
                let Some(request) = live.get_mut(&id).filter(|request| !request.gone) else {
                    continue;
                };
                request.gone = true;
                tracker.broken_off(now, id);
                if !breaks.goes_on {
                    live.remove(&id);
                }
                pause!();
            }
            Event::Background(n) => {
                let Background {
                    kind,
                    per_second,
                    clock,
                    ..
                } = background[n];
                call!(kind, None);
                let period = 1000.0 / per_second;
                let next = match clock {
                    Clock::Poisson => random.exponential(period),
                    Clock::Timer(more) => period * random.between(1.0 - more, 1.0 + more),
                };
                at!(us(next), Event::Background(n));
            }
            Event::Job => call!(8, None),
        }
    }
    found
}

/// Two calls in each request, and others in some.
fn common() -> Vec<Vec<Makes>> {
    let rare = [
        makes(1, &[0.0, 0.98, 0.02]),
        makes(3, &[0.98, 0.02]),
        makes(4, &[0.7, 0.3]),
        makes(2, &[0.0, 1.0]),
    ];
    let others = [
        makes(2, &[0.0, 1.0]),
        makes(5, &[0.2, 0.3, 0.3, 0.1, 0.1]),
        Makes {
            from: 500,
            ..makes(6, &[0.8, 0.2])
        },
    ];
    vec![rare.to_vec(), others.to_vec()]
}

/// Nothing but what each request makes.
fn plain() -> Vec<Vec<Makes>> {
    vec![vec![makes(1, &[0.0, 1.0]), makes(2, &[0.0, 1.0])]]
}

fn app(work_ms: f64, call_ms: f64, pause: Pause, routes: Vec<Vec<Makes>>) -> App {
    App {
        work_ms,
        call_ms,
        routes,
        pause,
        requests: 2000,
    }
}

/// Milliseconds of work and of a call.
const WORKS: [(f64, f64); 6] = [
    (2.0, 4.0),
    (0.3, 2.0),
    (50.0, 52.0),
    (0.3, 50.0),
    (300.0, 302.0),
    (300.0, 1.0),
];

/// As many seeds as the environment says; the figures in docs are of four.
fn seeds() -> std::ops::Range<u64> {
    let given = std::env::var("SEEDS").ok().and_then(|n| n.parse().ok());
    0..given.unwrap_or(1)
}

#[test]
fn clicks_without_a_pause_are_right() {
    for (work_ms, call_ms) in WORKS {
        for pause in [Pause::None, Pause::Short, Pause::Mean(50.0)] {
            for seed in 0..4 * seeds().end {
                let says = format!("{work_ms} + {call_ms} ms, {pause:?}, seed {seed}");
                let plain = app(work_ms, call_ms, pause, plain());
                let found = run(&plain, &[], Breaks::default(), 0.0, seed);
                let right = found.right(&[]);
                assert!(right >= 0.9997, "{says}: {right}");
                assert!(seed >= 4 || right == 1.0, "{says}: {right}");
                // Rare ones, late ones, caches, loops and retries.
                let common = app(work_ms, call_ms, pause, common());
                let found = run(&common, &[], Breaks::default(), 0.0, seed);
                let right = found.right(&[]);
                assert!(right >= 0.995, "{says}: {right}");
                assert_eq!(found.wrong(), 0, "{says}");
            }
        }
    }
}

/// The worst window of all seeds; and on average the part that is right of the kinds which
/// the background has no part in, and of all.
fn beside(app: &App, background: Background) -> (u32, f64, f64) {
    let (mut worst, mut others, mut all) = (0, 0.0, 0.0);
    for seed in seeds() {
        let found = run(app, &[background], Breaks::default(), 0.0, seed);
        worst = worst.max(found.worst());
        others += found.right(&[background.kind]);
        all += found.right(&[]);
    }
    let many = seeds().end as f64;
    (worst, others / many, all / many)
}

const PER_SECOND: [f64; 4] = [0.3, 1.0, 5.0, 20.0];
/// A kind that is the background's own.
const OWN: u32 = 9;

/// No more than one call in 200, of any 2,000 in a row; with a background that begins to make
/// calls of a kind that requests make, one in 100.
#[test]
fn a_background_beside_one_client() {
    for kind in [OWN, 1] {
        for from in [0.0, 0.5] {
            for clock in [Clock::Poisson, Clock::Timer(0.2)] {
                for per_second in PER_SECOND {
                    for pause in [Pause::None, Pause::Mean(50.0)] {
                        for (work_ms, call_ms) in WORKS {
                            let background = Background {
                                kind,
                                per_second,
                                clock,
                                from,
                            };
                            let app = app(work_ms, call_ms, pause, common());
                            let (worst, others, all) = beside(&app, background);
                            let says = format!(
                                "{work_ms} + {call_ms} ms, {pause:?}, {background:?}: \
                                 {worst} wrong, {others:.4} of others right, {all:.4} of all"
                            );
                            let most = if kind == OWN { WRONG } else { 2 * WRONG };
                            assert!(worst <= most, "{says}");
                            let least = if kind == OWN { 0.94 } else { 0.8 };
                            assert!(others >= least, "{says}");
                        }
                    }
                }
            }
        }
    }
}

/// The table of docs/attribution.md; `UPDATE_DOCS=1` writes it.
#[test]
fn the_table_in_docs_is_what_comes_out() {
    const FILE: &str = "docs/attribution.md";
    const MARKS: (&str, &str) = ("<!-- generated: exclusive -->\n", "<!-- end -->");
    let mut table = String::from("| background | 2 ms | 50 ms | 300 ms |\n|---|---|---|---|\n");
    for (kind, says) in [
        (OWN, "of a kind of its own"),
        (1, "of a kind that requests make"),
    ] {
        for from in [0.0, 0.5] {
            for per_second in PER_SECOND {
                let since = if from > 0.0 { ", later" } else { "" };
                table += &format!("| {per_second} a second {says}{since} |");
                for (work_ms, call_ms) in [(2.0, 4.0), (50.0, 52.0), (300.0, 302.0)] {
                    let app = app(work_ms, call_ms, Pause::None, common());
                    let mut cell = (0, 0.0, 0.0);
                    for seed in 0..2 {
                        let background = Background {
                            kind,
                            per_second,
                            clock: Clock::Poisson,
                            from,
                        };
                        let found = run(&app, &[background], Breaks::default(), 0.0, seed);
                        cell.0 = found.worst().max(cell.0);
                        cell.1 += 50.0 * found.right(&[kind]);
                        cell.2 += 50.0 * found.right(&[]);
                    }
                    table += &format!(" {:.1} / {:.1} / {} |", cell.1, cell.2, cell.0);
                }
                table += "\n";
            }
        }
    }
    let old = std::fs::read_to_string(FILE).unwrap();
    let (before, rest) = old.split_once(MARKS.0).unwrap();
    let (found, after) = rest.split_once(MARKS.1).unwrap();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        let text = format!("{before}{}{table}{}{after}", MARKS.0, MARKS.1);
        std::fs::write(FILE, text).unwrap();
    } else {
        assert_eq!(found, table, "UPDATE_DOCS=1 cargo test --test exclusive");
    }
}

fn apps(pauses: &[Pause]) -> Vec<App> {
    let works = WORKS
        .iter()
        .flat_map(|work| pauses.iter().map(move |pause| (work, pause)));
    works
        .map(|((work_ms, call_ms), pause)| app(*work_ms, *call_ms, *pause, common()))
        .collect()
}

/// A client that breaks requests off now and then: what those may still do is not given
/// to the next request, and everything else is.
#[test]
fn requests_that_are_broken_off() {
    let mut bad = String::new();
    for goes_on in [false, true] {
        for (often, least) in [(0.001, 0.96), (0.05, 0.8), (0.3, 0.35)] {
            for app in apps(&[Pause::None, Pause::Mean(50.0)]) {
                let breaks = Breaks { often, goes_on };
                let found: Vec<Found> = seeds()
                    .map(|seed| run(&app, &[], breaks, 0.0, seed))
                    .collect();
                let right =
                    found.iter().map(|found| found.right(&[])).sum::<f64>() / found.len() as f64;
                let worst = found.iter().map(Found::worst).max().unwrap();
                if right < least || worst > WRONG {
                    bad += &format!(
                        "{often} {goes_on} {} + {} {:?}: worst {worst} right {right:.4}\n",
                        app.work_ms, app.call_ms, app.pause
                    );
                }
            }
        }
    }
    assert!(bad.is_empty(), "\n{bad}");
}

/// After every second answer.
#[test]
fn jobs_after_the_answer() {
    let mut bad = String::new();
    for app in apps(&[Pause::Short, Pause::Mean(50.0)]) {
        for seed in seeds() {
            let found = run(&app, &[], Breaks::default(), 0.5, seed);
            if found.worst() > WRONG {
                bad += &format!(
                    "{} + {} {:?}: worst {} right {:.4}\n",
                    app.work_ms,
                    app.call_ms,
                    app.pause,
                    found.worst(),
                    found.right(&[])
                );
            }
        }
    }
    assert!(bad.is_empty(), "\n{bad}");
}

/// Requests that take long and make no calls, and calls of the background.
#[test]
fn long_polls() {
    for per_second in [0.3, 1.0, 5.0, 20.0] {
        for seed in seeds() {
            let app = App {
                work_ms: 30_000.0,
                call_ms: 1.0,
                routes: vec![vec![]],
                pause: Pause::Short,
                requests: 300,
            };
            let background = Background {
                kind: 9,
                per_second,
                clock: Clock::Poisson,
                from: 0.0,
            };
            let found = run(&app, &[background], Breaks::default(), 0.0, seed);
            assert!(found.worst() <= WRONG, "{per_second}: {}", found.worst());
        }
    }
}
