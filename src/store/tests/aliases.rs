//! Further keys of a request.

use super::*;

fn alias(worker: &mut Worker<'_>, now: u64, name: &str, of: &Found, guessed: bool) {
    let of = (of.request, of.bucket);
    let Worker {
        store,
        data,
        limits,
    } = worker;
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
        assert!(aliased[0].matched_by == MatchedBy::Guess && !aliased[0].ended);
    }
    workers[0].end(10, ticket);
    for worker in workers.iter_mut() {
        let candidates = worker.candidates(109, "made-up");
        assert!(candidates.found[0].ended && candidates.complete);
        let candidates = worker.candidates(110, "made-up");
        assert!(candidates.found.is_empty() && !candidates.complete);
    }
    workers[1].tick(111);
    workers[0].tick(111);
    for worker in workers.iter_mut() {
        let candidates = worker.candidates(59_999, "made-up");
        assert!(candidates.found.is_empty() && !candidates.complete);
    }
    // Whoever wrote it drops it when its time is over.
    workers[1].tick(60_001);
    assert_eq!(workers[1].store.table.size().2, 0);
    let candidates = workers[2].candidates(5, "made-up");
    assert!(candidates.found.is_empty() && candidates.complete);
}

#[test]
fn an_alias_costs_one_read_more_and_none_on_the_workers_own() {
    let data = Counting::default();
    let [mut inbound, mut outbound, mut third] = [7, 8, 9].map(|n| Store::open(&data, n));
    inbound.insert(&data, MANY, 0, &[key("id")], b"ctx", b"headers");
    let found = find(&mut outbound, &data, 0, &key("id")).found.remove(0);
    let of = (found.request, found.bucket);
    outbound.alias(&data, MANY, 0, &key("made-up"), of, false);
    let find = |store: &mut Store| {
        find(store, &data, 0, &key("made-up"));
        data.counts();
        let found = store.find(&data, &|| 0, &key("made-up")).found.remove(0);
        let reads = data.counts().0;
        assert_eq!(store.headers(&data, &found), Some(b"headers".to_vec()));
        assert_eq!(found.matched_by, MatchedBy::Alias);
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
    assert!(worker.store.table.size().2 < 50);
    worker.tick(100_000);
    assert_eq!(
        (worker.store.table.size().2, worker.find(5, "two").len()),
        (0, 0)
    );
    for n in 0..10_000 {
        alias(&mut worker, 100_000, &n.to_string(), &found, n % 2 == 0);
    }
    assert!(worker.store.table.queue_lengths()[3] <= 4096);
    assert!(worker.store.table.size().2 < 4096 * 40);
    assert!(worker.find(100_000, "0").is_empty());
    assert_eq!(worker.find(100_000, "9999").len(), 1);
    worker.tick(200_000);
    assert_eq!(worker.store.table.size().2, 0);
}

#[test]
fn an_alias_of_an_evicted_request_is_not_complete() {
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
    // Nor is one of a request that is over.
    workers[0].end(0, ticket);
    for worker in workers.iter_mut() {
        let candidates = worker.candidates(0, "made-up");
        assert!(candidates.found.is_empty() && !candidates.complete);
    }
}

#[test]
fn a_key_with_too_many_aliases_is_not_complete() {
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
fn an_alias_of_a_dead_worker_is_not_of_the_next_one_with_its_number() {
    let data = InMemory::default();
    let (_gone, mut here) = one_is_gone(&data);
    let found = here.find(59_000, "a").remove(0);
    alias(&mut here, 59_000, "made-up", &found, false);
    assert_eq!(here.contexts(59_000, "made-up"), [b"old"]);
    here.tick(60_000);
    assert_eq!(here.contexts(60_000, "made-up"), [b""; 0]);
    let mut next = Worker::new(&data, 3, MANY);
    next.insert(60_000, "a", b"new");
    assert_eq!(next.store.workers.number, Some(0));
    for worker in [&mut here, &mut next] {
        assert_eq!(worker.contexts(60_000, "made-up"), [b""; 0]);
    }
}

#[test]
fn aliases_take_no_room_from_requests() {
    let data = InMemory::default();
    let limits = Limits {
        bucket_bytes: 205,
        ..MANY
    };
    let mut worker = Worker::new(&data, 7, limits);
    worker.insert(0, "id", b"ctx");
    let found = worker.find(0, "id").remove(0);
    // 33 bytes of head, 5 of key, 3 of context; an alias has 37.
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

#[test]
fn an_alias_of_a_request_that_is_only_counted_is_not_complete() {
    let data = InMemory::default();
    let mut worker = Worker::new(&data, 7, ONE);
    for n in 0..40 {
        worker.insert(n, "same", b"ctx");
    }
    let found = worker.find(40, "same").remove(0);
    alias(&mut worker, 40, "made-up", &found, false);
    assert!(worker.candidates(40, "made-up").complete);
    worker.insert(41, "same", b"ctx");
    let candidates = worker.candidates(41, "made-up");
    assert!(candidates.found.is_empty() && !candidates.complete);
}

#[test]
fn an_alias_that_is_renewed_takes_nothing_with_it() {
    let data = InMemory::default();
    let mut worker = Worker::new(&data, 7, MANY);
    worker.insert(0, "id", b"ctx");
    worker.insert(0, "shared", b"other");
    let found = worker.find(0, "id").remove(0);
    for now in [0, 40_000] {
        alias(&mut worker, now, "shared", &found, false);
        assert_eq!(worker.find(now, "shared").len(), 2);
    }
}

/// Aliases of two workers with the same serial number.
#[test]
fn an_alias_of_another_worker_that_leads_nowhere_is_not_ones_own() {
    let data = InMemory::default();
    let [mut here, mut there] = [7, 8].map(|n| Worker::new(&data, n, MANY));
    here.insert(0, "a", b"a");
    let ended = there.insert(0, "b", b"b").ticket;
    let [a, b] = ["a", "b"].map(|name| here.find(0, name).remove(0));
    alias(&mut here, 0, "shared", &a, false);
    alias(&mut there, 0, "shared", &b, false);
    there.end(1, ended);
    there.tick(1000);
    for _ in 0..2 {
        assert_eq!(here.contexts(1000, "shared"), [b"a"]);
    }
}
