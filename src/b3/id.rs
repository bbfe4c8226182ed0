//! Trace and span IDs.

use super::hex::{read_hex, write_hex};
use std::num::{NonZeroU64, NonZeroU128};

/// A trace ID: 64 or 128 bits, never zero. 64-bit IDs stay 64-bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceId {
    value: NonZeroU128,
    wide: bool,
}

impl TraceId {
    /// From 16 (8 bytes) or 32 characters' worth of bits.
    pub fn new(value: u128, wide: bool) -> Option<Self> {
        let value = NonZeroU128::new(value)?;
        Some(Self {
            value,
            wide: wide || value.get() > u128::from(u64::MAX),
        })
    }

    /// The 128 bits; the upper 64 are zero for a 64-bit ID.
    pub fn value(self) -> u128 {
        self.value.get()
    }

    /// Written with 32 characters rather than 16.
    pub fn is_wide(self) -> bool {
        self.wide
    }

    /// The same trace: equal once a 64-bit ID is padded with zeros.
    pub fn same(self, other: Self) -> bool {
        self.value == other.value
    }

    /// The low 64 bits, which is what 64-bit implementations keep.
    pub fn low(self) -> u64 {
        let [.., a, b, c, d, e, f, g, h] = self.value().to_be_bytes();
        u64::from_be_bytes([a, b, c, d, e, f, g, h])
    }

    /// Appends the canonical form.
    pub fn write(self, to: &mut Vec<u8>) {
        if self.wide {
            let [a, b, c, d, e, f, g, h, ..] = self.value().to_be_bytes();
            write_hex(u64::from_be_bytes([a, b, c, d, e, f, g, h]), to);
        }
        write_hex(self.low(), to);
    }
}

/// A span ID: 64 bits, never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpanId(NonZeroU64);

impl SpanId {
    /// `None` for zero.
    pub fn new(value: u64) -> Option<Self> {
        NonZeroU64::new(value).map(Self)
    }

    /// The 64 bits.
    pub fn value(self) -> u64 {
        self.0.get()
    }

    /// Appends the canonical form.
    pub fn write(self, to: &mut Vec<u8>) {
        write_hex(self.value(), to);
    }
}

/// Why a text is no ID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdError {
    /// No characters.
    Empty,
    /// More characters than the ID may have.
    TooLong,
    /// So few characters that nobody, or only one implementation, reads it.
    TooShort,
    /// A character that is not a hexadecimal digit.
    NotHex,
    /// All zeros.
    Zero,
}

/// An ID as read, with what had to be forgiven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lenient<T> {
    /// The ID.
    pub id: T,
    /// It had upper-case digits.
    pub upper_case: bool,
    /// It had fewer digits than the format asks for; zeros were put before it.
    pub padded: bool,
}

impl<T> Lenient<T> {
    /// As the single header has it: there nobody pads.
    pub fn of_full_length(self) -> Result<Self, IdError> {
        match self.padded {
            true => Err(IdError::TooShort),
            false => Ok(self),
        }
    }
}

/// The library brave, and others, reject fewer digits than this; Envoy alone reads one.
const SHORTEST: usize = 2;

impl TraceId {
    /// Reads 16 or 32 digits, as the format has it. 2 to 15 are padded with zeros
    /// on the left, as brave and Envoy do with `x-b3-traceid`; 17 to 31, which of
    /// these only brave reads, are refused.
    pub fn read(text: &[u8]) -> Result<Lenient<Self>, IdError> {
        let (value, upper_case) = read_hex(text, 32)?;
        let wide = match text.len() {
            SHORTEST..=16 => false,
            32 => true,
            _ => return Err(IdError::TooShort),
        };
        let id = Self::new(value, wide).ok_or(IdError::Zero)?;
        Ok(Lenient {
            id,
            upper_case,
            padded: !wide && text.len() != 16,
        })
    }
}

impl SpanId {
    /// Reads 16 digits, as the format has it; 2 to 15 are padded with zeros on the
    /// left, as brave and Envoy do with `x-b3-spanid`.
    pub fn read(text: &[u8]) -> Result<Lenient<Self>, IdError> {
        let (value, upper_case) = read_hex(text, 16)?;
        if text.len() < SHORTEST {
            return Err(IdError::TooShort);
        }
        let id = u64::try_from(value)
            .ok()
            .and_then(Self::new)
            .ok_or(IdError::Zero)?;
        Ok(Lenient {
            id,
            upper_case,
            padded: text.len() != 16,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(write: impl Fn(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn trace_ids_keep_their_width() {
        for id in ["48485a3953bb6124", "463ac35c9f6413ad48485a3953bb6124"] {
            let read = TraceId::read(id.as_bytes()).unwrap();
            assert!(!read.padded && !read.upper_case);
            assert_eq!(text(|to| read.id.write(to)), id);
        }
        let zeros_first = "000000000000000048485a3953bb6124";
        let wide = TraceId::read(zeros_first.as_bytes()).unwrap().id;
        assert_eq!(text(|to| wide.write(to)), zeros_first);
        let narrow = TraceId::read(b"48485a3953bb6124").unwrap().id;
        assert!(wide.same(narrow) && wide != narrow);
        assert_eq!(wide.low(), 0x4848_5a39_53bb_6124);
    }

    #[test]
    fn what_is_forgiven_is_said() {
        let upper = TraceId::read(b"48485A3953BB6124").unwrap();
        assert!(upper.upper_case && !upper.padded);
        let short = TraceId::read(b"6124").unwrap();
        assert_eq!(text(|to| short.id.write(to)), "0000000000006124");
        assert!(short.padded);
        assert!(short.of_full_length().is_err());
        assert!(SpanId::read(b"d312").unwrap().padded);
    }

    #[test]
    fn two_digits_are_enough_for_a_span() {
        assert_eq!(SpanId::read(b"12").unwrap().id.value(), 0x12);
    }

    #[test]
    fn what_is_no_id_is_refused() {
        assert_eq!(TraceId::read(b""), Err(IdError::Empty));
        assert_eq!(TraceId::read(&[b'1'; 33]), Err(IdError::TooLong));
        assert_eq!(TraceId::read(&[b'0'; 32]), Err(IdError::Zero));
        for short in [1, 17, 20, 31] {
            assert_eq!(TraceId::read(&[b'1'; 32][..short]), Err(IdError::TooShort));
        }
        assert_eq!(SpanId::read(b"1"), Err(IdError::TooShort));
        assert_eq!(SpanId::read(&[b'1'; 17]), Err(IdError::TooLong));
        assert_eq!(SpanId::read(b"0"), Err(IdError::Zero));
        for bad in [
            "0x48485a3953bb61",
            "+48485a3953bb612",
            " 48485a3953bb612",
            "\u{ff}",
        ] {
            assert_eq!(
                SpanId::read(bad.as_bytes()),
                Err(IdError::NotHex),
                "{bad:?}"
            );
        }
    }
}
