//! The names of Envoy clusters.

use super::name::Name;

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
        let unknown: [&[u8]; 3] = [
            b"PassthroughCluster",
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
        let by_server_name = name.strip_prefix(b"outbound_.").and_then(|rest| {
            let mut rest = std::str::from_utf8(rest).ok()?.splitn(3, "_.");
            rest.nth(2)
        });
        match by_server_name {
            Some(host) => Self::Istio(Name::of_host(host.as_bytes())),
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
