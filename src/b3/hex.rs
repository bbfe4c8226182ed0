//! Hexadecimal digits, as many at a time as a register holds.

use super::IdError;

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

const UPPER_CASE: u8 = 0x10;
const NO_DIGIT: u8 = 0x80;
/// What each byte is as a hexadecimal digit, with the flags above.
const DIGITS: [u8; 256] = {
    let mut digits = [NO_DIGIT; 256];
    let mut rest: &[u8] = b"0123456789abcdefABCDEF";
    let mut digit = 0;
    while let [byte, after @ ..] = rest {
        if let Some((_, [place, ..])) = digits.split_at_mut_checked(*byte as usize) {
            *place = if digit < 16 {
                digit
            } else {
                UPPER_CASE | (digit - 6)
            };
        }
        digit += 1;
        rest = after;
    }
    digits
};

pub(super) fn read_hex(text: &[u8], most: usize) -> Result<(u128, bool), IdError> {
    if text.is_empty() {
        return Err(IdError::Empty);
    }
    let mut seen = 0;
    // Halves of 64 bits, as in `write_hex`. What is longer than both is refused.
    let mut read = |text: &[u8]| {
        text.iter().fold(0, |value: u64, byte| {
            let digit = DIGITS.get(usize::from(*byte)).unwrap_or(&NO_DIGIT);
            seen |= digit;
            (value << 4) | u64::from(digit & 0xf)
        })
    };
    let (high, low) = match text.len().checked_sub(16) {
        Some(at) => text.split_at_checked(at).unwrap_or((text, &[])),
        None => (&[][..], text),
    };
    let (high, low) = (read(high), read(low));
    if seen & NO_DIGIT != 0 {
        return Err(IdError::NotHex);
    }
    if text.len() > most {
        return Err(IdError::TooLong);
    }
    if high | low == 0 {
        return Err(IdError::Zero);
    }
    let value = (u128::from(high) << 64) | u128::from(low);
    Ok((value, seen & UPPER_CASE != 0))
}
