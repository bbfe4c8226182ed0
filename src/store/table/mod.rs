//! One worker's table: its copy of the buckets, which no other worker writes.
//!
//! | module | what it knows |
//! |---|---|
//! | this one | which records are in which bucket, and in which order they were added |
//! | `insert` | how a request is stored |
//! | `end` | how a request ends, and how its entries and the aliases expire |
//! | `alias` | further keys of a request |
//! | `room` | what is evicted where there is no room |
//! | `tombstone` | requests that are in flight and not stored |
//! | `publish` | which buckets differ from those in shared data |

mod alias;
mod end;
mod insert;
mod publish;
mod room;
mod tombstone;

pub use insert::{Inserted, KEYS_MOST, NewRequest, Ticket};
pub(super) use publish::Destination;

use super::record::{BUCKETS, Record, Records};
use siphasher::sip::SipHasher13;
use std::collections::VecDeque;

/// A record that belongs to a request, by its bucket and the request's number.
#[derive(Clone, Copy, Debug)]
struct RecordOf {
    bucket: u16,
    id: u64,
}

/// A record that expires: an entry by the request's number, an alias by its serial number.
#[derive(Clone, Copy, Debug)]
struct Expiring {
    bucket: u16,
    id: u64,
    expires_ms: u64,
}

#[derive(Debug)]
pub(super) struct Table {
    seed: u64,
    /// As they are in shared data, but for those that are `unpublished`.
    buckets: Vec<Vec<u8>>,
    /// By bucket: it differs from the one in shared data.
    unpublished: Vec<bool>,
    /// How many entries there are.
    entries: usize,
    /// Bytes of entries and headers.
    bytes: usize,
    /// Bytes of the other records.
    other_bytes: usize,
    /// Every entry of a request in flight, oldest first. Some of them have ended or are
    /// gone.
    in_flight: VecDeque<RecordOf>,
    /// Every entry that has ended, oldest first.
    ended: VecDeque<Expiring>,
    /// So many of them, of the oldest, have made room for others.
    evicted: usize,
    /// All headers, oldest first. Some of them are gone.
    headers: VecDeque<RecordOf>,
    /// All aliases, oldest first. Some of them are gone.
    aliases: VecDeque<Expiring>,
    /// The serial number of the next alias.
    next_serial: u64,
}

impl Table {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            seed,
            buckets: vec![Vec::new(); usize::from(BUCKETS)],
            unpublished: vec![false; usize::from(BUCKETS)],
            entries: 0,
            bytes: 0,
            other_bytes: 0,
            in_flight: VecDeque::new(),
            ended: VecDeque::new(),
            evicted: 0,
            headers: VecDeque::new(),
            aliases: VecDeque::new(),
            next_serial: 0,
        }
    }

    /// The number of entries, their bytes with those of the headers, and the bytes of the
    /// other records.
    pub(super) fn size(&self) -> (usize, usize, usize) {
        (self.entries, self.bytes, self.other_bytes)
    }

    /// The lengths of the queues: in flight, ended, headers, aliases.
    #[cfg(test)]
    pub(super) fn queue_lengths(&self) -> [usize; 4] {
        let Self {
            in_flight, ended, ..
        } = self;
        let (headers, aliases) = (self.headers.len(), self.aliases.len());
        [in_flight.len(), ended.len(), headers, aliases]
    }

    /// Bytes of memory of all buckets.
    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.buckets.iter().map(Vec::capacity).sum()
    }

    /// Buckets that are not empty.
    #[cfg(test)]
    pub(super) fn published(&self) -> usize {
        let is_used = |bucket: &&Vec<u8>| !bucket.is_empty();
        self.buckets.iter().filter(is_used).count()
    }

    pub(super) fn seed(&self) -> u64 {
        self.seed
    }

    /// The bucket of a key, and the key's hash: SipHash-1-3 with the seed, which nobody
    /// outside knows. So a client cannot choose request IDs that all fall into one bucket.
    pub(super) fn bucket_of(&self, key: &[u8]) -> (u16, u64) {
        let hash = SipHasher13::new_with_keys(self.seed, self.seed).hash(key);
        ((hash % u64::from(BUCKETS)) as u16, hash)
    }

    /// The bytes of a bucket.
    pub(super) fn bucket(&self, bucket: u16) -> &[u8] {
        let bytes = self.buckets.get(usize::from(bucket));
        bytes.map(Vec::as_slice).unwrap_or_default()
    }

    pub(super) fn records(&self, bucket: u16) -> Records<'_> {
        Records::new(self.bucket(bucket))
    }

    /// A bucket has an entry of a request in flight.
    fn is_in_flight(&self, RecordOf { bucket, id }: RecordOf) -> bool {
        let mut entries = self.records(bucket).entries();
        entries.any(|entry| entry.id == id && entry.expires_ms.is_none())
    }

    /// A bucket has headers of a request.
    fn has_headers(&self, RecordOf { bucket, id }: RecordOf) -> bool {
        let mut records = self.records(bucket);
        records.any(|record| matches!(record, Record::Headers { id: other, .. } if other == id))
    }

    /// Appends a record to a bucket.
    fn append(&mut self, bucket: u16, record: &Record<'_>) {
        let Some(bytes) = self.buckets.get_mut(usize::from(bucket)) else {
            return;
        };
        record.encode(bytes);
        let length = record.encoded_length();
        match record {
            Record::Entry(_) => {
                self.entries += 1;
                self.bytes += length;
            }
            Record::Headers { .. } => self.bytes += length,
            _ => self.other_bytes += length,
        }
    }

    /// Removes the records of a request from a bucket.
    fn remove(&mut self, bucket: u16, id: u64) {
        self.retain(bucket, |record| match record {
            Record::Entry(entry) => entry.id != id,
            Record::Headers { id: other, .. } | Record::Tombstone { id: other, .. } => *other != id,
            Record::TombstoneCount(_) | Record::Alias(_) => true,
        });
    }

    /// Removes the records of a bucket for which `keep` is false. Returns whether there
    /// were any.
    fn retain(&mut self, bucket: u16, keep: impl Fn(&Record<'_>) -> bool) -> bool {
        let Some(bytes) = self.buckets.get_mut(usize::from(bucket)) else {
            return false;
        };
        let old_length = bytes.len();
        let mut start = 0;
        while let Some(record) = bytes
            .get(start..)
            .and_then(|rest| Records::new(rest).next())
        {
            let length = record.encoded_length();
            if keep(&record) {
                start += length;
                continue;
            }
            match record {
                Record::Entry(_) => {
                    self.entries -= 1;
                    self.bytes -= length;
                }
                Record::Headers { .. } => self.bytes -= length,
                _ => self.other_bytes -= length,
            }
            bytes.drain(start..start + length);
        }
        bytes.len() < old_length
    }

    /// Removes from the queues what is gone, where that is most of what they hold.
    fn compact_queues(&mut self) {
        let most = 2 * self.entries + 1024;
        if self.in_flight.len() > most {
            let mut in_flight = std::mem::take(&mut self.in_flight);
            in_flight.retain(|entry| self.is_in_flight(*entry));
            self.in_flight = in_flight;
        }
        if self.headers.len() > most {
            let mut headers = std::mem::take(&mut self.headers);
            headers.retain(|headers| self.has_headers(*headers));
            self.headers = headers;
        }
    }
}

/// Removes the first element, if it is one of these.
fn pop_front_if<T>(queue: &mut VecDeque<T>, is_one: impl FnOnce(&T) -> bool) -> Option<T> {
    match queue.front().is_some_and(is_one) {
        true => queue.pop_front(),
        false => None,
    }
}
