//! What the core asks of the proxy that it runs in.

use crate::store::SharedData;

/// What becomes of a call's span.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Recording {
    /// No spans are reported.
    #[default]
    Off,
    /// They are, but now there is no room, or the collector does not answer.
    Closed,
    /// One may begin.
    Open,
}

/// The proxy, while it has a request in hand. In Envoy: `src/wasm/envoy.rs`.
pub trait Host: SharedData {
    /// Microseconds since the epoch.
    fn now_us(&self) -> u64;
    /// Milliseconds since the epoch.
    fn now_ms(&self) -> u64 {
        self.now_us() / 1000
    }
    /// The filter sits before the router, as an ordinary HTTP filter: the headers are not
    /// yet those that the sidecar's tracer writes.
    fn is_before_router(&self) -> bool {
        false
    }
    /// 16 random bytes.
    fn random(&self) -> [u8; 16];
    /// The peer's port of the connection that the request came through; 0: not known.
    fn source_port(&self) -> u16 {
        0
    }
    /// The name of the Envoy cluster that the request is routed to.
    fn cluster(&self) -> Option<Vec<u8>>;
    /// Whether a span may begin.
    fn recording(&self) -> Recording {
        Recording::Off
    }
    /// The ID of this Envoy, which in Istio names the domain of the cluster.
    fn node_id(&self) -> Option<Vec<u8>> {
        None
    }
    /// Istio has configured this Envoy.
    fn is_istio(&self) -> bool {
        false
    }
}
