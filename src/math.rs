//! What the core library has no function for.

/// `e` to the power of `x`.
pub(crate) fn exp(x: f32) -> f32 {
    #[cfg(not(target_arch = "wasm32"))]
    return x.exp();
    #[cfg(target_arch = "wasm32")]
    return crate::abi::exp(x);
}

/// The square root of `x`, to a millionth of it, by Newton's way.
pub(crate) fn sqrt(x: f32) -> f32 {
    if x <= 0.0 || !x.is_finite() {
        return 0.0;
    }
    let mut root = x.max(1.0);
    for _ in 0..32 {
        root = 0.5 * (root + x / root);
    }
    root
}

#[cfg(test)]
mod tests {
    #[test]
    fn roots() {
        for x in [0.0f32, 1e-6, 0.5, 1.0, 2.0, 1e4, 3e9] {
            assert!(
                (super::sqrt(x) - x.sqrt()).abs() <= 1e-5 * x.sqrt().max(1e-3),
                "{x}"
            );
        }
    }
}
