//! What is evicted where there is no room: first what has ended, then aliases (in a full
//! bucket), then the oldest headers, then the oldest requests in flight. A request leaves
//! tombstones: until its end, or until it would have been forgotten.

use super::{Destination, Inserted, RecordOf, Table, pop_front_if};
use crate::store::limits::Limits;
use crate::store::record::Record;
use crate::store::shared_data::SharedData;

impl Table {
    /// Evicts until the entries of a new request have room, and then, but no requests in
    /// flight, until its headers have. False if the headers have no room.
    pub(super) fn make_room_for<D: SharedData>(
        &mut self,
        to: &Destination<'_, D>,
        limits: Limits,
        entries: &[(Record<'_>, u16)],
        headers: Option<&Record<'_>>,
        inserted: &mut Inserted,
    ) -> bool {
        let lengths = entries.iter().map(|(entry, _)| entry.encoded_length());
        let mut room = Limits {
            entries: limits.entries.saturating_sub(entries.len()),
            bytes: limits.bytes.saturating_sub(lengths.sum()),
            ..limits
        };
        self.make_room(to, room, true, inserted);
        let Some(headers) = headers else {
            return true;
        };
        room.bytes = room.bytes.saturating_sub(headers.encoded_length());
        self.make_room(to, room, false, inserted)
    }

    /// Evicts until the table is within `room`. Requests in flight are evicted only with
    /// `evict_in_flight`. False if there is not enough room.
    fn make_room<D: SharedData>(
        &mut self,
        to: &Destination<'_, D>,
        room: Limits,
        evict_in_flight: bool,
        inserted: &mut Inserted,
    ) -> bool {
        while self.entries > room.entries || self.bytes > room.bytes {
            if let Some(ended) = self.ended.get(self.evicted).copied() {
                self.evict(ended.bucket, ended.id);
                // No hurry: in shared data it has a time at which it expires.
                self.mark_unpublished(ended.bucket);
                self.evicted += 1;
                if self.evicted > room.entries {
                    self.forget_oldest();
                }
                continue;
            }
            let headers = match self.bytes > room.bytes {
                true => self.headers.pop_front(),
                false => None,
            };
            if let Some(RecordOf { bucket, id }) = headers {
                if self.evict_headers(bucket, id) {
                    let _ = self.publish(to, bucket);
                    inserted.headers_evicted += 1;
                }
            } else if !evict_in_flight || !self.evict_oldest(to, inserted) {
                return false;
            }
        }
        true
    }

    /// Evicts the oldest request in flight, if it still is, with all its entries. False if
    /// there is none.
    fn evict_oldest<D: SharedData>(
        &mut self,
        to: &Destination<'_, D>,
        inserted: &mut Inserted,
    ) -> bool {
        let Some(oldest) = self.in_flight.pop_front() else {
            return false;
        };
        if !self.is_in_flight(oldest) {
            return true;
        }
        self.evict(oldest.bucket, oldest.id);
        let _ = self.publish(to, oldest.bucket);
        inserted.evicted += 1;
        // Its entries under other keys follow at once.
        let is_same = |entry: &RecordOf| entry.id == oldest.id;
        while let Some(entry) = pop_front_if(&mut self.in_flight, is_same) {
            self.evict(entry.bucket, entry.id);
            let _ = self.publish(to, entry.bucket);
        }
        true
    }

    /// Evicts from one bucket until it has at most so many bytes, as [`Table::make_room`]
    /// does in all; nothing of the request `except`.
    pub(super) fn make_room_in_bucket(
        &mut self,
        bucket: u16,
        most: usize,
        except: u64,
        evict_in_flight: bool,
        inserted: &mut Inserted,
    ) -> bool {
        enum Victim {
            Ended(u64),
            Alias(u64),
            Headers(u64),
            InFlight(u64),
        }
        while self.bytes_of(bucket) > most {
            let victims = self.records(bucket).filter_map(|record| match record {
                Record::Entry(entry) if entry.id == except => None,
                Record::Entry(entry) if entry.expires_ms.is_some() => {
                    Some((0, Victim::Ended(entry.id)))
                }
                Record::Alias(alias) => Some((1, Victim::Alias(alias.serial))),
                Record::Headers { id, .. } if id != except => Some((2, Victim::Headers(id))),
                Record::Entry(entry) if evict_in_flight => Some((3, Victim::InFlight(entry.id))),
                _ => None,
            });
            // The oldest of the lowest rank.
            let victim = victims.min_by_key(|(rank, _)| *rank);
            match victim.map(|(_, victim)| victim) {
                Some(Victim::Ended(id)) => self.evict(bucket, id),
                Some(Victim::Alias(serial)) => self.remove_alias(bucket, serial),
                Some(Victim::Headers(id)) => {
                    inserted.headers_evicted += usize::from(self.evict_headers(bucket, id));
                }
                Some(Victim::InFlight(id)) => {
                    self.evict(bucket, id);
                    inserted.evicted += 1;
                }
                None => return false,
            }
        }
        true
    }

    /// Bytes of a bucket, without the tombstones.
    pub(super) fn bytes_of(&self, bucket: u16) -> usize {
        let records = self.records(bucket);
        let records = records.filter(|record| !record.is_tombstone());
        records.map(|record| record.encoded_length()).sum()
    }

    /// Removes the headers of a request. False if there are none.
    fn evict_headers(&mut self, bucket: u16, id: u64) -> bool {
        self.retain(
            bucket,
            |record| !matches!(record, Record::Headers { id: other, .. } if *other == id),
        )
    }

    /// Removes a request from a bucket, and leaves tombstones. Of one that has none there but
    /// tombstones, those stay.
    pub(super) fn evict(&mut self, bucket: u16, id: u64) {
        let mut has_ended = false;
        let entries = self.records(bucket).entries();
        let entries = entries.filter(|entry| entry.id == id);
        let entries = entries.inspect(|entry| has_ended |= entry.expires_ms.is_some());
        let hashes: Vec<u64> = entries.map(|entry| self.bucket_of(entry.key).1).collect();
        if hashes.is_empty() {
            return;
        }
        self.remove(bucket, id);
        self.add_tombstones(bucket, id, &hashes, !has_ended);
    }
}
