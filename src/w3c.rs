//! W3C Trace Context, as far as it stands beside B3: the `traceparent` header
//! (w3.org/TR/trace-context, section 3.2).

use crate::b3::{B3, Ids, Sampling, SpanId, TraceId};
use crate::bytes::{read_array, read_bytes};

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
        let mut rest = text;
        let [v, w, b'-'] = read_array(&mut rest)? else {
            return None;
        };
        let trace = read_bytes(&mut rest, 32)?;
        let [b'-'] = read_array(&mut rest)? else {
            return None;
        };
        let span = read_bytes(&mut rest, 16)?;
        let [b'-', high, low] = read_array(&mut rest)? else {
            return None;
        };
        let version = [v, w];
        // What follows is not looked at, however long.
        let more = rest
            .first()
            .is_some_and(|&byte| version == *b"00" || byte != b'-');
        if more || version == *b"ff" {
            return None;
        }
        let lower = |text: &[u8]| text.iter().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'));
        if !(lower(&version) && lower(trace) && lower(span) && lower(&[high])) {
            return None;
        }
        let flags = lower(&[low]).then(|| char::from(low).to_digit(16))??;
        Some(Self {
            trace: TraceId::read(trace).ok()?.id,
            span: SpanId::read(span).ok()?.id,
            sampled: flags & 1 == 1,
        })
    }

    /// The same in B3. A trace ID whose upper half is zero is one of 64 bits
    /// that has been padded, as the specification asks for.
    pub fn b3(self) -> B3 {
        let wide = self.trace.value() > u128::from(u64::MAX);
        let trace = TraceId::new(self.trace.value(), wide).unwrap_or(self.trace);
        B3 {
            ids: Some(Ids {
                trace,
                span: self.span,
                parent: None,
            }),
            sampling: match self.sampled {
                true => Sampling::Accept,
                false => Sampling::Deny,
            },
        }
    }
}

/// What a `traceparent` says of a decision in B3. W3C cannot leave one open:
/// `deferred` is what to say then, or `None` to write no `traceparent`.
pub fn sampled(sampling: Sampling, deferred: Option<bool>) -> Option<bool> {
    sampling.decided().or(deferred)
}

/// A `traceparent` of this span.
pub fn write(ids: Ids, sampled: bool) -> Vec<u8> {
    let mut text = b"00-".to_vec();
    let trace = TraceId::new(ids.trace.value(), true).unwrap_or(ids.trace);
    trace.write(&mut text);
    text.push(b'-');
    ids.span.write(&mut text);
    text.extend_from_slice(if sampled { b"-01" } else { b"-00" });
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GOOD: &str = "00-463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312-01";

    #[test]
    fn a_padded_trace_is_one_of_64_bits_in_b3() {
        for (trace, length) in [
            ("0000000000000000ffffffffffffffff", 16),
            ("00000000000000010000000000000000", 32),
        ] {
            let text = format!("00-{trace}-a2fb4a1d1a96d312-01");
            let b3 = TraceParent::read(text.as_bytes()).unwrap().b3();
            let mut written = Vec::new();
            b3.ids.unwrap().trace.write(&mut written);
            assert_eq!(written.len(), length, "{trace}");
        }
    }

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
            GOOD.replacen("00", "01", 1) + "more",
            GOOD.replace("463ac35c9f6413ad48485a3953bb6124", &"0".repeat(32)),
            format!("{GOOD},{GOOD}"),
            GOOD.replace("-01", "-1"),
            GOOD.replace("463a", "463"),
            GOOD.replace("a2fb4a1d1a96d312", "0000000000000000"),
            GOOD.replace('-', "_"),
        ] {
            assert_eq!(TraceParent::read(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn b3_and_back() {
        let read = TraceParent::read(GOOD.as_bytes()).unwrap();
        let b3 = read.b3();
        assert_eq!(write(b3.ids.unwrap(), read.sampled), GOOD.as_bytes());
        assert_eq!(
            write(b3.ids.unwrap(), false),
            GOOD.replace("-01", "-00").as_bytes()
        );
        // 64 bits stay 64 bits.
        let padded = "00-000000000000000048485a3953bb6124-a2fb4a1d1a96d312-00";
        let b3 = TraceParent::read(padded.as_bytes()).unwrap().b3();
        assert_eq!(b3.single().unwrap(), b"48485a3953bb6124-a2fb4a1d1a96d312-0");
        assert_eq!(write(b3.ids.unwrap(), false), padded.as_bytes());
    }

    proptest! {
        #[test]
        fn reading_never_panics(bytes: Vec<u8>) {
            let _ = TraceParent::read(&bytes);
        }
    }
}
