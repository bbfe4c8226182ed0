//! What happens to the requests in flight, and to which of them a call belongs.
//!
//! Requests and calls begin and end; each is reported once, in the order of time. For
//! each call `Exclusive` says whether it belongs to the only request in flight, and
//! `Inferred`, if it is wanted, to which of several.

use super::Call;
use super::exclusive::{Against, Exclusive};
use super::in_flight::{InFlight, Request};
use super::inferred::{Inferred, NewCall};
use super::look_back::{LeftAlone, Told};
use super::names::{Name, Names};
use super::pool::Pool;
use super::signature::Token;

/// To which request a call belongs.
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

/// What is known of the requests in flight, and of the application.
#[derive(Debug, Default)]
pub struct Tracker {
    now_us: u64,
    in_flight: InFlight,
    /// For `inferred`.
    pool: Pool,
    routes: Names,
    kinds: Names,
    exclusive: Exclusive,
    /// From when on it was wanted.
    inferred: Option<Inferred>,
    /// The part of all calls that may be given to a wrong request, from 0 to 1; 0 if it is not
    /// wanted now.
    wrong: f64,
}

impl Tracker {
    /// Calls are judged while several requests are in flight, too, so that no more than this
    /// part of all calls, from 0 to 1, is given to a wrong request. With 0, which is the
    /// default, such calls cost next to nothing.
    ///
    /// It is the same for the calls of all workers: what is known of the verdicts on all of
    /// them decides which are good enough.
    pub fn infer(&mut self, wrong: f64) {
        self.wrong = wrong;
        if wrong > 0.0 && self.inferred.is_none() {
            let mut inferred = Inferred::default();
            for request in self.in_flight.tracked() {
                inferred.begin(request.began_us, Some(request), false, Vec::new());
            }
            // What these have done so far is not known.
            inferred.miss_call();
            self.inferred = Some(inferred);
        }
    }

    /// Calls are judged while several requests are in flight, too.
    pub fn infers(&self) -> bool {
        self.wrong > 0.0
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// The bucket of the store that has a request in flight.
    pub fn bucket(&self, request: u64) -> Option<u16> {
        Some(self.in_flight.get(request)?.bucket)
    }

    /// A request has begun. `bucket`: of the store. `route`: the hash of the signature.
    pub fn begin(
        &mut self,
        now_us: u64,
        request: u64,
        bucket: u16,
        route: u32,
        tokens: Vec<Token>,
    ) {
        self.pass(now_us);
        let is_alone = self.in_flight.active(now_us) == 0;
        let is_new = self.in_flight.get(request).is_none();
        let is_tracked = is_new && !self.in_flight.is_full();
        if is_tracked {
            let route = self.route(route);
            self.exclusive.begin(Some(route));
            let connection = match self.inferred {
                Some(_) => self.pool.take(request),
                None => 0,
            };
            self.in_flight.add(Request {
                connection,
                number: request,
                bucket,
                route,
                began_us: now_us,
                heard_us: now_us,
            });
        } else if is_new {
            self.exclusive.begin(None);
            self.in_flight.add_untracked(request);
        }
        if let Some(inferred) = &mut self.inferred {
            let added = self.in_flight.tracked().last().filter(|_| is_tracked);
            inferred.begin(now_us, added, is_alone, tokens);
        }
        if is_new {
            self.count();
        }
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

    /// A call has begun, of this number and this signature. `owner`: the request that it is
    /// known to belong to, by other means.
    ///
    /// Returns the request that it belongs to; `None` if that is not sure, or was known.
    pub fn call(
        &mut self,
        now_us: u64,
        call: u64,
        what: &Call,
        owner: Option<u64>,
    ) -> Option<Verdict> {
        self.pass(now_us);
        let [kind, class] = self.kind(what.kind);
        let is_owner = |request: &Request| owner.is_none_or(|owner| owner == request.number);
        let (doubt, likely) = match self.in_flight.tracked().iter().all(is_owner) {
            true => self.exclusive.call(call, [kind, class], owner.is_some()),
            false => (None, true),
        };
        if likely && let [only] = self.in_flight.tracked_mut() {
            only.hear(now_us);
        }
        let exclusive = match (self.in_flight.tracked(), doubt) {
            ([only], Some(doubt)) => Some(Verdict {
                request: only.number,
                share: 1.0 - doubt,
                basis: Basis::Exclusive,
            }),
            _ => None,
        };
        match &mut self.inferred {
            Some(inferred) if self.wrong > 0.0 => {
                let call = NewCall {
                    number: call,
                    kind,
                    tokens: &what.tokens,
                    port: what.port,
                };
                let against = self.exclusive.against;
                match owner {
                    Some(owner) => {
                        inferred.called(now_us, call, owner);
                        None
                    }
                    None if against == Against::All && what.tokens.is_empty() => {
                        inferred.called_by_nobody(kind, self.in_flight.active(now_us));
                        None
                    }
                    None => {
                        let in_flight = &mut self.in_flight;
                        let verdict =
                            inferred.judge(now_us, call, in_flight, exclusive, self.wrong);
                        // An identifier, or that each request makes one, says more.
                        let is_guess = |verdict: &Verdict| verdict.basis == Basis::Evidence;
                        verdict.filter(|verdict| against == Against::Nothing || !is_guess(verdict))
                    }
                }
            }
            inferred => {
                if let Some(inferred) = inferred {
                    inferred.miss_call();
                }
                if let several @ [_, _, ..] = self.in_flight.tracked_mut() {
                    for request in several {
                        request.heard_us = now_us;
                    }
                }
                exclusive
            }
        }
    }

    /// A call that was judged was left alone: its request is to be told when it is known.
    pub fn leave_alone(&mut self, call: LeftAlone) {
        if let Some(inferred) = &mut self.inferred {
            inferred.leave_alone(call);
        }
    }

    /// Those whose request is known since the last time.
    pub fn take_told(&mut self) -> Vec<Told> {
        let inferred = self.inferred.as_mut();
        inferred.map(Inferred::take_told).unwrap_or_default()
    }

    /// A call has returned, or was broken off.
    pub fn call_end(&mut self, now_us: u64, call: u64) {
        self.pass(now_us);
        self.exclusive.returned(call);
        if let Some(inferred) = &mut self.inferred {
            inferred.returned(now_us, call, &mut self.in_flight);
        }
    }

    /// Learns from what has happened, for a few milliseconds at most. Returns how many times
    /// that is to be done in 100 ms; 0 if there is nothing to do.
    pub fn learn(&mut self) -> u64 {
        let now_us = self.now_us;
        let inferred = self.inferred.as_mut();
        inferred.map_or(0, |inferred| inferred.learn(now_us))
    }

    /// These requests are gone, without an end that was seen.
    pub fn abandon(&mut self, gone: impl Fn(u64) -> bool) {
        let numbers = self.in_flight.remove_all(gone);
        if let Some(inferred) = &mut self.inferred {
            for number in numbers {
                inferred.abandon(number);
            }
        }
        self.count();
    }

    /// Forgets what is in flight, and not what has been learned. What has happened since
    /// the last event is not known.
    pub fn forget(&mut self) {
        self.in_flight.clear();
        self.now_us = 0;
        self.exclusive.forget();
        if let Some(inferred) = &mut self.inferred {
            inferred.forget();
        }
    }

    /// Until then there may be requests in flight that nothing is known of.
    pub fn blind(&mut self, until_us: u64) {
        self.exclusive.blind(until_us);
    }

    /// Time has passed, up to now.
    fn pass(&mut self, now_us: u64) {
        if let Some(inferred) = &mut self.inferred {
            let passed_us = match self.now_us {
                0 => 0,
                last => now_us.saturating_sub(last),
            };
            inferred.pass(passed_us, self.in_flight.active(now_us));
        }
        self.exclusive.pass(now_us);
        self.now_us = self.now_us.max(now_us);
    }

    fn ended(&mut self, now_us: u64, request: u64, answered: bool) {
        self.pass(now_us);
        let removed = self.in_flight.remove(request);
        if let Some(removed) = &removed {
            let Request {
                route, began_us, ..
            } = *removed;
            self.exclusive.end(request, route, began_us, answered);
            if answered {
                self.pool.put(removed);
            }
        }
        self.count();
        if let (Some(inferred), Some(removed)) = (&mut self.inferred, removed) {
            inferred.end(now_us, &removed, answered);
        }
    }

    /// The number of requests in flight has changed.
    fn count(&mut self) {
        let only = match self.in_flight.tracked() {
            [only] if self.in_flight.all_tracked() => Some(only),
            _ => None,
        };
        self.exclusive.in_flight(self.in_flight.len(), only);
    }

    /// A route's name.
    fn route(&mut self, hash: u32) -> Name {
        let (name, is_reused) = self.routes.of(hash, hash);
        if is_reused {
            self.exclusive.forget_route(name);
            if let Some(inferred) = &mut self.inferred {
                inferred.forget_name(false, name);
            }
        }
        name
    }

    /// A kind's name, by the first hash, or by the second, of a class of kinds, if there are
    /// too many of its class; and the name of its class.
    fn kind(&mut self, hashes: [u32; 2]) -> [Name; 2] {
        let [_, class] = hashes;
        let (class, kind) = (self.kinds.of(class, class), self.kinds.of_class(hashes));
        for (name, is_reused) in [class, kind] {
            if is_reused {
                self.exclusive.forget_kind(name);
                if let Some(inferred) = &mut self.inferred {
                    inferred.forget_name(true, name);
                }
            }
        }
        [kind.0, class.0]
    }
}
