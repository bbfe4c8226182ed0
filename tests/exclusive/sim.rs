//! An application that forwards nothing, its clients and its background, in virtual time;
//! and what `exclusive` makes of the calls.

use b3relay::attribution;
use b3relay::attribution::tracker::{Basis, Tracker};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

/// Of so many calls in a row no more than `WRONG` may be given to a wrong request.
pub const WINDOW: usize = 2000;
pub const WRONG: u32 = 10;

pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// From 0 to 1.
    pub fn part(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    pub fn between(&mut self, least: f64, most: f64) -> f64 {
        least + (most - least) * self.part()
    }

    pub fn exponential(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.part()).ln()
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    pub fn one_of<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.below(values.len())]
    }
}

/// How long the client waits after an answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pause {
    None,
    /// From 0.1 to 1 ms.
    Short,
    /// So many milliseconds on average.
    Mean(f64),
}

/// Calls of one kind that a request may make, one after the other.
#[derive(Clone, Debug)]
pub struct Makes {
    pub kind: u32,
    /// The probability of each number of calls.
    pub times: Vec<f64>,
    /// From this request on.
    pub from: usize,
    /// Milliseconds that a call takes.
    pub call_ms: f64,
    /// The call is of this pod itself: a request of this route, which must be a later one.
    pub inner: Option<usize>,
    /// At once with the call before.
    pub beside: bool,
}

#[derive(Clone, Debug)]
pub struct Route {
    /// Milliseconds of work before the first call.
    pub work_ms: f64,
    pub makes: Vec<Makes>,
}

/// So many clients, that make so many requests in all; the next begin a little later.
#[derive(Clone, Copy, Debug)]
pub struct Batch {
    pub clients: usize,
    pub requests: usize,
    pub pause: Pause,
}

#[derive(Clone, Debug)]
pub struct App {
    pub routes: Vec<Route>,
    /// Of the routes those that clients ask for: the first ones.
    pub asked: usize,
    pub batches: Vec<Batch>,
}

impl App {
    fn requests(&self) -> usize {
        self.batches.iter().map(|batch| batch.requests).sum()
    }
}

#[derive(Clone, Copy, Debug)]
pub enum Clock {
    /// At any time.
    Poisson,
    /// With so much more or less than its period.
    Timer(f64),
}

#[derive(Clone, Copy, Debug)]
pub struct Background {
    pub kind: u32,
    pub per_second: f64,
    pub clock: Clock,
    /// From this part of the requests on.
    pub from: f64,
}

/// The probability that a client breaks a request off, and that the application goes on
/// all the same.
#[derive(Clone, Copy, Debug, Default)]
pub struct Breaks {
    pub often: f64,
    pub goes_on: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Begin,
    /// A request of the pod itself: its route, and the call.
    Inner(usize, u64),
    Resume(u64),
    Returned(u64, u64),
    Break(u64),
    Background(usize),
    /// A call after the answer.
    Job,
}

/// What became of a call: given to its request, to none, or to a wrong one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fate {
    Right,
    Alone,
    Wrong,
}

#[derive(Clone, Copy, Debug)]
pub struct Call {
    pub kind: u32,
    /// A request made it.
    pub own: bool,
    /// That was the only one in flight.
    pub only: bool,
    pub fate: Fate,
}

#[derive(Clone, Debug, Default)]
pub struct Found {
    pub calls: Vec<Call>,
}

impl Found {
    /// The part of the calls of only requests that was right; of all kinds but these.
    pub fn right(&self, but: &[u32]) -> f64 {
        let (mut all, mut right) = (0u32, 0u32);
        for call in &self.calls {
            if call.own && call.only && !but.contains(&call.kind) {
                all += 1;
                right += u32::from(call.fate == Fate::Right);
            }
        }
        f64::from(right) / f64::from(all.max(1))
    }

    pub fn wrong(&self) -> u32 {
        let wrong = self.calls.iter().filter(|call| call.fate == Fate::Wrong);
        wrong.count() as u32
    }

    /// Calls of the only request in flight that were left alone.
    pub fn missed(&self) -> u32 {
        let missed = |call: &&Call| call.own && call.only && call.fate == Fate::Alone;
        self.calls.iter().filter(missed).count() as u32
    }

    /// The most of any window.
    pub fn worst(&self) -> u32 {
        let (mut now, mut most) = (0, 0);
        for (at, call) in self.calls.iter().enumerate() {
            now += u32::from(call.fate == Fate::Wrong);
            if at >= WINDOW {
                now -= u32::from(self.calls[at - WINDOW].fate == Fate::Wrong);
            }
            most = most.max(now);
        }
        most
    }
}

fn us(ms: f64) -> u64 {
    (ms * 1000.0) as u64
}

/// A call that is to be made.
#[derive(Clone, Copy, Debug)]
struct Next {
    kind: u32,
    call_ms: f64,
    inner: Option<usize>,
}

struct Live {
    /// Those that are made at once, from the last to the first.
    left: Vec<Vec<Next>>,
    waits_for: usize,
    /// The call that asked for it, and whose that is.
    asked_by: Option<(u64, u64)>,
    /// The client has gone.
    gone: bool,
}

/// `jobs`: the probability of a call of kind 8 after an answer.
pub fn run(app: &App, background: &[Background], breaks: Breaks, jobs: f64, seed: u64) -> Found {
    let mut sim = Sim::new(app, background, breaks, jobs, seed);
    while let Some(Reverse((then, _, event))) = sim.queue.pop() {
        sim.now = then;
        sim.start_background();
        if !sim.step(event) {
            break;
        }
    }
    sim.found
}

struct Sim<'a> {
    app: &'a App,
    background: &'a [Background],
    /// Of the background, those that have not begun.
    waiting: Vec<usize>,
    breaks: Breaks,
    jobs: f64,
    random: Random,
    queue: BinaryHeap<Reverse<(u64, u64, Event)>>,
    order: u64,
    now: u64,
    tracker: Tracker,
    found: Found,
    live: HashMap<u64, Live>,
    /// Calls of the pod to itself: whose they are.
    inner: HashMap<u64, u64>,
    /// The batch, what of it has begun, its clients that are busy, and requests in all.
    batch: usize,
    begun_of_batch: usize,
    clients: usize,
    begun: usize,
    ids: u64,
}

impl<'a> Sim<'a> {
    fn new(
        app: &'a App,
        background: &'a [Background],
        breaks: Breaks,
        jobs: f64,
        seed: u64,
    ) -> Self {
        let mut sim = Sim {
            app,
            background,
            waiting: (0..background.len()).collect(),
            breaks,
            jobs,
            random: Random(seed),
            queue: BinaryHeap::new(),
            order: 0,
            now: 1_000_000,
            tracker: Tracker::default(),
            found: Found::default(),
            live: HashMap::new(),
            inner: HashMap::new(),
            batch: 0,
            begun_of_batch: 0,
            clients: 0,
            begun: 0,
            ids: 0,
        };
        sim.begin_batch(0.0);
        sim
    }

    fn after(&mut self, us: u64, event: Event) {
        self.order += 1;
        self.queue.push(Reverse((self.now + us, self.order, event)));
    }

    fn begin_batch(&mut self, after_ms: f64) {
        let Some(batch) = self.app.batches.get(self.batch) else {
            return;
        };
        self.begun_of_batch = 0;
        self.clients = batch.clients.min(batch.requests);
        for _ in 0..self.clients {
            self.after(us(after_ms), Event::Begin);
        }
    }

    /// Now and then the machine is busy with something else.
    fn took(&mut self, ms: f64) -> u64 {
        let stall = match self.random.part() < 0.005 {
            true => self.random.exponential(5.0),
            false => 0.0,
        };
        us(ms * self.random.between(0.9, 1.15) + self.random.exponential(0.08) + stall)
    }

    fn pause(&mut self) {
        let pause = self.app.batches[self.batch].pause;
        let ms = match pause {
            Pause::None => 0.0,
            Pause::Short => self.random.between(0.1, 1.0),
            Pause::Mean(ms) => self.random.exponential(ms),
        };
        self.after(us(ms), Event::Begin);
    }

    fn start_background(&mut self) {
        for n in std::mem::take(&mut self.waiting) {
            if self.begun as f64 >= self.background[n].from * self.app.requests() as f64 {
                let first = self
                    .random
                    .exponential(1000.0 / self.background[n].per_second);
                self.after(us(first), Event::Background(n));
            } else {
                self.waiting.push(n);
            }
        }
    }

    /// False at the end of all.
    fn step(&mut self, event: Event) -> bool {
        match event {
            Event::Begin => {
                if self.begun_of_batch >= self.app.batches[self.batch].requests {
                    self.clients -= 1;
                    if self.clients > 0 {
                        return true;
                    }
                    self.batch += 1;
                    if self.batch >= self.app.batches.len() {
                        return false;
                    }
                    let gap = self.random.one_of(&[0.5, 20.0, 500.0]);
                    self.begin_batch(gap);
                    return true;
                }
                self.begun_of_batch += 1;
                self.begun += 1;
                let route = self.random.below(self.app.asked);
                let id = self.begin(route, None);
                if self.random.part() < self.breaks.often {
                    let route = &self.app.routes[route];
                    let whole = route.work_ms + 3.0 * route.makes[0].call_ms;
                    let then = us(self.random.between(0.0, whole));
                    self.after(then, Event::Break(id));
                }
            }
            Event::Inner(route, call) => {
                let owner = self.inner.remove(&call).unwrap_or(0);
                self.begin(route, Some((call, owner)));
            }
            Event::Resume(id) => self.resume(id),
            Event::Returned(call, owner) => {
                self.tracker.call_end(self.now, call);
                if let Some(request) = self.live.get_mut(&owner) {
                    request.waits_for -= 1;
                    if request.waits_for == 0 {
                        let took = self.took(0.15);
                        self.after(took, Event::Resume(owner));
                    }
                }
            }
            Event::Break(id) => {
                let alive = self.live.get_mut(&id).filter(|request| !request.gone);
                let Some(request) = alive else { return true };
                request.gone = true;
                self.tracker.broken_off(self.now, id);
                if !self.breaks.goes_on {
                    self.live.remove(&id);
                }
                self.pause();
            }
            Event::Background(n) => {
                let Background {
                    kind,
                    per_second,
                    clock,
                    ..
                } = self.background[n];
                self.call(
                    kind,
                    None,
                    self.app.routes[0]
                        .makes
                        .first()
                        .map_or(1.0, |makes| makes.call_ms),
                );
                let period = 1000.0 / per_second;
                let next = match clock {
                    Clock::Poisson => self.random.exponential(period),
                    Clock::Timer(more) => period * self.random.between(1.0 - more, 1.0 + more),
                };
                self.after(us(next), Event::Background(n));
            }
            Event::Job => self.call(8, None, 1.0),
        }
        true
    }

    fn begin(&mut self, route: usize, asked_by: Option<(u64, u64)>) -> u64 {
        self.ids += 1;
        let id = self.ids;
        let mut left: Vec<Vec<Next>> = Vec::new();
        for makes in &self.app.routes[route].makes {
            let (mut times, mut part) = (0, self.random.part());
            for (n, chance) in makes.times.iter().enumerate() {
                if part >= 0.0 {
                    times = n;
                }
                part -= chance;
            }
            if self.begun <= makes.from {
                continue;
            }
            for n in 0..times {
                let next = Next {
                    kind: makes.kind,
                    call_ms: makes.call_ms,
                    inner: makes.inner,
                };
                match left.last_mut().filter(|_| makes.beside && n == 0) {
                    Some(stage) => stage.push(next),
                    None => left.push(vec![next]),
                }
            }
        }
        left.reverse();
        self.tracker
            .begin(self.now, id, 0, 100 + route as u32, vec![]);
        let live = Live {
            left,
            waits_for: 0,
            asked_by,
            gone: false,
        };
        self.live.insert(id, live);
        let took = self.took(self.app.routes[route].work_ms);
        self.after(took, Event::Resume(id));
        id
    }

    fn resume(&mut self, id: u64) {
        let Some(request) = self.live.get_mut(&id) else {
            return;
        };
        if let Some(stage) = request.left.pop() {
            request.waits_for = stage.len();
            for next in stage {
                self.make(next, id);
            }
            return;
        }
        let (gone, asked_by) = (request.gone, request.asked_by);
        self.live.remove(&id);
        if gone {
            return;
        }
        self.tracker.end(self.now, id);
        if let Some((call, owner)) = asked_by {
            let took = self.took(0.1);
            self.after(took, Event::Returned(call, owner));
            return;
        }
        if self.random.part() < self.jobs {
            let then = us(self.random.between(0.0, 2.0));
            self.after(then, Event::Job);
        }
        self.pause();
    }

    fn make(&mut self, next: Next, owner: u64) {
        match next.inner {
            None => self.call(next.kind, Some(owner), next.call_ms),
            Some(route) => {
                let call = self.judge(next.kind, Some(owner));
                self.inner.insert(call, owner);
                let took = self.took(0.1);
                self.after(took, Event::Inner(route, call));
            }
        }
    }

    fn call(&mut self, kind: u32, owner: Option<u64>, call_ms: f64) {
        let call = self.judge(kind, owner);
        let took = self.took(call_ms);
        self.after(took, Event::Returned(call, owner.unwrap_or(0)));
    }

    fn judge(&mut self, kind: u32, owner: Option<u64>) -> u64 {
        self.ids += 1;
        let only = self.tracker.in_flight() <= 1;
        let call = attribution::Call {
            kind: [kind, 1000 + kind % 3],
            tokens: Vec::new(),
            port: 0,
        };
        let verdict = self.tracker.call(self.now, self.ids, &call, None);
        let given = verdict.map(|verdict| {
            assert_eq!(verdict.basis, Basis::Exclusive);
            verdict.request
        });
        let fate = match given {
            None => Fate::Alone,
            given if given == owner => Fate::Right,
            Some(_) => Fate::Wrong,
        };
        self.found.calls.push(Call {
            kind,
            own: owner.is_some(),
            only,
            fate,
        });
        self.ids
    }
}
