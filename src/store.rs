//! What is remembered between the inbound request and the outbound calls.
//!
//! Envoy's shared data is a process-wide map from key to bytes under one
//! mutex, with a compare-and-swap number for each key, and nothing in it can
//! be deleted. So the store is a hash table of a fixed set of keys
//! ([`BUCKETS`]): a bucket holds every entry whose look-up key hashes to it,
//! each with its full key, and is rewritten as a whole by compare-and-swap.
//!
//! - A look-up compares the full key: a bucket that is shared, or used again,
//!   cannot hand one request the entry of another.
//! - An entry lives as long as its request, and [`Limits::grace_ms`] longer.
//!   It is dropped when its bucket is next written; until then look-ups pass
//!   it over.
//! - A bucket holds at most [`Limits::per_bucket`] entries. When it is full, the
//!   entry that ended first goes, or else the oldest, and that is counted.

use crate::request_id::Key;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Buckets of the table. It does not depend on the configuration, so that an
/// inbound and an outbound filter with different settings still meet.
pub const BUCKETS: u16 = 1024;
/// Keys in shared data begin with this: plugins without a VM ID share one
/// namespace. The number changes with the encoding of a bucket.
const PREFIX: &str = "b3relay/1/";
/// Tries to swap a bucket before giving up. Each failure means that another
/// worker wrote this very bucket in between.
const TRIES: u32 = 32;

/// Envoy's shared data (`proxy_get_shared_data`, `proxy_set_shared_data`).
pub trait SharedData {
    /// The value and its CAS number; `None` if the key was never set.
    fn get(&self, key: &str) -> Option<(Vec<u8>, u32)>;
    /// Sets the value if the key's CAS number is `cas`, or if the key was
    /// never set. (Envoy takes 0 for "unconditionally"; this store never
    /// uses it.)
    fn set(&self, key: &str, value: &[u8], cas: u32) -> Result<(), CasMismatch>;
}

/// The value was changed by somebody else (or the host refused).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CasMismatch;

/// Sets only a key that was never set: Envoy ignores the CAS number of a
/// missing key, and numbers keys from 1 upwards.
const IF_MISSING: u32 = u32::MAX;

/// How much is remembered, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Entries in a bucket, at most.
    pub per_bucket: usize,
    /// Milliseconds that an entry outlives its request.
    pub grace_ms: u64,
}

impl Limits {
    /// For `capacity` requests in flight. Requests fall into buckets at
    /// random, so a bucket must hold more than the average: with the mean m of
    /// a Poisson distribution, m + 6 √m + 6 is exceeded by less than one
    /// bucket in 10^6.
    pub fn for_capacity(capacity: u32, grace_ms: u64) -> Self {
        let mean = f64::from(capacity) / f64::from(BUCKETS);
        Self {
            per_bucket: (mean + 6.0 * mean.sqrt() + 6.0).ceil() as usize,
            grace_ms,
        }
    }
}

/// Names an entry, so that it can be ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    bucket: u16,
    id: u64,
}

/// What became of an insertion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inserted {
    /// Names the new entry.
    pub ticket: Ticket,
    /// Entries of requests still being served that had to go.
    pub evicted: usize,
}

/// An entry that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// What was remembered.
    pub payload: Vec<u8>,
    /// When the request began, in milliseconds since the epoch.
    pub started_ms: u64,
    /// The request has been answered, less than the grace ago.
    pub ended: bool,
}

/// The table. Its state is all in shared data; this holds the limits and the
/// seed of the hash.
#[derive(Clone, Debug)]
pub struct Store {
    limits: Limits,
    seed: u64,
}

impl Store {
    /// Opens the table, or begins it: the seed is chosen by whoever comes
    /// first, so that nobody outside can choose request IDs that all fall into
    /// one bucket. `random` is the seed to propose.
    pub fn open(data: &impl SharedData, limits: Limits, random: u64) -> Self {
        let key = format!("{PREFIX}seed");
        let proposed = random.to_le_bytes();
        let seed = match data.set(&key, &proposed, IF_MISSING) {
            Ok(()) => proposed,
            Err(CasMismatch) => (0..TRIES)
                .find_map(|_| data.get(&key))
                .and_then(|(seed, _)| seed.try_into().ok())
                .unwrap_or_default(),
        };
        Self {
            limits,
            seed: u64::from_le_bytes(seed),
        }
    }

    /// Remembers `payload` (up to 64 KiB) under `key`. `id` must be unique in
    /// the process. `None` if other workers kept changing the bucket.
    pub fn insert(
        &self,
        data: &impl SharedData,
        now_ms: u64,
        key: &Key,
        id: u64,
        payload: &[u8],
    ) -> Option<Inserted> {
        let bucket = self.bucket(key);
        let entry = Entry {
            id,
            started_ms: now_ms,
            ended_ms: None,
            key: key.as_bytes(),
            payload,
        };
        let mut evicted = 0;
        self.update(data, bucket, Some(entry), |entries| {
            entries.retain(|old| !self.expired(old, now_ms));
            evicted = 0;
            while entries.len() >= self.limits.per_bucket {
                let Some(victim) = victim(entries) else {
                    break;
                };
                let gone = entries.remove(victim);
                evicted += usize::from(gone.ended_ms.is_none());
            }
        })
        .then_some(Inserted {
            ticket: Ticket { bucket, id },
            evicted,
        })
    }

    /// The request has been served: its entry ends after the grace. Nothing
    /// happens if it is gone already. False if other workers kept changing the
    /// bucket.
    pub fn end(&self, data: &impl SharedData, now_ms: u64, ticket: Ticket) -> bool {
        self.update(data, ticket.bucket, None, |entries| {
            for entry in entries.iter_mut().filter(|entry| entry.id == ticket.id) {
                entry.ended_ms.get_or_insert(now_ms);
            }
            entries.retain(|entry| !self.expired(entry, now_ms));
        })
    }

    /// Every entry under `key` that has not expired, oldest first.
    pub fn find(&self, data: &impl SharedData, now_ms: u64, key: &Key) -> Vec<Found> {
        let Some((bytes, _)) = data.get(&name(self.bucket(key))) else {
            return Vec::new();
        };
        Entries(&bytes)
            .filter(|entry| entry.key == key.as_bytes() && !self.expired(entry, now_ms))
            .map(|entry| Found {
                payload: entry.payload.to_vec(),
                started_ms: entry.started_ms,
                ended: entry.ended_ms.is_some(),
            })
            .collect()
    }

    fn update(
        &self,
        data: &impl SharedData,
        bucket: u16,
        added: Option<Entry<'_>>,
        mut change: impl FnMut(&mut Vec<Entry<'_>>),
    ) -> bool {
        let name = name(bucket);
        for _ in 0..TRIES {
            let (old, cas) = data.get(&name).unwrap_or((Vec::new(), IF_MISSING));
            let mut entries = Entries(&old).collect();
            change(&mut entries);
            let mut new = Vec::with_capacity(old.len() + 256);
            for entry in entries.iter().chain(&added) {
                entry.write(&mut new);
            }
            if data.set(&name, &new, cas).is_ok() {
                return true;
            }
        }
        false
    }

    fn expired(&self, entry: &Entry<'_>, now_ms: u64) -> bool {
        // Saturating: the clock of the machine may be set back.
        entry
            .ended_ms
            .is_some_and(|ended| now_ms.saturating_sub(ended) >= self.limits.grace_ms)
    }

    /// FNV-1a over the seed and the key, folded to the number of buckets.
    fn bucket(&self, key: &Key) -> u16 {
        let bytes = self.seed.to_le_bytes().into_iter();
        let hash = bytes
            .chain(key.as_bytes().iter().copied())
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
            });
        let folded = hash ^ (hash >> 32) ^ (hash >> 16);
        (folded % u64::from(BUCKETS)) as u16
    }
}

/// Who has to go: what ended first, or else what is oldest.
fn victim(entries: &[Entry<'_>]) -> Option<usize> {
    let age = |entry: &Entry<'_>| match entry.ended_ms {
        Some(ended) => (0, ended),
        None => (1, entry.started_ms),
    };
    let oldest = entries
        .iter()
        .enumerate()
        .min_by_key(|(_, entry)| age(entry));
    oldest.map(|(index, _)| index)
}

fn name(bucket: u16) -> String {
    format!("{PREFIX}{bucket}")
}

/// One entry of a bucket. Encoded as: id u64, started u64, ended u64 (0 while
/// being served), key length u8, key, payload length u16, payload; integers
/// little-endian.
#[derive(Clone, Copy, Debug)]
struct Entry<'a> {
    id: u64,
    started_ms: u64,
    ended_ms: Option<u64>,
    key: &'a [u8],
    payload: &'a [u8],
}

impl Entry<'_> {
    fn write(&self, to: &mut Vec<u8>) {
        let (Ok(key), Ok(payload)) = (
            u8::try_from(self.key.len()),
            u16::try_from(self.payload.len()),
        ) else {
            return;
        };
        to.extend_from_slice(&self.id.to_le_bytes());
        to.extend_from_slice(&self.started_ms.to_le_bytes());
        let ended = self.ended_ms.map_or(0, |ended| ended.max(1));
        to.extend_from_slice(&ended.to_le_bytes());
        to.push(key);
        to.extend_from_slice(self.key);
        to.extend_from_slice(&payload.to_le_bytes());
        to.extend_from_slice(self.payload);
    }
}

/// The entries of a bucket. Ends at what cannot be read.
struct Entries<'a>(&'a [u8]);

impl<'a> Entries<'a> {
    fn number(&mut self) -> Option<u64> {
        let (number, rest) = self.0.split_first_chunk::<8>()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*number))
    }

    fn bytes(&mut self, length: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(bytes)
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = Entry<'a>;

    fn next(&mut self) -> Option<Entry<'a>> {
        let (id, started_ms, ended) = (self.number()?, self.number()?, self.number()?);
        let (length, rest) = self.0.split_first()?;
        self.0 = rest;
        let key = self.bytes(usize::from(*length))?;
        let (length, rest) = self.0.split_first_chunk::<2>()?;
        self.0 = rest;
        let payload = self.bytes(usize::from(u16::from_le_bytes(*length)))?;
        Some(Entry {
            id,
            started_ms,
            ended_ms: (ended != 0).then_some(ended),
            key,
            payload,
        })
    }
}

/// Shared data in memory, with Envoy's rules: for tests and for hosts other
/// than Envoy.
#[derive(Debug, Default)]
pub struct InMemory(Mutex<Memory>);

#[derive(Debug, Default)]
struct Memory {
    values: HashMap<String, (Vec<u8>, u32)>,
    last_cas: u32,
}

impl InMemory {
    /// Keys, and bytes of all values.
    pub fn size(&self) -> (usize, usize) {
        let memory = self.lock();
        let bytes = memory.values.values().map(|(value, _)| value.len());
        (memory.values.len(), bytes.sum())
    }

    fn lock(&self) -> MutexGuard<'_, Memory> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SharedData for InMemory {
    fn get(&self, key: &str) -> Option<(Vec<u8>, u32)> {
        self.lock().values.get(key).cloned()
    }

    fn set(&self, key: &str, value: &[u8], cas: u32) -> Result<(), CasMismatch> {
        let mut memory = self.lock();
        match memory.values.get(key) {
            Some((_, current)) if cas != 0 && *current != cas => return Err(CasMismatch),
            _ => {}
        }
        memory.last_cas = memory.last_cas.wrapping_add(1).max(1);
        let new = (value.to_vec(), memory.last_cas);
        memory.values.insert(key.to_string(), new);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: Limits = Limits {
        per_bucket: 4,
        grace_ms: 100,
    };

    fn key(text: &str) -> Key {
        Key::new(text.as_bytes()).unwrap()
    }

    fn payloads(store: &Store, data: &InMemory, now: u64, name: &str) -> Vec<Vec<u8>> {
        let found = store.find(data, now, &key(name));
        found.into_iter().map(|found| found.payload).collect()
    }

    #[test]
    fn an_entry_lives_with_its_request_and_the_grace() {
        let data = InMemory::default();
        let store = Store::open(&data, LIMITS, 7);
        let ticket = store.insert(&data, 0, &key("a"), 1, b"ctx").unwrap().ticket;
        assert_eq!(payloads(&store, &data, 1_000_000_000, "a"), [b"ctx"]);
        assert!(store.end(&data, 1_000_000_000, ticket));
        assert!(store.find(&data, 1_000_000_099, &key("a"))[0].ended);
        assert_eq!(payloads(&store, &data, 1_000_000_100, "a"), [b""; 0]);
        // The clock is set back: nothing is lost by it.
        assert_eq!(payloads(&store, &data, 5, "a"), [b"ctx"]);
    }

    #[test]
    fn without_grace_an_entry_is_gone_at_once() {
        let data = InMemory::default();
        let limits = Limits {
            grace_ms: 0,
            ..LIMITS
        };
        let store = Store::open(&data, limits, 7);
        let ticket = store.insert(&data, 5, &key("a"), 1, b"ctx").unwrap().ticket;
        store.end(&data, 5, ticket);
        assert_eq!(payloads(&store, &data, 5, "a"), [b""; 0]);
        assert_eq!(data.size().1, 8, "only the seed is left");
    }

    #[test]
    fn ending_twice_or_after_eviction_does_nothing() {
        let data = InMemory::default();
        let store = Store::open(&data, LIMITS, 7);
        let first = store.insert(&data, 0, &key("a"), 1, b"1").unwrap().ticket;
        store.insert(&data, 1, &key("a"), 2, b"2").unwrap();
        store.end(&data, 2, first);
        store.end(&data, 500, first);
        store.end(&data, 600, first);
        assert_eq!(payloads(&store, &data, 600, "a"), [b"2"]);
    }

    #[test]
    fn a_full_bucket_gives_up_ended_entries_first() {
        let data = InMemory::default();
        let store = Store::open(&data, LIMITS, 7);
        let mut tickets = Vec::new();
        for id in 0..4u8 {
            tickets.push(
                store
                    .insert(&data, u64::from(id), &key("a"), id.into(), &[id])
                    .unwrap()
                    .ticket,
            );
        }
        store.end(&data, 10, tickets[2]);
        assert_eq!(
            store.insert(&data, 11, &key("a"), 4, &[4]).unwrap().evicted,
            0
        );
        assert_eq!(payloads(&store, &data, 11, "a"), [[0], [1], [3], [4]]);
        assert_eq!(
            store.insert(&data, 12, &key("a"), 5, &[5]).unwrap().evicted,
            1
        );
        assert_eq!(payloads(&store, &data, 12, "a"), [[1], [3], [4], [5]]);
    }

    #[test]
    fn the_first_to_open_chooses_the_seed() {
        let data = InMemory::default();
        let first = Store::open(&data, LIMITS, 7);
        let second = Store::open(&data, LIMITS, 8);
        assert_eq!(first.seed, second.seed);
        first.insert(&data, 0, &key("a"), 1, b"ctx").unwrap();
        assert_eq!(payloads(&second, &data, 0, "a"), [b"ctx"]);
    }

    #[test]
    fn buckets_overflow_less_than_once_in_a_million_at_capacity() {
        for capacity in [64u32, 1024, 4096, 16384, 65536] {
            let limit = Limits::for_capacity(capacity, 0).per_bucket;
            let mean = f64::from(capacity) / f64::from(BUCKETS);
            let (mut term, mut below) = ((-mean).exp(), 0.0);
            for k in 0..=limit {
                below += term;
                term *= mean / (k as f64 + 1.0);
            }
            assert!(1.0 - below < 1e-6, "{capacity}: {limit} {}", 1.0 - below);
        }
    }

    #[test]
    fn requests_spread_over_the_buckets() {
        let store = Store {
            limits: LIMITS,
            seed: 99,
        };
        let mut count = HashMap::new();
        for i in 0..65536u32 {
            let mut random = [0; 16];
            random[..4].copy_from_slice(&i.to_be_bytes());
            let id = crate::request_id::generate(random);
            *count
                .entry(store.bucket(&Key::new(&id).unwrap()))
                .or_insert(0) += 1;
        }
        let (low, high) = (count.values().min().unwrap(), count.values().max().unwrap());
        assert!(
            count.len() == usize::from(BUCKETS) && *low > 24 && *high < 124,
            "{low} {high}"
        );
    }

    #[test]
    fn workers_that_write_one_bucket_lose_nothing() {
        let data = InMemory::default();
        let limits = Limits {
            per_bucket: 4000,
            grace_ms: 0,
        };
        let store = Store::open(&data, limits, 7);
        std::thread::scope(|scope| {
            for worker in 0..4u64 {
                let (store, data) = (&store, &data);
                scope.spawn(move || {
                    for n in 0..100u64 {
                        let id = worker * 1000 + n;
                        let ticket = loop {
                            if let Some(done) =
                                store.insert(data, 0, &key("same"), id, &id.to_le_bytes())
                            {
                                break done.ticket;
                            }
                        };
                        if n % 2 == 0 {
                            while !store.end(data, 1, ticket) {}
                        }
                    }
                });
            }
        });
        assert_eq!(payloads(&store, &data, 2, "same").len(), 200);
    }

    proptest! {
        /// Against a plain map: with room enough, nothing is lost, mixed up or kept too long.
        #[test]
        fn behaves_as_a_map(steps in proptest::collection::vec((0u8..12, any::<bool>(), 0u64..60), 1..200)) {
            let data = InMemory::default();
            let limits = Limits { per_bucket: 300, grace_ms: 100 };
            let store = Store::open(&data, limits, 7);
            let mut model: Vec<(u8, u64, Option<u64>, Ticket)> = Vec::new();
            let mut now = 1;
            for (id, (name, end, wait)) in steps.into_iter().enumerate() {
                now += wait;
                if end {
                    if let Some(entry) = model.iter_mut().find(|e| e.0 == name && e.2.is_none()) {
                        store.end(&data, now, entry.3);
                        entry.2 = Some(now);
                    }
                } else {
                    let id = id as u64;
                    let done = store.insert(&data, now, &key(&name.to_string()), id, &id.to_le_bytes()).unwrap();
                    prop_assert_eq!(done.evicted, 0);
                    model.push((name, id, None, done.ticket));
                }
                for name in 0..12u8 {
                    let expected: Vec<Vec<u8>> = model.iter()
                        .filter(|e| e.0 == name && e.2.is_none_or(|ended| now - ended < 100))
                        .map(|e| e.1.to_le_bytes().to_vec())
                        .collect();
                    prop_assert_eq!(payloads(&store, &data, now, &name.to_string()), expected);
                }
            }
        }

        #[test]
        fn any_bytes_in_a_bucket_are_survived(bytes: Vec<u8>) {
            let data = InMemory::default();
            let store = Store::open(&data, LIMITS, 7);
            data.set(&name(store.bucket(&key("a"))), &bytes, IF_MISSING).unwrap();
            store.find(&data, 0, &key("a"));
            let done = store.insert(&data, u64::MAX, &key("a"), u64::MAX, b"ctx").unwrap();
            prop_assert!(payloads(&store, &data, u64::MAX, "a").contains(&b"ctx".to_vec()));
            store.end(&data, u64::MAX, done.ticket);
        }

        #[test]
        fn memory_is_bounded(keys in proptest::collection::vec("[a-z0-9-]{1,40}", 1..400)) {
            let data = InMemory::default();
            let limits = Limits { per_bucket: 1, grace_ms: 0 };
            let store = Store::open(&data, limits, 7);
            for (id, text) in keys.iter().enumerate() {
                store.insert(&data, 0, &key(text), id as u64, &[0; 50]).unwrap();
            }
            let (keys, bytes) = data.size();
            prop_assert!(keys <= usize::from(BUCKETS) + 1 && bytes <= (keys - 1) * (27 + 40 + 50) + 8);
        }
    }
}
