//! Header names, one pass over the headers of a request, and edits.
//!
//! Names arrive in lower case (Envoy lower-cases them on every protocol);
//! values are bytes, since HTTP/1.1 and Envoy allow `obs-text` in them.

use crate::bytes::alike;
use std::borrow::Cow;
use std::fmt;

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
    /// The look-up keys, besides those with a field of their own: index into
    /// [`Wanted::keys`], and the value or the part of it that counts.
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
    /// headers and 60 KiB (`max_headers_count`, `max_request_headers_kb`), and its
    /// router adds some of its own.
    const MOST: Self = Self {
        headers: 95,
        bytes: 58 * 1024,
    };

    fn of<'a>(pairs: impl IntoIterator<Item = &'a (&'a [u8], &'a [u8])>) -> Self {
        let pairs = pairs.into_iter();
        pairs.fold(Self::default(), |size, (name, value)| Self {
            headers: size.headers + 1,
            bytes: size.bytes + name.len() + value.len(),
        })
    }
}

/// Which headers to pick out, besides those that have a field of their own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The copy list.
    pub copy: Vec<Pattern>,
    /// Look-up keys.
    pub keys: Vec<Named>,
    /// Names of headers that may identify a request, in lower case.
    pub tokens: Vec<String>,
}

/// A header, or a part of its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// Its name in lower case.
    pub header: String,
    /// The name of a parameter in lower case.
    pub parameter: Option<String>,
}

impl fmt::Display for Named {
    /// As the configuration has it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.header)?;
        match &self.parameter {
            Some(parameter) => write!(f, ":{parameter}"),
            None => Ok(()),
        }
    }
}

impl Named {
    /// Bytes of a value in which parameters are looked for.
    const SEARCHED: usize = 8192;

    /// What counts of a value: all of it, or what follows `name=`, among parameters that
    /// are separated by `;` or `,`. Names are compared without regard to case.
    pub fn value<'a>(&self, value: &'a [u8]) -> Option<&'a [u8]> {
        let Some(parameter) = &self.parameter else {
            return Some(value);
        };
        let cut = value.len() > Self::SEARCHED;
        let mut searched = value.get(..Self::SEARCHED).unwrap_or(value);
        if cut {
            // Not the last one, which may be cut.
            let end = searched.iter().rposition(is_separator);
            searched = searched.get(..end.unwrap_or(0)).unwrap_or_default();
        }
        let mut parts = searched.split(is_separator);
        parts.find_map(|part| {
            let equals = part.iter().position(|&byte| byte == b'=')?;
            let (name, value) = part.split_at_checked(equals)?;
            let value = value.get(1..)?.trim_ascii();
            let name = name.trim_ascii();
            let named = name.eq_ignore_ascii_case(parameter.as_bytes());
            (named && !value.is_empty()).then_some(value)
        })
    }
}

fn is_separator(byte: &u8) -> bool {
    matches!(byte, b';' | b',')
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

/// A header of the trace context whose value nobody but its own tracer reads.
pub fn is_opaque(name: &[u8]) -> bool {
    name == OT_SPAN_CONTEXT.as_bytes() || name == TRACESTATE.as_bytes()
}

/// Envoy made the request ID up, as far as the order of the headers tells.
///
/// Envoy adds `x-forwarded-proto` to a request that lacks it, and then `x-request-id`
/// (`ConnectionManagerUtility::mutateRequestHeaders`), each behind what the client sent.
/// So an ID that Envoy made up stands directly behind `x-forwarded-proto`, and before
/// nothing but what Envoy adds later. Where a client sends `x-forwarded-proto` itself,
/// the order does not tell, and the ID counts as the client's.
fn has_new_request_id(all: &[(&[u8], &[u8])]) -> bool {
    let at = all
        .iter()
        .position(|(name, _)| *name == REQUEST_ID.as_bytes());
    let Some((before, [_, after @ ..])) = at.and_then(|at| all.split_at_checked(at)) else {
        return false;
    };
    let added_by_envoy = |(name, _): &(&[u8], &[u8])| name.starts_with(b"x-envoy-");
    before
        .last()
        .is_some_and(|(name, _)| *name == b"x-forwarded-proto")
        && after.iter().all(added_by_envoy)
}

impl<'a> TraceHeaders<'a> {
    /// One pass over the pairs of a request.
    pub fn read<I>(pairs: I, wanted: &Wanted) -> Self
    where
        I: IntoIterator<Item = (&'a [u8], &'a [u8])>,
    {
        let mut headers = Self::default();
        for (name, value) in pairs {
            headers.all.push((name, value));
            for (index, key) in wanted.keys.iter().enumerate() {
                if key.header.as_bytes() == name {
                    headers
                        .keys
                        .extend(key.value(value).map(|value| (index, value)));
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
        headers.has_new_request_id = has_new_request_id(&headers.all);
        headers
    }

    /// The request carries this header.
    pub fn has(&self, name: &str) -> bool {
        self.all.iter().any(|(known, _)| *known == name.as_bytes())
    }

    /// The next proxy takes the request with these edits, or they make it no larger.
    pub fn has_room(&self, edits: &[Edit]) -> bool {
        let before = Size::of(&self.all);
        let replaced = |name: &[u8]| {
            let mut edits = edits.iter();
            edits.any(|edit| !matches!(edit, Edit::Add(..)) && edit.name().as_bytes() == name)
        };
        let mut after = Size::of(self.all.iter().filter(|(name, _)| !replaced(name)));
        for edit in edits {
            if let Edit::Set(name, value) | Edit::Add(name, value) = edit {
                after.headers += 1;
                after.bytes += name.len() + value.len();
            }
        }
        after.headers <= Size::MOST.headers.max(before.headers)
            && after.bytes <= Size::MOST.bytes.max(before.bytes)
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
    fn a_part_of_a_value_is_found_by_its_name() {
        let root = Named {
            header: "x-amzn-trace-id".to_string(),
            parameter: Some("root".to_string()),
        };
        let part = |text: &str| root.value(text.as_bytes()).map(<[u8]>::to_vec);
        let found = Some(b"1-67891233-abcdef".to_vec());
        for text in [
            "Root=1-67891233-abcdef",
            "Root=1-67891233-abcdef;Parent=53995c3f42cd8ad8;Sampled=1",
            "Self=1-6789-0;Root=1-67891233-abcdef",
            "Self=1-6789-0; root = 1-67891233-abcdef ;x",
            "a=1, ROOT=1-67891233-abcdef",
            ";;,Root=;Root=1-67891233-abcdef;Root=2",
        ] {
            assert_eq!(part(text), found, "{text}");
        }
        for text in [
            "", "Root", "Root=", "xRoot=1", "Root;=1", "a=Root=1", "Root: 1",
        ] {
            assert_eq!(part(text), None, "{text}");
        }
        // What follows the first equals sign, base64 say, is the value.
        assert_eq!(part("root=YQ=="), Some(b"YQ==".to_vec()));
    }

    #[test]
    fn the_search_for_a_part_is_bounded() {
        let last = Named {
            header: "a".to_string(),
            parameter: Some("last".to_string()),
        };
        for (before, found) in [
            (0, true),
            (8000, true),
            (8178, true),
            (8179, false),
            (60_000, false),
        ] {
            let text = format!("{};last=1234567;b=2", "x".repeat(before));
            assert_eq!(last.value(text.as_bytes()).is_some(), found, "{before}");
        }
        // Not a part of it.
        let text = format!("last={}", "x".repeat(9000));
        assert_eq!(last.value(text.as_bytes()), None);
    }

    #[test]
    fn one_header_may_have_several_parts_that_count() {
        let named = |parameter: Option<&str>| Named {
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
