//! The names of Envoy clusters.

use super::name::Name;

/// What comes after the first `_.`.
fn after_separator(name: &[u8]) -> Option<&[u8]> {
    let at = name.windows(2).position(|two| two == b"_.")?;
    name.get(at + 2..)
}

/// What the name of an Envoy cluster says.
#[derive(Clone, Copy, Debug)]
pub(super) enum Cluster<'a> {
    /// Istio does not know the host.
    Unknown,
    /// The host of a service or of a ServiceEntry.
    Istio(Name<'a>),
    /// A name that somebody gave who configured Envoy by hand.
    Own(Name<'a>),
}

impl<'a> Cluster<'a> {
    /// Istio's names: `outbound|port|subset|host`, `outbound_.port_.subset_.host` for
    /// what comes through a gateway by its server name, and some without a host.
    pub(super) fn read(name: &'a [u8]) -> Self {
        let unknown: [&[u8]; 4] = [
            b"PassthroughCluster",
            b"AllowAnyDynamicDNSCluster",
            b"BlackHoleCluster",
            b"InboundPassthroughCluster",
        ];
        if unknown.iter().any(|known| name.starts_with(known)) {
            return Self::Unknown;
        }
        let mut parts = name.splitn(4, |&byte| byte == b'|');
        if let (Some(b"outbound"), Some(host)) = (parts.next(), parts.nth(2)) {
            return Self::Istio(Name::of_host(host));
        }
        let by_server_name = name.strip_prefix(b"outbound_.");
        let host = by_server_name.and_then(after_separator);
        match host.and_then(after_separator) {
            Some(host) => Self::Istio(Name::of_host(host)),
            None => Self::Own(Name(name)),
        }
    }

    /// The host in the name, or the name that stands for one.
    pub(super) fn host(self) -> Option<Name<'a>> {
        match self {
            Self::Unknown => None,
            Self::Istio(host) | Self::Own(host) => Some(host),
        }
    }
}
