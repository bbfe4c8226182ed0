//! Whose call is it? A belief about every request in flight, from what a sidecar
//! sees: requests that begin and end, and calls that begin and end.
//!
//! A request is a walk through the nodes of the [`Model`]; each call is a step of
//! one of them, or of none (the background). The belief is a set of
//! hypotheses, each of which says for every call so far whose it was, with its
//! probability by Bayes' rule: a hypothesis gains when what happens next was likely
//! under it, and loses while what it expects does not happen. That a thread which
//! waits for its call makes no other one, or that a request which has been
//! answered waits for nothing, is not a rule here: it is learned.
//!
//! Requests of which every hypothesis says the same are kept apart from the others,
//! so that the work grows with the doubt and not with the load: a `Cluster` is a
//! set of requests that doubts have entangled.
//!
//! What the belief is worth is watched too. A request that ends where requests of
//! its route do not end was misjudged; where that happens often, as in a pod
//! without CPU time to spare, nothing is believed any more (`MISLED`).

use super::belief::{Cluster, Owner, sort_key};
use super::exclusive::Exclusive;
use super::model::{Model, Name, Place};
use super::text::Token;
use std::collections::BTreeSet;

/// Requests in flight that are tracked at most.
pub const TRACKED: usize = 128;
/// Others of which it is known that they are in flight.
const UNTRACKED: usize = 16_384;
/// Candidates of one call at most.
const CANDIDATES: usize = 12;
/// A route of which so many requests were certain, in every step, is known.
const KNOWN: f32 = 20.0;
/// A kind of which so many calls were seen is known.
const KNOWN_CALLS: f32 = 3.0;
/// An end that is less likely than this is a surprise.
const SURPRISE: f64 = 0.05;
/// Surprises beyond this part of all ends: the belief is wrong too often.
const MISLED: f64 = 0.06;
/// Of the wrong calls that are allowed, as many are planned for: what is planned
/// with is an estimate.
const BUDGET: f64 = 0.6;
/// The part of the belief about a request that is taken for wrong at any time,
/// and how much more for each surprise.
const DOUBT: (f64, f64) = (0.02, 3.0);
/// Requests that are not where they are believed to be, for each surprise: of two
/// that were taken for each other, the one that ends last surprises nobody, often.
const ASTRAY: f64 = 1.5;
/// A request of which nothing was heard for so long does not count where others
/// are said to be alone: a stream that stays open, say.
const DORMANT_US: u64 = 10_000_000;
/// A request that is alone is believed to make its calls if no more than this part of
/// them, by the plainest of estimates, is of the background.
const ALONE: f32 = 0.05;
/// What a token must make its request likelier by, to decide alone.
const TOKEN: f64 = 50.0;

/// What the tracker says of a call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Verdict {
    /// The likeliest request.
    pub request: u64,
    /// Its probability, from 0 to 1.
    pub share: f32,
    /// What that rests on.
    pub basis: Basis,
}

/// What a verdict rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Basis {
    /// It is the only request in flight, and there are no calls of this kind in
    /// the background.
    Exclusive,
    /// An identifier of it is in the call.
    Token,
    /// What requests of its route do, and when.
    Evidence,
}

#[derive(Clone, Debug)]
struct Request {
    number: u64,
    /// Where the store has it.
    bucket: u16,
    route: Name,
    began_us: u64,
    /// The last time that it had to do with anything.
    heard_us: u64,
    /// Every call so far was certainly its own, or certainly not.
    certain: bool,
    /// No other request was in flight at the same time.
    alone: bool,
    /// A call came that it may have made, and nothing was made of it.
    unwatched: bool,
    tokens: Vec<Token>,
}

/// A candidate for a call.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    request: u64,
    /// Index of its cluster.
    cluster: usize,
    /// Calls per millisecond.
    rate: f64,
    /// The rate is not that of the belief, but at least to be expected.
    least: bool,
    /// The least that the rate may be taken for, since the belief may be wrong.
    habit: f64,
    /// How much likelier tokens make it.
    tokens: f64,
}

impl Candidate {
    fn weight(&self) -> f64 {
        self.rate * self.tokens
    }
}

/// The belief about everything in flight.
#[derive(Debug, Default)]
pub struct Tracker {
    model: Model,
    exclusive: Exclusive,
    /// Nobody asks but for the only request in flight: of calls that several may have
    /// made nothing is believed.
    pub plain: bool,
    /// Each request is a member of one.
    clusters: Vec<Cluster>,
    requests: Vec<Request>,
    /// Requests in flight that are not tracked.
    untracked: BTreeSet<u64>,
    now_us: u64,
    surprises: Surprises,
    judged: Judged,
}

/// How often the belief turned out to be wrong, of late: as moving averages.
#[derive(Clone, Copy, Debug, Default)]
struct Surprises {
    all: f64,
    /// Of requests that were alone, where there is nothing to be wrong about but
    /// what the route does.
    alone: f64,
    /// Of the last few.
    late: f64,
}

impl Surprises {
    fn add(&mut self, surprise: bool, alone: bool) {
        let surprise = f64::from(u8::from(surprise));
        self.all += (surprise - self.all) / 128.0;
        self.late += (surprise - self.late) / 32.0;
        if alone {
            self.alone += (surprise - self.alone) / 128.0;
        }
    }

    fn excess(self) -> f64 {
        (self.all - 2.0 * self.alone).max(0.0)
    }

    /// The probability that a request is not where it is believed to be, although
    /// nothing speaks against it: two that have been taken for each other go on
    /// doing what is expected, until they end.
    fn astray(self) -> f64 {
        (ASTRAY * (self.late - 2.0 * self.alone)).clamp(0.0, 1.0)
    }
}

/// Lower bounds of classes of probability.
const CLASSES: [f32; 12] = [
    0.0, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995,
];

/// How sure of late how many calls were that were judged by evidence.
#[derive(Clone, Copy, Debug, Default)]
struct Judged {
    /// By class: calls, and the sum of what was missing to certainty.
    classes: [(f64, f64); CLASSES.len()],
    /// Calls, but for those that were the background's.
    calls: f64,
    /// The sum of what was missing to certainty of those that were believed.
    spent: f64,
}

impl Judged {
    /// Calls after which half is forgotten.
    const HALVED_AT: f64 = 2000.0;

    fn add(&mut self, share: f32, background: f64) {
        let class = CLASSES.iter().rposition(|least| share >= *least);
        if let Some((calls, doubt)) = class.and_then(|class| self.classes.get_mut(class)) {
            *calls += 1.0;
            *doubt += f64::from(1.0 - share);
        }
        self.calls += 1.0 - background;
        if self.calls > Self::HALVED_AT {
            self.calls *= 0.5;
            self.spent *= 0.5;
            for (calls, doubt) in &mut self.classes {
                *calls *= 0.5;
                *doubt *= 0.5;
            }
        }
    }

    /// Whether to believe in a call of this probability, so that no more than this
    /// part of all calls is wrong, and not many of those believed.
    fn believe(&mut self, share: f32, wrong: f64) -> bool {
        // As if there had been a few calls already, all of them right.
        let all = 50.0 + self.calls;
        let (mut believed, mut doubts) = (0.0, 0.0);
        let classes = self.classes.iter().zip(CLASSES).skip(1).rev();
        let mut sure = false;
        for ((calls, doubt), bound) in classes {
            believed += calls;
            doubts += doubt;
            let room = doubts <= wrong * all;
            if doubts > 3.0 * wrong * believed + 0.01 {
                break;
            }
            if share >= bound {
                // Of the last class as many as there is room for.
                sure = room || self.spent + f64::from(1.0 - share) <= wrong * all;
                break;
            }
            if !room {
                break;
            }
        }
        if sure {
            self.spent += f64::from(1.0 - share);
        }
        sure
    }
}

impl Tracker {
    fn pass(&mut self, now_us: u64) {
        let passed = match self.now_us {
            0 => 0,
            before => now_us.saturating_sub(before),
        };
        let active = self.active(now_us);
        self.model.watch(passed, active);
        self.exclusive.pass(now_us);
        self.now_us = self.now_us.max(now_us);
    }

    /// Requests in flight, without those of which nothing was heard for long.
    fn active(&self, now_us: u64) -> usize {
        let requests = self.requests.iter();
        let heard = requests.filter(|request| now_us.saturating_sub(request.heard_us) < DORMANT_US);
        heard.count() + self.untracked.len()
    }

    fn request(&self, number: u64) -> Option<&Request> {
        self.requests.iter().find(|known| known.number == number)
    }

    fn request_mut(&mut self, number: u64) -> Option<&mut Request> {
        self.requests
            .iter_mut()
            .find(|known| known.number == number)
    }

    fn take_request(&mut self, number: u64) -> Option<Request> {
        let at = self
            .requests
            .iter()
            .position(|known| known.number == number)?;
        Some(self.requests.swap_remove(at))
    }

    /// Takes the cluster of a request out; also returns which of its members that is.
    fn take_cluster(&mut self, request: u64) -> Option<(Cluster, usize)> {
        let member = |cluster: &Cluster| cluster.members.iter().position(|m| *m == request);
        let mut clusters = self.clusters.iter().enumerate();
        let (at, member) = clusters.find_map(|(at, cluster)| Some((at, member(cluster)?)))?;
        Some((self.clusters.swap_remove(at), member))
    }

    /// Where the store has a request in flight.
    pub fn bucket(&self, request: u64) -> Option<u16> {
        Some(self.request(request)?.bucket)
    }

    /// A request has begun. `bucket`: where the store has it.
    pub fn begin(
        &mut self,
        now_us: u64,
        request: u64,
        bucket: u16,
        route: u32,
        tokens: Vec<Token>,
    ) {
        self.pass(now_us);
        self.model.learn_tokens(&tokens);
        let alone = self.active(now_us) == 0;
        if !alone || !self.requests.is_empty() {
            for other in &mut self.requests {
                other.alone = false;
            }
        }
        if self.request(request).is_some() {
            return;
        }
        if self.requests.len() >= TRACKED {
            self.exclusive.begin(None);
            self.untracked.insert(request);
            if self.untracked.len() > UNTRACKED {
                self.untracked.pop_first();
            }
            self.exclusive.in_flight(self.in_flight(), None);
            return;
        }
        let (route, again) = self.model.route(route);
        if again {
            self.exclusive.forget_route(route);
        }
        self.exclusive.begin(Some(route));
        let place = Place::start(route);
        let node = self.model.node(place);
        self.clusters
            .push(Cluster::of(request, place, node, now_us));
        self.requests.push(Request {
            number: request,
            bucket,
            route: place.route,
            began_us: now_us,
            heard_us: now_us,
            certain: true,
            alone,
            unwatched: false,
            tokens,
        });
        self.count();
    }

    /// The number of requests in flight has changed.
    fn count(&mut self) {
        let only = match self.requests.as_slice() {
            [only] if self.untracked.is_empty() => Some((only.number, only.route)),
            _ => None,
        };
        self.exclusive.in_flight(self.in_flight(), only);
    }

    /// A call has begun: whose is it? `kind`: the name to go by, and a coarser one
    /// for when there are too many. `owner`: the request that it is known to be of,
    /// by other means. `wrong`: the part of all calls that may be given to a wrong
    /// request.
    ///
    /// `None` if the tracker is not sure.
    pub fn call(
        &mut self,
        now_us: u64,
        call: u64,
        kind: [u32; 2],
        tokens: &[Token],
        owner: Option<u64>,
        wrong: f64,
    ) -> Option<Verdict> {
        self.pass(now_us);
        let [(kind, again), (coarse, coarse_again)] = self.model.kind(kind);
        for (name, again) in [(kind, again), (coarse, coarse_again)] {
            if again {
                self.exclusive.forget_kind(name);
            }
        }
        let is_owner = |request: &Request| owner.is_none_or(|owner| owner == request.number);
        let (sure, likely) = match self.requests.iter().all(is_owner) {
            true => self.exclusive.call(call, [kind, coarse], owner.is_some()),
            false => (None, true),
        };
        if likely {
            if let [only] = self.requests.as_mut_slice() {
                only.heard_us = only.heard_us.max(now_us);
            }
        }
        if self.plain {
            for request in &mut self.requests {
                request.unwatched = true;
            }
            if let [_, _, ..] = self.requests.as_slice() {
                for request in &mut self.requests {
                    request.heard_us = now_us;
                }
            }
            return self.sure(sure);
        }
        if let Some(owner) = owner {
            let holds = |cluster: &Cluster| cluster.members.contains(&owner);
            if let Some(cluster) = self.clusters.iter().position(holds) {
                let owner = Candidate {
                    request: owner,
                    cluster,
                    rate: 1.0,
                    least: true,
                    habit: 1.0,
                    tokens: 1.0,
                };
                self.branch(now_us, (call, kind), &[owner], 0.0);
            }
            return None;
        }
        let active = self.active(now_us);
        let mut candidates = self.candidates(now_us, kind, tokens);
        let mut background = f64::from(self.model.background_rate(kind));
        if active == 1 && self.untracked.is_empty() {
            let heard = |c: &&mut Candidate| {
                let request = self.request(c.request);
                request.is_some_and(|r| now_us.saturating_sub(r.heard_us) < DORMANT_US)
            };
            let (own, of_nobody) = self.model.alone_rates(kind);
            if of_nobody <= ALONE * own {
                if let Some(only) = candidates.iter_mut().find(heard) {
                    only.least |= only.rate < f64::from(own);
                    only.rate = only.rate.max(f64::from(own));
                    background = background.min(f64::from(of_nobody));
                }
            }
        }
        candidates.sort_by_cached_key(|candidate| !sort_key(candidate.weight()));
        let total: f64 = candidates.iter().map(Candidate::weight).sum::<f64>() + background;
        // What the belief may be wrong about.
        let others = candidates.iter().skip(1);
        let doubt: f64 = others.map(|c| (c.habit - c.rate).max(0.0)).sum();
        // It is another one's that is astray, as likely as others make such calls.
        let habit = |c: &Candidate| c.habit * c.tokens;
        let habits: f64 = candidates.iter().map(habit).sum();
        let best = candidates.first().map_or(0.0, habit);
        let astray = self.surprises.astray() * (1.0 - best / habits);
        let carried = |token: &Token| self.requests.iter().any(|r| r.tokens.contains(token));
        let foreign: Vec<Token> = tokens.iter().copied().filter(|t| !carried(t)).collect();
        candidates.retain(|candidate| candidate.weight() / total > 1e-3);
        candidates.truncate(CANDIDATES);
        if candidates.is_empty() {
            self.model.learn_call(kind, &foreign, 1.0, active);
            return self.sure(sure);
        }
        let of_nobody = if background / total > 1e-3 {
            background
        } else {
            0.0
        };
        let shares = self.branch(now_us, (call, kind), &candidates, of_nobody);
        let nobody = shares.last().copied().unwrap_or(1.0);
        let mut judged: Vec<(Candidate, f64)> = candidates.into_iter().zip(shares).collect();
        let found = total / (total + doubt) * (1.0 - astray);
        for (_, share) in &mut judged {
            *share *= found;
        }
        judged.sort_by_cached_key(|(_, share)| !sort_key(*share));
        for (candidate, share) in &judged {
            if let Some(request) = self.request_mut(candidate.request) {
                // Where there is nobody else but the background, less will do.
                let doubtful = if request.alone { 0.2..0.8 } else { 0.01..0.99 };
                request.certain &= !doubtful.contains(share);
                if *share > 0.1 {
                    request.heard_us = request.heard_us.max(now_us);
                }
            }
        }
        self.model.learn_call(kind, &foreign, nobody as f32, active);
        let (best, share) = *judged.first()?;
        if share > 0.9 {
            self.model.learn_match(kind, best.tokens > TOKEN);
        }
        self.judge(&best, share as f32, nobody, kind, sure, wrong)
    }

    /// It is of the only request in flight, but for this doubt.
    fn sure(&self, doubt: Option<f32>) -> Option<Verdict> {
        let [only] = self.requests.as_slice() else {
            return None;
        };
        doubt.map(|doubt| Verdict {
            request: only.number,
            share: 1.0 - doubt,
            basis: Basis::Exclusive,
        })
    }

    /// Every request in flight, as a candidate for a call.
    fn candidates(&mut self, now_us: u64, kind: Name, tokens: &[Token]) -> Vec<Candidate> {
        let mistaken = (DOUBT.0 + DOUBT.1 * self.surprises.excess()).min(1.0);
        let mut candidates = Vec::with_capacity(self.requests.len());
        for (at, cluster) in self.clusters.iter_mut().enumerate() {
            cluster.advance(&self.model, now_us);
            for (member, request) in cluster.members.iter().enumerate() {
                let known = self.requests.iter().find(|known| known.number == *request);
                let Some(known) = known else {
                    continue;
                };
                let habit = f64::from(self.model.habit_rate(known.route, kind));
                let rate = cluster.rate(&self.model, member, now_us, kind);
                let shared = tokens.iter().filter(|token| known.tokens.contains(token));
                let likelier = shared.map(|token| f64::from(self.model.token_ratio(*token)));
                // One that is in several parts of a request is no more than one.
                let tokens = likelier.fold(None, |best: Option<f64>, one| {
                    Some(best.map_or(one, |best| best.max(one)))
                });
                let tokens = tokens.unwrap_or_else(|| f64::from(self.model.no_match(kind)));
                // A token of its own makes up for a belief that is wrong.
                let least = tokens > 1.0 && rate < mistaken * habit;
                candidates.push(Candidate {
                    request: *request,
                    cluster: at,
                    rate: if least { mistaken * habit } else { rate },
                    least,
                    habit: mistaken * habit,
                    tokens,
                });
            }
        }
        candidates
    }

    /// Whether to believe it.
    fn judge(
        &mut self,
        best: &Candidate,
        share: f32,
        background: f64,
        kind: Name,
        sure: Option<f32>,
        wrong: f64,
    ) -> Option<Verdict> {
        let verdict = |basis| Verdict {
            request: best.request,
            share,
            basis,
        };
        if best.tokens > TOKEN && f64::from(share) > 1.0 - 0.25 * wrong {
            return Some(verdict(Basis::Token));
        }
        let route = self.request(best.request)?.route;
        let start = self.model.node(Place::start(route));
        let known = self.model.sure(start) >= KNOWN && self.model.seen(kind) >= KNOWN_CALLS;
        if sure.is_some() && (share > 0.9 || !known) {
            return self.sure(sure);
        }
        if !known || self.surprises.excess() > MISLED {
            return None;
        }
        self.judged.add(share, background);
        // The more often the belief is wrong, the less its own estimates are worth.
        let trust = 1.0 - self.surprises.excess() / MISLED;
        let sure = self.judged.believe(share, BUDGET * trust * wrong);
        sure.then(|| verdict(Basis::Evidence))
    }

    fn branch(
        &mut self,
        now_us: u64,
        call: (u64, Name),
        owners: &[Candidate],
        nobody: f64,
    ) -> Vec<f64> {
        let mut merged: Option<Cluster> = None;
        let mut others = Vec::with_capacity(self.clusters.len());
        for (at, cluster) in std::mem::take(&mut self.clusters).into_iter().enumerate() {
            if !owners.iter().any(|owner| owner.cluster == at) {
                others.push(cluster);
                continue;
            }
            merged = Some(match merged {
                Some(merged) => merged.merge(cluster),
                None => cluster,
            });
        }
        self.clusters = others;
        let Some(mut cluster) = merged else {
            return Vec::new();
        };
        let owner = |candidate: &Candidate| Owner {
            request: candidate.request,
            factor: candidate.tokens,
            least: if candidate.least { candidate.rate } else { 0.0 },
        };
        let owners: Vec<Owner> = owners.iter().map(owner).collect();
        let shares = cluster.branch(&mut self.model, now_us, call, &owners, nobody);
        self.put(cluster);
        shares
    }

    fn put(&mut self, cluster: Cluster) {
        self.clusters.extend(cluster.settle());
    }

    /// A call has returned, or was broken off.
    pub fn call_end(&mut self, now_us: u64, call: u64) {
        self.pass(now_us);
        self.exclusive.returned(call);
        let waits = |cluster: &Cluster| cluster.calls.contains(&call);
        let Some(at) = self.clusters.iter().position(waits) else {
            return;
        };
        let mut cluster = self.clusters.swap_remove(at);
        for request in &mut self.requests {
            if cluster.members.contains(&request.number) {
                request.heard_us = request.heard_us.max(now_us);
            }
        }
        cluster.returned(&mut self.model, now_us, call);
        self.put(cluster);
    }

    /// A request has been answered.
    pub fn end(&mut self, now_us: u64, request: u64) {
        self.ended(now_us, request, true);
    }

    /// A request was broken off before it was answered. The application need not have
    /// noticed, and may go on making calls for it.
    pub fn broken_off(&mut self, now_us: u64, request: u64) {
        self.ended(now_us, request, false);
    }

    fn ended(&mut self, now_us: u64, request: u64, answered: bool) {
        self.pass(now_us);
        let Some(known) = self.take_request(request) else {
            self.untracked.remove(&request);
            self.count();
            return;
        };
        self.exclusive
            .end(request, known.route, known.began_us, answered);
        self.count();
        let Some((mut cluster, member)) = self.take_cluster(request) else {
            return;
        };
        if answered && !known.unwatched {
            self.learn(now_us, &known, &mut cluster, member);
        }
        cluster.remove(member);
        self.put(cluster);
    }

    /// Learns from a request that has been answered.
    fn learn(&mut self, now_us: u64, known: &Request, cluster: &mut Cluster, member: usize) {
        let expected = cluster.ended(&self.model, now_us, member);
        let start = self.model.node(Place::start(known.route));
        if self.model.sure(start) >= KNOWN {
            self.surprises.add(expected < SURPRISE, known.alone);
        }
        let duration = now_us.saturating_sub(known.began_us);
        self.model.learn_duration(known.route, duration);
        let certain = match known.alone {
            true => 0.8,
            false if self.surprises.excess() < 0.02 => 0.99,
            false => f32::INFINITY,
        };
        let certain = if known.certain {
            certain
        } else {
            f32::INFINITY
        };
        cluster.learn(&mut self.model, now_us, member, certain);
    }

    /// These requests are gone, without an end that was seen.
    pub fn abandon(&mut self, gone: impl Fn(u64) -> bool) {
        while let Some(known) = self.requests.iter().find(|known| gone(known.number)) {
            let number = known.number;
            self.take_request(number);
            if let Some((mut cluster, member)) = self.take_cluster(number) {
                cluster.remove(member);
                self.put(cluster);
            }
        }
        self.untracked.retain(|number| !gone(*number));
        self.count();
    }

    /// Forgets what is in flight, and not what has been learned. What has happened since
    /// the last event is not known.
    pub fn forget(&mut self) {
        self.clusters.clear();
        self.requests.clear();
        self.untracked.clear();
        self.now_us = 0;
        self.exclusive.forget();
    }

    /// Until then there may be requests in flight that nothing is known of.
    pub fn blind(&mut self, until_us: u64) {
        self.exclusive.blind(until_us);
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> usize {
        self.requests.len() + self.untracked.len()
    }
}
