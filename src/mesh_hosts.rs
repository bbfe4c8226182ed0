//! Which hosts are outside the mesh.
//!
//! The order, first word first: what the user declares, the cluster that Istio routes
//! the call to, and only where there is no cluster the look of the host's name, since
//! anybody may own a name that looks like one of Kubernetes.

use crate::bytes::fnv1a;
use crate::host::Host;
use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr};

/// One entry of `mesh_hosts`, `outside_hosts` or `egress_gateways`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// This name, in lower case.
    Name(String),
    /// Every name that ends so: a dot and a name, in lower case.
    Under(String),
    /// Every address that begins with so many bits of this one. One of IPv4 is never
    /// written as one of IPv6 here.
    Network(IpAddr, u8),
}

impl Pattern {
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
        match most(&address) - most(&plain) {
            _ if bits > most(&address) => None,
            0 => Some(Self::Network(plain, bits)),
            before => Some(Self::Network(plain, bits.checked_sub(before)?)),
        }
    }

    fn matches(&self, host: Name<'_>) -> bool {
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

/// What the user says of hosts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Declared {
    /// `mesh_hosts`
    pub inside: Vec<Pattern>,
    /// `outside_hosts`
    pub outside: Vec<Pattern>,
    /// `egress_gateways`
    pub egress: Vec<Pattern>,
}

/// The mesh that this Envoy is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mesh {
    /// The domain of the cluster, such as `cluster.local`.
    pub domain: Vec<u8>,
    /// Istio has configured this Envoy: it names every Kubernetes service in full.
    pub istio: bool,
}

impl Default for Mesh {
    fn default() -> Self {
        Self {
            domain: b"cluster.local".to_vec(),
            istio: false,
        }
    }
}

impl Mesh {
    /// The domain is in the node ID that Istio gives an Envoy:
    /// `sidecar~10.0.0.7~reviews-v1.shop~shop.svc.cluster.local`.
    pub fn of(node_id: &[u8], istio: bool) -> Self {
        let mut mesh = Self {
            istio,
            ..Self::default()
        };
        let suffix = node_id.split(|&byte| byte == b'~').nth(3);
        let mut labels = suffix.unwrap_or_default().splitn(3, |&byte| byte == b'.');
        if let (Some(_), Some(b"svc"), Some(domain)) = (labels.next(), labels.next(), labels.next())
        {
            if is_name(domain) {
                mesh.domain = domain.to_vec();
            }
        }
        mesh
    }

    /// A Kubernetes service by its full name, or a pod of a headless one:
    /// `reviews.shop.svc.cluster.local`, `db-0.db.shop.svc.cluster.local`.
    fn has_service(&self, Name(host): Name<'_>) -> bool {
        let domains = [self.domain.as_slice(), b"clusterset.local"];
        let mut names = domains.iter().filter_map(|domain| {
            let name = without_end(host, domain)?;
            name.strip_suffix(b".")
        });
        names.any(|name| is_service(Name(name)))
    }
}

/// The same without the domain: `reviews.shop.svc`.
fn is_service(Name(host): Name<'_>) -> bool {
    let service = without_end(host, b".svc").filter(|service| is_name(service));
    let labels = service.map(|service| service.split(|&byte| byte == b'.').count());
    matches!(labels, Some(2 | 3))
}

/// What is before this end, in whichever case it is written.
fn without_end<'a>(host: &'a [u8], end: &[u8]) -> Option<&'a [u8]> {
    let (before, rest) = host.split_at_checked(host.len().checked_sub(end.len())?)?;
    rest.eq_ignore_ascii_case(end).then_some(before)
}

/// A host without port, brackets, user and final dot.
#[derive(Clone, Copy, Debug)]
struct Name<'a>(&'a [u8]);

impl<'a> Name<'a> {
    /// Of an `:authority`.
    fn of_authority(authority: &'a [u8]) -> Self {
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

    fn of_host(host: &'a [u8]) -> Self {
        Self(host.strip_suffix(b".").unwrap_or(host))
    }

    /// The address that it is, in whichever way it is written: `2130706433`,
    /// `0x7f.1` and `::ffff:127.0.0.1` are 127.0.0.1.
    fn address(self) -> Option<IpAddr> {
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

    fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    /// One label, and no number.
    fn is_short(self) -> bool {
        is_name(self.0) && !self.0.contains(&b'.')
    }

    /// An egress gateway by the name of its service. `regression-tests` is none.
    fn is_egress(self) -> bool {
        let label = self.0.split(|&byte| byte == b'.').next();
        let label = label.unwrap_or_default().to_ascii_lowercase();
        let found = label.windows(6).position(|part| part == b"egress");
        found.is_some_and(|at| at.checked_sub(1).and_then(|at| label.get(at)) != Some(&b'r'))
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
fn is_name(host: &[u8]) -> bool {
    let good = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let label = |label: &[u8]| !label.is_empty() && label.iter().all(good);
    let last = host.rsplit(|&byte| byte == b'.').next().unwrap_or_default();
    let is_number = match last {
        [b'0', b'x' | b'X', digits @ ..] => digits.iter().all(u8::is_ascii_hexdigit),
        digits => digits.iter().all(u8::is_ascii_digit),
    };
    host.len() <= 255 && host.split(|&byte| byte == b'.').all(label) && !is_number
}

/// What the name of an Envoy cluster says.
#[derive(Clone, Copy, Debug)]
enum Cluster<'a> {
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
    fn read(name: &'a [u8]) -> Self {
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
    fn host(self) -> Option<Name<'a>> {
        match self {
            Self::Unknown => None,
            Self::Istio(host) | Self::Own(host) => Some(host),
        }
    }
}

/// Whether a call leaves the mesh. `authority`: its `:authority`; `cluster`: the name
/// of the Envoy cluster that it is routed to, if it is routed to any.
pub fn is_outside(
    authority: &[u8],
    cluster: Option<&[u8]>,
    declared: &Declared,
    mesh: &Mesh,
) -> bool {
    let named = Name::of_authority(authority);
    let cluster = cluster.filter(|name| !name.is_empty()).map(Cluster::read);
    let routed = cluster.and_then(Cluster::host);
    let of = |patterns: &[Pattern], host| patterns.iter().any(|one| one.matches(host));
    if of(&declared.outside, named) || routed.is_some_and(|host| of(&declared.outside, host)) {
        return true;
    }
    // What a gateway is called says nothing of where it sends a call.
    let egress = routed.is_some_and(|host| of(&declared.egress, host))
        || matches!(cluster, Some(Cluster::Istio(host)) if host.is_egress());
    if of(&declared.inside, named)
        || routed.is_some_and(|host| !egress && of(&declared.inside, host))
    {
        return false;
    }
    match cluster {
        _ if egress => true,
        Some(Cluster::Unknown) => true,
        Some(Cluster::Istio(host)) => {
            let by_hand = !mesh.istio && host.is_short();
            !(by_hand || mesh.has_service(host))
        }
        Some(Cluster::Own(_)) => false,
        // The call goes nowhere, or its route is not known yet.
        None => {
            let short = named.is_empty() || named.is_short() || is_service(named);
            !(short || mesh.has_service(named))
        }
    }
}

/// Where calls are routed to, as a worker remembers it.
///
/// Asking Envoy costs as much as all else that is done for a call, so it is asked once
/// for calls of a kind: same host, and same path but for identifiers in it, since routes
/// go by both. Not by the method, and not by what else a route may go by (other headers,
/// a share of the calls): where two answers differ, the kind is asked about each time.
/// What is kept is the name of the cluster, not what follows from it: filters that are
/// configured differently share a worker.
#[derive(Debug, Default)]
pub struct Routes {
    mesh: Option<Mesh>,
    known: BTreeMap<u64, Route>,
    /// The keys of `known`, oldest first.
    order: VecDeque<u64>,
    /// The time of the last tick: a call does not ask for it.
    now_ms: u64,
}

#[derive(Debug)]
struct Route {
    authority: Box<[u8]>,
    cluster: Option<Vec<u8>>,
    until_ms: u64,
    /// Calls that are still answered from here.
    left: u32,
    varies: bool,
}

impl Routes {
    /// Kinds of calls that are remembered.
    pub const MOST: usize = 512;
    /// For how long, so that a new configuration of Envoy's takes effect.
    pub const KEPT_MS: u64 = 10_000;
    /// For how many calls, so that an answer that varies is found out.
    pub const CALLS: u32 = 16;
    /// A longer name, of a host or of a cluster, or a longer path, is not remembered.
    const LONGEST: usize = 512;

    /// To be called every second or so.
    pub fn tick(&mut self, now_ms: u64) {
        self.now_ms = now_ms;
    }

    /// Whether a call leaves the mesh. `seed`: a number that nobody outside knows.
    pub fn is_outside(
        &mut self,
        host: &impl Host,
        seed: u64,
        [authority, path]: [&[u8]; 2],
        declared: &Declared,
    ) -> bool {
        // No host has such a name (RFC 1035: 253 characters), and there may be 60 KiB of it.
        if authority.len() > Self::LONGEST {
            return true;
        }
        let now_ms = &mut self.now_ms;
        let mesh = self.mesh.get_or_insert_with(|| {
            *now_ms = host.now_ms();
            Mesh::of(&host.node_id().unwrap_or_default(), host.is_istio())
        });
        let asked;
        let fits = |name: &[u8]| name.len() <= Self::LONGEST;
        let key = without_query(path).map(|path| kind(seed, authority, path));
        let now_ms = self.now_ms;
        let known = key.and_then(|key| self.known.get_mut(&key));
        let cluster = match known.filter(|route| route.holds(authority, now_ms)) {
            Some(route) => {
                route.left -= 1;
                route.cluster.as_deref()
            }
            None => {
                asked = host.cluster();
                let key = key.filter(|_| asked.as_deref().is_none_or(fits));
                if let Some(key) = key {
                    let before = self.known.get(&key);
                    let same = |before: &Route| *before.authority == *authority;
                    let varies = before.filter(|before| same(before)).is_some_and(|before| {
                        before.varies || told(&before.cluster) != told(&asked)
                    });
                    let route = Route {
                        authority: authority.into(),
                        cluster: asked.clone(),
                        until_ms: now_ms + Self::KEPT_MS,
                        left: Self::CALLS,
                        varies,
                    };
                    if self.known.insert(key, route).is_none() {
                        self.order.push_back(key);
                    }
                    if self.order.len() > Self::MOST {
                        if let Some(oldest) = self.order.pop_front() {
                            self.known.remove(&oldest);
                        }
                    }
                }
                asked.as_deref()
            }
        };
        is_outside(authority, cluster, declared, mesh)
    }
}

/// What counts of a cluster: two subsets of one service are the same answer.
fn told(cluster: &Option<Vec<u8>>) -> Option<Option<&[u8]>> {
    let host = |name| Cluster::read(name).host().map(|Name(host)| host);
    cluster.as_deref().map(host)
}

impl Route {
    /// It is the answer for this call.
    fn holds(&self, authority: &[u8], now_ms: u64) -> bool {
        let begun = self.until_ms.saturating_sub(Routes::KEPT_MS);
        // The clock of the machine may be set back.
        let fresh = (begun..self.until_ms).contains(&now_ms);
        !self.varies && self.left > 0 && fresh && *self.authority == *authority
    }
}

/// A path without its query; `None` if it is longer than [`Routes::LONGEST`]. No more is
/// looked at: a path may have 60 KiB.
fn without_query(path: &[u8]) -> Option<&[u8]> {
    let looked_at = path.get(..=Routes::LONGEST).unwrap_or(path);
    let end = looked_at
        .iter()
        .position(|byte| matches!(byte, b'?' | b'#'));
    let path = looked_at.get(..end.unwrap_or(looked_at.len()))?;
    (path.len() <= Routes::LONGEST).then_some(path)
}

/// The host, and the path without its identifiers: parts of eight
/// characters or more with a digit in them. A shorter one may tell routes apart: `/v1`.
fn kind(seed: u64, authority: &[u8], path: &[u8]) -> u64 {
    let parts = path.split(|&byte| byte == b'/').map(|part| {
        let is_identifier = part.len() >= 8 && part.iter().any(u8::is_ascii_digit);
        if is_identifier { b"*" } else { part }
    });
    let parts = std::iter::once(authority).chain(parts);
    fnv1a(seed, parts.flat_map(|part| part.iter().chain(b"/")))
}
