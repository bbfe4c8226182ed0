//! The configuration as it is written: one field a key. The documentation of a field is
//! that of the key: `docs/configuration.md` and `docs/config.schema.json` are made of it.

use super::choices::{
    AttributionMode, DeferredW3c, DirectionOf, Incoming, Mode, Outside, OwnSpans, ReportHeader,
    RestoreRequestId, SpanIds,
};
use super::read::flag;
use super::spans::Spans;
use super::values::{
    Confidence, CopyHeaders, Emit, Hosts, KeyName, Keys, Rules, TokenHeaders, Within,
};
use super::words::word;
use super::{Config, KeyOf};
use crate::headers::Wanted;
use crate::mesh_hosts::Declared;
use serde::Deserialize;
use std::rc::Rc;

/// `capacity`
pub type Capacity = Within<64, 65536>;
/// `grace_ms`
pub type GraceMs = Within<0, 60000>;
/// `log_lines_per_minute`
pub type LogLines = Within<0, 6000>;
/// `enforce_status`
pub type EnforceStatus = Within<400, 599>;

/// Names that keys had before, after those that they have.
pub(super) const FORMER: &[(&str, &str)] = &[("incoming_context", "incoming_b3")];

/// The plugin configuration of b3relay. Every key is optional.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema, serde::Serialize))]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// What to do about a broken rule: report it; rewrite the B3 headers so that every
    /// implementation reads the same; or answer requests that break a rule of severity error.
    #[cfg_attr(test, schemars(extend("x-side" = "either")))]
    #[serde(deserialize_with = "word")]
    pub mode: Mode,

    /// Which way the requests of the listener go. `auto` asks the listener (`traffic_direction`),
    /// which is right in Istio's sidecars; set it where a listener has none.
    #[cfg_attr(test, schemars(extend("x-side" = "either")))]
    #[serde(deserialize_with = "word")]
    pub direction: DirectionOf,

    /// Remember the context of inbound requests and copy it onto the calls made for them. With
    /// `false`, requests are checked, and changed by what other keys ask for, such as `mode`,
    /// `emit` and `generate_request_id`.
    #[cfg_attr(test, schemars(extend("x-side" = "both, the same")))]
    #[serde(deserialize_with = "flag")]
    pub relay: bool,

    /// Give an inbound request without an `x-request-id`, or with an empty one, a UUIDv4.
    #[cfg_attr(test, schemars(extend("x-side" = "inbound")))]
    #[serde(deserialize_with = "flag")]
    pub generate_request_id: bool,

    /// Headers to copy besides the seven of Istio's guide, such as `baggage`, `end-user` or
    /// `x-tenant-*`. A call that carries one already keeps it.
    #[cfg_attr(test, schemars(extend("x-side" = "both, the same")))]
    pub copy_headers: CopyHeaders,

    /// Copy the headers of `copy_headers` onto calls too whose request was found by
    /// `attribution`. Those say nothing of the request themselves: a wrong one would hand one
    /// user's headers to another's call. See [docs/trust.md](docs/trust.md).
    #[cfg_attr(test, schemars(extend("x-side" = "outbound")))]
    #[serde(deserialize_with = "flag")]
    pub copy_to_attributed: bool,

    /// Which request ID of a call gives way to that of its inbound request, so that access logs
    /// join: one that Envoy made up for the call; any UUIDv4 in lower case, also one that the
    /// application has set itself; or none.
    #[cfg_attr(test, schemars(extend("x-side" = "outbound")))]
    #[serde(deserialize_with = "word")]
    pub restore_request_id: RestoreRequestId,

    /// What a call is recognised by, best first. `traceparent` and `b3` (in either form) stand
    /// for the trace ID in them: an application that carries on a `traceparent`, or just a part
    /// of B3, is recognised by it. A name of your own, such as `x-correlation-id`, stands for its
    /// value, up to 255 bytes; with a colon and the name of a parameter, `x-amzn-trace-id:Root`,
    /// for the value of that one (`Root=...`, among parameters with `;` or `,` between them; in
    /// the first 8 KiB). UUIDs in an `x-request-id` are compared without regard to case, and an
    /// ID that it says twice counts once.
    #[cfg_attr(test, schemars(extend("x-side" = "both, the same")))]
    pub keys: Keys,

    /// The formats in which a context is copied: those that it came in, or those of the list. With
    /// a list, a request that carries a context of its own gets the formats it lacks, inbound ones
    /// too: `["b3multi", "w3c"]` gives the application a `traceparent` made from B3.
    #[cfg_attr(test, schemars(extend("x-side" = "either")))]
    pub emit: Emit,

    /// The span that a call says it is of: the one that the application serves the request in, or
    /// a new child of it. `child` is for callees that share span IDs, which Istio's sidecars do
    /// not: see [docs/formats.md](docs/formats.md).
    #[cfg_attr(test, schemars(extend("x-side" = "outbound")))]
    #[serde(deserialize_with = "word")]
    pub span_ids: SpanIds,

    /// What a `traceparent` made from B3 says where B3 leaves the sampling decision open, which
    /// W3C cannot: it is not written; or it says sampled, or not sampled.
    #[cfg_attr(test, schemars(extend("x-side" = "either")))]
    #[serde(deserialize_with = "word")]
    pub deferred_w3c: DeferredW3c,

    /// Whether anybody reports the spans that the application's own tracing (an OpenTelemetry
    /// SDK, .NET's HttpClient) puts into the `traceparent` of its calls. `auto` leaves such a
    /// call as it is where the sidecars trace by W3C, and gives it the sidecar's span in B3 where
    /// they trace by B3 alone; `reported` gives it the application's span in B3 there;
    /// `unreported` replaces the application's span by the sidecar's. See
    /// [docs/formats.md](docs/formats.md).
    #[cfg_attr(test, schemars(extend("x-side" = "outbound")))]
    #[serde(deserialize_with = "word")]
    pub own_spans: OwnSpans,

    /// What to do with calls to hosts outside the mesh: copy nothing onto them; treat them as any
    /// other; or remove what they carry about the trace (all headers of the guide but
    /// `x-request-id`, `traceparent`, `tracestate`, the copy list, and the rest of what
    /// `incoming_context` removes). What is outside, `mesh_hosts`, `outside_hosts` and Istio's
    /// cluster tell: [docs/formats.md](docs/formats.md).
    #[cfg_attr(test, schemars(extend("x-side" = "outbound")))]
    #[serde(deserialize_with = "word")]
    pub outside: Outside,

    /// Further hosts that are inside the mesh, such as `*.internal.example.com` (services that a
    /// ServiceEntry adds) or `10.0.0.0/8` (calls by the address of a pod). An end begins with
    /// `*.`, so that nobody can buy a name that matches it.
    #[cfg_attr(test, schemars(extend("x-side" = "outbound")))]
    pub mesh_hosts: Hosts,

    /// Hosts that are outside the mesh whatever else says, `mesh_hosts` included: a service of
    /// type ExternalName, say.
    #[cfg_attr(test, schemars(extend("x-side" = "outbound")))]
    pub outside_hosts: Hosts,

    /// Services of the mesh that calls leave it through, such as `proxy.edge.svc.cluster.local`.
    /// One with `egress` in its name (`istio-egressgateway`) is known without being listed.
    #[cfg_attr(test, schemars(extend("x-side" = "outbound")))]
    pub egress_gateways: Hosts,

    /// What to do with calls that carry none of `keys`: leave them alone; copy the context of the
    /// only request in flight; or also judge by identifiers that a call shares with one request,
    /// and by what requests of each route were seen to do. Inbound and outbound filters of a pod
    /// must say the same. See [docs/attribution.md](docs/attribution.md).
    #[cfg_attr(test, schemars(extend("x-side" = "both, the same")))]
    #[serde(deserialize_with = "word")]
    pub attribution: AttributionMode,

    /// With `attribution` `inferred`: the share of calls that are not to be given to a wrong
    /// request. The higher, the more are left alone.
    #[cfg_attr(test, schemars(extend("x-side" = "outbound")))]
    pub confidence: Confidence,

    /// With `attribution` `inferred`: headers whose values may identify a request, besides the
    /// parts of its path and of its query. Only hashes of them are kept, and never leave the pod.
    #[cfg_attr(test, schemars(extend("x-side" = "both, the same")))]
    pub token_headers: TokenHeaders,

    /// With `attribution` `inferred`: log a call that was left alone, if it turns out when a
    /// request ends that the call belonged to it, by at least `confidence`. The line has the
    /// request IDs of both. See
    /// [docs/attribution.md](docs/attribution.md#calls-that-were-left-alone).
    #[cfg_attr(test, schemars(extend("x-side" = "outbound")))]
    #[serde(deserialize_with = "flag")]
    pub look_back: bool,

    /// Requests in flight in one pod for which there is room for sure, with 1 KiB for each on
    /// average: an entry has about 150 bytes for each key, and what is copied besides the context
    /// is stored once. Beyond that the oldest copied headers are forgotten, and then the oldest
    /// requests; both are counted. With 4096 there is room for 495 requests with 8 KiB of copied
    /// headers each, and for the contexts of 4096 all the same
    /// ([docs/accuracy-keyed.md](docs/accuracy-keyed.md#what-capacity-means)). Each worker of
    /// Envoy that receives requests has room for so many, twice: in its own memory, and in that
    /// shared with the others.
    #[cfg_attr(test, schemars(extend("x-side" = "inbound")))]
    pub capacity: Capacity,

    /// Milliseconds after the response during which calls still get the request's context.
    #[cfg_attr(test, schemars(extend("x-side" = "inbound")))]
    pub grace_ms: GraceMs,

    /// Log lines about broken rules, and those of `look_back`, for each filter of each worker: so
    /// many a minute, and at most so many at once. What is left out is counted in the next line.
    /// Metrics count everything.
    #[cfg_attr(test, schemars(extend("x-side" = "either")))]
    pub log_lines_per_minute: LogLines,

    /// Rules to switch off, raise or lower, such as `{"L04": "off"}`.
    #[cfg_attr(test, schemars(extend("x-side" = "either")))]
    pub rules: Rules,

    /// The status of the answers of mode `enforce`. Envoy closes an HTTP/1.1 connection after a
    /// 400, and keeps it after others.
    #[cfg_attr(test, schemars(extend("x-side" = "either")))]
    pub enforce_status: EnforceStatus,

    /// Say in a header `x-b3relay`, of the request that goes on or of the response, what was
    /// found and done: for trying it with curl.
    #[cfg_attr(test, schemars(extend("x-side" = "either")))]
    #[serde(deserialize_with = "word")]
    pub report_header: ReportHeader,

    /// What to do with the trace context that requests bring, in all its formats (B3, W3C and those
    /// of other tracers, and what asks an Envoy for a trace), calls of the application excepted:
    /// use it; pass it on unread; or remove it. For edges without a tracer, where a client must
    /// not force sampling or join traces: see [docs/trust.md](docs/trust.md) first. Its former
    /// name, `incoming_b3`, will do as well.
    #[cfg_attr(test, schemars(extend("x-side" = "inbound")))]
    #[serde(deserialize_with = "word", alias = "incoming_b3")]
    pub incoming_context: Incoming,

    /// Report a client span of each call that is sampled, as Envoy's own tracer would, and give
    /// the call that span: `{"cluster": "outbound|9411||zipkin.istio-system.svc.cluster.local",
    /// "format": "zipkin"}`. `cluster` is the Envoy cluster of the collector, and `format` what it
    /// takes: `zipkin` (v2, JSON) or `otlp` (over HTTP, protobuf). `path` is by default
    /// `/api/v2/spans`, or `/v1/traces`; `authority` is the collector's host, by default that in
    /// the name of the cluster. Needs `relay`: without, none is reported, and the log says so. See
    /// [docs/spans.md](docs/spans.md).
    #[cfg_attr(test, schemars(extend("x-side" = "outbound")))]
    pub spans: Spans,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            direction: DirectionOf::default(),
            relay: true,
            generate_request_id: true,
            copy_headers: CopyHeaders::default(),
            copy_to_attributed: false,
            restore_request_id: RestoreRequestId::default(),
            keys: Keys::default(),
            emit: Emit::default(),
            span_ids: SpanIds::default(),
            deferred_w3c: DeferredW3c::default(),
            own_spans: OwnSpans::default(),
            outside: Outside::default(),
            mesh_hosts: Hosts::default(),
            outside_hosts: Hosts::default(),
            egress_gateways: Hosts::default(),
            attribution: AttributionMode::default(),
            confidence: Confidence::default(),
            token_headers: TokenHeaders::default(),
            look_back: false,
            capacity: Within::of::<4096>(),
            grace_ms: Within::of::<1000>(),
            log_lines_per_minute: Within::of::<60>(),
            rules: Rules::default(),
            enforce_status: Within::of::<400>(),
            report_header: ReportHeader::default(),
            incoming_context: Incoming::default(),
            spans: Spans::default(),
        }
    }
}

impl From<Settings> for Config {
    fn from(settings: Settings) -> Self {
        let mut wanted = Wanted {
            copy: settings.copy_headers.0,
            tokens: settings.token_headers.0,
            ..Wanted::default()
        };
        let mut key = |name| match name {
            KeyName::RequestId => KeyOf::RequestId,
            KeyName::TraceParent => KeyOf::TraceParent,
            KeyName::B3 => KeyOf::B3,
            KeyName::Header(named) => {
                wanted.keys.push(named);
                KeyOf::Header(wanted.keys.len() - 1)
            }
        };
        let keys = settings.keys.0.into_iter().map(&mut key).collect();
        Self {
            mode: settings.mode,
            direction: settings.direction.into(),
            relay: settings.relay,
            generate_request_id: settings.generate_request_id,
            wanted,
            keys,
            emit: settings.emit.0,
            deferred_w3c: settings.deferred_w3c,
            span_ids: settings.span_ids,
            own_spans: settings.own_spans,
            restore_request_id: settings.restore_request_id,
            copy_to_attributed: settings.copy_to_attributed,
            outside: settings.outside,
            hosts: Rc::new(Declared {
                inside: settings.mesh_hosts.0,
                outside: settings.outside_hosts.0,
                egress: settings.egress_gateways.0,
            }),
            attribution: settings.attribution,
            confidence: settings.confidence,
            look_back: settings.look_back,
            capacity: settings.capacity,
            grace_ms: settings.grace_ms,
            log_lines_per_minute: settings.log_lines_per_minute,
            rules: settings.rules,
            enforce_status: settings.enforce_status,
            report_header: settings.report_header,
            incoming: settings.incoming_context,
            spans: settings.spans.0,
        }
    }
}
