//! Raw bytes where the host or another plugin could hand b3relay anything: a
//! header map, a configuration, a remembered entry, a bucket of the store.
#![no_main]

use b3relay::b3::{Single, SpanId, TraceId};
use b3relay::config::Config;
use b3relay::header::Pairs;
use b3relay::key::Key;
use b3relay::relay::Remembered;
use b3relay::store::{InMemory, Limits, SharedData, Store};
use b3relay::w3c::TraceParent;
use libfuzzer_sys::fuzz_target;
use std::slice::from_ref;

fuzz_target!(|input: &[u8]| {
    let pairs: Vec<_> = Pairs::new(input).collect();
    assert!(
        pairs
            .iter()
            .map(|(name, value)| name.len() + value.len())
            .sum::<usize>()
            <= input.len()
    );

    if let Err(error) = Config::parse(input) {
        assert!(!error.to_string().contains(|c: char| c.is_control()));
    }

    if let Some(remembered) = Remembered::decode(input) {
        assert_eq!(Remembered::decode(&remembered.encode()), Some(remembered));
    }

    let _ = (
        TraceId::read(input),
        SpanId::read(input),
        Single::split(input),
        TraceParent::read(input),
    );

    // Whatever is in shared data, the next entry is found again.
    let data = InMemory::default();
    let mut here = Store::open(&data, 1);
    let mut there = Store::open(&data, 2);
    let limits = Limits {
        entries: 4,
        bytes: 4096,
        bucket_bytes: 4096,
        grace_ms: 0,
    };
    let Some(key) = Key::request_id(b"key") else {
        return;
    };
    let _ = here.insert(&data, limits, 1, from_ref(&key), b"first");
    let (at, value) = input.split_first().unwrap_or((&0, &[]));
    let keys = data.keys();
    if let Some(name) = keys.get(usize::from(*at) % keys.len()) {
        let _ = data.set(name, value, 0);
    }
    let _ = there.find(&data, limits, || 2, &key, true);
    let ticket = here
        .insert(&data, limits, 2, from_ref(&key), b"second")
        .map(|inserted| inserted.ticket);
    let found = here.find(&data, limits, || 2, &key, true);
    assert!(found.iter().any(|found| found.payload == b"second"));
    if let Some(ticket) = ticket {
        here.end(&data, limits, 3, ticket);
    }
    here.tick(&data, 20_000);
});
