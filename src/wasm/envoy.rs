//! Envoy, as the core sees it.

use super::host_calls::{self, Failure};
use super::plugin::Plugin;
use crate::host::{Host, Recording};
use crate::setup::Labels;
use crate::store::{NotSet, SharedData};

/// Envoy, outside of a request.
pub(super) struct Envoy;

impl Envoy {
    /// A number that no other VM has. Should there be no randomness, two VMs still
    /// differ in the time.
    pub(super) fn seed(&self) -> u64 {
        let random = getrandom::u64().unwrap_or_default();
        random ^ host_calls::now().unwrap_or_default().rotate_left(20)
    }

    /// What Istio was told of labels, as far as the node's metadata show: pilot-agent
    /// writes the proxy configuration there. A list cannot be read as a property, but is
    /// another failure than one that is missing.
    pub(super) fn labels(&self) -> Labels {
        let node = |name: &[u8]| host_calls::property(&[b"xds\0node\0metadata\0", name].concat());
        if node(b"ISTIO_VERSION").is_err() {
            return Labels::NotIstio;
        }
        match node(b"PROXY_CONFIG\0extraStatTags") {
            Err(Failure::NOT_FOUND) => Labels::Missing,
            Ok(_) | Err(_) => Labels::Given,
        }
    }
}

impl Host for Envoy {
    fn now_us(&self) -> u64 {
        host_calls::now().unwrap_or_default() / 1_000
    }

    fn random(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        // Zeros if there is no randomness, which Envoy always has.
        let _ = getrandom::fill(&mut bytes);
        bytes
    }

    fn source_port(&self) -> u16 {
        // A number of 8 bytes, little-endian.
        match host_calls::property(b"source\0port").as_deref() {
            Ok([low, high, ..]) => u16::from_le_bytes([*low, *high]),
            _ => 0,
        }
    }

    fn cluster(&self) -> Option<Vec<u8>> {
        host_calls::property(b"xds\0cluster_name").ok()
    }

    fn node_id(&self) -> Option<Vec<u8>> {
        host_calls::property(b"xds\0node\0id").ok()
    }

    fn is_istio(&self) -> bool {
        host_calls::property(b"xds\0node\0metadata\0ISTIO_VERSION").is_ok()
    }
}

impl SharedData for Envoy {
    fn get(&self, key: &[u8]) -> Option<(Vec<u8>, u32)> {
        host_calls::shared_data(key).ok()
    }

    fn set(&self, key: &[u8], value: &[u8], cas: u32) -> Result<(), NotSet> {
        host_calls::set_shared_data(key, value, cas).map_err(|_| NotSet)
    }
}

/// Envoy, during a request of this plugin.
pub(super) struct EnvoyOf<'a>(pub(super) &'a Plugin);

impl Host for EnvoyOf<'_> {
    fn now_us(&self) -> u64 {
        Envoy.now_us()
    }

    fn is_before_router(&self) -> bool {
        self.0.is_before_router()
    }

    fn random(&self) -> [u8; 16] {
        Envoy.random()
    }

    fn recording(&self) -> Recording {
        self.0.recording()
    }

    fn source_port(&self) -> u16 {
        Envoy.source_port()
    }

    fn cluster(&self) -> Option<Vec<u8>> {
        Envoy.cluster()
    }

    fn node_id(&self) -> Option<Vec<u8>> {
        Envoy.node_id()
    }

    fn is_istio(&self) -> bool {
        Envoy.is_istio()
    }
}

impl SharedData for EnvoyOf<'_> {
    fn get(&self, key: &[u8]) -> Option<(Vec<u8>, u32)> {
        Envoy.get(key)
    }

    fn set(&self, key: &[u8], value: &[u8], cas: u32) -> Result<(), NotSet> {
        Envoy.set(key, value, cas)
    }
}
