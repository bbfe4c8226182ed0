//! The host calls that b3relay makes (proxy-wasm ABI 0.2.1).
//!
//! Not those of the SDK (`proxy_wasm::hostcalls`, 0.2.5), because each of them
//! panics on a status that it does not expect, and a panic ends the VM with every
//! plugin that shares it. One exception: `dispatch_http_call` (`spans.rs`), since the SDK's
//! entry points panic on the answer to a call that it has not registered itself. It returns
//! the two statuses that Envoy has for that call (2 and 10), and panics on others: so
//! [`has_envoys_http_call`] is asked before. Besides,
//! - `get_map_bytes` panics on a header name that is not UTF-8, and copies each name and
//!   value;
//! - keys of shared data and paths of properties are `&str` there, and bytes here.
//!
//! Here every status but OK is a [`Failure`].
#![allow(unsafe_code)]

use crate::headers;
use proxy_wasm::types::{BufferType, LogLevel, MapType, MetricType};
use std::ptr;

/// A status other than OK (0), as the ABI numbers them: 1 not found, 2 bad argument,
/// 8 CAS mismatch, 10 internal failure, ...
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Failure(pub(super) u32);

impl Failure {
    pub(super) const NOT_FOUND: Self = Self(1);
    pub(super) const BAD_ARGUMENT: Self = Self(2);
}

unsafe extern "C" {
    fn proxy_log(level: LogLevel, message: *const u8, size: usize) -> u32;
    fn proxy_get_current_time_nanoseconds(time: *mut u64) -> u32;
    fn proxy_set_tick_period_milliseconds(period: u32) -> u32;
    fn proxy_get_buffer_bytes(
        buffer: BufferType,
        start: usize,
        max_size: usize,
        data: *mut *mut u8,
        size: *mut usize,
    ) -> u32;
    fn proxy_get_property(
        path: *const u8,
        path_size: usize,
        data: *mut *mut u8,
        size: *mut usize,
    ) -> u32;
    fn proxy_get_header_map_pairs(map: MapType, data: *mut *mut u8, size: *mut usize) -> u32;
    fn proxy_get_header_map_value(
        map: MapType,
        name: *const u8,
        name_size: usize,
        data: *mut *mut u8,
        size: *mut usize,
    ) -> u32;
    fn proxy_call_foreign_function(
        name: *const u8,
        name_size: usize,
        argument: *const u8,
        argument_size: usize,
        data: *mut *mut u8,
        size: *mut usize,
    ) -> u32;
    fn proxy_replace_header_map_value(
        map: MapType,
        name: *const u8,
        name_size: usize,
        value: *const u8,
        value_size: usize,
    ) -> u32;
    fn proxy_add_header_map_value(
        map: MapType,
        name: *const u8,
        name_size: usize,
        value: *const u8,
        value_size: usize,
    ) -> u32;
    fn proxy_remove_header_map_value(map: MapType, name: *const u8, name_size: usize) -> u32;
    fn proxy_get_shared_data(
        key: *const u8,
        key_size: usize,
        data: *mut *mut u8,
        size: *mut usize,
        cas: *mut u32,
    ) -> u32;
    fn proxy_set_shared_data(
        key: *const u8,
        key_size: usize,
        value: *const u8,
        value_size: usize,
        cas: u32,
    ) -> u32;
    fn proxy_define_metric(
        kind: MetricType,
        name: *const u8,
        name_size: usize,
        id: *mut u32,
    ) -> u32;
    fn proxy_increment_metric(id: u32, offset: i64) -> u32;
    fn proxy_send_local_response(
        status: u32,
        details: *const u8,
        details_size: usize,
        body: *const u8,
        body_size: usize,
        headers: *const u8,
        headers_size: usize,
        grpc_status: i32,
    ) -> u32;
    fn proxy_http_call(
        cluster: *const u8,
        cluster_size: usize,
        headers: *const u8,
        headers_size: usize,
        body: *const u8,
        body_size: usize,
        trailers: *const u8,
        trailers_size: usize,
        timeout_ms: u32,
        token: *mut u32,
    ) -> u32;
}

fn checked(status: u32) -> Result<(), Failure> {
    match status {
        0 => Ok(()),
        _ => Err(Failure(status)),
    }
}

/// Calls a host function that returns bytes.
fn bytes(call: impl FnOnce(*mut *mut u8, *mut usize) -> u32) -> Result<Vec<u8>, Failure> {
    let mut data = ptr::null_mut();
    let mut size = 0;
    checked(call(&mut data, &mut size))?;
    if data.is_null() {
        return Ok(Vec::new());
    }
    // SAFETY: the host has allocated `size` bytes at `data` with the SDK's
    // `proxy_on_memory_allocate` (a boxed slice), has filled them, and has handed them
    // over.
    Ok(unsafe { Vec::from_raw_parts(data, size, size) })
}

// SAFETY, for all that follows: pointers and sizes come from slices that live as long as
// the call, or from variables on the stack; the host copies.

/// Writes a log line.
pub(super) fn log(level: LogLevel, message: &str) {
    // A failure cannot be logged either.
    let _ = unsafe { proxy_log(level, message.as_ptr(), message.len()) };
}

/// Nanoseconds since the epoch.
pub(super) fn now() -> Result<u64, Failure> {
    let mut time = 0;
    checked(unsafe { proxy_get_current_time_nanoseconds(&mut time) })?;
    Ok(time)
}

/// Asks for a tick every so many milliseconds.
pub(super) fn set_tick_period(period_ms: u32) -> Result<(), Failure> {
    checked(unsafe { proxy_set_tick_period_milliseconds(period_ms) })
}

/// The plugin's configuration.
pub(super) fn plugin_configuration() -> Result<Vec<u8>, Failure> {
    bytes(|data, size| unsafe {
        proxy_get_buffer_bytes(BufferType::PluginConfiguration, 0, usize::MAX, data, size)
    })
}

/// A property, by its path with zero bytes between the parts.
pub(super) fn property(path: &[u8]) -> Result<Vec<u8>, Failure> {
    bytes(|data, size| unsafe { proxy_get_property(path.as_ptr(), path.len(), data, size) })
}

/// All headers of a map, as [`headers::Pairs`] reads them.
pub(super) fn headers(map: MapType) -> Result<Vec<u8>, Failure> {
    bytes(|data, size| unsafe { proxy_get_header_map_pairs(map, data, size) })
}

/// The value of one header.
pub(super) fn header(map: MapType, name: &str) -> Result<Vec<u8>, Failure> {
    let (n, length) = (name.as_ptr(), name.len());
    bytes(|data, size| unsafe { proxy_get_header_map_value(map, n, length, data, size) })
}

/// Calls a function of Envoy that is not of the ABI.
pub(super) fn foreign(name: &str, argument: &[u8]) -> Result<Vec<u8>, Failure> {
    let (n, length) = (name.as_ptr(), name.len());
    let (a, argument_size) = (argument.as_ptr(), argument.len());
    bytes(|data, size| unsafe {
        proxy_call_foreign_function(n, length, a, argument_size, data, size)
    })
}

/// Replaces every value of a header, or adds it.
pub(super) fn replace_header(map: MapType, name: &str, value: &[u8]) -> Result<(), Failure> {
    let (n, v) = (name.as_ptr(), value.as_ptr());
    checked(unsafe { proxy_replace_header_map_value(map, n, name.len(), v, value.len()) })
}

/// Adds a further value of a header.
pub(super) fn add_header(map: MapType, name: &str, value: &[u8]) -> Result<(), Failure> {
    let (n, v) = (name.as_ptr(), value.as_ptr());
    checked(unsafe { proxy_add_header_map_value(map, n, name.len(), v, value.len()) })
}

/// Removes every value of a header.
pub(super) fn remove_header(map: MapType, name: &str) -> Result<(), Failure> {
    checked(unsafe { proxy_remove_header_map_value(map, name.as_ptr(), name.len()) })
}

/// A shared value and its CAS number.
pub(super) fn shared_data(key: &[u8]) -> Result<(Vec<u8>, u32), Failure> {
    let mut cas = 0;
    let value = bytes(|data, size| unsafe {
        proxy_get_shared_data(key.as_ptr(), key.len(), data, size, &mut cas)
    })?;
    Ok((value, cas))
}

/// Sets a shared value, if its CAS number is still this one.
pub(super) fn set_shared_data(key: &[u8], value: &[u8], cas: u32) -> Result<(), Failure> {
    let (k, v) = (key.as_ptr(), value.as_ptr());
    checked(unsafe { proxy_set_shared_data(k, key.len(), v, value.len(), cas) })
}

/// The number of a counter; a new one if there is none of that name.
pub(super) fn define_counter(name: &str) -> Result<u32, Failure> {
    let mut id = 0;
    let (n, size) = (name.as_ptr(), name.len());
    checked(unsafe { proxy_define_metric(MetricType::Counter, n, size, &mut id) })?;
    Ok(id)
}

/// Raises a counter.
pub(super) fn increment(id: u32, by: u64) -> Result<(), Failure> {
    let by = i64::try_from(by).unwrap_or(i64::MAX);
    checked(unsafe { proxy_increment_metric(id, by) })
}

/// Answers in place of the upstream.
pub(super) fn reply(status: u32, headers: &[(&str, &str)], body: &str) -> Result<(), Failure> {
    // Shown in access logs as the response code's details.
    const DETAILS: &str = "b3relay";
    const NO_GRPC_STATUS: i32 = -1;
    let headers = headers::serialize(headers);
    checked(unsafe {
        proxy_send_local_response(
            status,
            DETAILS.as_ptr(),
            DETAILS.len(),
            body.as_ptr(),
            body.len(),
            headers.as_ptr(),
            headers.len(),
            NO_GRPC_STATUS,
        )
    })
}

/// Whether the host's HTTP calls fail with Envoy's statuses: a call to a cluster without a
/// name, which sends nothing, is a bad argument (2).
pub(super) fn has_envoys_http_call() -> bool {
    let none = headers::serialize::<&str>(&[]);
    let (map, size) = (none.as_ptr(), none.len());
    let mut token = 0;
    let cluster = ptr::null();
    let status =
        unsafe { proxy_http_call(cluster, 0, map, size, cluster, 0, map, size, 1, &mut token) };
    checked(status) == Err(Failure::BAD_ARGUMENT)
}
