"""The compiled module in a small proxy-wasm host."""
