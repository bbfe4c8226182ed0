//! Tombstones: requests that are in flight, or not yet forgotten, and not stored.
//!
//! A tombstone has the hash of a key. While it is there, no look-up with the key says that
//! it found every request in flight that has the key.

use super::insert::KeyAt;
use super::{Table, Ticket};
use crate::store::record::Record;

/// Tombstones of one bucket. Further ones of requests in flight are only counted.
const TOMBSTONES_MOST: usize = 32;

impl Table {
    /// A request is not stored in this bucket, under keys with these hashes.
    pub(super) fn add_tombstones(&mut self, bucket: u16, id: u64, hashes: &[u64], in_flight: bool) {
        let tombstones = self.records(bucket);
        let tombstones = tombstones.filter(|record| matches!(record, Record::Tombstone { .. }));
        if tombstones.count() + hashes.len() > TOMBSTONES_MOST {
            if in_flight {
                let count = self.tombstone_count(bucket);
                self.set_tombstone_count(bucket, count.saturating_add(1));
            }
            return;
        }
        for key_hash in hashes.iter().copied() {
            self.append(bucket, &Record::Tombstone { id, key_hash });
        }
    }

    /// A new request could not be stored: removes what was, and leaves tombstones.
    pub(super) fn bury(&mut self, ticket: &Ticket, keys: &[KeyAt<'_>]) {
        for bucket in ticket.buckets() {
            self.remove(bucket, ticket.id);
            let keys = keys.iter().filter(|key| key.bucket == bucket);
            let hashes = keys.map(|key| self.bucket_of(key.key.as_bytes()).1);
            let hashes: Vec<u64> = hashes.collect();
            self.add_tombstones(bucket, ticket.id, &hashes, true);
            self.mark_unpublished(bucket);
        }
    }

    /// A request has been answered. False if it has no tombstone in this bucket.
    pub(super) fn remove_tombstone(&mut self, bucket: u16, id: u64) -> bool {
        if self.records(bucket).entries().any(|entry| entry.id == id) {
            return false;
        }
        let is_other = |record: &Record<'_>| !matches!(record, Record::Tombstone { id: other, .. } if *other == id);
        if self.retain(bucket, is_other) {
            return true;
        }
        match self.tombstone_count(bucket) {
            0 => false,
            count => {
                self.set_tombstone_count(bucket, count - 1);
                true
            }
        }
    }

    fn tombstone_count(&self, bucket: u16) -> u32 {
        let count = self.records(bucket).find_map(|record| match record {
            Record::TombstoneCount(count) => Some(count),
            _ => None,
        });
        count.unwrap_or(0)
    }

    fn set_tombstone_count(&mut self, bucket: u16, count: u32) {
        self.retain(bucket, |record| {
            !matches!(record, Record::TombstoneCount(_))
        });
        if count > 0 {
            self.append(bucket, &Record::TombstoneCount(count));
        }
    }
}
