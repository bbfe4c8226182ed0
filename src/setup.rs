//! What is wrong with how b3relay was set up in a pod, as far as it can notice: the two
//! filters of a pod that are configured differently, one that is missing, client spans
//! that overwrite what it writes, client spans that are asked for in vain. Each is said once
//! in a pod, with the remedy.

use crate::b3::SpanId;
use crate::bytes::read_u64;
use crate::config::{Config, Direction};
use crate::headers::{TraceHeaders, Wanted};
use crate::relay::Injection;
use crate::rules::{Formats, check};
use crate::store::{IF_MISSING, PREFIX, SharedData};

/// How often the other side's configuration is compared, in milliseconds.
const EVERY_MS: u64 = 10_000;
/// After a side was configured otherwise, nothing is compared for so long: the other side
/// follows, and Envoy keeps the filters of before until their connections are drained.
const PATIENCE_MS: u64 = 120_000;
/// After so many comparisons in which a filter of the same side had later settings, both are
/// there to stay: a quarter of an hour, longer than Envoy drains.
const SUPERSEDED: u32 = 90;
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

impl Problem {
    /// Something that no key is to blame for.
    #[inline(never)]
    fn of_the_pod(text: &str) -> Self {
        Self {
            key: None,
            text: text.to_string(),
        }
    }
}

/// What one plugin on one worker knows of the pod's setup.
#[derive(Debug, Default)]
pub struct Setup {
    direction: Option<Direction>,
    is_announced: bool,
    /// The first tick.
    began_ms: u64,
    compared_ms: u64,
    /// So often a later filter of this side has been found with other settings.
    superseded: u32,
    calls: u32,
    copied: u32,
}

/// What a call was given, to be looked at again when it is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected {
    span: SpanId,
    formats: Formats,
    keeps_b3: bool,
}

impl Expected {
    /// Of what a call was told to say. `keeps_b3`: beside that it has B3 of its own, with
    /// another span.
    pub fn of(injection: &Injection, keeps_b3: bool) -> Option<Self> {
        Some(Self {
            span: injection.b3.ids?.span,
            formats: injection.formats,
            keeps_b3,
        })
    }

    /// Another span stands in the headers of the call now: Envoy's own tracer has
    /// written its context, which the router does after the filters.
    pub fn is_overwritten<'a>(self, pairs: impl IntoIterator<Item = (&'a [u8], &'a [u8])>) -> bool {
        let headers = TraceHeaders::read(pairs, &Wanted::default());
        let checked = check(&headers);
        let b3 = checked.b3.ids.map(|ids| ids.span);
        let b3 = b3.filter(|_| !self.keeps_b3);
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
        if self.began_ms == 0 {
            self.began_ms = now_ms;
        }
        let Some(direction) = self.direction.or(config.direction) else {
            return Vec::new();
        };
        if now_ms.abs_diff(self.compared_ms) < EVERY_MS {
            return Vec::new();
        }
        self.compared_ms = now_ms;
        // The other filter of a pod begins at about the same time: it has told by the next time.
        let is_first = !std::mem::replace(&mut self.is_announced, true);
        let settings = config.shared_settings();
        let Some(ours) = self.announce(data, direction, &settings, now_ms) else {
            return Vec::new();
        };
        let other = match direction {
            Direction::Inbound => Direction::Outbound,
            Direction::Outbound => Direction::Inbound,
        };
        let theirs = Announced::read(data, other);
        let is_alone = theirs.is_none() && !is_first;
        let is_settled =
            |theirs: &Announced| now_ms.abs_diff(ours.since_ms.max(theirs.since_ms)) >= PATIENCE_MS;
        let theirs = theirs.filter(|theirs| theirs.is_recent(now_ms) && is_settled(theirs));
        let theirs = theirs.map(|theirs| theirs.settings).unwrap_or_default();
        let mut problems = differences(&settings, &theirs, direction);
        if is_alone && direction == Direction::Outbound && self.calls >= CALLS {
            let text = "calls go out of this pod, but no request has come through an inbound filter: if \
                        this pod serves requests, its sidecar lacks the inbound half (an upstream \
                        HTTP filter; see envoyfilter/README.md)";
            problems.push(Problem::of_the_pod(text));
        }
        if direction == Direction::Outbound && !config.relay && config.spans.is_some() {
            let text = "`spans` is set, but no client span is reported: `relay` is false; right: `relay` true";
            problems.push(Problem::of_the_pod(text));
        }
        problems.retain(|problem| is_new(data, &problem.text));
        problems
    }

    /// Says how this side is configured. `None` if a filter that was configured later, and
    /// otherwise, has said so: this one is about to go.
    fn announce(
        &mut self,
        data: &impl SharedData,
        direction: Direction,
        settings: &[(&'static str, String)],
        now_ms: u64,
    ) -> Option<Announced> {
        let mut text = String::new();
        for (key, value) in settings {
            for part in [*key, "\t", value, "\n"] {
                text.push_str(part);
            }
        }
        let mut own = Announced {
            began_ms: self.began_ms,
            since_ms: 0,
            at_ms: now_ms,
            settings: text.into_bytes(),
        };
        if let Some(before) = Announced::read(data, direction) {
            let is_same = before.settings == own.settings;
            let is_recent = before.is_recent(now_ms);
            if !is_same && before.began_ms >= own.began_ms && is_recent {
                // One that stays for longer than Envoy drains is no predecessor.
                let is_past = self.superseded >= SUPERSEDED;
                self.superseded = self.superseded.saturating_add(1);
                return is_past.then_some(own);
            }
            if is_same && is_recent {
                own.began_ms = own.began_ms.max(before.began_ms);
            }
            own.since_ms = if is_same { before.since_ms } else { now_ms };
        }
        own.write(data, direction);
        Some(own)
    }
}

/// What a side of a pod says of itself: three times in milliseconds since the epoch (u64,
/// little-endian), and a line for each setting, with a tab between key and value.
struct Announced {
    /// When the filter began.
    began_ms: u64,
    /// When it came to these settings; 0 if there were no others in this pod.
    since_ms: u64,
    /// When it said so.
    at_ms: u64,
    settings: Vec<u8>,
}

impl Announced {
    #[inline(never)]
    fn read(data: &impl SharedData, direction: Direction) -> Option<Self> {
        let (value, _) = data.get(&place(direction))?;
        let mut rest = value.as_slice();
        Some(Self {
            began_ms: read_u64(&mut rest)?,
            since_ms: read_u64(&mut rest)?,
            at_ms: read_u64(&mut rest)?,
            settings: rest.to_vec(),
        })
    }

    fn write(&self, data: &impl SharedData, direction: Direction) {
        let mut value = Vec::with_capacity(24 + self.settings.len());
        for time in [self.began_ms, self.since_ms, self.at_ms] {
            value.extend_from_slice(&time.to_le_bytes());
        }
        value.extend_from_slice(&self.settings);
        let _ = data.set(&place(direction), &value, 0);
    }

    /// There is a filter that says so still.
    fn is_recent(&self, now_ms: u64) -> bool {
        now_ms.abs_diff(self.at_ms) < 3 * EVERY_MS
    }
}

/// Keys that the filters of a pod hold differently. `direction`: of the filter with the
/// settings `ours`.
fn differences(
    ours: &[(&'static str, String)],
    theirs: &[u8],
    direction: Direction,
) -> Vec<Problem> {
    let mut problems = Vec::new();
    for line in str::from_utf8(theirs).unwrap_or_default().lines() {
        let Some((key, theirs)) = line.split_once('\t') else {
            continue;
        };
        let Some((key, ours)) = ours.iter().find(|(known, _)| *known == key) else {
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
    problems
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
    let problem = Problem::of_the_pod(text);
    (labels == Labels::Missing && is_new(data, &problem.text)).then_some(problem)
}

/// Envoy's own client spans are on.
pub fn overwritten(data: &impl SharedData) -> Option<Problem> {
    let text = "the context that was copied onto a call was overwritten by Envoy's own tracing of outbound \
                calls; right: no client spans, by a Telemetry with `match: {mode: CLIENT}` and \
                `disableSpanReporting: true` (envoyfilter/no-client-spans)";
    let problem = Problem::of_the_pod(text);
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
