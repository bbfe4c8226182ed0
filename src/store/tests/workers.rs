//! Several workers: the list, the seed, look-ups in all tables.

use super::*;
use std::collections::HashMap;

#[test]
fn the_first_to_open_chooses_the_seed() {
    let data = InMemory::default();
    let first = Worker::new(&data, 7, LIMITS);
    let second = Worker::new(&data, 8, LIMITS);
    assert_eq!([&first, &second].map(|worker| worker.store.seed()), [7; 2]);
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
                    .bucket_of(Key::request_id(&id).unwrap().as_bytes())
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

/// The buckets of a number that was never given are not there: they are not asked for.
#[test]
fn buckets_are_emptied_where_a_number_was_given_before() {
    let data = Counting::default();
    let first_request = |nonce: u64, now: u64| {
        let mut store = Store::open(&data, nonce);
        data.counts();
        store.insert(&data, MANY, now, &[key("a")], &nonce.to_le_bytes(), &[]);
        (store, data.counts().0)
    };
    let (_, reads) = first_request(1, 0);
    assert_eq!(reads, 1);
    let (_, reads) = first_request(2, 0);
    assert_eq!(reads, 1);
    // Both are dead.
    for nonce in [3, 4] {
        let (mut store, reads) = first_request(nonce, 70_000);
        assert_eq!(reads, 1 + usize::from(BUCKETS));
        let found = find(&mut store, &data, 70_000, &key("a")).found;
        let contexts: Vec<&[u8]> = found.iter().map(|found| &*found.context).collect();
        let living: Vec<[u8; 8]> = (3..=nonce).rev().map(u64::to_le_bytes).collect();
        assert_eq!(contexts, living);
    }
    let (_, reads) = first_request(5, 70_000);
    assert_eq!(reads, 1);
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
        if all {
            here.store.refresh(&data, clock);
        }
        let found = here.store.find(&data, &clock, &key("a")).found.len();
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
    let ended = late.store.find(&data, &|| 1, &key("a")).found;
    assert!(ended[0].ended);
}

#[test]
fn a_worker_that_is_gone_leaves_nothing() {
    let data = InMemory::default();
    let (mut gone, mut here) = one_is_gone(&data);
    assert_eq!(here.contexts(59_000, "a"), [b"old"]);
    here.tick(60_000);
    assert_eq!(here.contexts(60_000, "a"), [b""; 0]);
    // Its number is taken over, without what it held.
    let mut new = Worker::new(&data, 3, MANY);
    new.insert(60_000, "c", b"new");
    assert_eq!(new.store.workers.number, Some(0));
    assert_eq!(here.contexts(60_000, "a"), [b""; 0]);
    assert_eq!(here.contexts(60_000, "c"), [b"new"]);
    assert_eq!(new.contexts(60_000, "b"), [b"ctx"]);
    // Should it live after all, it begins anew, and disturbs nobody.
    gone.tick(61_000);
    assert_eq!(gone.contexts(61_000, "c"), [b"new"]);
    gone.insert(61_000, "a", b"again");
    assert_eq!(gone.store.workers.number, Some(2));
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
                    let name = format!("{}-{n}", worker.store.nonce());
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
    let candidates = find(&mut store, &data, 0, &key("a"));
    assert!(candidates.found.is_empty() && !candidates.complete);
}

/// Whatever somebody else makes of the list, no worker takes itself for the only one.
#[test]
fn a_spoiled_list_is_written_anew() {
    let spoil = |list: &[u8], how: usize| match how {
        0 => [list, &[7; 18]].concat(),
        1 => [&[200], list].concat(),
        how => list.get(..list.len() / how).unwrap_or_default().to_vec(),
    };
    for how in [0, 1, 2, 3, 4, 19, 1000] {
        let data = InMemory::default();
        let mut workers: Vec<_> = (0..3).map(|n| Worker::new(&data, n, MANY)).collect();
        for (n, worker) in workers.iter_mut().enumerate() {
            worker.insert(0, &n.to_string(), b"ctx");
        }
        for worker in &mut workers {
            assert!(worker.candidates(0, "0").complete);
        }
        let (list, _) = data.get(&WORKERS).unwrap();
        data.set(&WORKERS, &spoil(&list, how), 0).unwrap();
        // One that knows none of them.
        let mut new = Worker::new(&data, 9, MANY);
        new.insert(5_000, "new", b"new");
        assert!(!new.candidates(5_000, "0").complete, "{how}");
        for worker in &mut workers {
            // Those that know each other go on with what they have.
            for name in ["0", "1", "2"] {
                assert_eq!(worker.contexts(5_000, name), [b"ctx"], "{how} {name}");
            }
            let candidates = worker.candidates(5_000, "new");
            assert_eq!(candidates.found.len(), 1, "{how}");
            assert!(!candidates.complete && !worker.store.knows_all_workers());
        }
        for worker in workers.iter_mut().chain([&mut new]) {
            worker.tick(10_000);
        }
        let mut all: Vec<_> = workers.iter_mut().chain([&mut new]).collect();
        let mut numbers = std::collections::HashSet::new();
        for worker in &mut all {
            worker.insert(10_000, "again", b"ctx");
            numbers.insert(worker.store.workers.number.unwrap());
        }
        assert_eq!(numbers.len(), 4, "{how}");
        for worker in &mut all {
            assert_eq!(worker.contexts(25_000, "again").len(), 4, "{how}");
            worker.tick(25_000);
            assert!(worker.store.knows_all_workers(), "{how}");
        }
    }
}

/// Who has read the spoiled list reads it again once it is mended, and no heartbeat makes
/// others read a list that is whole.
#[test]
fn that_a_spoiled_list_was_mended_is_news_for_the_others() {
    let data = Counting::default();
    let [mut here, mut new] = [7, 8].map(|n| Store::open(&data, n));
    here.insert(&data, MANY, 0, &[key("a")], b"ctx", &[]);
    data.data.set(&WORKERS, b"spoiled", 0).unwrap();
    let found = find(&mut new, &data, 5_000, &key("a"));
    assert!(found.found.is_empty() && !found.complete);
    here.tick(&data, 10_000);
    assert_eq!(find(&mut new, &data, 10_000, &key("a")).found.len(), 1);
    // The doubt has gone.
    let now = 60_000;
    here.tick(&data, now);
    new.tick(&data, now);
    here.tick(&data, now + 10_000);
    data.counts();
    assert!(!new.refresh(&data, || now + 10_000));
    assert_eq!(data.counts(), (1, 0));
}

#[test]
fn a_spoiled_bucket_has_nothing() {
    let data = InMemory::default();
    let mut here = Worker::new(&data, 7, MANY);
    let mut there = Worker::new(&data, 8, MANY);
    // Half of two records is one.
    here.insert(0, "a", b"ctx1");
    here.insert(0, "a", b"ctx2");
    let (bucket, _) = here.store.table.bucket_of(key("a").as_bytes());
    assert!(there.candidates(0, "a").complete);
    let name = bucket_name(0, bucket);
    let (value, _) = data.get(&name).unwrap();
    for length in 1..value.len() {
        data.set(&name, &value[..length], 0).unwrap();
        let candidates = there.candidates(0, "a");
        assert!(candidates.found.is_empty() && !candidates.complete);
    }
}

/// One that learns with its next tick that it was taken for dead writes nothing more into the
/// table of the worker that has its number.
#[test]
fn a_worker_that_was_taken_for_dead_leaves_the_next_one_alone() {
    let data = InMemory::default();
    let mut gone = Worker::new(&data, 1, MANY);
    let ticket = gone.insert(0, "a", b"old").ticket;
    let mut here = Worker::new(&data, 2, MANY);
    here.insert(0, "b", b"ctx");
    for now in (0..=60_000).step_by(1000) {
        here.tick(now);
    }
    gone.end(60_000, ticket);
    let mut next = Worker::new(&data, 3, MANY);
    next.insert(60_000, "a", b"new");
    gone.tick(61_000);
    assert_eq!(here.contexts(61_000, "a"), [b"new"]);
}
