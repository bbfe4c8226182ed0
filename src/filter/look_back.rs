//! Says to which request a call belonged that was left alone, if the configuration asks for it
//! (`look_back`).

use super::Filter;
use super::request::Request;
use super::worker::WorkerState;
use crate::attribution::look_back::LeftAlone;
use crate::relay::StoredContext;
use crate::report;
use crate::store::SharedData;

impl Filter {
    /// A call with this number is left alone: its request is to be told when it is known.
    #[inline(never)]
    pub(super) fn leave_alone(
        &self,
        worker: &mut WorkerState,
        (number, wrong): (Option<u64>, f64),
        request: &Request<'_>,
    ) {
        if let Some(number) = number.filter(|_| self.config.look_back) {
            let host = request.headers.authority.value().unwrap_or_default();
            worker.attribution.leave_alone(LeftAlone {
                call: number,
                least: (1.0 - wrong) as f32,
                host: host.to_vec(),
                request_id: request.request_id.to_vec(),
                ..LeftAlone::default()
            });
        }
    }

    /// A log line for each call that was left alone and whose request is known since the last
    /// time, as long as the store has that: to be called with each tick.
    pub fn look_back(&self, worker: &mut WorkerState, data: &impl SharedData) -> Vec<String> {
        let mut lines = Vec::new();
        if self.config.look_back {
            for told in worker.attribution.take_told() {
                let store = &worker.store;
                let request = store.fetch_ended(data, told.request(), told.bucket);
                let request = request.and_then(|it| StoredContext::decode_context(&it.context));
                if let Some(request) = request {
                    lines.push(report::look_back(&told.call, &request, told.share));
                }
            }
        }
        lines
    }
}
