//! One request through the filter, in five steps: read, check, look up, decide, write.
//!
//! | module | what it does |
//! |---|---|
//! | `request` | reads the headers, and checks them |
//! | `lookup` | looks up the request that a call belongs to |
//! | `keys` | the same by the keys of the call |
//! | `decide` | decides what is written |
//! | `span` | gives a call a client span |
//! | `write` | turns that into edits, as far as there is room |
//! | `store` | stores an inbound request, as the application gets it |
//! | `report` | says what was found and done |
//! | `look_back` | says to which request a call belonged that was left alone |
//! | `worker` | what a worker knows of the requests in flight |
//!
//! Each step returns what the next one needs; none reaches back.

mod decide;
mod keys;
mod look_back;
mod lookup;
mod report;
mod request;
mod span;
mod store;
mod worker;
mod write;

pub use decide::{Reply, Watched};
pub use report::REPORT;
pub use worker::WorkerState;

use crate::config::{AttributionMode, Config, Direction};
use crate::headers::Edit;
use crate::host::Host;
use crate::metrics::Counter;
use crate::relay::Decision;
use crate::rules::Finding;
use crate::setup::Expected;
use crate::spans::Begun;
use crate::store::{Limits, Ticket};
use lookup::LookedUp;
use request::Request;

/// What is to be done with a request.
#[derive(Debug, Default)]
pub struct Outcome<'a> {
    /// Changes to its headers, in order.
    pub edits: Vec<Edit>,
    /// The rules that it breaks, without those that are off.
    pub findings: Vec<Finding<'a>>,
    /// What to count besides the findings.
    pub counters: Vec<Counter>,
    /// Given back to [`Filter::end`] when the request has been served.
    pub ticket: Option<Ticket>,
    /// A call's number; given back to [`Filter::returned`] when it has returned.
    pub call: Option<u64>,
    /// What a call was given that got its request's context.
    pub expected: Option<Expected>,
    /// Given back to [`Filter::sent`] when the call is over.
    pub watched: Option<Watched>,
    /// The client span of a call, if it has one: to be reported when it is over.
    pub span: Option<Begun>,
    /// The answer to send instead of forwarding the request.
    pub reply: Option<Reply>,
    /// The value of the header [`REPORT`] for the response.
    pub response_report: Option<String>,
}

/// A configured filter.
#[derive(Debug)]
pub struct Filter {
    /// Its configuration.
    pub config: Config,
    limits: Limits,
}

impl Filter {
    /// A filter with this configuration.
    pub fn new(mut config: Config) -> Self {
        if config.attribution != AttributionMode::Inferred {
            config.wanted.tokens.clear();
        }
        let limits = Limits::for_capacity(
            config.capacity.get(),
            config.keys.len(),
            config.grace_ms.get().into(),
        );
        Self { config, limits }
    }

    /// Looks at the headers of a request. `worker` is what its worker knows;
    /// `direction` is the configured one, or else that of the listener, if it has
    /// one.
    pub fn request<'a>(
        &self,
        worker: &mut WorkerState,
        host: &impl Host,
        direction: Option<Direction>,
        pairs: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
    ) -> Outcome<'a> {
        let mut request = Request::read(&self.config, direction, pairs);
        let mut outcome = Outcome {
            counters: Vec::with_capacity(4),
            ..Outcome::default()
        };
        outcome.counters.push(Counter::Requests(direction));
        outcome.counters.extend(request.untrusted);
        match direction {
            Some(Direction::Outbound) => self.outbound(worker, host, request, &mut outcome),
            _ => {
                request.read_newest(worker, host.is_before_router());
                self.inbound(worker, host, direction, request, &mut outcome);
            }
        }
        outcome
    }

    /// A call of the application.
    fn outbound<'a>(
        &self,
        worker: &mut WorkerState,
        host: &impl Host,
        request: Request<'a>,
        outcome: &mut Outcome<'a>,
    ) {
        let direction = Some(Direction::Outbound);
        let looked_up = match self.config.relay {
            true => self.look_up(worker, host, &request),
            false => LookedUp::nothing(Decision::Off),
        };
        outcome.call = looked_up.number;
        let findings = request.findings.iter().chain(&looked_up.findings);
        outcome.findings = self.enabled(findings);
        outcome.reply = self.rejection(&outcome.findings);
        if outcome.reply.is_some() {
            outcome.counters.push(Counter::Rejected(direction));
        } else {
            let plan = self.plan(host, &request, &outcome.findings, direction);
            let mut decided = self.decide(worker, host, &request, &looked_up, plan);
            let plan = std::mem::take(&mut decided.plan);
            let written = self.write(&request, plan);
            let done = decided.done(written.is_whole);
            outcome.counters.extend(done.counters.into_iter().flatten());
            let counters = written.counters(direction, Some(done.decision));
            outcome.counters.extend(counters);
            outcome.expected = done.expected;
            outcome.watched = done.watched;
            outcome.edits = written.edits;
            outcome.span = done.span.and_then(|b3| {
                let id = span::request_id(&outcome.edits, &request);
                let of = (&request.headers, id);
                Begun::new(b3, of, done.decision, &outcome.findings)
            });
        }
        self.report(direction, &request, outcome);
    }

    /// A request to the application, or one of which the direction is not known.
    fn inbound<'a>(
        &self,
        worker: &mut WorkerState,
        host: &impl Host,
        direction: Option<Direction>,
        mut request: Request<'a>,
        outcome: &mut Outcome<'a>,
    ) {
        outcome.findings = self.enabled(request.findings.iter());
        outcome.reply = self.rejection(&outcome.findings);
        if outcome.reply.is_some() {
            outcome.counters.push(Counter::Rejected(direction));
            outcome.edits.clone_from(&request.distrust);
        } else {
            let plan = self.plan(host, &request, &outcome.findings, direction);
            let mut written = self.write(&request, plan);
            outcome.counters.extend(written.counters(direction, None));
            if direction == Some(Direction::Inbound) {
                let counter = self.add_request_id(host, &mut request, &mut written);
                outcome.counters.extend(counter);
                let stored = self.store(worker, host, &request, &written);
                outcome.counters.extend(stored.counters);
                outcome.ticket = stored.ticket;
            }
            outcome.edits = written.edits;
        }
        self.report(direction, &request, outcome);
    }

    /// Without the rules that are off.
    fn enabled<'a, 'f>(&self, findings: impl Iterator<Item = &'f Finding<'a>>) -> Vec<Finding<'a>>
    where
        'a: 'f,
    {
        let is_enabled = |finding: &&Finding<'_>| self.config.severity(finding.rule).is_some();
        findings.filter(is_enabled).copied().collect()
    }

    /// The request that the ticket was given for has been served, or broken
    /// off, perhaps before it was `answered`. False if the store could not be updated;
    /// other workers then take it for one that is being served for a while.
    pub fn end(
        &self,
        worker: &mut WorkerState,
        host: &impl Host,
        ticket: Ticket,
        answered: bool,
    ) -> bool {
        let WorkerState {
            store, attribution, ..
        } = worker;
        let now_us = host.now_us();
        if self.attributes() {
            attribution.end(store, host, now_us, &ticket, answered);
        }
        store.end(host, self.limits, now_us / 1000, ticket)
    }

    /// The call of this number has returned, or was broken off.
    pub fn returned(&self, worker: &mut WorkerState, host: &impl Host, call: u64) {
        let WorkerState {
            store, attribution, ..
        } = worker;
        attribution.returned(store, host, host.now_us(), call);
    }
}
