//! How a request ends, and how its entries and the aliases expire.

use super::{Destination, Expiring, Table, Ticket, pop_front_if};
use crate::store::limits::Limits;
use crate::store::record::{BUCKETS, Record};
use crate::store::shared_data::SharedData;

impl Table {
    /// The request has been answered: its entries expire after the grace, and are kept until
    /// they are forgotten. False if shared data could not be written.
    pub(in crate::store) fn end<D: SharedData>(
        &mut self,
        to: &Destination<'_, D>,
        limits: Limits,
        now_ms: u64,
        ticket: &Ticket,
    ) -> bool {
        let expires_ms = now_ms.saturating_add(limits.grace_ms);
        let past_ms = limits.past_after_grace_ms().into();
        let forgotten_ms = expires_ms.saturating_add(past_ms);
        let id = ticket.id;
        let mut written = true;
        for bucket in ticket.buckets() {
            let Some(bytes) = self.buckets.get_mut(usize::from(bucket)) else {
                continue;
            };
            if Record::end(bytes, id, expires_ms) {
                match forgotten_ms == now_ms {
                    true => self.remove(bucket, id),
                    false => self.ended.push_back(Expiring {
                        bucket,
                        id,
                        expires_ms: forgotten_ms,
                    }),
                }
                written &= self.publish(to, bucket).is_ok();
            } else if self.remove_tombstone(bucket, id) {
                let _ = self.publish(to, bucket);
            }
        }
        while let Some(entry) = self.in_flight.front() {
            if self.is_in_flight(*entry) {
                break;
            }
            self.in_flight.pop_front();
        }
        while let Some(headers) = self.headers.front() {
            if self.has_headers(*headers) {
                break;
            }
            self.headers.pop_front();
        }
        written
    }

    /// Removes what has expired, and publishes what has not been.
    pub(in crate::store) fn tick<D: SharedData>(&mut self, to: &Destination<'_, D>, now_ms: u64) {
        while self
            .ended
            .front()
            .is_some_and(|entry| entry.expires_ms <= now_ms)
        {
            self.forget_oldest();
        }
        while let Some(alias) = pop_front_if(&mut self.aliases, |alias| alias.expires_ms <= now_ms)
        {
            self.remove_alias(alias.bucket, alias.id);
        }
        self.publish_all(to);
    }

    /// Forgets what has ended first.
    pub(super) fn forget_oldest(&mut self) {
        if let Some(entry) = self.ended.pop_front() {
            self.evicted = self.evicted.saturating_sub(1);
            self.remove(entry.bucket, entry.id);
            self.mark_unpublished(entry.bucket);
        }
    }

    /// No other worker reads this table any more: removes everything. Requests in flight
    /// leave tombstones.
    pub(in crate::store) fn clear(&mut self) {
        while !self.ended.is_empty() {
            self.forget_oldest();
        }
        for bucket in 0..BUCKETS {
            let entries = self.records(bucket).entries();
            let in_flight = entries.filter(|entry| entry.expires_ms.is_none());
            let in_flight: Vec<u64> = in_flight.map(|entry| entry.id).collect();
            for id in in_flight {
                self.evict(bucket, id);
            }
            self.retain(bucket, |record| record.is_tombstone());
            let is_empty = self.bucket(bucket).is_empty();
            if let Some(unpublished) = self.unpublished.get_mut(usize::from(bucket)) {
                *unpublished = !is_empty;
            }
        }
        self.in_flight.clear();
        self.headers.clear();
        self.aliases.clear();
    }
}
