//! A host in memory, and headers as text.
#![allow(dead_code)] // each test file uses its part

use b3relay::config::{Config, Direction};
use b3relay::filter::{Filter, Outcome, Watched, WorkerState};
use b3relay::headers::{Pairs, serialize};
use b3relay::host::{Host, Recording};
use b3relay::metrics::Counter;
use b3relay::relay::Decision;
use b3relay::setup::Expected;
use b3relay::spans::Begun;
use b3relay::store::{InMemory, NotSet, SharedData, Ticket};
use serde::Deserialize;
use std::cell::{Cell, RefCell};

/// A request ID, and that of another request.
pub const ID: &str = "x-request-id: 0f7a1c2e-1b2d-4c3e-9d4f-5a6b7c8d9e0f";
pub const OTHER_ID: &str = "x-request-id: 1f7a1c2e-1b2d-4c3e-9d4f-5a6b7c8d9e0f";
/// Behind this, Envoy has made the request ID up.
pub const PROTO: &str = "x-forwarded-proto: http";
/// A context, line by line; and another span of its trace.
pub const TRACE: &str = "x-b3-traceid: 463ac35c9f6413ad48485a3953bb6124";
pub const SPAN: &str = "x-b3-spanid: a2fb4a1d1a96d312";
pub const OTHER_SPAN: &str = "x-b3-spanid: b2fb4a1d1a96d312";
pub const PARENT: &str = "x-b3-parentspanid: 0020000000000001";
pub const SAMPLED: &str = "x-b3-sampled: 1";
/// The same context, for W3C.
pub const TRACEPARENT: &str =
    "traceparent: 00-463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312-01";

/// A request of `tests/vectors/rules.toml`; see there.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vector {
    pub name: String,
    pub headers: Vec<String>,
    #[serde(default = "yes")]
    pub request_id: bool,
    pub inbound: Option<Vec<String>>,
    #[serde(default)]
    pub findings: Vec<String>,
    pub near: Option<String>,
    pub reads: Option<String>,
    pub repaired: Option<Vec<String>>,
}

fn yes() -> bool {
    true
}

impl Vector {
    /// Every vector.
    pub fn all() -> Vec<Self> {
        #[derive(Deserialize)]
        struct File {
            vector: Vec<Vector>,
        }
        let file: File = toml::from_str(include_str!("../vectors/rules.toml")).unwrap();
        file.vector
    }

    /// The lines as headers, with a request ID where there is none.
    pub fn request(&self, lines: &[String]) -> Headers {
        let mut headers: Headers = lines.iter().map(|line| header(line)).collect();
        if self.request_id && !headers.iter().any(|(name, _)| name == "x-request-id") {
            headers.insert(
                0,
                header("x-request-id: 0f7a1c2e-1b2d-4c3e-9d4f-5a6b7c8d9e0f"),
            );
        }
        headers
    }
}

/// Header pairs, in order.
pub type Headers = Vec<(String, Vec<u8>)>;

/// "name: value" with `\xNN` for a byte.
pub fn header(line: &str) -> (String, Vec<u8>) {
    let (name, text) = line.split_once(": ").expect(line);
    let mut value = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("\\x") {
        value.extend_from_slice(before.as_bytes());
        value.push(u8::from_str_radix(&after[..2], 16).unwrap());
        rest = &after[2..];
    }
    value.extend_from_slice(rest.as_bytes());
    (name.to_string(), value)
}

/// Several of them.
pub fn headers(lines: &[&str]) -> Headers {
    lines.iter().map(|line| header(line)).collect()
}

/// As Envoy serialises them.
pub fn map(headers: &Headers) -> Vec<u8> {
    let pairs: Vec<(&str, &[u8])> = headers
        .iter()
        .map(|(n, v)| (n.as_str(), v.as_slice()))
        .collect();
    serialize(&pairs)
}

/// The headers whose name begins so, sorted.
pub fn only(headers: &Headers, prefixes: &[&str]) -> Headers {
    let mut kept = headers.clone();
    kept.retain(|(name, _)| prefixes.iter().any(|prefix| name.starts_with(prefix)));
    kept.sort();
    kept
}

/// A proxy in memory, with a clock that stands still unless it is moved.
#[derive(Default)]
pub struct TestHost {
    pub data: InMemory,
    pub now: Cell<u64>,
    /// The Envoy cluster of every call.
    pub cluster: RefCell<Option<&'static str>>,
    /// How often it was asked for.
    pub asked: Cell<u32>,
    /// The ID of the Envoy.
    pub node_id: RefCell<Option<String>>,
    /// How often that was asked for.
    pub nodes: Cell<u32>,
    /// Istio has configured it.
    pub istio: Cell<bool>,
    /// The inbound filter is an ordinary HTTP filter.
    pub before_router: Cell<bool>,
    /// Whether spans may begin.
    pub recording: Cell<Recording>,
    next: Cell<u64>,
}

impl SharedData for TestHost {
    fn get(&self, key: &[u8]) -> Option<(Vec<u8>, u32)> {
        self.data.get(key)
    }

    fn set(&self, key: &[u8], value: &[u8], cas: u32) -> Result<(), NotSet> {
        self.data.set(key, value, cas)
    }
}

impl Host for TestHost {
    fn now_us(&self) -> u64 {
        self.now.get() * 1000
    }

    fn random(&self) -> [u8; 16] {
        self.next.set(self.next.get() + 1);
        let mut random = [0x5a; 16];
        random[..8].copy_from_slice(&self.next.get().to_le_bytes());
        random
    }

    fn is_before_router(&self) -> bool {
        self.before_router.get()
    }

    fn cluster(&self) -> Option<Vec<u8>> {
        self.asked.set(self.asked.get() + 1);
        self.cluster.borrow().map(|name| name.as_bytes().to_vec())
    }

    fn node_id(&self) -> Option<Vec<u8>> {
        self.nodes.set(self.nodes.get() + 1);
        self.node_id.borrow().clone().map(String::into_bytes)
    }

    fn is_istio(&self) -> bool {
        self.istio.get()
    }

    fn recording(&self) -> Recording {
        self.recording.get()
    }
}

/// What became of a request.
pub struct Seen {
    pub worker: usize,
    pub headers: Headers,
    pub ticket: Option<Ticket>,
    pub call: Option<u64>,
    pub decision: Option<Decision>,
    pub rules: Vec<&'static str>,
    pub counters: Vec<Counter>,
    pub reply: Option<(u32, String)>,
    pub span: Option<Begun>,
    pub expected: Option<Expected>,
    watched: Option<Watched>,
}

impl Seen {
    /// At the end, it is taken for overwritten by a tracer, which nothing has done.
    pub fn is_taken_for_overwritten(&self) -> bool {
        let pairs = self.headers.iter();
        let pairs = pairs.map(|(name, value)| (name.as_bytes(), value.as_slice()));
        self.expected.unwrap().is_overwritten(pairs)
    }
}

/// A sidecar: filters on both sides of an application, on one worker or more.
pub struct Sidecar {
    pub host: TestHost,
    pub filter: Filter,
    outbound: Filter,
    memories: Vec<RefCell<WorkerState>>,
    replaced: Cell<u64>,
}

impl Sidecar {
    pub fn new(config: &str) -> Self {
        Self::with(config, config, 1)
    }

    /// For what is done by keys alone: with attribution, a call without one may well
    /// get a context.
    pub fn keyed(config: &str) -> Self {
        let rest = config.trim_start_matches('{');
        let comma = if rest.trim() == "}" { "" } else { ", " };
        Self::new(&format!("{{\"attribution\": \"off\"{comma}{rest}"))
    }

    pub fn with(inbound: &str, outbound: &str, workers: u64) -> Self {
        let host = TestHost::default();
        host.now.set(1_700_000_000_000);
        let filter = |config: &str| Filter::new(Config::parse(config.as_bytes()).unwrap());
        let memories = (0..workers).map(|n| RefCell::new(WorkerState::open(&host, n)));
        Self {
            memories: memories.collect(),
            replaced: Cell::default(),
            filter: filter(inbound),
            outbound: filter(outbound),
            host,
        }
    }

    pub fn wait(&self, ms: u64) {
        self.host.now.set(self.host.now.get() + ms);
    }

    pub fn request(&self, direction: Option<Direction>, before: &Headers) -> Seen {
        self.on(0, direction, before)
    }

    /// On that worker.
    pub fn on(&self, worker: usize, direction: Option<Direction>, before: &Headers) -> Seen {
        let map = map(before);
        let filter = match direction {
            Some(Direction::Outbound) => &self.outbound,
            _ => &self.filter,
        };
        let memory = &mut self.memories[worker].borrow_mut();
        let outcome: Outcome<'_> = filter.request(memory, &self.host, direction, Pairs::new(&map));
        let mut headers = before.clone();
        for edit in &outcome.edits {
            edit.apply(&mut headers);
        }
        Seen {
            worker,
            headers,
            ticket: outcome.ticket,
            call: outcome.call,
            decision: outcome.counters.iter().find_map(|counter| match counter {
                Counter::Calls(decision) => Some(*decision),
                _ => None,
            }),
            rules: outcome
                .findings
                .iter()
                .map(|finding| finding.rule.id())
                .collect(),
            reply: outcome.reply.map(|reply| (reply.status, reply.body)),
            counters: outcome.counters,
            span: outcome.span,
            expected: outcome.expected,
            watched: outcome.watched,
        }
    }

    pub fn inbound(&self, lines: &[&str]) -> Seen {
        self.request(Some(Direction::Inbound), &headers(lines))
    }

    pub fn outbound(&self, lines: &[&str]) -> Seen {
        self.request(Some(Direction::Outbound), &headers(lines))
    }

    /// The state of a worker.
    pub fn memory(&self, worker: usize) -> std::cell::RefMut<'_, WorkerState> {
        self.memories[worker].borrow_mut()
    }

    /// It has been answered.
    pub fn end(&self, seen: &Seen) {
        self.end_after(seen, true);
    }

    /// It has been answered, or broken off before.
    pub fn end_after(&self, seen: &Seen, answered: bool) {
        let memory = &mut self.memories[seen.worker].borrow_mut();
        let ticket = seen.ticket.unwrap();
        assert!(self.filter.end(memory, &self.host, ticket, answered));
    }

    /// The call is over, and the host knows where it went.
    pub fn sent(&self, seen: &Seen) {
        if let Some(watched) = seen.watched {
            let memory = &mut self.memories[seen.worker].borrow_mut();
            self.outbound.sent(memory, &self.host, watched);
        }
    }

    /// The call has returned.
    pub fn returned(&self, seen: &Seen) {
        if let Some(call) = seen.call {
            let memory = &mut self.memories[seen.worker].borrow_mut();
            self.outbound.returned(memory, &self.host, call);
        }
    }

    /// On every worker, as Envoy does every second.
    pub fn tick(&self) {
        (0..self.memories.len()).for_each(|worker| self.tick_on(worker));
    }

    /// On that worker. While there is more to do, it comes ten times a second.
    pub fn tick_on(&self, worker: usize) {
        let memory = &mut self.memories[worker].borrow_mut();
        memory.tick(&self.host);
        let _ = (0..10).all(|_| memory.attribution.learn() > 0);
    }

    /// What is logged of calls that were left alone, after a tick.
    pub fn look_back(&self, worker: usize) -> Vec<String> {
        self.tick_on(worker);
        let memory = &mut self.memories[worker].borrow_mut();
        self.outbound.look_back(memory, &self.host)
    }

    /// Nothing is kept of such calls.
    pub fn keeps_nothing_to_look_back(&self, worker: usize) -> bool {
        let memory = &mut self.memories[worker].borrow_mut();
        memory.attribution.take_told().is_empty()
    }

    /// That worker is gone, and another one in its place.
    pub fn replace(&self, worker: usize) {
        self.replaced.set(self.replaced.get() + 1);
        let random = 1000 + self.replaced.get();
        *self.memories[worker].borrow_mut() = WorkerState::open(&self.host, random);
    }
}
