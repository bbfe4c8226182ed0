//! Header names, one pass over the headers of a request, and edits.
//!
//! Names arrive in lower case (Envoy lower-cases them on every protocol);
//! values are bytes, since HTTP/1.1 and Envoy allow `obs-text` in them.

use alloc::borrow::Cow;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

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
    matches!(
        name,
        b"x-b3-traceid"
            | b"x-b3-spanid"
            | b"x-b3-parentspanid"
            | b"x-b3-sampled"
            | b"x-b3-flags"
            | b"b3"
            | b"x-ot-span-context"
            | b"traceparent"
            | b"tracestate"
    )
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

/// The header pairs of a request as Envoy serialises them for a module:
/// a count, the lengths of each name and value (all u32, little-endian), then
/// the names and values, each ended by a zero byte (proxy-wasm ABI 0.2.1,
/// `proxy_get_header_map_pairs`).
///
/// Yields only what is whole: input that is cut short ends the iteration.
///
/// ```
/// # use b3relay::header::{serialize, Pairs};
/// let map = serialize(&[("b3", b"0")]);
/// let pairs: Vec<_> = Pairs::new(&map).collect();
/// assert_eq!(pairs, [(&b"b3"[..], &b"0"[..])]);
/// ```
#[derive(Clone, Debug)]
pub struct Pairs<'a> {
    lengths: &'a [u8],
    text: &'a [u8],
}

impl<'a> Pairs<'a> {
    /// Reads a serialised header map.
    pub fn new(map: &'a [u8]) -> Self {
        let empty = Self {
            lengths: &[],
            text: &[],
        };
        let Some((count, rest)) = map.split_first_chunk::<4>() else {
            return empty;
        };
        let lengths = (u32::from_le_bytes(*count) as usize).checked_mul(8);
        match lengths.and_then(|n| rest.split_at_checked(n)) {
            Some((lengths, text)) => Self { lengths, text },
            None => empty,
        }
    }

    fn take(&mut self, length: [u8; 4]) -> Option<&'a [u8]> {
        let length = u32::from_le_bytes(length) as usize;
        let (text, rest) = self.text.split_at_checked(length.checked_add(1)?)?;
        self.text = rest;
        // Without the zero.
        Some(text.split_last()?.1)
    }
}

impl<'a> Iterator for Pairs<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let ([a, b, c, d, e, f, g, h], lengths) = self.lengths.split_first_chunk::<8>()?;
        self.lengths = lengths;
        Some((self.take([*a, *b, *c, *d])?, self.take([*e, *f, *g, *h])?))
    }
}

/// The inverse of [`Pairs`], for tests and for hosts other than Envoy.
pub fn serialize<V: AsRef<[u8]>>(headers: &[(&str, V)]) -> Vec<u8> {
    let mut map = Vec::new();
    let length = |n: usize| u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes();
    map.extend_from_slice(&length(headers.len()));
    for (name, value) in headers {
        map.extend_from_slice(&length(name.len()));
        map.extend_from_slice(&length(value.as_ref().len()));
    }
    for (name, value) in headers {
        map.extend_from_slice(name.as_bytes());
        map.push(0);
        map.extend_from_slice(value.as_ref());
        map.push(0);
    }
    map
}

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

    /// The header came more than once.
    pub fn repeated(&self) -> bool {
        self.repeated
    }

    /// The header came more than once, with different values.
    pub fn differing(&self) -> bool {
        self.differing
    }

    fn add(&mut self, value: &'a [u8]) {
        match self.first {
            None => self.first = Some(value),
            Some(first) => {
                self.repeated = true;
                self.differing |= first != value;
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
    /// `x-ot-span-context` and the headers of the copy list, name and value; in
    /// the request's order, repeated ones included.
    pub copied: Vec<(&'a [u8], &'a [u8])>,
    /// Names of headers with a trace context that is not read here, repeated ones
    /// included.
    pub unread: Vec<&'a [u8]>,
    /// How many headers there are, and their bytes.
    pub size: Size,
    /// The headers that are look-up keys, besides those with a field of their
    /// own: index into [`Wanted::keys`], and the first value.
    pub keys: Vec<(usize, &'a [u8])>,
    /// Values of the headers of [`Wanted::tokens`].
    pub tokens: Vec<&'a [u8]>,
}

/// How large the headers of a request are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// How many.
    pub headers: usize,
    /// Of names and values.
    pub bytes: usize,
}

impl Size {
    /// What may be sent without being refused by the next proxy: Envoy takes 100
    /// headers and 60 KiB, and its router adds some of its own.
    const MOST: Self = Self {
        headers: 95,
        bytes: 58 * 1024,
    };

    /// There is room for these as well.
    pub fn has_room(self, edits: &[Edit]) -> bool {
        let added = edits.iter().filter_map(|edit| match edit {
            Edit::Set(name, value) | Edit::Add(name, value) => Some(name.len() + value.len()),
            Edit::Remove(_) => None,
        });
        let (mut headers, mut bytes) = (self.headers, self.bytes);
        for length in added {
            headers += 1;
            bytes += length;
        }
        headers <= Self::MOST.headers && bytes <= Self::MOST.bytes
    }
}

/// Which headers to pick out, besides those that have a field of their own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The copy list.
    pub copy: Vec<Pattern>,
    /// Names of look-up keys, in lower case.
    pub keys: Vec<String>,
    /// Names of headers that may identify a request, in lower case.
    pub tokens: Vec<String>,
}

/// A header name in lower case, or the beginning of some.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// This name.
    Name(String),
    /// Every name that begins so, but for those that frame a message.
    Prefix(String),
}

impl Pattern {
    fn matches(&self, name: &[u8]) -> bool {
        match self {
            Self::Name(wanted) => wanted.as_bytes() == name,
            Self::Prefix(prefix) => {
                name.starts_with(prefix.as_bytes()) && !is_of_the_connection(name)
            }
        }
    }
}

/// Headers that belong to a connection (RFC 9110, section 7.6.1), or that
/// frame or route a message: they are never copied.
pub fn is_of_the_connection(name: &[u8]) -> bool {
    matches!(
        name,
        b"host"
            | b"connection"
            | b"proxy-connection"
            | b"keep-alive"
            | b"te"
            | b"trailer"
            | b"transfer-encoding"
            | b"upgrade"
            | b"content-length"
            | b"expect"
    ) || name.starts_with(b":")
}

impl<'a> TraceHeaders<'a> {
    /// One pass over the pairs of a request.
    pub fn read<I>(pairs: I, wanted: &Wanted) -> Self
    where
        I: IntoIterator<Item = (&'a [u8], &'a [u8])>,
    {
        let mut headers = Self::default();
        for (name, value) in pairs {
            headers.size.headers += 1;
            headers.size.bytes += name.len() + value.len();
            let key = wanted.keys.iter().position(|key| key.as_bytes() == name);
            headers.keys.extend(key.map(|index| (index, value)));
            if let Some(field) = headers.field(name) {
                field.add(value);
                if name == OT_SPAN_CONTEXT.as_bytes() {
                    headers.copied.push((name, value));
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
        headers
    }

    fn field(&mut self, name: &[u8]) -> Option<&mut Field<'a>> {
        Some(match name {
            b"x-request-id" => &mut self.request_id,
            b"x-b3-traceid" => &mut self.trace_id,
            b"x-b3-spanid" => &mut self.span_id,
            b"x-b3-parentspanid" => &mut self.parent_span_id,
            b"x-b3-sampled" => &mut self.sampled,
            b"x-b3-flags" => &mut self.flags,
            b"b3" => &mut self.b3,
            b"x-ot-span-context" => &mut self.ot_span_context,
            b"traceparent" => &mut self.traceparent,
            b"tracestate" => &mut self.tracestate,
            b":authority" => &mut self.authority,
            b":method" => &mut self.method,
            b":path" => &mut self.path,
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
        let copied = self.copied.iter().map(|(name, _)| name);
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

/// A change to the headers of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edit {
    /// Replace every value of the header by this one, or add it.
    Set(Cow<'static, str>, Vec<u8>),
    /// Add a further value.
    Add(Cow<'static, str>, Vec<u8>),
    /// Remove every value of the header.
    Remove(Cow<'static, str>),
}

impl Edit {
    /// Replace or add.
    pub fn set(name: impl Into<Cow<'static, str>>, value: impl Into<Vec<u8>>) -> Self {
        Self::Set(name.into(), value.into())
    }

    /// Remove.
    pub fn remove(name: impl Into<Cow<'static, str>>) -> Self {
        Self::Remove(name.into())
    }

    /// The header that changes.
    pub fn name(&self) -> &str {
        match self {
            Self::Set(name, _) | Self::Add(name, _) | Self::Remove(name) => name,
        }
    }

    /// Applies the edit to headers held as pairs, as Envoy's header map does:
    /// a replaced header keeps the place of its first value.
    pub fn apply(&self, headers: &mut Vec<(String, Vec<u8>)>) {
        let named = |(name, _): &(String, Vec<u8>)| name == self.name();
        match self {
            Self::Set(name, value) => match headers.iter().position(named) {
                Some(at) => {
                    let mut index = 0;
                    headers.retain(|pair| {
                        let keep = !named(pair) || index == at;
                        index += 1;
                        keep
                    });
                    if let Some(pair) = headers.get_mut(at) {
                        pair.1.clone_from(value);
                    }
                }
                None => headers.push((name.to_string(), value.clone())),
            },
            Self::Add(name, value) => headers.push((name.to_string(), value.clone())),
            Self::Remove(_) => headers.retain(|pair| !named(pair)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn map_cut_short_yields_only_what_is_whole() {
        let map = serialize(&[("a", "1"), ("b", "2")]);
        for end in 0..map.len() {
            let n = Pairs::new(&map[..end]).count();
            assert!(n < 2, "{end}: {n}");
        }
        assert_eq!(Pairs::new(&map).count(), 2);
    }

    #[test]
    fn lengths_beyond_the_map_are_refused() {
        assert_eq!(Pairs::new(&[0xff; 64]).count(), 0);
        assert_eq!(
            Pairs::new(&[1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]).count(),
            0
        );
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

    #[test]
    fn set_replaces_every_value_in_place() {
        let mut headers = vec![
            ("a".to_string(), b"1".to_vec()),
            ("b".to_string(), b"2".to_vec()),
            ("a".to_string(), b"3".to_vec()),
        ];
        Edit::set("a", "x").apply(&mut headers);
        assert_eq!(
            headers,
            [("a".into(), b"x".to_vec()), ("b".into(), b"2".to_vec())]
        );
        Edit::remove("a").apply(&mut headers);
        Edit::set("c", "y").apply(&mut headers);
        assert_eq!(
            headers,
            [("b".into(), b"2".to_vec()), ("c".into(), b"y".to_vec())]
        );
    }

    proptest! {
        #[test]
        fn pairs_never_panic(bytes: Vec<u8>) {
            Pairs::new(&bytes).count();
        }

        #[test]
        fn pairs_invert_serialize(values: Vec<Vec<u8>>) {
            let headers: Vec<(&str, &[u8])> = values.iter().map(|v| ("name", v.as_slice())).collect();
            let map = serialize(&headers);
            let back: Vec<_> = Pairs::new(&map).map(|(_, v)| v.to_vec()).collect();
            prop_assert_eq!(back, values);
        }
    }
}
