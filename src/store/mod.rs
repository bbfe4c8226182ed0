//! What is remembered between the inbound request and the outbound calls.
//!
//! Envoy's shared data is a process-wide map from key to bytes under one
//! mutex, with a compare-and-swap number for each key, and nothing in it can
//! be deleted; reading a value costs three times what writing one does, since
//! the host enters the module again to allocate. So the store is a hash table
//! for each worker, of a fixed set of keys ([`BUCKETS`]), which that worker
//! alone writes and keeps a copy of:
//!
//! - To remember or to end a request is one write for each of its keys, and no read.
//! - A look-up reads the worker's own copy, and of every other worker the one
//!   bucket that the key falls into (most are empty, which is cheap to read).
//!   Which workers there are is known from a list of them; an empty value
//!   beside it, whose number changes with the list, says whether it is current.
//! - A look-up compares the full key: a bucket that is shared, or used again,
//!   cannot hand one request the entry of another.
//! - A request's context is small, and stored under each of its keys. Its copied headers
//!   may be large, and are stored once: the entries say where.
//! - An entry lives as long as its request, and then for the grace of the filter that
//!   remembered it ([`Limits::grace_ms`]).
//! - A worker remembers at most [`Limits::entries`] and [`Limits::bytes`]. Beyond
//!   that what has ended goes first, then the oldest headers, then the oldest requests.
//!   That a request still being served went stays known until it has been served
//!   ([`Candidates::complete`]), so that another one with its key is not taken for it.
//! - A key may be found out later to be of a request: [`Store::alias`].
//!
//! A worker is a VM here: of one `vm_id`, Envoy has one on each worker thread.
//!
//! | module | what it knows |
//! |---|---|
//! | `shared_data` | what Envoy offers, and the names in it |
//! | `record` | what a bucket holds, in bytes |
//! | `limits` | how much is remembered, and for how long |
//! | `workers` | who else there is |
//! | `table` | one worker's own table |
//! | this one | look-ups in the tables of all |

mod limits;
mod record;
mod shared_data;
mod table;
#[cfg(test)]
mod tests;
mod workers;

pub use limits::Limits;
pub use record::BUCKETS;
#[cfg(not(target_arch = "wasm32"))]
pub use shared_data::InMemory;
pub(crate) use shared_data::PREFIX;
pub use shared_data::{NotSet, SharedData};
pub use table::{Inserted, KEYS_MOST, Ticket};
pub use workers::WorkerOf;

use crate::bytes;
use crate::key::Key;
use record::{Alias, Entry, Record, Records};
pub(crate) use shared_data::IF_MISSING;
use shared_data::{SEED, bucket_name};
use table::{New, Shared, Table};
use workers::Workers;

/// Requests that the aliases of one key are looked up for.
const ALIASED_MOST: usize = 4;
/// Numbers of requests are less.
const IDS: u64 = 1 << 48;

/// Which request an entry is of: the worker's number, and the request's there.
pub type RequestOf = (u16, u64);

/// How a request was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MatchedBy {
    /// It came with the key.
    Own,
    /// The key was found out to be of it ([`Store::alias`]).
    Alias,
    /// The same, by a guess.
    Guess,
}

/// A request that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The same for the entries of one request under its several keys.
    pub request: RequestOf,
    /// Where one of its entries is, for [`Store::fetch`] and [`Store::alias`].
    pub bucket: u16,
    /// What was remembered, but for the headers.
    pub context: Vec<u8>,
    /// When the request began, in milliseconds since the epoch.
    pub started_ms: u64,
    /// The request has been answered, less than the grace ago.
    pub ended: bool,
    /// How it was found.
    pub under: MatchedBy,
    /// The bucket of its headers.
    home: Option<u16>,
    /// The headers, where they were beside the entry.
    headers: Option<Vec<u8>>,
}

impl Found {
    fn of(worker: u16, bucket: u16, entry: &Entry<'_>, under: MatchedBy) -> Self {
        Self {
            request: (worker, entry.id),
            bucket,
            context: entry.context.to_vec(),
            started_ms: entry.started_ms,
            ended: entry.expires_ms.is_some(),
            under,
            home: entry.home,
            headers: None,
        }
    }
}

/// The requests that a key may stand for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Candidates {
    /// Those that are known, each once.
    pub found: Vec<Found>,
    /// There is no other one that is being served, as far as is known: none had to go for
    /// lack of room, or could not be written or read.
    pub complete: bool,
}

/// One worker's table, and what it knows of the others.
#[derive(Debug)]
pub struct Store {
    workers: Workers,
    table: Table,
    next_id: u64,
}

impl Store {
    /// Opens the table of a worker. `random` is a number that no other worker
    /// of the process has; the first is the seed of the hash.
    pub fn open(data: &impl SharedData, random: u64) -> Self {
        let proposed = random.to_le_bytes();
        let seed = match data.set(SEED, &proposed, IF_MISSING) {
            Ok(()) => proposed,
            Err(NotSet) => data
                .get(SEED)
                .and_then(|(seed, _)| seed.try_into().ok())
                .unwrap_or_default(),
        };
        Self {
            workers: Workers::new(random),
            table: Table::new(u64::from_le_bytes(seed)),
            // Not from 0 on: a worker that had the number before may be remembered.
            next_id: bytes::fnv1a(0, &proposed) % IDS,
        }
    }

    /// Remembers a request under each of `keys` (up to [`KEYS_MOST`]): `context` (small)
    /// under each, `headers` once; both up to 64 KiB.
    pub fn insert(
        &mut self,
        data: &impl SharedData,
        limits: Limits,
        now_ms: u64,
        keys: &[Key],
        context: &[u8],
        headers: &[u8],
    ) -> Inserted {
        let number = self.join(data, now_ms);
        let id = self.next_id;
        self.next_id = (id + 1) % IDS;
        let new = New {
            id,
            keys,
            context,
            headers,
        };
        let to = Shared { data, number };
        self.table.insert(&to, limits, now_ms, new)
    }

    /// The request has been served: what is remembered of it ends after the
    /// grace. Nothing happens if it is gone already. False if the shared data
    /// could not be written; that is tried again with each [`Store::tick`].
    pub fn end(
        &mut self,
        data: &impl SharedData,
        limits: Limits,
        now_ms: u64,
        ticket: Ticket,
    ) -> bool {
        let number = self.workers.number;
        let to = Shared { data, number };
        self.table.end(&to, limits, now_ms, &ticket)
    }

    /// Remembers that `key` is of a request (its number, and where it has an entry:
    /// [`Found::bucket`], [`Ticket::bucket`]), or that this was `guessed`, so that later
    /// calls with the key are found on any worker. Holds for a minute, unless it is said
    /// again, and no longer than the request.
    ///
    /// False if the shared data could not be written.
    pub fn alias(
        &mut self,
        data: &impl SharedData,
        limits: Limits,
        now_ms: u64,
        key: &Key,
        (request, bucket): (RequestOf, u16),
        guessed: bool,
    ) -> bool {
        let number = self.join(data, now_ms);
        let alias = Alias {
            serial: 0,
            expires_ms: 0,
            request,
            bucket,
            guessed,
            key: key.as_bytes(),
        };
        let to = Shared { data, number };
        number.is_some() && self.table.alias(&to, limits, now_ms, alias)
    }

    /// This worker's number, which it gets if it has none.
    pub fn join(&mut self, data: &impl SharedData, now_ms: u64) -> Option<u16> {
        if self.workers.number.is_none() {
            let number = self.workers.register(data, now_ms);
            // What it knows to be missing.
            self.table.publish_stale(&Shared { data, number });
        }
        self.workers.number
    }

    /// Tells this worker from one that had its number before.
    pub fn nonce(&self) -> u64 {
        self.workers.nonce
    }

    /// The seed of hashes of what requests hold.
    pub fn seed(&self) -> u64 {
        self.table.seed()
    }

    /// All workers that have a number, this one included.
    pub fn workers(&mut self, data: &impl SharedData, now_ms: u64) -> Vec<WorkerOf> {
        self.workers.follow(data, || now_ms);
        let own = self.workers.number.map(|number| (number, self.nonce()));
        let others = self.workers.others.iter().copied();
        own.into_iter().chain(others).collect()
    }

    /// A request that is still being served, by one of its buckets ([`Ticket::bucket`]).
    pub fn fetch(
        &self,
        data: &impl SharedData,
        (worker, id): RequestOf,
        bucket: u16,
    ) -> Option<Found> {
        self.read(data, worker, bucket, |bytes| {
            let mut entries = Records::new(bytes).entries();
            let served = entries.find(|entry| entry.id == id && entry.expires_ms.is_none());
            served.map(|entry| Found::of(worker, bucket, &entry, MatchedBy::Own))
        })?
    }

    /// The headers of a request that was found; none if it has none. `None` if they had
    /// to go for lack of room, or the request is gone.
    pub fn headers(&self, data: &impl SharedData, found: &Found) -> Option<Vec<u8>> {
        let Some(home) = found.home else {
            return Some(Vec::new());
        };
        if found.headers.is_some() {
            return found.headers.clone();
        }
        let (worker, id) = found.request;
        self.read(data, worker, home, |bytes| {
            Records::new(bytes).find_map(|record| match record {
                Record::Headers { id: other, headers } if other == id => Some(headers.to_vec()),
                _ => None,
            })
        })?
    }

    /// Every request under `key` that has not expired. The time is asked for only
    /// where it matters.
    ///
    /// With `all`, no worker is left out that has remembered anything; without,
    /// one that was new within the last ten seconds may be.
    pub fn find(
        &mut self,
        data: &impl SharedData,
        now_ms: impl Fn() -> u64,
        key: &Key,
        all: bool,
    ) -> Candidates {
        if all {
            self.workers.follow(data, &now_ms);
        }
        let (bucket, hash) = self.table.place(key.as_bytes());
        let mut look = Look {
            key: key.as_bytes(),
            bucket,
            hash,
            now_ms: &now_ms,
            candidates: Candidates {
                found: Vec::new(),
                complete: self.workers.all_known,
            },
            aliases: Vec::new(),
        };
        // Without a number it has nothing but what is missing.
        let own = self.workers.number.unwrap_or_default();
        look.at(own, self.table.bucket(bucket));
        let own_aliases = look.aliases.len();
        for (worker, _) in &self.workers.others {
            if let Some((bytes, _)) = data.get(&bucket_name(*worker, bucket)) {
                look.at(*worker, &bytes);
            }
        }
        let Look {
            mut candidates,
            aliases,
            ..
        } = look;
        let mut asked: Vec<RequestOf> = Vec::new();
        for (n, alias) in aliases.into_iter().enumerate() {
            let known = |found: &Found| found.request == alias.request;
            if asked.contains(&alias.request) || candidates.found.iter().any(known) {
                continue;
            }
            if asked.len() >= ALIASED_MOST {
                candidates.complete = false;
                break;
            }
            let (worker, _) = alias.request;
            let own = self.workers.number == Some(worker);
            if !own && !self.workers.others.iter().any(|other| other.0 == worker) {
                continue;
            }
            asked.push(alias.request);
            match self.resolve(data, &now_ms, &alias) {
                Resolved::Found(found) => candidates.found.push(found),
                Resolved::Missing => candidates.complete = false,
                Resolved::Gone if n < own_aliases => self.table.unalias(bucket, alias.serial),
                Resolved::Gone => {}
            }
        }
        candidates
    }

    /// The request that an alias is of, if it is still there.
    fn resolve(
        &self,
        data: &impl SharedData,
        now_ms: impl Fn() -> u64,
        alias: &AliasOf,
    ) -> Resolved {
        let (worker, id) = alias.request;
        let resolved = self.read(data, worker, alias.bucket, |bytes| {
            let mut records = Records::new(bytes);
            let mut missing = false;
            for record in records.by_ref() {
                match record {
                    Record::Entry(entry) if entry.id == id => {
                        return match entry.expires_ms.is_some_and(|at| now_ms() >= at) {
                            true => Resolved::Gone,
                            false => {
                                let under = match alias.guessed {
                                    true => MatchedBy::Guess,
                                    false => MatchedBy::Alias,
                                };
                                let found = Found::of(worker, alias.bucket, &entry, under);
                                Resolved::Found(found)
                            }
                        };
                    }
                    Record::Missing { id: other, .. } => missing |= other == id,
                    // Perhaps this one.
                    Record::Missed(_) => missing = true,
                    _ => {}
                }
            }
            match missing || !records.whole() {
                true => Resolved::Missing,
                false => Resolved::Gone,
            }
        });
        resolved.unwrap_or(Resolved::Gone)
    }

    /// A bucket of any worker; `None` if it was never written.
    fn read<T>(
        &self,
        data: &impl SharedData,
        worker: u16,
        bucket: u16,
        read: impl FnOnce(&[u8]) -> T,
    ) -> Option<T> {
        if self.workers.number == Some(worker) {
            return Some(read(self.table.bucket(bucket)));
        }
        let (bytes, _) = data.get(&bucket_name(worker, bucket))?;
        Some(read(&bytes))
    }

    /// To be called every second or so: forgets what has expired, and says that
    /// this worker is alive.
    pub fn tick(&mut self, data: &impl SharedData, now_ms: u64) {
        let number = self.workers.number;
        self.table.tick(&Shared { data, number }, now_ms);
        if !self.workers.tick(data, now_ms) {
            self.table.abandon();
        }
    }

    /// Entries, and their bytes with those of the headers.
    pub fn size(&self) -> (usize, usize) {
        let (entries, bytes, _) = self.table.size();
        (entries, bytes)
    }
}

/// An alias that was found.
struct AliasOf {
    serial: u64,
    request: RequestOf,
    bucket: u16,
    guessed: bool,
}

/// What has become of the request of an alias.
enum Resolved {
    Found(Found),
    /// It is being served, and not known any more.
    Missing,
    Gone,
}

/// A look-up under way.
struct Look<'a, N> {
    key: &'a [u8],
    bucket: u16,
    hash: u64,
    now_ms: N,
    candidates: Candidates,
    aliases: Vec<AliasOf>,
}

impl<N: Fn() -> u64> Look<'_, N> {
    /// Looks at a worker's bucket.
    fn at(&mut self, worker: u16, bytes: &[u8]) {
        let Candidates { found, complete } = &mut self.candidates;
        let mut records = Records::new(bytes);
        // A clock that is set back makes nothing expire.
        let expired = |at: u64| (self.now_ms)() >= at;
        for record in records.by_ref() {
            match record {
                Record::Entry(entry) => {
                    if entry.key == self.key && !entry.expires_ms.is_some_and(expired) {
                        found.push(Found::of(worker, self.bucket, &entry, MatchedBy::Own));
                    }
                }
                // They are behind their entry.
                Record::Headers { id, headers } => {
                    let last = found.last_mut();
                    if let Some(last) = last.filter(|last| last.request == (worker, id)) {
                        last.headers = Some(headers.to_vec());
                    }
                }
                Record::Missing { hash, .. } => *complete &= hash != self.hash,
                Record::Missed(_) => *complete = false,
                Record::Alias(alias) => {
                    if alias.key == self.key && !expired(alias.expires_ms) {
                        self.aliases.push(AliasOf {
                            serial: alias.serial,
                            request: alias.request,
                            bucket: alias.bucket,
                            guessed: alias.guessed,
                        });
                    }
                }
            }
        }
        *complete &= records.whole();
    }
}
