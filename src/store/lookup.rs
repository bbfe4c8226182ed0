//! Look-ups: which requests, of all workers, have a key.
//!
//! A look-up reads the worker's own table, and of every other worker the one bucket that
//! the key falls into. It compares the full key, so that requests whose keys fall into one
//! bucket are never mixed up. An alias leads to one more bucket: that of its request.

use super::key::Key;
use super::record::{Alias, Entry, Record, Records};
use super::shared_data::{SharedData, bucket_name};
use super::{RequestRef, Store};
use crate::bytes::alike;

/// Requests that the aliases of one key are resolved to, at most.
const ALIASED_MOST: usize = 4;

/// How a request was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MatchedBy {
    /// It came with the key.
    Own,
    /// The key is an alias of it ([`Store::alias`]).
    Alias,
    /// The key is an alias of it, which was guessed.
    Guess,
}

/// A request that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The request: the same under each of its keys.
    pub request: RequestRef,
    /// A bucket that has an entry of it, for [`Store::fetch`] and [`Store::alias`].
    pub bucket: u16,
    /// What was stored, without the headers.
    pub context: Vec<u8>,
    /// When the request began, in milliseconds since the epoch.
    pub started_ms: u64,
    /// The request has been answered, less than the grace ago.
    pub ended: bool,
    /// How it was found.
    pub matched_by: MatchedBy,
    /// The bucket of its headers; `None` if it has none.
    headers_bucket: Option<u16>,
    /// Its headers, if they are in the bucket that was read.
    headers: Option<Vec<u8>>,
}

impl Found {
    fn new(worker: u16, bucket: u16, entry: &Entry<'_>, matched_by: MatchedBy) -> Self {
        Self {
            request: (worker, entry.id),
            bucket,
            context: entry.context.to_vec(),
            started_ms: entry.started_ms,
            ended: entry.expires_ms.is_some(),
            matched_by,
            headers_bucket: entry.headers_bucket,
            headers: None,
        }
    }
}

/// The requests that have a key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Candidates {
    /// Those that are stored, each once.
    pub found: Vec<Found>,
    /// Those whose grace is over, and which are not forgotten yet ([`super::Limits::past_ms`]).
    /// A call may be a late one of theirs.
    pub past: Vec<Found>,
    /// These are all requests in flight that have the key. False if there may be one that
    /// is not stored: it was evicted, or could not be written or read. And false if the key is
    /// an alias of a request that is over.
    pub complete: bool,
    /// Those that have the key, for certain, and are in flight and not stored under it.
    pub missing: Vec<RequestRef>,
}

/// An alias that was found.
struct FoundAlias {
    request: RequestRef,
    bucket: u16,
    matched_by: MatchedBy,
}

impl FoundAlias {
    fn new(alias: &Alias<'_>) -> Self {
        Self {
            request: alias.request,
            bucket: alias.bucket,
            matched_by: match alias.guessed {
                true => MatchedBy::Guess,
                false => MatchedBy::Alias,
            },
        }
    }
}

/// A bucket that has been read.
enum Bucket<'a> {
    /// This worker's.
    Own(&'a [u8]),
    /// Another worker's.
    Published(Vec<u8>),
}

impl Bucket<'_> {
    fn records(&self) -> Records<'_> {
        match self {
            Self::Own(bytes) => Records::new(bytes),
            Self::Published(bytes) => Records::published(bytes),
        }
    }
}

/// A look-up under way.
struct LookUp<'a> {
    key: &'a [u8],
    bucket: u16,
    key_hash: u64,
    now_ms: &'a dyn Fn() -> u64,
    candidates: Candidates,
    aliases: Vec<FoundAlias>,
}

impl LookUp<'_> {
    /// Reads a worker's bucket.
    fn read_bucket(&mut self, worker: u16, mut records: Records<'_>) {
        let Candidates {
            found,
            past,
            complete,
            missing,
        } = &mut self.candidates;
        let mut last_is_past = false;
        // A clock that is set back makes nothing expire.
        let is_expired = |at: u64| (self.now_ms)() >= at;
        for record in records.by_ref() {
            match record {
                Record::Entry(entry) => {
                    if !alike(entry.key, self.key, self.key.len()) {
                        continue;
                    }
                    last_is_past = entry.expires_ms.is_some_and(is_expired);
                    if !last_is_past {
                        found.push(Found::new(worker, self.bucket, &entry, MatchedBy::Own));
                    } else if !entry.forgotten_ms().is_some_and(is_expired) {
                        past.push(Found::new(worker, self.bucket, &entry, MatchedBy::Own));
                    }
                }
                // They follow an entry of their request.
                Record::Headers { id, headers } => {
                    let last = match last_is_past {
                        true => past.last_mut(),
                        false => found.last_mut(),
                    };
                    if let Some(last) = last.filter(|last| last.request == (worker, id)) {
                        last.headers = Some(headers.to_vec());
                    }
                }
                Record::Tombstone { id, key_hash } => {
                    if key_hash == self.key_hash {
                        missing.push((worker, id));
                    }
                }
                Record::TombstoneCount(_) => *complete = false,
                Record::Alias(alias) => {
                    if alias.key == self.key && !is_expired(alias.expires_ms) {
                        self.aliases.push(FoundAlias::new(&alias));
                    }
                }
            }
        }
        *complete &= records.is_whole() && missing.is_empty();
    }
}

impl Store {
    /// Every request with the key that has not expired. `now_ms` is called only where
    /// something may have.
    ///
    /// Every worker is asked that had stored something at the last [`Store::refresh`] or
    /// [`Store::tick`].
    pub fn find(
        &mut self,
        data: &impl SharedData,
        now_ms: &dyn Fn() -> u64,
        key: &Key,
    ) -> Candidates {
        self.find_until(data, now_ms, key, &|_| false)
    }

    /// The same, but no further worker is asked after a request that is `enough`. Then they
    /// are not complete.
    pub fn find_until(
        &mut self,
        data: &impl SharedData,
        now_ms: &dyn Fn() -> u64,
        key: &Key,
        enough: &dyn Fn(&Found) -> bool,
    ) -> Candidates {
        let (bucket, key_hash) = self.table.bucket_of(key.as_bytes());
        let mut look_up = LookUp {
            key: key.as_bytes(),
            bucket,
            key_hash,
            now_ms,
            candidates: Candidates {
                found: Vec::new(),
                past: Vec::new(),
                complete: self.workers.all_known,
                missing: Vec::new(),
            },
            aliases: Vec::new(),
        };
        // A worker without a number has only tombstones.
        let own_number = self.workers.number.unwrap_or_default();
        look_up.read_bucket(own_number, self.table.records(bucket));
        for (worker, _) in &self.workers.others {
            if look_up.candidates.found.iter().any(enough) {
                look_up.candidates.complete = false;
                break;
            }
            if let Some((bytes, _)) = data.get(&bucket_name(*worker, bucket)) {
                look_up.read_bucket(*worker, Records::published(&bytes));
            }
        }
        let LookUp {
            mut candidates,
            aliases,
            ..
        } = look_up;
        let mut asked: Vec<RequestRef> = Vec::new();
        for alias in aliases {
            let is_same = |found: &Found| found.request == alias.request;
            if asked.contains(&alias.request) || candidates.found.iter().any(is_same) {
                continue;
            }
            if asked.len() >= ALIASED_MOST {
                candidates.complete = false;
                break;
            }
            if !self.workers.is_known(alias.request.0) {
                continue;
            }
            asked.push(alias.request);
            match self.resolve(data, now_ms, &alias) {
                Some(found) => candidates.found.push(found),
                None => candidates.complete = false,
            }
        }
        candidates
    }

    /// A request in flight, by one of its buckets ([`super::Ticket::bucket`]).
    pub fn fetch(&self, data: &impl SharedData, request: RequestRef, bucket: u16) -> Option<Found> {
        let found = self.fetch_ended(data, request, bucket);
        found.filter(|found| !found.ended)
    }

    /// The same, or one that has ended and is not forgotten yet.
    #[inline(never)]
    pub fn fetch_ended(
        &self,
        data: &impl SharedData,
        (worker, id): RequestRef,
        bucket: u16,
    ) -> Option<Found> {
        let bytes = self.bucket(data, worker, bucket)?;
        let mut entries = bytes.records().entries();
        let entry = entries.find(|entry| entry.id == id)?;
        Some(Found::new(worker, bucket, &entry, MatchedBy::Own))
    }

    /// The headers of a request that was found; empty if it has none. `None` if they were
    /// evicted, or the request is gone.
    pub fn headers(&self, data: &impl SharedData, found: &Found) -> Option<Vec<u8>> {
        let Some(bucket) = found.headers_bucket else {
            return Some(Vec::new());
        };
        if found.headers.is_some() {
            return found.headers.clone();
        }
        let (worker, id) = found.request;
        let bytes = self.bucket(data, worker, bucket)?;
        bytes.records().find_map(|record| match record {
            Record::Headers { id: other, headers } if other == id => Some(headers.to_vec()),
            _ => None,
        })
    }

    /// The request of an alias; `None` if it is over, or not stored.
    fn resolve(
        &self,
        data: &impl SharedData,
        now_ms: &dyn Fn() -> u64,
        alias: &FoundAlias,
    ) -> Option<Found> {
        let (worker, id) = alias.request;
        let bytes = self.bucket(data, worker, alias.bucket)?;
        let mut entries = bytes.records().entries();
        let entry = entries.find(|entry| entry.id == id)?;
        let is_over = entry.expires_ms.is_some_and(|at| now_ms() >= at);
        (!is_over).then(|| Found::new(worker, alias.bucket, &entry, alias.matched_by))
    }

    /// A bucket of any worker; `None` if it was never written.
    #[inline(never)]
    fn bucket(&self, data: &impl SharedData, worker: u16, bucket: u16) -> Option<Bucket<'_>> {
        if self.workers.number == Some(worker) {
            return Some(Bucket::Own(self.table.bucket(bucket)));
        }
        let (bytes, _) = data.get(&bucket_name(worker, bucket))?;
        Some(Bucket::Published(bytes))
    }
}
