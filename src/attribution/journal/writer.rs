//! Writing a journal.

use super::{Event, NONCE, SEGMENT, key};
use crate::store::{SharedData, seal};

/// The journal of this worker.
#[derive(Debug)]
pub struct Writer {
    worker: u16,
    /// The number of the segment that is being written.
    pub(super) number: u32,
    /// The whole segment.
    pub(super) segment: Vec<u8>,
}

impl Writer {
    /// An empty journal. `nonce` tells the worker from one that had its number before.
    pub fn new(worker: u16, nonce: u64) -> Self {
        let mut writer = Self {
            worker,
            number: 0,
            segment: Vec::with_capacity(SEGMENT + 256),
        };
        writer.segment.extend_from_slice(&nonce.to_le_bytes());
        writer.segment.extend_from_slice(&0u32.to_le_bytes());
        writer
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
            self.segment.truncate(NONCE);
            self.segment.extend_from_slice(&self.number.to_le_bytes());
        }
        event.encode(at_us, &mut self.segment);
        let length = self.segment.len();
        seal(&mut self.segment);
        let _ = data.set(&key(self.worker, self.number), &self.segment, 0);
        self.segment.truncate(length);
    }
}
