//! What is remembered between the inbound request and the outbound calls.
//!
//! Envoy's shared data is a process-wide map from key to bytes under one
//! mutex, with a compare-and-swap number for each key, and nothing in it can
//! be deleted; reading a value costs three times what writing one does, since
//! the host enters the module again to allocate. So the store is a hash table
//! for each worker, of a fixed set of keys ([`BUCKETS`]), which that worker
//! alone writes and keeps a copy of:
//!
//! - To remember or to end a request is one write, and no read.
//! - A look-up reads the worker's own copy, and of every other worker the one
//!   bucket that the key falls into (most are empty, which is cheap to read).
//!   Which workers there are is known from a list of them; an empty value
//!   beside it, whose number changes with the list, says whether it is current.
//! - A look-up compares the full key: a bucket that is shared, or used again,
//!   cannot hand one request the entry of another.
//! - An entry lives as long as its request, and [`Limits::grace_ms`] longer.
//! - A worker remembers at most [`Limits::entries`] and [`Limits::bytes`]. Beyond
//!   that the entry that ended first goes, or else the oldest, and that is counted.
//!
//! A worker is a VM here: of one `vm_id`, Envoy has one on each worker thread.

use crate::bytes::{self, split, take};
use crate::key::Key;
use alloc::collections::VecDeque;
use alloc::vec;
use alloc::vec::Vec;

/// Buckets of each worker's table.
pub const BUCKETS: u16 = 1024;
/// Keys in shared data begin with this: plugins without a VM ID share one
/// namespace. The number changes with the encoding.
pub(crate) const PREFIX: &[u8] = b"b3relay/2/";
/// The seed of the hash, chosen by whoever comes first, so that nobody outside
/// can choose request IDs that all fall into one bucket.
const SEED: &[u8] = b"b3relay/2/seed";
/// The workers that have ever remembered anything and are alive.
const WORKERS: &[u8] = b"b3relay/2/workers";
/// Always empty. Its CAS number changes whenever the list of workers does.
const CHANGED: &[u8] = b"b3relay/2/changed";
/// Tries to change the list of workers before giving up. Each failure means
/// that another worker changed it in between.
const TRIES: u32 = 32;
/// More workers than that are not remembered: a look-up asks each.
const WORKERS_MOST: usize = 512;
/// How often a worker says that it is alive, in milliseconds.
const BEAT_MS: u64 = 10_000;
/// A worker that has not done so for so long is gone, with what it remembered.
const DEAD_MS: u64 = 60_000;
/// Bytes of a bucket that are not worth giving back.
const SPARE: usize = 64;
/// Keys that one request may be remembered under.
pub const KEYS_MOST: usize = 4;

/// Envoy's shared data (`proxy_get_shared_data`, `proxy_set_shared_data`).
pub trait SharedData {
    /// The value and its CAS number; `None` if the key was never set.
    fn get(&self, key: &[u8]) -> Option<(Vec<u8>, u32)>;
    /// Sets the value if `cas` is 0, if the key's CAS number is `cas`, or if the
    /// key was never set.
    fn set(&self, key: &[u8], value: &[u8], cas: u32) -> Result<(), NotSet>;
}

/// The value was changed by somebody else, or the host refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotSet;

/// Sets only a key that was never set: Envoy ignores the CAS number of a
/// missing key, and numbers keys from 1 upwards.
pub(crate) const IF_MISSING: u32 = u32::MAX;
/// Sets whatever is there: no other worker writes this key.
const ALWAYS: u32 = 0;

/// How much a worker remembers, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Entries; a request has one for each key that it is remembered under.
    pub entries: usize,
    /// Bytes of all entries.
    pub bytes: usize,
    /// Bytes of the entries in one bucket: many requests under one key must not
    /// make each of them dear.
    pub bucket_bytes: usize,
    /// Milliseconds that an entry outlives its request.
    pub grace_ms: u64,
}

impl Limits {
    /// For `capacity` requests in flight, each under up to `keys` keys and with
    /// 1 KiB to spare for each.
    pub fn for_capacity(capacity: u32, keys: usize, grace_ms: u64) -> Self {
        let capacity = capacity as usize;
        Self {
            entries: capacity * keys.max(1),
            bytes: capacity * 1024,
            // Four times the average, and room for one entry of the largest.
            bucket_bytes: 4 * capacity * 1024 / usize::from(BUCKETS) + 16_384,
            grace_ms,
        }
    }
}

/// Names what was remembered of a request, so that it can be ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    id: u64,
    buckets: [Option<u16>; KEYS_MOST],
}

impl Ticket {
    /// The request's number in its worker.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Where one of its entries is.
    pub fn bucket(&self) -> Option<u16> {
        self.buckets.into_iter().flatten().next()
    }
}

/// What became of an insertion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inserted {
    /// Names the new entries.
    pub ticket: Ticket,
    /// Requests still being served that had to go.
    pub evicted: usize,
}

/// Which request an entry is of: the worker's number, and the request's there.
pub type RequestOf = (u16, u64);

/// A worker: its number, and what tells it from others that have the number before
/// or after it.
pub type WorkerOf = (u16, u64);

/// An entry that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The same for the entries of one request under its several keys.
    pub request: RequestOf,
    /// What was remembered.
    pub payload: Vec<u8>,
    /// When the request began, in milliseconds since the epoch.
    pub started_ms: u64,
    /// The request has been answered, less than the grace ago.
    pub ended: bool,
}

/// One worker's table, and what it knows of the others.
#[derive(Debug)]
pub struct Store {
    seed: u64,
    /// Tells this worker from one that takes its number over.
    nonce: u64,
    /// From the first insertion on.
    number: Option<u16>,
    beat_ms: u64,
    /// Who was alive then is so until the next beat: after a pause of the whole machine,
    /// or a leap of its clock, everybody looks dead until he has said that he is not.
    known_ms: u64,
    others: Vec<WorkerOf>,
    /// The CAS number of [`CHANGED`] when `others` was read.
    version: Option<u32>,
    next_id: u64,
    /// As they are in shared data, but for what is `stale`.
    buckets: Vec<Vec<u8>>,
    /// By bucket: holds less than what is in shared data.
    stale: Vec<bool>,
    entries: usize,
    bytes: usize,
    /// Every entry being served, oldest first, among others that have ended.
    started: VecDeque<(u16, u64)>,
    /// Every entry that has ended, with the time when it expires.
    ended: VecDeque<(u16, u64, u64)>,
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
            seed: u64::from_le_bytes(seed),
            nonce: random,
            number: None,
            beat_ms: 0,
            known_ms: u64::MAX,
            others: Vec::new(),
            version: None,
            next_id: 0,
            buckets: vec![Vec::new(); usize::from(BUCKETS)],
            stale: vec![false; usize::from(BUCKETS)],
            entries: 0,
            bytes: 0,
            started: VecDeque::new(),
            ended: VecDeque::new(),
        }
    }

    /// Remembers `payload` (up to 64 KiB) under each of `keys` (up to
    /// [`KEYS_MOST`]). `None` if the shared data could not be written.
    pub fn insert(
        &mut self,
        data: &impl SharedData,
        limits: Limits,
        now_ms: u64,
        keys: &[Key],
        payload: &[u8],
    ) -> Option<Inserted> {
        if payload.len() > usize::from(u16::MAX) {
            return None;
        }
        let number = self.join(data, now_ms)?;
        let id = self.next_id;
        self.next_id = id.wrapping_add(1);
        let mut ticket = Ticket {
            id,
            buckets: [None; KEYS_MOST],
        };
        let (mut evicted, mut failed) = (0, false);
        for (key, place) in keys.iter().zip(&mut ticket.buckets) {
            let entry = Entry {
                id,
                started_ms: now_ms,
                ended_ms: None,
                key: key.as_bytes(),
                payload,
            };
            let room = Limits {
                entries: limits.entries.saturating_sub(1),
                bytes: limits.bytes.saturating_sub(entry.length()),
                ..limits
            };
            evicted += self.shrink(data, number, room);
            let at = self.bucket(key);
            evicted += self.shrink_bucket(at, limits.bucket_bytes.saturating_sub(entry.length()));
            let bucket = self.buckets.get_mut(usize::from(at))?;
            entry.write(bucket);
            self.entries += 1;
            self.bytes += entry.length();
            self.started.push_back((at, id));
            *place = Some(at);
            failed |= self.publish(data, number, at).is_err();
        }
        if failed {
            for at in ticket.buckets.into_iter().flatten() {
                self.remove(at, id);
                self.mark(at);
            }
            return None;
        }
        if self.started.len() > 2 * self.entries + 1024 {
            let mut started = core::mem::take(&mut self.started);
            started.retain(|(bucket, id)| self.is_served(*bucket, *id));
            self.started = started;
        }
        Some(Inserted { ticket, evicted })
    }

    /// The request has been served: what is remembered of it ends after the
    /// grace. Nothing happens if it is gone already. False if the shared data
    /// could not be written.
    pub fn end(
        &mut self,
        data: &impl SharedData,
        limits: Limits,
        now_ms: u64,
        ticket: Ticket,
    ) -> bool {
        let Some(number) = self.number else {
            return true;
        };
        let mut written = true;
        for at in ticket.buckets.into_iter().flatten() {
            let Some(bucket) = self.buckets.get_mut(usize::from(at)) else {
                continue;
            };
            if !end_entry(bucket, ticket.id, now_ms) {
                continue;
            }
            let expires = now_ms.saturating_add(limits.grace_ms);
            self.ended.push_back((at, ticket.id, expires));
            if limits.grace_ms == 0 {
                self.ended.pop_back();
                self.remove(at, ticket.id);
            }
            written &= self.publish(data, number, at).is_ok();
        }
        while let Some((bucket, id)) = self.started.front() {
            if self.is_served(*bucket, *id) {
                break;
            }
            self.started.pop_front();
        }
        written
    }

    /// This worker's number, which it gets if it has none.
    pub fn join(&mut self, data: &impl SharedData, now_ms: u64) -> Option<u16> {
        match self.number {
            Some(number) => Some(number),
            None => self.register(data, now_ms),
        }
    }

    /// Tells this worker from one that had its number before.
    pub fn nonce(&self) -> u64 {
        self.nonce
    }

    /// The seed of hashes of what requests hold.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// All workers that have a number, this one included.
    pub fn workers(&mut self, data: &impl SharedData, now_ms: u64) -> Vec<WorkerOf> {
        self.follow_workers(data, || now_ms);
        let own = self.number.map(|number| (number, self.nonce));
        own.into_iter().chain(self.others.iter().copied()).collect()
    }

    fn follow_workers(&mut self, data: &impl SharedData, now_ms: impl FnOnce() -> u64) {
        let version = data.get(CHANGED).map(|(_, version)| version);
        if version != self.version {
            self.version = version;
            self.read_workers(data, now_ms());
        }
    }

    /// What was remembered of a request that is still being served, by one of its
    /// buckets ([`Ticket::bucket`]).
    pub fn fetch(
        &self,
        data: &impl SharedData,
        (worker, id): RequestOf,
        bucket: u16,
    ) -> Option<Vec<u8>> {
        let entry = |bytes: &[u8]| {
            let mut entries = Entries(bytes);
            entries
                .find(|entry| entry.id == id && entry.ended_ms.is_none())
                .map(|entry| entry.payload.to_vec())
        };
        if self.number == Some(worker) {
            return entry(self.buckets.get(usize::from(bucket))?);
        }
        entry(&data.get(&name(worker, bucket))?.0)
    }

    /// Every entry under `key` that has not expired. The time is asked for only
    /// where it matters.
    ///
    /// With `all`, no worker is left out that has remembered anything; without,
    /// one that was new within the last ten seconds may be.
    pub fn find(
        &mut self,
        data: &impl SharedData,
        limits: Limits,
        now_ms: impl Fn() -> u64,
        key: &Key,
        all: bool,
    ) -> Vec<Found> {
        if all {
            self.follow_workers(data, &now_ms);
        }
        let mut found = Vec::new();
        let bucket = self.bucket(key);
        let mut look = |worker: u16, bytes: &[u8]| {
            found.extend(
                Entries(bytes)
                    .filter(|entry| {
                        // Saturating: the clock of the machine may be set back.
                        let expired = |ended| now_ms().saturating_sub(ended) >= limits.grace_ms;
                        entry.key == key.as_bytes() && !entry.ended_ms.is_some_and(expired)
                    })
                    .map(|entry| Found {
                        request: (worker, entry.id),
                        payload: entry.payload.to_vec(),
                        started_ms: entry.started_ms,
                        ended: entry.ended_ms.is_some(),
                    }),
            );
        };
        if let (Some(own), Some(number)) = (self.buckets.get(usize::from(bucket)), self.number) {
            look(number, own);
        }
        for (worker, _) in &self.others {
            if let Some((bytes, _)) = data.get(&name(*worker, bucket)) {
                look(*worker, &bytes);
            }
        }
        found
    }

    /// To be called every second or so: forgets what has expired, and says that
    /// this worker is alive.
    pub fn tick(&mut self, data: &impl SharedData, now_ms: u64) {
        while let Some((bucket, id, expires)) = self.ended.front().copied() {
            if expires > now_ms {
                break;
            }
            self.ended.pop_front();
            self.remove(bucket, id);
            self.mark(bucket);
        }
        if let Some(number) = self.number {
            for bucket in 0..BUCKETS {
                let stale = self.stale.get(usize::from(bucket));
                if stale == Some(&true) {
                    self.trim(bucket);
                    let _ = self.publish(data, number, bucket);
                }
            }
        }
        let since = now_ms.abs_diff(self.beat_ms);
        if since >= BEAT_MS {
            let leapt = since >= DEAD_MS / 2;
            self.known_ms = if leapt { self.beat_ms } else { now_ms };
            self.beat_ms = now_ms;
            self.beat(data, now_ms);
            self.read_workers(data, now_ms);
        }
    }

    /// Entries, and their bytes.
    pub fn size(&self) -> (usize, usize) {
        (self.entries, self.bytes)
    }

    /// Makes room. Returns how many requests still being served went.
    fn shrink(&mut self, data: &impl SharedData, number: u16, limits: Limits) -> usize {
        let mut evicted = 0;
        while self.entries > limits.entries || self.bytes > limits.bytes {
            if let Some((bucket, id, _)) = self.ended.pop_front() {
                self.remove(bucket, id);
                // It expires by itself in shared data.
                self.mark(bucket);
            } else if let Some((bucket, id)) = self.started.pop_front() {
                if self.is_served(bucket, id) {
                    self.remove(bucket, id);
                    let _ = self.publish(data, number, bucket);
                    evicted += 1;
                    // The same request under its other keys.
                    while let Some((bucket, _)) = self.started.front().filter(|next| next.1 == id) {
                        let bucket = *bucket;
                        self.started.pop_front();
                        self.remove(bucket, id);
                        let _ = self.publish(data, number, bucket);
                    }
                }
            } else {
                break;
            }
        }
        evicted
    }

    /// Makes room in one bucket, as [`Store::shrink`] does in all.
    fn shrink_bucket(&mut self, at: u16, most: usize) -> usize {
        let mut evicted = 0;
        while let Some(bucket) = self.buckets.get(usize::from(at)) {
            if bucket.len() <= most {
                break;
            }
            let ended = Entries(bucket).find(|entry| entry.ended_ms.is_some());
            let Some(victim) = ended.or_else(|| Entries(bucket).next()) else {
                break;
            };
            let (id, served) = (victim.id, victim.ended_ms.is_none());
            self.remove(at, id);
            evicted += usize::from(served);
        }
        evicted
    }

    /// Gives back what a bucket once needed. Or else each would keep room for the
    /// most that it ever held, and memory would grow for hours.
    fn trim(&mut self, bucket: u16) {
        if let Some(bucket) = self.buckets.get_mut(usize::from(bucket)) {
            let enough = 2 * bucket.len().max(SPARE);
            if bucket.capacity() > 2 * enough {
                bucket.shrink_to(enough);
            }
        }
    }

    fn mark(&mut self, bucket: u16) {
        if let Some(stale) = self.stale.get_mut(usize::from(bucket)) {
            *stale = true;
        }
    }

    fn is_served(&self, bucket: u16, id: u64) -> bool {
        let bucket = self.buckets.get(usize::from(bucket));
        let mut entries = Entries(bucket.map(Vec::as_slice).unwrap_or_default());
        entries.any(|entry| entry.id == id && entry.ended_ms.is_none())
    }

    /// Removes an entry from the copy.
    fn remove(&mut self, at: u16, id: u64) {
        let Some(bucket) = self.buckets.get_mut(usize::from(at)) else {
            return;
        };
        let mut start = 0;
        for entry in Entries(bucket) {
            let length = entry.length();
            if entry.id == id {
                bucket.drain(start..start + length);
                self.entries -= 1;
                self.bytes -= length;
                return;
            }
            start += length;
        }
    }

    fn publish(&mut self, data: &impl SharedData, number: u16, bucket: u16) -> Result<(), NotSet> {
        let at = usize::from(bucket);
        let bytes = self.buckets.get(at).ok_or(NotSet)?;
        data.set(&name(number, bucket), bytes, ALWAYS)?;
        if let Some(stale) = self.stale.get_mut(at) {
            *stale = false;
        }
        Ok(())
    }

    /// FNV-1a over the seed and the key, folded to the number of buckets.
    fn bucket(&self, key: &Key) -> u16 {
        let hash = bytes::fnv1a(self.seed, key.as_bytes());
        let folded = hash ^ (hash >> 32) ^ (hash >> 16);
        (folded % u64::from(BUCKETS)) as u16
    }

    /// Takes a number that no living worker has.
    fn register(&mut self, data: &impl SharedData, now_ms: u64) -> Option<u16> {
        for _ in 0..TRIES {
            let (list, cas) = data.get(WORKERS).unwrap_or((Vec::new(), IF_MISSING));
            let mut workers: Vec<Worker> = Worker::read(&list).collect();
            workers.retain(|worker| {
                worker.is_alive([now_ms, self.known_ms]) && worker.nonce != self.nonce
            });
            if workers.len() >= WORKERS_MOST {
                return None;
            }
            let free = |number: &u16| !workers.iter().any(|worker| worker.number == *number);
            let number = (0..u16::MAX).find(free)?;
            workers.push(Worker {
                number,
                nonce: self.nonce,
                beat_ms: now_ms,
            });
            if data.set(WORKERS, &Worker::write(&workers), cas).is_err() {
                continue;
            }
            // What a worker left that had the number before and is gone.
            for bucket in 0..BUCKETS {
                let name = name(number, bucket);
                if data.get(&name).is_some_and(|(bytes, _)| !bytes.is_empty()) {
                    let _ = data.set(&name, &[], ALWAYS);
                }
            }
            self.number = Some(number);
            self.beat_ms = now_ms;
            // From now on every look-up reads this worker's buckets.
            data.set(CHANGED, &[], ALWAYS).ok()?;
            return Some(number);
        }
        None
    }

    /// Says that this worker is alive.
    fn beat(&mut self, data: &impl SharedData, now_ms: u64) {
        let Some(number) = self.number else { return };
        for _ in 0..TRIES {
            let Some((list, cas)) = data.get(WORKERS) else {
                return;
            };
            let mut workers: Vec<Worker> = Worker::read(&list).collect();
            let own = workers
                .iter_mut()
                .find(|worker| worker.number == number && worker.nonce == self.nonce);
            let Some(own) = own else {
                // Taken for dead, after a pause of the whole machine: begin anew.
                *self = Self {
                    seed: self.seed,
                    next_id: self.next_id,
                    ..Self::open(data, self.nonce)
                };
                return;
            };
            own.beat_ms = now_ms;
            if data.set(WORKERS, &Worker::write(&workers), cas).is_ok() {
                return;
            }
        }
    }

    fn read_workers(&mut self, data: &impl SharedData, now_ms: u64) {
        let list = data.get(WORKERS).map(|(list, _)| list).unwrap_or_default();
        self.others.clear();
        let times = [now_ms, self.known_ms];
        let others =
            Worker::read(&list).filter(|other| other.nonce != self.nonce && other.is_alive(times));
        self.others
            .extend(others.map(|other| (other.number, other.nonce)));
    }
}

/// One of the list of workers. Encoded as: number u16, nonce u64, time of the
/// last beat u64; integers little-endian.
#[derive(Clone, Copy, Debug)]
struct Worker {
    number: u16,
    nonce: u64,
    beat_ms: u64,
}

impl Worker {
    /// At one of these times.
    fn is_alive(&self, times: [u64; 2]) -> bool {
        let near = |time: u64| time.abs_diff(self.beat_ms) < DEAD_MS;
        times.into_iter().any(near)
    }

    fn read(mut list: &[u8]) -> impl Iterator<Item = Self> + '_ {
        core::iter::from_fn(move || {
            Some(Self {
                number: u16::from_le_bytes(take(&mut list)?),
                nonce: u64::from_le_bytes(take(&mut list)?),
                beat_ms: u64::from_le_bytes(take(&mut list)?),
            })
        })
    }

    fn write(workers: &[Self]) -> Vec<u8> {
        let mut list = Vec::with_capacity(workers.len() * 18);
        for worker in workers {
            list.extend_from_slice(&worker.number.to_le_bytes());
            list.extend_from_slice(&worker.nonce.to_le_bytes());
            list.extend_from_slice(&worker.beat_ms.to_le_bytes());
        }
        list
    }
}

/// The key of a bucket in shared data.
fn name(worker: u16, bucket: u16) -> [u8; 14] {
    let [w, x] = worker.to_be_bytes();
    let [b, c] = bucket.to_be_bytes();
    bytes::name(PREFIX, [w, x, b, c])
}

/// Marks an entry being served as ended, in place.
fn end_entry(bucket: &mut [u8], id: u64, now_ms: u64) -> bool {
    let mut start = 0;
    for entry in Entries(bucket) {
        if entry.id == id && entry.ended_ms.is_none() {
            let ended = start + Entry::ENDED..start + Entry::ENDED + 8;
            if let Some(place) = bucket.get_mut(ended) {
                place.copy_from_slice(&now_ms.max(1).to_le_bytes());
            }
            return true;
        }
        start += entry.length();
    }
    false
}

/// One entry of a bucket. Encoded as: id u64, started u64, ended u64 (0 while
/// being served), key length u16, payload length u16, key, payload; integers
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
    /// Where the end is, in bytes.
    const ENDED: usize = 16;
    const HEAD: usize = 28;

    fn length(&self) -> usize {
        Self::HEAD + self.key.len() + self.payload.len()
    }

    fn write(&self, to: &mut Vec<u8>) {
        let length = |bytes: &[u8]| u16::try_from(bytes.len()).unwrap_or(u16::MAX);
        to.reserve(self.length());
        to.extend_from_slice(&self.id.to_le_bytes());
        to.extend_from_slice(&self.started_ms.to_le_bytes());
        to.extend_from_slice(&self.ended_ms.unwrap_or(0).to_le_bytes());
        to.extend_from_slice(&length(self.key).to_le_bytes());
        to.extend_from_slice(&length(self.payload).to_le_bytes());
        to.extend_from_slice(self.key);
        to.extend_from_slice(self.payload);
    }
}

/// The entries of a bucket. Ends at what cannot be read.
struct Entries<'a>(&'a [u8]);

impl<'a> Iterator for Entries<'a> {
    type Item = Entry<'a>;

    fn next(&mut self) -> Option<Entry<'a>> {
        let rest = &mut self.0;
        let (id, started_ms) = (take(rest)?, take(rest)?);
        let ended: [u8; 8] = take(rest)?;
        let (key, payload) = (take(rest)?, take(rest)?);
        let length = |bytes| usize::from(u16::from_le_bytes(bytes));
        let (key, payload) = (split(rest, length(key))?, split(rest, length(payload))?);
        let ended = u64::from_le_bytes(ended);
        Some(Entry {
            id: u64::from_le_bytes(id),
            started_ms: u64::from_le_bytes(started_ms),
            ended_ms: (ended != 0).then_some(ended),
            key,
            payload,
        })
    }
}

/// Shared data in memory, with Envoy's rules: for tests and for hosts other
/// than Envoy.
#[cfg(not(target_arch = "wasm32"))]
pub use memory::InMemory;

#[cfg(not(target_arch = "wasm32"))]
mod memory {
    use super::{NotSet, SharedData};
    use std::collections::HashMap;
    use std::sync::{Mutex, MutexGuard, PoisonError};

    /// Shared data in memory, with Envoy's rules.
    #[derive(Debug, Default)]
    pub struct InMemory(Mutex<Memory>);

    #[derive(Debug, Default)]
    struct Memory {
        values: HashMap<Vec<u8>, (Vec<u8>, u32)>,
        last_cas: u32,
    }

    impl InMemory {
        /// Keys, and bytes of all values.
        pub fn size(&self) -> (usize, usize) {
            let memory = self.lock();
            let bytes = memory.values.values().map(|(value, _)| value.len());
            (memory.values.len(), bytes.sum())
        }

        /// Every key, sorted.
        pub fn keys(&self) -> Vec<Vec<u8>> {
            let mut keys: Vec<_> = self.lock().values.keys().cloned().collect();
            keys.sort();
            keys
        }

        fn lock(&self) -> MutexGuard<'_, Memory> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner)
        }
    }

    impl SharedData for InMemory {
        fn get(&self, key: &[u8]) -> Option<(Vec<u8>, u32)> {
            self.lock().values.get(key).cloned()
        }

        fn set(&self, key: &[u8], value: &[u8], cas: u32) -> Result<(), NotSet> {
            let mut memory = self.lock();
            match memory.values.get(key) {
                Some((_, current)) if cas != 0 && *current != cas => return Err(NotSet),
                _ => {}
            }
            memory.last_cas = memory.last_cas.wrapping_add(1).max(1);
            let new = (value.to_vec(), memory.last_cas);
            memory.values.insert(key.to_vec(), new);
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    const LIMITS: Limits = Limits {
        entries: 4,
        bytes: 100_000,
        bucket_bytes: 100_000,
        grace_ms: 100,
    };
    const MANY: Limits = Limits {
        entries: 10_000,
        ..LIMITS
    };

    fn key(text: &str) -> Key {
        Key::request_id(text.as_bytes()).unwrap()
    }

    /// A worker and the shared data.
    struct Worker<'a>(Store, &'a InMemory, Limits);

    impl<'a> Worker<'a> {
        fn new(data: &'a InMemory, random: u64, limits: Limits) -> Self {
            Self(Store::open(data, random), data, limits)
        }

        fn insert(&mut self, now: u64, name: &str, payload: &[u8]) -> Inserted {
            self.0
                .insert(self.1, self.2, now, &[key(name)], payload)
                .unwrap()
        }

        fn end(&mut self, now: u64, ticket: Ticket) {
            assert!(self.0.end(self.1, self.2, now, ticket));
        }

        fn find(&mut self, now: u64, name: &str) -> Vec<Found> {
            self.0.find(self.1, self.2, || now, &key(name), true)
        }

        fn payloads(&mut self, now: u64, name: &str) -> Vec<Vec<u8>> {
            let found = self.find(now, name);
            found.into_iter().map(|found| found.payload).collect()
        }

        fn tick(&mut self, now: u64) {
            self.0.tick(self.1, now);
        }
    }

    #[test]
    fn an_entry_lives_with_its_request_and_the_grace() {
        let data = InMemory::default();
        let mut here = Worker::new(&data, 7, LIMITS);
        let mut there = Worker::new(&data, 8, LIMITS);
        let ticket = here.insert(0, "a", b"ctx").ticket;
        for now in [0, 1, 50_000] {
            assert_eq!(here.payloads(now, "a"), [b"ctx"]);
            assert_eq!(there.payloads(now, "a"), [b"ctx"]);
        }
        here.end(50_000, ticket);
        assert!(here.find(50_099, "a")[0].ended && there.find(50_099, "a")[0].ended);
        for worker in [&mut here, &mut there] {
            assert_eq!(worker.payloads(50_100, "a"), [b""; 0]);
            // The clock is set back: nothing is lost by it.
            assert_eq!(worker.payloads(5, "a"), [b"ctx"]);
        }
        here.tick(50_100);
        assert_eq!(here.0.size(), (0, 0));
        assert_eq!(there.payloads(5, "a"), [b""; 0]);
    }

    #[test]
    fn without_grace_an_entry_is_gone_at_once() {
        let data = InMemory::default();
        let limits = Limits {
            grace_ms: 0,
            ..LIMITS
        };
        let mut worker = Worker::new(&data, 7, limits);
        let ticket = worker.insert(5, "a", b"ctx").ticket;
        worker.end(5, ticket);
        assert_eq!(worker.payloads(5, "a"), [b""; 0]);
        assert_eq!(Worker::new(&data, 8, limits).payloads(5, "a"), [b""; 0]);
        assert_eq!(worker.0.size(), (0, 0));
    }

    #[test]
    fn ending_twice_or_after_eviction_does_nothing() {
        let data = InMemory::default();
        let mut worker = Worker::new(&data, 7, LIMITS);
        let first = worker.insert(0, "a", b"1").ticket;
        worker.insert(1, "a", b"2");
        worker.end(2, first);
        worker.end(500, first);
        worker.tick(600);
        worker.end(600, first);
        assert_eq!(worker.payloads(600, "a"), [b"2"]);
        assert_eq!(worker.0.size().0, 1);
    }

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
            assert!(worker.0.size().1 <= 1000);
        }
        assert_eq!((evicted, worker.0.size().0), (46, 4));
        // What alone is too large is remembered all the same, and nothing else.
        worker.insert(50, "big", &[0; 1500]);
        assert_eq!(worker.0.size().0, 1);
        let none = worker
            .0
            .insert(&data, limits, 51, &[key("b")], &[0; 70_000]);
        assert_eq!(none, None);
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
        // 28 bytes of head and 5 of key.
        let live = 1000 / (28 + 5 + 72);
        assert_eq!(worker.find(200, "same").len(), live);
        // What has ended goes first.
        worker.end(200, tickets[195]);
        assert_eq!(worker.insert(201, "same", &[0; 72]).evicted, 0);
        assert_eq!(worker.insert(202, "same", &[0; 72]).evicted, 1);
        for ticket in tickets {
            worker.end(203, ticket);
        }
        worker.tick(400);
        assert_eq!(worker.0.size().0, 2);
    }

    #[test]
    fn a_request_is_evicted_whole_and_counted_once() {
        let data = InMemory::default();
        let mut worker = Worker::new(&data, 7, LIMITS);
        let mut evicted = 0;
        for n in 0..5 {
            let keys = [key(&format!("{n}a")), key(&format!("{n}b"))];
            let done = worker.0.insert(&data, LIMITS, n, &keys, b"ctx").unwrap();
            evicted += done.evicted;
        }
        assert_eq!((evicted, worker.0.size().0), (3, 4));
        assert_eq!(worker.payloads(5, "2b"), [b""; 0]);
        assert_eq!(worker.payloads(5, "3a"), [b"ctx"]);
    }

    #[test]
    fn the_first_to_open_chooses_the_seed() {
        let data = InMemory::default();
        let first = Worker::new(&data, 7, LIMITS);
        let second = Worker::new(&data, 8, LIMITS);
        assert_eq!(first.0.seed, second.0.seed);
    }

    #[test]
    fn requests_spread_over_the_buckets() {
        let store = Store::open(&InMemory::default(), 99);
        let mut count = HashMap::new();
        for i in 0..65536u32 {
            let mut random = [0; 16];
            random[..4].copy_from_slice(&i.to_be_bytes());
            let id = crate::request_id::generate(random);
            *count
                .entry(store.bucket(&Key::request_id(&id).unwrap()))
                .or_insert(0) += 1;
        }
        let (low, high) = (count.values().min().unwrap(), count.values().max().unwrap());
        assert!(
            count.len() == usize::from(BUCKETS) && *low > 24 && *high < 124,
            "{low} {high}"
        );
    }

    #[test]
    fn a_request_is_found_under_each_of_its_keys() {
        let data = InMemory::default();
        let mut worker = Worker::new(&data, 7, MANY);
        let keys = [key("a"), key("b"), key("c")];
        let done = worker.0.insert(&data, MANY, 0, &keys, b"ctx").unwrap();
        worker.insert(0, "a", b"other");
        let mut found: Vec<_> = ["a", "b", "c"]
            .map(|name| worker.find(0, name)[0].request)
            .into();
        found.dedup();
        assert_eq!(found.len(), 1);
        worker.end(0, done.ticket);
        worker.tick(100);
        assert_eq!(worker.payloads(100, "a"), [b"other"]);
        assert_eq!(worker.payloads(100, "b"), [b""; 0]);
    }

    #[test]
    fn every_worker_is_asked() {
        let data = InMemory::default();
        let mut workers: Vec<_> = (0..5).map(|n| Worker::new(&data, n, MANY)).collect();
        // A look-up before there is anybody else.
        assert_eq!(workers[0].payloads(0, "0"), [b""; 0]);
        for n in 0..5u8 {
            workers[usize::from(n)].insert(0, "same", &[n]);
            for worker in &mut workers {
                let mut found = worker.payloads(0, "same");
                found.sort();
                assert_eq!(found, (0..=n).map(|n| vec![n]).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn new_workers_and_the_time_are_asked_for_where_it_matters() {
        let data = InMemory::default();
        let mut here = Worker::new(&data, 7, MANY);
        let mut there = Worker::new(&data, 8, MANY);
        let ticket = there.insert(0, "a", b"ctx").ticket;
        let asked = std::cell::Cell::new(0);
        let mut found = |all| {
            asked.set(0);
            let clock = || {
                asked.set(asked.get() + 1);
                1
            };
            let found = here.0.find(&data, MANY, clock, &key("a"), all).len();
            (found, asked.get())
        };
        assert_eq!(found(false), (0, 0));
        // The list of workers is new: who of them is alive?
        assert_eq!(found(true), (1, 1));
        assert_eq!(found(true), (1, 0));
        assert_eq!(found(false), (1, 0));
        there.end(1, ticket);
        assert_eq!(found(false), (1, 1));
        // Ten seconds later without anybody who asks.
        let mut late = Worker::new(&data, 9, MANY);
        late.tick(10_000);
        let ended = late.0.find(&data, MANY, || 1, &key("a"), false);
        assert!(ended[0].ended);
    }

    #[test]
    fn a_worker_that_is_gone_leaves_nothing() {
        let data = InMemory::default();
        let mut gone = Worker::new(&data, 1, MANY);
        let mut here = Worker::new(&data, 2, MANY);
        gone.insert(0, "a", b"old");
        here.insert(0, "b", b"ctx");
        for now in (0..60_000).step_by(1000) {
            here.tick(now);
        }
        assert_eq!(here.payloads(59_000, "a"), [b"old"]);
        here.tick(60_000);
        assert_eq!(here.payloads(60_000, "a"), [b""; 0]);
        // Its number is taken over, without what it held.
        let mut new = Worker::new(&data, 3, MANY);
        new.insert(60_000, "c", b"new");
        assert_eq!(new.0.number, Some(0));
        assert_eq!(here.payloads(60_000, "a"), [b""; 0]);
        assert_eq!(here.payloads(60_000, "c"), [b"new"]);
        assert_eq!(new.payloads(60_000, "b"), [b"ctx"]);
        // Should it live after all, it begins anew, and disturbs nobody.
        gone.tick(61_000);
        assert_eq!(gone.payloads(61_000, "c"), [b"new"]);
        gone.insert(61_000, "a", b"again");
        assert_eq!(gone.0.number, Some(2));
        assert_eq!(here.payloads(61_000, "a"), [b"again"]);
        assert_eq!(here.payloads(61_000, "c"), [b"new"]);
    }

    #[test]
    fn workers_that_begin_at_once_get_numbers_of_their_own() {
        let data = InMemory::default();
        std::thread::scope(|scope| {
            for worker in 1..9u64 {
                let data = &data;
                scope.spawn(move || {
                    let mut worker = Worker::new(data, worker, MANY);
                    for n in 0..500u64 {
                        let name = format!("{}-{n}", worker.0.nonce);
                        let ticket = worker.insert(n, &name, name.as_bytes()).ticket;
                        assert_eq!(worker.payloads(n, &name), [name.as_bytes()]);
                        if n % 2 == 0 {
                            worker.end(n, ticket);
                            worker.tick(n);
                        }
                    }
                });
            }
        });
        let mut reader = Worker::new(&data, 99, MANY);
        for worker in 1..9 {
            for n in 0..500 {
                let name = format!("{worker}-{n}");
                let expected = (n % 2 == 1 || n >= 400).then(|| name.as_bytes().to_vec());
                assert_eq!(
                    reader.payloads(499, &name),
                    expected.into_iter().collect::<Vec<_>>()
                );
            }
        }
    }

    #[test]
    fn a_list_that_never_stands_still_is_given_up() {
        /// The list is changed before every swap.
        struct Contended(InMemory);
        impl SharedData for Contended {
            fn get(&self, key: &[u8]) -> Option<(Vec<u8>, u32)> {
                self.0.get(key)
            }
            fn set(&self, key: &[u8], value: &[u8], cas: u32) -> Result<(), NotSet> {
                if key == WORKERS {
                    self.0.set(key, &[], 0)?;
                }
                self.0.set(key, value, cas)
            }
        }
        let data = Contended(InMemory::default());
        let mut store = Store::open(&data, 7);
        assert_eq!(store.insert(&data, LIMITS, 0, &[key("a")], b"ctx"), None);
        assert!(store.find(&data, LIMITS, || 0, &key("a"), true).is_empty());
    }

    #[test]
    fn what_cannot_be_written_leaves_nothing() {
        /// Every other write of a bucket fails.
        struct Failing(InMemory, std::cell::Cell<bool>);
        impl SharedData for Failing {
            fn get(&self, key: &[u8]) -> Option<(Vec<u8>, u32)> {
                self.0.get(key)
            }
            fn set(&self, key: &[u8], value: &[u8], cas: u32) -> Result<(), NotSet> {
                self.1.set(!self.1.get());
                match self.1.get() && key.len() == name(0, 0).len() {
                    true => Err(NotSet),
                    false => self.0.set(key, value, cas),
                }
            }
        }
        let data = Failing(InMemory::default(), false.into());
        let mut store = Store::open(&data, 7);
        let mut done = 0;
        for n in 0..100 {
            let keys = [key(&n.to_string()), key(&format!("{n}-"))];
            done += usize::from(store.insert(&data, MANY, 0, &keys, b"ctx").is_some());
            assert_eq!(store.size().0, 2 * done);
        }
    }

    #[test]
    fn memory_stays_bounded_behind_a_request_that_never_ends() {
        let data = InMemory::default();
        let limits = Limits {
            grace_ms: 0,
            ..MANY
        };
        let mut worker = Worker::new(&data, 7, limits);
        worker.insert(0, "stream", b"ctx");
        for n in 0..20_000 {
            let ticket = worker.insert(n, "call", b"ctx").ticket;
            worker.end(n, ticket);
        }
        assert!(worker.0.started.len() < 1100 && worker.0.ended.is_empty());
        assert_eq!(worker.0.size().0, 1);
        assert_eq!(worker.payloads(20_000, "stream"), [b"ctx"]);
    }

    #[test]
    fn memory_does_not_creep_up() {
        let data = InMemory::default();
        let limits = Limits {
            entries: 50_000,
            bytes: 1 << 24,
            bucket_bytes: 1 << 16,
            grace_ms: 100,
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
            at_second.push(worker.0.buckets.iter().map(Vec::capacity).sum::<usize>());
        }
        let mean = |seconds: &[usize]| seconds.iter().sum::<usize>() / seconds.len();
        let (early, late) = (mean(&at_second[20..60]), mean(&at_second[360..]));
        assert!(late < early + early / 50, "{early} {late}");
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert(usize, u8, u8),
        End(usize),
        Find(usize, u8),
        Wait(u64),
        Tick(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            (0usize..3, 0u8..6, any::<u8>()).prop_map(|(w, k, p)| Step::Insert(w, k, p)),
            (0usize..64).prop_map(Step::End),
            (0usize..3, 0u8..6).prop_map(|(w, k)| Step::Find(w, k)),
            (0u64..90).prop_map(Step::Wait),
            (0usize..3).prop_map(Step::Tick),
        ];
        proptest::collection::vec(step, 0..120)
    }

    proptest! {
        /// Against a list of everything that ever happened, for three workers
        /// with room enough: exactly what is live or ended within the grace.
        #[test]
        fn it_remembers_what_it_should(steps in steps()) {
            let data = InMemory::default();
            let mut workers: Vec<_> = (0..3).map(|n| Worker::new(&data, n, MANY)).collect();
            // Worker, ticket, key, payload, end.
            let mut all: Vec<(usize, Ticket, u8, u8, Option<u64>)> = Vec::new();
            let mut now = 1_000;
            for step in steps {
                match step {
                    Step::Insert(w, k, p) => {
                        let done = workers[w].insert(now, &k.to_string(), &[p]);
                        prop_assert_eq!(done.evicted, 0);
                        all.push((w, done.ticket, k, p, None));
                    }
                    Step::End(n) if !all.is_empty() => {
                        let n = n % all.len();
                        workers[all[n].0].end(now, all[n].1);
                        all[n].4.get_or_insert(now);
                    }
                    Step::End(_) => {}
                    Step::Wait(ms) => now += ms,
                    Step::Tick(w) => workers[w].tick(now),
                    Step::Find(w, k) => {
                        let mut found = workers[w].payloads(now, &k.to_string());
                        let alive = all.iter().filter(|e| e.2 == k && e.4.is_none_or(|end| now - end < 100));
                        let mut expected: Vec<_> = alive.map(|e| vec![e.3]).collect();
                        found.sort();
                        expected.sort();
                        prop_assert_eq!(found, expected);
                    }
                }
            }
        }

        #[test]
        fn any_bytes_in_shared_data_are_survived(bytes: Vec<u8>, at in 0usize..5) {
            let data = InMemory::default();
            let mut here = Worker::new(&data, 7, LIMITS);
            let mut there = Worker::new(&data, 8, LIMITS);
            let done = here.insert(0, "a", b"ctx");
            there.insert(0, "a", b"ctx");
            let keys = data.keys();
            let _ = data.set(&keys[at % keys.len()], &bytes, 0);
            here.find(1, "a");
            here.tick(20_000);
            here.end(20_001, done.ticket);
            here.insert(20_002, "b", b"ctx");
            prop_assert_eq!(here.payloads(20_002, "b"), [b"ctx"]);
            Worker::new(&data, 9, LIMITS).insert(20_003, "c", b"ctx");
        }

        #[test]
        fn memory_is_bounded(keys in proptest::collection::vec("[a-z0-9-]{1,40}", 1..400)) {
            let data = InMemory::default();
            let limits = Limits { entries: 50, bytes: 4000, grace_ms: 0, ..LIMITS };
            let mut worker = Worker::new(&data, 7, limits);
            for text in &keys {
                worker.insert(0, text, &[0; 50]);
            }
            let (entries, bytes) = worker.0.size();
            prop_assert!(entries <= 50 && bytes <= 4000);
            // The seed, the list, and what is remembered.
            prop_assert_eq!(data.size().1, 8 + 18 + bytes);
        }
    }
}
