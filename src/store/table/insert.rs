//! How a request is stored: one write of shared data for each of its keys.

use super::{Destination, RecordOf, Table};
use crate::store::key::Key;
use crate::store::limits::Limits;
use crate::store::record::{Entry, Record};
use crate::store::shared_data::SharedData;

/// Keys that one request may be stored under.
pub const KEYS_MOST: usize = 4;
/// The same, with further ones ([`NewRequest::further`]).
const ALL_KEYS_MOST: usize = 3 * KEYS_MOST;
/// Bytes of the longest context, and of the longest headers.
const LONGEST: usize = u16::MAX as usize;

/// A stored request, so that it can be ended. To be given back once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    pub(super) id: u64,
    buckets: [Option<u16>; ALL_KEYS_MOST],
}

impl Ticket {
    fn new(id: u64, keys: &[KeyAt<'_>]) -> Self {
        let mut buckets = [None; ALL_KEYS_MOST];
        for (bucket, key) in buckets.iter_mut().zip(keys) {
            *bucket = Some(key.bucket);
        }
        Self { id, buckets }
    }

    /// The request's number in its worker.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// A bucket that has an entry of the request.
    pub fn bucket(&self) -> Option<u16> {
        self.buckets().next()
    }

    /// All buckets that have one, each once.
    pub(super) fn buckets(&self) -> impl Iterator<Item = u16> + '_ {
        let buckets = self.buckets.iter().copied();
        let buckets = buckets.take_while(Option::is_some).enumerate();
        buckets.filter_map(|(n, bucket)| {
            let again = self.buckets.iter().take(n).any(|other| *other == bucket);
            bucket.filter(|_| !again)
        })
    }
}

/// The result of an insertion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inserted {
    /// The request, stored or not.
    pub ticket: Ticket,
    /// False if the request could not be stored: it was too large, or shared data could
    /// not be written.
    pub stored: bool,
    /// Requests in flight that were evicted.
    pub evicted: usize,
    /// Requests in flight, this one included, whose headers were evicted.
    pub headers_evicted: usize,
}

/// A request that is to be stored.
#[derive(Clone, Copy, Debug, Default)]
pub struct NewRequest<'a> {
    /// What it is found by, the best first, up to [`KEYS_MOST`].
    pub keys: &'a [Key],
    /// What is stored under each of them; up to 65,535 bytes.
    pub context: &'a [u8],
    /// Up to 65,535 bytes, which are stored once.
    pub headers: &'a [u8],
    /// Keys that its calls may have, and that do not tell for certain that a call is its own;
    /// up to twice [`KEYS_MOST`].
    pub further: &'a [Key],
    /// What is stored under each of those.
    pub further_context: &'a [u8],
}

/// A key of a new request, its bucket, and what is stored under it.
#[derive(Clone, Copy, Debug)]
pub(super) struct KeyAt<'a> {
    pub key: &'a Key,
    pub bucket: u16,
    context: &'a [u8],
}

impl Table {
    /// Stores a request of this number: one write for each key.
    pub(in crate::store) fn insert<'a, D: SharedData>(
        &mut self,
        to: &Destination<'_, D>,
        limits: Limits,
        now_ms: u64,
        id: u64,
        new: NewRequest<'a>,
    ) -> Inserted {
        let keys = new.keys.iter().take(KEYS_MOST);
        let keys = keys.map(|key| (key, new.context));
        let further = new.further.iter().map(|key| (key, new.further_context));
        let keys = keys.chain(further).take(ALL_KEYS_MOST);
        let keys = keys.map(|(key, context)| KeyAt {
            key,
            bucket: self.bucket_of(key.as_bytes()).0,
            context,
        });
        let keys: Vec<KeyAt<'a>> = keys.collect();
        let ticket = Ticket::new(id, &keys);
        let mut inserted = Inserted {
            ticket,
            stored: false,
            evicted: 0,
            headers_evicted: 0,
        };
        if to.worker.is_none() || new.context.len() > LONGEST || new.headers.len() > LONGEST {
            self.bury(&ticket, &keys);
            return inserted;
        }
        let headers = Record::Headers {
            id,
            headers: new.headers,
        };
        let headers_bucket = match new.headers {
            [] => None,
            _ => self.headers_bucket(&keys, limits, &headers),
        };
        let entry = |key: &KeyAt<'a>| Entry {
            id,
            started_ms: now_ms,
            expires_ms: None,
            past_ms: limits.past_after_grace_ms(),
            headers_bucket,
            key: key.key.as_bytes(),
            context: key.context,
        };
        let entries = keys
            .iter()
            .map(|key| (Record::Entry(entry(key)), key.bucket));
        let entries: Vec<(Record<'_>, u16)> = entries.collect();
        let mut headers_fit = self.make_room_for(
            to,
            limits,
            &entries,
            headers_bucket.and(Some(&headers)),
            &mut inserted,
        );
        let mut headers_to_write = headers_bucket.filter(|_| headers_fit);
        let mut written = true;
        for (entry, bucket) in &entries {
            let bucket = *bucket;
            let most = limits.bucket_bytes.saturating_sub(entry.encoded_length());
            self.make_room_in_bucket(bucket, most, id, true, &mut inserted);
            self.append(bucket, entry);
            let stored = RecordOf { bucket, id };
            self.in_flight.push_back(stored);
            if headers_to_write.take_if(|at| *at == bucket).is_some() {
                let most = limits.bucket_bytes.saturating_sub(headers.encoded_length());
                headers_fit = self.make_room_in_bucket(bucket, most, id, false, &mut inserted);
                if headers_fit {
                    self.append(bucket, &headers);
                    self.headers.push_back(stored);
                }
            }
            written &= self.publish(to, bucket).is_ok();
        }
        inserted.headers_evicted += usize::from(!headers_fit);
        if !written {
            self.bury(&ticket, &keys);
            return inserted;
        }
        inserted.stored = true;
        self.compact_queues();
        inserted
    }

    /// The bucket for the headers of a new request: that of the first key if there is room,
    /// or else the one with the fewest bytes.
    fn headers_bucket(
        &self,
        keys: &[KeyAt<'_>],
        limits: Limits,
        headers: &Record<'_>,
    ) -> Option<u16> {
        let most = limits.bucket_bytes.saturating_sub(headers.encoded_length());
        let buckets = keys.iter().map(|key| key.bucket);
        let first = buckets.clone().next();
        first
            .filter(|bucket| self.bytes_of(*bucket) <= most)
            .or_else(|| buckets.min_by_key(|bucket| self.bytes_of(*bucket)))
    }
}
