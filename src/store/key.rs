//! Keys: what a request is looked up by. An inbound request and the calls of the
//! application that belong to it have a key in common.

use crate::b3::TraceId;
use crate::headers::HeaderPart;
use crate::request_id::{self, LENGTH, TRACE_REASON};

/// Bytes of the longest header value that is used as a key. Longer ones are not
/// stored: memory is bounded.
pub const LONGEST: usize = 255;

/// A look-up key: which kind it is of, and its value. Keys of different kinds
/// are never equal.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key(Vec<u8>);

impl Key {
    /// Of an `x-request-id`: of the one ID that is in it ([`request_id::one`]), without
    /// the character that Envoy rewrites, and of a UUID in lower case.
    /// `None` for an empty value and for one of more than [`LONGEST`] bytes.
    pub fn request_id(value: &[u8]) -> Option<Self> {
        let value = request_id::one(value);
        let mut key = Self::of(b'r', &[value])?;
        if request_id::upper_case_of_uuid(value) == Some(true) {
            key.0.make_ascii_lowercase();
        }
        if value.len() == LENGTH {
            // Behind the byte that says of which kind the key is.
            if let Some(reason) = key.0.get_mut(TRACE_REASON + 1) {
                *reason = b'*';
            }
        }
        Some(key)
    }

    /// Of a trace ID, in whichever header and form it came.
    pub fn trace(trace: TraceId) -> Self {
        let mut key = Vec::with_capacity(17);
        key.push(b't');
        key.extend_from_slice(&trace.value().to_be_bytes());
        Self(key)
    }

    /// It is a trace ID.
    pub fn is_trace(&self) -> bool {
        self.0.first() == Some(&b't')
    }

    /// It is a request ID.
    pub fn is_request_id(&self) -> bool {
        self.0.first() == Some(&b'r')
    }

    /// Of nothing: no call has it.
    pub fn unnamed(random: [u8; 16]) -> Self {
        let mut key = vec![b'n'];
        key.extend_from_slice(&random);
        Self(key)
    }

    /// Of any other header, or of a part of its value. `None` as for [`Key::request_id`].
    pub fn header(named: &HeaderPart, value: &[u8]) -> Option<Self> {
        let parameter = named.parameter.as_deref().unwrap_or_default();
        // Neither name holds a colon.
        let [header, parameter] = [named.header.as_bytes(), parameter.as_bytes()];
        Self::of(b'h', &[header, b":", parameter, b":", value])
    }

    fn of(kind: u8, parts: &[&[u8]]) -> Option<Self> {
        let value = parts.last()?;
        if value.is_empty() || value.len() > LONGEST {
            return None;
        }
        let mut key = Vec::with_capacity(1 + parts.iter().map(|part| part.len()).sum::<usize>());
        key.push(kind);
        for part in parts {
            key.extend_from_slice(part);
        }
        Some(Self(key))
    }

    /// At most 1 KiB.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(name: &str, value: &[u8]) -> Option<Key> {
        let (header, parameter) = name.split_once(':').unwrap_or((name, ""));
        let parameter = (!parameter.is_empty()).then(|| parameter.to_string());
        let header = header.to_string();
        Key::header(&HeaderPart { header, parameter }, value)
    }

    #[test]
    fn a_request_id_has_one_key_however_it_is_said() {
        let id = "0f7a1c2e-1b2d-4c3e-9d4f-5a6b7c8d9e0f";
        let key = |text: &str| Key::request_id(text.as_bytes()).unwrap();
        for same in [
            id.to_uppercase(),
            format!("{id},{id}"),
            format!("{id}, {id}"),
            format!("{id}, {}", id.to_uppercase()),
        ] {
            assert_eq!(key(&same), key(id), "{same}");
        }
        assert_eq!(key("a,a"), key("a"));
        for other in [format!("{id},a"), format!("a,{id}"), format!("{id},")] {
            assert_ne!(key(&other), key(id), "{other}");
        }
        // The case of others matters.
        assert_ne!(key("ab"), key("AB"));
        // Twice the longest is the longest.
        let long = "x".repeat(LONGEST);
        assert_eq!(key(&format!("{long},{long}")), key(&long));
    }

    #[test]
    fn the_trace_reason_is_masked() {
        let key =
            |c: char| Key::request_id(format!("0f7a1c2e-1b2d-{c}c3e-9d4f-5a6b7c8d9e0f").as_bytes());
        assert_eq!(key('4'), key('9'));
        assert_eq!(key('a'), key('b'));
        // 35 characters: Envoy leaves it alone, so does the key.
        assert_ne!(Key::request_id(&[b'a'; 35]), Key::request_id(&[b'b'; 35]));
    }

    #[test]
    fn a_neighbour_of_the_trace_reason_is_not_masked() {
        for at in (0..LENGTH).filter(|at| *at != TRACE_REASON) {
            let mut other = [b'a'; LENGTH];
            other[at] = b'b';
            assert_ne!(
                Key::request_id(&[b'a'; LENGTH]),
                Key::request_id(&other),
                "{at}"
            );
        }
    }

    #[test]
    fn keys_are_bounded() {
        assert_eq!(Key::request_id(b""), None);
        assert_eq!(header("a", b""), None);
        for length in [LONGEST, LONGEST + 1] {
            let value = vec![b'x'; length];
            assert_eq!(Key::request_id(&value).is_some(), length == LONGEST);
            assert_eq!(header("a", &value).is_some(), length == LONGEST);
        }
    }

    #[test]
    fn keys_of_different_kinds_are_never_equal() {
        let trace = TraceId::new(0x6161_6161_6161_6161_6161_6161_6161_6161, true).unwrap();
        let keys = [
            Key::request_id(&[b'a'; 16]).unwrap(),
            Key::trace(trace),
            header("a", &[b'a'; 14]).unwrap(),
            header("aa", &[b'a'; 13]).unwrap(),
            header("a:a", &[b'a'; 12]).unwrap(),
            header("a", b":aaaaaaaaaaa").unwrap(),
            header("a", b"a:aaaaaaaaaa").unwrap(),
        ];
        for (n, key) in keys.iter().enumerate() {
            assert!(!keys[..n].contains(key));
        }
    }

    #[test]
    fn a_trace_id_is_the_same_in_either_width() {
        let (short, long) = (TraceId::new(7, false), TraceId::new(7, true));
        assert_eq!(short.map(Key::trace), long.map(Key::trace));
    }
}
