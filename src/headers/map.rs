//! The header map as Envoy serialises it for a module.

/// The header pairs of a request as Envoy serialises them for a module:
/// a count, the lengths of each name and value (all u32, little-endian), then
/// the names and values, each ended by a zero byte (proxy-wasm ABI 0.2.1,
/// `proxy_get_header_map_pairs`).
///
/// Yields only what is whole: input that is cut short ends the iteration.
///
/// ```
/// # use b3relay::headers::{serialize, Pairs};
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

    fn size_hint(&self) -> (usize, Option<usize>) {
        (0, Some(self.lengths.len() / 8))
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
