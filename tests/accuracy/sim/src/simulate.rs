//! Simulated applications behind a simulated sidecar: the events go through the
//! tracker of the core, and its answers are held against the truth.
use b3relay::attribution::signature::Token;
use b3relay::attribution::tracker::{Basis, Tracker};
use rand::prelude::*;
use rand::rngs::SmallRng;
use rand_distr::{Exp, LogNormal};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// One of the calls that a step makes.
#[derive(Clone, Copy)]
struct Call {
    kind: u32,
    /// The probability that it is made at all (a cache may know the answer).
    chance: f64,
    /// The probability that it is made again.
    retry: f64,
}

const fn call(kind: u32) -> Call {
    Call {
        kind,
        chance: 1.0,
        retry: 0.0,
    }
}

/// Calls of one step are made at once; the next step begins when all have returned.
#[derive(Clone)]
struct App {
    name: &'static str,
    says: &'static str,
    routes: Vec<Vec<Vec<Call>>>,
    cpu_ms: f64,
    io_ms: f64,
    /// Bursts of CPU that run at once, the others wait; `None` for any number.
    cores: Option<usize>,
    /// By this part a burst of CPU is longer for each request in flight.
    busier: f64,
    /// The deviation of the logarithm of a burst's time.
    tail: f64,
    /// Requests that are served at once; the others wait.
    threads: Option<usize>,
    /// Calls a second that nobody asked for, by kind.
    background: Vec<(u32, f64)>,
    /// The probability that a request makes a call (kind 9) after its answer.
    after: f64,
    /// What the application does from the middle on.
    deploy: Option<Vec<Vec<Vec<Call>>>>,
    /// The time of calls grows up to so many times.
    drift: f64,
    /// The clients come and go: all at once, then one, ...
    bursts: bool,
    /// Microseconds by which the sidecar sees events late, at most.
    jitter_us: u64,
    /// One identifier of each request is in its calls.
    token: bool,
}

fn plain() -> App {
    App {
        name: "threads",
        says: "four routes of 0 to 2 calls, one after the other; 0.3 ms CPU, 10 ms a call",
        routes: vec![
            vec![vec![call(1)], vec![call(2)]],
            vec![vec![call(2)], vec![call(3)]],
            vec![],
            vec![vec![call(1)]],
        ],
        cpu_ms: 0.3,
        io_ms: 10.0,
        cores: None,
        busier: 0.0,
        tail: 0.5,
        threads: None,
        background: vec![],
        after: 0.0,
        deploy: None,
        drift: 1.0,
        bursts: false,
        jitter_us: 0,
        token: false,
    }
}

fn apps() -> Vec<App> {
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
            after: 0.5,
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

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrive,
    Background(usize),
    After(u64),
    /// The request's CPU burst is over.
    Ran(u64),
    Returned(u64),
}

struct Request {
    route: usize,
    step: usize,
    out: usize,
    token: u32,
}

#[derive(Clone, Copy)]
enum Seen {
    Begin(u64, u32, u32),
    Call(u64, u32, u32, Option<u64>),
    CallEnd(u64),
    End(u64),
}

/// The events that the sidecar sees, by time in microseconds, and from when on
/// they count.
fn run(
    app: &App,
    concurrency: usize,
    requests: u64,
    quiet: u64,
    seed: u64,
) -> (Vec<(u64, Seen)>, u64) {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut queue: BinaryHeap<Reverse<(u64, u64, Event)>> = BinaryHeap::new();
    let mut order = 0;
    let mut seen = Vec::new();
    let mut live: HashMap<u64, Request> = HashMap::new();
    let (mut started, mut ids, mut now) = (0u64, 0u64, 1_000_000u64);
    let mut calls: HashMap<u64, (Option<u64>, Call)> = HashMap::new();
    let mut counts_from = 0;
    let (mut running, mut ready) = (0usize, VecDeque::new());
    let mut waiting: VecDeque<u64> = VecDeque::new();
    let mut serving = 0usize;
    macro_rules! after {
        ($ms:expr, $event:expr) => {{
            order += 1;
            let us = ($ms * 1000.0) as u64;
            queue.push(Reverse((now + us, order, $event)));
        }};
    }
    let burst = LogNormal::new(app.cpu_ms.ln(), app.tail).unwrap();
    macro_rules! cpu {
        ($request:expr) => {{
            if app.cores.is_none_or(|cores| running < cores) {
                running += 1;
                let ms: f64 = burst.sample(&mut random);
                let busier = 1.0 + app.busier * live.len() as f64;
                after!(busier * ms, Event::Ran($request));
            } else {
                ready.push_back($request);
            }
        }};
    }
    macro_rules! outbound {
        ($owner:expr, $call:expr, $token:expr) => {{
            ids += 1;
            let call: Call = $call;
            seen.push((now, Seen::Call(ids, call.kind, $token, $owner)));
            calls.insert(ids, ($owner, call));
            let progress = started as f64 / requests as f64;
            let io = app.io_ms * (1.0 + (app.drift - 1.0) * progress);
            let ms: f64 = LogNormal::new(io.ln(), 0.6).unwrap().sample(&mut random);
            after!(ms, Event::Returned(ids));
        }};
    }
    after!(0.0, Event::Arrive);
    for (n, (_, rate)) in app.background.iter().enumerate() {
        after!(
            Exp::new(rate / 1000.0).unwrap().sample(&mut random),
            Event::Background(n)
        );
    }
    while let Some(Reverse((at, _, event))) = queue.pop() {
        now = at;
        if started >= requests && live.is_empty() && !matches!(event, Event::Returned(_)) {
            break;
        }
        match event {
            Event::Arrive if started < requests => {
                started += 1;
                ids += 1;
                if started == quiet {
                    counts_from = now;
                    for _ in 1..concurrency {
                        after!(random.random::<f64>() * app.io_ms, Event::Arrive);
                    }
                }
                let route = random.random_range(0..app.routes.len());
                let token = if app.token {
                    random.random::<u32>() | 1
                } else {
                    0
                };
                live.insert(
                    ids,
                    Request {
                        route,
                        step: 0,
                        out: 0,
                        token,
                    },
                );
                seen.push((now, Seen::Begin(ids, 100 + route as u32, token)));
                if app.threads.is_none_or(|threads| serving < threads) {
                    serving += 1;
                    cpu!(ids);
                } else {
                    waiting.push_back(ids);
                }
            }
            Event::Arrive => {}
            Event::Background(n) => {
                let (kind, rate) = app.background[n];
                outbound!(None, call(kind), 0);
                after!(
                    Exp::new(rate / 1000.0).unwrap().sample(&mut random),
                    Event::Background(n)
                );
            }
            Event::After(request) => outbound!(Some(request), call(9), 0),
            Event::Ran(id) => {
                running -= 1;
                if let Some(next) = ready.pop_front() {
                    cpu!(next);
                }
                let routes = match &app.deploy {
                    Some(routes) if started > (requests + quiet) / 2 => routes,
                    _ => &app.routes,
                };
                let request = live.get_mut(&id).unwrap();
                let mut made = Vec::new();
                while let Some(step) = routes[request.route].get(request.step) {
                    request.step += 1;
                    made = step
                        .iter()
                        .filter(|call| random.random::<f64>() < call.chance)
                        .copied()
                        .collect();
                    if !made.is_empty() {
                        break;
                    }
                }
                request.out = made.len();
                let token = request.token;
                if made.is_empty() {
                    live.remove(&id);
                    seen.push((now, Seen::End(id)));
                    if random.random::<f64>() < app.after {
                        after!(2.0 * random.random::<f64>(), Event::After(id));
                    }
                    serving -= 1;
                    if let Some(next) = waiting.pop_front() {
                        serving += 1;
                        cpu!(next);
                    }
                    let pause = if app.bursts && (started / 200) % 2 == 0 {
                        100.0 * concurrency as f64 / 2.0
                    } else {
                        5.0
                    };
                    after!(
                        Exp::new(1.0 / pause).unwrap().sample(&mut random),
                        Event::Arrive
                    );
                }
                for one in made {
                    outbound!(Some(id), one, token);
                }
            }
            Event::Returned(call) => {
                seen.push((now, Seen::CallEnd(call)));
                let (owner, made) = calls.remove(&call).unwrap();
                if let Some(request) = owner.and_then(|owner| live.get_mut(&owner)) {
                    let id = owner.unwrap();
                    let token = request.token;
                    if random.random::<f64>() < made.retry {
                        outbound!(Some(id), made, token);
                        continue;
                    }
                    request.out -= 1;
                    if request.out == 0 {
                        cpu!(id);
                    }
                }
            }
        }
    }
    if app.jitter_us > 0 {
        for (us, _) in &mut seen {
            *us += random.random_range(0..app.jitter_us);
        }
        seen.sort_by_key(|(us, _)| *us);
    }
    (seen, counts_from)
}

/// Calls that were made for requests, and what became of them; those of nobody that
/// were given to a request are wrong, too.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    right: u32,
    unsure: u32,
    wrong: u32,
    /// As many wrong ones the tracker expected.
    expected: f64,
    /// Right and wrong, if only those are believed that are alone: what
    /// `"attribution": "exclusive"` does.
    exclusive: [u32; 2],
    /// Right and wrong, by a rule that is told nothing and learns nothing: the only
    /// request in flight.
    only: [u32; 2],
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.right += other.right;
        self.unsure += other.unsure;
        self.wrong += other.wrong;
        self.expected += other.expected;
        for at in 0..2 {
            self.exclusive[at] += other.exclusive[at];
            self.only[at] += other.only[at];
        }
    }

    fn of(tallies: &[Self]) -> Self {
        let mut sum = Self::default();
        for tally in tallies {
            sum.add(*tally);
        }
        sum
    }

    fn calls(&self) -> f64 {
        f64::from(self.right + self.unsure + self.wrong)
    }

    fn share(&self, count: u32) -> f64 {
        f64::from(count) / self.calls()
    }
}

fn measure(app: &App, concurrency: usize, size: Size, seed: u64, wrong: f64) -> Tally {
    let (events, counts_from) = run(app, concurrency, size.requests, size.quiet, seed);
    let (mut tracker, mut exclusive) = (Tracker::default(), Tracker::default());
    tracker.infer(true);
    let mut tally = Tally::default();
    let mut in_flight: Vec<u64> = Vec::new();
    let tokens = |token: u32| match token {
        0 => vec![],
        _ => vec![Token::from_u32(token | 3), Token::from_u32(8)],
    };
    for (us, event) in events {
        match event {
            Seen::Begin(id, route, token) => {
                in_flight.push(id);
                tracker.begin(us, id, 0, route, tokens(token));
                exclusive.begin(us, id, 0, route, vec![]);
            }
            Seen::End(id) => {
                in_flight.retain(|known| *known != id);
                tracker.end(us, id);
                exclusive.end(us, id);
            }
            Seen::CallEnd(id) => {
                tracker.call_end(us, id);
                exclusive.call_end(us, id);
            }
            Seen::Call(id, kind, token, owner) => {
                let sure = tracker.call(us, id, [kind, 99], &tokens(token), None, wrong);
                let alone = exclusive.call(us, id, [kind, 99], &[], None, 0.0);
                if us < counts_from {
                    continue;
                }
                tally.expected += sure.map_or(0.0, |v| 1.0 - f64::from(v.share));
                match (sure, owner) {
                    (None, None) => {}
                    (None, Some(_)) => tally.unsure += 1,
                    (Some(v), Some(owner)) if v.request == owner => tally.right += 1,
                    (Some(_), _) => tally.wrong += 1,
                }
                if let Some(v) = alone.filter(|v| v.basis == Basis::Exclusive) {
                    tally.exclusive[usize::from(Some(v.request) != owner)] += 1;
                }
                if let [only] = in_flight[..] {
                    tally.only[usize::from(Some(only) != owner)] += 1;
                }
            }
        }
    }
    tally
}

/// Requests in flight.
const LEVELS: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];

/// How much is simulated.
#[derive(Clone, Copy)]
pub struct Size {
    pub requests: u64,
    /// How many of them come one after the other, before it counts.
    pub quiet: u64,
}

/// What came out for an application: by level, and by seed.
pub struct Measured {
    app: App,
    by_level: Vec<Vec<Tally>>,
}

/// Runs every application, or those whose names hold one of `names`, at all levels
/// with all seeds, on all cores.
pub fn measure_all(
    names: &[String],
    size: Size,
    seeds: std::ops::Range<u64>,
    wrong: f64,
) -> Vec<Measured> {
    let asked = |app: &App| names.is_empty() || names.iter().any(|name| app.name.contains(name));
    let apps: Vec<App> = apps().into_iter().filter(asked).collect();
    let seeds: Vec<u64> = seeds.collect();
    let per_app = LEVELS.len() * seeds.len();
    let jobs = apps.len() * per_app;
    let next = AtomicUsize::new(0);
    let found = Mutex::new(vec![Tally::default(); jobs]);
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                loop {
                    let job = next.fetch_add(1, Ordering::Relaxed);
                    let Some(app) = apps.get(job / per_app) else {
                        break;
                    };
                    let level = LEVELS[job % per_app / seeds.len()];
                    let tally = measure(app, level, size, seeds[job % seeds.len()], wrong);
                    found.lock().unwrap()[job] = tally;
                }
            });
        }
    });
    let found = found.into_inner().unwrap();
    let by_app = apps.into_iter().zip(found.chunks(per_app.max(1)));
    by_app
        .map(|(app, tallies)| Measured {
            app,
            by_level: tallies.chunks(seeds.len()).map(<[_]>::to_vec).collect(),
        })
        .collect()
}

fn row(cells: impl IntoIterator<Item = String>) -> String {
    format!(
        "| {} |\n",
        cells.into_iter().collect::<Vec<_>>().join(" | ")
    )
}

fn head(first: &str) -> String {
    let levels = LEVELS.iter().map(usize::to_string);
    let text = row(std::iter::once(first.to_string()).chain(levels));
    text + "|---|" + &"---|".repeat(LEVELS.len()) + "\n"
}

/// Right and wrong in per cent, with the interval over the seeds.
pub fn table(measured: &[Measured]) -> String {
    let mut table = head("application");
    for Measured { app, by_level } in measured {
        let cells = by_level.iter().map(|seeds| {
            let right: Vec<f64> = seeds.iter().map(|t| 100.0 * t.share(t.right)).collect();
            let wrong: Vec<f64> = seeds.iter().map(|t| 100.0 * t.share(t.wrong)).collect();
            let ((right, about), (wrong, by)) = (interval(&right), interval(&wrong));
            format!("{right:.1} ±{about:.1} / {wrong:.2} ±{by:.2}")
        });
        table += &row(std::iter::once(app.says.to_string()).chain(cells));
    }
    table
}

/// The same of rules that do without a belief: `exclusive`, and where it comes out
/// otherwise, the only request in flight.
pub fn exclusive(measured: &[Measured]) -> String {
    let mut table = head("application, rule");
    for Measured { app, by_level } in measured {
        let sums: Vec<Tally> = by_level.iter().map(|seeds| Tally::of(seeds)).collect();
        let mut add = |rule: &str, of: fn(&Tally) -> [u32; 2]| {
            let cells = sums.iter().map(|sum| {
                let [right, wrong] = of(sum).map(|count| 100.0 * sum.share(count));
                format!("{right:.1} / {wrong:.2}")
            });
            table += &row(std::iter::once(format!("{}: {rule}", app.says)).chain(cells));
        };
        // An identifier decides before anything else is asked.
        if !app.token {
            add("`exclusive`", |sum| sum.exclusive);
        }
        if app.token || sums.iter().any(|sum| 100 * sum.only[1] > sum.only[0]) {
            add("the only request in flight", |sum| sum.only);
        }
    }
    table
}

/// What the filter expects to be wrong and what is, in per cent of the calls that
/// it gave to a request: all applications together.
pub fn calibration(measured: &[Measured]) -> String {
    let mut table = String::from(
        "| in flight | given a context | of those expected wrong | wrong |\n|---|---|---|---|\n",
    );
    for (level, sum) in LEVELS.iter().zip(by_level(measured)) {
        let given = f64::from(sum.right + sum.wrong);
        let percent = |count: f64| format!("{:.3} %", 100.0 * count / given);
        table += &row([
            level.to_string(),
            given.to_string(),
            percent(sum.expected),
            percent(f64::from(sum.wrong)),
        ]);
    }
    table
}

/// All applications as one.
fn by_level(measured: &[Measured]) -> Vec<Tally> {
    let levels = 0..LEVELS.len();
    let sum = |level: usize| {
        let all: Vec<Tally> = measured
            .iter()
            .map(|m| Tally::of(&m.by_level[level]))
            .collect();
        Tally::of(&all)
    };
    levels.map(sum).collect()
}

/// Mean, and half of the 95 % interval of it, after Student.
fn interval(values: &[f64]) -> (f64, f64) {
    // For 2 to 10 values.
    const T: [f64; 9] = [12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26];
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0);
    let t = values.len().checked_sub(2).and_then(|at| T.get(at));
    (mean, t.copied().unwrap_or(1.96) * (variance / n).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRONG: f64 = 0.005;

    /// Half of the 95 % interval of a share, after Wilson.
    fn wilson(hits: u32, of: f64) -> f64 {
        let (share, z) = (f64::from(hits) / of, 1.96);
        z / (1.0 + z * z / of) * (share * (1.0 - share) / of + z * z / (4.0 * of * of)).sqrt()
    }

    /// What docs/accuracy-simulated.md shows, with fewer requests than the tables have.
    #[test]
    fn no_more_than_one_call_in_200_is_wrong_whatever_the_application() {
        let size = Size {
            requests: 4000,
            quiet: 1000,
        };
        let measured = measure_all(&[], size, 100..102, WRONG);
        for Measured { app, by_level } in &measured {
            for (level, seeds) in LEVELS.into_iter().zip(by_level) {
                let sum = Tally::of(seeds);
                let (right, wrong) = (sum.share(sum.right), sum.share(sum.wrong));
                let margin = 2.0 * wilson(sum.wrong, sum.calls());
                let says = format!(
                    "{} at {level}: {right:.4} right, {wrong:.4} wrong",
                    app.name
                );
                assert!(wrong <= WRONG + margin, "{says}");
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
            // What the filter says of itself is not much too good.
            let sums: Vec<Tally> = by_level.iter().map(|seeds| Tally::of(seeds)).collect();
            let sum = Tally::of(&sums);
            let (was, expected) = (f64::from(sum.wrong), sum.expected);
            let says = format!("{}: expected {expected:.1} wrong, were {was}", app.name);
            assert!(was <= 2.0 * expected + 10.0, "{says}");
        }
        for (level, sum) in LEVELS.into_iter().zip(by_level(&measured)).skip(1) {
            let (was, expected) = (f64::from(sum.wrong), sum.expected);
            let says = format!("at {level}: expected {expected:.1} wrong, were {was}");
            assert!(was <= 1.5 * expected && expected <= 6.0 * was, "{says}");
        }
    }

    #[test]
    fn a_start_under_load_is_safe() {
        let size = Size {
            requests: 4000,
            quiet: 1,
        };
        for app in &apps() {
            for level in [1, 4, 16] {
                let sum = measure(app, level, size, 7, WRONG);
                let wrong = sum.share(sum.wrong);
                let margin = 2.0 * wilson(sum.wrong, sum.calls());
                assert!(wrong <= WRONG + margin, "{} at {level}: {wrong}", app.name);
            }
        }
    }
}
