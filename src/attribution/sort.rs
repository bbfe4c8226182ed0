//! Sorting by numbers with a fraction.

/// A number that sorts like `x`, which is not negative. With `u64` as the key of every
/// sort, the module has one copy of std's sort; each further key type adds 6 KB.
pub(super) fn sort_key(x: f64) -> u64 {
    x.abs().to_bits()
}
