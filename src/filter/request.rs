//! Steps 1 and 2: the headers of a request, read and checked.

use super::worker::WorkerState;
use crate::b3::{B3, TraceId};
use crate::bytes;
use crate::config::{Config, Direction, Incoming, KeyOf, Mode};
use crate::headers::{self, Edit, Field, TraceHeaders};
use crate::metrics::Counter;
use crate::relay::{self, Tracer, W3cState};
use crate::request_id;
use crate::rules::{Extracted, Finding, Formats, Severity, check};
use crate::store::key::{self, Key};
use std::borrow::Cow;

/// A request, read and checked.
pub(super) struct Request<'a> {
    pub headers: TraceHeaders<'a>,
    /// Without its findings.
    pub extracted: Extracted<'a>,
    /// The rules that it breaks by itself.
    pub findings: Vec<Finding<'a>>,
    /// As the application or the callee will see it.
    pub request_id: Cow<'a, [u8]>,
    /// Of an inbound request: its context, and what its `traceparent` is beside it.
    pub context: (B3, W3cState),
    /// Its context breaks rules that implementations read differently.
    pub is_odd: bool,
    /// What became of a trace context that is not trusted.
    pub untrusted: Option<Counter>,
    /// What is changed for that, whatever else is written.
    pub distrust: Vec<Edit>,
}

impl<'a> Request<'a> {
    /// Reads and checks the headers. A trace context that is not trusted is not even
    /// looked at, so that nothing of it can be stored, copied or taken for a key.
    pub fn read(
        config: &Config,
        direction: Option<Direction>,
        pairs: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
    ) -> Self {
        // What the application sends is its own.
        let incoming = match direction {
            Some(Direction::Outbound) => Incoming::Trust,
            _ => config.incoming,
        };
        let mut distrusted: Vec<(&[u8], &[u8])> = Vec::new();
        let pairs = pairs.into_iter().filter(|pair| {
            let is_trusted = incoming == Incoming::Trust || !headers::is_context(pair.0);
            if !is_trusted {
                distrusted.push(*pair);
            }
            is_trusted
        });
        let mut headers = TraceHeaders::read(pairs, &config.wanted);
        let mut extracted = check(&headers);
        let findings = std::mem::take(&mut extracted.findings);
        let mut request_id = Cow::Borrowed(request_id::one(
            headers.request_id.value().unwrap_or_default(),
        ));
        if config.mode == Mode::Repair
            && let Some(first) = first_of(headers.request_id)
        {
            request_id = Cow::Borrowed(first);
        }
        let mut distrust = Vec::new();
        let untrusted = distrusted.first().map(|_| match incoming {
            Incoming::Drop => Counter::Dropped,
            _ => Counter::Ignored,
        });
        match incoming {
            Incoming::Trust => {}
            Incoming::Ignore => headers.all.extend(&distrusted),
            Incoming::Drop => {
                distrust = removed(distrusted.iter().map(|(name, _)| *name));
                // The ID says, too, whether Envoy is to trace.
                if let Some(id) = request_id::undecided(&request_id) {
                    distrust.push(Edit::set(headers::REQUEST_ID, id.as_slice()));
                    request_id = Cow::Owned(id);
                }
            }
        }
        let is_odd = findings.iter().any(is_read_differently);
        Self {
            headers,
            extracted,
            findings,
            request_id,
            context: (B3::default(), W3cState::Absent),
            is_odd,
            untrusted,
            distrust,
        }
    }

    /// It opens a tunnel (HBONE, from a pod in ambient mode): the requests come through it. It
    /// is none that the application serves, and no tracer has written its headers.
    pub fn is_tunnel(&self) -> bool {
        self.headers.method.is(b"CONNECT")
    }

    /// Reads the newer one of two formats that are at odds, and notes which of them the
    /// sidecar's tracer writes.
    pub fn read_newest(&mut self, worker: &mut WorkerState, is_before_router: bool) {
        if self.is_tunnel() {
            return;
        }
        let extracted = &mut self.extracted;
        let shown = Tracer::shown(&self.headers, extracted);
        let has_b3 = extracted.b3.ids.is_some();
        worker.tracer.note(shown, has_b3, is_before_router);
        self.context = relay::newest(extracted, worker.tracer.known());
        let (b3, w3c_state) = self.context;
        if extracted.b3.is_empty() {
            return;
        }
        if w3c_state == W3cState::Current && extracted.b3.ids != b3.ids {
            extracted.stale.multi = extracted.formats.multi;
            extracted.stale.single = extracted.formats.single;
        }
        extracted.b3 = b3;
        extracted.formats.w3c |= w3c_state == W3cState::Current;
    }

    /// The one of several request IDs that mode `repair` keeps; `None` if there is one.
    pub fn first_request_id(&self) -> Option<&[u8]> {
        first_of(self.headers.request_id).map(|_| &*self.request_id)
    }

    /// The keys that the request can be looked up by, best first. `emitted`: the
    /// formats that it is given.
    pub fn keys(&self, config: &Config, emitted: Formats) -> Vec<Key> {
        let Self {
            headers, extracted, ..
        } = self;
        let mut keys: Vec<Key> = Vec::with_capacity(config.keys.len());
        let b3 = extracted.b3.ids.map(|ids| ids.trace);
        for key in &config.keys {
            let key = match *key {
                KeyOf::RequestId => Key::request_id(&self.request_id),
                KeyOf::TraceParent => {
                    let made = b3.filter(|_| emitted.w3c);
                    let given = extracted.w3c.map(|w3c| w3c.trace);
                    given.or(made).map(Key::trace)
                }
                KeyOf::B3 => {
                    let part = extracted.fragments.and_then(|fragments| fragments.trace);
                    b3.or(part).map(Key::trace)
                }
                KeyOf::Header(index) => {
                    let value = headers.keys.iter().find(|(named, _)| *named == index);
                    let name = config.wanted.keys.get(index);
                    name.zip(value)
                        .and_then(|(name, (_, value))| Key::header(name, value))
                }
            };
            keys.extend(key.filter(|key| !keys.contains(key)));
        }
        keys
    }

    /// Further keys of an inbound request with these, if it has several values where one is
    /// expected, or several contexts: the application may carry on the first one, the last
    /// one, or another context than b3relay takes for the request's.
    pub fn further_keys(&self, config: &Config, keys: &[Key]) -> Vec<Key> {
        let headers = &self.headers;
        let mut further: Vec<Key> = Vec::new();
        let has_list = bytes::contains(headers.request_id.value().unwrap_or_default(), b',');
        let has_both = headers.trace_id.value().is_some() && headers.b3.value().is_some();
        let has_several = has_list || has_both || headers.keys.len() > 1;
        // Nearly all requests have one of each.
        if !has_several && self.context.1 != W3cState::Current {
            return further;
        }
        for key in &config.keys {
            let found = match *key {
                KeyOf::RequestId => {
                    // A longer one is no key.
                    let given = headers.request_id.value().unwrap_or_default();
                    let (head, tail) = (given.first_chunk(), given.last_chunk());
                    let head: &[u8] = head.map_or(given, <[u8; LOOKED_AT]>::as_slice);
                    let tail: &[u8] = tail.map_or(given, <[u8; LOOKED_AT]>::as_slice);
                    let ids = [head.split(is_comma).next(), tail.rsplit(is_comma).next()];
                    ids.map(|id| Key::request_id(id?.trim_ascii()))
                }
                KeyOf::TraceParent => [None, None],
                KeyOf::B3 => {
                    let traces = [headers.trace_id.value(), headers.b3.value()];
                    traces.map(|text| {
                        let begin = text?.get(..DIGITS + 1).or(text)?;
                        let digits = begin.split(|&byte| byte == b'-').next()?;
                        Some(Key::trace(TraceId::read(digits).ok()?.id))
                    })
                }
                KeyOf::Header(index) => {
                    let mut values = headers.keys.iter().rev();
                    let value = values.find(|(named, _)| *named == index);
                    let name = config.wanted.keys.get(index).zip(value);
                    [
                        name.and_then(|(name, (_, value))| Key::header(name, value)),
                        None,
                    ]
                }
            };
            let found = found.into_iter().flatten();
            further.extend(found.filter(|found| !keys.contains(found)));
        }
        further
    }
}

/// Implementations read a context with this finding differently: it is more than info, and not
/// about the request ID.
fn is_read_differently(finding: &Finding<'_>) -> bool {
    let is_of_id = finding.header == headers::REQUEST_ID;
    finding.rule.severity() != Severity::Info && !is_of_id
}

/// Removes these headers, each once.
pub(super) fn removed<'a>(names: impl Iterator<Item = &'a [u8]>) -> Vec<Edit> {
    let mut edits: Vec<Edit> = Vec::new();
    for name in names.filter_map(|name| std::str::from_utf8(name).ok()) {
        if !edits.iter().any(|edit| edit.name() == name) {
            edits.push(Edit::remove(name.to_string()));
        }
    }
    edits
}

/// What is looked at of a very long request ID, from either end: what has no comma there
/// is longer than any key.
const LOOKED_AT: usize = key::LONGEST + 2;
/// Of the longest trace ID.
const DIGITS: usize = 32;

fn is_comma(byte: &u8) -> bool {
    *byte == b','
}

/// The first of several request IDs, which Envoy joins with commas; `None` if
/// there is just one.
fn first_of(request_id: Field<'_>) -> Option<&[u8]> {
    let given = request_id.value()?;
    // Of a very long one no more than its beginning is looked at.
    let looked_at = given.get(..512).unwrap_or(given);
    let first = match looked_at.iter().position(is_comma) {
        Some(at) => given.get(..at)?.trim_ascii(),
        None => given,
    };
    (!first.is_empty() && (request_id.repeated() || first.len() != given.len())).then_some(first)
}
