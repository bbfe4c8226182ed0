//! The proxy-wasm ABI 0.2.1, as far as b3relay uses it: what Envoy calls, and what
//! is called of Envoy.
//!
//! There is a SDK for this (the crate proxy-wasm). Without it, because
//! - its host calls panic on a status that they do not expect, on a header name
//!   that is not UTF-8, and when a log line cannot be written, and a panic kills
//!   the VM of every plugin that shares it on the worker; here every status but OK
//!   is an error like any other;
//! - it exports every callback that there is, and Envoy calls what is exported, for
//!   each request: docs/benchmarks.md has what that costs.
#![allow(unsafe_code)]

use crate::{header, host};
use std::cell::RefCell;
use std::ptr;

/// A status other than OK (0), as the ABI numbers them: 1 not found, 2 bad
/// argument, 8 CAS mismatch, 10 internal failure, ...
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Failure(pub(crate) u32);

impl Failure {
    pub(crate) const NOT_FOUND: Self = Self(1);
}

type Size = usize;
type Bytes = *const u8;

#[link(wasm_import_module = "env")]
unsafe extern "C" {
    fn proxy_log(level: u32, message: Bytes, size: Size) -> u32;
    fn proxy_get_current_time_nanoseconds(time: *mut u64) -> u32;
    fn proxy_get_buffer_bytes(
        buffer: u32,
        start: Size,
        most: Size,
        data: *mut *mut u8,
        size: *mut Size,
    ) -> u32;
    fn proxy_get_property(path: Bytes, path_size: Size, data: *mut *mut u8, size: *mut Size)
    -> u32;
    fn proxy_get_header_map_pairs(map: u32, data: *mut *mut u8, size: *mut Size) -> u32;
    fn proxy_replace_header_map_value(
        map: u32,
        name: Bytes,
        name_size: Size,
        value: Bytes,
        value_size: Size,
    ) -> u32;
    fn proxy_add_header_map_value(
        map: u32,
        name: Bytes,
        name_size: Size,
        value: Bytes,
        value_size: Size,
    ) -> u32;
    fn proxy_remove_header_map_value(map: u32, name: Bytes, name_size: Size) -> u32;
    fn proxy_get_shared_data(
        key: Bytes,
        key_size: Size,
        data: *mut *mut u8,
        size: *mut Size,
        cas: *mut u32,
    ) -> u32;
    fn proxy_set_shared_data(
        key: Bytes,
        key_size: Size,
        value: Bytes,
        value_size: Size,
        cas: u32,
    ) -> u32;
    fn proxy_set_tick_period_milliseconds(period: u32) -> u32;
    fn proxy_define_metric(kind: u32, name: Bytes, name_size: Size, id: *mut u32) -> u32;
    fn proxy_increment_metric(id: u32, offset: i64) -> u32;
    fn proxy_send_local_response(
        status: u32,
        details: Bytes,
        details_size: Size,
        body: Bytes,
        body_size: Size,
        headers: Bytes,
        headers_size: Size,
        grpc_status: i32,
    ) -> u32;
}

#[link(wasm_import_module = "wasi_snapshot_preview1")]
unsafe extern "C" {
    fn random_get(buffer: *mut u8, size: Size) -> u16;
}

// wasi-libc.
#[link(name = "c")]
unsafe extern "C" {
    /// Its constructors, put together by the linker.
    fn __wasm_call_ctors();
}

struct OneThread<T>(T);

// SAFETY: a VM has one thread, and so has this target.
unsafe impl<T> Sync for OneThread<T> {}

static MODULE: OneThread<RefCell<host::Module>> = OneThread(RefCell::new(host::Module::new()));

/// The one of this VM.
pub(crate) fn module() -> &'static RefCell<host::Module> {
    &MODULE.0
}

// What Envoy looks for when it loads a module, and calls. A callback that is
// not here is not called. Numbers are those of the ABI.

#[unsafe(no_mangle)]
extern "C" fn proxy_abi_version_0_2_1() {}

#[unsafe(no_mangle)]
extern "C" fn _initialize() {
    // SAFETY: once, before anything else.
    unsafe { __wasm_call_ctors() };
    host::start();
}

/// Where Envoy puts what a host call returns, as a boxed slice of that length.
#[unsafe(no_mangle)]
extern "C" fn proxy_on_memory_allocate(size: Size) -> *mut u8 {
    let mut buffer = Vec::with_capacity(size);
    let data = buffer.as_mut_ptr();
    std::mem::forget(buffer);
    data
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_context_create(context: u32, parent: u32) {
    host::create(context, parent);
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_configure(context: u32, _configuration_size: Size) -> u32 {
    u32::from(host::configure(context))
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_tick(context: u32) {
    host::tick(context);
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_request_headers(context: u32, _headers: Size, _end_of_stream: u32) -> u32 {
    const CONTINUE: u32 = 0;
    const PAUSE: u32 = 1;
    match host::request_headers(context) {
        true => CONTINUE,
        false => PAUSE,
    }
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_response_headers(context: u32, _headers: Size, _end_of_stream: u32) -> u32 {
    host::response_headers(context);
    0
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_log(context: u32) {
    host::over(context);
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_delete(context: u32) {
    host::delete(context);
}

fn checked(status: u32) -> Result<(), Failure> {
    match status {
        0 => Ok(()),
        _ => Err(Failure(status)),
    }
}

/// Calls a host function that returns bytes.
fn bytes(call: impl FnOnce(*mut *mut u8, *mut Size) -> u32) -> Result<Vec<u8>, Failure> {
    let mut data = ptr::null_mut();
    let mut size = 0;
    checked(call(&mut data, &mut size))?;
    if data.is_null() {
        return Ok(Vec::new());
    }
    // SAFETY: the host has allocated `size` bytes at `data` with
    // `proxy_on_memory_allocate`, has filled them, and has handed them over.
    Ok(unsafe { Vec::from_raw_parts(data, size, size) })
}

// SAFETY, for all that follows: pointers and sizes come from slices that live
// as long as the call, or from variables on the stack; the host copies.

/// Writes a log line. A level of the ABI: 2 info, 3 warn, 4 error, 5 critical.
pub(crate) fn log(level: u32, message: &str) {
    // There is nobody to tell that it failed.
    let _ = unsafe { proxy_log(level, message.as_ptr(), message.len()) };
}

/// Nanoseconds since the epoch.
pub(crate) fn now() -> Result<u64, Failure> {
    let mut time = 0;
    checked(unsafe { proxy_get_current_time_nanoseconds(&mut time) })?;
    Ok(time)
}

/// 16 random bytes; zeros if there is no randomness, which Envoy always has.
pub(crate) fn random() -> [u8; 16] {
    let mut bytes = [0; 16];
    // The result is a WASI error number; bytes that stay zero say enough.
    let _ = unsafe { random_get(bytes.as_mut_ptr(), bytes.len()) };
    bytes
}

/// Asks for a call of `proxy_on_tick` every so many milliseconds.
pub(crate) fn set_tick_period(period_ms: u32) -> Result<(), Failure> {
    checked(unsafe { proxy_set_tick_period_milliseconds(period_ms) })
}

/// The plugin's configuration.
pub(crate) fn plugin_configuration() -> Result<Vec<u8>, Failure> {
    const PLUGIN_CONFIGURATION: u32 = 7;
    bytes(|data, size| unsafe {
        proxy_get_buffer_bytes(PLUGIN_CONFIGURATION, 0, Size::MAX, data, size)
    })
}

/// A property, by its path with zero bytes between the parts.
pub(crate) fn property(path: &[u8]) -> Result<Vec<u8>, Failure> {
    bytes(|data, size| unsafe { proxy_get_property(path.as_ptr(), path.len(), data, size) })
}

/// A header map.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Map {
    /// Of the request.
    Request = 0,
    /// Of the response.
    Response = 2,
}

impl Map {
    /// All of it, as [`headers::Pairs`] reads it.
    pub(crate) fn pairs(self) -> Result<Vec<u8>, Failure> {
        bytes(|data, size| unsafe { proxy_get_header_map_pairs(self as u32, data, size) })
    }

    /// Replaces every value of a header, or adds it.
    pub(crate) fn replace(self, name: &str, value: &[u8]) -> Result<(), Failure> {
        let (n, v) = (name.as_ptr(), value.as_ptr());
        checked(unsafe {
            proxy_replace_header_map_value(self as u32, n, name.len(), v, value.len())
        })
    }

    /// Adds a further value.
    pub(crate) fn add(self, name: &str, value: &[u8]) -> Result<(), Failure> {
        let (n, v) = (name.as_ptr(), value.as_ptr());
        checked(unsafe { proxy_add_header_map_value(self as u32, n, name.len(), v, value.len()) })
    }

    /// Removes every value of a header.
    pub(crate) fn remove(self, name: &str) -> Result<(), Failure> {
        checked(unsafe { proxy_remove_header_map_value(self as u32, name.as_ptr(), name.len()) })
    }
}

/// A shared value and its CAS number.
pub(crate) fn shared_data(key: &[u8]) -> Result<(Vec<u8>, u32), Failure> {
    let mut cas = 0;
    let value = bytes(|data, size| unsafe {
        proxy_get_shared_data(key.as_ptr(), key.len(), data, size, &mut cas)
    })?;
    Ok((value, cas))
}

/// Sets a shared value, if its CAS number is still this one.
pub(crate) fn set_shared_data(key: &[u8], value: &[u8], cas: u32) -> Result<(), Failure> {
    let (k, v) = (key.as_ptr(), value.as_ptr());
    checked(unsafe { proxy_set_shared_data(k, key.len(), v, value.len(), cas) })
}

/// Defines a counter, or finds the one of that name.
pub(crate) fn define_counter(name: &str) -> Result<u32, Failure> {
    const COUNTER: u32 = 0;
    let mut id = 0;
    checked(unsafe { proxy_define_metric(COUNTER, name.as_ptr(), name.len(), &mut id) })?;
    Ok(id)
}

/// Raises a counter.
pub(crate) fn increment(id: u32, by: u32) -> Result<(), Failure> {
    checked(unsafe { proxy_increment_metric(id, by.into()) })
}

/// Answers in place of the upstream.
pub(crate) fn reply(status: u32, headers: &[(&str, &str)], body: &str) -> Result<(), Failure> {
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
