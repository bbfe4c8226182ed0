//! Log lines about broken rules and about calls: escaped, cut, and no more than so many a
//! minute.

use crate::attribution::look_back::LeftAlone;
use crate::config::Direction;
use crate::metrics::direction_label;
use crate::relay::StoredContext;
use crate::rules::Finding;
use crate::rules::Severity;
use std::fmt::Write;

/// Bytes of a header value that a log line shows, before escaping.
const SHOWN: usize = 64;

/// A line that says which rule is broken, by which header, with what value,
/// and what would be right. The value is escaped: only printable ASCII comes
/// through, so no input can forge a line or a colour.
#[inline(never)]
pub fn line(finding: &Finding<'_>, severity: Severity, direction: Option<Direction>) -> String {
    let rule = finding.rule;
    let mut line = format!(
        "{} {} {}: {}, found {}",
        rule.id(),
        severity.name(),
        direction_label(direction),
        rule.condition(),
        finding.header,
    );
    push_value(&mut line, b'=', finding.value);
    let _ = write!(line, ", right: {}", rule.right());
    line
}

/// A line that says to which request a call belonged that was left alone.
#[inline(never)]
pub fn look_back(call: &LeftAlone, request: &StoredContext, share: f32) -> String {
    let mut line = String::from("call to");
    push_value(&mut line, b' ', &call.host);
    line.push_str(" with x-request-id");
    push_value(&mut line, b'=', &call.request_id);
    line.push_str(" was left alone, and belonged to the request with x-request-id");
    push_value(&mut line, b'=', &request.request_id);
    if let Some(ids) = request.b3.ids {
        line.push_str(" in trace ");
        let mut trace = Vec::with_capacity(32);
        ids.trace.write(&mut trace);
        line.extend(trace.into_iter().map(char::from));
    }
    // Rounded down; a fraction would bring the module std's code for those.
    let permille = (1000.0 * share) as u32;
    let (percent, tenth) = (permille / 10, permille % 10);
    let _ = write!(line, " ({percent}.{tenth} % sure, known when that ended)");
    line
}

/// Appends a value in quotes, escaped and cut.
#[inline(never)]
fn push_value(line: &mut String, before: u8, value: &[u8]) {
    line.push(char::from(before));
    let shown = value.get(..SHOWN).unwrap_or(value);
    line.push('"');
    for byte in shown {
        match byte {
            // Most, and without the machinery of formatting.
            b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' | b'-' | b',' | b' ' => {
                line.push(char::from(*byte));
            }
            // Writing to a String cannot fail.
            _ => {
                let _ = write!(line, "{}", byte.escape_ascii());
            }
        }
    }
    line.push('"');
    if shown.len() < value.len() {
        let _ = write!(line, "… ({} bytes)", value.len());
    }
}

/// Lets so many lines through a minute, and counts the others.
///
/// A bucket of tokens that starts full and fills evenly.
#[derive(Clone, Debug)]
pub struct RateLimit {
    per_minute: u32,
    /// In lines times 60,000, so that a millisecond adds `per_minute`.
    tokens: u64,
    last_ms: u64,
    suppressed: u64,
}

impl RateLimit {
    const LINE: u64 = 60_000;

    /// `per_minute` lines, 0 for none.
    pub fn new(per_minute: u32) -> Self {
        Self {
            per_minute,
            tokens: u64::from(per_minute) * Self::LINE,
            last_ms: 0,
            suppressed: 0,
        }
    }

    /// Whether a line may be written now; if so, how many were suppressed since
    /// the last one.
    pub fn take(&mut self, now_ms: u64) -> Option<u64> {
        let full = u64::from(self.per_minute) * Self::LINE;
        let passed = now_ms.saturating_sub(self.last_ms);
        self.last_ms = now_ms;
        let gained = passed.saturating_mul(self.per_minute.into());
        self.tokens = self.tokens.saturating_add(gained).min(full);
        match self.tokens.checked_sub(Self::LINE) {
            Some(rest) => {
                self.tokens = rest;
                Some(std::mem::take(&mut self.suppressed))
            }
            None => {
                self.suppressed += 1;
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::Rule;

    fn finding(value: &[u8]) -> Finding<'_> {
        Finding {
            rule: Rule::L01,
            header: "x-b3-traceid",
            value,
        }
    }

    #[test]
    fn a_line_names_everything() {
        assert_eq!(
            line(&finding(b"xyz"), Severity::Error, Some(Direction::Inbound)),
            "L01 error inbound: an ID has a character that is not a hexadecimal digit, \
             found x-b3-traceid=\"xyz\", right: only 0-9 and a-f"
        );
    }

    #[test]
    fn values_are_escaped_and_cut() {
        let text = line(&finding(b"\x1b[31m\n\"\xff"), Severity::Warn, None);
        assert!(text.contains(r#""\x1b[31m\n\"\xff""#), "{text}");
        let long = line(&finding(&[b'a'; 5000]), Severity::Warn, None);
        assert!(
            long.contains("aaa\"… (5000 bytes)") && long.len() < 300,
            "{long}"
        );
    }

    #[test]
    fn a_share_is_rounded_down() {
        let call = LeftAlone {
            call: 1,
            at_us: 1,
            least: 0.0,
            host: b"h".to_vec(),
            request_id: b"c\n".to_vec(),
        };
        let request = StoredContext {
            request_id: b"r".to_vec(),
            ..StoredContext::default()
        };
        let belonged = |share| look_back(&call, &request, share);
        let said = "call to \"h\" with x-request-id=\"c\\n\" was left alone, and belonged to the \
                    request with x-request-id=\"r\" (";
        let rest = " % sure, known when that ended)";
        assert_eq!(belonged(0.1239), format!("{said}12.3{rest}"));
        assert_eq!(belonged(1.0), format!("{said}100.0{rest}"));
    }

    #[test]
    fn so_many_lines_a_minute() {
        let mut limit = RateLimit::new(2);
        let start = 1_700_000_000_000;
        assert_eq!(limit.take(start), Some(0));
        assert_eq!(limit.take(start), Some(0));
        assert_eq!(limit.take(start), None);
        assert_eq!(limit.take(start + 29_999), None);
        assert_eq!(limit.take(start + 30_000), Some(2));
        assert_eq!(limit.take(start), None, "the clock was set back");
        assert_eq!(RateLimit::new(0).take(start), None);
    }

    #[test]
    fn the_limit_holds_over_an_hour() {
        let mut limit = RateLimit::new(60);
        let lines = (0..3_600_000u64)
            .step_by(10)
            .filter(|ms| limit.take(1_000_000 + ms).is_some());
        let lines = lines.count();
        assert!((3600..=3661).contains(&lines), "{lines}");
    }
}
