//! What happens in one worker, told to all: requests and calls that begin and end.
//!
//! A request may come in on one worker and its calls go out on another. So each
//! worker writes what it sees into shared data, and one that has to judge a call
//! reads what the others wrote. A worker's journal is a ring of segments under a
//! fixed set of keys (`SEGMENTS`), which that worker alone writes:
//!
//! - To write an event is one write of the segment (up to `SEGMENT` bytes), and no
//!   read.
//! - To read on is one read for each worker, if not much has happened.
//! - Who reads on too rarely finds a segment overwritten, and is told so.
//!
//! A segment is: the writer's nonce u64, its own number in the journal u32, then
//! events. An event is: the time in microseconds u64, a tag u8, and what belongs to
//! it. Integers are little-endian.

use super::text::Token;
use crate::bytes::read_array;
use crate::store::{RequestOf, SharedData, WorkerOf, shared_data_name};

/// Segments of a journal.
const SEGMENTS: u32 = 64;
/// Bytes from which on the next segment is begun.
const SEGMENT: usize = 1536;
const HEAD: usize = 12;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A request has begun.
    Begin {
        /// Its number in the store.
        request: u64,
        /// Where the store has it.
        bucket: u16,
        /// [`super::text::route`]
        route: u32,
        /// [`super::text::tokens`]
        tokens: Vec<Token>,
    },
    /// It has been answered, or was broken off.
    End {
        /// Its number in the store.
        request: u64,
        /// The response had begun.
        answered: bool,
    },
    /// A call has begun.
    Call {
        /// Its number in the worker.
        call: u64,
        /// [`super::text::kind`]
        kind: [u32; 2],
        /// [`super::text::tokens`]
        tokens: Vec<Token>,
        /// The request that it is known to be of.
        owner: Option<RequestOf>,
    },
    /// It has returned, or was broken off.
    CallEnd {
        /// Its number in the worker.
        call: u64,
    },
}

impl Event {
    fn write(&self, at_us: u64, out: &mut Vec<u8>) {
        out.extend_from_slice(&at_us.to_le_bytes());
        let write_tokens = |tokens: &[Token], out: &mut Vec<u8>| {
            let count = u8::try_from(tokens.len()).unwrap_or(u8::MAX);
            out.push(count);
            for token in tokens.iter().take(count.into()) {
                out.extend_from_slice(&token.to_u32().to_le_bytes());
            }
        };
        match self {
            Self::Begin {
                request,
                bucket,
                route,
                tokens,
            } => {
                out.push(0);
                out.extend_from_slice(&request.to_le_bytes());
                out.extend_from_slice(&bucket.to_le_bytes());
                out.extend_from_slice(&route.to_le_bytes());
                write_tokens(tokens, out);
            }
            Self::End { request, answered } => {
                out.push(if *answered { 1 } else { 5 });
                out.extend_from_slice(&request.to_le_bytes());
            }
            Self::Call {
                call,
                kind: [fine, coarse],
                tokens,
                owner,
            } => {
                out.push(if owner.is_some() { 3 } else { 2 });
                out.extend_from_slice(&call.to_le_bytes());
                out.extend_from_slice(&fine.to_le_bytes());
                out.extend_from_slice(&coarse.to_le_bytes());
                if let Some((worker, request)) = owner {
                    out.extend_from_slice(&worker.to_le_bytes());
                    out.extend_from_slice(&request.to_le_bytes());
                }
                write_tokens(tokens, out);
            }
            Self::CallEnd { call } => {
                out.push(4);
                out.extend_from_slice(&call.to_le_bytes());
            }
        }
    }

    fn read(rest: &mut &[u8]) -> Option<(u64, Self)> {
        let at_us = u64::from_le_bytes(read_array(rest)?);
        let [tag] = read_array(rest)?;
        let number = u64::from_le_bytes(read_array(rest)?);
        let read_tokens = |rest: &mut &[u8]| -> Option<Vec<Token>> {
            let [count] = read_array(rest)?;
            let numbers = (0..count).map(|_| Some(u32::from_le_bytes(read_array(rest)?)));
            numbers.map(|n| n.map(Token::from_u32)).collect()
        };
        let event = match tag {
            0 => Self::Begin {
                request: number,
                bucket: u16::from_le_bytes(read_array(rest)?),
                route: u32::from_le_bytes(read_array(rest)?),
                tokens: read_tokens(rest)?,
            },
            1 | 5 => Self::End {
                request: number,
                answered: tag == 1,
            },
            2 | 3 => {
                let kind = [
                    u32::from_le_bytes(read_array(rest)?),
                    u32::from_le_bytes(read_array(rest)?),
                ];
                let owner = match tag {
                    2 => None,
                    _ => Some((
                        u16::from_le_bytes(read_array(rest)?),
                        u64::from_le_bytes(read_array(rest)?),
                    )),
                };
                Self::Call {
                    call: number,
                    kind,
                    owner,
                    tokens: read_tokens(rest)?,
                }
            }
            4 => Self::CallEnd { call: number },
            _ => return None,
        };
        Some((at_us, event))
    }
}

fn name(worker: u16, segment: u32) -> [u8; 17] {
    let [a, b] = worker.to_le_bytes();
    shared_data_name([b'l', b'o', b'g', b'/', a, b, (segment % SEGMENTS) as u8])
}

/// What a worker writes.
#[derive(Debug)]
pub struct Writer {
    worker: u16,
    number: u32,
    segment: Vec<u8>,
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
            self.segment.truncate(8);
            self.segment.extend_from_slice(&self.number.to_le_bytes());
        }
        event.write(at_us, &mut self.segment);
        let _ = data.set(&name(self.worker, self.number), &self.segment, 0);
    }
}

/// How far another worker's journal, or one's own, has been read.
#[derive(Debug)]
pub struct Reader {
    worker: WorkerOf,
    number: u32,
    offset: usize,
}

/// What reading on has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// Everything since the last time.
    All,
    /// Some events were overwritten before they were read.
    Lost,
}

impl Reader {
    /// Will begin with the oldest segment that is there.
    pub fn new(worker: WorkerOf) -> Self {
        Self {
            worker,
            number: 0,
            offset: HEAD,
        }
    }

    /// The worker that is read.
    pub fn worker(&self) -> WorkerOf {
        self.worker
    }

    /// What is in a place of the ring: the number, and the whole segment. `None` if it
    /// is of a worker that had this one's number before.
    fn segment(&self, data: &impl SharedData, number: u32) -> Option<(u32, Vec<u8>)> {
        let (worker, nonce) = self.worker;
        let (bytes, _) = data.get(&name(worker, number))?;
        let mut rest = bytes.as_slice();
        let writer = u64::from_le_bytes(read_array(&mut rest)?);
        let number = u32::from_le_bytes(read_array(&mut rest)?);
        (writer == nonce).then_some((number, bytes))
    }

    /// Adds everything that was written since the last time, with its time.
    pub fn read(&mut self, data: &impl SharedData, events: &mut Vec<(u64, u16, Event)>) -> Read {
        let mut found = Read::All;
        // The clock may be set back; the order stays.
        let mut latest_us = 0;
        // No more than there are, even if the writer is faster.
        for _ in 0..2 * SEGMENTS {
            let Some((number, bytes)) = self.segment(data, self.number) else {
                break;
            };
            if number != self.number {
                // Of the round before: not yet written.
                if number.wrapping_add(SEGMENTS) == self.number {
                    break;
                }
                found = Read::Lost;
                self.begin(data);
                continue;
            }
            let mut rest = bytes.get(self.offset..).unwrap_or_default();
            while !rest.is_empty() {
                let Some((at_us, event)) = Event::read(&mut rest) else {
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
    fn begin(&mut self, data: &impl SharedData) {
        let segments = (0..SEGMENTS).filter_map(|place| self.segment(data, place));
        self.number = segments.map(|(number, _)| number).min().unwrap_or(0);
        self.offset = HEAD;
    }

    /// Goes to the end of one's own journal: what is there has been told already.
    pub fn follow(&mut self, writer: &Writer) {
        self.number = writer.number;
        self.offset = writer.segment.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::InMemory;
    use proptest::prelude::*;

    fn end(request: u64) -> Event {
        Event::End {
            request,
            answered: !request.is_multiple_of(3),
        }
    }

    fn read(reader: &mut Reader, data: &InMemory) -> (Read, Vec<Event>) {
        let mut events = Vec::new();
        let found = reader.read(data, &mut events);
        (
            found,
            events.into_iter().map(|(_, _, event)| event).collect(),
        )
    }

    #[test]
    fn everything_is_told_once_and_in_order() {
        let data = InMemory::default();
        let mut writer = Writer::new(3, 77);
        let mut reader = Reader::new((3, 77));
        assert_eq!(read(&mut reader, &data), (Read::All, vec![]));
        let mut next = 0;
        for batch in [1, 5, 200, 0, 500, 3] {
            let expected: Vec<Event> = (next..next + batch).map(end).collect();
            for event in &expected {
                writer.write(&data, next, event);
            }
            next += batch;
            assert_eq!(read(&mut reader, &data), (Read::All, expected));
        }
    }

    #[test]
    fn who_begins_late_begins_with_the_oldest() {
        let data = InMemory::default();
        let mut writer = Writer::new(3, 77);
        for n in 0..1000 {
            writer.write(&data, n, &end(n));
        }
        let (found, events) = read(&mut Reader::new((3, 77)), &data);
        assert_eq!((found, events.len()), (Read::All, 1000));
        for n in 1000..20_000 {
            writer.write(&data, n, &end(n));
        }
        let (found, events) = read(&mut Reader::new((3, 77)), &data);
        assert_eq!(found, Read::Lost);
        assert_eq!(events.last(), Some(&end(19_999)));
        let expected: Vec<Event> = (20_000 - events.len() as u64..20_000).map(end).collect();
        assert_eq!(events, expected);
        assert!(events.len() > 3000);
    }

    #[test]
    fn who_is_too_slow_is_told() {
        let data = InMemory::default();
        let mut writer = Writer::new(3, 77);
        let mut reader = Reader::new((3, 77));
        writer.write(&data, 0, &end(0));
        read(&mut reader, &data);
        for n in 1..20_000 {
            writer.write(&data, n, &end(n));
        }
        let (found, events) = read(&mut reader, &data);
        assert_eq!((found, events.last()), (Read::Lost, Some(&end(19_999))));
        writer.write(&data, 0, &end(5));
        assert_eq!(read(&mut reader, &data), (Read::All, vec![end(5)]));
    }

    #[test]
    fn of_a_worker_that_had_the_number_before_nothing_is_read() {
        let data = InMemory::default();
        let mut before = Writer::new(3, 77);
        for n in 0..8000 {
            before.write(&data, n, &end(n));
        }
        let mut reader = Reader::new((3, 78));
        assert_eq!(read(&mut reader, &data), (Read::All, vec![]));
        let mut writer = Writer::new(3, 78);
        for n in 0..8000 {
            writer.write(&data, n, &end(n));
            assert_eq!(read(&mut reader, &data), (Read::All, vec![end(n)]));
        }
        assert_eq!(read(&mut Reader::new((3, 77)), &data).1, vec![]);
    }

    fn events() -> impl Strategy<Value = Event> {
        let tokens = || proptest::collection::vec(any::<u32>().prop_map(Token::from_u32), 0..20);
        prop_oneof![
            (any::<u64>(), any::<u16>(), any::<u32>(), tokens()).prop_map(
                |(request, bucket, route, tokens)| Event::Begin {
                    request,
                    bucket,
                    route,
                    tokens
                }
            ),
            any::<u64>().prop_map(end),
            (
                any::<u64>(),
                any::<[u32; 2]>(),
                tokens(),
                any::<Option<RequestOf>>()
            )
                .prop_map(|(call, kind, tokens, owner)| Event::Call {
                    call,
                    kind,
                    tokens,
                    owner
                }),
            any::<u64>().prop_map(|call| Event::CallEnd { call }),
        ]
    }

    proptest! {
        #[test]
        fn events_come_back_as_they_were(written in proptest::collection::vec(events(), 0..300)) {
            let data = InMemory::default();
            let mut writer = Writer::new(1, 2);
            for event in &written {
                writer.write(&data, 9, event);
            }
            prop_assert_eq!(read(&mut Reader::new((1, 2)), &data), (Read::All, written));
        }

        #[test]
        fn any_bytes_in_shared_data_are_survived(bytes: Vec<u8>, at in 0u32..4) {
            let data = InMemory::default();
            let mut writer = Writer::new(1, 2);
            for n in 0..200 {
                writer.write(&data, n, &end(n));
            }
            let mut reader = Reader::new((1, 2));
            let _ = data.set(&name(1, at), &bytes, 0);
            read(&mut reader, &data);
            let _ = data.set(&name(1, at), &bytes, 0);
            writer.write(&data, 0, &end(0));
            read(&mut reader, &data);
        }
    }
}
