//! Headers: their names, one pass over those of a request, and changes to them.
//!
//! Names arrive in lower case (Envoy lower-cases them on every protocol);
//! values are bytes, since HTTP/1.1 and Envoy allow `obs-text` in them.

mod edit;
mod map;
mod request;
mod select;

pub use edit::Edit;
pub use map::{Pairs, serialize};
pub use request::{Field, TraceHeaders};
pub use select::{HeaderPart, NamePattern, Wanted};

/// `x-request-id`: Envoy's request ID.
pub const REQUEST_ID: &str = "x-request-id";
/// `x-b3-traceid`: 16 or 32 lower-case hexadecimal characters.
pub const TRACE_ID: &str = "x-b3-traceid";
/// `x-b3-spanid`: 16 lower-case hexadecimal characters.
pub const SPAN_ID: &str = "x-b3-spanid";
/// `x-b3-parentspanid`: 16 lower-case hexadecimal characters; absent on a root.
pub const PARENT_SPAN_ID: &str = "x-b3-parentspanid";
/// `x-b3-sampled`: `1` or `0`; absent to defer the decision.
pub const SAMPLED: &str = "x-b3-sampled";
/// `x-b3-flags`: `1` for debug.
pub const FLAGS: &str = "x-b3-flags";
/// `b3`: the single header.
pub const B3: &str = "b3";
/// `traceparent`: W3C Trace Context.
pub const TRACEPARENT: &str = "traceparent";
/// `tracestate`: W3C Trace Context, beside `traceparent`.
pub const TRACESTATE: &str = "tracestate";
/// The host that a request is for; `host` in HTTP/1.1.
pub const AUTHORITY: &str = ":authority";
/// `x-ot-span-context`: opaque, copied verbatim.
pub const OT_SPAN_CONTEXT: &str = "x-ot-span-context";

/// A header that carries a trace context, or that asks an Envoy for a trace: what a
/// client outside can join traces with, or force them. Not the request ID, and not
/// what load balancers before the mesh write (`x-amzn-trace-id`,
/// `x-cloud-trace-context`).
pub fn is_context(name: &[u8]) -> bool {
    is_field_of_context(name) || is_of_other_tracers(name)
}

/// Those that have a field of their own in [`TraceHeaders`].
fn is_field_of_context(name: &[u8]) -> bool {
    // Not `matches!`, which is 1 KB of code. It is asked of headers that are not trusted alone.
    let names: [&[u8]; 9] = [
        b"x-b3-traceid",
        b"x-b3-spanid",
        b"x-b3-parentspanid",
        b"x-b3-sampled",
        b"x-b3-flags",
        b"b3",
        b"x-ot-span-context",
        b"traceparent",
        b"tracestate",
    ];
    names.contains(&name)
}

/// The others: gRPC's own form, the two that make Envoy trace, and those of Jaeger,
/// SkyWalking and Datadog.
fn is_of_other_tracers(name: &[u8]) -> bool {
    matches!(
        name,
        b"grpc-trace-bin"
            | b"x-client-trace-id"
            | b"x-envoy-force-trace"
            | b"uber-trace-id"
            | b"sw8"
            | b"sw8-correlation"
            | b"sw8-x"
    ) || name.starts_with(b"x-datadog-")
}

/// Headers that belong to a connection (RFC 9110, section 7.6.1), or that
/// frame or route a message: they are never copied.
pub fn is_of_the_connection(name: &[u8]) -> bool {
    // Not `matches!`, which is 1 KB of code.
    let names: [&[u8]; 10] = [
        b"host",
        b"connection",
        b"proxy-connection",
        b"keep-alive",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"content-length",
        b"expect",
    ];
    names.contains(&name) || name.starts_with(b":")
}

/// A header of the trace context whose value nobody but its own tracer reads.
pub fn is_opaque(name: &[u8]) -> bool {
    name == OT_SPAN_CONTEXT.as_bytes() || name == TRACESTATE.as_bytes()
}
