//! One request: check it, repair or answer it, remember it or relay to it.

use crate::b3::{B3, Ids, Sampling};
use crate::check::{Checked, Finding, Forms, check};
use crate::config::{Config, Direction, Incoming, Mode, ReportHeader};
use crate::header::{self, Edit, Field, TraceHeaders};
use crate::metrics::{Counter, direction_label};
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
    /// The rules that it breaks, without those that are off.
    pub findings: Vec<Finding<'a>>,
    /// What to count besides the findings.
    pub counters: Vec<Counter>,
    /// Given back to [`Filter::end`] when the request has been served.
    pub ticket: Option<Ticket>,
    /// The answer to send instead of forwarding the request.
    pub reply: Option<Reply>,
    /// The value of the header [`REPORT`] for the response.
    pub response_report: Option<String>,
}

/// The header in which b3relay says what it found and did, if it is told to.
pub const REPORT: &str = "x-b3relay";

/// A configured filter.
#[derive(Debug)]
pub struct Filter {
    /// Its configuration.
    pub config: Config,
    store: Store,
}

/// A request on its way through the filter.
struct Request<'a> {
    headers: TraceHeaders<'a>,
    checked: Checked<'a>,
    /// As the application or the callee will see it.
    request_id: Vec<u8>,
    /// What it is to say in B3, and in which forms; `None` to leave it.
    says: Option<(B3, Forms)>,
}

impl Filter {
    /// Opens the store that all filters of the process share.
    pub fn new(config: Config, host: &impl Host) -> Self {
        let limits = Limits::for_capacity(config.capacity, config.grace_ms);
        let [a, b, c, d, e, f, g, h, ..] = host.random();
        let store = Store::open(host, limits, u64::from_le_bytes([a, b, c, d, e, f, g, h]));
        Self { config, store }
    }

    /// Looks at the headers of a request. `direction` is the configured one, or
    /// else that of the listener, if it has one.
    pub fn request<'a>(
        &self,
        host: &impl Host,
        direction: Option<Direction>,
        pairs: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
    ) -> Outcome<'a> {
        let mut outcome = Outcome {
            counters: vec![Counter::Requests(direction)],
            ..Outcome::default()
        };
        let mut headers = TraceHeaders::read(pairs, &self.config.copy);
        // What the application sends is its own.
        if self.config.incoming != Incoming::Trust && direction != Some(Direction::Outbound) {
            headers = self.distrust(headers, &mut outcome);
        }
        let mut checked = check(&headers);
        outcome.findings = std::mem::take(&mut checked.findings);
        let mut request = Request {
            request_id: headers.request_id.value().unwrap_or_default().to_vec(),
            headers,
            checked,
            says: None,
        };
        let repairing = self.config.mode == Mode::Repair;
        if let Some(first) = first_of(request.headers.request_id).filter(|_| repairing) {
            request.request_id = first.to_vec();
        }
        let mut remembered = Err(Decision::Off);
        if direction == Some(Direction::Outbound) && self.config.relay {
            remembered = self.find(host, &request, &mut outcome);
        }
        let enabled = |rule| self.config.severity(rule).is_some();
        outcome.findings.retain(|finding| enabled(finding.rule));

        if self.config.mode == Mode::Enforce {
            outcome.reply = self.rejection(&outcome.findings);
        }
        if outcome.reply.is_some() {
            outcome.counters.push(Counter::Rejected(direction));
        } else {
            let repaired = repairing && outcome.findings.iter().any(rewrites);
            if repaired {
                request.says = Some((request.checked.b3, request.checked.forms));
            }
            if direction == Some(Direction::Outbound) {
                self.outbound(&mut request, remembered, &mut outcome);
            }
            if repairing {
                request.says = request.says.map(readable_by_all);
            }
            // Once, so that no edit is made up for what another one removes.
            let mut edits = match request.says {
                Some((b3, forms)) => relay::rewrite(&request.headers, &b3, forms),
                None => Vec::new(),
            };
            if let Some(first) = first_of(request.headers.request_id).filter(|_| repaired) {
                edits.push(Edit::set(header::REQUEST_ID, first));
            }
            if repaired && !edits.is_empty() {
                outcome.counters.push(Counter::Repaired(direction));
            }
            outcome.edits.extend(edits);
            if direction == Some(Direction::Inbound) {
                self.inbound(host, &mut request, &mut outcome);
            }
        }
        match self.config.report_header {
            ReportHeader::Off => {}
            ReportHeader::Request => {
                let report = summary(direction, &outcome);
                outcome.edits.push(Edit::set(REPORT, report));
            }
            ReportHeader::Response => outcome.response_report = Some(summary(direction, &outcome)),
        }
        outcome
    }

    /// The request that the ticket was given for has been served, or broken
    /// off. False if the store could not be updated; its entry then stays until
    /// room is needed.
    pub fn end(&self, host: &impl Host, ticket: Ticket) -> bool {
        self.store.end(host, host.now_ms(), ticket)
    }

    /// The headers without the B3 that came from outside.
    fn distrust<'a>(
        &self,
        headers: TraceHeaders<'a>,
        outcome: &mut Outcome<'a>,
    ) -> TraceHeaders<'a> {
        let brought = headers
            .multi()
            .into_iter()
            .chain([(header::B3, headers.b3)]);
        let brought: Vec<_> = brought
            .filter(|(_, field)| field.value().is_some())
            .collect();
        if brought.is_empty() {
            return headers;
        }
        if self.config.incoming == Incoming::Drop {
            let names = brought.into_iter().map(|(name, _)| name);
            outcome.edits.extend(names.map(Edit::remove));
            outcome.counters.push(Counter::Dropped);
        } else {
            outcome.counters.push(Counter::Ignored);
        }
        headers.without_b3()
    }

    fn inbound<'a>(&self, host: &impl Host, request: &mut Request<'a>, outcome: &mut Outcome<'a>) {
        if request.request_id.is_empty() && self.config.generate_request_id {
            request.request_id = request_id::generate(host.random()).to_vec();
            let value = request.request_id.as_slice();
            outcome.edits.push(Edit::set(header::REQUEST_ID, value));
            outcome.counters.push(Counter::RequestIds);
        }
        if !self.config.relay {
            return;
        }
        let Some(key) = Key::new(&request.request_id) else {
            outcome.counters.push(Counter::NoKey);
            return;
        };
        let Request {
            headers, checked, ..
        } = request;
        let (mut remembered, dropped) = Remembered::of(headers, checked, &self.config.copy);
        if let Some((_, forms)) = request.says {
            remembered.forms = forms;
        }
        for _ in 0..dropped {
            outcome.counters.push(Counter::CopyDropped);
        }
        // A request without a context is remembered too: another one with the
        // same request ID must not lend it its own.
        let payload = remembered.encode();
        let inserted = self
            .store
            .insert(host, host.now_ms(), &key, host.unique(), &payload);
        match inserted {
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
        request: &mut Request<'a>,
        remembered: Result<Remembered, Decision>,
        outcome: &mut Outcome<'a>,
    ) {
        let copy = &self.config.copy;
        let relayed = remembered
            .map(|remembered| relay::decide(&request.headers, &request.checked, &remembered, copy));
        match relayed {
            Ok(relayed) => {
                outcome.counters.push(Counter::Calls(relayed.decision));
                outcome.edits.extend(relayed.edits);
                request.says = relayed.says.or(request.says);
            }
            Err(decision) => outcome.counters.push(Counter::Calls(decision)),
        }
    }

    /// The ladder: a context of its own, a key, one request for that key; each
    /// rung that is not sure leaves the call alone. Adds what the call breaks of
    /// the rules about propagation.
    fn find<'a>(
        &self,
        host: &impl Host,
        request: &Request<'a>,
        outcome: &mut Outcome<'a>,
    ) -> Result<Remembered, Decision> {
        let before = relay::before_lookup(&request.checked, self.config.mode == Mode::Repair);
        if let Err(decision) = before {
            let asked = [Rule::P02, Rule::P03].map(|rule| self.config.severity(rule).is_some());
            if decision != Decision::Present || asked == [false; 2] {
                return Err(decision);
            }
        }
        let remembered = Key::new(&request.request_id)
            .ok_or(Decision::NoKey)
            .and_then(|key| relay::choose(&self.store.find(host, host.now_ms(), &key)));
        if let Ok(remembered) = &remembered {
            let findings = relay::propagation(&request.headers, &request.checked, remembered);
            outcome.findings.extend(findings);
        }
        before.and(remembered)
    }

    /// The answer to a request that breaks a rule of severity error.
    fn rejection(&self, findings: &[Finding<'_>]) -> Option<Reply> {
        let mut body = String::new();
        for finding in findings {
            let rule = finding.rule;
            if self.config.severity(rule) == Some(Severity::Error) {
                body.push_str(&format!(
                    "b3relay: {} {}: {}; right: {}\n",
                    rule.id(),
                    finding.header,
                    rule.condition(),
                    rule.right()
                ));
            }
        }
        (!body.is_empty()).then_some(Reply {
            status: self.config.enforce_status,
            body,
        })
    }
}

/// The rule is one that repair rewrites a request for.
fn rewrites(finding: &Finding<'_>) -> bool {
    finding.rule.repair().rewrites()
}

/// What a single header cannot say so that everybody reads it: debug (D04) goes
/// into the multiple headers, and a parent without a decision (B06), for which
/// the grammar has no place, is left out of both.
fn readable_by_all((mut b3, mut forms): (B3, Forms)) -> (B3, Forms) {
    if forms.single && b3.sampling == Sampling::Debug {
        forms = Forms {
            multi: true,
            single: false,
        };
    }
    if forms.single && b3.sampling == Sampling::Defer {
        b3.ids = b3.ids.map(|ids| Ids {
            parent: None,
            ..ids
        });
    }
    (b3, forms)
}

/// The first of several request IDs, which Envoy joins with commas; `None` if
/// there is just one.
fn first_of(request_id: Field<'_>) -> Option<&[u8]> {
    let given = request_id.value()?;
    let first = given.split(|&byte| byte == b',').next()?.trim_ascii();
    (!first.is_empty() && (request_id.repeated() || first != given)).then_some(first)
}

/// What was found and done, in one line: the direction, the rules that are
/// broken, and each counter.
fn summary(direction: Option<Direction>, outcome: &Outcome<'_>) -> String {
    let mut parts = vec![direction_label(direction).to_string()];
    for finding in &outcome.findings {
        parts.push(format!("{} {}", finding.rule.id(), finding.header));
    }
    parts.extend(outcome.counters.iter().filter_map(|counter| {
        Some(match counter {
            Counter::Calls(decision) => decision.label().to_string(),
            Counter::Remembered => "remembered".to_string(),
            Counter::RequestIds => "generated x-request-id".to_string(),
            Counter::Repaired(_) => "repaired".to_string(),
            Counter::Rejected(_) => "rejected".to_string(),
            Counter::Ignored => "ignored b3".to_string(),
            Counter::Dropped => "dropped b3".to_string(),
            _ => return None,
        })
    }));
    parts.join("; ")
}
