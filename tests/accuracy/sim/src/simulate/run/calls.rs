//! The calls that an application makes, and the workers of its queue.

use super::{Event, Run};
use crate::simulate::app::{Call, Clients};
use crate::simulate::seen::{Seen, SeenCall};
use rand::prelude::*;
use rand_distr::LogNormal;

#[derive(Clone, Copy)]
pub struct Made {
    pub owner: Option<u64>,
    pub call: Call,
    pub token: u32,
    /// Its place among the calls of a job after the answer.
    pub after: Option<usize>,
}

impl Made {
    pub fn by(owner: Option<u64>, call: Call, token: u32) -> Self {
        Self {
            owner,
            call,
            token,
            after: None,
        }
    }
}

impl Run<'_> {
    pub fn outbound(&mut self, made: Made) {
        self.ids += 1;
        let id = self.ids;
        let kind = made.call.kind;
        let keyed = match self.app.keyed {
            Some(keyed) if made.owner.is_some() && keyed.kind.is_none_or(|of| of == kind) => {
                self.chance(keyed.share)
            }
            _ => false,
        };
        let request = made.owner.and_then(|owner| self.live.get(&owner));
        let connection = match (self.app.clients, request) {
            (Clients::PerConnection, Some(request)) => request.connection,
            (Clients::PerThread, Some(request)) => request.thread,
            _ => 0,
        };
        self.saw(Seen::Call(SeenCall {
            id,
            kind,
            token: made.token,
            owner: made.owner,
            keyed,
            connection,
        }));
        self.calls.insert(id, made);
        let progress = self.started as f64 / self.size.requests as f64;
        let io = self.app.io_ms * (1.0 + (self.app.drift - 1.0) * progress);
        let io = io * made.call.times;
        let time = LogNormal::new(io.ln(), self.app.io_tail).unwrap();
        let ms: f64 = time.sample(&mut self.random);
        self.after(ms, Event::Returned(id));
    }

    /// A worker that is idle takes a job.
    pub fn work(&mut self) {
        if self.at_work == self.app.workers {
            return;
        }
        if let Some(made) = self.jobs.pop_front() {
            self.at_work += 1;
            self.ids += 1;
            self.prepared.insert(self.ids, made);
            let ms = self.burst.sample(&mut self.random);
            let done = self.worked(ms);
            self.push(done, Event::Prepared(self.ids));
        }
    }

    pub fn returned(&mut self, call: u64) {
        self.saw(Seen::CallEnd(call));
        let made = self.calls.remove(&call).unwrap();
        if made.call.queued {
            self.at_work -= 1;
            self.work();
        }
        let Some(id) = made.owner else {
            return;
        };
        if let Some(next) = made.after.map(|place| place + 1) {
            let calls = self.app.after.as_ref().map_or(0, |job| job.kinds.len());
            if next < calls {
                let ms = self.burst.sample(&mut self.random);
                let done = self.worked(ms);
                self.push(done, Event::After(id, next));
            }
        } else if self.live.contains_key(&id) {
            if self.random.random::<f64>() < made.call.retry {
                self.outbound(made);
                return;
            }
            let request = self.live.get_mut(&id).unwrap();
            request.out -= 1;
            if request.out == 0 {
                self.cpu(id);
            }
        }
    }
}
