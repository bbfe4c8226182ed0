//! Arithmetic that keeps the module small.

/// A number that sorts like `x`, which is not negative. With `u64` as the key of every
/// sort, the module has one copy of std's sort; each further key type adds 6 KB.
pub(super) fn sort_key(x: f64) -> u64 {
    x.abs().to_bits()
}

/// The natural logarithm, in single precision: that of `f64` would bring the module a table
/// of 4 KB. Of a number that is too small for it, that of the smallest.
pub(super) fn ln(x: f64) -> f64 {
    f64::from((x as f32).max(f32::MIN_POSITIVE).ln())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_logarithm_of_next_to_nothing_is_finite() {
        assert!((ln(1e-30) + 69.08).abs() < 0.01);
        assert!(ln(1e-100) < -80.0 && ln(1e-100).is_finite());
    }
}
