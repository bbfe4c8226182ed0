//! How much a worker stores, and for how long.

use super::record::BUCKETS;

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
