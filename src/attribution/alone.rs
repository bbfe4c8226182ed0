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

use super::belief::sort_key;
use super::model::{BUCKETS, Name, begin_ms, bucket, ms};

/// Odds from which on a kind is known to be made by requests, and below which it is
/// not. A background passes the first with a probability of one to this number.
const PROVEN: f32 = 400.0;
const REFUTED: f32 = 0.04;
/// Odds never become better or worse than so: a change is noticed.
const ODDS: std::ops::RangeInclusive<f32> = 1e-3..=1e5;
/// One call changes the odds by no more than these.
const WEIGHS: std::ops::RangeInclusive<f32> = 0.05..=200.0;
/// The part of a request's calls that come anywhere, since the machine was busy; and as
/// many come where others do.
const ANYWHERE: f32 = 0.05;
/// Calls of any kind, and of one, that are taken for seen where the time is, and where
/// calls of any kind are.
const ANY: f32 = 6.0;
const OWN: f32 = 2.5;
/// Calls of a kind that may be given to a request before the odds are good.
const UNPROVEN: u8 = 9;
/// The doubt that may be spent at once, in calls; what each call adds; what the first
/// call of a kind costs of which nothing is known, and each further one before the odds
/// are good.
const BUDGET: f32 = 3.0;
const INCOME: f32 = 0.001;
/// A doubt is an estimate, and costs so much more.
const SAFE: f32 = 5.0;
const FIRST: f32 = 0.3;
const EARLY: f32 = 0.1;
/// No call is given to a request that is the background's with a greater probability.
const DOUBT: f32 = 0.1;
/// Of fewer calls of a kind only the odds count.
const FEW: f32 = 4.0;
/// So many calls of a background, and a request that was not alone all the time gets none.
const MIXED: f32 = 1.0;
/// Half-octaves by which a call after an answer may be later than others were.
const LATER: usize = 6;
/// Odds from which on a call is an event of its request, by which others are judged.
const EVENT: f32 = 0.5;
/// The same, of one that is not to be expected, soon after others of its kind.
const DOUBT_ODD: f32 = 0.008;
/// Calls of the background that are taken for seen before any was, and for how long.
const BEFORE: (f32, f32) = (0.1, 50.0);
/// Milliseconds after which half is forgotten.
const HALVED_MS: f32 = 300_000.0;
/// A background that has just begun: its calls of about so many milliseconds.
const LATE_MS: [f32; 3] = [1_000.0, 4_000.0, 16_000.0];
/// A request of which nothing was heard for so long is not taken for one that is
/// about to make a call.
const SILENT_US: u64 = 10_000_000;
/// A route of which so many requests were seen, alone from beginning to end, is known.
const KNOWN: f32 = 5.0;
/// For so long a request may still make calls after it was broken off, at least; for so long
/// the first one of a route that is not known may make calls of any kind; and at most.
const STRAY_US: (u64, u64, u64) = (2_000, 1_000_000, 10_000_000);
/// Requests that were broken off and are watched, at most.
const STRAYS: usize = 32;
/// A stray is not expected to make a call that is less likely.
const UNLIKELY: f32 = 0.02;
/// Kinds that are known of one route, at most; and calls outstanding of one request.
const PAIRS: usize = 48;
const OUTSTANDING: usize = 64;
/// How many calls of a kind a request has made is counted up to this.
const COUNTED: usize = 5;
/// A cell for the time in which nothing is in flight; by the time since the last event,
/// for requests of which not all was seen; and for others by calls made and outstanding.
const IDLE: usize = 0;
const CELLS: usize = 1 + BUCKETS * 7;

/// What is known of a kind of call.
#[derive(Clone, Debug)]
struct Kind {
    /// Requests make it, against the background does.
    odds: f32,
    /// Calls given to a request before the odds were good, and what that cost.
    given: u8,
    charged: f32,
    /// Calls, by cell, and their sum.
    cells: Vec<(u8, f32)>,
    calls: f32,
    /// The same, by what a request did but for calls of this kind.
    apart: Vec<(u8, f32)>,
    /// Calls of the background; and of late, as of a time.
    background: f32,
    late: [f32; LATE_MS.len()],
    late_us: u64,
    /// Of late, calls that were not to be expected, and how many those were to be.
    odd: [[f32; 2]; LATE_MS.len()],
    /// While nothing was in flight: calls by the time since the last answer.
    after: Vec<(u8, f32)>,
    /// When the last one came; milliseconds at risk and calls, by the time since the
    /// one before.
    last_us: u64,
    /// Requests that had begun then.
    begun: u64,
    /// None had come before it since that request had begun.
    once: bool,
    at_risk: [f32; BUCKETS],
    intervals: [f32; BUCKETS],
}

impl Kind {
    fn new(odds: f32) -> Self {
        Self {
            odds,
            given: 0,
            charged: 0.0,
            cells: Vec::new(),
            calls: 0.0,
            apart: Vec::new(),
            background: 0.0,
            late: [0.0; LATE_MS.len()],
            late_us: 0,
            odd: [[0.0; 2]; LATE_MS.len()],
            after: Vec::new(),
            last_us: 0,
            begun: 0,
            once: true,
            at_risk: [0.0; BUCKETS],
            intervals: [0.0; BUCKETS],
        }
    }

    /// A call has come, when so many requests had begun. Returns how much likelier a clock
    /// of its own makes it now than at another time. If the one before was of the request
    /// before, it has the clock of the requests.
    fn came(&mut self, now_us: u64, begun: u64) -> f32 {
        let last_us = std::mem::replace(&mut self.last_us, now_us);
        let before = std::mem::replace(&mut self.begun, begun);
        if last_us == 0 {
            return 1.0;
        }
        // From a millisecond to a quarter of a minute.
        let us = now_us.saturating_sub(last_us) >> 5;
        let at = bucket(us);
        for (at, span) in spans(0, us) {
            add(&mut self.at_risk, at, span);
        }
        let sum = |values: &[f32]| values.iter().sum::<f32>();
        let part = (get(&self.at_risk, at) / sum(&self.at_risk).max(1e-3)).clamp(1e-3, 1.0);
        let found = (get(&self.intervals, at) + FEW * part) / (sum(&self.intervals) + FEW);
        add(&mut self.intervals, at, 1.0);
        let once = std::mem::replace(&mut self.once, begun != before);
        match once && begun == before.wrapping_add(1) {
            true => 1.0,
            false => (found / part).max(1.0),
        }
    }

    /// The rate of the background of late, per millisecond.
    fn late_rate(&self, now_us: u64) -> f32 {
        let passed = ms(now_us.saturating_sub(self.late_us));
        let late = self.late.iter().zip(&self.odd).zip(LATE_MS);
        let rates = late.map(|((late, [was, expected]), span)| {
            let chance = expected.sqrt();
            let calls = (late - 1.0).max(was - expected - chance - 0.5);
            calls * (-passed / span).exp() / span
        });
        rates.fold(0.0, f32::max)
    }

    fn learn_background(&mut self, now_us: u64, calls: f32) {
        self.background += calls;
        self.learn_late(now_us, calls, [0.0; 2]);
    }

    /// So many calls of the background; and calls that were not to be expected, with how
    /// many of them were to be.
    fn learn_late(&mut self, now_us: u64, calls: f32, odd: [f32; 2]) {
        let passed = ms(now_us.saturating_sub(self.late_us));
        self.late_us = now_us;
        let late = self.late.iter_mut().zip(&mut self.odd).zip(LATE_MS);
        for ((late, [was, expected]), span) in late {
            let kept = (-passed / span).exp();
            *late = kept * *late + calls;
            *was = kept * *was + odd[0];
            *expected = kept * *expected + odd[1];
        }
    }

    fn halve(&mut self) {
        self.calls *= 0.5;
        self.background *= 0.5;
        for list in [&mut self.cells, &mut self.apart, &mut self.after] {
            list.retain_mut(|(_, count)| {
                *count *= 0.5;
                *count > 0.05
            });
        }
        self.at_risk = self.at_risk.map(|value| 0.5 * value);
        self.intervals = self.intervals.map(|value| 0.5 * value);
    }
}

/// How often requests of a route make a call of one kind.
#[derive(Clone, Debug)]
struct Pair {
    kind: Name,
    /// By the number of calls before: requests that came so far, and those that made
    /// one more.
    reached: [f32; COUNTED],
    went_on: [f32; COUNTED],
    /// Milliseconds to the first call, and to each further one; and how many those were.
    waits: [f32; 2],
    waited: [f32; 2],
}

impl Pair {
    /// `requests`: those of the route that made no such call.
    fn new(kind: Name, requests: f32) -> Self {
        let mut pair = Self {
            kind,
            reached: [0.0; COUNTED],
            went_on: [0.0; COUNTED],
            waits: [0.0; 2],
            waited: [0.0; 2],
        };
        add(&mut pair.reached, 0, requests);
        pair
    }

    /// The probability that a request which has made so many makes one more.
    fn one_more(&self, made: usize) -> f32 {
        let mut chance: f32 = 0.5;
        for made in 0..=made.min(COUNTED - 1) {
            let reached = get(&self.reached, made);
            chance = match reached < 1.0 {
                true => 0.5 * chance,
                false => (get(&self.went_on, made) + 0.5) / (reached + 1.0),
            };
        }
        chance
    }

    /// How long a request waits with its first call or a further one; now so long.
    fn wait(&self, made: usize, now_ms: f32) -> f32 {
        let at = usize::from(made > 0);
        (get(&self.waits, at) + now_ms) / (get(&self.waited, at) + 1.0)
    }

    /// A request has made so many in all.
    fn learn(&mut self, made: usize) {
        for at in 0..=made {
            add(&mut self.reached, at.min(COUNTED - 1), 1.0);
            if at < made {
                add(&mut self.went_on, at.min(COUNTED - 1), 1.0);
            }
        }
        if get(&self.reached, 0) > 400.0 {
            self.reached = self.reached.map(|value| 0.5 * value);
            self.went_on = self.went_on.map(|value| 0.5 * value);
            self.waits = self.waits.map(|value| 0.5 * value);
            self.waited = self.waited.map(|value| 0.5 * value);
        }
    }
}

#[derive(Clone, Debug, Default)]
struct Route {
    /// Requests that were alone from beginning to end.
    requests: f32,
    /// Of late, the longest of them, in milliseconds.
    longest: f32,
    /// Until then one that was broken off when nothing was known may make any calls.
    unknown_until_us: u64,
    pairs: Vec<Pair>,
}

impl Route {
    fn pair(&self, kind: Name) -> Option<&Pair> {
        self.pairs.iter().find(|pair| pair.kind == kind)
    }

    fn pair_mut(&mut self, kind: Name) -> Option<&mut Pair> {
        let at = match self.pairs.iter().position(|pair| pair.kind == kind) {
            Some(at) => at,
            None => {
                if self.pairs.len() >= PAIRS {
                    // The one that is made most rarely.
                    let rate = |pair: &Pair| get(&pair.went_on, 0);
                    let pairs = self.pairs.iter().enumerate();
                    let rarest = pairs.min_by(|(_, a), (_, b)| rate(a).total_cmp(&rate(b)));
                    let rarest = rarest.map(|(at, _)| at)?;
                    self.pairs.swap_remove(rarest);
                }
                self.pairs.push(Pair::new(kind, self.requests));
                self.pairs.len() - 1
            }
        };
        self.pairs.get_mut(at)
    }
}

/// A call that has not returned, and whether it is taken for one of the request.
#[derive(Clone, Copy, Debug)]
struct Out {
    call: u64,
    kind: Name,
    own: bool,
}

/// The only request in flight.
#[derive(Clone, Debug)]
struct Solo {
    number: u64,
    route: Name,
    began_us: u64,
    /// Others were in flight at the same time, or may have made calls.
    mixed: bool,
    /// The last event of its own; the same, with the kind of call, and the last one before
    /// of another kind. 0 is its beginning.
    last_us: u64,
    heard: [(Name, u64); 2],
    /// Calls of its own, and those that have not returned.
    made: u8,
    out: Vec<Out>,
    /// The kind of the last one that has, of whomever, and when.
    returned: (Name, u64),
    /// By kind: calls, and when the last one came.
    kinds: Vec<(Name, u8, u64)>,
}

impl Solo {
    fn made(&self, kind: Name) -> (usize, u64) {
        let found = self.kinds.iter().find(|(known, _, _)| *known == kind);
        found.map_or((0, self.began_us), |(_, made, last_us)| {
            (usize::from(*made), *last_us)
        })
    }

    /// Its first cell. `but`: calls of this kind do not count.
    fn cells(&self, but: Option<Name>) -> usize {
        let counts = |kind: Name| but != Some(kind);
        let waits = self.out.iter().any(|out| out.own && counts(out.kind));
        let of_kind = but.map_or(0, |kind| self.made(kind).0);
        let made = usize::from(self.made).saturating_sub(of_kind);
        let state = match self.mixed {
            true => 0,
            false => 1 + 2 * made.min(2) + usize::from(waits),
        };
        1 + BUCKETS * state
    }

    /// Something has happened to it: a call of this kind has begun, or returned.
    fn hears(&mut self, kind: Name, now_us: u64) {
        let [(last, _), _] = self.heard;
        if last != kind {
            self.heard[1] = self.heard[0];
        }
        self.heard[0] = (kind, now_us);
        self.last_us = now_us;
    }

    /// When something last happened to it, but for calls of this kind.
    fn heard_but(&self, kind: Name) -> u64 {
        let [(last, last_us), (_, before_us)] = self.heard;
        if last == kind { before_us } else { last_us }
    }
}

/// A request that was broken off: the application may go on making calls for it.
#[derive(Clone, Debug)]
struct Stray {
    route: Name,
    until_us: u64,
    /// Calls that it had made, by kind.
    made: Vec<(Name, u8, u64)>,
}

/// What is known of a call, if requests make calls of its kind.
#[derive(Clone, Copy, Debug, Default)]
struct Judged {
    /// The probability that it is of the background.
    doubt: f32,
    /// Little is known so far.
    young: bool,
    /// Each request of the route makes just one such call.
    always: bool,
    /// See [`Kind::odd`].
    odd: [f32; 2],
}

/// What has been learned, and what is known of the request that is alone.
#[derive(Debug)]
pub(super) struct Alone {
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
}

const NAMES: usize = Name::MAX as usize + 1;

impl Default for Alone {
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
        }
    }
}

fn get(values: &[f32], at: usize) -> f32 {
    values.get(at).copied().unwrap_or(0.0)
}

fn add(values: &mut [f32], at: usize, value: f32) {
    if let Some(sum) = values.get_mut(at) {
        *sum += value;
    }
}

fn of(list: &[(u8, f32)], at: usize) -> f32 {
    let found = list.iter().find(|(known, _)| usize::from(*known) == at);
    found.map_or(0.0, |(_, count)| *count)
}

/// With a share of the neighbours', which are the next earlier and later times but for the
/// first and the last.
fn around(list: &[(u8, f32)], at: usize) -> f32 {
    0.5 * of(list, at) + 0.25 * (of(list, at.wrapping_sub(1)) + of(list, at + 1))
}

fn count(list: &mut Vec<(u8, f32)>, at: usize) {
    match list.iter_mut().find(|(known, _)| usize::from(*known) == at) {
        Some((_, count)) => *count += 1.0,
        None => list.push((at as u8, 1.0)),
    }
}

/// The buckets from one time to another, with the milliseconds in each.
fn spans(from_us: u64, to_us: u64) -> impl Iterator<Item = (usize, f32)> {
    let (first, last) = (bucket(from_us), bucket(to_us));
    (first..=last).map(move |at| {
        let begin = if at == first {
            ms(from_us)
        } else {
            begin_ms(at)
        };
        let end = if at == last {
            ms(to_us)
        } else {
            begin_ms(at + 1)
        };
        (at, (end - begin).max(0.0))
    })
}

impl Alone {
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

    /// A request begins.
    pub(super) fn begin(&mut self) {
        self.begun = self.begun.wrapping_add(1);
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

    /// A request has ended: to be told before [`Alone::in_flight`].
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

    fn stray(&mut self, route: Name, began_us: u64, solo: Option<Solo>) {
        let now_us = self.now_us;
        let lasted = now_us.saturating_sub(began_us);
        let Some(known) = self.routes.get_mut(usize::from(route)) else {
            return;
        };
        let longest = (1000.0 * known.longest) as u64;
        let mut us = (longest + longest / 2).saturating_sub(lasted);
        us = us.max(longest / 2) + STRAY_US.0;
        if known.requests < KNOWN {
            us = us.max(2 * lasted);
            if known.unknown_until_us == 0 {
                let until_us = us.max(STRAY_US.1).min(STRAY_US.2);
                known.unknown_until_us = now_us.saturating_add(until_us);
            }
        }
        let us = us.min(STRAY_US.2);
        let until_us = known.unknown_until_us;
        if self.strays.len() >= STRAYS {
            self.strays.remove(0);
        }
        self.strays.push(Stray {
            route,
            until_us: now_us.saturating_add(us).max(until_us),
            made: solo
                .filter(|solo| !solo.mixed)
                .map_or(Vec::new(), |solo| solo.kinds),
        });
    }

    /// A request that was broken off may still make calls of this kind.
    fn is_astray(&self, kind: Name) -> bool {
        self.strays.iter().any(|stray| {
            let Some(route) = self.routes.get(usize::from(stray.route)) else {
                return true;
            };
            if self.now_us < route.unknown_until_us {
                return true;
            }
            let made = stray.made.iter().find(|(known, _, _)| *known == kind);
            let made = made.map_or(0, |(_, made, _)| usize::from(*made));
            let pair = route.pair(kind);
            pair.is_some_and(|pair| pair.one_more(made) > UNLIKELY)
        })
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
        } = self.doubt(&solo, kind, lift);
        // And none came in this cell before, this time, although that was as likely.
        let here = heard_us.saturating_sub((1000.0 * begin_ms(bucket(heard_us))) as u64);
        let rate = self.known(kind).map_or(0.0, |kind| kind.calls) / (get(&self.sums, 0) + 1.0);
        let silence = (-(lift - 1.0).max(0.0) * rate * ms(here.min(since_us))).exp();
        let weight = (lift * silence / regular).clamp(*WEIGHS.start(), *WEIGHS.end());
        let odds = weight * self.odds(kind);
        let late = self
            .known(kind)
            .is_some_and(|kind| kind.late_rate(now_us) > 0.0);
        let mut unexpected = late && !young && odd[0] > 0.0 && doubt > DOUBT_ODD;
        // What a request has made is not known that was not alone all the time.
        let calls = self.known(kind).map_or(0.0, |kind| kind.background);
        unexpected |= solo.mixed && calls > MIXED;
        let sure = match known || unexpected {
            true => None,
            false => self.decide(kind, coarse, odds, doubt, always),
        };
        let likely = known || (odds >= REFUTED && doubt <= 0.5);
        // Learn.
        if !known && !young && doubt > 0.05 {
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

    fn known_mut(&mut self, kind: Name) -> Option<&mut Kind> {
        self.kinds.get_mut(usize::from(kind))?.as_deref_mut()
    }

    fn known(&self, kind: Name) -> Option<&Kind> {
        self.kinds.get(usize::from(kind))?.as_deref()
    }

    fn odds(&self, kind: Name) -> f32 {
        self.known(kind).map_or(1.0, |kind| kind.odds)
    }

    /// A call of this kind has come. Returns how much likelier a clock of its own makes
    /// it now than at another time, and the time since the last one.
    fn meet(&mut self, kind: Name, coarse: Name) -> (f32, u64) {
        let siblings = self.known(coarse).filter(|coarse| coarse.calls >= 8.0);
        let odds = siblings.map_or(1.0, |coarse| coarse.odds.clamp(1.2 * REFUTED, 20.0));
        let (now_us, begun) = (self.now_us, self.begun);
        let mut found = (1.0, 0);
        for name in [coarse, kind] {
            if let Some(place) = self.kinds.get_mut(usize::from(name)) {
                let kind = place.get_or_insert_with(|| Box::new(Kind::new(odds)));
                let since_us = now_us.saturating_sub(kind.last_us);
                found = (kind.came(now_us, begun), since_us);
            }
        }
        found
    }

    fn called_by_nobody(&mut self, kind: Name, weight: f32) {
        let (now_us, ended_us) = (self.now_us, self.ended_us);
        if let Some(kind) = self.known_mut(kind) {
            kind.learn_background(now_us, 1.0);
            count(&mut kind.after, bucket(now_us.saturating_sub(ended_us)));
        }
        self.weigh(kind, 0, [IDLE; 2], weight);
    }

    /// How much likelier a call of a request is in a cell than it would be if it came at
    /// any time.
    fn lift(&self, kind: Name, cell: usize, apart: usize) -> f32 {
        let kind = self.known(kind);
        let calls = kind.map_or(0.0, |kind| kind.calls);
        let here = kind.map_or(0.0, |kind| around(&kind.cells, cell));
        let lift = self.lift_of(here, calls, cell);
        if apart == cell {
            return lift;
        }
        let here = kind.map_or(0.0, |kind| around(&kind.apart, apart));
        lift.min(self.lift_of(here, calls, apart))
    }

    /// The same, of so many calls of all of a kind.
    fn lift_of(&self, here: f32, all: f32, cell: usize) -> f32 {
        let [time, calls] = self.sums;
        let part = (get(&self.time, cell).max(0.05) / time.max(0.05)).clamp(1e-4, 1.0);
        // While nothing is in flight requests make none.
        let busy = 1.0 - get(&self.time, IDLE) / time.max(0.05);
        let before = part / busy.max(part);
        let any = (get(&self.calls, cell) + ANY * before) / (calls + ANY);
        let own = (here + OWN * any) / (all + OWN);
        ANYWHERE * (1.0 + any / part) + (1.0 - 2.0 * ANYWHERE) * own / part
    }

    /// Learns that a call came in this cell. Nothing if it is of the kind `but`.
    fn weigh(&mut self, kind: Name, but: Name, [cell, apart]: [usize; 2], weight: f32) {
        if kind == but {
            return;
        }
        if let Some(kind) = self.known_mut(kind) {
            let odds = kind.odds * weight.clamp(*WEIGHS.start(), *WEIGHS.end());
            kind.odds = odds.clamp(*ODDS.start(), *ODDS.end());
            kind.calls += 1.0;
            count(&mut kind.cells, cell);
            count(&mut kind.apart, apart);
        }
    }

    /// Calls of the background of this kind, per millisecond: no fewer are to be expected.
    fn background(&self, kind: &Kind) -> f32 {
        let now_us = self.now_us;
        let upper = |calls: f32| calls + calls.sqrt() + BEFORE.0;
        let mut most = upper(kind.background) / (get(&self.sums, 0) + BEFORE.1);
        let (calls, time) = self.quiet(kind);
        most = most.max(upper(calls) / (time + BEFORE.1));
        most = most.max(kind.late_rate(now_us));
        let after = bucket(now_us.saturating_sub(self.ended_us));
        // Calls that were seen so soon after an answer may come a little later, too.
        for at in after.saturating_sub(LATER)..=after {
            most = most.max(of(&kind.after, at) / (get(&self.after, at) + 1.0));
        }
        most
    }

    /// Calls of this kind, and milliseconds, in the half of the time in which there were the
    /// fewest of them. The background takes no notice of where requests are.
    fn quiet(&self, kind: &Kind) -> (f32, f32) {
        let half = 0.5 * get(&self.sums, 0);
        let cells = kind.cells.iter().map(|(cell, calls)| {
            let time = get(&self.time, usize::from(*cell)).max(0.05);
            (*calls, time)
        });
        let mut cells: Vec<(f32, f32)> = cells.collect();
        let known: f32 = cells.iter().map(|(_, time)| time).sum();
        let mut quiet = (0.0, (get(&self.sums, 0) - known).max(0.0));
        cells.sort_by_cached_key(|(calls, time)| sort_key(f64::from(calls / time)));
        for (calls, time) in cells {
            if quiet.1 >= half {
                break;
            }
            quiet = (quiet.0 + calls, quiet.1 + time);
        }
        quiet
    }

    /// What speaks for it that a call is of the background, if requests make calls of its
    /// kind.
    fn doubt(&self, solo: &Solo, kind: Name, lift: f32) -> Judged {
        let Some(known) = self.known(kind) else {
            return Judged::default();
        };
        let own = self.routes.get(usize::from(solo.route));
        let route = own.filter(|route| route.requests >= KNOWN);
        let route = route.or(self.routes.first());
        let none = Pair::new(kind, route.map_or(0.0, |route| route.requests));
        let pair = route.and_then(|route| route.pair(kind)).unwrap_or(&none);
        let (made, before_us) = match solo.mixed {
            true => (0, solo.last_us),
            false => solo.made(kind),
        };
        let more = pair.one_more(made);
        let waited = ms(self.now_us.saturating_sub(before_us));
        let mean = more / pair.wait(made, waited).max(0.05);
        let rate = lift * (known.calls + 2.0 * BEFORE.0) / (get(&self.sums, 0) + 1.0);
        let rate = if made == 0 { rate } else { rate * more };
        // One that is due may be late.
        let late = more >= 0.5 && waited >= 0.8 * pair.wait(made, waited);
        let rate = rate.max(if late { mean } else { mean * lift.min(1.0) });
        let background = self.background(known);
        let doubt = background / (background + rate);
        let young = known.calls < FEW || get(&pair.reached, made.min(1)) < FEW - 1.0;
        let always = get(&pair.reached, 0) >= 30.0
            && get(&pair.went_on, 0) > 0.98 * get(&pair.reached, 0)
            && get(&pair.went_on, 1) < 0.02 * get(&pair.reached, 0);
        // One more than to be expected, or out of time; and how many such there are to be.
        let again = made > 0 && more < 0.5;
        let off = !late && lift < 0.5;
        let next = pair.one_more(made + 1);
        let next = if next < 0.5 { next } else { 0.0 };
        let usual = 0.2 * ANYWHERE;
        let odd = [f32::from(u8::from(again || off)), next + usual];
        let doubt = if young { doubt.min(0.02) } else { doubt };
        Judged {
            doubt,
            young,
            always,
            odd,
        }
    }

    /// Whether to believe it, and with how much doubt.
    fn decide(
        &mut self,
        kind: Name,
        coarse: Name,
        odds: f32,
        doubt: f32,
        always: bool,
    ) -> Option<f32> {
        let unknown = self
            .known(coarse)
            .is_none_or(|coarse| coarse.calls < 1.0 || coarse.odds < REFUTED);
        let budget = self.budget;
        let room = budget / BUDGET;
        let known = self.known_mut(kind)?;
        if odds < REFUTED || doubt > DOUBT {
            return None;
        }
        if odds >= PROVEN || always {
            // It was right.
            let back = std::mem::take(&mut known.charged);
            let doubt = doubt + if always { 0.0 } else { 1.0 / odds };
            let sure = doubt <= DOUBT * room * room;
            let spent = if sure { SAFE * doubt } else { 0.0 };
            self.budget = (budget + back - spent).min(BUDGET);
            return sure.then_some(doubt);
        }
        let first = known.calls < 1.0 && unknown;
        let costs = if first { FIRST } else { EARLY };
        if known.given >= UNPROVEN || costs > budget {
            return None;
        }
        known.given += 1;
        known.charged += costs;
        self.budget -= costs;
        Some(costs.min(doubt + 1.0 / (1.0 + odds)))
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
