//! **b3relay** checks the B3 trace headers of every request that passes an
//! Envoy sidecar, fills in missing request IDs, and copies the trace context of
//! an inbound request onto the outbound calls that the application makes while
//! serving it.
//!
//! Everything but `wasm` is plain Rust without a proxy in sight: it takes header
//! pairs and a [`host::Host`] (the time, random bytes, properties, shared data), and
//! returns what is to be changed.
//! `wasm` exists on `wasm32` only: the callbacks that Envoy calls, on the crate
//! proxy-wasm, and the host calls.
//!
//! CONTRIBUTING.md says where to find what: rules, keys, metrics, shared data, panics.
//! docs/design.md has the flow of a request and the reasons.
//!
//! Each module uses those above it, and none below:
//!
//! | module | what it knows |
//! |---|---|
//! | `bytes` | integers and hashes: reading and writing |
//! | [`headers`] | header names, one pass over a request's headers, edits |
//! | [`b3`] | the B3 format: types, reading and writing |
//! | [`w3c`] | W3C's `traceparent`: reading and writing |
//! | [`request_id`] | Envoy's form of a request ID |
//! | [`rules`] | the table of rules, and which of them a request breaks (those of a call beside its request are in `relay`) |
//! | [`store`] | what is stored of requests in flight, shared by the workers; the keys of look-ups |
//! | [`host`] | what the core asks of the proxy |
//! | [`mesh_hosts`] | which hosts are outside the mesh |
//! | [`config`] | the configuration: its keys, and what they may hold |
//! | [`relay`] | what is copied onto a call, and when a call is left alone |
//! | [`attribution`] | the request of a call that names none |
//! | [`metrics`] | the table of metrics |
//! | [`report`] | log lines: escaped, cut and rate-limited |
//! | [`setup`] | what is wrong with how it was set up in a pod |
//! | [`spans`] | client spans of calls: recorded, encoded, batched |
//! | [`filter`] | the above, put together for one request |
//! | `wasm` | the module: callbacks of Envoy, host calls |
#![cfg_attr(not(target_arch = "wasm32"), forbid(unsafe_code))]
#![cfg_attr(target_arch = "wasm32", deny(unsafe_code))]

pub mod attribution;
pub mod b3;
mod bytes;
pub mod config;
pub mod filter;
pub mod headers;
pub mod host;
pub mod mesh_hosts;
pub mod metrics;
pub mod relay;
pub mod report;
pub mod request_id;
pub mod rules;
pub mod setup;
pub mod spans;
pub mod store;
pub mod w3c;

#[cfg(target_arch = "wasm32")]
mod wasm;
