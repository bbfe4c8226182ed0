//! The mesh that an Envoy is of, and its services.

use super::name::{Name, is_name, without_end};

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
            && is_name(domain)
        {
            mesh.domain = domain.to_vec();
        }
        mesh
    }

    /// A Kubernetes service by its full name, or a pod of a headless one:
    /// `reviews.shop.svc.cluster.local`, `db-0.db.shop.svc.cluster.local`.
    pub(super) fn has_service(&self, Name(host): Name<'_>) -> bool {
        let domains = [self.domain.as_slice(), b"clusterset.local"];
        let mut names = domains.iter().filter_map(|domain| {
            let name = without_end(host, domain)?;
            name.strip_suffix(b".")
        });
        names.any(|name| is_service(Name(name)))
    }
}

/// The same without the domain: `reviews.shop.svc`.
pub(super) fn is_service(Name(host): Name<'_>) -> bool {
    let service = without_end(host, b".svc").filter(|_| is_name(host));
    let labels = service.map(|service| service.split(|&byte| byte == b'.').count());
    matches!(labels, Some(2 | 3))
}
