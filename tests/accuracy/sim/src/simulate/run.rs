//! An application runs: the events that its sidecar sees.

mod calls;

use super::app::{App, Clients, Route, call};
use super::seen::{Begun, Seen, Size};
use super::threads::Threads;
use calls::Made;
use rand::prelude::*;
use rand::rngs::SmallRng;
use rand_distr::{Exp, LogNormal};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrive,
    Background(usize),
    /// A call of the job that a request left behind, by its place.
    After(u64, usize),
    /// The request's CPU burst is over.
    Ran(u64),
    Returned(u64),
    Cancel(u64),
    /// The client comes with its next, or first, poll.
    Poll {
        first: bool,
    },
    Polled(u64),
    /// A worker has prepared this call of a job.
    Prepared(u64),
}

struct Request {
    route: usize,
    step: usize,
    out: usize,
    token: u32,
    poll: bool,
    broken_off: bool,
    /// Inbound connection and thread.
    connection: u32,
    thread: u32,
}

pub struct Run<'a> {
    app: &'a App,
    clients: usize,
    size: Size,
    random: SmallRng,
    burst: LogNormal<f64>,
    polled: Route,
    queue: BinaryHeap<Reverse<(u64, u64, Event)>>,
    order: u64,
    now: u64,
    seen: Vec<(u64, Seen)>,
    live: HashMap<u64, Request>,
    calls: HashMap<u64, Made>,
    /// Of `live`.
    polling: usize,
    ids: u64,
    started: u64,
    counts_from: u64,
    running: usize,
    ready: VecDeque<u64>,
    serving: usize,
    waiting: VecDeque<u64>,
    jobs: VecDeque<Made>,
    at_work: usize,
    prepared: HashMap<u64, Made>,
    connections: Threads,
    threads: Threads,
}

/// The events that the sidecar sees, by time in microseconds, and from when on
/// they count.
pub fn run(app: &App, clients: usize, size: Size, seed: u64) -> (Vec<(u64, Seen)>, u64) {
    let mut run = Run {
        app,
        clients,
        size,
        random: SmallRng::seed_from_u64(seed),
        burst: LogNormal::new(app.cpu_ms.ln(), app.tail).unwrap(),
        polled: vec![vec![call(1)]],
        queue: BinaryHeap::new(),
        order: 0,
        now: 1_000_000,
        seen: Vec::new(),
        live: HashMap::new(),
        calls: HashMap::new(),
        polling: 0,
        ids: 0,
        started: 0,
        counts_from: 0,
        running: 0,
        ready: VecDeque::new(),
        serving: 0,
        waiting: VecDeque::new(),
        jobs: VecDeque::new(),
        at_work: 0,
        prepared: HashMap::new(),
        connections: Threads::last_used_first(),
        threads: match (app.clients, app.threads) {
            (Clients::PerThread, Some(threads)) => Threads::longest_idle_first(threads),
            _ => Threads::last_used_first(),
        },
    };
    run.all();
    let mut seen = run.seen;
    if app.jitter_us > 0 {
        // What one worker sees keeps its order: nothing ends before it has begun.
        let mut begun = HashMap::new();
        for (us, event) in &mut seen {
            *us += run.random.random_range(0..app.jitter_us);
            match event {
                Seen::Begin(request) => drop(begun.insert((true, request.id), *us)),
                Seen::Call(call) => drop(begun.insert((false, call.id), *us)),
                Seen::End(id) | Seen::BrokenOff(id) => {
                    *us = begun.get(&(true, *id)).copied().unwrap_or(0).max(*us);
                }
                Seen::CallEnd(id) => {
                    *us = begun.get(&(false, *id)).copied().unwrap_or(0).max(*us);
                }
            }
        }
        seen.sort_by_key(|(us, _)| *us);
    }
    (seen, run.counts_from)
}

impl Run<'_> {
    fn all(&mut self) {
        self.after(0.0, Event::Arrive);
        for n in 0..self.app.background.len() {
            self.next_background(n);
        }
        while let Some(Reverse((at, _, event))) = self.queue.pop() {
            let works_till_then = matches!(event, Event::Background(_) | Event::After(..));
            let later = self.awake(at);
            if works_till_then && later > at {
                self.push(later, event);
                continue;
            }
            self.now = at;
            let done = self.started >= self.size.requests && self.live.len() == self.polling;
            if done && !matches!(event, Event::Returned(_)) {
                break;
            }
            self.happen(event);
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Arrive if self.started < self.size.requests => self.arrive(),
            Event::Arrive => {}
            Event::Background(n) => {
                if !self.app.late_background || self.is_late() {
                    let (kind, _) = self.app.background[n];
                    self.outbound(Made::by(None, call(kind), 0));
                }
                self.next_background(n);
            }
            Event::After(request, place) => {
                let kind = self.app.after.as_ref().unwrap().kinds[place];
                self.outbound(Made {
                    after: Some(place),
                    ..Made::by(Some(request), call(kind), 0)
                });
            }
            Event::Ran(id) => self.ran(id),
            Event::Returned(call) => self.returned(call),
            Event::Cancel(id) => {
                if let Some(request) = self.live.get_mut(&id) {
                    request.broken_off = true;
                    self.saw(Seen::BrokenOff(id));
                    self.next_arrival();
                }
            }
            Event::Poll { first } => self.poll(first),
            Event::Polled(id) => self.cpu(id),
            Event::Prepared(job) => {
                let made = self.prepared.remove(&job).unwrap();
                self.outbound(made);
            }
        }
    }

    fn push(&mut self, at: u64, event: Event) {
        self.order += 1;
        self.queue.push(Reverse((at, self.order, event)));
    }

    fn after(&mut self, ms: f64, event: Event) {
        self.push(self.now + (ms * 1000.0) as u64, event);
    }

    fn saw(&mut self, event: Seen) {
        self.seen.push((self.now, event));
    }

    fn exp(&mut self, mean_ms: f64) -> f64 {
        Exp::new(1.0 / mean_ms).unwrap().sample(&mut self.random)
    }

    fn chance(&mut self, chance: f64) -> bool {
        chance > 0.0 && self.random.random::<f64>() < chance
    }

    fn is_late(&self) -> bool {
        self.started > (self.size.requests + self.size.quiet) / 2
    }

    fn next_background(&mut self, n: usize) {
        let (_, rate) = self.app.background[n];
        let ms = Exp::new(rate / 1000.0).unwrap().sample(&mut self.random);
        self.after(ms, Event::Background(n));
    }

    fn next_arrival(&mut self) {
        let pause = if self.app.bursts && (self.started / 200).is_multiple_of(2) {
            100.0 * self.clients as f64 / 2.0
        } else {
            self.app.pause_ms
        };
        let ms = self.exp(pause);
        self.after(ms, Event::Arrive);
    }

    /// When the application runs again, if it stands still then.
    fn awake(&self, at: u64) -> u64 {
        let Some([every, still]) = self.app.stalls.map(|times| times.map(|ms| ms * 1000)) else {
            return at;
        };
        at + still.saturating_sub(at % every)
    }

    /// When work of so long is done that is begun now.
    fn worked(&self, ms: f64) -> u64 {
        let begun = self.awake(self.now);
        let us = (ms * 1000.0) as u64;
        match self.app.stalls.map(|times| times.map(|ms| ms * 1000)) {
            None => begun + us,
            Some([every, still]) => {
                let run = every - still;
                let until_then = begun % every - still;
                begun + us + still * ((until_then + us) / run)
            }
        }
    }

    fn cpu(&mut self, request: u64) {
        if self.app.cores.is_none_or(|cores| self.running < cores) {
            self.running += 1;
            let ms: f64 = self.burst.sample(&mut self.random);
            let busier = 1.0 + self.app.busier * self.live.len() as f64;
            let done = self.worked(busier * ms);
            self.push(done, Event::Ran(request));
        } else {
            self.ready.push_back(request);
        }
    }

    /// The quiet phase is over.
    fn load(&mut self) {
        self.counts_from = self.now;
        for _ in 1..self.clients {
            let ms = self.random.random::<f64>() * self.app.io_ms;
            self.after(ms, Event::Arrive);
        }
        if let Some(polls) = &self.app.polls {
            for _ in 0..polls.clients {
                self.push(self.now, Event::Poll { first: true });
            }
        }
    }

    fn begin(&mut self, route: usize, token: u32, poll: bool) -> u64 {
        let connection = self.connections.take();
        let id = self.ids;
        self.live.insert(
            id,
            Request {
                route,
                step: 0,
                out: 0,
                token,
                poll,
                broken_off: false,
                connection,
                thread: 0,
            },
        );
        self.saw(Seen::Begin(Begun {
            id,
            route: 100 + route as u32,
            token,
            connection,
        }));
        id
    }

    fn arrive(&mut self) {
        self.started += 1;
        self.ids += 1;
        if self.started == self.size.quiet {
            self.load();
        }
        let route = self.route();
        let token = match self.app.token {
            true => self.random.random::<u32>() | 1,
            false => 0,
        };
        let id = self.begin(route, token, false);
        if self.chance(self.app.cancelled) {
            // About as long as it takes.
            let steps = self.app.routes[route].len() as f64;
            let most = steps * self.app.io_ms + (steps + 1.0) * self.app.cpu_ms;
            let ms = most * self.random.random::<f64>();
            self.after(ms, Event::Cancel(id));
        }
        if self
            .app
            .threads
            .is_none_or(|threads| self.serving < threads)
        {
            self.serve(id);
        } else {
            self.waiting.push_back(id);
        }
    }

    fn route(&mut self) -> usize {
        let routes = self.app.routes.len();
        match self.app.skew > 1.0 {
            true => (self.random.random::<f64>().powf(self.app.skew) * routes as f64) as usize,
            false => self.random.random_range(0..routes),
        }
    }

    fn serve(&mut self, id: u64) {
        self.serving += 1;
        let thread = self.threads.take();
        self.live.get_mut(&id).unwrap().thread = thread;
        self.cpu(id);
    }

    fn poll(&mut self, first: bool) {
        let seconds = self.app.polls.as_ref().unwrap().seconds;
        self.ids += 1;
        self.polling += 1;
        let id = self.begin(self.app.routes.len(), 0, true);
        // The clients did not begin all at once.
        let part = if first { self.random.random() } else { 1.0 };
        self.after(1000.0 * seconds * part, Event::Polled(id));
    }

    fn ran(&mut self, id: u64) {
        self.running -= 1;
        if let Some(next) = self.ready.pop_front() {
            self.cpu(next);
        }
        let routes = match &self.app.deploy {
            Some(routes) if self.is_late() => routes,
            _ => &self.app.routes,
        };
        let ends = self.chance(self.app.early);
        let request = self.live.get_mut(&id).unwrap();
        let route = match request.poll {
            true => &self.polled,
            false => &routes[request.route],
        };
        let mut made = Vec::new();
        while let Some(step) = route.get(request.step).filter(|_| !ends) {
            request.step += 1;
            made = step
                .iter()
                .filter(|call| self.random.random::<f64>() < call.chance)
                .copied()
                .collect();
            if !made.is_empty() {
                break;
            }
        }
        request.out = made.len();
        let token = request.token;
        if made.is_empty() {
            self.done(id);
        }
        for one in made {
            let made = Made::by(Some(id), one, token);
            if one.queued {
                self.jobs.push_back(made);
                self.work();
            } else {
                self.outbound(made);
            }
        }
    }

    fn done(&mut self, id: u64) {
        let request = self.live.remove(&id).unwrap();
        self.connections.give(request.connection);
        if !request.broken_off {
            self.saw(Seen::End(id));
        }
        if request.poll {
            self.polling -= 1;
            let ms = self.exp(5.0);
            self.after(ms, Event::Poll { first: false });
            return;
        }
        let leaves = self.random.random::<f64>();
        if let Some(job) = &self.app.after
            && leaves < job.chance
        {
            let [from, to] = job.ms;
            let part = self.random.random::<f64>();
            let ms = match from > 0.0 {
                true => from * (to / from).powf(part),
                false => to * part,
            };
            self.after(ms, Event::After(id, 0));
        }
        self.serving -= 1;
        self.threads.give(request.thread);
        if let Some(next) = self.waiting.pop_front() {
            self.serve(next);
        }
        if !request.broken_off {
            self.next_arrival();
        }
    }
}
