use super::shared_data::{WORKERS, bucket_name};
use super::*;
use proptest::prelude::*;
use std::collections::HashMap;

const LIMITS: Limits = Limits {
    entries: 4,
    bytes: 100_000,
    bucket_bytes: 100_000,
    grace_ms: 100,
};
const MANY: Limits = Limits {
    entries: 10_000,
    ..LIMITS
};

fn key(text: &str) -> Key {
    Key::request_id(text.as_bytes()).unwrap()
}

/// A worker and the shared data.
struct Worker<'a>(Store, &'a InMemory, Limits);

impl<'a> Worker<'a> {
    fn new(data: &'a InMemory, random: u64, limits: Limits) -> Self {
        Self(Store::open(data, random), data, limits)
    }

    fn insert(&mut self, now: u64, name: &str, context: &[u8]) -> Inserted {
        let inserted = self
            .0
            .insert(self.1, self.2, now, &[key(name)], context, &[]);
        assert!(inserted.stored);
        inserted
    }

    fn end(&mut self, now: u64, ticket: Ticket) {
        assert!(self.0.end(self.1, self.2, now, ticket));
    }

    fn find(&mut self, now: u64, name: &str) -> Vec<Found> {
        self.candidates(now, name).found
    }

    fn candidates(&mut self, now: u64, name: &str) -> Candidates {
        self.0.find(self.1, || now, &key(name), true)
    }

    fn contexts(&mut self, now: u64, name: &str) -> Vec<Vec<u8>> {
        let found = self.find(now, name);
        found.into_iter().map(|found| found.context).collect()
    }

    fn tick(&mut self, now: u64) {
        self.0.tick(self.1, now);
    }
}

#[test]
fn an_entry_lives_with_its_request_and_the_grace() {
    let data = InMemory::default();
    let mut here = Worker::new(&data, 7, LIMITS);
    let mut there = Worker::new(&data, 8, LIMITS);
    let ticket = here.insert(0, "a", b"ctx").ticket;
    for now in [0, 1, 50_000] {
        assert_eq!(here.contexts(now, "a"), [b"ctx"]);
        assert_eq!(there.contexts(now, "a"), [b"ctx"]);
    }
    here.end(50_000, ticket);
    assert!(here.find(50_099, "a")[0].ended && there.find(50_099, "a")[0].ended);
    for worker in [&mut here, &mut there] {
        assert_eq!(worker.contexts(50_100, "a"), [b""; 0]);
        // The clock is set back: nothing is lost by it.
        assert_eq!(worker.contexts(5, "a"), [b"ctx"]);
    }
    here.tick(50_100);
    assert_eq!(here.0.size(), (0, 0));
    assert_eq!(there.contexts(5, "a"), [b""; 0]);
}

#[test]
fn without_grace_an_entry_is_gone_at_once() {
    let data = InMemory::default();
    let limits = Limits {
        grace_ms: 0,
        ..LIMITS
    };
    let mut worker = Worker::new(&data, 7, limits);
    let ticket = worker.insert(5, "a", b"ctx").ticket;
    worker.end(5, ticket);
    assert_eq!(worker.contexts(5, "a"), [b""; 0]);
    assert_eq!(Worker::new(&data, 8, limits).contexts(5, "a"), [b""; 0]);
    assert_eq!(worker.0.size(), (0, 0));
}

#[test]
fn ending_twice_or_after_eviction_does_nothing() {
    let data = InMemory::default();
    let mut worker = Worker::new(&data, 7, LIMITS);
    let first = worker.insert(0, "a", b"1").ticket;
    worker.insert(1, "a", b"2");
    worker.end(2, first);
    worker.end(500, first);
    worker.tick(600);
    worker.end(600, first);
    assert_eq!(worker.contexts(600, "a"), [b"2"]);
    assert_eq!(worker.0.size().0, 1);
}

#[test]
fn what_has_ended_goes_first_and_then_what_is_oldest() {
    let data = InMemory::default();
    let mut worker = Worker::new(&data, 7, LIMITS);
    let mut other = Worker::new(&data, 8, LIMITS);
    let names = ["a", "b", "c", "d", "e", "f"];
    let mut tickets = Vec::new();
    for (now, name) in (0..).zip(&names[..4]) {
        tickets.push(worker.insert(now, name, name.as_bytes()).ticket);
    }
    worker.end(10, tickets[2]);
    assert_eq!(worker.insert(11, "e", b"e").evicted, 0);
    let known = |worker: &mut Worker<'_>| {
        names
            .iter()
            .filter(|name| !worker.find(11, name).is_empty())
            .copied()
            .collect::<String>()
    };
    assert_eq!(known(&mut worker), "abde");
    assert_eq!(worker.insert(12, "f", b"f").evicted, 1);
    assert_eq!(known(&mut worker), "bdef");
    // An entry that ended may still be seen from elsewhere, for the grace.
    assert_eq!(known(&mut other), "bcdef");
    worker.tick(13);
    assert_eq!(known(&mut other), "bdef");
    worker.end(14, tickets[0]);
    assert_eq!(known(&mut worker), "bdef");
}

#[test]
fn bytes_are_bounded_too() {
    let data = InMemory::default();
    let limits = Limits {
        bytes: 1000,
        ..MANY
    };
    let mut worker = Worker::new(&data, 7, limits);
    let mut evicted = 0;
    for now in 0..50u64 {
        evicted += worker.insert(now, &now.to_string(), &[0; 200]).evicted;
        assert!(worker.0.size().1 <= 1000);
    }
    assert_eq!((evicted, worker.0.size().0), (46, 4));
    // What alone is too large is remembered all the same, and nothing else.
    worker.insert(50, "big", &[0; 1500]);
    assert_eq!(worker.0.size().0, 1);
    for (context, headers) in [(70_000, 0), (0, 70_000)] {
        let (context, headers) = (vec![0; context], vec![0; headers]);
        let none = worker
            .0
            .insert(&data, limits, 51, &[key("b")], &context, &headers);
        assert!(!none.stored && worker.find(51, "b").is_empty());
        assert!(!worker.candidates(51, "b").complete);
        worker.end(51, none.ticket);
        assert!(worker.candidates(51, "b").complete);
    }
}

#[test]
fn one_key_cannot_take_all_the_room() {
    let data = InMemory::default();
    let limits = Limits {
        bucket_bytes: 1000,
        ..MANY
    };
    let mut worker = Worker::new(&data, 7, limits);
    let tickets: Vec<_> = (0..200)
        .map(|n| worker.insert(n, "same", &[0; 72]).ticket)
        .collect();
    // 31 bytes of head and 5 of key.
    let live = 1000 / (31 + 5 + 72);
    assert_eq!(worker.find(200, "same").len(), live);
    // What has ended goes first.
    worker.end(200, tickets[195]);
    assert_eq!(worker.insert(201, "same", &[0; 72]).evicted, 0);
    assert_eq!(worker.insert(202, "same", &[0; 72]).evicted, 1);
    for ticket in tickets {
        worker.end(203, ticket);
    }
    worker.tick(400);
    assert_eq!(worker.0.size().0, 2);
}

#[test]
fn a_request_is_evicted_whole_and_counted_once() {
    let data = InMemory::default();
    let mut worker = Worker::new(&data, 7, LIMITS);
    let mut evicted = 0;
    for n in 0..5 {
        let keys = [key(&format!("{n}a")), key(&format!("{n}b"))];
        let done = worker.0.insert(&data, LIMITS, n, &keys, b"ctx", &[]);
        evicted += done.evicted;
    }
    assert_eq!((evicted, worker.0.size().0), (3, 4));
    assert_eq!(worker.contexts(5, "2b"), [b""; 0]);
    assert_eq!(worker.contexts(5, "3a"), [b"ctx"]);
}

#[test]
fn the_first_to_open_chooses_the_seed() {
    let data = InMemory::default();
    let first = Worker::new(&data, 7, LIMITS);
    let second = Worker::new(&data, 8, LIMITS);
    assert_eq!(first.0.seed(), second.0.seed());
}

#[test]
fn requests_spread_over_the_buckets() {
    let store = Store::open(&InMemory::default(), 99);
    let mut count = HashMap::new();
    for i in 0..65536u32 {
        let mut random = [0; 16];
        random[..4].copy_from_slice(&i.to_be_bytes());
        let id = crate::request_id::generate(random);
        *count
            .entry(
                store
                    .table
                    .place(Key::request_id(&id).unwrap().as_bytes())
                    .0,
            )
            .or_insert(0) += 1;
    }
    let (low, high) = (count.values().min().unwrap(), count.values().max().unwrap());
    assert!(
        count.len() == usize::from(BUCKETS) && *low > 24 && *high < 124,
        "{low} {high}"
    );
}

#[test]
fn a_request_is_found_under_each_of_its_keys() {
    let data = InMemory::default();
    let mut worker = Worker::new(&data, 7, MANY);
    let keys = [key("a"), key("b"), key("c")];
    let done = worker.0.insert(&data, MANY, 0, &keys, b"ctx", &[]);
    worker.insert(0, "a", b"other");
    let mut found: Vec<_> = ["a", "b", "c"]
        .map(|name| worker.find(0, name)[0].request)
        .into();
    found.dedup();
    assert_eq!(found.len(), 1);
    worker.end(0, done.ticket);
    worker.tick(100);
    assert_eq!(worker.contexts(100, "a"), [b"other"]);
    assert_eq!(worker.contexts(100, "b"), [b""; 0]);
}

#[test]
fn every_worker_is_asked() {
    let data = InMemory::default();
    let mut workers: Vec<_> = (0..5).map(|n| Worker::new(&data, n, MANY)).collect();
    // A look-up before there is anybody else.
    assert_eq!(workers[0].contexts(0, "0"), [b""; 0]);
    for n in 0..5u8 {
        workers[usize::from(n)].insert(0, "same", &[n]);
        for worker in &mut workers {
            let mut found = worker.contexts(0, "same");
            found.sort();
            assert_eq!(found, (0..=n).map(|n| vec![n]).collect::<Vec<_>>());
        }
    }
}

#[test]
fn new_workers_and_the_time_are_asked_for_where_it_matters() {
    let data = InMemory::default();
    let mut here = Worker::new(&data, 7, MANY);
    let mut there = Worker::new(&data, 8, MANY);
    let ticket = there.insert(0, "a", b"ctx").ticket;
    let asked = std::cell::Cell::new(0);
    let mut found = |all| {
        asked.set(0);
        let clock = || {
            asked.set(asked.get() + 1);
            1
        };
        let found = here.0.find(&data, clock, &key("a"), all).found.len();
        (found, asked.get())
    };
    assert_eq!(found(false), (0, 0));
    // The list of workers is new: who of them is alive?
    assert_eq!(found(true), (1, 1));
    assert_eq!(found(true), (1, 0));
    assert_eq!(found(false), (1, 0));
    there.end(1, ticket);
    assert_eq!(found(false), (1, 1));
    // Ten seconds later without anybody who asks.
    let mut late = Worker::new(&data, 9, MANY);
    late.tick(10_000);
    let ended = late.0.find(&data, || 1, &key("a"), false).found;
    assert!(ended[0].ended);
}

#[test]
fn a_worker_that_is_gone_leaves_nothing() {
    let data = InMemory::default();
    let mut gone = Worker::new(&data, 1, MANY);
    let mut here = Worker::new(&data, 2, MANY);
    gone.insert(0, "a", b"old");
    here.insert(0, "b", b"ctx");
    for now in (0..60_000).step_by(1000) {
        here.tick(now);
    }
    assert_eq!(here.contexts(59_000, "a"), [b"old"]);
    here.tick(60_000);
    assert_eq!(here.contexts(60_000, "a"), [b""; 0]);
    // Its number is taken over, without what it held.
    let mut new = Worker::new(&data, 3, MANY);
    new.insert(60_000, "c", b"new");
    assert_eq!(new.0.workers.number, Some(0));
    assert_eq!(here.contexts(60_000, "a"), [b""; 0]);
    assert_eq!(here.contexts(60_000, "c"), [b"new"]);
    assert_eq!(new.contexts(60_000, "b"), [b"ctx"]);
    // Should it live after all, it begins anew, and disturbs nobody.
    gone.tick(61_000);
    assert_eq!(gone.contexts(61_000, "c"), [b"new"]);
    gone.insert(61_000, "a", b"again");
    assert_eq!(gone.0.workers.number, Some(2));
    assert_eq!(here.contexts(61_000, "a"), [b"again"]);
    assert_eq!(here.contexts(61_000, "c"), [b"new"]);
}

#[test]
fn workers_that_begin_at_once_get_numbers_of_their_own() {
    let data = InMemory::default();
    std::thread::scope(|scope| {
        for worker in 1..9u64 {
            let data = &data;
            scope.spawn(move || {
                let mut worker = Worker::new(data, worker, MANY);
                for n in 0..500u64 {
                    let name = format!("{}-{n}", worker.0.nonce());
                    let ticket = worker.insert(n, &name, name.as_bytes()).ticket;
                    assert_eq!(worker.contexts(n, &name), [name.as_bytes()]);
                    if n % 2 == 0 {
                        worker.end(n, ticket);
                        worker.tick(n);
                    }
                }
            });
        }
    });
    let mut reader = Worker::new(&data, 99, MANY);
    for worker in 1..9 {
        for n in 0..500 {
            let name = format!("{worker}-{n}");
            let expected = (n % 2 == 1 || n >= 400).then(|| name.as_bytes().to_vec());
            assert_eq!(
                reader.contexts(499, &name),
                expected.into_iter().collect::<Vec<_>>()
            );
        }
    }
}

#[test]
fn a_list_that_never_stands_still_is_given_up() {
    /// The list is changed before every swap.
    struct Contended(InMemory);
    impl SharedData for Contended {
        fn get(&self, key: &[u8]) -> Option<(Vec<u8>, u32)> {
            self.0.get(key)
        }
        fn set(&self, key: &[u8], value: &[u8], cas: u32) -> Result<(), NotSet> {
            if key == WORKERS {
                self.0.set(key, &[], 0)?;
            }
            self.0.set(key, value, cas)
        }
    }
    let data = Contended(InMemory::default());
    let mut store = Store::open(&data, 7);
    let inserted = store.insert(&data, LIMITS, 0, &[key("a")], b"ctx", &[]);
    assert!(!inserted.stored);
    let candidates = store.find(&data, || 0, &key("a"), true);
    assert!(candidates.found.is_empty() && !candidates.complete);
}

#[test]
fn what_cannot_be_written_leaves_nothing() {
    /// Every other write of a bucket fails.
    struct Failing(InMemory, std::cell::Cell<bool>);
    impl SharedData for Failing {
        fn get(&self, key: &[u8]) -> Option<(Vec<u8>, u32)> {
            self.0.get(key)
        }
        fn set(&self, key: &[u8], value: &[u8], cas: u32) -> Result<(), NotSet> {
            self.1.set(!self.1.get());
            match self.1.get() && key.len() == bucket_name(0, 0).len() {
                true => Err(NotSet),
                false => self.0.set(key, value, cas),
            }
        }
    }
    let data = Failing(InMemory::default(), false.into());
    let mut store = Store::open(&data, 7);
    let mut done = 0;
    for n in 0..100 {
        let keys = [key(&n.to_string()), key(&format!("{n}-"))];
        let inserted = store.insert(&data, MANY, 0, &keys, b"ctx", &[]);
        done += usize::from(inserted.stored);
        assert_eq!(store.size().0, 2 * done);
        for key in &keys {
            let candidates = store.find(&data, || 0, key, true);
            assert_eq!(candidates.found.len(), usize::from(inserted.stored));
            assert!(inserted.stored || !candidates.complete);
        }
    }
}

#[test]
fn memory_stays_bounded_behind_a_request_that_never_ends() {
    let data = InMemory::default();
    let limits = Limits {
        grace_ms: 0,
        ..MANY
    };
    let mut worker = Worker::new(&data, 7, limits);
    worker.insert(0, "stream", b"ctx");
    for n in 0..20_000 {
        let ticket = worker.insert(n, "call", b"ctx").ticket;
        worker.end(n, ticket);
    }
    assert!(worker.0.table.lists()[0] < 1100 && worker.0.table.lists()[1] == 0);
    assert_eq!(worker.0.size().0, 1);
    assert_eq!(worker.contexts(20_000, "stream"), [b"ctx"]);
}

#[test]
fn memory_does_not_creep_up() {
    let data = InMemory::default();
    let limits = Limits {
        entries: 50_000,
        bytes: 1 << 24,
        bucket_bytes: 1 << 16,
        grace_ms: 100,
    };
    let mut worker = Worker::new(&data, 7, limits);
    let mut at_second = Vec::new();
    let mut number = 0u64;
    for second in 0..400u64 {
        for ms in 0..1000 {
            number += 1;
            let now = second * 1000 + ms;
            // Multiplied, so that neighbours do not take turns at the buckets.
            let id = format!("{:x}", number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let ticket = worker.insert(now, &id, &[0; 100]).ticket;
            worker.end(now, ticket);
        }
        worker.tick((second + 1) * 1000);
        at_second.push(worker.0.table.capacity());
    }
    let mean = |seconds: &[usize]| seconds.iter().sum::<usize>() / seconds.len();
    let (early, late) = (mean(&at_second[20..60]), mean(&at_second[360..]));
    assert!(late < early + early / 50, "{early} {late}");
}

/// Counts what is read and written.
#[derive(Default)]
struct Counting {
    data: InMemory,
    reads: std::cell::Cell<usize>,
    writes: std::cell::Cell<usize>,
    /// The buckets cannot be written.
    refuses: std::cell::Cell<bool>,
}

impl SharedData for Counting {
    fn get(&self, key: &[u8]) -> Option<(Vec<u8>, u32)> {
        self.reads.set(self.reads.get() + 1);
        self.data.get(key)
    }

    fn set(&self, key: &[u8], value: &[u8], cas: u32) -> Result<(), NotSet> {
        self.writes.set(self.writes.get() + 1);
        match self.refuses.get() && key.len() == bucket_name(0, 0).len() {
            true => Err(NotSet),
            false => self.data.set(key, value, cas),
        }
    }
}

impl Counting {
    /// Reads and writes since the last time.
    fn counts(&self) -> (usize, usize) {
        (self.reads.take(), self.writes.take())
    }
}

/// Room for one entry, and no more.
const ONE: Limits = Limits { entries: 1, ..MANY };

#[test]
fn headers_are_stored_once_and_found_under_each_key() {
    let data = Counting::default();
    let [mut here, mut there] = [7, 8].map(|n| Store::open(&data, n));
    let keys = ["a", "b", "c", "d"].map(key);
    for (worker, n) in [(&mut here, 0), (&mut there, 1)] {
        let other = [key(&format!("{n}"))];
        worker.insert(&data, MANY, 0, &other, b"ctx", &[n; 9]);
    }
    for worker in [&mut here, &mut there] {
        worker.find(&data, || 0, &key("0"), true);
    }
    data.counts();
    let large = vec![b'x'; 8192];
    here.insert(&data, MANY, 0, &keys, b"ctx", &large);
    // One write for each key, and no read.
    assert_eq!(data.counts(), (0, 4));
    let (entries, bytes) = here.size();
    assert!(entries == 5 && bytes < 8192 + 5 * 64, "{bytes}");
    for (n, key) in keys.iter().enumerate() {
        let own = here.find(&data, || 0, key, false).found;
        assert_eq!(data.counts().0, 1);
        assert_eq!(here.headers(&data, &own[0]).as_ref(), Some(&large));
        assert_eq!(data.counts().0, 0);
        let other = there.find(&data, || 0, key, false).found;
        assert_eq!((data.counts().0, &other[0].context[..]), (1, &b"ctx"[..]));
        assert_eq!(there.headers(&data, &other[0]).as_ref(), Some(&large));
        // They come along where they are beside the entry.
        assert_eq!(data.counts().0, usize::from(n > 0));
        assert_eq!(own[0].request, other[0].request);
        let fetched = there.fetch(&data, own[0].request, own[0].bucket);
        assert_eq!(fetched.unwrap().context, b"ctx");
        data.counts();
    }
}

#[test]
fn a_request_without_headers_has_none() {
    let data = InMemory::default();
    let mut worker = Worker::new(&data, 7, MANY);
    worker.insert(0, "a", b"ctx");
    let found = &worker.find(0, "a")[0];
    assert_eq!(worker.0.headers(&data, found), Some(vec![]));
    assert_eq!(worker.0.size().1, 31 + 2 + 3);
}

#[test]
fn headers_that_are_gone_are_not_those_of_another() {
    let data = InMemory::default();
    let [mut here, mut there] = [7, 8].map(|n| Worker::new(&data, n, LIMITS));
    let keys = ["a", "b"].map(key);
    let done = here.0.insert(&data, LIMITS, 0, &keys, b"1", b"one");
    let before = [here.find(0, "b"), there.find(0, "b")];
    here.end(0, done.ticket);
    here.tick(100);
    here.0.insert(&data, LIMITS, 100, &keys, b"2", b"two");
    for (worker, found) in [&here, &there].into_iter().zip(&before) {
        assert_eq!(worker.0.headers(&data, &found[0]), None);
    }
}

#[test]
fn capacity_is_what_the_documentation_says() {
    let data = InMemory::default();
    let limits = Limits::for_capacity(4096, 3, 1000);
    let mut store = Store::open(&data, 7);
    let (mut shed, mut evicted) = (None, None);
    for n in 0..10_000u32 {
        let id = crate::request_id::generate(u128::from(n).to_be_bytes());
        let trace = crate::b3::TraceId::new(u128::from(n) + 1, true).unwrap();
        let keys = [Key::request_id(&id).unwrap(), Key::trace(trace)];
        // As long as a context with all that it may have.
        let done = store.insert(&data, limits, 0, &keys, &[0; 71], &[b'x'; 8192]);
        assert!(done.stored);
        shed = shed.or((done.shed > 0).then_some(n));
        evicted = evicted.or((done.evicted > 0).then_some(n));
    }
    let (shed, evicted) = (shed.unwrap(), evicted.unwrap());
    // Under two keys each, 12,288 entries are those of more than 4096 requests.
    assert_eq!((shed, evicted), (495, 6144));
    // As much again in the worker's memory. Nobody ended: the others are missing.
    let most = 4 * 1024 * 1024 + 150_000;
    assert!(data.size().1 < most, "{:?}", data.size());
    // Requests of one trace with one request ID, all in the same two buckets.
    let mut store = Store::open(&InMemory::default(), 7);
    let id = crate::request_id::generate([1; 16]);
    let trace = crate::b3::TraceId::new(1, true).unwrap();
    let keys = [Key::request_id(&id).unwrap(), Key::trace(trace)];
    let (mut shed, mut evicted) = (None, None);
    for n in 0..1_000u32 {
        let done = store.insert(&data, limits, 0, &keys, &[0; 71], &[b'x'; 8192]);
        shed = shed.or((done.shed > 0).then_some(n));
        evicted = evicted.or((done.evicted > 0).then_some(n));
    }
    assert_eq!((shed, evicted), (Some(6), Some(235)));
}

#[test]
fn a_request_that_had_to_go_is_known_to_be_missing_until_it_has_been_served() {
    let data = InMemory::default();
    for bucket_bytes in [100_000, 40] {
        let limits = Limits {
            bucket_bytes,
            ..ONE
        };
        let limits = match bucket_bytes {
            40 => Limits {
                entries: 10,
                ..limits
            },
            _ => limits,
        };
        let mut here = Worker::new(&data, u64::from(bucket_bytes as u32), limits);
        let mut there = Worker::new(&data, 8 + bucket_bytes as u64, limits);
        let first = here.insert(0, "same", b"1").ticket;
        let second = here.insert(1, "same", b"2");
        assert_eq!(second.evicted, 1);
        for worker in [&mut here, &mut there] {
            let candidates = worker.candidates(2, "same");
            let found: Vec<_> = candidates.found.iter().map(|f| &f.context[..]).collect();
            assert_eq!((found, candidates.complete), (vec![&b"2"[..]], false));
            assert!(worker.candidates(2, "other").complete);
        }
        here.end(3, first);
        for worker in [&mut here, &mut there] {
            assert!(worker.candidates(3, "same").complete);
        }
        here.end(3, second.ticket);
        here.tick(103);
        assert_eq!(here.0.table.size(), (0, 0, 0));
    }
}

#[test]
fn so_many_are_missing_that_they_are_counted() {
    let data = InMemory::default();
    let mut here = Worker::new(&data, 7, ONE);
    let mut there = Worker::new(&data, 8, ONE);
    let tickets: Vec<_> = (0..101)
        .map(|n| here.insert(n, "same", b"ctx").ticket)
        .collect();
    // The last one is there. Each is given back once, in whichever order.
    for (n, ticket) in tickets[..100].iter().enumerate() {
        assert!(!here.candidates(200, "same").complete, "{n}");
        assert!(!there.candidates(200, "same").complete, "{n}");
        assert!(here.0.table.size().2 <= 32 * 17 + 5);
        here.end(200, *ticket);
    }
    assert!(here.candidates(200, "same").complete);
    assert!(there.candidates(200, "same").complete);
    assert_eq!(here.0.table.size().2, 0);
}

#[test]
fn what_could_not_be_written_is_missing() {
    let data = Counting::default();
    let [mut here, mut there] = [7, 8].map(|n| Store::open(&data, n));
    here.insert(&data, MANY, 0, &[key("a")], b"1", &[]);
    there.find(&data, || 0, &key("a"), true);
    data.refuses.set(true);
    let done = here.insert(&data, MANY, 0, &["a", "b"].map(key), b"2", b"x");
    assert!(!done.stored);
    let mut complete = |here: &mut Store, name| {
        [here, &mut there].map(|worker| worker.find(&data, || 0, &key(name), true).complete)
    };
    assert_eq!(complete(&mut here, "a"), [false, true]);
    data.refuses.set(false);
    // Others are told as soon as that can be done.
    here.tick(&data, 1000);
    assert_eq!(complete(&mut here, "a"), [false, false]);
    assert_eq!(complete(&mut here, "b"), [false, false]);
    assert!(here.end(&data, MANY, 1000, done.ticket));
    assert_eq!(complete(&mut here, "a"), [true, true]);
    assert_eq!(complete(&mut here, "b"), [true, true]);
}

#[test]
fn an_end_that_could_not_be_written_is_written_later() {
    let data = Counting::default();
    let [mut here, mut there] = [7, 8].map(|n| Store::open(&data, n));
    let done = here.insert(&data, MANY, 0, &[key("a")], b"1", &[]);
    data.refuses.set(true);
    assert!(!here.end(&data, MANY, 0, done.ticket));
    data.refuses.set(false);
    assert!(!there.find(&data, || 0, &key("a"), true).found[0].ended);
    here.tick(&data, 1);
    assert!(there.find(&data, || 0, &key("a"), true).found[0].ended);
}

#[test]
fn a_bucket_or_a_list_that_cannot_be_read_hides_something() {
    let data = InMemory::default();
    let mut here = Worker::new(&data, 7, MANY);
    let mut there = Worker::new(&data, 8, MANY);
    here.insert(0, "a", b"ctx");
    assert!(there.candidates(0, "a").complete);
    let (bucket, _) = here.0.table.place(key("a").as_bytes());
    let name = bucket_name(0, bucket);
    let (bytes, _) = data.get(&name).unwrap();
    for end in 1..bytes.len() {
        data.set(&name, &bytes[..end], 0).unwrap();
        assert!(!there.candidates(0, "a").complete, "{end}");
    }
    data.set(&name, &[], 0).unwrap();
    assert!(there.candidates(0, "a").complete);
    let (list, _) = data.get(WORKERS).unwrap();
    data.set(WORKERS, &list[..list.len() - 1], 0).unwrap();
    assert!(!Worker::new(&data, 9, MANY).candidates(0, "b").complete);
}

#[test]
fn a_worker_that_was_taken_for_dead_knows_what_is_missing() {
    let data = InMemory::default();
    let mut gone = Worker::new(&data, 1, MANY);
    let mut here = Worker::new(&data, 2, MANY);
    let ticket = gone.insert(0, "a", b"old").ticket;
    for now in (0..=60_000).step_by(1000) {
        here.tick(now);
    }
    here.insert(60_000, "c", b"new");
    gone.tick(61_000);
    assert!(!gone.candidates(61_000, "a").complete);
    gone.insert(61_000, "b", b"again");
    assert!(!here.candidates(61_000, "a").complete);
    gone.end(61_000, ticket);
    for worker in [&mut gone, &mut here] {
        assert!(worker.candidates(61_000, "a").complete);
    }
}

#[test]
fn the_grace_is_that_of_whoever_remembered_the_request() {
    let data = InMemory::default();
    let long = Limits {
        grace_ms: 5000,
        ..MANY
    };
    let mut here = Worker::new(&data, 7, long);
    let ticket = here.insert(0, "a", b"ctx").ticket;
    here.end(0, ticket);
    for grace_ms in [0, 100, 60_000] {
        let limits = Limits { grace_ms, ..MANY };
        let mut there = Worker::new(&data, 8 + grace_ms, limits);
        assert_eq!(there.contexts(4999, "a"), [b"ctx"]);
        assert_eq!(there.contexts(5000, "a"), [b""; 0]);
    }
}

#[test]
fn headers_go_before_requests_do() {
    let data = InMemory::default();
    let limits = Limits {
        bytes: 1000,
        ..MANY
    };
    let mut worker = Worker::new(&data, 7, limits);
    for n in 0..5 {
        let keys = [key(&n.to_string())];
        let done = worker.0.insert(&data, limits, 0, &keys, &[n; 3], &[n; 300]);
        // Three have room with their headers.
        let shed = usize::from(n >= 2);
        assert_eq!((done.evicted, done.shed), (0, shed), "{n}");
    }
    for n in 0..5u8 {
        let found = worker.find(0, &n.to_string());
        assert_eq!(found[0].context, [n; 3]);
        let headers = worker.0.headers(&data, &found[0]);
        assert_eq!(headers, (n >= 3).then(|| vec![n; 300]));
    }
}

fn alias(worker: &mut Worker<'_>, now: u64, name: &str, of: &Found, guessed: bool) {
    let of = (of.request, of.bucket);
    let Worker(store, data, limits) = worker;
    assert!(store.alias(*data, *limits, now, &key(name), of, guessed));
}

#[test]
fn an_alias_is_found_on_every_worker_for_as_long_as_its_request() {
    let data = InMemory::default();
    let [mut inbound, mut outbound, mut third] = [7, 8, 9].map(|n| Worker::new(&data, n, MANY));
    let ticket = inbound.insert(0, "id", b"ctx").ticket;
    let found = outbound.find(0, "id").remove(0);
    alias(&mut outbound, 0, "made-up", &found, true);
    // Said again, it is one.
    alias(&mut outbound, 1, "made-up", &found, true);
    let workers = &mut [&mut inbound, &mut outbound, &mut third];
    for worker in workers.iter_mut() {
        let aliased = worker.find(1, "made-up");
        assert_eq!(aliased.len(), 1);
        assert_eq!(aliased[0].request, found.request);
        assert_eq!(aliased[0].context, b"ctx");
        assert!(aliased[0].under == MatchedBy::Guess && !aliased[0].ended);
    }
    workers[0].end(10, ticket);
    for worker in workers.iter_mut() {
        assert!(worker.find(109, "made-up")[0].ended);
        assert!(worker.find(110, "made-up").is_empty());
    }
    // Whoever wrote it drops it.
    assert_eq!(workers[1].0.table.size().2, 0);
    workers[1].tick(111);
    workers[0].tick(111);
    assert!(workers[2].find(5, "made-up").is_empty());
}

#[test]
fn an_alias_costs_one_read_more_and_none_at_home() {
    let data = Counting::default();
    let [mut inbound, mut outbound, mut third] = [7, 8, 9].map(|n| Store::open(&data, n));
    inbound.insert(&data, MANY, 0, &[key("id")], b"ctx", b"headers");
    let found = outbound.find(&data, || 0, &key("id"), true).found.remove(0);
    let of = (found.request, found.bucket);
    outbound.alias(&data, MANY, 0, &key("made-up"), of, false);
    let find = |store: &mut Store| {
        store.find(&data, || 0, &key("made-up"), true);
        data.counts();
        let found = store
            .find(&data, || 0, &key("made-up"), false)
            .found
            .remove(0);
        let reads = data.counts().0;
        assert_eq!(store.headers(&data, &found), Some(b"headers".to_vec()));
        assert_eq!(found.under, MatchedBy::Alias);
        reads
    };
    assert_eq!(find(&mut inbound), 1);
    assert_eq!(find(&mut outbound), 2);
    assert_eq!(find(&mut third), 3);
    // To say it again costs nothing.
    data.counts();
    outbound.alias(&data, MANY, 1, &key("made-up"), of, false);
    assert_eq!(data.counts(), (0, 0));
}

#[test]
fn aliases_are_bounded_in_time_and_number() {
    let data = InMemory::default();
    let mut worker = Worker::new(&data, 7, MANY);
    worker.insert(0, "id", b"ctx");
    let found = worker.find(0, "id").remove(0);
    alias(&mut worker, 0, "one", &found, false);
    alias(&mut worker, 0, "two", &found, false);
    assert!(!worker.find(59_999, "one").is_empty());
    alias(&mut worker, 40_000, "two", &found, false);
    assert!(worker.find(60_000, "one").is_empty());
    assert!(!worker.find(60_000, "two").is_empty());
    worker.tick(60_000);
    assert!(worker.0.table.size().2 < 50);
    worker.tick(100_000);
    assert_eq!(
        (worker.0.table.size().2, worker.find(5, "two").len()),
        (0, 0)
    );
    for n in 0..10_000 {
        alias(&mut worker, 100_000, &n.to_string(), &found, n % 2 == 0);
    }
    assert!(worker.0.table.lists()[3] <= 4096);
    assert!(worker.0.table.size().2 < 4096 * 40);
    assert!(worker.find(100_000, "0").is_empty());
    assert_eq!(worker.find(100_000, "9999").len(), 1);
    worker.tick(200_000);
    assert_eq!(worker.0.table.size().2, 0);
}

#[test]
fn an_alias_of_what_had_to_go_is_not_taken_for_nothing() {
    let data = InMemory::default();
    let mut inbound = Worker::new(&data, 7, ONE);
    let mut outbound = Worker::new(&data, 8, ONE);
    let ticket = inbound.insert(0, "id", b"ctx").ticket;
    let found = outbound.find(0, "id").remove(0);
    alias(&mut outbound, 0, "made-up", &found, false);
    inbound.insert(0, "other", b"other");
    let workers = &mut [&mut inbound, &mut outbound];
    for worker in workers.iter_mut() {
        let candidates = worker.candidates(0, "made-up");
        assert!(candidates.found.is_empty() && !candidates.complete);
    }
    workers[0].end(0, ticket);
    for worker in workers.iter_mut() {
        let candidates = worker.candidates(0, "made-up");
        assert!(candidates.found.is_empty() && candidates.complete);
    }
}

#[test]
fn a_key_with_too_many_aliases_says_that_there_are_more() {
    let data = InMemory::default();
    let mut worker = Worker::new(&data, 7, MANY);
    for n in 0..6 {
        worker.insert(0, &n.to_string(), &[n]);
        let found = worker.find(0, &n.to_string()).remove(0);
        alias(&mut worker, 0, "shared", &found, false);
        let candidates = worker.candidates(0, "shared");
        assert_eq!(candidates.found.len(), usize::from(n + 1).min(4));
        assert_eq!(candidates.complete, n < 4);
    }
}

#[test]
fn an_alias_of_a_worker_that_is_gone_is_not_of_its_heir() {
    let data = InMemory::default();
    let mut gone = Worker::new(&data, 1, MANY);
    let mut here = Worker::new(&data, 2, MANY);
    gone.insert(0, "a", b"old");
    here.insert(0, "b", b"ctx");
    for now in (0..60_000).step_by(1000) {
        here.tick(now);
    }
    let found = here.find(59_000, "a").remove(0);
    alias(&mut here, 59_000, "made-up", &found, false);
    assert_eq!(here.contexts(59_000, "made-up"), [b"old"]);
    here.tick(60_000);
    assert_eq!(here.contexts(60_000, "made-up"), [b""; 0]);
    let mut heir = Worker::new(&data, 3, MANY);
    heir.insert(60_000, "a", b"new");
    assert_eq!(heir.0.workers.number, Some(0));
    for worker in [&mut here, &mut heir] {
        assert_eq!(worker.contexts(60_000, "made-up"), [b""; 0]);
    }
}

#[test]
fn aliases_take_no_room_from_requests() {
    let data = InMemory::default();
    let limits = Limits {
        bucket_bytes: 200,
        ..MANY
    };
    let mut worker = Worker::new(&data, 7, limits);
    worker.insert(0, "id", b"ctx");
    let found = worker.find(0, "id").remove(0);
    // 31 bytes of head, 5 of key, 3 of context; an alias has 37.
    for _ in 0..4 {
        worker.insert(0, "same", b"ctx");
    }
    alias(&mut worker, 0, "same", &found, false);
    let candidates = worker.candidates(0, "same");
    assert_eq!((candidates.found.len(), candidates.complete), (5, true));
    // Each that comes later needs the room.
    assert_eq!(worker.insert(0, "same", b"ctx").evicted, 0);
    assert_eq!(worker.find(0, "same").len(), 5);
    alias(&mut worker, 0, "same", &found, false);
    assert_eq!(worker.find(0, "same").len(), 5);
}

#[derive(Clone, Debug)]
enum Step {
    Insert(usize, u8, u8),
    End(usize),
    Find(usize, u8),
    Wait(u64),
    Tick(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (0usize..3, 0u8..6, any::<u8>()).prop_map(|(w, k, p)| Step::Insert(w, k, p)),
        (0usize..64).prop_map(Step::End),
        (0usize..3, 0u8..6).prop_map(|(w, k)| Step::Find(w, k)),
        (0u64..90).prop_map(Step::Wait),
        (0usize..3).prop_map(Step::Tick),
    ];
    proptest::collection::vec(step, 0..120)
}

/// One of several things that happen where there is little room.
#[derive(Clone, Debug)]
enum Crowded {
    /// Worker, keys as bits, bytes of headers.
    Insert(usize, u8, usize),
    End(usize),
    Find(usize, u8),
    /// Worker, key, the request.
    Alias(usize, u8, usize),
    /// How many writes fail from now on.
    Refuse(u32),
    Wait(u64),
    Tick(usize),
}

fn crowded() -> impl Strategy<Value = Vec<Crowded>> {
    let sizes = prop_oneof![Just(0usize), 1usize..40, 300usize..900, Just(8192)];
    let step = prop_oneof![
        6 => (0usize..3, 1u8..64, sizes).prop_map(|(w, k, h)| Crowded::Insert(w, k, h)),
        4 => (0usize..64).prop_map(Crowded::End),
        8 => (0usize..3, 0u8..8).prop_map(|(w, k)| Crowded::Find(w, k)),
        2 => (0usize..3, 0u8..8, 0usize..64).prop_map(|(w, k, n)| Crowded::Alias(w, k, n)),
        1 => (0u32..3).prop_map(Crowded::Refuse),
        2 => (0u64..90).prop_map(Crowded::Wait),
        1 => (0usize..3).prop_map(Crowded::Tick),
    ];
    proptest::collection::vec(step, 0..150)
}

/// Refuses to write buckets as often as it is told to.
#[derive(Default)]
struct Refusing(InMemory, std::cell::Cell<u32>);

impl SharedData for Refusing {
    fn get(&self, key: &[u8]) -> Option<(Vec<u8>, u32)> {
        self.0.get(key)
    }

    fn set(&self, key: &[u8], value: &[u8], cas: u32) -> Result<(), NotSet> {
        if key.len() == bucket_name(0, 0).len() && self.1.get() > 0 {
            self.1.set(self.1.get() - 1);
            return Err(NotSet);
        }
        self.0.set(key, value, cas)
    }
}

/// A request of [`Crowded`].
struct Served {
    worker: usize,
    ticket: Ticket,
    keys: Vec<Key>,
    headers: Vec<u8>,
    ended: Option<u64>,
}

proptest! {
    /// Where there is little room, and some writes fail: nothing is found that is not so,
    /// and nobody believes to know all where something is missing.
    #[test]
    fn it_knows_what_it_does_not_know(steps in crowded(), room in 0usize..3) {
        let limits = [
            Limits { entries: 5, ..LIMITS },
            Limits { bytes: 1500, ..MANY },
            Limits { bucket_bytes: 600, ..MANY },
        ][room];
        let data = Refusing::default();
        let mut workers: Vec<_> = (0..3).map(|n| Store::open(&data, n)).collect();
        let mut all: Vec<Served> = Vec::new();
        let mut aliases: Vec<(Key, usize)> = Vec::new();
        // What a worker could not write, others need not know before it ticks.
        let mut behind = [false; 3];
        let mut now = 1_000;
        for step in steps {
            let refused = data.1.get();
            let mut by = None;
            match step {
                Crowded::Insert(w, mask, length) => {
                    let keys = (0..6).filter(|bit| mask & (1 << bit) != 0).take(KEYS_MOST);
                    let keys: Vec<Key> = keys.map(|n| key(&n.to_string())).collect();
                    let context = all.len().to_le_bytes();
                    let headers = vec![all.len() as u8; length];
                    let done = workers[w].insert(&data, limits, now, &keys, &context, &headers);
                    all.push(Served { worker: w, ticket: done.ticket, keys, headers, ended: None });
                    by = Some(w);
                }
                Crowded::End(n) if !all.is_empty() => {
                    let n = n % all.len();
                    let served = &mut all[n];
                    if served.ended.is_none() {
                        served.ended = Some(now);
                        workers[served.worker].end(&data, limits, now, served.ticket);
                        by = Some(served.worker);
                    }
                }
                Crowded::Alias(w, k, n) if !all.is_empty() => {
                    let n = n % all.len();
                    let name = key(&k.to_string());
                    let of = ((all[n].worker as u16, all[n].ticket.id()), all[n].ticket.bucket().unwrap());
                    // The numbers of the workers are those in which they came.
                    let of = ((workers[all[n].worker].workers.number.unwrap_or(99), of.0.1), of.1);
                    workers[w].alias(&data, limits, now, &name, of, true);
                    aliases.push((name, n));
                    by = Some(w);
                }
                Crowded::Find(w, k) => {
                    let name = key(&k.to_string());
                    let Candidates { found, complete } = workers[w].find(&data, || now, &name, true);
                    let mut seen = Vec::new();
                    for found in &found {
                        let n = usize::from_le_bytes(found.context[..].try_into().unwrap());
                        let served = &all[n];
                        prop_assert!(!seen.contains(&n));
                        seen.push(n);
                        match found.under {
                            MatchedBy::Own => prop_assert!(served.keys.contains(&name)),
                            _ => prop_assert!(aliases.contains(&(name.clone(), n))),
                        }
                        let known = !behind[served.worker] || served.worker == w;
                        prop_assert!(!known || found.ended == served.ended.is_some());
                        prop_assert!(!known || served.ended.is_none_or(|at| now - at < limits.grace_ms));
                        let headers = workers[w].headers(&data, found);
                        prop_assert!(headers.is_none_or(|headers| headers == served.headers));
                    }
                    let hidden = |worker: usize| behind[worker] && worker != w;
                    let missing = all.iter().enumerate().filter(|(n, served)| {
                        served.ended.is_none()
                            && served.keys.contains(&name)
                            && !seen.contains(n)
                            && !hidden(served.worker)
                    });
                    prop_assert!(!complete || missing.count() == 0);
                }
                Crowded::Refuse(writes) => data.1.set(writes),
                Crowded::Wait(ms) => now += ms,
                Crowded::Tick(w) => {
                    behind[w] = false;
                    workers[w].tick(&data, now);
                    by = Some(w);
                }
                Crowded::End(_) | Crowded::Alias(..) => {}
            }
            if let Some(w) = by {
                behind[w] |= data.1.get() != refused;
            }
        }
        // When all have been served, nothing stays.
        data.1.set(0);
        for served in all.iter().filter(|served| served.ended.is_none()) {
            workers[served.worker].end(&data, limits, now, served.ticket);
        }
        for worker in &mut workers {
            worker.tick(&data, now + 60_000);
            prop_assert_eq!(worker.table.size(), (0, 0, 0));
        }
    }

    /// Against a list of everything that ever happened, for three workers
    /// with room enough: exactly what is live or ended within the grace.
    #[test]
    fn it_remembers_what_it_should(steps in steps()) {
        let data = InMemory::default();
        let mut workers: Vec<_> = (0..3).map(|n| Worker::new(&data, n, MANY)).collect();
        // Worker, ticket, key, payload, end.
        let mut all: Vec<(usize, Ticket, u8, u8, Option<u64>)> = Vec::new();
        let mut now = 1_000;
        for step in steps {
            match step {
                Step::Insert(w, k, p) => {
                    let done = workers[w].insert(now, &k.to_string(), &[p]);
                    prop_assert_eq!(done.evicted, 0);
                    all.push((w, done.ticket, k, p, None));
                }
                Step::End(n) if !all.is_empty() => {
                    let n = n % all.len();
                    workers[all[n].0].end(now, all[n].1);
                    all[n].4.get_or_insert(now);
                }
                Step::End(_) => {}
                Step::Wait(ms) => now += ms,
                Step::Tick(w) => workers[w].tick(now),
                Step::Find(w, k) => {
                    let mut found = workers[w].contexts(now, &k.to_string());
                    let alive = all.iter().filter(|e| e.2 == k && e.4.is_none_or(|end| now - end < 100));
                    let mut expected: Vec<_> = alive.map(|e| vec![e.3]).collect();
                    found.sort();
                    expected.sort();
                    prop_assert_eq!(found, expected);
                }
            }
        }
    }

    #[test]
    fn any_bytes_in_shared_data_are_survived(bytes: Vec<u8>, at in 0usize..5) {
        let data = InMemory::default();
        let mut here = Worker::new(&data, 7, LIMITS);
        let mut there = Worker::new(&data, 8, LIMITS);
        let done = here.insert(0, "a", b"ctx");
        there.insert(0, "a", b"ctx");
        let keys = data.keys();
        let _ = data.set(&keys[at % keys.len()], &bytes, 0);
        here.find(1, "a");
        here.tick(20_000);
        here.end(20_001, done.ticket);
        here.insert(20_002, "b", b"ctx");
        prop_assert_eq!(here.contexts(20_002, "b"), [b"ctx"]);
        Worker::new(&data, 9, LIMITS).insert(20_003, "c", b"ctx");
    }

    #[test]
    fn memory_is_bounded(keys in proptest::collection::vec("[a-z0-9-]{1,40}", 1..400)) {
        let data = InMemory::default();
        let limits = Limits { entries: 50, bytes: 4000, grace_ms: 0, ..LIMITS };
        let mut worker = Worker::new(&data, 7, limits);
        for text in &keys {
            worker.insert(0, text, &[0; 50]);
        }
        let (entries, bytes) = worker.0.size();
        prop_assert!(entries <= 50 && bytes <= 4000);
        // The seed, the list, what is remembered, and what is known to be missing.
        let beside = worker.0.table.size().2;
        prop_assert_eq!(data.size().1, 8 + 18 + bytes + beside);
        prop_assert!(beside <= usize::from(BUCKETS) * (32 * 17 + 5));
    }
}
