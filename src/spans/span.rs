//! A whole span: its name and its tags, as Envoy's tracing gives them
//! (`HttpTracerUtility::finalizeDownstreamSpan`).

use super::flags::{NO_ROUTE, letters};
use super::{Begun, Ended, Node, grpc};
use std::borrow::Cow;

/// A span that is over.
#[derive(Clone, Copy, Debug)]
pub struct Span<'a> {
    /// What its request said.
    pub begun: &'a Begun,
    /// What Envoy knows of it.
    pub ended: &'a Ended<'a>,
}

impl Span<'_> {
    /// Of Istio's routes the virtual host with the port, and all of its paths; where
    /// there is none, `unnamed` and the host.
    pub(super) fn name(&self, unnamed: &[u8]) -> Vec<u8> {
        let host = self.ended.virtual_host;
        let is_named = host.contains(&b':') && self.ended.flags & NO_ROUTE == 0;
        match is_named {
            true => [host, b"/*"].concat(),
            false => [unnamed, &*self.begun.authority].concat(),
        }
    }

    /// There was no response, or one that says that the server has failed.
    pub(super) fn is_error(&self) -> bool {
        let status = self.ended.status;
        let grpc_status = self.begun.grpc_status.as_ref();
        let is_of_grpc = grpc_status.is_some_and(|(status, _)| grpc::is_error(status));
        status == 0 || (500..600).contains(&status) || is_of_grpc
    }

    /// A status of gRPC other than `OK`.
    pub(super) fn is_not_ok(&self) -> bool {
        let status = self.begun.grpc_status.as_ref();
        status.is_some_and(|(status, _)| status != b"0")
    }

    /// Each tag, besides those of the node.
    pub(super) fn tags(&self, node: &Node, to: &mut dyn FnMut(&str, &[u8])) {
        let Self { begun, ended } = self;
        for (name, value) in node.tags().iter().chain(&begun.tags) {
            to(name, value);
        }
        to("http.protocol", ended.protocol);
        for (name, value) in [
            ("request_size", ended.request_size),
            ("response_size", ended.response_size),
            ("http.status_code", ended.status),
        ] {
            to(name, value.to_string().as_bytes());
        }
        to("response_flags", letters(ended.flags).as_bytes());
        to("peer.address", without_port(ended.source));
        if !ended.cluster.is_empty() {
            to("upstream_cluster", ended.cluster);
            let name = [ended.cluster, node.delimiter()].concat();
            to("upstream_cluster.name", &name);
        }
        if let Some((status, message)) = &begun.grpc_status {
            to("grpc.status_code", status);
            if let Some(message) = message {
                to("grpc.message", message);
            }
        }
        if self.is_error() {
            to("error", b"true");
        }
        to("b3relay.decision", begun.decision.label().as_bytes());
        if !begun.rules.is_empty() {
            let mut rules = Vec::new();
            for rule in &begun.rules {
                if !rules.is_empty() {
                    rules.push(b',');
                }
                rules.extend_from_slice(rule.id().as_bytes());
            }
            to("b3relay.rules", &rules);
        }
    }
}

/// As it can stand in a report, for which every string must be UTF-8: what is not loses
/// every byte that is not of ASCII. (Envoy does likewise.)
pub(super) fn text(value: &[u8]) -> Cow<'_, [u8]> {
    match str::from_utf8(value) {
        Ok(_) => Cow::Borrowed(value),
        Err(_) => {
            let ascii = |byte: &u8| if byte.is_ascii() { *byte } else { b'?' };
            Cow::Owned(value.iter().map(ascii).collect())
        }
    }
}

/// An address without its port, and without the brackets of IPv6.
fn without_port(address: &[u8]) -> &[u8] {
    let at = address.iter().rposition(|byte| *byte == b':');
    let host = at.and_then(|at| address.get(..at)).unwrap_or(address);
    let inside = host.strip_prefix(b"[").and_then(|h| h.strip_suffix(b"]"));
    inside.unwrap_or(host)
}
