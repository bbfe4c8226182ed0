//! What is wrong with how b3relay was set up in a pod, as far as it can notice: the two
//! filters of a pod that are configured differently, one that is missing, client spans
//! that overwrite what it writes. Each is said once in a pod, with the remedy.

use crate::b3::SpanId;
use crate::config::{Config, Direction};
use crate::headers::{TraceHeaders, Wanted};
use crate::relay::Injection;
use crate::rules::{Formats, check};
use crate::store::{IF_MISSING, PREFIX, SharedData};

/// How often the other side's configuration is compared, in milliseconds.
const EVERY_MS: u64 = 10_000;
/// Calls after which a pod without an inbound filter is worth a line.
const CALLS: u32 = 100;
/// The first copied calls, so many, are checked again at their end, and then one in
/// [`SAMPLE`].
const FIRST: u32 = 16;
const SAMPLE: u32 = 256;

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The configuration key, if one is to blame.
    pub key: Option<&'static str>,
    /// What is wrong, and what would be right.
    pub text: String,
}

/// What one plugin on one worker knows of the pod's setup.
#[derive(Debug, Default)]
pub struct Setup {
    direction: Option<Direction>,
    is_announced: bool,
    compared_ms: u64,
    calls: u32,
    copied: u32,
}

/// What a call was given, to be looked at again when it is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected {
    span: SpanId,
    formats: Formats,
}

impl Expected {
    /// Of what a call was told to say.
    pub fn of(injection: &Injection) -> Option<Self> {
        Some(Self {
            span: injection.b3.ids?.span,
            formats: injection.formats,
        })
    }

    /// Another span stands in the headers of the call now: Envoy's own tracer has
    /// written its context, which the router does after the filters.
    pub fn is_overwritten<'a>(self, pairs: impl IntoIterator<Item = (&'a [u8], &'a [u8])>) -> bool {
        let headers = TraceHeaders::read(pairs, &Wanted::default());
        let checked = check(&headers);
        let b3 = checked.b3.ids.map(|ids| ids.span);
        let w3c = checked.w3c.map(|w3c| w3c.span);
        let w3c = w3c.filter(|_| self.formats.w3c);
        b3.is_some_and(|span| span != self.span) || w3c.is_some_and(|span| span != self.span)
    }
}

impl Setup {
    /// A request of this direction has come.
    pub fn request(&mut self, direction: Option<Direction>) {
        if direction.is_some() {
            self.direction = direction;
        }
        if direction == Some(Direction::Outbound) {
            self.calls = self.calls.saturating_add(1);
        }
    }

    /// A context was copied onto a call: is the call to be looked at again when it is
    /// over?
    pub fn samples(&mut self) -> bool {
        self.copied = self.copied.wrapping_add(1);
        self.copied <= FIRST || self.copied.is_multiple_of(SAMPLE)
    }

    /// To be called every second or so: what has been noticed, and was not said before
    /// in this pod.
    pub fn tick(&mut self, data: &impl SharedData, config: &Config, now_ms: u64) -> Vec<Problem> {
        let Some(direction) = self.direction.or(config.direction) else {
            return Vec::new();
        };
        if now_ms.abs_diff(self.compared_ms) < EVERY_MS {
            return Vec::new();
        }
        self.compared_ms = now_ms;
        let mut problems = Vec::new();
        let own = config.shared_settings();
        // The other filter of a pod begins at about the same time: it has told by the next time.
        let is_first = !self.is_announced;
        if is_first {
            let text: String = own
                .iter()
                .map(|(key, value)| format!("{key}\t{value}\n"))
                .collect();
            self.is_announced = data.set(&place(direction), text.as_bytes(), 0).is_ok();
        }
        let other = match direction {
            Direction::Inbound => Direction::Outbound,
            Direction::Outbound => Direction::Inbound,
        };
        let found = data.get(&place(other)).map(|(text, _)| text);
        let is_alone = found.is_none() && !is_first;
        let found = found.and_then(|text| String::from_utf8(text).ok());
        for line in found.unwrap_or_default().lines() {
            let Some((key, theirs)) = line.split_once('\t') else {
                continue;
            };
            let Some((key, ours)) = own.iter().find(|(known, _)| *known == key) else {
                continue;
            };
            if ours == theirs {
                continue;
            }
            let (inbound, outbound) = match direction {
                Direction::Inbound => (ours.as_str(), theirs),
                Direction::Outbound => (theirs, ours.as_str()),
            };
            let text = format!(
                "the filters of this pod are configured differently: `{key}` is {inbound} inbound \
                 and {outbound} outbound; right: the same on both sides"
            );
            problems.push(Problem {
                key: Some(key),
                text,
            });
        }
        if is_alone && direction == Direction::Outbound && self.calls >= CALLS {
            let text = "calls go out of this pod, but there is no inbound filter of b3relay: if \
                        this pod serves requests, its sidecar lacks the inbound half (an upstream HTTP \
                        filter; see envoyfilter/README.md)";
            problems.push(Problem {
                key: None,
                text: text.to_string(),
            });
        }
        problems.retain(|problem| is_new(data, &problem.text));
        problems
    }
}

/// What Istio was told of the labels of metrics (`extraStatTags`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Labels {
    /// This is no sidecar of Istio.
    NotIstio,
    /// Nothing.
    Missing,
    /// Some labels.
    Given,
}

/// The metrics of this pod have their labels in their names.
pub fn without_labels(data: &impl SharedData, labels: Labels) -> Option<Problem> {
    let text = "metrics: Istio is not told to take the labels apart, so they are part of the names; right: \
                `proxy.istio.io/config: '{\"extraStatTags\": [\"action\", \"decision\", \"direction\", \"key\", \
                \"reason\", \"rule\"]}'` as an annotation of the pod (docs/metrics.md)";
    let problem = Problem {
        key: None,
        text: text.to_string(),
    };
    (labels == Labels::Missing && is_new(data, &problem.text)).then_some(problem)
}

/// Envoy's own client spans are on.
pub fn overwritten(data: &impl SharedData) -> Option<Problem> {
    let text = "the context that was copied onto a call was overwritten by Envoy's own tracing of outbound \
                calls; right: no client spans, by a Telemetry with `match: {mode: CLIENT}` and \
                `disableSpanReporting: true` (envoyfilter/no-client-spans)";
    let problem = Problem {
        key: None,
        text: text.to_string(),
    };
    is_new(data, &problem.text).then_some(problem)
}

/// Where a side says how it is configured.
fn place(direction: Direction) -> Vec<u8> {
    [PREFIX, b"config/", direction.label().as_bytes()].concat()
}

/// Nobody has said so in this pod.
fn is_new(data: &impl SharedData, text: &str) -> bool {
    let hash = crate::bytes::fnv1a(0, text.as_bytes());
    let key = [PREFIX, b"said/", &hash.to_le_bytes()].concat();
    data.set(&key, &[], IF_MISSING).is_ok()
}
