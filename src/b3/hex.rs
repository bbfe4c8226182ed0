//! Hexadecimal digits, as many at a time as a register holds.

use super::IdError;
use crate::bytes::each;

/// Eight digits at a time: one after the other is most of what a copied context
/// costs, and a shift of 128 bits is a call on wasm32.
pub(super) fn write_hex(value: u64, to: &mut Vec<u8>) {
    let [a, b, c, d, e, f, g, h] = value.to_be_bytes();
    for half in [[a, b, c, d], [e, f, g, h]] {
        // A digit in each byte.
        let mut digits = u64::from(u32::from_be_bytes(half));
        digits = (digits | (digits << 16)) & 0x0000_ffff_0000_ffff;
        digits = (digits | (digits << 8)) & 0x00ff_00ff_00ff_00ff;
        digits = (digits | (digits << 4)) & 0x0f0f_0f0f_0f0f_0f0f;
        // 1 for each that is a letter.
        let letters = ((digits + 0x0606_0606_0606_0606) >> 4) & 0x0101_0101_0101_0101;
        let text = digits + 0x3030_3030_3030_3030 + letters * u64::from(b'a' - b'0' - 10);
        to.extend_from_slice(&text.to_be_bytes());
    }
}

/// Eight characters, read as hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Digits {
    /// All of them are digits.
    pub is_hex: bool,
    /// Some are letters in upper case.
    pub has_upper: bool,
    /// What they say; anything if they are no digits.
    pub value: u32,
}

impl Digits {
    /// All eight at once, each in a byte of a register.
    pub fn read(text: [u8; 8]) -> Self {
        const HIGH: u64 = each(0x80);
        let text = u64::from_be_bytes(text);
        // Without the highest bits no byte carries over into the next.
        let ascii = text & !HIGH;
        let within = |text: u64, first: u8, last: u8| {
            (text + each(0x80 - first)) & !(text + each(0x7f - last)) & HIGH
        };
        let numbers = within(ascii, b'0', b'9');
        let letters = within(ascii | each(0x20), b'a', b'f');
        let mut value = (ascii & each(0x0f)) + (letters >> 7) * 9;
        value = (value | (value >> 4)) & 0x00ff_00ff_00ff_00ff;
        value = (value | (value >> 8)) & 0x0000_ffff_0000_ffff;
        Self {
            is_hex: (numbers | letters) & !text == HIGH,
            has_upper: (letters >> 2) & !text != 0,
            value: (value | (value >> 16)) as u32,
        }
    }
}

/// Digits that are not there are zeros before the others.
pub(super) fn read_hex(text: &[u8], most: usize) -> Result<(u128, bool), IdError> {
    const LONGEST: usize = 32;
    if text.is_empty() {
        return Err(IdError::Empty);
    }
    let mut padded = [b'0'; LONGEST];
    let mut rest = text;
    if text.len() != 16 && text.len() != LONGEST {
        let start = LONGEST.checked_sub(text.len());
        let Some(place) = start.and_then(|start| padded.get_mut(start..)) else {
            return Err(match text.iter().all(u8::is_ascii_hexdigit) {
                true => IdError::TooLong,
                false => IdError::NotHex,
            });
        };
        place.copy_from_slice(text);
        rest = &padded;
    }
    // Halves of 64 bits, as in `write_hex`.
    let (mut high, mut low) = (0, 0);
    let (mut is_hex, mut has_upper) = (true, false);
    while let Some((eight, after)) = rest.split_first_chunk() {
        let digits = Digits::read(*eight);
        is_hex &= digits.is_hex;
        has_upper |= digits.has_upper;
        high = (high << 32) | (low >> 32);
        low = (low << 32) | u64::from(digits.value);
        rest = after;
    }
    if !is_hex {
        return Err(IdError::NotHex);
    }
    if text.len() > most {
        return Err(IdError::TooLong);
    }
    if high | low == 0 {
        return Err(IdError::Zero);
    }
    let value = (u128::from(high) << 64) | u128::from(low);
    Ok((value, has_upper))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_byte_is_read_as_the_digit_that_it_is() {
        for byte in u8::MIN..=u8::MAX {
            for at in 0..8 {
                let mut text = *b"0f9aA9F0";
                text[at] = byte;
                let digits = Digits::read(text);
                assert_eq!(digits.is_hex, byte.is_ascii_hexdigit(), "{text:?}");
                let others = text
                    .iter()
                    .enumerate()
                    .any(|(n, c)| n != at && c.is_ascii_uppercase());
                if digits.is_hex {
                    let upper = others || byte.is_ascii_uppercase();
                    assert_eq!(digits.has_upper, upper, "{text:?}");
                    let text = str::from_utf8(&text).unwrap();
                    assert_eq!(u32::from_str_radix(text, 16), Ok(digits.value));
                }
            }
        }
    }

    proptest! {
        #[test]
        fn any_number_is_read_as_it_is_written(value: u128, upper: bool, length in 1usize..=32) {
            let value = value >> (128 - 4 * length);
            let mut text = format!("{value:0length$x}");
            if upper {
                text.make_ascii_uppercase();
            }
            let has_upper = text.bytes().any(|c| c.is_ascii_uppercase());
            let expected = if value == 0 { Err(IdError::Zero) } else { Ok((value, has_upper)) };
            prop_assert_eq!(read_hex(text.as_bytes(), 32), expected);
        }
    }
}
