//! The B3 format of openzipkin/b3-propagation: types, reading and writing.
//!
//! Reading is lenient where implementations are (upper case, short IDs in the
//! multiple headers) and says so; writing is canonical: lower case, IDs of 16 or 32 characters,
//! `1`/`0`.
//!
//! Grammar of the single header:
//!
//! ```text
//! b3       = ids [ "-" state [ "-" span-id ] ] / state      ; the last span-id is the parent
//! ids      = trace-id "-" span-id
//! state    = "0" / "1" / "d"
//! trace-id = 16hex / 32hex        span-id = 16hex
//! ```

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

/// Eight digits at a time: one after the other is most of what a copied context
/// costs, and a shift of 128 bits is a call on wasm32.
fn write_hex(value: u64, to: &mut Vec<u8>) {
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

/// The sampling state, the four of the specification.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sampling {
    /// No decision: the receiver makes it.
    #[default]
    Defer,
    /// `0`
    Deny,
    /// `1`
    Accept,
    /// `d`, or `x-b3-flags: 1`: accept, and collect whatever the cost.
    Debug,
}

impl Sampling {
    /// Sampled or not; `None` if that is left open.
    pub fn decided(self) -> Option<bool> {
        match self {
            Self::Defer => None,
            Self::Deny => Some(false),
            Self::Accept | Self::Debug => Some(true),
        }
    }
}

/// The identifiers of a trace context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ids {
    /// The trace.
    pub trace: TraceId,
    /// The span of the sender.
    pub span: SpanId,
    /// Its parent, where the sender says so.
    pub parent: Option<SpanId>,
}

/// What a request says in B3: identifiers, a sampling state, or both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct B3 {
    /// Trace, span and parent.
    pub ids: Option<Ids>,
    /// The sampling state.
    pub sampling: Sampling,
}

impl B3 {
    /// Nothing is said at all.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The single header's value; `None` where there is nothing to say.
    pub fn single(&self) -> Option<Vec<u8>> {
        let state = match self.sampling {
            Sampling::Defer => None,
            Sampling::Deny => Some(b'0'),
            Sampling::Accept => Some(b'1'),
            Sampling::Debug => Some(b'd'),
        };
        let Some(ids) = self.ids else {
            return state.map(|state| vec![state]);
        };
        let mut text = Vec::with_capacity(68);
        ids.trace.write(&mut text);
        text.push(b'-');
        ids.span.write(&mut text);
        if let Some(state) = state {
            text.extend_from_slice(&[b'-', state]);
            // The grammar has no place for a parent without a state.
            if let Some(parent) = ids.parent {
                text.push(b'-');
                parent.write(&mut text);
            }
        }
        Some(text)
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

fn hex(text: &[u8], most: usize) -> Result<(u128, bool), IdError> {
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

/// Fewer digits than this are no ID to brave, nor to others; Envoy alone reads one.
const SHORTEST: usize = 2;

impl TraceId {
    /// Reads 16 or 32 digits, as the format has it. 2 to 15 are padded with zeros
    /// on the left, as brave and Envoy do with `x-b3-traceid`; 17 to 31, which of
    /// these only brave reads, are refused.
    pub fn read(text: &[u8]) -> Result<Lenient<Self>, IdError> {
        let (value, upper_case) = hex(text, 32)?;
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
        let (value, upper_case) = hex(text, 16)?;
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

/// `x-b3-sampled`: the decision, and whether it was spelt in a legacy way
/// (`true`/`false` in any case). `None` if it is neither.
pub fn read_sampled(text: &[u8]) -> Option<(bool, bool)> {
    match text {
        b"1" => Some((true, false)),
        b"0" => Some((false, false)),
        _ if text.eq_ignore_ascii_case(b"true") => Some((true, true)),
        _ if text.eq_ignore_ascii_case(b"false") => Some((false, true)),
        _ => None,
    }
}

/// The parts of a single header, before any of them is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Single<'a> {
    /// A sampling state alone.
    State(Sampling),
    /// `trace-span[-state[-parent]]`
    Ids {
        /// The trace ID's text.
        trace: &'a [u8],
        /// The span ID's text.
        span: &'a [u8],
        /// The state, if there is one.
        state: Option<Sampling>,
        /// The state is empty, or spelt true or false.
        odd_state: bool,
        /// The parent's text, if there is one.
        parent: Option<&'a [u8]>,
    },
}

impl<'a> Single<'a> {
    /// Splits the header by its grammar. Three things are no part of it but are
    /// taken, as most of those do that are no proxy: `t-s-parent`, without a state;
    /// `t-s-`, with an empty one; `t-s-true` and `t-s-false`.
    /// `None`: not of this form at all.
    pub fn split(text: &'a [u8]) -> Option<Self> {
        let state = |text: &[u8]| match text {
            b"0" => Some(Sampling::Deny),
            b"1" => Some(Sampling::Accept),
            b"d" => Some(Sampling::Debug),
            _ => None,
        };
        if let Some(state) = state(text) {
            return Some(Self::State(state));
        }
        let mut parts = text.split(|&byte| byte == b'-');
        let (trace, span) = (parts.next()?, parts.next()?);
        let (third, fourth) = (parts.next(), parts.next());
        if parts.next().is_some() {
            return None;
        }
        let mut odd_state = false;
        let (state, parent) = match (third, fourth) {
            (None, _) => (None, None),
            (Some(third), None) if third.len() == 16 => (None, Some(third)),
            (Some(b""), None) => {
                odd_state = true;
                (None, None)
            }
            (Some(third), parent) => match (state(third), read_sampled(third)) {
                (Some(state), _) => (Some(state), parent),
                (None, Some((sampled, _))) => {
                    odd_state = true;
                    let state = if sampled {
                        Sampling::Accept
                    } else {
                        Sampling::Deny
                    };
                    (Some(state), parent)
                }
                (None, None) => return None,
            },
        };
        Some(Self::Ids {
            trace,
            span,
            state,
            odd_state,
            parent,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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

    #[test]
    fn single_splits_by_its_grammar() {
        let (t, s, p) = (
            "463ac35c9f6413ad48485a3953bb6124",
            "a2fb4a1d1a96d312",
            "05e3ac9a4f6e3b90",
        );
        let cases = [
            (format!("{t}-{s}"), None, None, false),
            (format!("{t}-{s}-1"), Some(Sampling::Accept), None, false),
            (
                format!("{t}-{s}-d-{p}"),
                Some(Sampling::Debug),
                Some(p),
                false,
            ),
            (format!("{t}-{s}-{p}"), None, Some(p), false),
            (format!("{t}-{s}-"), None, None, true),
            (format!("{t}-{s}-true"), Some(Sampling::Accept), None, true),
            (
                format!("{t}-{s}-False-{p}"),
                Some(Sampling::Deny),
                Some(p),
                true,
            ),
        ];
        for (text, state, parent, odd_state) in cases {
            let parts = Single::Ids {
                trace: t.as_bytes(),
                span: s.as_bytes(),
                state,
                odd_state,
                parent: parent.map(str::as_bytes),
            };
            assert_eq!(Single::split(text.as_bytes()), Some(parts), "{text}");
        }
        assert_eq!(Single::split(b"d"), Some(Single::State(Sampling::Debug)));
        for bad in [
            "",
            "2",
            "1-",
            "abc",
            "true",
            &format!("{t}-{s}-2"),
            &format!("{t}-{s}--{p}"),
            &format!("{t}-{s}-1-{p}-1"),
        ] {
            let none = Single::split(bad.as_bytes()).is_none();
            assert!(none || bad == "1-", "{bad}");
        }
    }

    fn any_b3() -> impl Strategy<Value = B3> {
        let ids = (1u128.., any::<bool>(), 1u64.., proptest::option::of(1u64..));
        let sampling = prop_oneof![
            Just(Sampling::Defer),
            Just(Sampling::Deny),
            Just(Sampling::Accept),
            Just(Sampling::Debug)
        ];
        (proptest::option::of(ids), sampling).prop_map(|(ids, sampling)| B3 {
            ids: ids.map(|(trace, wide, span, parent)| Ids {
                trace: TraceId::new(trace, wide).unwrap(),
                span: SpanId::new(span).unwrap(),
                parent: parent.and_then(SpanId::new),
            }),
            sampling,
        })
    }

    proptest! {
        #[test]
        fn single_reads_back_what_it_wrote(b3 in any_b3()) {
            let Some(text) = b3.single() else {
                prop_assert!(b3.is_empty());
                return Ok(());
            };
            match Single::split(&text).unwrap() {
                Single::State(state) => prop_assert_eq!(b3, B3 { ids: None, sampling: state }),
                Single::Ids { trace, span, state, parent, odd_state: false } => {
                    let ids = b3.ids.unwrap();
                    prop_assert_eq!(TraceId::read(trace).unwrap().id, ids.trace);
                    prop_assert_eq!(SpanId::read(span).unwrap().id, ids.span);
                    prop_assert_eq!(state.unwrap_or_default(), b3.sampling);
                    let parent = parent.map(|text| SpanId::read(text).unwrap().id);
                    let kept = ids.parent.filter(|_| state.is_some());
                    prop_assert_eq!(parent, kept);
                }
                odd => prop_assert!(false, "{odd:?}"),
            }
        }

        #[test]
        fn reading_never_panics(bytes: Vec<u8>) {
            let _ = (TraceId::read(&bytes), SpanId::read(&bytes), Single::split(&bytes), read_sampled(&bytes));
        }
    }
}
