//! Reading a journal.

use super::writer::Writer;
use super::{Event, HEAD, SEGMENT, SEGMENTS, key};
use crate::bytes::{read_u32, read_u64};
use crate::store::{SharedData, WorkerId, unseal};
use std::borrow::Cow;

/// How far the journal of a worker has been read.
#[derive(Debug)]
pub struct Reader {
    worker: WorkerId,
    /// The number of the next segment to be read, and the bytes of it that were read.
    number: u32,
    offset: usize,
}

/// Whether all events were read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// Everything since the last time.
    All,
    /// Some events were overwritten before they were read, or somebody else has spoiled them.
    Lost,
}

/// What is under the key of a segment.
enum Segment<'w> {
    /// Nothing, or a segment of a worker that had this one's number earlier.
    None,
    /// Somebody else has spoiled it. The writer writes the whole of it with its next event.
    Spoiled,
    /// Its number, and the whole of it.
    Whole(u32, Cow<'w, [u8]>),
}

impl Reader {
    /// Begins with the oldest segment that is there.
    pub fn new(worker: WorkerId) -> Self {
        Self {
            worker,
            number: 0,
            offset: HEAD,
        }
    }

    /// The worker that is read.
    pub fn worker(&self) -> WorkerId {
        self.worker
    }

    /// The segment under the key of this one. `own` as for [`Reader::read`].
    fn segment<'w>(
        &self,
        data: &impl SharedData,
        own: Option<&'w Writer>,
        number: u32,
    ) -> Segment<'w> {
        let (worker, nonce) = self.worker;
        let bytes = match own {
            Some(own) if own.worker() == worker && own.number == number => {
                Cow::Borrowed(own.segment.as_slice())
            }
            _ => {
                let Some((mut value, _)) = data.get(&key(worker, number)) else {
                    return Segment::None;
                };
                let Some(length) = unseal(&value).map(<[u8]>::len) else {
                    return Segment::Spoiled;
                };
                value.truncate(length);
                Cow::Owned(value)
            }
        };
        let mut rest = &*bytes;
        match (read_u64(&mut rest), read_u32(&mut rest)) {
            (Some(writer), Some(number)) if writer == nonce => Segment::Whole(number, bytes),
            (Some(_), Some(_)) => Segment::None,
            _ => Segment::Spoiled,
        }
    }

    /// Appends every event since the last time, with its time in microseconds and the
    /// number of its worker. `own`: the journal that the reading worker writes, which takes no
    /// host call to read.
    pub fn read(
        &mut self,
        data: &impl SharedData,
        own: Option<&Writer>,
        events: &mut Vec<(u64, u16, Event)>,
    ) -> Read {
        let mut found = Read::All;
        // The clock may be set back; the order stays.
        let mut latest_us = 0;
        // No more than there are, even if the writer is faster.
        for _ in 0..2 * SEGMENTS {
            let (number, bytes) = match self.segment(data, own, self.number) {
                Segment::None => break,
                Segment::Whole(number, bytes) => (number, bytes),
                Segment::Spoiled => {
                    found = Read::Lost;
                    let next = self.number.wrapping_add(1);
                    match self.segment(data, own, next) {
                        Segment::Whole(number, _) if number == next => {
                            (self.number, self.offset) = (next, HEAD);
                            continue;
                        }
                        _ => break,
                    }
                }
            };
            if number != self.number {
                // Of the last round: this one is not yet written.
                if number.wrapping_add(SEGMENTS) == self.number {
                    break;
                }
                found = Read::Lost;
                self.rewind(data, own);
                continue;
            }
            let mut rest = bytes.get(self.offset..).unwrap_or_default();
            while !rest.is_empty() {
                let Some((at_us, event)) = Event::decode(&mut rest) else {
                    found = Read::Lost;
                    break;
                };
                latest_us = at_us.max(latest_us);
                events.push((latest_us, self.worker.0, event));
            }
            self.offset = bytes.len();
            if bytes.len() < SEGMENT {
                break;
            }
            self.number = self.number.wrapping_add(1);
            self.offset = HEAD;
        }
        found
    }

    /// Goes to the oldest segment.
    fn rewind(&mut self, data: &impl SharedData, own: Option<&Writer>) {
        let numbers = (0..SEGMENTS).filter_map(|number| match self.segment(data, own, number) {
            Segment::Whole(number, _) => Some(number),
            _ => None,
        });
        self.number = numbers.min().unwrap_or(0);
        self.offset = HEAD;
    }

    /// Goes to the end of this worker's own journal: those events are known already.
    pub fn skip_to_end(&mut self, writer: &Writer) {
        self.number = writer.number;
        self.offset = writer.segment.len();
    }
}
