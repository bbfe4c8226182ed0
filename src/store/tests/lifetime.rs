//! How long a request is stored.

use super::*;

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
    assert_eq!(here.store.size(), (0, 0));
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
    assert_eq!(worker.store.size(), (0, 0));
}

/// A call may come later than the grace, while another request with the key is served.
#[test]
fn a_request_is_known_for_a_while_after_its_grace() {
    const PAST_MS: u64 = 1000;
    const END_MS: u64 = 10_000;
    for grace_ms in [0, 100, PAST_MS, 5000] {
        let data = InMemory::default();
        let limits = Limits {
            grace_ms,
            past_ms: 1000,
            ..MANY
        };
        let mut here = Worker::new(&data, 7, limits);
        let mut there = Worker::new(&data, 8, limits);
        let ticket = here.insert(0, "a", b"1").ticket;
        there.insert(0, "a", b"2");
        here.end(END_MS, ticket);
        let forgotten_ms = PAST_MS.max(grace_ms);
        for after_ms in [0, grace_ms, forgotten_ms - 1, forgotten_ms] {
            for worker in [&mut here, &mut there] {
                let Candidates { found, past, .. } = worker.candidates(END_MS + after_ms, "a");
                let known = [
                    found.iter().any(|one| one.context == b"1"),
                    past.iter().any(|one| one.context == b"1"),
                ];
                let expected = [
                    after_ms < grace_ms,
                    after_ms >= grace_ms && after_ms < PAST_MS,
                ];
                assert_eq!(known, expected, "{grace_ms} {after_ms}");
                assert!(found.iter().any(|one| one.context == b"2"));
            }
        }
        here.tick(END_MS + forgotten_ms);
        assert_eq!(here.store.size(), (0, 0));
    }
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
    assert_eq!(worker.store.size().0, 1);
}

#[test]
fn a_request_is_found_under_each_of_its_keys() {
    let data = InMemory::default();
    let mut worker = Worker::new(&data, 7, MANY);
    let keys = [key("a"), key("b"), key("c")];
    let done = worker.store.insert(&data, MANY, 0, &keys, b"ctx", &[]);
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
fn the_grace_is_that_of_the_filter_that_stored_the_request() {
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
fn an_end_that_could_not_be_written_is_written_later() {
    let data = Counting::default();
    let [mut here, mut there] = [7, 8].map(|n| Store::open(&data, n));
    let done = here.insert(&data, MANY, 0, &[key("a")], b"1", &[]);
    data.refuses.set(true);
    assert!(!here.end(&data, MANY, 0, done.ticket));
    data.refuses.set(false);
    assert!(!find(&mut there, &data, 0, &key("a")).found[0].ended);
    here.tick(&data, 1);
    assert!(find(&mut there, &data, 0, &key("a")).found[0].ended);
}

/// Of requests with one key in common, one in flight comes before one that has ended.
#[test]
fn an_end_is_published_with_each_key() {
    let data = Counting::default();
    let [mut here, mut there] = [7, 8].map(|n| Store::open(&data, n));
    let keys = [key("a"), key("b")];
    // The first of all takes a number.
    here.insert(&data, MANY, 0, &[key("z")], b"1", &[]);
    data.counts();
    let done = here.insert(&data, MANY, 0, &keys, b"1", &[]);
    assert_eq!(data.counts(), (0, 2));
    assert!(here.end(&data, MANY, 0, done.ticket));
    assert_eq!(data.counts(), (0, 2));
    for store in [&mut here, &mut there] {
        for key in &keys {
            assert!(find(store, &data, 0, key).found[0].ended);
        }
    }
}

#[test]
fn who_has_found_enough_asks_no_further_worker() {
    let data = Counting::default();
    let mut workers: Vec<Store> = (0..3).map(|n| Store::open(&data, n)).collect();
    for (n, worker) in workers.iter_mut().enumerate() {
        worker.insert(&data, MANY, 0, &[key("a")], &[n as u8], &[]);
    }
    let first = &mut workers[0];
    first.refresh(&data, || 0);
    for (enough, reads) in [(0, 0), (1, 1), (2, 2), (3, 2)] {
        data.counts();
        let is_enough = |found: &Found| found.context == [enough];
        let candidates = first.find_until(&data, &|| 0, &key("a"), &is_enough);
        assert_eq!(data.counts(), (reads, 0), "{enough}");
        assert_eq!(candidates.found.len(), reads + 1);
        assert_eq!(candidates.complete, enough >= 2);
    }
}
