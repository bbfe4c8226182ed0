//! What is read of a request: one pass over its headers.

use super::select::Wanted;
use super::{
    B3, FLAGS, PARENT_SPAN_ID, REQUEST_ID, SAMPLED, SPAN_ID, TRACE_ID, TRACEPARENT, TRACESTATE,
};
use super::{is_of_other_tracers, is_opaque};
use crate::bytes::alike;

/// Bytes of repeated values that are compared: no good `b3` or `traceparent` has more.
const COMPARED: usize = 128;

/// What a request carries under one name: the first value, and whether there
/// were others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Field<'a> {
    first: Option<&'a [u8]>,
    repeated: bool,
    differing: bool,
}

impl<'a> Field<'a> {
    /// The first value, as implementations read it; `None` if absent.
    pub fn value(&self) -> Option<&'a [u8]> {
        self.first
    }

    /// The first value is this one.
    pub fn is(&self, value: &[u8]) -> bool {
        self.first
            .is_some_and(|first| alike(first, value, value.len()))
    }

    /// The header came more than once.
    pub fn repeated(&self) -> bool {
        self.repeated
    }

    /// The header came more than once, with different values: of different length, or
    /// different within as many bytes as a good one may have.
    pub fn differing(&self) -> bool {
        self.differing
    }

    fn add(&mut self, value: &'a [u8]) {
        match self.first {
            None => self.first = Some(value),
            Some(first) => {
                self.repeated = true;
                self.differing = self.differing || !alike(first, value, COMPARED);
            }
        }
    }
}

/// The headers that b3relay reads, borrowed from the request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TraceHeaders<'a> {
    /// `x-request-id`
    pub request_id: Field<'a>,
    /// `x-b3-traceid`
    pub trace_id: Field<'a>,
    /// `x-b3-spanid`
    pub span_id: Field<'a>,
    /// `x-b3-parentspanid`
    pub parent_span_id: Field<'a>,
    /// `x-b3-sampled`
    pub sampled: Field<'a>,
    /// `x-b3-flags`
    pub flags: Field<'a>,
    /// `b3`
    pub b3: Field<'a>,
    /// `x-ot-span-context`
    pub ot_span_context: Field<'a>,
    /// `traceparent`
    pub traceparent: Field<'a>,
    /// `tracestate`
    pub tracestate: Field<'a>,
    /// `:authority`
    pub authority: Field<'a>,
    /// `:method`
    pub method: Field<'a>,
    /// `:path`
    pub path: Field<'a>,
    /// Headers of the trace context that are copied verbatim: `x-ot-span-context` and
    /// `tracestate`, name and value; in the request's order, repeated ones included.
    pub opaque: Vec<(&'a [u8], &'a [u8])>,
    /// The headers of the copy list, likewise.
    pub copied: Vec<(&'a [u8], &'a [u8])>,
    /// Names of headers with a trace context that is not read here, repeated ones
    /// included.
    pub unread: Vec<&'a [u8]>,
    /// Every header of the request, in its order.
    pub all: Vec<(&'a [u8], &'a [u8])>,
    /// Envoy made the request ID up: the request came to it without one.
    pub has_new_request_id: bool,
    /// The client sent it: Envoy would have made one up behind `x-forwarded-proto`.
    pub has_clients_request_id: bool,
    /// The look-up keys, besides those with a field of their own: index into
    /// [`Wanted::keys`], and the value or the part of it that counts; of each header the
    /// first one and the last one, where they differ.
    pub keys: Vec<(usize, &'a [u8])>,
    /// Values of the headers of [`Wanted::tokens`].
    pub tokens: Vec<&'a [u8]>,
}

/// Whether the client sent the request ID, and whether Envoy made it up, as far as the order
/// of the headers tells.
///
/// Envoy adds `x-forwarded-proto` to a request that lacks it, and then `x-request-id`
/// (`ConnectionManagerUtility::mutateRequestHeaders`), each behind what the client sent.
/// So an ID that Envoy made up stands directly behind `x-forwarded-proto` (and
/// `x-forwarded-port`, where it is told to add that), and before nothing but what Envoy adds
/// later. Where a client sends `x-forwarded-proto` itself,
/// the order does not tell, and the ID counts as the client's.
fn new_request_id(all: &[(&[u8], &[u8])]) -> (bool, bool) {
    let at = all
        .iter()
        .position(|(name, _)| *name == REQUEST_ID.as_bytes());
    let Some((before, [_, after @ ..])) = at.and_then(|at| all.split_at_checked(at)) else {
        return (false, false);
    };
    let before = match before {
        [before @ .., (b"x-forwarded-port", _)] => before,
        _ => before,
    };
    let added_by_envoy = |(name, _): &(&[u8], &[u8])| name.starts_with(b"x-envoy-");
    let is_proto = |(name, _): &(&[u8], &[u8])| *name == b"x-forwarded-proto";
    let is_new = before.last().is_some_and(is_proto) && after.iter().all(added_by_envoy);
    (after.iter().any(is_proto), is_new)
}

impl<'a> TraceHeaders<'a> {
    /// One pass over the pairs of a request.
    pub fn read<I>(pairs: I, wanted: &Wanted) -> Self
    where
        I: IntoIterator<Item = (&'a [u8], &'a [u8])>,
    {
        let mut headers = Self::default();
        let pairs = pairs.into_iter();
        // More than Envoy takes by default are rare.
        let most = pairs.size_hint().1.unwrap_or_default();
        headers.all.reserve(most.min(100));
        for (name, value) in pairs {
            headers.all.push((name, value));
            for (index, key) in wanted.keys.iter().enumerate() {
                if key.header.as_bytes() == name
                    && let Some((first, last)) = key.values(value)
                {
                    headers.keys.push((index, first));
                    if last != first {
                        headers.keys.push((index, last));
                    }
                }
            }
            if let Some(field) = headers.field(name) {
                field.add(value);
                if is_opaque(name) {
                    headers.opaque.push((name, value));
                }
                continue;
            }
            if is_of_other_tracers(name) {
                headers.unread.push(name);
            }
            if wanted.copy.iter().any(|pattern| pattern.matches(name)) {
                headers.copied.push((name, value));
            }
            if wanted.tokens.iter().any(|token| token.as_bytes() == name) {
                headers.tokens.push(value);
            }
        }
        let (is_clients, is_new) = new_request_id(&headers.all);
        headers.has_clients_request_id = is_clients;
        headers.has_new_request_id = is_new;
        headers
    }

    /// The request carries this header.
    pub fn has(&self, name: &str) -> bool {
        self.all.iter().any(|(known, _)| *known == name.as_bytes())
    }

    /// By the length first: most headers of a request are none of these.
    fn field(&mut self, name: &[u8]) -> Option<&mut Field<'a>> {
        Some(match (name.len(), name) {
            (2, b"b3") => &mut self.b3,
            (5, b":path") => &mut self.path,
            (7, b":method") => &mut self.method,
            (10, b":authority") => &mut self.authority,
            (10, b"tracestate") => &mut self.tracestate,
            (10, b"x-b3-flags") => &mut self.flags,
            (11, b"traceparent") => &mut self.traceparent,
            (11, b"x-b3-spanid") => &mut self.span_id,
            (12, b"x-b3-sampled") => &mut self.sampled,
            (12, b"x-b3-traceid") => &mut self.trace_id,
            (12, b"x-request-id") => &mut self.request_id,
            (17, b"x-b3-parentspanid") => &mut self.parent_span_id,
            (17, b"x-ot-span-context") => &mut self.ot_span_context,
            _ => return None,
        })
    }

    /// Every header about a trace that is there, by name: those of the Istio guide
    /// but for the request ID, W3C's two, those of other tracers, and the copy list.
    pub fn present(&self) -> Vec<&'a [u8]> {
        let fields = self.multi().into_iter().chain([
            (B3, self.b3),
            (TRACEPARENT, self.traceparent),
            (TRACESTATE, self.tracestate),
        ]);
        let mut names: Vec<&'a [u8]> = fields
            .filter(|(_, field)| field.value().is_some())
            .map(|(name, _)| name.as_bytes())
            .collect();
        let copied = self.opaque.iter().chain(&self.copied).map(|(name, _)| name);
        for name in self.unread.iter().chain(copied) {
            if !names.contains(name) {
                names.push(name);
            }
        }
        names
    }

    /// The multiple B3 headers with their names, in the order of the Istio guide.
    pub fn multi(&self) -> [(&'static str, Field<'a>); 5] {
        [
            (TRACE_ID, self.trace_id),
            (SPAN_ID, self.span_id),
            (PARENT_SPAN_ID, self.parent_span_id),
            (SAMPLED, self.sampled),
            (FLAGS, self.flags),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::headers::{HeaderPart, Pairs, serialize};

    #[test]
    fn one_header_may_have_several_parts_that_count() {
        let named = |parameter: Option<&str>| HeaderPart {
            header: "a".to_string(),
            parameter: parameter.map(str::to_string),
        };
        let wanted = Wanted {
            keys: vec![named(Some("y")), named(None), named(Some("x"))],
            ..Wanted::default()
        };
        let map = serialize(&[("b", "x=1"), ("a", "z=0"), ("a", "x=1;y=2")]);
        let keys = TraceHeaders::read(Pairs::new(&map), &wanted).keys;
        let expected: [(usize, &[u8]); 4] = [(1, b"z=0"), (0, b"2"), (1, b"x=1;y=2"), (2, b"1")];
        assert_eq!(keys, expected);
    }

    #[test]
    fn repeated_headers_are_seen() {
        let map = serialize(&[
            ("b3", "0"),
            ("b3", "0"),
            ("x-b3-flags", "1"),
            ("x-b3-flags", "0"),
        ]);
        let headers = TraceHeaders::read(Pairs::new(&map), &Wanted::default());
        assert_eq!(headers.b3.value(), Some(&b"0"[..]));
        assert!(headers.b3.repeated() && !headers.b3.differing());
        assert!(headers.flags.differing());
    }
}
