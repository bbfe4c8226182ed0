//! What is stored of an inbound request.

use super::tracer::W3cState;
use crate::b3::{B3, Ids, Sampling, SpanId, TraceId};
use crate::bytes::{read_array, read_bytes};
use crate::headers::{self, TraceHeaders};
use crate::rules::Formats;
use crate::store::key;
use crate::w3c::TraceParent;

/// Bytes of copied headers (names and values) that are remembered of one
/// request, the context not counted. Memory is bounded.
pub const COPIED_MOST: usize = 8192;

/// Header names and values.
pub type Headers = Vec<(String, Vec<u8>)>;

/// What is remembered of an inbound request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoredContext {
    /// Its context as the application sees it; empty if it came without one.
    pub b3: B3,
    /// The formats that the context is copied in: those that it came in.
    pub formats: Formats,
    /// What it had of W3C.
    pub w3c_state: W3cState,
    /// The application got a `traceparent`, and beside it B3 of a client that the tracers
    /// of the mesh do not read.
    pub has_clients_b3: bool,
    /// It was seen before the sidecar's tracer: the span is that of the caller.
    pub is_callers: bool,
    /// Whether that tracer continues the trace is not known: implementations read such a
    /// request differently, or it came without B3.
    pub is_uncertain: bool,
    /// Its request ID, up to 255 bytes, where a call may be found without it.
    pub request_id: Vec<u8>,
    /// Headers of the trace context that are copied verbatim: `x-ot-span-context`,
    /// `tracestate`, and a `traceparent` of another trace. Repeated ones included.
    pub opaque: Headers,
    /// The headers of the copy list, likewise.
    pub copied: Headers,
}

impl StoredContext {
    /// From an inbound request with this context ([`crate::relay::newest`]), in these formats.
    /// Also returns how many headers had no room ([`COPIED_MOST`]).
    ///
    /// A `traceparent` of the same trace is made anew for each call, with the
    /// span that the application serves the request in. One of another trace
    /// (the application's own tracing, beside the mesh's) is copied as it is, as
    /// an application would that forwards it.
    pub fn of(
        headers: &TraceHeaders<'_>,
        formats: Formats,
        (b3, w3c_state): (B3, W3cState),
    ) -> (Self, usize) {
        let other = headers.traceparent.value();
        let other = other.filter(|_| w3c_state == W3cState::Other);
        let other = other.map(|value| (headers::TRACEPARENT.as_bytes(), value));
        let has_state =
            |name: &[u8]| name != headers::TRACESTATE.as_bytes() || w3c_state != W3cState::Absent;
        let opaque = headers.opaque.iter().copied();
        let opaque = other
            .into_iter()
            .chain(opaque.filter(|(name, _)| has_state(name)));
        let (mut room, mut dropped) = (COPIED_MOST, 0);
        let mut taken = |(name, value): (&[u8], &[u8])| {
            let rest = room.checked_sub(name.len() + value.len());
            match (rest, std::str::from_utf8(name)) {
                (Some(rest), Ok(name)) if !name.is_empty() && name.len() < 256 => {
                    room = rest;
                    Some((name.to_string(), value.to_vec()))
                }
                _ => {
                    dropped += 1;
                    None
                }
            }
        };
        let opaque = opaque.filter_map(&mut taken).collect();
        let copied = headers.copied.iter().copied();
        let copied = copied.filter_map(&mut taken).collect();
        let stored = Self {
            b3,
            formats,
            w3c_state,
            has_clients_b3: false,
            is_callers: false,
            is_uncertain: false,
            request_id: Vec::new(),
            opaque,
            copied,
        };
        (stored, dropped)
    }

    /// The trace of the `traceparent` that the request came with.
    pub(super) fn w3c_trace(&self) -> Option<TraceId> {
        match self.w3c_state {
            W3cState::Absent => None,
            W3cState::Stale | W3cState::Current => self.b3.ids.map(|ids| ids.trace),
            W3cState::Other => {
                let mut opaque = self.opaque.iter();
                let (_, value) = opaque.find(|(name, _)| name == headers::TRACEPARENT)?;
                Some(TraceParent::read(value)?.trace)
            }
        }
    }

    /// Encodes all but the headers for the store: two bytes of flags, then
    /// trace (16 bytes), span (8) and parent (8) as the flags say, then the request
    /// ID's length u8 and the request ID; integers big-endian.
    pub fn encode_context(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(40 + self.request_id.len());
        let sampling: u8 = match self.b3.sampling {
            Sampling::Defer => 0,
            Sampling::Deny => 1,
            Sampling::Accept => 2,
            Sampling::Debug => 3,
        };
        let w3c_state: u8 = match self.w3c_state {
            W3cState::Absent => 0,
            W3cState::Other => 1,
            W3cState::Stale => 2,
            W3cState::Current => 3,
        };
        let bits = [self.is_callers, self.is_uncertain, self.has_clients_b3].map(u8::from);
        let [is_callers, is_uncertain, has_clients_b3] = bits;
        let first = sampling | (w3c_state << 2) | (is_callers << 4) | (is_uncertain << 5);
        out.push(first | (has_clients_b3 << 6));
        let ids = self.b3.ids;
        let parent = ids.and_then(|ids| ids.parent);
        let bits = [
            ids.is_some(),
            ids.is_some_and(|ids| ids.trace.is_wide()),
            parent.is_some(),
            self.formats.multi,
            self.formats.single,
            self.formats.w3c,
        ];
        out.push(
            bits.iter()
                .fold(0, |flags, bit| (flags << 1) | u8::from(*bit)),
        );
        if let Some(ids) = ids {
            out.extend_from_slice(&ids.trace.value().to_be_bytes());
            out.extend_from_slice(&ids.span.value().to_be_bytes());
        }
        if let Some(parent) = parent {
            out.extend_from_slice(&parent.value().to_be_bytes());
        }
        let request_id = Some(self.request_id.as_slice());
        let request_id = request_id.filter(|id| id.len() <= key::LONGEST);
        let request_id = request_id.unwrap_or_default();
        out.push(request_id.len() as u8);
        out.extend_from_slice(request_id);
        out
    }

    /// Encodes the headers for the store: for each its name's length u8, name,
    /// value's length u16, value; integers big-endian.
    pub fn encode_headers(&self) -> Vec<u8> {
        let headers = || self.opaque.iter().chain(&self.copied);
        let lengths = headers().map(|(n, v)| n.len() + v.len() + 3);
        let mut out = Vec::with_capacity(lengths.sum::<usize>());
        for (name, value) in headers() {
            if let (Ok(n), Ok(v)) = (u8::try_from(name.len()), u16::try_from(value.len())) {
                out.push(n);
                out.extend_from_slice(name.as_bytes());
                out.extend_from_slice(&v.to_be_bytes());
                out.extend_from_slice(value);
            }
        }
        out
    }

    /// The inverse of [`StoredContext::encode_headers`], for a request of which the context
    /// is known. False if the bytes are not its.
    pub fn decode_headers(&mut self, mut rest: &[u8]) -> bool {
        fn next(rest: &mut &[u8]) -> Option<(String, Vec<u8>)> {
            let [n] = read_array(rest)?;
            let name = read_bytes(rest, usize::from(n))?.to_vec();
            let v = u16::from_be_bytes(read_array(rest)?);
            let value = read_bytes(rest, usize::from(v))?.to_vec();
            Some((String::from_utf8(name).ok()?, value))
        }
        while !rest.is_empty() {
            let Some((name, value)) = next(&mut rest) else {
                return false;
            };
            let of_context = name == headers::TRACEPARENT || headers::is_opaque(name.as_bytes());
            match of_context {
                true => self.opaque.push((name, value)),
                false => self.copied.push((name, value)),
            }
        }
        true
    }

    /// The inverse of both; `None` if the bytes are not theirs.
    pub fn decode(context: &[u8], headers: &[u8]) -> Option<Self> {
        let mut stored = Self::decode_context(context)?;
        stored.decode_headers(headers).then_some(stored)
    }

    /// The inverse of [`StoredContext::encode_context`], without headers; `None` if the
    /// bytes are not its.
    #[inline(never)]
    pub fn decode_context(mut rest: &[u8]) -> Option<Self> {
        let [first, flags] = read_array(&mut rest)?;
        let bit = |n: u8| flags & (1 << n) != 0;
        let mut ids = None;
        if bit(5) {
            let trace = u128::from_be_bytes(read_array(&mut rest)?);
            let span = u64::from_be_bytes(read_array(&mut rest)?);
            let parent = match bit(3) {
                true => Some(SpanId::new(u64::from_be_bytes(read_array(&mut rest)?))?),
                false => None,
            };
            ids = Some(Ids {
                trace: TraceId::new(trace, bit(4))?,
                span: SpanId::new(span)?,
                parent,
            });
        }
        let sampling = match first & 3 {
            0 => Sampling::Defer,
            1 => Sampling::Deny,
            2 => Sampling::Accept,
            _ => Sampling::Debug,
        };
        let w3c_state = match (first >> 2) & 3 {
            0 => W3cState::Absent,
            1 => W3cState::Other,
            2 => W3cState::Stale,
            _ => W3cState::Current,
        };
        let [length] = read_array(&mut rest)?;
        let request_id = read_bytes(&mut rest, usize::from(length))?.to_vec();
        if !rest.is_empty() {
            return None;
        }
        Some(Self {
            b3: B3 { ids, sampling },
            formats: Formats {
                multi: bit(2),
                single: bit(1),
                w3c: bit(0),
            },
            w3c_state,
            is_callers: first & (1 << 4) != 0,
            is_uncertain: first & (1 << 5) != 0,
            has_clients_b3: first & (1 << 6) != 0,
            request_id,
            opaque: Vec::new(),
            copied: Vec::new(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::headers::{NamePattern, Wanted};

    #[test]
    fn whatever_is_encoded_is_decoded_to_the_same() {
        let samplings = [
            Sampling::Defer,
            Sampling::Deny,
            Sampling::Accept,
            Sampling::Debug,
        ];
        let states = [
            W3cState::Absent,
            W3cState::Other,
            W3cState::Stale,
            W3cState::Current,
        ];
        let ids = |is_wide, parent| {
            Some(Ids {
                trace: TraceId::new(0x1234, is_wide)?,
                span: SpanId::new(0x56)?,
                parent: SpanId::new(parent),
            })
        };
        let all_ids = [
            None,
            ids(false, 0),
            ids(true, 0),
            ids(false, 0x78),
            ids(true, 0x78),
        ];
        assert!(all_ids.iter().skip(1).all(Option::is_some));
        for (number, ids) in all_ids.into_iter().enumerate() {
            for flags in 0..64_u8 {
                let has = |bit: u8| flags & (1 << bit) != 0;
                let at = usize::from(flags) + number;
                let stored = StoredContext {
                    b3: B3 {
                        ids,
                        sampling: samplings[at % 4],
                    },
                    formats: Formats {
                        multi: has(0),
                        single: has(1),
                        w3c: has(2),
                    },
                    w3c_state: states[at / 4 % 4],
                    has_clients_b3: has(3),
                    is_callers: has(4),
                    is_uncertain: has(5),
                    request_id: vec![b'r'; at * 5 % 256],
                    opaque: vec![("tracestate".to_string(), vec![0xff; at])],
                    copied: vec![("n".repeat(255), vec![b'v'; 300]); number],
                };
                let (context, headers) = (stored.encode_context(), stored.encode_headers());
                assert_eq!(StoredContext::decode(&context, &headers), Some(stored));
                // Nor is it taken for another if it was cut.
                let cut = context.split_last().map(|(_, cut)| cut);
                assert_eq!(cut.and_then(StoredContext::decode_context), None);
            }
        }
    }

    #[test]
    fn a_header_whose_name_is_too_long_is_dropped_and_counted() {
        let names = [255, 256].map(|length| "n".repeat(length));
        let pairs = names.iter().map(|name| (name.as_bytes(), &b"v"[..]));
        let wanted = Wanted {
            copy: vec![NamePattern::Prefix("n".to_string())],
            ..Wanted::default()
        };
        let read = TraceHeaders::read(pairs, &wanted);
        let context = (B3::default(), W3cState::Absent);
        let (stored, dropped) = StoredContext::of(&read, Formats::default(), context);
        assert_eq!(dropped, 1);
        assert_eq!(stored.copied.len(), 1);
        assert_eq!(stored.copied[0].0.len(), 255);
    }
}
