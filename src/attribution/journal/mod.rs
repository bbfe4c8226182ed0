//! The requests and calls of one worker that begin and end, for all workers to read.
//!
//! A request may come in on one worker and its calls go out on another. So each
//! worker writes what it sees into shared data, and one that has to judge a call
//! reads what the others wrote. A worker's journal is a ring of segments under a
//! fixed set of keys (`SEGMENTS`), which that worker alone writes:
//!
//! - To write an event is one write of the segment (up to `SEGMENT` bytes), and no
//!   read.
//! - To read on is one read for each worker, if not much has happened.
//! - A reader that is too slow finds a segment overwritten, and one may be spoiled by
//!   somebody else ([`Read::Lost`]).
//!
//! The key of a segment is `PREFIX`, the worker's number u16 (big-endian), and the segment's
//! number modulo `SEGMENTS` u8. A segment is: the writer's nonce u64, the segment's number in the
//! journal u32, how many of the worker's requests were in flight when it was begun u32, then
//! events, and the length of all that (`seal`). An event is: the time in microseconds u64, a
//! tag u8, and what belongs to it ([`Event`]). Integers are little-endian.

mod event;
mod reader;
#[cfg(test)]
mod tests;
mod writer;

pub use event::Event;
pub use reader::{Read, Reader};
pub use writer::Writer;

use crate::store::shared_data_name;

/// Segments of a journal.
const SEGMENTS: u32 = 64;
/// Bytes from which on the next segment is begun.
const SEGMENT: usize = 1536;
/// Bytes before the first event, and of the nonce, which comes first.
const HEAD: usize = NONCE + 4 + 4;
const NONCE: usize = 8;

/// The key of a segment.
fn key(worker: u16, segment: u32) -> [u8; 17] {
    let [high, low] = worker.to_be_bytes();
    shared_data_name([
        b'l',
        b'o',
        b'g',
        b'/',
        high,
        low,
        (segment % SEGMENTS) as u8,
    ])
}
