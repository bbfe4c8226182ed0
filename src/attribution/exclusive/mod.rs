//! A call comes while one request is in flight, and no other. Is it that request's, or
//! the background's?
//!
//! What speaks against the request is evidence of a background, and nothing else. Calls
//! of the background come at any time: while nothing is in flight, while the request
//! waits for a call of its own, and once more after it has made the ones that it makes.
//! Calls of a request come where requests make calls: soon after it has begun or a call
//! has returned, and as often as requests of its route make them. Three things are
//! learned of each kind of call:
//!
//! - **The odds that requests make it at all**, rather than a background that takes no
//!   notice of them: a likelihood ratio, call by call (`kind.rs`, `lifts.rs`). The time is
//!   divided into cells: nothing in flight, or the request by the calls that it has made,
//!   whether it waits, and the time since its last event (`cells.rs`). A background makes as
//!   many calls in a cell as the cell has of the time, or as a timer does; requests make as
//!   many as were seen there so far.
//! - **How many calls a request of a route makes**, and after how long (`route.rs`).
//! - **How many came at odds with that**, or while nothing was in flight: the background's
//!   rate, with an upper confidence limit.
//!
//! Of a kind whose odds are not good yet, a few calls may be given to requests
//! (`EARLY_CALLS` in `judge.rs`). All doubts together are kept within a budget: each call
//! that is given costs its doubt, and each call that comes adds a little.
//!
//! A kind of call has two names: one by host, method and path, and one of its class, which
//! is coarser (they may be the same). Names are small numbers; 0 stands for any.

mod cells;
mod forget;
mod judge;
mod kind;
mod lifts;
mod only_request;
mod route;

use super::buckets::{BUCKETS, ms, spans};
use super::in_flight::Request;
use super::names::{NAMES, Name};
use cells::{ANY_TIME, CELLS, IDLE, add, get};
pub(super) use judge::Against;
use judge::{BUDGET, Evidence, REFUTED, UNLIKELY};
use kind::Kind;
use only_request::{AbortedRequest, OUTSTANDING, OnlyRequest, OutstandingCall};
use route::Route;

/// What each call adds to the budget of doubts.
const INCOME: f32 = 0.001;
/// Unexpected calls that may be given to requests all the same, at once; and what each call
/// adds. A background that has just begun has no rate yet: this limits what it gets until
/// then.
const UNEXPECTED: f32 = 4.0;
const UNEXPECTED_INCOME: f32 = 0.001;
/// Odds from which on a call is an event of its request, by which others are judged.
const EVENT_ODDS: f32 = 0.5;
/// A call with a greater doubt than the first is counted as a background call, as much of one
/// as the doubt says; with a greater doubt than the second, as a whole one.
const TAUGHT: f32 = 0.05;
const TAUGHT_WHOLE: f32 = 0.25;
/// Milliseconds after which half is forgotten.
const HALVED_MS: f32 = 300_000.0;
/// What is presumed before anything was seen counts less each time, up to so many times.
const HALVED_MOST: f32 = 20.0;
/// A request without an event for so long is not taken for one that is about to make a call.
const SILENT_US: u64 = 10_000_000;

/// What has been learned, and what is known of the only request in flight.
#[derive(Debug)]
pub(super) struct Exclusive {
    now_us: u64,
    /// Nothing is learned until then: there may be requests that are not known.
    blind_until_us: u64,
    /// Nothing is in flight.
    idle: bool,
    /// The only request in flight, if there is just one.
    only: Option<OnlyRequest>,
    aborted: Vec<AbortedRequest>,
    /// Requests that have begun.
    begun: u64,
    /// When the last request ended.
    ended_us: u64,
    /// Milliseconds, and calls of requests, by cell; their sums.
    time: Vec<f32>,
    calls: Vec<f32>,
    sums: [f32; 2],
    /// Milliseconds in which nothing was in flight, by the time since the last answer.
    after_answer: [f32; BUCKETS],
    /// By name.
    kinds: Vec<Option<Box<Kind>>>,
    routes: Vec<Route>,
    /// How often half was forgotten, up to [`HALVED_MOST`].
    halved: f32,
    /// The doubt that may be spent, in calls.
    budget: f32,
    /// Unexpected calls that may be given to requests.
    unexpected: f32,
    /// What speaks against the only request in flight having made the last call.
    pub(super) against: Against,
}

impl Default for Exclusive {
    fn default() -> Self {
        Self {
            now_us: 0,
            blind_until_us: 0,
            idle: true,
            only: None,
            aborted: Vec::new(),
            begun: 0,
            ended_us: 0,
            time: vec![0.0; CELLS],
            calls: vec![0.0; CELLS],
            sums: [0.0; 2],
            after_answer: [0.0; BUCKETS],
            kinds: vec![None; NAMES],
            routes: vec![Route::default(); NAMES],
            halved: 0.0,
            budget: BUDGET,
            unexpected: UNEXPECTED,
            against: Against::Nothing,
        }
    }
}

impl Exclusive {
    /// Time has passed, up to now.
    pub(super) fn pass(&mut self, now_us: u64) {
        let from_us = self.now_us;
        self.now_us = from_us.max(now_us);
        if from_us == 0 || now_us <= from_us || from_us < self.blind_until_us {
            return;
        }
        self.aborted.retain(|aborted| now_us < aborted.until_us);
        match &self.only {
            Some(only) => {
                let first_cell = only.first_cell(None);
                let us = |at: u64| at.saturating_sub(only.last_event_us);
                let (from, to) = (us(from_us), us(now_us));
                let silent = to.min(SILENT_US);
                for (at, span) in spans(from.min(silent), silent) {
                    add(&mut self.time, first_cell + at, span);
                }
                let idle = ms(to.saturating_sub(from.max(SILENT_US)));
                add(&mut self.time, IDLE, idle);
                add(&mut self.sums, 0, ms(now_us - from_us));
            }
            None if self.idle => {
                let us = |at: u64| at.saturating_sub(self.ended_us);
                for (at, span) in spans(us(from_us), us(now_us)) {
                    add(&mut self.after_answer, at, span);
                }
                add(&mut self.time, IDLE, ms(now_us - from_us));
                add(&mut self.sums, 0, ms(now_us - from_us));
            }
            None => {}
        }
        if get(&self.sums, 0) > HALVED_MS {
            self.halve();
        }
    }

    fn halve(&mut self) {
        self.halved = (self.halved + 1.0).min(HALVED_MOST);
        for values in [&mut self.time, &mut self.calls] {
            for value in values {
                *value *= 0.5;
            }
        }
        self.sums = self.sums.map(|value| 0.5 * value);
        self.after_answer = self.after_answer.map(|value| 0.5 * value);
        for kind in self.kinds.iter_mut().flatten() {
            kind.halve();
        }
    }

    /// There may be requests in flight that nothing is known of.
    pub(super) fn blind(&mut self, until_us: u64) {
        self.blind_until_us = self.blind_until_us.max(until_us);
    }

    /// A request begins; of this route, if it has one.
    pub(super) fn begin(&mut self, route: Option<Name>) {
        self.begun = self.begun.wrapping_add(1);
        let route = route.and_then(|route| self.routes.get_mut(usize::from(route)));
        if let Some(route) = route {
            route.begun = route.begun.wrapping_add(1);
        }
    }

    /// Now so many requests are in flight. `only`: the only one.
    pub(super) fn in_flight(&mut self, requests: usize, only: Option<&Request>) {
        // The request has just begun if there was none before.
        let first = std::mem::replace(&mut self.idle, requests == 0);
        let Some(request) = only else {
            self.only = None;
            return;
        };
        let number = request.number;
        if self.only.as_ref().is_some_and(|only| only.number == number) {
            return;
        }
        self.only = Some(OnlyRequest {
            number,
            route: request.route,
            began_us: request.began_us,
            overlapped: !first,
            last_event_us: self.now_us,
            last_events: [(0, self.now_us); 2],
            made: 0,
            outstanding: Vec::new(),
            returned: (0, 0),
            calls: Vec::new(),
        });
    }

    /// Forgets what is in flight. What has happened since the last event is not known.
    pub(super) fn forget(&mut self) {
        self.in_flight(0, None);
        self.aborted.clear();
        self.now_us = 0;
    }

    /// A request has ended, which comes before [`Exclusive::in_flight`].
    pub(super) fn end(&mut self, request: u64, route: Name, began_us: u64, answered: bool) {
        let now_us = self.now_us;
        self.ended_us = now_us;
        let only = self.only.take_if(|only| only.number == request);
        if !answered {
            self.abort(route, began_us, only);
            return;
        }
        let Some(only) = only.filter(|only| !only.overlapped && now_us >= self.blind_until_us)
        else {
            return;
        };
        let lasted = ms(now_us.saturating_sub(only.began_us));
        for route in [only.route, 0] {
            let Some(route) = self.routes.get_mut(usize::from(route)) else {
                continue;
            };
            route.longest = lasted.max(0.97 * route.longest);
            route.requests = (route.requests + 1.0).min(400.0);
            for calls in &mut route.calls {
                let (made, _) = only.made(calls.kind);
                calls.learn(made);
            }
        }
    }

    /// A call has returned.
    pub(super) fn returned(&mut self, call: u64) {
        let Some(only) = &mut self.only else { return };
        let outstanding = &mut only.outstanding;
        if let Some(at) = outstanding.iter().position(|out| out.call == call) {
            let out = outstanding.swap_remove(at);
            only.returned = (out.kind, self.now_us);
            if out.own {
                only.record_event(out.kind, self.now_us);
            }
        }
    }

    /// A call has come, of this kind and class. `keyed`: a key has named its request, which is
    /// in flight. Returns the probability that the call is not of the only request in flight,
    /// if that is small enough to give it to the request; and whether it may well be.
    pub(super) fn call(
        &mut self,
        call: u64,
        [kind, class]: [Name; 2],
        keyed: bool,
    ) -> (Option<f32>, bool) {
        let now_us = self.now_us;
        self.budget = (self.budget + INCOME).min(BUDGET);
        self.unexpected = (self.unexpected + UNEXPECTED_INCOME).min(UNEXPECTED);
        let timing = self.observe(kind, class);
        self.against = match self.only.is_some() && self.odds(kind) < REFUTED {
            true => Against::All,
            false => Against::Nothing,
        };
        if now_us < self.blind_until_us || (self.only.is_none() && !self.idle) {
            return (None, self.only.is_some());
        }
        let old = self
            .only
            .as_ref()
            .filter(|only| only.is_old(now_us) && !keyed);
        let may_be_of_old = old.is_some_and(|only| self.makes(only.route, kind));
        let is_old = old.is_some();
        if !keyed && (may_be_of_old || self.may_be_of_aborted(kind)) {
            self.against = self.against.max(Against::Kind);
            if let Some(only) = &mut self.only {
                only.overlapped = true;
            }
            return (None, false);
        }
        let is_active =
            |only: &OnlyRequest| !is_old && now_us.saturating_sub(only.last_event_us) < SILENT_US;
        let Some(only) = self.only.clone().filter(is_active) else {
            let weight = ANY_TIME / timing.timer;
            self.learn_background_call(kind, weight);
            if class != kind {
                self.learn_odds(class, [IDLE; 2], weight);
            }
            return (None, false);
        };
        let evidence = self.evidence(&only, kind, timing);
        self.against = evidence.against();
        let given = match keyed {
            true => None,
            false => self.decide(&only, [kind, class], &evidence),
        };
        let likely = self.learn(&only, [kind, class], keyed, &evidence);
        let own = likely && (keyed || evidence.odds >= EVENT_ODDS);
        self.record_call(call, kind, own);
        (given, likely)
    }

    /// Learns from a call that came while one request was in flight. Returns whether it may
    /// well be that request's.
    fn learn(
        &mut self,
        only: &OnlyRequest,
        [kind, class]: [Name; 2],
        keyed: bool,
        evidence: &Evidence,
    ) -> bool {
        let now_us = self.now_us;
        let judgement = evidence.judgement;
        let is_made = evidence.odds >= REFUTED || judgement.always;
        let likely = keyed || (is_made && judgement.doubt <= UNLIKELY);
        // A request that overlapped others may be about to do what requests do, unknown to
        // us: what is unexpected of it shows no background.
        let is_background =
            !keyed && !judgement.young && !only.overlapped && judgement.doubt > TAUGHT;
        if let Some(kind) = self.known_mut(kind) {
            if is_background {
                let whole = judgement.doubt > TAUGHT_WHOLE;
                kind.learn_background(now_us, if whole { 1.0 } else { judgement.doubt });
            }
            if !judgement.young {
                kind.learn_recent(now_us, 0.0, judgement.is_unexpected, judgement.usual);
            }
        }
        let weight = evidence.weight;
        let weight = if keyed { weight.max(2.0) } else { weight };
        self.learn_odds(kind, evidence.cells, weight);
        if class != kind {
            let weight = self.lift(class, evidence.cells) / evidence.timer;
            self.learn_odds(class, evidence.cells, weight);
        }
        if likely {
            let [cell, _] = evidence.cells;
            add(&mut self.calls, cell, 1.0);
            add(&mut self.sums, 1, 1.0);
        }
        likely
    }

    /// A call of this kind is counted with the only request in flight. `own`: it is an event
    /// of the request.
    fn record_call(&mut self, call: u64, kind: Name, own: bool) {
        let now_us = self.now_us;
        let Some(only) = &mut self.only else { return };
        let (made, before_us) = only.made(kind);
        if !only.overlapped {
            let wait = ms(now_us.saturating_sub(before_us));
            for route in [only.route, 0] {
                let route = self.routes.get_mut(usize::from(route));
                if let Some(calls) = route.and_then(|route| route.calls_of_mut(kind)) {
                    calls.learn_wait(made, wait);
                }
            }
        }
        match only.calls.iter_mut().find(|(known, _, _)| *known == kind) {
            Some((_, made, last_us)) => {
                *made = made.saturating_add(1);
                *last_us = now_us;
            }
            None => only.calls.push((kind, 1, now_us)),
        }
        if own {
            only.made = only.made.saturating_add(1);
            only.record_event(kind, now_us);
        }
        if only.outstanding.len() < OUTSTANDING {
            only.outstanding.push(OutstandingCall { call, kind, own });
        }
    }
}
