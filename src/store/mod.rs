//! What is stored between an inbound request and the outbound calls of the application.
//!
//! Envoy's shared data is a map from key to bytes that all workers of the process have in
//! common, under one mutex. No key in it can be deleted, and to read a value costs three
//! times as much as to write one, since the host enters the module again to allocate
//! memory. So the store is one hash table for each worker. A table has a fixed number of
//! buckets ([`BUCKETS`]), each under a key of its own. Only its worker writes it, and the
//! worker has a copy of it:
//!
//! - To store or to end a request takes one write for each of its keys, and no read.
//! - A look-up reads the worker's own copy, and of every other worker one bucket (most
//!   buckets are empty, which is cheap to read).
//! - A list in shared data says which workers there are. An empty value beside it, whose
//!   number changes with the list, says whether the list has changed.
//! - A request has an entry under each of its keys, with its context, which is small. Its
//!   copied headers may be large, and are stored once, in its headers bucket.
//! - An entry lives as long as its request is in flight, and then for the grace of the
//!   filter that stored it ([`Limits::grace_ms`]). After that it is known for a while that
//!   there was the request ([`Limits::past_ms`]).
//! - A worker stores at most [`Limits::entries`] and [`Limits::bytes`]. Beyond that it
//!   evicts: first what has ended, then the oldest headers, then the oldest requests. A
//!   request in flight that is evicted leaves a tombstone, so that another request with
//!   the same key is not taken for it ([`Candidates::complete`]).
//! - A request may get further keys later: [`Store::alias`].
//!
//! A worker is a VM here: of one `vm_id`, Envoy has one on each worker thread.
//!
//! | module | what it knows |
//! |---|---|
//! | `shared_data` | what Envoy offers, and the names of the keys in it |
//! | [`key`] | what a request is looked up by |
//! | `record` | the records of a bucket, and how they are encoded |
//! | `limits` | how much is stored, and for how long |
//! | `workers` | which workers there are |
//! | `table` | one worker's own table |
//! | `lookup` | look-ups in the tables of all workers |
//! | this one | the store: a worker's table, and the other workers |

pub mod key;
mod limits;
mod lookup;
mod record;
mod shared_data;
mod table;
#[cfg(test)]
mod tests;
mod workers;

pub use limits::Limits;
pub use lookup::{Candidates, Found, MatchedBy};
pub use record::BUCKETS;
#[cfg(not(target_arch = "wasm32"))]
pub use shared_data::InMemory;
pub(crate) use shared_data::{IF_MISSING, PREFIX, name as shared_data_name, unseal};
pub use shared_data::{NotSet, SharedData, seal};
pub use table::{Inserted, KEYS_MOST, NewRequest, Ticket};
pub use workers::WorkerId;

use crate::bytes;
use key::Key;
use record::Alias;
use shared_data::SEED;
use table::{Destination, Table};
use workers::Workers;

/// The numbers of requests are less than this.
pub(crate) const IDS: u64 = 1 << 48;

/// A request: the number of its worker, and its own number there.
pub type RequestRef = (u16, u64);

/// One worker's table, and which other workers there are.
#[derive(Debug)]
pub struct Store {
    workers: Workers,
    table: Table,
    next_id: u64,
}

impl Store {
    /// Opens the table of a worker. `random` is a number that no other worker
    /// of the process has; the first worker's is the seed of the hash.
    pub fn open(data: &impl SharedData, random: u64) -> Self {
        let proposed = random.to_le_bytes();
        let seed = match data.set(&SEED, &proposed, IF_MISSING) {
            Ok(()) => proposed,
            Err(NotSet) => data
                .get(&SEED)
                .and_then(|(seed, _)| seed.try_into().ok())
                .unwrap_or_default(),
        };
        Self {
            workers: Workers::new(random),
            table: Table::new(u64::from_le_bytes(seed)),
            // Not from 0: requests of an earlier worker with the same number may still be
            // referred to.
            next_id: bytes::fnv1a(0, &proposed) % IDS,
        }
    }

    /// Stores a request under each of `keys` (up to [`KEYS_MOST`]): `context` (small)
    /// under each, `headers` once; both up to 65,535 bytes.
    pub fn insert(
        &mut self,
        data: &impl SharedData,
        limits: Limits,
        now_ms: u64,
        keys: &[Key],
        context: &[u8],
        headers: &[u8],
    ) -> Inserted {
        let new = NewRequest {
            keys,
            context,
            headers,
            ..NewRequest::default()
        };
        self.insert_new(data, limits, now_ms, new)
    }

    /// The same, of one that may have further keys.
    pub fn insert_new(
        &mut self,
        data: &impl SharedData,
        limits: Limits,
        now_ms: u64,
        new: NewRequest<'_>,
    ) -> Inserted {
        let worker = self.join(data, now_ms);
        let id = self.next_id;
        self.next_id = (id + 1) % IDS;
        let to = Destination { data, worker };
        self.table.insert(&to, limits, now_ms, id, new)
    }

    /// The request has been answered: its entries expire after the grace. Does nothing if
    /// they are gone already. False if shared data could not be written; each
    /// [`Store::tick`] tries that again.
    pub fn end(
        &mut self,
        data: &impl SharedData,
        limits: Limits,
        now_ms: u64,
        ticket: Ticket,
    ) -> bool {
        let worker = self.workers.number;
        let to = Destination { data, worker };
        self.table.end(&to, limits, now_ms, &ticket)
    }

    /// Gives a request (and a bucket that has an entry of it: [`Found::bucket`],
    /// [`Ticket::bucket`]) a further key, so that later calls with the key are found on
    /// any worker. `guessed` says that this is a guess. Valid for a minute, unless it is
    /// added again, and no longer than the request.
    ///
    /// False if shared data could not be written.
    pub fn alias(
        &mut self,
        data: &impl SharedData,
        limits: Limits,
        now_ms: u64,
        key: &Key,
        (request, bucket): (RequestRef, u16),
        guessed: bool,
    ) -> bool {
        let worker = self.join(data, now_ms);
        let alias = Alias {
            serial: 0,
            expires_ms: 0,
            request,
            bucket,
            guessed,
            key: key.as_bytes(),
        };
        let to = Destination { data, worker };
        worker.is_some() && self.table.add_alias(&to, limits, now_ms, alias)
    }

    /// This worker's number. The worker gets one if it has none.
    pub fn join(&mut self, data: &impl SharedData, now_ms: u64) -> Option<u16> {
        if self.workers.number.is_none() {
            let worker = self.workers.register(data, now_ms);
            // Its tombstones.
            self.table.publish_all(&Destination { data, worker });
        }
        self.workers.number
    }

    /// Tells this worker from another one that has the same number earlier or later.
    pub fn nonce(&self) -> u64 {
        self.workers.nonce
    }

    /// The seed of hashes of what requests contain.
    pub fn seed(&self) -> u64 {
        self.table.seed()
    }

    /// Reads the list of workers, if it has changed. `now_ms` is called only then. Returns
    /// whether it has changed.
    pub fn refresh(&mut self, data: &impl SharedData, now_ms: impl FnOnce() -> u64) -> bool {
        self.workers.refresh(data, now_ms)
    }

    /// All workers that have a number, this one included.
    pub fn workers(&mut self, data: &impl SharedData, now_ms: u64) -> Vec<WorkerId> {
        self.refresh(data, || now_ms);
        self.known_workers()
    }

    /// The same, as of the last time that the list was read: that of the last tick, at least.
    pub fn known_workers(&self) -> Vec<WorkerId> {
        let own = self.workers.number.map(|number| (number, self.nonce()));
        let others = self.workers.others.iter().copied();
        own.into_iter().chain(others).collect()
    }

    /// As far as is known [`Store::known_workers`] are all that there are. False for a while
    /// after somebody else spoiled the list.
    pub fn knows_all_workers(&self) -> bool {
        self.workers.all_known
    }

    /// To be called every second or so: removes what has expired, and tells the other
    /// workers that this one is alive.
    pub fn tick(&mut self, data: &impl SharedData, now_ms: u64) {
        if !self.workers.tick(data, now_ms) {
            self.table.clear();
        }
        // Not into the table of another worker, which may have got this one's number.
        let worker = self.workers.number;
        self.table.tick(&Destination { data, worker }, now_ms);
    }

    /// The number of entries, and their bytes with those of the headers.
    pub fn size(&self) -> (usize, usize) {
        let (entries, bytes, _) = self.table.size();
        (entries, bytes)
    }
}
