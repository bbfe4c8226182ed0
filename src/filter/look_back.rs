//! Says to which request a call belonged that was left alone, if the configuration asks for it
//! (`look_back`).

use super::Filter;
use super::request::Request;
use super::worker::WorkerState;
use crate::attribution::look_back::LeftAlone;
use crate::relay::StoredContext;
use crate::report;

impl Filter {
    /// A call with this number is left alone: its request is to be told when it is known.
    #[inline(never)]
    pub(super) fn leave_alone(
        &self,
        worker: &mut WorkerState,
        now_us: u64,
        (number, wrong): (Option<u64>, f64),
        request: &Request<'_>,
    ) {
        if let Some(number) = number.filter(|_| self.config.look_back) {
            let host = request.headers.authority.value().unwrap_or_default();
            worker.attribution.leave_alone(LeftAlone {
                call: number,
                at_us: now_us,
                least: (1.0 - wrong) as f32,
                host: host.to_vec(),
                request_id: request.request_id.to_vec(),
            });
        }
    }

    /// A log line for each call that was left alone and whose request is known since the last
    /// time.
    pub fn look_back(&self, worker: &mut WorkerState) -> Vec<String> {
        if !self.config.look_back {
            return Vec::new();
        }
        let calls = worker.attribution.take_looked_back();
        let lines = calls.iter().filter_map(|back| {
            let request = StoredContext::decode_context(&back.request.context)?;
            Some(report::look_back(&back.call, &request, back.share))
        });
        lines.collect()
    }
}
