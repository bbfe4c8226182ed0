//! How much a worker stores, and for how long.

use super::record::BUCKETS;

/// [`Limits::past_ms`]
const PAST_MS: u16 = 1000;

/// How much a worker stores, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Entries; a request has one for each of its keys.
    pub entries: usize,
    /// Bytes of all entries and copied headers.
    pub bytes: usize,
    /// Bytes of those in one bucket: the cost of a look-up grows with them, even where many
    /// requests have the same key.
    pub bucket_bytes: usize,
    /// How long an entry outlives its request, in milliseconds.
    pub grace_ms: u64,
    /// How long, at least, it is known that there was the request, after its end, in
    /// milliseconds: a call that comes later than the grace is not taken for one of another
    /// request that has the same key ([`super::Candidates::past`]).
    pub past_ms: u16,
}

impl Limits {
    /// What of [`Limits::past_ms`] is left after the grace.
    pub(super) fn past_after_grace_ms(self) -> u16 {
        let grace_ms = u16::try_from(self.grace_ms).unwrap_or(u16::MAX);
        self.past_ms.saturating_sub(grace_ms)
    }

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
            past_ms: PAST_MS,
        }
    }
}
