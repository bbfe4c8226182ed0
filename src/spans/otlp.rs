//! OpenTelemetry's format: OTLP over HTTP, protobuf (`POST /v1/traces`), as
//! opentelemetry-proto 1 has it. Every string in it must be UTF-8, or a collector refuses
//! the whole batch.

use super::span::text;
use super::{Encoder, Node, Span};

pub(super) struct Otlp {
    node: Node,
    /// The fields of `ResourceSpans` before the spans.
    resource: Vec<u8>,
    /// Those of `ScopeSpans`.
    scope: Vec<u8>,
}

/// `SPAN_KIND_CLIENT`
const CLIENT: u64 = 3;
/// `STATUS_CODE_ERROR`
const ERROR: u64 = 2;

impl Otlp {
    pub(super) fn new(node: Node) -> Self {
        let mut attributes = Vec::new();
        attribute(1, "service.name", node.service(), &mut attributes);
        let mut resource = Vec::new();
        message(1, &attributes, &mut resource);
        let mut named = Vec::new();
        message(1, b"b3relay", &mut named);
        message(2, env!("CARGO_PKG_VERSION").as_bytes(), &mut named);
        let mut scope = Vec::new();
        message(1, &named, &mut scope);
        Self {
            node,
            resource,
            scope,
        }
    }
}

impl Encoder for Otlp {
    fn append(&self, span: &Span<'_>, batch: &mut Vec<u8>) {
        let ids = span.begun.ids;
        let mut out = Vec::with_capacity(1024);
        message(1, &ids.trace.value().to_be_bytes(), &mut out);
        message(2, &ids.span.value().to_be_bytes(), &mut out);
        if let Some(parent) = ids.parent {
            message(4, &parent.value().to_be_bytes(), &mut out);
        }
        message(5, &text(&span.name(b"egress ")), &mut out);
        number(6, CLIENT, &mut out);
        let start = span.ended.start_ns;
        fixed(7, start, &mut out);
        fixed(8, start.saturating_add(span.ended.duration_ns), &mut out);
        span.tags(&self.node, &mut |name, value| {
            attribute(9, name, value, &mut out);
        });
        // As OpenTelemetry has it for clients; not quite what the tag `error` says.
        if span.ended.status >= 400 || span.is_not_ok() {
            let mut status = Vec::new();
            number(3, ERROR, &mut status);
            message(15, &status, &mut out);
        }
        message(2, &out, batch);
    }

    fn body(&self, batch: &[u8]) -> Vec<u8> {
        let mut of_scope = Vec::new();
        message(2, &[&*self.scope, batch].concat(), &mut of_scope);
        let mut body = Vec::new();
        message(1, &[&*self.resource, &of_scope].concat(), &mut body);
        body
    }

    fn content_type(&self) -> &'static str {
        "application/x-protobuf"
    }
}

/// A `KeyValue` with a string.
fn attribute(field: u64, name: &str, value: &[u8], to: &mut Vec<u8>) {
    let value = text(value);
    // AnyValue { string_value = 1 }
    let any = 1 + size(value.len()) + value.len();
    let pair = 1 + size(name.len()) + name.len() + 1 + size(any) + any;
    varint(field << 3 | 2, to);
    varint(pair as u64, to);
    message(1, name.as_bytes(), to);
    varint(2 << 3 | 2, to);
    varint(any as u64, to);
    message(1, &value, to);
}

/// A field with a length: a message, a string, or bytes.
fn message(field: u64, value: &[u8], to: &mut Vec<u8>) {
    varint(field << 3 | 2, to);
    varint(value.len() as u64, to);
    to.extend_from_slice(value);
}

fn number(field: u64, value: u64, to: &mut Vec<u8>) {
    varint(field << 3, to);
    varint(value, to);
}

fn fixed(field: u64, value: u64, to: &mut Vec<u8>) {
    varint(field << 3 | 1, to);
    to.extend_from_slice(&value.to_le_bytes());
}

fn varint(mut value: u64, to: &mut Vec<u8>) {
    while value >= 0x80 {
        to.push(value as u8 | 0x80);
        value >>= 7;
    }
    to.push(value as u8);
}

/// Bytes of a length.
fn size(length: usize) -> usize {
    match length {
        0..0x80 => 1,
        0x80..0x4000 => 2,
        _ => 3,
    }
}
