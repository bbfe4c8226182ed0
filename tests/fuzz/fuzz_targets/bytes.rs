//! Raw bytes where the host or another plugin could hand b3relay anything: a
//! header map, a configuration, a remembered entry, a bucket of the store.
#![no_main]

use b3relay::b3::{Single, SpanId, TraceId};
use b3relay::config::Config;
use b3relay::headers::Pairs;
use b3relay::relay::StoredContext;
use b3relay::store::key::Key;
use b3relay::store::{InMemory, Limits, SharedData, Store, seal};
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

    let (context, headers) = input.split_at(input.len().min(80) / 2);
    for (context, headers) in [(input, &[][..]), (&[0, 0, 0], input), (context, headers)] {
        if let Some(remembered) = StoredContext::decode(context, headers) {
            assert_eq!(again(&remembered), Some(remembered));
        }
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
        past_ms: 0,
    };
    let keys = [&b"key"[..], b"other"].map(Key::request_id);
    let [Some(key), Some(other)] = keys else {
        return;
    };
    let _ = here.insert(&data, limits, 1, from_ref(&key), b"first", b"a");
    let (at, value) = input.split_first().unwrap_or((&0, &[]));
    let mut value = value.to_vec();
    if *at >= 128 {
        seal(&mut value);
    }
    let keys = data.keys();
    if let Some(name) = keys.get(usize::from(*at) % keys.len()) {
        let _ = data.set(name, &value, 0);
    }
    there.refresh(&data, || 2);
    for found in there.find(&data, &|| 2, &key).found {
        let _ = there.headers(&data, &found);
        there.alias(
            &data,
            limits,
            2,
            &other,
            (found.request, found.bucket),
            true,
        );
    }
    let inserted = here.insert(&data, limits, 2, from_ref(&key), b"second", b"b");
    here.refresh(&data, || 2);
    let found = here.find(&data, &|| 2, &key).found;
    let second = found.iter().find(|found| found.context == b"second");
    assert_eq!(second.is_some(), inserted.stored);
    if let Some(second) = second {
        assert_eq!(here.headers(&data, second).as_deref(), Some(&b"b"[..]));
    }
    here.refresh(&data, || 2);
    let _ = here.find(&data, &|| 2, &other);
    here.end(&data, limits, 3, inserted.ticket);
    here.tick(&data, 20_000);
});

fn again(remembered: &StoredContext) -> Option<StoredContext> {
    let (context, headers) = (remembered.encode_context(), remembered.encode_headers());
    StoredContext::decode(&context, &headers)
}
