//! Which hosts are outside the mesh.
//!
//! The order, first word first: what the user declares, the cluster that Istio routes
//! the call to, and only where there is none of Istio's the look of the host's name, since
//! anybody may own a name that looks like one of Kubernetes.

mod cluster;
mod mesh;
mod name;
mod pattern;
mod routes;

pub use mesh::Mesh;
pub use pattern::HostPattern;
pub use routes::{Destination, Routes};

use cluster::Cluster;
use mesh::is_service;
use name::Name;

/// What the user says of hosts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Declared {
    /// `mesh_hosts`
    pub inside: Vec<HostPattern>,
    /// `outside_hosts`
    pub outside: Vec<HostPattern>,
    /// `egress_gateways`
    pub egress: Vec<HostPattern>,
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
    let of = |patterns: &[HostPattern], host| patterns.iter().any(|one| one.matches(host));
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
        // Istio has services of its own to route to.
        Some(Cluster::Own(_)) if !mesh.istio => false,
        // The call goes nowhere, its route is not known yet, or Istio does not know it.
        Some(Cluster::Own(_)) | None => {
            let short = named.is_empty() || named.is_short() || is_service(named);
            !(short || mesh.has_service(named))
        }
    }
}
