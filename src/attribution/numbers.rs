//! Arithmetic that keeps the module small.

/// A number that sorts like `x`, which is not negative. With `u64` as the key of every
/// sort, the module has one copy of std's sort; each further key type adds 6 KB.
pub(super) fn sort_key(x: f64) -> u64 {
    x.abs().to_bits()
}

/// The natural logarithm, in single precision: that of `f64` would bring the module a table
/// of 4 KB.
pub(super) fn ln(x: f64) -> f64 {
    f64::from((x as f32).ln())
}
