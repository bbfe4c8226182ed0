//! What is kept of a call from its request headers, until it is over.

use super::grpc;
use crate::b3::{B3, Ids, Sampling};
use crate::headers::TraceHeaders;
use crate::relay::Decision;
use crate::rules::{Finding, Rule};

/// Bytes of a path that a span shows: Envoy's default (`max_path_tag_length`).
const PATH_MOST: usize = 256;
/// Bytes of another header's value.
const VALUE_MOST: usize = 1024;

/// Headers that are tags, besides those of [`TraceHeaders`].
const READ: [&[u8]; 7] = [
    b":scheme",
    b"user-agent",
    b"x-envoy-downstream-service-cluster",
    b"content-type",
    b"x-client-trace-id",
    b"grpc-timeout",
    b"x-envoy-original-path",
];

/// A span that has begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Begun {
    /// Of the span itself, with its parent.
    pub ids: Ids,
    /// The client has asked for a trace whatever it costs.
    pub debug: bool,
    /// What was done with the call.
    pub decision: Decision,
    /// The rules that it breaks, each once.
    pub rules: Vec<Rule>,
    /// `:authority`
    pub(super) authority: Vec<u8>,
    /// Tags that the headers of the request say.
    pub(super) tags: Vec<(&'static str, Vec<u8>)>,
    is_grpc: bool,
    /// Of gRPC: the status, and what the callee says of it.
    pub(super) grpc_status: Option<(Vec<u8>, Option<Vec<u8>>)>,
}

impl Begun {
    /// Of a call with these headers, which goes on with this request ID and, but for calls
    /// that leave the mesh, with this context. `None` if that names no span.
    pub fn new(
        context: B3,
        (headers, request_id): (&TraceHeaders<'_>, &[u8]),
        decision: Decision,
        findings: &[Finding<'_>],
    ) -> Option<Self> {
        let ids = context.ids?;
        let mut rules = Vec::new();
        for finding in findings {
            if !rules.contains(&finding.rule) {
                rules.push(finding.rule);
            }
        }
        let mut tags = Tags(Vec::with_capacity(11));
        // In the order of `READ`, and each by default what Envoy says then.
        let mut read: [&[u8]; READ.len()] = [b"http", b"-", b"-", b"", b"", b"", b""];
        for (name, value) in &headers.all {
            for (place, known) in read.iter_mut().zip(READ) {
                if known == *name {
                    *place = value;
                }
            }
        }
        let [
            scheme,
            agent,
            downstream,
            content_type,
            client_id,
            timeout,
            original,
        ] = read;
        let [authority, method, path] = [headers.authority, headers.method, headers.path]
            .map(|f| f.value().unwrap_or_default());
        let shown = if original.is_empty() { path } else { original };
        let shown = shown.get(..PATH_MOST).unwrap_or(shown);
        tags.add("guid:x-request-id", request_id);
        // A CONNECT has no path.
        if !path.is_empty() {
            tags.add("http.url", &[scheme, b"://", authority, shown].concat());
        }
        tags.add("http.method", method);
        tags.add("user_agent", agent);
        tags.add("downstream_cluster", downstream);
        if !client_id.is_empty() {
            tags.add("guid:x-client-trace-id", client_id);
        }
        let is_grpc = grpc::is_request(content_type);
        if is_grpc {
            tags.add("grpc.path", path);
            tags.add("grpc.authority", authority);
            tags.add("grpc.content_type", content_type);
            if !timeout.is_empty() {
                tags.add("grpc.timeout", timeout);
            }
        }
        Some(Self {
            ids,
            debug: context.sampling == Sampling::Debug,
            decision,
            rules,
            authority: authority.to_vec(),
            tags: tags.0,
            is_grpc,
            grpc_status: None,
        })
    }

    /// It is a call of gRPC: its status is looked for, in the response's headers if that
    /// has nothing else, or in the trailers.
    pub fn is_grpc(&self) -> bool {
        self.is_grpc
    }

    /// `grpc-status` and `grpc-message`
    pub fn answered(&mut self, status: Vec<u8>, mut message: Option<Vec<u8>>) {
        if let Some(message) = &mut message {
            message.truncate(VALUE_MOST);
        }
        self.grpc_status = Some((status, message));
    }
}

struct Tags(Vec<(&'static str, Vec<u8>)>);

impl Tags {
    /// Not inlined: there are ten of them.
    #[inline(never)]
    fn add(&mut self, name: &'static str, value: &[u8]) {
        let value = value.get(..VALUE_MOST).unwrap_or(value);
        self.0.push((name, value.to_vec()));
    }
}
