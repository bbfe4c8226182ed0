//! What is the same in all spans of a proxy.

use std::net::IpAddr;

/// What is the same in all spans of a proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    service: Vec<u8>,
    address: Option<Vec<u8>>,
    is_istio: bool,
    tags: Vec<(&'static str, Vec<u8>)>,
}

/// Bytes of a tag, in case that a property is not what it should be.
const VALUE_MOST: usize = 256;

/// A tag, the property that it is, and what it is where there is none.
type Tag = (&'static str, &'static [u8], &'static [u8]);

const TAGS: &[Tag] = &[
    ("component", b"", b"proxy"),
    ("node_id", b"id", b""),
    ("zone", b"locality\0zone", b""),
    // Of Istio's sidecars, as `buildServiceTags` of its pilot.
    (
        "istio.canonical_revision",
        b"metadata\0LABELS\0service.istio.io/canonical-revision",
        b"latest",
    ),
    (
        "istio.canonical_service",
        b"metadata\0LABELS\0service.istio.io/canonical-name",
        b"unknown",
    ),
    ("istio.mesh_id", b"metadata\0MESH_ID", b"unknown"),
    ("istio.namespace", b"metadata\0NAMESPACE", b"default"),
    ("istio.cluster_id", b"metadata\0CLUSTER_ID", b"unknown"),
];

impl Node {
    /// Asks for properties of the node, by their path below `xds.node` with zero bytes
    /// between the parts; empty where there is none.
    pub fn ask(property: &dyn Fn(&[u8]) -> Vec<u8>) -> Self {
        let is_istio = !property(b"metadata\0ISTIO_VERSION").is_empty();
        let mut tags = Vec::with_capacity(TAGS.len());
        for (name, path, missing) in TAGS {
            let mut value = Vec::new();
            if !path.is_empty() {
                value = property(path);
                value.truncate(VALUE_MOST);
            }
            if value.is_empty() {
                value.extend_from_slice(missing);
            }
            if !value.is_empty() && (is_istio || !name.starts_with("istio.")) {
                tags.push((*name, value));
            }
        }
        let id = property(b"id");
        let address = id.split(|byte| *byte == b'~').nth(1).unwrap_or_default();
        let is_address = str::from_utf8(address).is_ok_and(|text| text.parse::<IpAddr>().is_ok());
        Self {
            service: property(b"cluster"),
            address: is_address.then(|| address.to_vec()),
            is_istio,
            tags,
        }
    }

    /// The name of the service: that of the node's cluster, as Envoy's Zipkin tracer has it.
    pub(super) fn service(&self) -> &[u8] {
        &self.service
    }

    /// The pod's address, if the node's ID says it, as Istio's do.
    pub(super) fn address(&self) -> Option<&[u8]> {
        self.address.as_deref()
    }

    /// What Istio puts behind the name of a cluster for its statistics (`alt_stat_name`).
    pub(super) fn delimiter(&self) -> &'static [u8] {
        if self.is_istio { b";" } else { b"" }
    }

    /// Tags.
    pub(super) fn tags(&self) -> &[(&'static str, Vec<u8>)] {
        &self.tags
    }
}
