//! One request: check it, repair or answer it, remember it or relay to it.

use crate::check::{Checked, Finding, check};
use crate::config::{Config, Direction, Mode};
use crate::header::{self, Edit, Field, TraceHeaders};
use crate::metrics::Counter;
use crate::relay::{self, Decision, Remembered};
use crate::request_id::{self, Key};
use crate::rules::{Rule, Severity};
use crate::store::{Limits, SharedData, Store, Ticket};

/// What the filter asks of the proxy while it looks at a request.
pub trait Host: SharedData {
    /// Milliseconds since the epoch.
    fn now_ms(&self) -> u64;
    /// 16 random bytes.
    fn random(&self) -> [u8; 16];
    /// A number that no other request of this process gets.
    fn unique(&self) -> u64;
}

/// An answer in place of the request's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The status code.
    pub status: u32,
    /// The body, plain text.
    pub body: String,
}

/// What is to be done with a request.
#[derive(Debug, Default)]
pub struct Outcome<'a> {
    /// Changes to its headers, in order.
    pub edits: Vec<Edit>,
    /// The rules that it breaks.
    pub findings: Vec<Finding<'a>>,
    /// What to count besides the findings.
    pub counters: Vec<Counter>,
    /// Given back to [`Filter::end`] when the request has been served.
    pub ticket: Option<Ticket>,
    /// The answer to send instead of forwarding the request.
    pub reply: Option<Reply>,
}

/// A configured filter.
#[derive(Debug)]
pub struct Filter {
    /// Its configuration.
    pub config: Config,
    store: Store,
}

impl Filter {
    /// Opens the store that all filters of the process share.
    pub fn new(config: Config, host: &impl Host) -> Self {
        let limits = Limits::for_capacity(config.capacity, config.grace_ms);
        let [a, b, c, d, e, f, g, h, ..] = host.random();
        let store = Store::open(host, limits, u64::from_le_bytes([a, b, c, d, e, f, g, h]));
        Self { config, store }
    }

    /// Looks at the headers of a request. `direction` is that of the listener,
    /// if it has one; a direction in the configuration goes before it.
    pub fn request<'a>(
        &self,
        host: &impl Host,
        direction: Option<Direction>,
        pairs: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
    ) -> Outcome<'a> {
        let headers = TraceHeaders::read(pairs, &self.config.copy);
        let mut checked = check(&headers);
        let mut outcome = Outcome {
            findings: std::mem::take(&mut checked.findings),
            counters: vec![Counter::Requests(direction)],
            ..Outcome::default()
        };
        if self.config.mode == Mode::Enforce {
            outcome.reply = rejection(&outcome.findings);
            if outcome.reply.is_some() {
                outcome.counters.push(Counter::Rejected(direction));
                return outcome;
            }
        }
        let repairing = self.config.mode == Mode::Repair
            && outcome
                .findings
                .iter()
                .any(|finding| is_repaired(finding.rule));
        let mut request_id = headers.request_id.value().unwrap_or_default().to_vec();
        if repairing {
            outcome.edits = relay::rewrite(&headers, &checked.b3, checked.forms);
            if let Some(first) = first_of(headers.request_id) {
                request_id = first.to_vec();
                outcome.edits.push(Edit::set(header::REQUEST_ID, first));
            }
            if !outcome.edits.is_empty() {
                outcome.counters.push(Counter::Repaired(direction));
            }
        }
        let inbound = direction == Some(Direction::Inbound);
        if inbound && request_id.is_empty() && self.config.generate_request_id {
            request_id = request_id::generate(host.random()).to_vec();
            outcome
                .edits
                .push(Edit::set(header::REQUEST_ID, request_id.as_slice()));
            outcome.counters.push(Counter::RequestIds);
        }
        let key = Key::new(&request_id);
        match direction {
            Some(Direction::Inbound) => self.inbound(host, key, &headers, &checked, &mut outcome),
            Some(Direction::Outbound) => self.outbound(host, key, &headers, &checked, &mut outcome),
            None => {}
        }
        outcome
    }

    /// The request that the ticket was given for has been served, or broken
    /// off. False if the store could not be updated; its entry then stays until
    /// room is needed.
    pub fn end(&self, host: &impl Host, ticket: Ticket) -> bool {
        self.store.end(host, host.now_ms(), ticket)
    }

    fn inbound<'a>(
        &self,
        host: &impl Host,
        key: Option<Key>,
        headers: &TraceHeaders<'a>,
        checked: &Checked<'a>,
        outcome: &mut Outcome<'a>,
    ) {
        if !self.config.relay {
            return;
        }
        let Some(key) = key else {
            outcome.counters.push(Counter::NoKey);
            return;
        };
        let (remembered, dropped) = Remembered::of(headers, checked, &self.config.copy);
        for _ in 0..dropped {
            outcome.counters.push(Counter::CopyDropped);
        }
        // A request without a context is remembered too: another one with the
        // same request ID must not lend it its own.
        let payload = remembered.encode();
        match self
            .store
            .insert(host, host.now_ms(), &key, host.unique(), &payload)
        {
            Some(inserted) => {
                outcome.ticket = Some(inserted.ticket);
                outcome.counters.push(Counter::Remembered);
                for _ in 0..inserted.evicted {
                    outcome.counters.push(Counter::Evicted);
                }
            }
            None => outcome.counters.push(Counter::Contention),
        }
    }

    fn outbound<'a>(
        &self,
        host: &impl Host,
        key: Option<Key>,
        headers: &TraceHeaders<'a>,
        checked: &Checked<'a>,
        outcome: &mut Outcome<'a>,
    ) {
        let (decision, edits) = self
            .find(host, key, checked)
            .map(|remembered| relay::decide(headers, checked, &remembered, &self.config.copy))
            .unwrap_or_else(|decision| (decision, Vec::new()));
        outcome.counters.push(Counter::Calls(decision));
        outcome.edits.extend(edits);
    }

    /// The ladder: a context of its own, a key, one request for that key; each
    /// rung that is not sure leaves the call alone.
    fn find(
        &self,
        host: &impl Host,
        key: Option<Key>,
        checked: &Checked<'_>,
    ) -> Result<Remembered, Decision> {
        if !self.config.relay {
            return Err(Decision::Off);
        }
        relay::before_lookup(checked, self.config.mode == Mode::Repair)?;
        let key = key.ok_or(Decision::NoKey)?;
        relay::choose(&self.store.find(host, host.now_ms(), &key))
    }
}

/// The first of several request IDs, which Envoy joins with commas; `None` if
/// there is just one.
fn first_of(request_id: Field<'_>) -> Option<&[u8]> {
    let given = request_id.value()?;
    let first = given.split(|&byte| byte == b',').next()?.trim_ascii();
    (!first.is_empty() && (request_id.repeated() || first != given)).then_some(first)
}

/// Rules about what implementations read differently. The others are legal,
/// opaque, or about request IDs, which are filled in in every mode.
fn is_repaired(rule: Rule) -> bool {
    !matches!(
        rule,
        Rule::S05 | Rule::S06 | Rule::R01 | Rule::R02 | Rule::R03 | Rule::O01
    )
}

/// The answer to a request that breaks a rule of severity error.
fn rejection(findings: &[Finding<'_>]) -> Option<Reply> {
    let mut body = String::new();
    for finding in findings {
        let rule = finding.rule;
        if rule.severity() == Severity::Error {
            body.push_str(&format!(
                "b3relay: {} {}: {}; right: {}\n",
                rule.id(),
                finding.header,
                rule.condition(),
                rule.right()
            ));
        }
    }
    (!body.is_empty()).then_some(Reply { status: 400, body })
}
