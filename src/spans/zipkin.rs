//! Zipkin's format: v2, JSON (`POST /api/v2/spans`).

use super::span::text;
use super::{Encoder, Node, Span};

pub(super) struct Zipkin(pub(super) Node);

impl Encoder for Zipkin {
    fn append(&self, span: &Span<'_>, batch: &mut Vec<u8>) {
        let ids = span.begun.ids;
        if !batch.is_empty() {
            batch.push(b',');
        }
        put(batch, b"{\"traceId\":\"");
        ids.trace.write(batch);
        put(batch, b"\",\"id\":\"");
        ids.span.write(batch);
        if let Some(parent) = ids.parent {
            put(batch, b"\",\"parentId\":\"");
            parent.write(batch);
        }
        put(batch, b"\",\"kind\":\"CLIENT\",\"name\":");
        string(&span.name(b""), batch);
        let ended = span.ended;
        for (name, ns) in [
            (&b",\"timestamp\":"[..], ended.start_ns),
            (b",\"duration\":", ended.duration_ns.max(1000)),
        ] {
            put(batch, name);
            put(batch, (ns / 1000).to_string().as_bytes());
        }
        if span.begun.debug {
            put(batch, b",\"debug\":true");
        }
        put(batch, b",\"localEndpoint\":{\"serviceName\":");
        string(self.0.service(), batch);
        if let Some(address) = self.0.address() {
            put(
                batch,
                match address.contains(&b':') {
                    true => b",\"ipv6\":",
                    false => b",\"ipv4\":",
                },
            );
            string(address, batch);
        }
        put(batch, b"},\"tags\":");
        let mut before = b'{';
        span.tags(&self.0, &mut |name, value| {
            // Envoy leaves it out, too.
            if value.is_empty() {
                return;
            }
            batch.push(before);
            before = b',';
            string(name.as_bytes(), batch);
            batch.push(b':');
            string(value, batch);
        });
        put(batch, b"}}");
    }

    fn body(&self, batch: &[u8]) -> Vec<u8> {
        [b"[", batch, b"]"].concat()
    }

    fn content_type(&self) -> &'static str {
        "application/json"
    }
}

/// Not inlined: there are many of them.
#[inline(never)]
fn put(to: &mut Vec<u8>, bytes: &[u8]) {
    to.extend_from_slice(bytes);
}

/// A string in JSON.
fn string(value: &[u8], to: &mut Vec<u8>) {
    let value = text(value);
    let value = str::from_utf8(&value).unwrap_or_default();
    // A string can always be written.
    put(to, &serde_json::to_vec(value).unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_string_is_read_as_it_was(text in proptest::collection::vec(prop_oneof![any::<u8>(), 0u8..0x80, Just(b'"'), Just(b'\\')], 0..60)) {
            let mut written = Vec::new();
            string(&text, &mut written);
            let read: String = serde_json::from_slice(&written).unwrap();
            match String::from_utf8(text.clone()) {
                Ok(text) => prop_assert_eq!(read, text),
                Err(_) => prop_assert_eq!(read.len(), text.len()),
            }
        }
    }
}
