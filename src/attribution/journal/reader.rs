//! Reading a journal.

use super::writer::Writer;
use super::{Event, HEAD, SEGMENT, SEGMENTS, key};
use crate::bytes::{read_u32, read_u64};
use crate::store::{IDS, SharedData, WorkerId, unseal};
use std::borrow::Cow;

/// How far the journal of a worker has been read.
#[derive(Debug)]
pub struct Reader {
    worker: WorkerId,
    /// The number of the next segment to be read, and the bytes of it that were read.
    number: u32,
    offset: usize,
    /// Events before that segment were not read.
    is_new: bool,
    /// The last time that it was read began with such a segment, of this number.
    began_anew: Option<u32>,
    /// Requests of the worker that are in flight after what was read.
    in_flight: u32,
    /// Those of them whose beginning was not read, or was forgotten.
    unknown: u32,
    /// The first request whose beginning was read since.
    first: Option<u64>,
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
    /// Its number, the requests in flight when it was begun, and the whole of it.
    Whole(u32, u32, Cow<'w, [u8]>),
}

impl Reader {
    /// Begins with the oldest segment that is there.
    pub fn new(worker: WorkerId) -> Self {
        Self {
            worker,
            number: 0,
            offset: HEAD,
            is_new: true,
            began_anew: None,
            in_flight: 0,
            unknown: 0,
            first: None,
        }
    }

    /// Of no request in flight the beginning was not read, or was forgotten.
    pub fn knows_all(&self) -> bool {
        self.unknown == 0
    }

    /// Nothing is known any more of the requests in flight.
    pub fn forget(&mut self) {
        self.unknown = self.in_flight;
        self.first = None;
    }

    /// What the last [`Reader::read`] appended is not all that was ever written: what was
    /// written before has been overwritten.
    pub fn began_late(&self) -> bool {
        self.began_anew.is_some_and(|number| number > 0)
    }

    /// What the last [`Reader::read`] appended needs nothing that was read before.
    pub fn began_anew(&self) -> bool {
        self.began_anew.is_some()
    }

    /// An event was read.
    fn count(&mut self, event: &Event) {
        self.in_flight = event.in_flight_after(self.in_flight);
        match event {
            Event::Begin { request, .. } => {
                self.first.get_or_insert(*request);
            }
            Event::End { request, .. } => {
                // The numbers go up, and begin again from 0.
                let before =
                    |first: u64| (1..IDS / 2).contains(&(first.wrapping_sub(*request) % IDS));
                if self.first.is_none_or(before) {
                    self.unknown = self.unknown.saturating_sub(1);
                }
            }
            _ => {}
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
        let mut head = || {
            Some((
                read_u64(&mut rest)?,
                read_u32(&mut rest)?,
                read_u32(&mut rest)?,
            ))
        };
        match head() {
            Some((writer, number, in_flight)) if writer == nonce => {
                Segment::Whole(number, in_flight, bytes)
            }
            Some(_) => Segment::None,
            None => Segment::Spoiled,
        }
    }

    /// Appends every event since the last time, with its time by the machine's clock, in
    /// microseconds, and the number of its worker. `own`: the journal that the reading worker
    /// writes, which takes no host call to read.
    pub fn read(
        &mut self,
        data: &impl SharedData,
        own: Option<&Writer>,
        events: &mut Vec<(u64, u16, Event)>,
    ) -> Read {
        let mut found = Read::All;
        self.began_anew = None;
        let others = events.len();
        // No more than there are, even if the writer is faster.
        for _ in 0..2 * SEGMENTS {
            let (number, in_flight, bytes) = match self.segment(data, own, self.number) {
                Segment::None => break,
                Segment::Whole(number, in_flight, bytes) => (number, in_flight, bytes),
                Segment::Spoiled => {
                    found = Read::Lost;
                    let next = self.number.wrapping_add(1);
                    match self.segment(data, own, next) {
                        Segment::Whole(number, ..) if number == next => {
                            (self.number, self.offset, self.is_new) = (next, HEAD, true);
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
                if !self.is_new {
                    found = Read::Lost;
                }
                self.rewind(data, own);
                continue;
            }
            if self.offset == HEAD {
                self.in_flight = in_flight;
                if std::mem::take(&mut self.is_new) {
                    self.began_anew = Some(number);
                    events.truncate(others);
                    self.forget();
                } else {
                    self.unknown = self.unknown.min(in_flight);
                }
            }
            let Some(mut rest) = bytes.get(self.offset..) else {
                // An older one was put in its place.
                found = Read::Lost;
                break;
            };
            while !rest.is_empty() {
                let Some((at_us, event)) = Event::decode(&mut rest) else {
                    found = Read::Lost;
                    break;
                };
                self.count(&event);
                events.push((at_us, self.worker.0, event));
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
            Segment::Whole(number, ..) => Some(number),
            _ => None,
        });
        self.number = numbers.min().unwrap_or(0);
        self.offset = HEAD;
        self.is_new = true;
    }

    /// Goes to the end of this worker's own journal: those events are known already.
    pub fn skip_to_end(&mut self, writer: &Writer) {
        self.number = writer.number;
        self.offset = writer.segment.len();
    }
}
