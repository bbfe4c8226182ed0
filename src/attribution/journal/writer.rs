//! Writing a journal.

use super::{Event, NONCE, SEGMENT, key};
use crate::store::{SharedData, seal};

/// The journal of this worker.
#[derive(Debug)]
pub struct Writer {
    worker: u16,
    /// Its requests in flight.
    in_flight: u32,
    /// The number of the segment that is being written.
    pub(super) number: u32,
    /// The whole segment.
    pub(super) segment: Vec<u8>,
}

impl Writer {
    /// An empty journal. `nonce` tells the worker from one that had its number before.
    /// `in_flight`: how many requests have begun already.
    pub fn new(worker: u16, nonce: u64, in_flight: u32) -> Self {
        let mut writer = Self {
            worker,
            in_flight,
            number: 0,
            segment: Vec::with_capacity(SEGMENT + 256),
        };
        writer.segment.extend_from_slice(&nonce.to_le_bytes());
        writer.begin_segment();
        writer
    }

    /// Its requests in flight.
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    fn begin_segment(&mut self) {
        self.segment.truncate(NONCE);
        self.segment.extend_from_slice(&self.number.to_le_bytes());
        let in_flight = self.in_flight.to_le_bytes();
        self.segment.extend_from_slice(&in_flight);
    }

    /// The worker's number.
    pub fn worker(&self) -> u16 {
        self.worker
    }

    /// Writes an event. One that cannot be written is lost: the next one carries it
    /// along.
    pub fn write(&mut self, data: &impl SharedData, at_us: u64, event: &Event) {
        if self.segment.len() >= SEGMENT {
            self.number = self.number.wrapping_add(1);
            self.begin_segment();
        }
        self.in_flight = event.in_flight_after(self.in_flight);
        event.encode(at_us, &mut self.segment);
        self.publish(data);
    }

    /// Writes the segment: also for those who have to know that requests are in flight.
    pub fn publish(&mut self, data: &impl SharedData) {
        let length = self.segment.len();
        seal(&mut self.segment);
        let _ = data.set(&key(self.worker, self.number), &self.segment, 0);
        self.segment.truncate(length);
    }
}
