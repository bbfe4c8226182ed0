//! Further keys of a request, which were found out after it was stored.

use super::{Destination, Expiring, Table};
use crate::store::limits::Limits;
use crate::store::record::{Alias, Record};
use crate::store::shared_data::SharedData;

/// Aliases of one worker.
const ALIASES_MOST: usize = 4096;
/// How long an alias is valid unless it is added again, in milliseconds.
const ALIAS_MS: u64 = 60_000;

impl Table {
    /// Adds an alias, or makes one valid for longer. Where there is no room for it, it is
    /// left out. False if shared data could not be written.
    pub(in crate::store) fn add_alias<D: SharedData>(
        &mut self,
        to: &Destination<'_, D>,
        limits: Limits,
        now_ms: u64,
        alias: Alias<'_>,
    ) -> bool {
        let (bucket, _) = self.bucket_of(alias.key);
        let is_same = |other: &Alias<'_>| (other.key, other.request) == (alias.key, alias.request);
        let old = self.records(bucket).find_map(|record| match record {
            Record::Alias(other) if is_same(&other) => Some((other.expires_ms, other.guessed)),
            _ => None,
        });
        if let Some((expires_ms, guessed)) = old {
            let is_fresh = expires_ms.saturating_sub(now_ms) > ALIAS_MS / 2;
            if is_fresh && guessed == alias.guessed {
                return true;
            }
            self.retain(
                bucket,
                |record| !matches!(record, Record::Alias(other) if is_same(other)),
            );
        }
        let (serial, expires_ms) = (self.next_serial, now_ms.saturating_add(ALIAS_MS));
        self.next_serial = serial.wrapping_add(1);
        let record = Record::Alias(Alias {
            serial,
            expires_ms,
            ..alias
        });
        if self.bytes_of(bucket) + record.encoded_length() <= limits.bucket_bytes {
            while self.aliases.len() >= ALIASES_MOST {
                if let Some(oldest) = self.aliases.pop_front() {
                    self.remove_alias(oldest.bucket, oldest.id);
                }
            }
            self.append(bucket, &record);
            self.aliases.push_back(Expiring {
                bucket,
                id: serial,
                expires_ms,
            });
        } else if old.is_none() {
            return true;
        }
        self.publish(to, bucket).is_ok()
    }

    /// Removes an alias.
    pub(in crate::store) fn remove_alias(&mut self, bucket: u16, serial: u64) {
        let is_other =
            |record: &Record<'_>| !matches!(record, Record::Alias(alias) if alias.serial == serial);
        if self.retain(bucket, is_other) {
            self.mark_unpublished(bucket);
        }
    }
}
