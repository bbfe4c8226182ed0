//! Copied headers: stored once, found under each key.

use super::*;

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
        find(worker, &data, 0, &key("0"));
    }
    data.counts();
    let large = vec![b'x'; 8192];
    here.insert(&data, MANY, 0, &keys, b"ctx", &large);
    // One write for each key, and no read.
    assert_eq!(data.counts(), (0, 4));
    let (entries, bytes) = here.size();
    assert!(entries == 5 && bytes < 8192 + 5 * 64, "{bytes}");
    for (n, key) in keys.iter().enumerate() {
        let own = here.find(&data, &|| 0, key).found;
        assert_eq!(data.counts().0, 1);
        assert_eq!(here.headers(&data, &own[0]).as_ref(), Some(&large));
        assert_eq!(data.counts().0, 0);
        let other = there.find(&data, &|| 0, key).found;
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
    assert_eq!(worker.store.headers(&data, found), Some(vec![]));
    assert_eq!(worker.store.size().1, 33 + 2 + 3);
}

#[test]
fn headers_that_are_gone_are_not_those_of_another() {
    let data = InMemory::default();
    let [mut here, mut there] = [7, 8].map(|n| Worker::new(&data, n, LIMITS));
    let keys = ["a", "b"].map(key);
    let done = here.store.insert(&data, LIMITS, 0, &keys, b"1", b"one");
    let before = [here.find(0, "b"), there.find(0, "b")];
    here.end(0, done.ticket);
    here.tick(100);
    here.store.insert(&data, LIMITS, 100, &keys, b"2", b"two");
    for (worker, found) in [&here, &there].into_iter().zip(&before) {
        assert_eq!(worker.store.headers(&data, &found[0]), None);
    }
}
