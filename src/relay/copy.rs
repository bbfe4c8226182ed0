//! Headers that a call gets as they were: those that are opaque, those of the copy list,
//! the request ID.

use super::stored::StoredContext;
use super::tracer::W3cState;
use crate::config::RestoreRequestId;
use crate::headers::{self, Edit, TraceHeaders};
use crate::request_id;

/// The headers that a call lacks: those of the copy list, and of the trace context those
/// that are copied verbatim. `writes_w3c`: it gets a `traceparent` of the request's trace,
/// also in place of its own if it `replaces` that.
pub(super) fn copied(
    headers: &TraceHeaders<'_>,
    stored: &StoredContext,
    writes_w3c: bool,
    replaces: bool,
) -> Vec<Edit> {
    let has_traceparent = headers.traceparent.value().is_some() && !(replaces && writes_w3c);
    let other = stored.w3c_state == W3cState::Other;
    let lacks = |name: &str| match name {
        // W3C's two belong together: a state is of the traceparent that it came with.
        headers::TRACEPARENT => !has_traceparent && !writes_w3c,
        headers::TRACESTATE => !has_traceparent && writes_w3c != other && !headers.has(name),
        _ => !headers.has(name),
    };
    let all = stored.opaque.iter().chain(&stored.copied);
    all.filter(|(name, _)| lacks(name))
        .map(|(name, value)| Edit::Add(name.clone().into(), value.clone()))
        .collect()
}

/// The request ID of the inbound request, where Envoy has made up a new one for
/// the call.
pub(super) fn restored(
    headers: &TraceHeaders<'_>,
    stored: &StoredContext,
    which: RestoreRequestId,
) -> Option<Edit> {
    let given = headers.request_id.value().unwrap_or_default();
    let known = &stored.request_id;
    let other = !known.is_empty() && !request_id::same(given, known);
    let gives_way = match which {
        RestoreRequestId::New => {
            given.is_empty() || (headers.has_new_request_id && request_id::is_envoys(given))
        }
        RestoreRequestId::AnyUuid => given.is_empty() || request_id::is_envoys(given),
        RestoreRequestId::Never => false,
    };
    (other && gives_way).then(|| headers.edit(headers::REQUEST_ID, known.as_slice()))
}
