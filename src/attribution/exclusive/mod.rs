//! A call comes while one request is in flight, and no other. Is it that request's, or
//! of the background?
//!
//! What speaks against the request is evidence of a background, and nothing else. Calls
//! of the background come at any time: while nothing is in flight, while the request
//! waits for a call of its own, and once more after it has made the ones that it makes.
//! Calls of a request come where requests make calls: soon after it has begun or a call
//! has returned, and as often as requests of its route make them. Three things are
//! learned of each kind of call:
//!
//! - **The odds that requests make it at all**, rather than a background that takes no
//!   notice of them: a likelihood ratio, call by call. Time is divided into cells: nothing
//!   in flight, or the request by the calls that it has made, whether it waits, and the
//!   time since its last event. Of a background each cell gets as many calls as it has of the
//!   time, or as a clock of its own says; of requests, as many as it had so far.
//! - **How many calls a request of a route makes**, and after how long.
//! - **How many came at odds with that**, or while nothing was in flight: the background's
//!   rate, with an upper confidence limit.
//!
//! A kind whose odds are not good yet may be given away a few times (`UNPROVEN`). All
//! doubts together are kept within a budget: what it is believed to cost is taken off,
//! and little is added with each call.

mod cells;
mod judge;
mod kind;
mod route;
mod solo;

use super::buckets::{BUCKETS, begin_ms, bucket, ms, spans};
use super::names::{NAMES, Name};
use cells::{ANYWHERE, CELLS, IDLE, add, get};
use judge::{BUDGET, Judged, REFUTED, WEIGHS};
use kind::Kind;
use route::Route;
use solo::{OUTSTANDING, Out, Solo, Stray};

/// What each call adds to the budget of doubts.
const INCOME: f32 = 0.001;
/// Calls that were not to be expected and may be given to a request at once, all the same;
/// and what each call adds. A background that has just begun has no rate yet: this bounds
/// what it gets until then.
const ODD: f32 = 4.0;
const ODD_INCOME: f32 = 0.001;
/// So many calls of a background, and a request that was not alone all the time gets none.
const MIXED: f32 = 1.0;
/// Odds from which on a call is an event of its request, by which others are judged.
const EVENT: f32 = 0.5;
/// The same, of one that is not to be expected, soon after others of its kind.
const DOUBT_ODD: f32 = 0.008;
/// Milliseconds after which half is forgotten.
const HALVED_MS: f32 = 300_000.0;
/// A request of which nothing was heard for so long is not taken for one that is
/// about to make a call.
const SILENT_US: u64 = 10_000_000;

/// What has been learned, and what is known of the request that is alone.
#[derive(Debug)]
pub(super) struct Exclusive {
    now_us: u64,
    /// Nothing is learned until then: there may be requests that are not known.
    blind_until_us: u64,
    /// In flight: none, one, or more.
    idle: bool,
    solo: Option<Solo>,
    strays: Vec<Stray>,
    /// Requests that have begun.
    begun: u64,
    /// When the last request ended.
    ended_us: u64,
    /// Milliseconds, and calls of requests, by cell; their sums.
    time: Vec<f32>,
    calls: Vec<f32>,
    sums: [f32; 2],
    /// Milliseconds in which nothing was in flight, by the time since the last answer.
    after: [f32; BUCKETS],
    /// By name.
    kinds: Vec<Option<Box<Kind>>>,
    routes: Vec<Route>,
    budget: f32,
    /// Calls that were not to be expected and may be given to a request.
    odd: f32,
}

impl Default for Exclusive {
    fn default() -> Self {
        Self {
            now_us: 0,
            blind_until_us: 0,
            idle: true,
            solo: None,
            strays: Vec::new(),
            begun: 0,
            ended_us: 0,
            time: vec![0.0; CELLS],
            calls: vec![0.0; CELLS],
            sums: [0.0; 2],
            after: [0.0; BUCKETS],
            kinds: vec![None; NAMES],
            routes: vec![Route::default(); NAMES],
            budget: BUDGET,
            odd: ODD,
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
        self.strays.retain(|stray| now_us < stray.until_us);
        match &self.solo {
            Some(solo) => {
                let cells = solo.cells(None);
                let us = |at: u64| at.saturating_sub(solo.last_us);
                let (from, to) = (us(from_us), us(now_us));
                let heard = to.min(SILENT_US);
                for (at, span) in spans(from.min(heard), heard) {
                    add(&mut self.time, cells + at, span);
                }
                add(
                    &mut self.time,
                    IDLE,
                    ms(to.saturating_sub(from.max(SILENT_US))),
                );
                add(&mut self.sums, 0, ms(now_us - from_us));
            }
            None if self.idle => {
                let us = |at: u64| at.saturating_sub(self.ended_us);
                for (at, span) in spans(us(from_us), us(now_us)) {
                    add(&mut self.after, at, span);
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
        for values in [&mut self.time, &mut self.calls] {
            for value in values {
                *value *= 0.5;
            }
        }
        self.sums = self.sums.map(|value| 0.5 * value);
        self.after = self.after.map(|value| 0.5 * value);
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

    /// Now so many requests are in flight. `only`: the number and the route of the only
    /// one.
    pub(super) fn in_flight(&mut self, requests: usize, only: Option<(u64, Name)>) {
        // It has just begun.
        let first = std::mem::replace(&mut self.idle, requests == 0);
        let Some((number, route)) = only else {
            self.solo = None;
            return;
        };
        if self.solo.as_ref().is_some_and(|solo| solo.number == number) {
            return;
        }
        self.solo = Some(Solo {
            number,
            route,
            began_us: self.now_us,
            mixed: !first,
            last_us: self.now_us,
            heard: [(0, self.now_us); 2],
            made: 0,
            out: Vec::new(),
            returned: (0, 0),
            kinds: Vec::new(),
        });
    }

    /// Forgets what is in flight. What has happened since the last event is not known.
    pub(super) fn forget(&mut self) {
        self.in_flight(0, None);
        self.strays.clear();
        self.now_us = 0;
    }

    /// A request has ended: to be told before [`Exclusive::in_flight`].
    pub(super) fn end(&mut self, request: u64, route: Name, began_us: u64, answered: bool) {
        let now_us = self.now_us;
        self.ended_us = now_us;
        let solo = self.solo.take_if(|solo| solo.number == request);
        if !answered {
            self.stray(route, began_us, solo);
            return;
        }
        let Some(solo) = solo.filter(|solo| !solo.mixed && now_us >= self.blind_until_us) else {
            return;
        };
        let lasted = ms(now_us.saturating_sub(solo.began_us));
        for route in [solo.route, 0] {
            let Some(route) = self.routes.get_mut(usize::from(route)) else {
                continue;
            };
            route.longest = lasted.max(0.97 * route.longest);
            route.requests = (route.requests + 1.0).min(400.0);
            for pair in &mut route.pairs {
                let (made, _) = solo.made(pair.kind);
                pair.learn(made);
            }
        }
    }

    /// A call has returned.
    pub(super) fn returned(&mut self, call: u64) {
        let Some(solo) = &mut self.solo else { return };
        if let Some(at) = solo.out.iter().position(|out| out.call == call) {
            let out = solo.out.swap_remove(at);
            solo.returned = (out.kind, self.now_us);
            if out.own {
                solo.hears(out.kind, self.now_us);
            }
        }
    }

    /// A call has come. `kind`, and a coarser one, which may be the same. `known`: it is
    /// known to be of a request in flight. Returns the probability that it is not of the only
    /// request in flight, if that is small enough; and whether it may well be.
    pub(super) fn call(
        &mut self,
        call: u64,
        [kind, coarse]: [Name; 2],
        known: bool,
    ) -> (Option<f32>, bool) {
        let now_us = self.now_us;
        self.budget = (self.budget + INCOME).min(BUDGET);
        self.odd = (self.odd + ODD_INCOME).min(ODD);
        let (regular, since_us) = self.meet(kind, coarse);
        if now_us < self.blind_until_us || (self.solo.is_none() && !self.idle) {
            return (None, self.solo.is_some());
        }
        if !known && self.is_astray(kind) {
            if let Some(solo) = &mut self.solo {
                solo.mixed = true;
            }
            return (None, false);
        }
        let heard = |solo: &Solo| now_us.saturating_sub(solo.last_us) < SILENT_US;
        let Some(solo) = self.solo.clone().filter(heard) else {
            self.called_by_nobody(kind, ANYWHERE / regular);
            self.weigh(coarse, kind, [IDLE; 2], ANYWHERE / regular);
            return (None, false);
        };
        // One after the other, each when the one before has returned; if not, it is held
        // against what is not of its kind.
        let (returned, at_us) = solo.returned;
        let follows = returned == kind && now_us.saturating_sub(at_us) < since_us / 4;
        let heard_us = now_us.saturating_sub(solo.last_us);
        let cell = solo.cells(None) + bucket(heard_us);
        let apart = solo.cells(Some(kind)) + bucket(now_us.saturating_sub(solo.heard_but(kind)));
        let apart = if follows { cell } else { apart };
        let regular = if follows { 1.0 } else { regular };
        let lift = self.lift(kind, cell, apart);
        let Judged {
            doubt,
            young,
            always,
            odd,
        } = self.doubt(&solo, kind, lift.max(self.sparse(kind, [cell, apart])));
        // And none came in this cell before, this time, although that was as likely.
        let here = heard_us.saturating_sub((1000.0 * begin_ms(bucket(heard_us))) as u64);
        let rate = self.known(kind).map_or(0.0, |kind| kind.calls) / (get(&self.sums, 0) + 1.0);
        let silence = (-(lift - 1.0).max(0.0) * rate * ms(here.min(since_us))).exp();
        let told = match solo.mixed {
            true => lift.min(self.mixed_lift(kind, cell)),
            false => lift,
        };
        let weight = (told * silence / regular).clamp(*WEIGHS.start(), *WEIGHS.end());
        let odds = weight * self.odds(kind);
        let late = self
            .known(kind)
            .is_some_and(|kind| kind.late_rate(now_us) > 0.0);
        let mut unexpected = late && !young && odd[0] > 0.0 && doubt > DOUBT_ODD;
        // What a request has made is not known that was not alone all the time.
        let calls = self.known(kind).map_or(0.0, |kind| kind.background);
        unexpected |= solo.mixed && calls > MIXED;
        let mut sure = match known || unexpected {
            true => None,
            false => self.decide(kind, coarse, odds, doubt, always),
        };
        if sure.is_some() && odd[0] > 0.0 && lift < 1.0 && !young && !always {
            if self.odd >= 1.0 {
                self.odd -= 1.0;
            } else {
                sure = None;
            }
        }
        let likely = known || (odds >= REFUTED && doubt <= 0.5);
        // Learn. What is odd of a request that was not alone all the time shows no
        // background: it may be about to do what requests do, and not be known to be.
        if !known && !young && !solo.mixed && doubt > 0.05 {
            let calls = if doubt > 0.25 { 1.0 } else { doubt };
            if let Some(kind) = self.known_mut(kind) {
                kind.learn_background(now_us, calls);
            }
        }
        if let Some(kind) = self.known_mut(kind).filter(|_| !young) {
            kind.learn_late(now_us, 0.0, odd);
        }
        let weight = if known { weight.max(2.0) } else { weight };
        self.weigh(kind, 0, [cell, apart], weight);
        let coarse_weight = self.lift(coarse, cell, apart) / regular;
        self.weigh(coarse, kind, [cell, apart], coarse_weight);
        if likely {
            add(&mut self.calls, cell, 1.0);
            add(&mut self.sums, 1, 1.0);
        }
        self.came(call, kind, likely && (known || odds >= EVENT));
        (sure, likely)
    }

    /// The only request in flight may have made a call of this kind.
    fn came(&mut self, call: u64, kind: Name, own: bool) {
        let now_us = self.now_us;
        let Some(solo) = &mut self.solo else { return };
        let (made, before_us) = solo.made(kind);
        if !solo.mixed {
            let wait = ms(now_us.saturating_sub(before_us));
            for route in [solo.route, 0] {
                let route = self.routes.get_mut(usize::from(route));
                if let Some(pair) = route.and_then(|route| route.pair_mut(kind)) {
                    add(&mut pair.waits, usize::from(made > 0), wait);
                    add(&mut pair.waited, usize::from(made > 0), 1.0);
                }
            }
        }
        match solo.kinds.iter_mut().find(|(known, _, _)| *known == kind) {
            Some((_, made, last_us)) => {
                *made = made.saturating_add(1);
                *last_us = now_us;
            }
            None => solo.kinds.push((kind, 1, now_us)),
        }
        if own {
            solo.made = solo.made.saturating_add(1);
            solo.hears(kind, now_us);
        }
        if solo.out.len() < OUTSTANDING {
            solo.out.push(Out { call, kind, own });
        }
    }

    /// A name is given to another kind.
    pub(super) fn forget_kind(&mut self, kind: Name) {
        if let Some(place) = self.kinds.get_mut(usize::from(kind)) {
            *place = None;
        }
        for route in &mut self.routes {
            route.pairs.retain(|pair| pair.kind != kind);
        }
        if let Some(solo) = &mut self.solo {
            solo.kinds.retain(|(known, _, _)| *known != kind);
        }
    }

    /// A name is given to another route.
    pub(super) fn forget_route(&mut self, route: Name) {
        if let Some(route) = self.routes.get_mut(usize::from(route)) {
            *route = Route::default();
        }
    }
}
