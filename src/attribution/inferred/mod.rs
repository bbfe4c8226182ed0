//! To which of several requests in flight does a call belong? A belief about every
//! request in flight, from what a sidecar sees: requests that begin and end, and calls
//! that begin and end.
//!
//! A request is a walk through the nodes of the [`Model`]; each call is a step of
//! one of them, or of none (the background). The belief is a set of
//! hypotheses, each of which says for every call so far to which request it belonged, with
//! its probability by Bayes' rule: a hypothesis gains when what happens next was likely
//! under it, and loses while what it expects does not happen. That a thread which
//! waits for its call makes no other one, or that a request which has been
//! answered waits for nothing, is not a rule here: it is learned.
//!
//! Requests of which every hypothesis says the same are apart from the others,
//! so that the work grows with the doubt and not with the load: a [`Cluster`] is a
//! set of requests that doubts have entangled.
//!
//! The model is learned from what is certain, at once, and from what is not, by a study of
//! recorded events from time to time ([`learning`]): a pod may begin under load, and then
//! hardly anything is ever certain.
//!
//! The rest of [`crate::attribution`] knows of [`Inferred`] alone, and works without it.
//!
//! | module | what it knows |
//! |---|---|
//! | [`engine`] | the belief about everything in flight, by one model |
//! | [`learning`] | how a model is learned under load |
//! | [`model`] | what has been learned of the application |
//! | [`belief`] | the hypotheses |
//! | [`candidates`] | the requests that a call may belong to |
//! | [`judge`] | to which of them it belongs, and whether that is sure enough |
//! | [`surprises`] | how often the belief turned out to be wrong |
//! | [`acceptance`] | how many verdicts may be accepted |

mod acceptance;
mod belief;
mod candidates;
mod engine;
mod judge;
mod learning;
mod model;
mod surprises;

use super::in_flight::{InFlight, Request};
use super::look_back::{LeftAlone, Told};
use super::names::Name;
use super::signature::Token;
use super::tracker::{Basis, Verdict};
use engine::Engine;
use learning::{Learner, What};
use model::Connection;
use std::collections::VecDeque;

/// A call that has begun.
#[derive(Clone, Copy, Debug)]
pub(super) struct NewCall<'a> {
    pub(super) number: u64,
    pub(super) kind: Name,
    pub(super) tokens: &'a [Token],
    /// The application's port; 0: not known.
    pub(super) port: u16,
}

impl NewCall<'_> {
    fn connection(&self) -> Connection {
        Connection::new(self.kind, self.port)
    }

    fn what(&self) -> What {
        What::Called {
            kind: self.kind,
            port: self.port,
        }
    }
}

/// The belief about everything in flight, and a model that is learned for it.
#[derive(Debug, Default)]
pub(super) struct Inferred {
    engine: Engine,
    learner: Learner,
    /// How many requests the application serves at once, if there is a limit.
    limit: Option<usize>,
    /// Those that wait for others to end, the first one first.
    waiting: VecDeque<(Request, Vec<Token>)>,
}

impl Inferred {
    /// So many microseconds have passed, with so many requests in flight.
    pub(super) fn pass(&mut self, us: u64, in_flight: usize) {
        self.engine.pass(us, in_flight);
    }

    /// A request has begun: this one, if it is tracked. `is_alone`: no other one is in
    /// flight.
    pub(super) fn begin(
        &mut self,
        now_us: u64,
        request: Option<&Request>,
        is_alone: bool,
        tokens: Vec<Token>,
    ) {
        match request {
            Some(request) => {
                let what = What::Begun {
                    route: request.route,
                    connection: request.connection,
                };
                self.learner.record(now_us, request.number, what);
            }
            // What it does looks as if others did it.
            None => self.learner.forget(),
        }
        let running = self.engine.requests.len();
        match request {
            Some(request) if self.limit.is_some_and(|limit| running >= limit) => {
                self.waiting.push_back((request.clone(), tokens));
            }
            _ => self.engine.begin(now_us, request, is_alone, tokens),
        }
    }

    /// A request that was thought to wait does not.
    fn lift_limit(&mut self, now_us: u64) {
        self.limit = None;
        self.admit(now_us);
    }

    /// Lets in the requests that need not wait any more.
    fn admit(&mut self, now_us: u64) {
        let limit = self.limit.unwrap_or(usize::MAX);
        while self.engine.requests.len() < limit
            && let Some((request, tokens)) = self.waiting.pop_front()
        {
            self.engine.begin(now_us, Some(&request), false, tokens);
        }
    }

    /// A call has begun that is known to belong to this request.
    pub(super) fn called(&mut self, now_us: u64, call: NewCall<'_>, owner: u64) {
        self.learner.record(now_us, owner, What::Owner);
        self.learner.record(now_us, call.number, call.what());
        if self
            .waiting
            .iter()
            .any(|(waiting, _)| waiting.number == owner)
        {
            self.lift_limit(now_us);
        }
        self.engine.called(now_us, call, owner);
    }

    /// A call has begun: the request that it belongs to, if that is sure. `exclusive`: the
    /// only request in flight, if it belongs to that one by the rules of
    /// [`crate::attribution::exclusive`]. `wrong`: the part of all calls that may be given
    /// to a wrong request, from 0 to 1.
    pub(super) fn judge(
        &mut self,
        now_us: u64,
        call: NewCall<'_>,
        in_flight: &mut InFlight,
        exclusive: Option<Verdict>,
        wrong: f64,
    ) -> Option<Verdict> {
        let (number, what) = (call.number, call.what());
        self.learner.allow(wrong);
        let verdict = self.engine.judge(now_us, call, in_flight, exclusive, wrong);
        let by_token = verdict.filter(|verdict| verdict.basis == Basis::Token);
        if let Some(verdict) = by_token {
            self.learner.record(now_us, verdict.request, What::Owner);
        }
        self.learner.record(now_us, number, what);
        verdict
    }

    /// A call of the background has begun, while so many requests were active.
    pub(super) fn called_by_nobody(&mut self, kind: Name, active: usize) {
        self.engine.called_by_nobody(kind, active);
    }

    /// A call that was judged was left alone: its request is to be told when it is known.
    pub(super) fn leave_alone(&mut self, call: LeftAlone) {
        self.engine.leave_alone(call);
    }

    /// Those whose request is known since the last time.
    pub(super) fn take_told(&mut self) -> Vec<Told> {
        std::mem::take(&mut self.engine.told)
    }

    /// A call has begun that is not judged.
    pub(super) fn miss_call(&mut self) {
        self.learner.forget();
        self.engine.miss_call();
    }

    /// A call has returned.
    pub(super) fn returned(&mut self, now_us: u64, call: u64, in_flight: &mut InFlight) {
        self.learner.record(now_us, call, What::Returned);
        self.engine.returned(now_us, call, in_flight);
    }

    /// A request has been answered, or was broken off.
    pub(super) fn end(&mut self, now_us: u64, request: &Request, answered: bool) {
        let what = What::Ended { answered };
        self.learner.record(now_us, request.number, what);
        let is_it = |waiting: &(Request, Vec<Token>)| waiting.0.number == request.number;
        if let Some(at) = self.waiting.iter().position(is_it) {
            self.waiting.remove(at);
            if answered {
                // It did not wait.
                self.limit = None;
            }
        }
        self.engine.end(now_us, request, answered);
        self.admit(now_us);
    }

    /// A request is gone, without an end that was seen.
    pub(super) fn abandon(&mut self, request: u64) {
        self.learner.forget();
        self.waiting
            .retain(|(waiting, _)| waiting.number != request);
        self.engine.abandon(request);
    }

    /// Forgets what is in flight, and not what has been learned.
    pub(super) fn forget(&mut self) {
        self.learner.forget();
        self.waiting.clear();
        self.engine.forget();
    }

    /// The name is of another route, or kind, from now on.
    pub(super) fn forget_name(&mut self, is_kind: bool, name: Name) {
        self.learner.forget_name(is_kind, name);
        self.engine.forget_name(is_kind, name);
    }

    /// Learns for a few milliseconds at most. Returns how many times that is to be done in
    /// 100 ms; 0 if there is nothing to do.
    pub(super) fn learn(&mut self, now_us: u64) -> u64 {
        let (learned, more) = self.learner.learn(now_us, &self.engine, self.limit);
        if let Some(learned) = learned {
            self.limit = learned.limit;
            self.engine.adopt(learned.engine);
            self.admit(now_us);
        }
        more
    }
}
