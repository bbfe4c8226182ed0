//! Tests of the store, by concern, and what they have in common.

mod aliases;
mod headers;
mod lifetime;
mod properties;
mod room;
mod tombstones;
mod workers;

use super::key::Key;
use super::shared_data::{WORKERS, bucket_name};
use super::*;

const LIMITS: Limits = Limits {
    entries: 4,
    bytes: 100_000,
    bucket_bytes: 100_000,
    grace_ms: 100,
    past_ms: 0,
};

const MANY: Limits = Limits {
    entries: 10_000,
    ..LIMITS
};

/// Room for one entry, and no more.
const ONE: Limits = Limits { entries: 1, ..MANY };

fn key(text: &str) -> Key {
    Key::request_id(text.as_bytes()).unwrap()
}

/// Among the requests of all workers.
fn find(store: &mut Store, data: &impl SharedData, now: u64, key: &Key) -> Candidates {
    store.refresh(data, || now);
    store.find(data, &|| now, key)
}

/// A worker and the shared data.
struct Worker<'a> {
    store: Store,
    data: &'a InMemory,
    limits: Limits,
}

impl<'a> Worker<'a> {
    fn new(data: &'a InMemory, random: u64, limits: Limits) -> Self {
        Self {
            store: Store::open(data, random),
            data,
            limits,
        }
    }

    fn insert(&mut self, now: u64, name: &str, context: &[u8]) -> Inserted {
        let inserted = self
            .store
            .insert(self.data, self.limits, now, &[key(name)], context, &[]);
        assert!(inserted.stored);
        inserted
    }

    fn end(&mut self, now: u64, ticket: Ticket) {
        assert!(self.store.end(self.data, self.limits, now, ticket));
    }

    fn find(&mut self, now: u64, name: &str) -> Vec<Found> {
        self.candidates(now, name).found
    }

    fn candidates(&mut self, now: u64, name: &str) -> Candidates {
        find(&mut self.store, self.data, now, &key(name))
    }

    fn contexts(&mut self, now: u64, name: &str) -> Vec<Vec<u8>> {
        let found = self.find(now, name);
        found.into_iter().map(|found| found.context).collect()
    }

    fn tick(&mut self, now: u64) {
        self.store.tick(self.data, now);
    }
}

/// Counts what is read and written.
#[derive(Default)]
struct Counting {
    data: InMemory,
    reads: std::cell::Cell<usize>,
    writes: std::cell::Cell<usize>,
    /// The buckets cannot be written.
    refuses: std::cell::Cell<bool>,
}

impl SharedData for Counting {
    fn get(&self, key: &[u8]) -> Option<(Vec<u8>, u32)> {
        self.reads.set(self.reads.get() + 1);
        self.data.get(key)
    }

    fn set(&self, key: &[u8], value: &[u8], cas: u32) -> Result<(), NotSet> {
        self.writes.set(self.writes.get() + 1);
        match self.refuses.get() && key.len() == bucket_name(0, 0).len() {
            true => Err(NotSet),
            false => self.data.set(key, value, cas),
        }
    }
}

impl Counting {
    /// Reads and writes since the last time.
    fn counts(&self) -> (usize, usize) {
        (self.reads.take(), self.writes.take())
    }
}

/// Two workers with a request each, "a" and "b": of the first nothing is heard from then
/// on, the second ticks for almost a minute.
fn one_is_gone(data: &InMemory) -> (Worker<'_>, Worker<'_>) {
    let mut gone = Worker::new(data, 1, MANY);
    let mut here = Worker::new(data, 2, MANY);
    gone.insert(0, "a", b"old");
    here.insert(0, "b", b"ctx");
    for now in (0..60_000).step_by(1000) {
        here.tick(now);
    }
    (gone, here)
}
