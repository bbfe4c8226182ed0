//! What the journals of all workers say is read at once, and told to the tracker in the order of
//! time, a few milliseconds' worth at once: no call waits for more.

use super::journal::{Event, Read, Reader};
use super::{Attribution, BLIND_US, number, request_of};
use crate::store::{SharedData, WorkerId};

/// So many events are taken in at once, for a few milliseconds at most: where only the only
/// request in flight gets a call, and where others may.
const SLICE: [usize; 2] = [16_384, 256];

/// How many times that is done in 100 ms.
pub(super) const SLICES: u64 = 4;

impl Attribution {
    /// The most events that are taken in at once.
    pub(super) fn slice(&self) -> usize {
        let [exclusive, inferred] = SLICE;
        match self.tracker.infers() {
            true => inferred,
            false => exclusive,
        }
    }

    /// Gives the tracker the events since the last time. If there are more than may be taken
    /// in at once, some are left, and no call can be judged before they are taken in, too.
    pub(super) fn catch_up(&mut self, workers: &[WorkerId], data: &impl SharedData, now_us: u64) {
        let left = self.take_in(self.slice());
        if self.ahead.is_empty() {
            self.read_journals(workers, data, now_us);
            self.take_in(left);
        }
    }

    /// Gives the tracker so many of the events that were read. Returns how many more it may
    /// be given.
    pub(super) fn take_in(&mut self, most: usize) -> usize {
        for taken in 0..most {
            let Some((at_us, worker, event)) = self.ahead.pop() else {
                return most - taken;
            };
            self.applied_us = self.applied_us.max(at_us);
            self.apply(at_us, worker, event);
        }
        0
    }

    /// Reads all events since the last time. To be called when the tracker has been told of all
    /// that were read before.
    fn read_journals(&mut self, workers: &[WorkerId], data: &impl SharedData, now_us: u64) {
        let mut gone: Vec<u16> = Vec::new();
        self.readers.retain(|reader| {
            let here = workers.contains(&reader.worker());
            if !here {
                gone.push(reader.worker().0);
            }
            here
        });
        for worker in workers {
            if !self.readers.iter().any(|r| r.worker() == *worker) {
                self.readers.push(Reader::new(*worker));
            }
        }
        let mut events = Vec::new();
        let mut lost = false;
        let mut taught_us = 0;
        for reader in &mut self.readers {
            let others = events.len();
            lost |= reader.read(data, self.writer.as_ref(), &mut events) == Read::Lost;
            let read = events.get_mut(others..).unwrap_or_default();
            self.clock.place(read);
            if reader.began_anew() {
                // What was learned once is not learned again.
                taught_us = taught_us.max(self.applied_us);
            }
            if let Some((at_us, ..)) = read.first().filter(|_| reader.began_late()) {
                taught_us = taught_us.max(*at_us);
            }
        }
        // Before, events of one worker are there and those of another one are not.
        self.tracker.blind(taught_us);
        for worker in gone {
            self.tracker
                .abandon(|request| request_of(request).0 == worker);
        }
        if lost {
            self.tracker.forget();
            let continued = |reader: &&mut Reader| !reader.began_anew();
            for reader in self.readers.iter_mut().filter(continued) {
                reader.forget();
                events.retain(|(_, worker, _)| *worker != reader.worker().0);
            }
            self.blind_until_us = now_us.saturating_add(BLIND_US);
            self.tracker.blind(self.blind_until_us);
        }
        events.sort_by_cached_key(|(at_us, _, _)| *at_us);
        events.reverse();
        self.ahead = events;
    }

    /// Gives the tracker one event.
    fn apply(&mut self, at_us: u64, worker: u16, event: Event) {
        match event {
            Event::Begin {
                request,
                bucket,
                route,
                tokens,
            } => {
                let request = number(worker, request);
                self.tracker.begin(at_us, request, bucket, route, tokens);
            }
            Event::End { request, answered } => {
                let request = number(worker, request);
                match answered {
                    true => self.tracker.end(at_us, request),
                    false => self.tracker.broken_off(at_us, request),
                }
            }
            Event::Call {
                number: id,
                call,
                owner,
            } => {
                if owner.is_none() {
                    self.called_while_idle(at_us);
                }
                let owner = owner.map(|(worker, request)| number(worker, request));
                let id = number(worker, id);
                self.tracker.call(at_us, id, &call, owner);
            }
            Event::CallEnd { call } => self.tracker.call_end(at_us, number(worker, call)),
        }
    }
}
