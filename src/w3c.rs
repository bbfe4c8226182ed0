//! W3C Trace Context, as far as it stands beside B3: the `traceparent` header
//! (w3.org/TR/trace-context, section 3.2).

use crate::b3::{SpanId, TraceId};

/// A `traceparent`, read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent {
    /// The trace, always of 128 bits.
    pub trace: TraceId,
    /// The sender's span, which the specification calls parent ID.
    pub span: SpanId,
    /// The sampled flag.
    pub sampled: bool,
}

impl TraceParent {
    /// `{version}-{trace-id}-{parent-id}-{flags}`: 2, 32, 16 and 2 lower-case
    /// hexadecimal characters. Versions after 00 may add more, behind a dash;
    /// ff is forbidden.
    pub fn read(text: &[u8]) -> Option<Self> {
        let mut parts = text.split(|&byte| byte == b'-');
        let (version, trace) = (parts.next()?, parts.next()?);
        let (span, flags) = (parts.next()?, parts.next()?);
        let known = version == b"00";
        if (known && parts.next().is_some()) || version == b"ff" || version.len() != 2 {
            return None;
        }
        let lower = |text: &[u8]| text.iter().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'));
        if !(lower(version) && lower(trace) && lower(span) && lower(flags)) {
            return None;
        }
        if trace.len() != 32 || span.len() != 16 {
            return None;
        }
        let [_, low] = flags else { return None };
        let low = char::from(*low).to_digit(16)?;
        Some(Self {
            trace: TraceId::read(trace).ok()?.id,
            span: SpanId::read(span).ok()?.id,
            sampled: low & 1 == 1,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GOOD: &str = "00-463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312-01";

    #[test]
    fn good_ones() {
        let read = TraceParent::read(GOOD.as_bytes()).unwrap();
        assert_eq!(read.span.value(), 0xa2fb_4a1d_1a96_d312);
        assert!(read.sampled);
        assert!(
            !TraceParent::read(GOOD.replace("-01", "-02").as_bytes())
                .unwrap()
                .sampled
        );
        let later = GOOD.replacen("00", "01", 1) + "-more";
        assert_eq!(TraceParent::read(later.as_bytes()), Some(read));
    }

    #[test]
    fn bad_ones() {
        for bad in [
            String::new(),
            GOOD.to_uppercase(),
            GOOD.replacen("00", "ff", 1),
            GOOD.to_string() + "-more",
            GOOD.replace("-01", "-1"),
            GOOD.replace("463a", "463"),
            GOOD.replace("a2fb4a1d1a96d312", "0000000000000000"),
            GOOD.replace('-', "_"),
        ] {
            assert_eq!(TraceParent::read(bad.as_bytes()), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn reading_never_panics(bytes: Vec<u8>) {
            let _ = TraceParent::read(&bytes);
        }
    }
}
