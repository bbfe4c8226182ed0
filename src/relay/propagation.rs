//! The rules of propagation (`P`): a call beside the request that it was made for.

use super::plan::OwnTrace;
use super::stored::StoredContext;
use super::tracer::W3cState;
use crate::b3::{Ids, SpanId};
use crate::config::OwnSpans;
use crate::headers::{self, Field, TraceHeaders};
use crate::rules::{Extracted, Finding, Rule};
use crate::w3c::TraceParent;

/// The rules about propagation that a call breaks, compared with the request that it was
/// made for. `spans`: the server spans of all requests that the call may belong to.
pub fn propagation<'a>(
    headers: &TraceHeaders<'a>,
    checked: &Extracted<'a>,
    stored: &StoredContext,
    own_spans: OwnSpans,
    spans: Option<&[SpanId]>,
) -> Vec<Finding<'a>> {
    let found = |rule, (header, field): (&'static str, Field<'a>)| {
        let value = field.value().unwrap_or_default();
        Finding {
            rule,
            header,
            value,
        }
    };
    // What was read, if there are two.
    let b3 =
        |multi: (&'static str, Field<'a>)| match checked.formats.single && !checked.stale.single {
            true => (headers::B3, headers.b3),
            false => multi,
        };
    let traceparent = (headers::TRACEPARENT, headers.traceparent);
    let trace_id = (headers::TRACE_ID, headers.trace_id);
    let mut findings = Vec::new();
    let Some(inbound) = stored.b3.ids else {
        return findings;
    };
    let changed = |now: Option<bool>| {
        let then = stored.b3.sampling.decided();
        now.is_some() && then.is_some() && now != then
    };
    let is_known = !stored.is_uncertain;
    // Where the tracers write W3C, B3 of another trace is the client's, carried on.
    let has_w3c = |w3c: TraceParent| w3c.trace.same(inbound.trace);
    let is_w3c = stored.w3c_state == W3cState::Current && checked.w3c.is_some_and(has_w3c);
    let is_clients = |ids: &Ids| is_w3c && !ids.trace.same(inbound.trace);
    if checked.b3.ids.as_ref().is_some_and(is_clients) {
        return findings;
    }
    if let Some(ids) = checked.b3.ids.filter(|_| is_known) {
        if !ids.trace.same(inbound.trace) {
            findings.push(found(Rule::P02, b3(trace_id)));
            return findings;
        }
        if changed(checked.b3.sampling.decided()) {
            findings.push(found(Rule::P03, b3((headers::SAMPLED, headers.sampled))));
        }
        let named = |span: &SpanId| *span == ids.span || Some(*span) == ids.parent;
        if spans.is_some_and(|spans| !spans.iter().any(named)) {
            findings.push(found(Rule::P04, b3((headers::SPAN_ID, headers.span_id))));
        }
        return findings;
    }
    if !is_known && (checked.b3.ids.is_some() || checked.w3c.is_some()) {
        return findings;
    }
    let finding = match OwnTrace::of(checked, stored, own_spans) {
        OwnTrace::Own if changed(checked.w3c.map(|w3c| w3c.sampled)) => {
            Some(found(Rule::P03, traceparent))
        }
        OwnTrace::Another => Some(found(Rule::P02, traceparent)),
        _ if checked.w3c.is_some_and(|w3c| w3c.trace.same(inbound.trace)) => None,
        _ => Some(found(Rule::P01, b3(trace_id))),
    };
    findings.extend(finding);
    findings
}
