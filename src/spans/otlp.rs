//! OpenTelemetry's format: OTLP over HTTP, protobuf (`POST /v1/traces`), as
//! opentelemetry-proto 1 has it. Every string in it must be UTF-8, or a collector refuses
//! the whole batch.

use super::span::text;
use super::{Encoder, Node, Span};
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};

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
fn attribute(field: u32, name: &str, value: &[u8], to: &mut Vec<u8>) {
    let value = text(value);
    // AnyValue { string_value = 1 }
    let any = size(value.len());
    let pair = size(name.len()) + size(any);
    encode_key(field, WireType::LengthDelimited, to);
    encode_varint(pair as u64, to);
    message(1, name.as_bytes(), to);
    encode_key(2, WireType::LengthDelimited, to);
    encode_varint(any as u64, to);
    message(1, &value, to);
}

/// A field with a length: a message, a string, or bytes.
fn message(field: u32, value: &[u8], to: &mut Vec<u8>) {
    encode_key(field, WireType::LengthDelimited, to);
    encode_varint(value.len() as u64, to);
    to.extend_from_slice(value);
}

/// Bytes of such a field, with a number below 16.
fn size(length: usize) -> usize {
    1 + encoded_len_varint(length as u64) + length
}

fn number(field: u32, value: u64, to: &mut Vec<u8>) {
    encode_key(field, WireType::Varint, to);
    encode_varint(value, to);
}

fn fixed(field: u32, value: u64, to: &mut Vec<u8>) {
    encode_key(field, WireType::SixtyFourBit, to);
    to.extend_from_slice(&value.to_le_bytes());
}
