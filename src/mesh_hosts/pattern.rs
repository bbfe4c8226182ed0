//! The entries of `mesh_hosts`, `outside_hosts` and `egress_gateways`.

use super::name::{Name, is_name, without_end};
use std::net::IpAddr;

/// One entry of `mesh_hosts`, `outside_hosts` or `egress_gateways`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostPattern {
    /// This name, in lower case.
    Name(String),
    /// Every name that ends so: a dot and a name, in lower case.
    Under(String),
    /// Every address that begins with so many bits of this one. One of IPv4 is never
    /// written as one of IPv6 here.
    Network(IpAddr, u8),
}

impl HostPattern {
    /// `a.example.com`, `*.example.com`, `10.1.2.3`, `[fd00::7]`, `10.0.0.0/8` or
    /// `fd00::/8`. `None` if it is nothing of the kind, or a number: that is another
    /// way to write an address.
    pub fn parse(text: &str) -> Option<Self> {
        let bare = text
            .strip_prefix('[')
            .map_or(Some(text), |text| text.strip_suffix(']'))?;
        if let Ok(address) = bare.parse::<IpAddr>() {
            return Self::network(address, None);
        }
        if let Some((address, bits)) = text.split_once('/') {
            let digits = bits.bytes().all(|byte| byte.is_ascii_digit());
            let bits = bits.parse().ok().filter(|_| digits)?;
            return Self::network(address.parse().ok()?, Some(bits));
        }
        let text = text.strip_suffix('.').unwrap_or(text);
        let name = text.strip_prefix("*.").unwrap_or(text);
        if !is_name(name.as_bytes()) {
            return None;
        }
        Some(match text.strip_prefix('*') {
            Some(end) => Self::Under(end.to_ascii_lowercase()),
            None => Self::Name(text.to_ascii_lowercase()),
        })
    }

    fn network(address: IpAddr, bits: Option<u8>) -> Option<Self> {
        let plain = address.to_canonical();
        let most = |address: &IpAddr| if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.unwrap_or(most(&address));
        // Of `::ffff:10.0.0.0/104` the first 96 bits say that the rest is of IPv4.
        let before = most(&address) - most(&plain);
        let bits = bits.checked_sub(before).filter(|_| bits <= most(&address));
        Some(Self::Network(plain, bits?))
    }

    pub(super) fn matches(&self, host: Name<'_>) -> bool {
        let Name(name) = host;
        match self {
            Self::Name(wanted) => name.eq_ignore_ascii_case(wanted.as_bytes()),
            Self::Under(end) => {
                without_end(name, end.as_bytes()).is_some_and(|before| !before.is_empty())
            }
            Self::Network(network, bits) => host
                .address()
                .is_some_and(|address| first_bits(*network, *bits) == first_bits(address, *bits)),
        }
    }
}

/// The first bits of an address, and whether it is of IPv4.
fn first_bits(address: IpAddr, bits: u8) -> (bool, u128) {
    let (all, width) = match address {
        IpAddr::V4(address) => (u128::from(address.to_bits()), 32),
        IpAddr::V6(address) => (address.to_bits(), 128),
    };
    let rest = u32::from(width - bits.min(width));
    (address.is_ipv4(), all.checked_shr(rest).unwrap_or_default())
}
