//! Envoy's request IDs: their form, and the look-up key made of them.
//!
//! Source: Envoy's `envoy.request_id.uuid` extension. A request ID is a UUIDv4
//! of 36 characters. Envoy keeps the reason for tracing in the character at
//! index 14 (`4` no trace, `9` sampled, `a` forced by the service, `b` forced
//! by the client) and rewrites it in any value of 36 characters, whether it is
//! a UUID or not. So two hops of one request may differ there.

/// Characters of a UUID in text form.
pub const LENGTH: usize = 36;
/// The character that Envoy rewrites, zero-based.
const TRACE_REASON: usize = 14;
/// Bytes of the longest value that is used as a key. Longer ones are not
/// remembered: memory is bounded.
pub const LONGEST_KEY: usize = 255;

/// What identifies a request on both sides of the application: the request ID
/// without the character that Envoy rewrites.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key(Vec<u8>);

impl Key {
    /// `None` for an empty value and for one of more than [`LONGEST_KEY`] bytes.
    pub fn new(request_id: &[u8]) -> Option<Self> {
        if request_id.is_empty() || request_id.len() > LONGEST_KEY {
            return None;
        }
        let mut key = request_id.to_vec();
        if key.len() == LENGTH {
            if let Some(reason) = key.get_mut(TRACE_REASON) {
                *reason = b'*';
            }
        }
        Some(Self(key))
    }

    /// 1 to [`LONGEST_KEY`] bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// A UUID in text form, of any version and in any case.
pub fn is_uuid(value: &[u8]) -> bool {
    value.len() == LENGTH
        && value.iter().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => *byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

/// A UUIDv4 in lower case, as Envoy generates it: `4` at index 14, which says
/// "no trace" until Envoy decides.
pub fn generate(mut random: [u8; 16]) -> [u8; LENGTH] {
    let [.., version, _, variant, _, _, _, _, _, _, _] = &mut random;
    *version = (*version & 0x0f) | 0x40;
    *variant = (*variant & 0x3f) | 0x80;
    let mut text = [b'-'; LENGTH];
    let places = (0..LENGTH).filter(|at| !matches!(at, 8 | 13 | 18 | 23));
    let nibbles = random.iter().flat_map(|byte| [byte >> 4, byte & 0xf]);
    for (at, nibble) in places.zip(nibbles) {
        if let Some(place) = text.get_mut(at) {
            *place = if nibble < 10 {
                b'0' + nibble
            } else {
                b'a' + nibble - 10
            };
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_trace_reason_is_masked() {
        let key = |c: char| Key::new(format!("0f7a1c2e-1b2d-{c}c3e-9d4f-5a6b7c8d9e0f").as_bytes());
        assert_eq!(key('4'), key('9'));
        assert_eq!(key('a'), key('b'));
        // 35 characters: Envoy leaves it alone, so does the key.
        assert_ne!(Key::new(&[b'a'; 35]), Key::new(&[b'b'; 35]));
    }

    #[test]
    fn a_neighbour_of_the_trace_reason_is_not_masked() {
        for at in (0..LENGTH).filter(|at| *at != TRACE_REASON) {
            let mut other = [b'a'; LENGTH];
            other[at] = b'b';
            assert_ne!(Key::new(&[b'a'; LENGTH]), Key::new(&other), "{at}");
        }
    }

    #[test]
    fn keys_are_bounded() {
        assert_eq!(Key::new(b""), None);
        assert!(Key::new(&[b'x'; LONGEST_KEY]).is_some());
        assert_eq!(Key::new(&[b'x'; LONGEST_KEY + 1]), None);
    }

    proptest! {
        #[test]
        fn generated_ids_are_of_envoys_form(random: [u8; 16]) {
            let id = generate(random);
            prop_assert!(is_uuid(&id));
            prop_assert_eq!(id[TRACE_REASON], b'4');
            prop_assert!(matches!(id[19], b'8' | b'9' | b'a' | b'b'));
            prop_assert!(id.iter().all(|c| !c.is_ascii_uppercase()));
        }

        #[test]
        fn generated_ids_carry_122_bits(a: [u8; 16], b: [u8; 16]) {
            let bits = |mut r: [u8; 16]| { r[6] &= 0x0f; r[8] &= 0x3f; r };
            prop_assert_eq!(generate(a) == generate(b), bits(a) == bits(b));
        }
    }
}
