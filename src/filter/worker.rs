//! What a worker knows of the requests in flight.

use crate::attribution::Attribution;
use crate::host::Host;
use crate::mesh_hosts::Routes;
use crate::relay::{KnownTracer, Tracer};
use crate::store::{SharedData, Store};

/// What a worker knows of the requests in flight: one for each worker thread of Envoy,
/// shared by its filters.
#[derive(Debug)]
pub struct WorkerState {
    /// Their contexts.
    pub store: Store,
    /// What they are doing.
    pub attribution: Attribution,
    /// Where their calls are routed to.
    pub routes: Routes,
    /// Which formats the sidecar's tracer writes.
    pub(super) tracer: KnownTracer,
}

impl WorkerState {
    /// Of a worker that has just begun. `random`: a number that no other worker of
    /// the process has.
    pub fn open(data: &impl SharedData, random: u64) -> Self {
        Self {
            store: Store::open(data, random),
            attribution: Attribution::default(),
            routes: Routes::default(),
            tracer: KnownTracer::default(),
        }
    }

    /// The sidecar's tracer is known to write W3C.
    pub(super) fn writes_w3c(&self) -> bool {
        matches!(self.tracer.known(), Some(Tracer::W3c | Tracer::Both))
    }

    /// To be called every second or so.
    pub fn tick(&mut self, host: &impl Host) {
        let now_us = host.now_us();
        self.store.tick(host, now_us / 1000);
        self.routes.tick(now_us / 1000);
        self.attribution.tick(&mut self.store, host, now_us);
    }
}
