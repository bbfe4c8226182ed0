//! A first guess at which request made which call, if nothing is known.
//!
//! Each call was triggered by something: by a request that had begun, by an earlier call of
//! the same request, by the return of one, or by nothing that is seen (the background). How
//! likely each is depends on what it was and on how long ago. Those rates are found together
//! with the triggers by expectation maximisation, as the aftershocks of earthquakes are told
//! from each other (stochastic declustering of a Hawkes process). No label is needed, and
//! the sums go over triggers rather than over ways to share out all calls: rough, and
//! enough to begin with.

mod triggers;

use super::recording::{Recorded, What};
use crate::attribution::buckets::{bucket, ms};
use crate::attribution::names::Name;
use crate::attribution::numbers::sort_key;
use triggers::Triggers;

/// Passes over the events.
const PASSES: usize = 10;
/// What has returned for longer than this triggers nothing.
const TRIGGERS_US: u64 = 60_000;
/// Names of routes, and of kinds, that are told apart; the last stands for all others.
const NAMES_MOST: usize = 24;
/// A trigger that is less likely than this is none.
const NEGLIGIBLE: f32 = 1e-3;
/// Calls that may trigger others, and requests that may have made one, at most: an event takes
/// no longer, whatever the application does.
const SOURCES_MOST: usize = 256;
const OWNERS_MOST: usize = 12;

/// What is assumed to begin with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Start {
    /// Calls of the background are possible.
    pub(super) background: bool,
    /// A request makes no more calls of a kind than others of its route do.
    pub(super) budget: bool,
}

/// A request in flight.
#[derive(Debug)]
struct Running {
    request: u64,
    route: usize,
    /// By kind, the calls that it has made.
    made: Vec<f32>,
}

/// A request, or a call, that may trigger calls.
#[derive(Debug)]
struct Source {
    /// The number of the request, or of the call.
    number: u64,
    /// The row of [`Declustering::triggers`]: of a route, of the kind of an outstanding call,
    /// or of the kind of one that has returned.
    row: usize,
    /// When it began, or returned.
    since_us: u64,
    /// The requests that it may belong to, with the probability of each.
    owners: Vec<(u64, f32)>,
    /// Its rate of the call that is asked for.
    rate: f32,
}

/// The state of the passes.
#[derive(Debug)]
pub(super) struct Declustering {
    start: Start,
    routes: Vec<Name>,
    kinds: Vec<Name>,
    triggers: Triggers,
    /// By kind: calls per millisecond, and calls counted in this pass.
    background: Vec<[f32; 2]>,
    /// By route and kind: calls per request, and calls counted in this pass.
    budget: Vec<[f32; 2]>,
    /// By route: requests that have ended in this pass.
    ended: Vec<f32>,
    running: Vec<Running>,
    sources: Vec<Source>,
    owner: Option<u64>,
    began_us: u64,
    now_us: u64,
    pass: usize,
    /// In the last pass: the likeliest owner of each call, if it has one.
    owners: Vec<Option<u64>>,
}

fn index(names: &mut Vec<Name>, name: Name) -> usize {
    let found = names.iter().position(|known| *known == name);
    found.unwrap_or_else(|| {
        if names.len() < NAMES_MOST {
            names.push(name);
        }
        names.len() - 1
    })
}

impl Declustering {
    /// Of these events.
    pub(super) fn new(events: &[Recorded], start: Start) -> Self {
        let (mut routes, mut kinds) = (Vec::new(), Vec::new());
        for event in events {
            match event.what {
                What::Begun { route, .. } => index(&mut routes, route),
                What::Called { kind, .. } => index(&mut kinds, kind),
                _ => 0,
            };
        }
        let (of_routes, of_kinds) = (routes.len(), kinds.len());
        let background = if start.background { 1e-4 } else { 1e-7 };
        let triggers = Triggers::new(of_routes + 2 * of_kinds, of_kinds, |row| {
            match row.checked_sub(of_routes) {
                None => 0.05,
                Some(kind) if kind < of_kinds => 0.003,
                Some(_) => 0.03,
            }
        });
        Self {
            start,
            triggers,
            background: vec![[background, 0.0]; of_kinds],
            budget: vec![[f32::INFINITY, 0.0]; of_routes * of_kinds],
            ended: vec![0.0; of_routes],
            routes,
            kinds,
            running: Vec::new(),
            sources: Vec::new(),
            owner: None,
            began_us: 0,
            now_us: 0,
            pass: 0,
            owners: Vec::new(),
        }
    }

    /// The next event of the pass. Returns about how much work that was.
    pub(super) fn event(&mut self, event: &Recorded) -> usize {
        let Recorded {
            at_us,
            number,
            what,
        } = *event;
        if self.now_us == 0 {
            self.began_us = at_us;
        }
        self.now_us = at_us;
        match what {
            What::Begun { route, .. } => {
                let route = index(&mut self.routes, route);
                let made = vec![0.0; self.kinds.len()];
                self.running.push(Running {
                    request: number,
                    route,
                    made,
                });
                self.add_source(number, route, vec![(number, 1.0)]);
            }
            What::Ended { .. } => {
                let of = |running: &Running| running.request == number;
                if let Some(at) = self.running.iter().position(of) {
                    let ended = self.running.swap_remove(at);
                    self.stop(ended);
                }
            }
            What::Owner => self.owner = Some(number),
            What::Called { kind, .. } => {
                let kind = index(&mut self.kinds, kind);
                let owner = self.owner.take();
                self.called(number, kind, owner);
                return 4 + 3 * self.sources.len();
            }
            What::Returned => {
                let outstanding = self.routes.len()..self.routes.len() + self.kinds.len();
                let mut sources = self.sources.iter_mut();
                let of = |s: &&mut Source| s.number == number && outstanding.contains(&s.row);
                if let Some(source) = sources.find(of) {
                    let us = at_us.saturating_sub(source.since_us);
                    self.triggers.wait(source.row, us);
                    source.row += self.kinds.len();
                    source.since_us = at_us;
                }
            }
        }
        2
    }

    fn add_source(&mut self, number: u64, row: usize, owners: Vec<(u64, f32)>) {
        if self.sources.len() >= SOURCES_MOST {
            self.sources.remove(0);
        }
        self.sources.push(Source {
            number,
            row,
            since_us: self.now_us,
            owners,
            rate: 0.0,
        });
    }

    /// A request has ended, or the events have.
    fn stop(&mut self, running: Running) {
        let (now_us, routes) = (self.now_us, self.routes.len());
        let triggers = &mut self.triggers;
        self.sources.retain(|source| {
            let is_it = source.row < routes && source.number == running.request;
            if is_it {
                triggers.wait(source.row, now_us.saturating_sub(source.since_us));
            }
            !is_it
        });
        if let Some(ended) = self.ended.get_mut(running.route) {
            *ended += 1.0;
        }
        let all = self
            .budget
            .iter_mut()
            .skip(running.route * self.kinds.len());
        for ([_, all], made) in all.zip(running.made) {
            *all += made;
        }
    }

    /// A call has begun.
    fn called(&mut self, call: u64, kind: usize, owner: Option<u64>) {
        self.drop_old();
        self.rate_sources(kind, owner);
        let background = self.background.get_mut(kind);
        let mut sum = self.sources.iter().map(|source| source.rate).sum::<f32>();
        if let (None, Some([rate, count])) = (owner, background) {
            sum += *rate;
            *count += *rate / sum;
        }
        let mut owners: Vec<(u64, f32)> = Vec::new();
        for source in &self.sources {
            let share = source.rate / sum;
            if share.is_nan() || share <= NEGLIGIBLE {
                continue;
            }
            let us = self.now_us.saturating_sub(source.since_us);
            self.triggers.count(source.row, kind, bucket(us), share);
            let running = &self.running;
            let in_flight = |(request, _): &&(u64, f32)| {
                running.iter().any(|running| running.request == *request)
            };
            let all: f32 = source.owners.iter().filter(in_flight).map(|o| o.1).sum();
            for (request, of) in source.owners.iter().filter(in_flight) {
                let share = share * of / all;
                match owners.iter_mut().find(|(known, _)| known == request) {
                    Some((_, sum)) => *sum += share,
                    None => owners.push((*request, share)),
                }
            }
        }
        owners.sort_by_cached_key(|(_, share)| !sort_key((*share).into()));
        owners.truncate(OWNERS_MOST);
        if let Some(owner) = owner {
            owners = vec![(owner, 1.0)];
        }
        for running in &mut self.running {
            let owner = owners.iter().find(|(known, _)| *known == running.request);
            if let (Some((_, share)), Some(made)) = (owner, running.made.get_mut(kind)) {
                *made += share;
            }
        }
        if self.is_last_pass() {
            let likeliest = owners.iter().max_by(|a, b| a.1.total_cmp(&b.1));
            let nobody = 1.0 - owners.iter().map(|(_, share)| share).sum::<f32>();
            let owner = likeliest.filter(|(_, share)| *share > nobody);
            self.owners.push(owner.map(|(request, _)| *request));
        }
        self.add_source(call, self.routes.len() + kind, owners);
    }

    /// Drops calls that trigger nothing any more.
    fn drop_old(&mut self) {
        let (now_us, running) = (self.now_us, &self.running);
        let returned = self.routes.len() + self.kinds.len();
        let triggers = &mut self.triggers;
        self.sources.retain(|source| {
            let us = now_us.saturating_sub(source.since_us);
            let is_returned = source.row >= returned;
            let in_flight = |(owner, _): &(u64, f32)| running.iter().any(|r| r.request == *owner);
            let stays = !(is_returned && us > TRIGGERS_US) && source.owners.iter().any(in_flight);
            if !stays && is_returned {
                triggers.wait(source.row, us.min(TRIGGERS_US));
            }
            stays
        });
    }

    /// Rates all sources for a call of this kind. `owner`: the request that is known to have
    /// made it.
    fn rate_sources(&mut self, kind: usize, owner: Option<u64>) {
        for source in &mut self.sources {
            let at = bucket(self.now_us.saturating_sub(source.since_us));
            let mut left = 0.0;
            for (request, share) in &source.owners {
                if owner.is_some_and(|owner| owner != *request) {
                    continue;
                }
                let mut running = self.running.iter();
                let Some(running) = running.find(|r| r.request == *request) else {
                    continue;
                };
                // What requests of its route make of the kind, without those it has made.
                let all = self.budget.get(running.route * self.kinds.len() + kind);
                let [all, _] = all.copied().unwrap_or([f32::INFINITY, 0.0]);
                let made = running.made.get(kind).copied().unwrap_or(0.0);
                left += match self.start.budget {
                    true => share * (all - made).clamp(0.01, 1.0),
                    false => *share,
                };
            }
            source.rate = left * self.triggers.rate(source.row, kind, at);
        }
    }

    fn is_last_pass(&self) -> bool {
        self.pass + 1 == PASSES
    }

    /// All events have been given. Returns whether that was the last pass.
    pub(super) fn end_pass(&mut self) -> bool {
        let is_last = self.is_last_pass();
        for running in std::mem::take(&mut self.running) {
            self.stop(running);
        }
        self.sources.clear();
        let kinds = self.kinds.len().max(1);
        for (pair, [budget, made]) in self.budget.iter_mut().enumerate() {
            let ended = self.ended.get(pair / kinds).copied().unwrap_or(0.0);
            *budget = *made / ended.max(1.0);
            *made = 0.0;
        }
        self.triggers.learn();
        let all_ms = ms(self.now_us.saturating_sub(self.began_us)).max(1.0);
        let factor = if self.start.background { 1.0 } else { 1e-6 };
        for [rate, count] in &mut self.background {
            *rate = factor * (*count + 0.01) / all_ms;
            *count = 0.0;
        }
        self.ended.fill(0.0);
        self.now_us = 0;
        self.owner = None;
        self.pass += 1;
        is_last
    }

    /// The likeliest owner of each call, if it has one: the first guess.
    pub(super) fn take_owners(&mut self) -> Vec<Option<u64>> {
        std::mem::take(&mut self.owners)
    }
}
