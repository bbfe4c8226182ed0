//! What is evicted where there is no room, and bounds of memory.

use super::*;

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
        assert!(worker.store.size().1 <= 1000);
    }
    assert_eq!((evicted, worker.store.size().0), (46, 4));
    // What alone is too large is remembered all the same, and nothing else.
    worker.insert(50, "big", &[0; 1500]);
    assert_eq!(worker.store.size().0, 1);
    for (context, headers) in [(70_000, 0), (0, 70_000)] {
        let (context, headers) = (vec![0; context], vec![0; headers]);
        let none = worker
            .store
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
    assert_eq!(worker.store.size().0, 2);
}

#[test]
fn a_request_is_evicted_whole_and_counted_once() {
    let data = InMemory::default();
    let mut worker = Worker::new(&data, 7, LIMITS);
    let mut evicted = 0;
    for n in 0..5 {
        let keys = [key(&format!("{n}a")), key(&format!("{n}b"))];
        let done = worker.store.insert(&data, LIMITS, n, &keys, b"ctx", &[]);
        evicted += done.evicted;
    }
    assert_eq!((evicted, worker.store.size().0), (3, 4));
    assert_eq!(worker.contexts(5, "2b"), [b""; 0]);
    assert_eq!(worker.contexts(5, "3a"), [b"ctx"]);
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
        let done = worker
            .store
            .insert(&data, limits, 0, &keys, &[n; 3], &[n; 300]);
        // Three have room with their headers.
        let shed = usize::from(n >= 2);
        assert_eq!((done.evicted, done.headers_evicted), (0, shed), "{n}");
    }
    for n in 0..5u8 {
        let found = worker.find(0, &n.to_string());
        assert_eq!(found[0].context, [n; 3]);
        let headers = worker.store.headers(&data, &found[0]);
        assert_eq!(headers, (n >= 3).then(|| vec![n; 300]));
    }
}

#[test]
fn a_full_bucket_gives_up_the_headers_of_others_and_no_request_for_headers() {
    let data = InMemory::default();
    let limits = Limits {
        bucket_bytes: 600,
        ..MANY
    };
    let mut worker = Worker::new(&data, 7, limits);
    let mut evicted = |headers: usize| {
        let headers = vec![1; headers];
        let done = worker
            .store
            .insert(&data, limits, 0, &[key("same")], b"ctx", &headers);
        (done.evicted, done.headers_evicted)
    };
    assert_eq!(evicted(400), (0, 0));
    assert_eq!(evicted(400), (0, 1));
    // Nor does it have room for its own.
    assert_eq!(evicted(590), (0, 2));
    assert_eq!(worker.find(0, "same").len(), 3);
}

#[test]
fn a_request_does_not_evict_itself() {
    let data = InMemory::default();
    let limits = Limits {
        bucket_bytes: 100,
        ..MANY
    };
    let mut worker = Worker::new(&data, 7, limits);
    // Two keys of one bucket.
    let bucket = |name: &String| worker.store.table.bucket_of(key(name).as_bytes()).0;
    let mut names = (0..10_000).map(|n| n.to_string());
    let first = names.next().unwrap();
    let second = names.find(|name| bucket(name) == bucket(&first)).unwrap();
    let keys = [&first, &second].map(|name| key(name));
    let done = worker
        .store
        .insert(&data, limits, 0, &keys, b"ctx", &[1; 40]);
    assert_eq!((done.evicted, done.headers_evicted), (0, 0));
    for name in [&first, &second] {
        let found = worker.find(0, name).remove(0);
        assert_eq!(worker.store.headers(&data, &found), Some(vec![1; 40]));
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
        shed = shed.or((done.headers_evicted > 0).then_some(n));
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
        shed = shed.or((done.headers_evicted > 0).then_some(n));
        evicted = evicted.or((done.evicted > 0).then_some(n));
    }
    assert_eq!((shed, evicted), (Some(6), Some(232)));
}

#[test]
fn memory_stays_bounded_behind_a_request_that_never_ends() {
    let data = InMemory::default();
    let limits = Limits {
        bytes: 10_000,
        grace_ms: 0,
        ..MANY
    };
    let mut worker = Worker::new(&data, 7, limits);
    let insert = |worker: &mut Worker<'_>, now, name, headers: usize| {
        let headers = vec![1; headers];
        let Worker { store, data, .. } = worker;
        store.insert(*data, limits, now, &[key(name)], b"ctx", &headers)
    };
    insert(&mut worker, 0, "stream", 500);
    for n in 0..20_000 {
        let ticket = insert(&mut worker, n, "call", 1).ticket;
        worker.end(n, ticket);
    }
    let [in_flight, ended, headers, _] = worker.store.table.queue_lengths();
    assert!(in_flight < 1100 && ended == 0 && headers < 1100);
    assert_eq!(worker.store.size().0, 1);
    assert_eq!(worker.contexts(20_000, "stream"), [b"ctx"]);
    // Its headers are the oldest still.
    let large = insert(&mut worker, 20_000, "large", 9_700);
    assert_eq!((large.evicted, large.headers_evicted), (0, 1));
    let length = |name: &str| {
        let found = worker.find(20_000, name).remove(0);
        let headers = worker.store.headers(&data, &found);
        headers.map(|headers| headers.len())
    };
    assert_eq!(["stream", "large"].map(length), [None, Some(9_700)]);
}

#[test]
fn memory_does_not_grow() {
    let data = InMemory::default();
    let limits = Limits {
        entries: 50_000,
        bytes: 1 << 24,
        bucket_bytes: 1 << 16,
        grace_ms: 100,
        past_ms: 0,
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
        at_second.push(worker.store.table.capacity());
    }
    let mean = |seconds: &[usize]| seconds.iter().sum::<usize>() / seconds.len();
    let (early, late) = (mean(&at_second[20..60]), mean(&at_second[360..]));
    assert!(late < early + early / 50, "{early} {late}");
}
