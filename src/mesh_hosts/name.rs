//! Names and addresses of hosts.

use std::net::{IpAddr, Ipv4Addr};

/// A host without port, brackets, user and final dot.
#[derive(Clone, Copy, Debug)]
pub(super) struct Name<'a>(pub(super) &'a [u8]);

impl<'a> Name<'a> {
    /// Of an `:authority`.
    pub(super) fn of_authority(authority: &'a [u8]) -> Self {
        // Who calls `reviews@example.com` wants example.com.
        let host = authority.rsplit(|&byte| byte == b'@').next();
        let host = host.unwrap_or_default();
        let bracketed = host.strip_prefix(b"[");
        if let Some(bracketed) = bracketed.filter(|host| host.contains(&b':')) {
            let end = |&byte: &u8| byte == b']' || byte == b'%';
            return Self(bracketed.split(end).next().unwrap_or_default());
        }
        let mut parts = host.split(|&byte| byte == b':');
        match (parts.next(), parts.next(), parts.next()) {
            (Some(host), Some(_), None) => Self::of_host(host),
            _ => Self::of_host(host),
        }
    }

    pub(super) fn of_host(host: &'a [u8]) -> Self {
        Self(host.strip_suffix(b".").unwrap_or(host))
    }

    /// The address that it is, in whichever way it is written: `2130706433`,
    /// `0x7f.1` and `::ffff:127.0.0.1` are 127.0.0.1.
    pub(super) fn address(self) -> Option<IpAddr> {
        let text = std::str::from_utf8(self.0).ok()?;
        if let Ok(address) = text.parse::<IpAddr>() {
            return Some(address.to_canonical());
        }
        let mut address: u32 = 0;
        let mut parts = text.split('.').enumerate().peekable();
        while let Some((n, part)) = parts.next() {
            let number = number(part)?;
            let (bits, shift) = match (parts.peek(), n) {
                (_, 4..) => return None,
                (Some(_), n) => (8, 24 - 8 * n),
                (None, n) => (32 - 8 * n, 0),
            };
            if number >= 1 << bits {
                return None;
            }
            address |= (number as u32) << shift;
        }
        Some(IpAddr::V4(Ipv4Addr::from_bits(address)))
    }

    pub(super) fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    /// One label, and no number.
    pub(super) fn is_short(self) -> bool {
        is_name(self.0) && !self.0.contains(&b'.')
    }

    /// An egress gateway by the name of its service. `regression-tests` is none.
    pub(super) fn is_egress(self) -> bool {
        let label = self.0.split(|&byte| byte == b'.').next();
        let label = label.unwrap_or_default().to_ascii_lowercase();
        let mut words = label.split(|&byte| byte == b'-' || byte == b'_');
        words.any(|word| {
            let found = word.windows(6).position(|part| part == b"egress");
            let Some((before, after)) = found.and_then(|at| word.split_at_checked(at)) else {
                return false;
            };
            let is_verb = before == b"r" || matches!(after.get(6), Some(b'i' | b'e' | b'o'));
            !(before.ends_with(b"r") && is_verb)
        })
    }
}

/// A number as `inet_aton` reads it: decimal, octal with a 0 before it, or hexadecimal
/// with 0x.
fn number(text: &str) -> Option<u64> {
    let hexadecimal = text.strip_prefix("0x").or(text.strip_prefix("0X"));
    let (digits, radix) = match (hexadecimal, text.strip_prefix('0')) {
        (Some(digits), _) => (digits, 16),
        (None, Some(digits)) if !digits.is_empty() => (digits, 8),
        _ => (text, 10),
    };
    let all = digits.bytes().all(|byte| byte.is_ascii_alphanumeric());
    u64::from_str_radix(digits, radix).ok().filter(|_| all)
}

/// A host name: labels of letters, digits, `-` and `_`. One whose last label is a
/// number is an address, or nothing.
pub(super) fn is_name(host: &[u8]) -> bool {
    let good = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let label = |label: &[u8]| !label.is_empty() && label.iter().all(good);
    let last = host.rsplit(|&byte| byte == b'.').next().unwrap_or_default();
    let is_number = match last {
        [b'0', b'x' | b'X', digits @ ..] => digits.iter().all(u8::is_ascii_hexdigit),
        digits => digits.iter().all(u8::is_ascii_digit),
    };
    host.len() <= 255 && host.split(|&byte| byte == b'.').all(label) && !is_number
}

/// What is before this end, in whichever case it is written.
pub(super) fn without_end<'a>(host: &'a [u8], end: &[u8]) -> Option<&'a [u8]> {
    let (before, rest) = host.split_at_checked(host.len().checked_sub(end.len())?)?;
    rest.eq_ignore_ascii_case(end).then_some(before)
}
