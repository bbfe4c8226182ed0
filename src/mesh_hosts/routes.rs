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
///
/// Envoy routes a call anew if the filter adds headers to it, and does not tell where to
/// before the call is sent: that is learned from calls that have been.
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
    /// What the user said of hosts when copied headers led a call of this kind out of the
    /// mesh, and until when they are taken to do that.
    leaves: Option<(Rc<Declared>, u64)>,
}

/// Where a call goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// Not out of the mesh.
    Inside {
        /// Envoy was asked for this call, and not for one before it.
        asked: bool,
    },
    /// Out of the mesh.
    Outside,
    /// Out of the mesh if it gets the headers that would be copied, and else not.
    OutsideByCopies,
}

impl Routes {
    /// Kinds of calls that are remembered.
    pub const MOST: usize = 512;
    /// For how long, so that a new configuration of Envoy's takes effect.
    pub const TTL_MS: u64 = 10_000;
    /// For how many calls, so that an answer that varies is found out.
    pub const CALLS: u32 = 16;
    /// For how long copied headers are taken to lead out of the mesh, once they have.
    pub const LEAVES_MS: u64 = 600_000;
    /// A longer name, of a host or of a cluster, or a longer path, is not remembered.
    const LONGEST: usize = 512;

    /// To be called every second or so.
    pub fn tick(&mut self, now_ms: u64) {
        self.now_ms = now_ms;
    }

    /// The kind of a call; `None` if it is not remembered. `seed`: a number that nobody
    /// outside knows.
    pub fn kind(seed: u64, authority: &[u8], path: &[u8]) -> Option<u64> {
        let path = without_query(path).filter(|_| authority.len() <= Self::LONGEST);
        path.map(|path| kind(seed, authority, path))
    }

    /// A call of this kind is over, onto which headers were copied. `asked`: as
    /// [`Destination::Inside`] had it.
    pub fn sent(&mut self, host: &impl Host, kind: u64, asked: bool, declared: &Rc<Declared>) {
        let place = self.known.binary_search_by_key(&kind, |(key, _)| *key);
        let known = place.ok().and_then(|at| self.known.get_mut(at));
        let (Some((_, route)), Some(mesh)) = (known, &self.mesh) else {
            return;
        };
        // Without a cluster it went nowhere.
        let cluster = host.cluster();
        if cluster.is_some() && is_outside(&route.authority, cluster.as_deref(), declared, mesh) {
            match asked {
                true => route.leaves = Some((declared.clone(), self.now_ms + Self::LEAVES_MS)),
                // The answer of before may have been wrong for this one.
                false => route.varies = true,
            }
        }
    }

    /// Where a call of this kind goes. `copies`: headers of the copy list would be added to it.
    pub fn destination(
        &mut self,
        host: &impl Host,
        key: Option<u64>,
        authority: &[u8],
        copies: bool,
        declared: &Rc<Declared>,
    ) -> Destination {
        match self.judge(host, key, authority, declared) {
            (true, _) => Destination::Outside,
            (false, _) if copies && self.copies_lead_out(key, authority, declared) => {
                Destination::OutsideByCopies
            }
            (false, asked) => Destination::Inside { asked },
        }
    }

    /// Whether copied headers have led a call of this kind out of the mesh.
    fn copies_lead_out(&self, key: Option<u64>, authority: &[u8], declared: &Rc<Declared>) -> bool {
        let place = key.map(|key| self.known.binary_search_by_key(&key, |(key, _)| *key));
        let known = place.and_then(Result::ok).and_then(|at| self.known.get(at));
        let known = known.filter(|(_, route)| *route.authority == *authority);
        let leaves = known.and_then(|(_, route)| route.leaves.as_ref());
        leaves.is_some_and(|(by, until_ms)| {
            Rc::ptr_eq(by, declared) && is_within(self.now_ms, *until_ms, Self::LEAVES_MS)
        })
    }

    /// Whether a call is routed out of the mesh, and whether Envoy was asked.
    fn judge(
        &mut self,
        host: &impl Host,
        key: Option<u64>,
        authority: &[u8],
        declared: &Rc<Declared>,
    ) -> (bool, bool) {
        // No host has such a name (RFC 1035: 253 characters), and there may be 60 KiB of it.
        if authority.len() > Self::LONGEST {
            return (true, false);
        }
        let now_ms = &mut self.now_ms;
        let mesh = self.mesh.get_or_insert_with(|| {
            *now_ms = host.now_ms();
            Mesh::of(&host.node_id().unwrap_or_default(), host.is_istio())
        });
        let now_ms = self.now_ms;
        let place = key.map(|key| self.known.binary_search_by_key(&key, |(key, _)| *key));
        let at = place.and_then(Result::ok);
        let known = at.and_then(|at| self.known.get_mut(at));
        let known = known.map(|(_, route)| route);
        let mut known = known.filter(|route| *route.authority == *authority);
        if let Some(route) = known.as_mut().filter(|route| route.is_valid(now_ms)) {
            route.left -= 1;
            let cluster = route.cluster.as_deref();
            let is_outside = match &route.judged {
                Some((by, is_outside)) if Rc::ptr_eq(by, declared) => *is_outside,
                _ => {
                    let is_outside = is_outside(authority, cluster, declared, mesh);
                    route.judged = Some((declared.clone(), is_outside));
                    is_outside
                }
            };
            return (is_outside, false);
        }
        let cluster = host.cluster();
        let is_outside = is_outside(authority, cluster.as_deref(), declared, mesh);
        let (varies, leaves) = known.map_or((false, None), |before| {
            let differs = relevant_name(&before.cluster) != relevant_name(&cluster);
            (before.varies || differs, before.leaves.take())
        });
        let fits = |name: &[u8]| name.len() <= Self::LONGEST;
        let key = key.filter(|_| cluster.as_deref().is_none_or(fits));
        let route = Route {
            authority: authority.into(),
            cluster,
            judged: None,
            until_ms: now_ms + Self::TTL_MS,
            left: Self::CALLS,
            varies,
            leaves,
        };
        match (key, place) {
            (Some(_), Some(Ok(at))) => {
                let _ = self.known.get_mut(at).map(|(_, known)| *known = route);
            }
            (Some(key), Some(Err(at))) => self.insert(at, key, route),
            _ => {}
        }
        (is_outside, true)
    }

    fn insert(&mut self, at: usize, key: u64, route: Route) {
        // Once, so that no memory is left in pieces.
        let more = Self::MOST + 1 - self.order.len();
        self.known.reserve_exact(more);
        self.known.insert(at, (key, route));
        self.order.push_back(key);
        if self.order.len() > Self::MOST {
            let oldest = self.order.pop_front().unwrap_or_default();
            let at = self.known.binary_search_by_key(&oldest, |(key, _)| *key);
            let _ = at.map(|at| self.known.remove(at));
        }
    }
}

/// The part of a cluster's name that matters: the host. Two subsets of one service are the
/// same answer.
fn relevant_name(cluster: &Option<Vec<u8>>) -> Option<Option<&[u8]>> {
    let host = |name| Cluster::read(name).host().map(|Name(host)| host);
    cluster.as_deref().map(host)
}

impl Route {
    /// Whether it is still the answer.
    fn is_valid(&self, now_ms: u64) -> bool {
        !self.varies && self.left > 0 && is_within(now_ms, self.until_ms, Routes::TTL_MS)
    }
}

/// Whether a time of this length, which ends at `until_ms`, has not passed. The clock of the
/// machine may be set back.
fn is_within(now_ms: u64, until_ms: u64, length_ms: u64) -> bool {
    (until_ms.saturating_sub(length_ms)..until_ms).contains(&now_ms)
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
