//! What the core library has no function for.

/// `e` to the power of `x`.
pub(crate) fn exp(x: f32) -> f32 {
    #[cfg(not(target_arch = "wasm32"))]
    return x.exp();
    #[cfg(target_arch = "wasm32")]
    return crate::abi::exp(x);
}
