//! Raw bytes where the host or another plugin could hand b3relay anything: a
//! header map, a configuration, a remembered entry, a bucket of the store.
#![no_main]

use b3relay::b3::{Single, SpanId, TraceId};
use b3relay::config::Config;
use b3relay::header::Pairs;
use b3relay::relay::Remembered;
use b3relay::request_id::Key;
use b3relay::store::{InMemory, Limits, SharedData, Store};
use b3relay::w3c::TraceParent;
use libfuzzer_sys::fuzz_target;
use std::sync::OnceLock;

/// The one that the key falls into.
static BUCKET: OnceLock<String> = OnceLock::new();

fuzz_target!(|input: &[u8]| {
    let pairs: Vec<_> = Pairs::new(input).collect();
    assert!(pairs.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>() <= input.len());

    if let Err(error) = Config::parse(input) {
        assert!(!error.to_string().contains(|c: char| c.is_control()));
    }

    if let Some(remembered) = Remembered::decode(input) {
        assert_eq!(Remembered::decode(&remembered.encode()), Some(remembered));
    }

    let _ = (TraceId::read(input), SpanId::read(input), Single::split(input), TraceParent::read(input));

    // Whatever is in a bucket, the next entry is found again.
    let data = InMemory::default();
    let store = Store::open(&data, Limits { per_bucket: 4, grace_ms: 0 }, 7);
    let Some(key) = Key::new(b"key") else { return };
    let _ = store.insert(&data, 1, &key, 1, b"first");
    let bucket = BUCKET.get_or_init(|| {
        let names = (0..b3relay::store::BUCKETS).map(|n| format!("b3relay/1/{n}"));
        let mut written = names.filter(|name| data.get(name).is_some());
        written.next().unwrap_or_default()
    });
    if let Some((_, cas)) = data.get(bucket) {
        let _ = data.set(bucket, input, cas);
    }
    let ticket = store.insert(&data, 2, &key, 2, b"second").map(|inserted| inserted.ticket);
    assert!(store.find(&data, 2, &key).iter().any(|found| found.payload == b"second"));
    if let Some(ticket) = ticket {
        store.end(&data, 3, ticket);
    }
});
