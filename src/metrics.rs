//! The table of metrics.
//!
//! All are counters. Labels are written into Envoy's stat name in the form
//! that Istio's bootstrap takes apart again (`tag=.=value;.;`, for the tags
//! listed as `extraStatTags`), directly after the prefix: without such a rule
//! the name still begins with `b3relay_` and can be read.

use crate::config::Direction;
use crate::relay::Decision;
use crate::rules::Rule;

/// Every name begins with this.
pub const PREFIX: &str = "b3relay_";

/// A metric: what it is called, its labels, and what it counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Family {
    /// The name after [`PREFIX`].
    pub name: &'static str,
    /// Its labels.
    pub labels: &'static [&'static str],
    /// What it counts.
    pub help: &'static str,
}

macro_rules! families {
    ($($id:ident, $name:literal, [$($label:literal),*], $help:literal;)*) => {
        $(const $id: Family = Family { name: $name, labels: &[$($label),*], help: $help };)*

        /// Every metric.
        pub const FAMILIES: &[Family] = &[$($id),*];
    };
}

families! {
    REQUESTS, "requests_total", ["direction"],
        "Requests seen. `direction` is `unknown` where neither the listener nor the configuration says.";
    FINDINGS, "findings_total", ["rule", "direction"],
        "Broken rules.";
    CALLS, "calls_total", ["decision"],
        "Outbound calls, by what was done with them.";
    REMEMBERED, "remembered_total", [],
        "Inbound requests whose context was remembered.";
    REQUEST_IDS, "request_ids_generated_total", [],
        "Inbound requests that were given a request ID.";
    RESTORED, "request_ids_restored_total", [],
        "Outbound calls that got the request ID of their inbound request back, where Envoy had made up a new one.";
    EVICTED, "evicted_total", [],
        "Requests still being served that were forgotten for lack of room: raise `capacity`.";
    NOT_REMEMBERED, "not_remembered_total", ["reason"],
        "Inbound requests that could not be remembered: `no_key` (none of `keys`, or a value of more than 255 bytes) or `store` (Envoy's shared data could not be written, or the request was too large for it); and requests whose end could not be written, as `store`.";
    COPY_DROPPED, "copy_headers_dropped_total", [],
        "Headers of the copy list that were not remembered: more than 8 KiB in one request; and requests still being served whose copied headers were forgotten for lack of room: raise `capacity`.";
    REPAIRED, "repaired_total", ["direction"],
        "Requests whose B3 headers were rewritten (mode `repair`).";
    REJECTED, "rejected_total", ["direction"],
        "Requests that were answered instead of forwarded (mode `enforce`).";
    NO_ROOM, "no_room_total", ["direction"],
        "Requests that were not changed as configured (`emit`, mode `repair`, a request ID), since the next proxy would refuse them for their size. Calls that get no context for that reason are `too_large`.";
    UNTRUSTED, "untrusted_total", ["action"],
        "Requests that brought a trace context which was not used (`incoming_context`): `ignored` or `dropped`.";
    OVERWRITTEN, "overwritten_total", [],
        "Copied contexts that Envoy's own tracing of outbound calls overwrote. Only a sample of the calls is checked: the first 16, then one in 256. A number above 0 means that client spans are on, and the traces in pieces.";
    MISCONFIGURED, "misconfigured_total", ["key"],
        "Configuration keys that the two filters of a pod hold differently, each once.";
    DOUBT, "attribution_doubt_millionths_total", [],
        "The probability that the context copied by `token` or `inferred` is a wrong one, summed up in millionths: divided by a million, how many of those calls the filter itself expects to be wrong.";
    LOOKED_BACK, "looked_back_total", [],
        "Calls that were left alone (`unsure`), and turned out later to belong to a request that had just ended (`look_back`).";
    SPANS_SENT, "spans_sent_total", [],
        "Client spans of calls that the collector has taken (`spans`).";
    SPANS_DROPPED, "spans_dropped_total", [],
        "Client spans that were not recorded, since too many waited to be reported or the collector did not answer, or Envoy does not tell how calls end. Nearly all of them never began: their calls got the span of the application, and the trace is whole without them.";
    SPANS_LOST, "spans_lost_total", [],
        "Client spans that were reported and not taken: the collector's cluster is missing or down, or it answered with an error, or not at all; or that still waited when `spans` was changed. The spans of the callees name them as their parents.";
    HOST_ERRORS, "host_errors_total", [],
        "Calls of the filter to Envoy that failed, where the filter could not read or change headers; the request went on without that. Failures of shared data are counted as `store`.";
}

/// Something to count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// A request, by direction.
    Requests(Option<Direction>),
    /// A broken rule.
    Findings(Rule, Option<Direction>),
    /// An outbound call.
    Calls(Decision),
    /// An inbound request that was remembered.
    Remembered,
    /// A request ID that was generated.
    RequestIds,
    /// A request that was forgotten too early.
    Evicted,
    /// A call that got its request ID back.
    Restored,
    /// An inbound request without a usable key.
    NoKey,
    /// An inbound request that could not be stored, or ended.
    NotStored,
    /// A header that was not remembered.
    CopyDropped,
    /// A request that was repaired.
    Repaired(Option<Direction>),
    /// A request that was answered.
    Rejected(Option<Direction>),
    /// A request that had no room for a change.
    NoRoom(Option<Direction>),
    /// A request whose trace context was passed on unread.
    Ignored,
    /// A request whose trace context was removed.
    Dropped,
    /// A call whose context was overwritten.
    Overwritten,
    /// A configuration key that the two sides hold differently.
    Misconfigured(&'static str),
    /// What was missing to certainty, in millionths.
    Doubt(u32),
    /// A call that was left alone, and whose request is known now.
    LookedBack,
    /// So many spans that the collector has taken.
    SpansSent(u32),
    /// So many that were not recorded.
    SpansDropped(u32),
    /// So many that were reported in vain.
    SpansLost(u32),
    /// A host call that failed.
    HostErrors,
}

/// How [`Counter`] calls a direction.
pub fn direction_label(direction: Option<Direction>) -> &'static str {
    direction.map_or("unknown", Direction::label)
}

impl Counter {
    /// The metric that it belongs to.
    pub fn family(self) -> Family {
        match self {
            Self::Requests(_) => REQUESTS,
            Self::Findings(..) => FINDINGS,
            Self::Calls(_) => CALLS,
            Self::Remembered => REMEMBERED,
            Self::RequestIds => REQUEST_IDS,
            Self::Evicted => EVICTED,
            Self::Restored => RESTORED,
            Self::NoKey | Self::NotStored => NOT_REMEMBERED,
            Self::CopyDropped => COPY_DROPPED,
            Self::Repaired(_) => REPAIRED,
            Self::Rejected(_) => REJECTED,
            Self::NoRoom(_) => NO_ROOM,
            Self::Ignored | Self::Dropped => UNTRUSTED,
            Self::Overwritten => OVERWRITTEN,
            Self::Misconfigured(_) => MISCONFIGURED,
            Self::Doubt(_) => DOUBT,
            Self::LookedBack => LOOKED_BACK,
            Self::SpansSent(_) => SPANS_SENT,
            Self::SpansDropped(_) => SPANS_DROPPED,
            Self::SpansLost(_) => SPANS_LOST,
            Self::HostErrors => HOST_ERRORS,
        }
    }

    /// The values of the family's labels, in their order.
    pub fn values(self) -> Vec<&'static str> {
        let value = match self {
            Self::Requests(direction)
            | Self::Repaired(direction)
            | Self::Rejected(direction)
            | Self::NoRoom(direction) => direction_label(direction),
            Self::Findings(rule, direction) => return vec![rule.id(), direction_label(direction)],
            Self::Calls(decision) => decision.label(),
            Self::Misconfigured(key) => key,
            Self::Ignored => "ignored",
            Self::Dropped => "dropped",
            Self::NoKey => "no_key",
            Self::NotStored => "store",
            Self::Remembered
            | Self::RequestIds
            | Self::Restored
            | Self::Evicted
            | Self::CopyDropped
            | Self::Overwritten
            | Self::Doubt(_)
            | Self::LookedBack
            | Self::SpansSent(_)
            | Self::SpansDropped(_)
            | Self::SpansLost(_)
            | Self::HostErrors => return Vec::new(),
        };
        vec![value]
    }

    /// The same for every amount.
    pub fn without_amount(self) -> Self {
        match self {
            Self::Doubt(_) => Self::Doubt(0),
            Self::SpansSent(_) => Self::SpansSent(0),
            Self::SpansDropped(_) => Self::SpansDropped(0),
            Self::SpansLost(_) => Self::SpansLost(0),
            other => other,
        }
    }

    /// By how much it is raised. Envoy refuses 0.
    pub fn amount(self) -> u32 {
        match self {
            Self::Doubt(amount)
            | Self::SpansSent(amount)
            | Self::SpansDropped(amount)
            | Self::SpansLost(amount) => amount,
            _ => 1,
        }
    }

    /// The name that is defined in Envoy, for example
    /// `b3relay_decision=.=copied;.;calls_total`.
    pub fn stat_name(self) -> String {
        let family = self.family();
        let mut name = PREFIX.to_string();
        for (label, value) in family.labels.iter().zip(self.values()) {
            name.push_str(label);
            name.push_str("=.=");
            name.push_str(value);
            name.push_str(";.;");
        }
        name.push_str(family.name);
        name
    }
}

/// What a counter is raised by between two ticks. To raise a counter is a host call, so one
/// that is raised often is raised with the tick, by the sum; one that is not, at once, so that
/// the counters of a quiet sidecar are exact.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    /// How often something was added since the last tick.
    added: u32,
    /// That was often before the last tick.
    is_busy: bool,
    pending: u64,
}

impl Sum {
    /// So often is often.
    const OFTEN: u32 = 16;

    /// Adds an amount. Returns by how much the counter is to be raised now.
    pub fn add(&mut self, amount: u32) -> Option<u64> {
        self.added = self.added.saturating_add(1);
        if !self.is_busy && self.added <= Self::OFTEN {
            return Some(amount.into());
        }
        self.pending = self.pending.saturating_add(amount.into());
        None
    }

    /// To be called with each tick, and in the end. Returns by how much the counter is to
    /// be raised.
    pub fn take(&mut self) -> Option<u64> {
        let Self { added, pending, .. } = *self;
        *self = Self {
            is_busy: added >= Self::OFTEN,
            ..Self::default()
        };
        (pending > 0).then_some(pending)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_lost_and_what_is_rare_is_counted_at_once() {
        let mut sum = Sum::default();
        for _ in 0..3 {
            for _ in 0..Sum::OFTEN - 1 {
                assert_eq!(sum.add(3), Some(3));
            }
            assert_eq!(sum.take(), None);
        }
        for _ in 0..Sum::OFTEN {
            assert_eq!(sum.add(3), Some(3));
        }
        assert_eq!([sum.add(1), sum.add(5)], [None, None]);
        assert_eq!(sum.take(), Some(6));
        // From now on nothing is counted at once, until it is rare again.
        for _ in 0..2 {
            for _ in 0..Sum::OFTEN {
                assert_eq!(sum.add(2), None);
            }
            assert_eq!(sum.take(), Some(32));
        }
        assert_eq!((sum.add(1), sum.take()), (None, Some(1)));
        assert_eq!((sum.add(1), sum.take()), (Some(1), None));
    }

    #[test]
    fn an_event_counts_once_or_for_its_amount() {
        assert_eq!(Counter::Remembered.amount(), 1);
        let by = [
            Counter::Doubt,
            Counter::SpansSent,
            Counter::SpansDropped,
            Counter::SpansLost,
        ];
        assert_eq!(by.map(|counter| counter(7).amount()), [7; 4]);
    }

    #[test]
    fn stat_names_carry_their_labels() {
        let counter = Counter::Findings(Rule::L01, Some(Direction::Inbound));
        assert_eq!(
            counter.stat_name(),
            "b3relay_rule=.=L01;.;direction=.=inbound;.;findings_total"
        );
        assert_eq!(Counter::Evicted.stat_name(), "b3relay_evicted_total");
    }

    #[test]
    fn every_counter_fills_its_labels() {
        let counters = [
            Counter::Requests(None),
            Counter::Findings(Rule::L01, None),
            Counter::Calls(Decision::Copied),
            Counter::Remembered,
            Counter::RequestIds,
            Counter::Evicted,
            Counter::NoKey,
            Counter::NotStored,
            Counter::Restored,
            Counter::CopyDropped,
            Counter::Repaired(None),
            Counter::Rejected(None),
            Counter::NoRoom(None),
            Counter::Ignored,
            Counter::Dropped,
            Counter::Overwritten,
            Counter::Misconfigured("keys"),
            Counter::Doubt(0),
            Counter::LookedBack,
            Counter::SpansSent(0),
            Counter::SpansDropped(0),
            Counter::SpansLost(0),
            Counter::HostErrors,
        ];
        for counter in counters {
            assert_eq!(
                counter.values().len(),
                counter.family().labels.len(),
                "{counter:?}"
            );
        }
        for family in FAMILIES {
            assert!(
                counters.iter().any(|counter| counter.family() == *family),
                "{family:?}"
            );
        }
    }
}
