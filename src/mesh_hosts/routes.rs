//! Where calls are routed to.

use super::cluster::Cluster;
use super::mesh::Mesh;
use super::name::Name;
use super::{Declared, is_outside};
use crate::bytes::fnv1a;
use crate::host::Host;
use std::collections::VecDeque;
use std::rc::Rc;

/// Where calls are routed to, as a worker remembers it.
///
/// Asking Envoy costs as much as all else that is done for a call, so it is asked once
/// for calls of a kind: same host, and same path but for identifiers in it, since routes
/// go by both. Not by the method, and not by what else a route may go by (other headers,
/// a share of the calls): where two answers differ, the kind is asked about each time.
/// Filters that are configured differently share a worker: what follows from the name of
/// the cluster is kept for the one that asked last.
#[derive(Debug, Default)]
pub struct Routes {
    mesh: Option<Mesh>,
    /// By key, in order: a BTreeMap would bring the module 5 KB, and find no faster.
    known: Vec<(u64, Route)>,
    /// The keys of `known`, oldest first.
    order: VecDeque<u64>,
    /// The time of the last tick: a call does not ask for it.
    now_ms: u64,
}

#[derive(Debug)]
struct Route {
    authority: Box<[u8]>,
    cluster: Option<Vec<u8>>,
    /// What the user said of hosts, and what follows: whether it is outside.
    judged: Option<(Rc<Declared>, bool)>,
    until_ms: u64,
    /// Calls that are still answered from here.
    left: u32,
    varies: bool,
}

impl Routes {
    /// Kinds of calls that are remembered.
    pub const MOST: usize = 512;
    /// For how long, so that a new configuration of Envoy's takes effect.
    pub const TTL_MS: u64 = 10_000;
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
        declared: &Rc<Declared>,
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
        let place = key.map(|key| self.known.binary_search_by_key(&key, |(key, _)| *key));
        let at = place.and_then(Result::ok);
        let known = at.and_then(|at| self.known.get_mut(at));
        let known = known.map(|(_, route)| route);
        let cluster = match known.filter(|route| route.is_valid_for(authority, now_ms)) {
            Some(route) => {
                route.left -= 1;
                let cluster = route.cluster.as_deref();
                return match &route.judged {
                    Some((by, is_outside)) if Rc::ptr_eq(by, declared) => *is_outside,
                    _ => {
                        let is_outside = is_outside(authority, cluster, declared, mesh);
                        route.judged = Some((declared.clone(), is_outside));
                        is_outside
                    }
                };
            }
            None => {
                asked = host.cluster();
                let key = key.filter(|_| asked.as_deref().is_none_or(fits));
                if let Some(key) = key {
                    let before = at.and_then(|at| self.known.get_mut(at));
                    let same = |before: &Route| *before.authority == *authority;
                    let varies = before.as_ref().is_some_and(|(_, before)| {
                        same(before)
                            && (before.varies
                                || relevant_name(&before.cluster) != relevant_name(&asked))
                    });
                    let route = Route {
                        authority: authority.into(),
                        cluster: asked.clone(),
                        judged: None,
                        until_ms: now_ms + Self::TTL_MS,
                        left: Self::CALLS,
                        varies,
                    };
                    match (before, place) {
                        (Some((_, before)), _) => *before = route,
                        (None, Some(Err(at))) => {
                            // Once, so that no memory is left in pieces.
                            let more = Self::MOST + 1 - self.order.len();
                            self.known.reserve_exact(more);
                            self.known.insert(at, (key, route));
                            self.order.push_back(key);
                        }
                        (None, _) => {}
                    }
                    if self.order.len() > Self::MOST {
                        let oldest = self.order.pop_front().unwrap_or_default();
                        let at = self.known.binary_search_by_key(&oldest, |(key, _)| *key);
                        let _ = at.map(|at| self.known.remove(at));
                    }
                }
                asked.as_deref()
            }
        };
        is_outside(authority, cluster, declared, mesh)
    }
}

/// The part of a cluster's name that matters: the host. Two subsets of one service are the
/// same answer.
fn relevant_name(cluster: &Option<Vec<u8>>) -> Option<Option<&[u8]>> {
    let host = |name| Cluster::read(name).host().map(|Name(host)| host);
    cluster.as_deref().map(host)
}

impl Route {
    /// Whether it is the answer for this call.
    fn is_valid_for(&self, authority: &[u8], now_ms: u64) -> bool {
        let begun = self.until_ms.saturating_sub(Routes::TTL_MS);
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

/// The host, and the path without its identifiers: parts of eight characters or more, of
/// which a quarter are digits. Others may tell routes apart: `/v1`, `/internal-v1`.
fn kind(seed: u64, authority: &[u8], path: &[u8]) -> u64 {
    let parts = path.split(|&byte| byte == b'/').map(|part| {
        let digits = || part.iter().filter(|byte| byte.is_ascii_digit()).count();
        let is_identifier = part.len() >= 8 && 4 * digits() >= part.len();
        if is_identifier { b"*" } else { part }
    });
    let parts = std::iter::once(authority).chain(parts);
    fnv1a(seed, parts.flat_map(|part| part.iter().chain(b"/")))
}
