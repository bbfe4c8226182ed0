use super::*;
use crate::attribution::Call;
use crate::attribution::signature::Token;
use crate::store::{IDS, InMemory, RequestRef, SharedData, seal};
use proptest::prelude::*;

fn end(request: u64) -> Event {
    Event::End {
        request,
        answered: !request.is_multiple_of(3),
    }
}

fn read(reader: &mut Reader, data: &InMemory) -> (Read, Vec<Event>) {
    let mut events = Vec::new();
    let found = reader.read(data, None, &mut events);
    (
        found,
        events.into_iter().map(|(_, _, event)| event).collect(),
    )
}

#[test]
fn every_event_is_read_once_and_in_order() {
    let data = InMemory::default();
    let mut writer = Writer::new(3, 77, 0);
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
fn a_late_reader_begins_with_the_oldest() {
    let data = InMemory::default();
    let mut writer = Writer::new(3, 77, 0);
    for n in 0..1000 {
        writer.write(&data, n, &end(n));
    }
    let (found, events) = read(&mut Reader::new((3, 77)), &data);
    assert_eq!((found, events.len()), (Read::All, 1000));
    for n in 1000..20_000 {
        writer.write(&data, n, &end(n));
    }
    let (found, events) = read(&mut Reader::new((3, 77)), &data);
    // Nothing that it had read: what is older it never knew.
    assert_eq!(found, Read::All);
    assert_eq!(events.last(), Some(&end(19_999)));
    let expected: Vec<Event> = (20_000 - events.len() as u64..20_000).map(end).collect();
    assert_eq!(events, expected);
    assert!(events.len() > 3000);
}

#[test]
fn a_slow_reader_knows_that_events_are_lost() {
    let data = InMemory::default();
    let mut writer = Writer::new(3, 77, 0);
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
fn an_earlier_worker_with_the_same_number_is_not_read() {
    let data = InMemory::default();
    let mut earlier = Writer::new(3, 77, 0);
    for n in 0..8000 {
        earlier.write(&data, n, &end(n));
    }
    let mut reader = Reader::new((3, 78));
    assert_eq!(read(&mut reader, &data), (Read::All, vec![]));
    let mut writer = Writer::new(3, 78, 0);
    for n in 0..8000 {
        writer.write(&data, n, &end(n));
        assert_eq!(read(&mut reader, &data), (Read::All, vec![end(n)]));
    }
    assert_eq!(read(&mut Reader::new((3, 77)), &data).1, vec![]);
}

/// Half of a segment, more than one, other bytes: what is not known is said, and the writer
/// heals it with its next event.
#[test]
fn a_spoiled_segment_is_noticed() {
    let data = InMemory::default();
    let mut writer = Writer::new(3, 77, 0);
    let mut reader = Reader::new((3, 77));
    for n in 0..50 {
        writer.write(&data, n, &end(n));
    }
    read(&mut reader, &data);
    let name = key(3, 0);
    for n in 50..80 {
        writer.write(&data, n, &end(n));
        let (whole, _) = data.get(&name).unwrap();
        let spoiled = [
            whole[..whole.len() - 1 - n as usize].to_vec(),
            vec![],
            [&[200], whole.as_slice()].concat(),
            [&whole, [7; 100].as_slice()].concat(),
        ];
        data.set(&name, &spoiled[n as usize % 4], 0).unwrap();
        assert_eq!(read(&mut reader, &data), (Read::Lost, vec![]));
        assert_eq!(read(&mut Reader::new((3, 77)), &data), (Read::Lost, vec![]));
    }
    writer.write(&data, 80, &end(80));
    let (found, events) = read(&mut reader, &data);
    assert_eq!((found, events), (Read::All, (50..81).map(end).collect()));
}

#[test]
fn an_older_segment_in_the_place_of_a_newer_one_is_noticed() {
    let data = InMemory::default();
    let mut writer = Writer::new(3, 77, 0);
    let mut reader = Reader::new((3, 77));
    writer.write(&data, 0, &end(0));
    let (older, _) = data.get(&key(3, 0)).unwrap();
    for n in 1..9 {
        writer.write(&data, n, &end(n));
    }
    read(&mut reader, &data);
    data.set(&key(3, 0), &older, 0).unwrap();
    assert_eq!(read(&mut reader, &data), (Read::Lost, vec![]));
    writer.write(&data, 9, &end(9));
    assert_eq!(read(&mut reader, &data), (Read::All, vec![end(9)]));
}

/// The writer has gone on, and does not write it again.
#[test]
fn a_spoiled_segment_is_left_behind() {
    let data = InMemory::default();
    let mut writer = Writer::new(3, 77, 0);
    let mut reader = Reader::new((3, 77));
    let written = |number: u32| data.get(&key(3, number)).is_some();
    let mut n = 0;
    while !written(1) {
        writer.write(&data, n, &end(n));
        n += 1;
    }
    data.set(&key(3, 0), b"half", 0).unwrap();
    assert_eq!(read(&mut reader, &data), (Read::Lost, vec![end(n - 1)]));
    writer.write(&data, n, &end(n));
    assert_eq!(read(&mut reader, &data), (Read::All, vec![end(n)]));
}

/// Behind it is one of the last round: the writer goes on with the spoiled one.
#[test]
fn a_spoiled_segment_of_a_later_round_is_waited_for() {
    let data = InMemory::default();
    let mut writer = Writer::new(3, 77, 0);
    let mut reader = Reader::new((3, 77));
    let mut n = 0;
    while writer.number < SEGMENTS + 3 {
        writer.write(&data, n, &end(n));
        n += 1;
        read(&mut reader, &data);
    }
    data.set(&key(3, writer.number), b"half", 0).unwrap();
    assert_eq!(read(&mut reader, &data), (Read::Lost, vec![]));
    writer.write(&data, n, &end(n));
    let (_, events) = read(&mut reader, &data);
    assert_eq!(events.last(), Some(&end(n)));
}

/// What a reader and a writer do.
#[derive(Clone, Debug)]
enum Do {
    Begin,
    End(usize),
    /// Requests that come and go.
    Serve(u64),
    Read,
    Forget,
}

fn dos() -> impl Strategy<Value = Vec<Do>> {
    let one = prop_oneof![
        4 => Just(Do::Begin),
        4 => any::<usize>().prop_map(Do::End),
        2 => (1u64..200).prop_map(Do::Serve),
        // More than the journal holds.
        1 => (4000u64..6000).prop_map(Do::Serve),
        4 => Just(Do::Read),
        1 => Just(Do::Forget),
    ];
    proptest::collection::vec(one, 1..60)
}

/// A journal, and what is true of it.
struct Told {
    data: InMemory,
    writer: Writer,
    log: Vec<Event>,
    next: u64,
    in_flight: Vec<u64>,
}

impl Told {
    fn write(&mut self, event: Event) {
        self.writer.write(&self.data, 9, &event);
        self.log.push(event);
    }

    fn begin(&mut self) {
        let request = self.next;
        self.next = (request + 1) % IDS;
        self.in_flight.push(request);
        self.write(Event::Begin {
            request,
            bucket: 1,
            route: 2,
            tokens: vec![],
        });
    }

    fn end(&mut self, at: usize) {
        if !self.in_flight.is_empty() {
            let request = self.in_flight.remove(at % self.in_flight.len());
            self.write(end(request));
        }
    }
}

/// A worker that was taken for dead begins a new journal, with requests in flight.
#[test]
fn a_journal_that_begins_with_requests_in_flight() {
    let data = InMemory::default();
    let mut writer = Writer::new(3, 77, 2);
    writer.publish(&data);
    assert_eq!(writer.in_flight(), 2);
    let mut reader = Reader::new((3, 77));
    for (request, knows_all) in [(5, false), (7, true)] {
        read(&mut reader, &data);
        assert!(!reader.knows_all());
        writer.write(&data, 0, &end(request));
        read(&mut reader, &data);
        assert_eq!(reader.knows_all(), knows_all);
    }
    assert_eq!(writer.in_flight(), 0);
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
            any::<u16>(),
            any::<Option<RequestRef>>()
        )
            .prop_map(|(number, kind, tokens, port, owner)| Event::Call {
                number,
                call: Call { kind, tokens, port },
                owner
            }),
        any::<u64>().prop_map(|call| Event::CallEnd { call }),
    ]
}

proptest! {
    #[test]
    fn events_are_read_as_they_were_written(written in proptest::collection::vec(events(), 0..300)) {
        let data = InMemory::default();
        let mut writer = Writer::new(1, 2, 0);
        for event in &written {
            writer.write(&data, 9, event);
        }
        prop_assert_eq!(read(&mut Reader::new((1, 2)), &data), (Read::All, written));
    }

    /// A reader says that it knows all requests in flight if and only if it has read the
    /// beginning of each, and that it began anew if and only if it did.
    #[test]
    fn a_reader_knows_what_it_does_not_know(
        dos in dos(), next in prop_oneof![Just(0), IDS - 40..IDS], is_own: bool, late: bool
    ) {
        let mut told = Told {
            data: InMemory::default(),
            writer: Writer::new(1, 2, 0),
            log: vec![],
            next,
            in_flight: vec![],
        };
        let mut reader = Reader::new((1, 2));
        let (mut read_to, mut known) = (None, Vec::new());
        let first = if late { vec![] } else { vec![Do::Begin, Do::Read] };
        for one in first.into_iter().chain(dos).chain([Do::Read, Do::Begin, Do::Read]) {
            match one {
                Do::Begin => told.begin(),
                Do::End(at) => told.end(at),
                Do::Serve(requests) => for _ in 0..requests {
                    told.begin();
                    told.end(told.in_flight.len() - 1);
                },
                Do::Forget => {
                    reader.forget();
                    known.clear();
                }
                Do::Read => {
                    let mut events = Vec::new();
                    let own = is_own.then_some(&told.writer);
                    let found = reader.read(&told.data, own, &mut events);
                    let events: Vec<Event> = events.into_iter().map(|(_, _, event)| event).collect();
                    let from = told.log.len() - events.len();
                    prop_assert_eq!(&events[..], &told.log[from..]);
                    prop_assert_eq!(found == Read::Lost, read_to.is_some_and(|to| to != from));
                    // One's own is there before its first event is written.
                    let is_there = is_own || !events.is_empty();
                    let is_anew = found == Read::Lost || (read_to.is_none() && is_there);
                    prop_assert_eq!(reader.began_anew(), is_anew);
                    prop_assert_eq!(reader.began_late(), is_anew && from > 0);
                    if is_there {
                        read_to = Some(told.log.len());
                    }
                    if is_anew {
                        known.clear();
                    }
                    for event in events {
                        match event {
                            Event::Begin { request, .. } => known.push(request),
                            Event::End { request, .. } => known.retain(|known| *known != request),
                            _ => {}
                        }
                    }
                    let knows_all = told.in_flight.iter().all(|request| known.contains(request));
                    prop_assert_eq!(reader.knows_all(), knows_all);
                }
            }
        }
    }

    #[test]
    fn any_bytes_in_shared_data_are_survived(mut bytes: Vec<u8>, sealed: bool, at in 0u32..4) {
        if sealed {
            seal(&mut bytes);
        }
        let data = InMemory::default();
        let mut writer = Writer::new(1, 2, 0);
        for n in 0..200 {
            writer.write(&data, n, &end(n));
        }
        let mut reader = Reader::new((1, 2));
        let _ = data.set(&key(1, at), &bytes, 0);
        read(&mut reader, &data);
        let _ = data.set(&key(1, at), &bytes, 0);
        writer.write(&data, 0, &end(0));
        read(&mut reader, &data);
    }
}
