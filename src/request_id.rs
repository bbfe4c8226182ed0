//! Envoy's request IDs: their form.
//!
//! Source: Envoy's `envoy.request_id.uuid` extension. A request ID is a UUIDv4
//! of 36 characters. Envoy keeps the reason for tracing in the character at
//! index 14 (`4` no trace, `9` sampled, `a` forced by the service, `b` forced
//! by the client) and rewrites it in any value of 36 characters, whether it is
//! a UUID or not. So two hops of one request may differ there.

use crate::b3::hex::Digits;
use crate::bytes::{alike, contains, read_array};

/// Characters of a UUID in text form.
pub const LENGTH: usize = 36;
/// The character that Envoy rewrites, zero-based.
pub const TRACE_REASON: usize = 14;

/// A UUID in text form, of any version: whether it has digits in upper case. `None` for
/// anything else. Not by the crate `uuid`: each request asks this, and that takes 1,600 to
/// 3,000 instructions for it.
pub fn upper_case_of_uuid(value: &[u8]) -> Option<bool> {
    let mut rest = value;
    let first: [u8; 8] = read_array(&mut rest)?;
    let [b'-', a, b, c, d] = read_array(&mut rest)? else {
        return None;
    };
    let [b'-', e, f, g, h] = read_array(&mut rest)? else {
        return None;
    };
    let [b'-', i, j, k, l, b'-'] = read_array(&mut rest)? else {
        return None;
    };
    let [m, n, o, p] = read_array(&mut rest)?;
    let last: [u8; 8] = rest.try_into().ok()?;
    let eights = [
        first,
        [a, b, c, d, e, f, g, h],
        [i, j, k, l, m, n, o, p],
        last,
    ];
    let (mut is_uuid, mut has_upper) = (true, false);
    for eight in eights {
        let digits = Digits::read(eight);
        is_uuid &= digits.is_hex;
        has_upper |= digits.has_upper;
    }
    is_uuid.then_some(has_upper)
}

/// A UUID in text form, of any version and in any case.
pub fn is_uuid(value: &[u8]) -> bool {
    upper_case_of_uuid(value).is_some()
}

/// A value that Envoy may have made up: a UUIDv4 in lower case, with one of the
/// reasons for tracing.
pub fn is_envoys(value: &[u8]) -> bool {
    let reason = value.get(TRACE_REASON);
    matches!(reason, Some(b'4' | b'9' | b'a' | b'b')) && upper_case_of_uuid(value) == Some(false)
}

/// Bytes of a value that is looked at for a list.
const LISTED: usize = 1024;

/// The ID that a request ID stands for: where several headers say the same, Envoy
/// joins them with commas. A list of different ones stays as it is, and so does a very
/// long value.
pub fn one(value: &[u8]) -> &[u8] {
    if value.len() > LISTED {
        return value;
    }
    if !contains(value, b',') {
        let trimmed = value.trim_ascii();
        return if trimmed.is_empty() { value } else { trimmed };
    }
    let mut parts = value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii);
    match parts.next().filter(|first| !first.is_empty()) {
        Some(first) if first.len() < value.len() && parts.all(|other| same_one(first, other)) => {
            first
        }
        _ => value,
    }
}

/// The same ID, but perhaps for the character that Envoy rewrites, for the case of
/// a UUID (RFC 9562 compares them without regard to it), and for how often it is said.
pub fn same(a: &[u8], b: &[u8]) -> bool {
    same_one(one(a), one(b))
}

fn same_one(a: &[u8], b: &[u8]) -> bool {
    if alike(a, b, a.len()) {
        return true;
    }
    let masked = |at: usize| a.len() == LENGTH && at == TRACE_REASON;
    let uuid = is_uuid(a);
    a.len() == b.len()
        && a.iter()
            .zip(b)
            .enumerate()
            .all(|(at, (a, b))| a == b || masked(at) || (uuid && a.eq_ignore_ascii_case(b)))
}

/// The same ID without a reason for tracing, which Envoy then decides by itself; `None`
/// if it says none.
pub fn undecided(value: &[u8]) -> Option<Vec<u8>> {
    let mut id = value.to_vec();
    let reason = id.get_mut(TRACE_REASON).filter(|_| value.len() == LENGTH)?;
    if !matches!(reason, b'9' | b'a' | b'b') {
        return None;
    }
    *reason = b'4';
    Some(id)
}

/// A UUIDv4 in lower case, as Envoy generates it: `4` at index 14, which says
/// "no trace" until Envoy decides.
pub fn generate(random: [u8; 16]) -> [u8; LENGTH] {
    let mut text = [0; LENGTH];
    let id = uuid::Builder::from_random_bytes(random).into_uuid();
    id.hyphenated().encode_lower(&mut text);
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const R: &[u8] = b"0f7a1c2e-1b2d-4c3e-9d4f-5a6b7c8d9e0f";

    #[test]
    fn envoys_own_ids_have_a_reason_for_tracing() {
        assert!(is_envoys(b"0f7a1c2e-1b2d-4c3e-9d4f-5a6b7c8d9e0f"));
        assert!(is_envoys(b"0f7a1c2e-1b2d-ac3e-9d4f-5a6b7c8d9e0f"));
        for other in [
            &b"0f7a1c2e-1b2d-7c3e-9d4f-5a6b7c8d9e0f"[..],
            b"0F7A1C2E-1B2D-4C3E-9D4F-5A6B7C8D9E0F",
            b"order-number-14-9",
            b"",
        ] {
            assert!(!is_envoys(other));
        }
    }

    #[test]
    fn a_list_is_looked_for_in_a_kilobyte() {
        let twice = |length: usize| [vec![b'a'; length], vec![b'a'; length]].join(&b","[..]);
        let joined = twice(511);
        assert_eq!(joined.len(), 1023);
        assert_eq!(one(&joined), vec![b'a'; 511]);
        let joined = [joined, b" ".to_vec()].concat();
        assert_eq!(one(&joined), vec![b'a'; 511]);
        let joined = twice(512);
        assert_eq!(one(&joined), joined);
    }

    #[test]
    fn a_request_id_that_is_said_twice_is_one() {
        let joined = |parts: &[&[u8]], by: &[u8]| parts.join(by);
        for by in [&b","[..], b", ", b" , "] {
            assert_eq!(one(&joined(&[R, R], by)), R);
            assert_eq!(one(&joined(&[R, R, R], by)), R);
            assert_eq!(one(&joined(&[b"a", b"a"], by)), b"a");
            // As far as they are compared.
            let other = b"0F7A1C2E-1B2D-9C3E-9D4F-5A6B7C8D9E0F";
            assert_eq!(one(&joined(&[R, other], by)), R);
            assert!(same(&joined(&[R, R], by), R) && same(R, &joined(&[other, R], by)));
            for list in [
                &[R, b"a"][..],
                &[b"a", R],
                &[R, b""],
                &[b"", b""],
                &[R, R, b"a"],
            ] {
                let list = joined(list, by);
                assert_eq!(one(&list), list);
                assert!(!same(&list, R));
            }
        }
        assert_eq!(one(b""), b"");
        assert_eq!(one(b"a b"), b"a b");
    }

    #[test]
    fn what_is_no_uuid_is_refused() {
        assert_eq!(upper_case_of_uuid(R), Some(false));
        assert_eq!(upper_case_of_uuid(&R.to_ascii_uppercase()), Some(true));
        for at in 0..LENGTH {
            for byte in [b'-', b'g', b'/', b':', b'@', b'`', 0xb0] {
                let mut other = R.to_vec();
                other[at] = byte;
                assert_eq!(is_uuid(&other), R[at] == byte, "{at} {byte}");
            }
            assert!(!is_uuid(&R[..at]));
        }
        assert!(!is_uuid(&[R, b"0"].concat()));
    }

    #[test]
    fn uuids_are_compared_without_regard_to_case() {
        assert!(same(R, &R.to_ascii_uppercase()) && same(&R.to_ascii_uppercase(), R));
        assert!(!same(R, &R.to_ascii_uppercase()[1..]));
        // Others are not.
        for id in [
            &b"0f7a1c2e1b2d4c3e9d4f5a6b7c8d9e0f"[..],
            b"abc",
            &[b'x'; 36],
        ] {
            assert!(same(id, id) && !same(id, &id.to_ascii_uppercase()));
        }
    }

    proptest! {
        #[test]
        fn generated_ids_are_of_envoys_form(random: [u8; 16]) {
            let id = generate(random);
            prop_assert!(is_uuid(&id) && is_envoys(&id));
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
