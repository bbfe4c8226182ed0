//! Requests that are in flight and not stored.

use super::*;

#[test]
fn an_evicted_request_leaves_a_tombstone_until_it_has_been_answered() {
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
        assert_eq!(here.store.table.size(), (0, 0, 0));
    }
}

#[test]
fn many_tombstones_are_counted() {
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
        assert!(here.store.table.size().2 <= 32 * 17 + 5);
        here.end(200, *ticket);
    }
    assert!(here.candidates(200, "same").complete);
    assert!(there.candidates(200, "same").complete);
    assert_eq!(here.store.table.size().2, 0);
}

#[test]
fn what_could_not_be_written_leaves_a_tombstone() {
    let data = Counting::default();
    let [mut here, mut there] = [7, 8].map(|n| Store::open(&data, n));
    here.insert(&data, MANY, 0, &[key("a")], b"1", &[]);
    find(&mut there, &data, 0, &key("a"));
    data.refuses.set(true);
    let done = here.insert(&data, MANY, 0, &["a", "b"].map(key), b"2", b"x");
    assert!(!done.stored);
    let mut complete = |here: &mut Store, name| {
        [here, &mut there].map(|worker| find(worker, &data, 0, &key(name)).complete)
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
fn what_cannot_be_written_leaves_no_entry() {
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
            let candidates = find(&mut store, &data, 0, key);
            assert_eq!(candidates.found.len(), usize::from(inserted.stored));
            assert!(inserted.stored || !candidates.complete);
        }
    }
}

#[test]
fn a_bucket_or_a_list_that_cannot_be_read_hides_something() {
    let data = InMemory::default();
    let mut here = Worker::new(&data, 7, MANY);
    let mut there = Worker::new(&data, 8, MANY);
    here.insert(0, "a", b"ctx");
    assert!(there.candidates(0, "a").complete);
    let (bucket, _) = here.store.table.bucket_of(key("a").as_bytes());
    let name = bucket_name(0, bucket);
    let (bytes, _) = data.get(&name).unwrap();
    for end in 1..bytes.len() {
        data.set(&name, &bytes[..end], 0).unwrap();
        assert!(!there.candidates(0, "a").complete, "{end}");
    }
    data.set(&name, &[], 0).unwrap();
    assert!(there.candidates(0, "a").complete);
    let (list, _) = data.get(&WORKERS).unwrap();
    data.set(&WORKERS, &list[..list.len() - 1], 0).unwrap();
    assert!(!Worker::new(&data, 9, MANY).candidates(0, "b").complete);
}

#[test]
fn a_worker_that_was_taken_for_dead_keeps_its_tombstones() {
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

/// Those that have made room after their end are known to be missing for as long as they would
/// have been known, or as many as there is room for.
#[test]
fn what_has_made_room_after_its_end_is_missing_until_it_is_forgotten() {
    let data = InMemory::default();
    let limits = Limits {
        entries: 10,
        grace_ms: 50,
        ..MANY
    };
    let mut gone = Worker::new(&data, 1, limits);
    let mut here = Worker::new(&data, 2, limits);
    let serve = |worker: &mut Worker<'_>, now: u64| {
        for n in 0..100 {
            let ticket = worker.insert(now, &n.to_string(), b"ctx").ticket;
            worker.end(now, ticket);
        }
    };
    serve(&mut gone, 0);
    let known = |worker: &mut Worker<'_>, now: u64| {
        let is_complete = |n: &u64| worker.candidates(now, &n.to_string()).complete;
        (0..100).filter(is_complete).collect::<Vec<u64>>()
    };
    let early: Vec<u64> = (0..81).collect();
    let last: Vec<u64> = (90..100).collect();
    assert_eq!(known(&mut gone, 0), [early, last].concat());
    assert!(gone.store.table.queue_lengths()[1] <= 20);
    gone.tick(50);
    assert_eq!(known(&mut gone, 50).len(), 100);
    assert_eq!(gone.store.table.size(), (0, 0, 0));
    // Nor is anything left after it was taken for dead.
    for now in (0..=60_000).step_by(1000) {
        here.tick(now);
    }
    serve(&mut gone, 60_000);
    assert!(known(&mut gone, 60_000).len() < 100);
    here.insert(60_000, "new", b"ctx");
    gone.tick(60_010);
    assert_eq!(gone.store.table.size(), (0, 0, 0));
}
