//! What Envoy calls (proxy-wasm ABI 0.2.1), and the contexts that it calls them for.
//!
//! Not those of the SDK (crate `proxy-wasm`, 0.2.5): they panic on the number of a context
//! or of an HTTP call that they do not know, and a panic ends the VM with every plugin that
//! shares it. Here a context that is not known has nothing to do.
//!
//! Envoy calls every callback that a module exports, for each request: only those are here
//! that have something to do.
#![allow(unsafe_code)]

use super::plugin::{self, Plugin};
use super::stream::Stream;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

/// Goes on with a stream, or waits since it has been answered.
#[repr(u32)]
#[derive(Clone, Copy)]
pub(super) enum Action {
    Continue = 0,
    Pause = 1,
}

/// Root contexts by their number: one for each plugin configuration. Without a plugin until
/// it is configured, and if its configuration is bad.
type Roots = BTreeMap<u32, Option<Rc<Plugin>>>;
/// Those of HTTP streams, but for those of a plugin that is not configured.
type Streams = BTreeMap<u32, Rc<RefCell<Stream>>>;

thread_local! {
    static ROOTS: RefCell<Roots> = const { RefCell::new(BTreeMap::new()) };
    static STREAMS: RefCell<Streams> = const { RefCell::new(BTreeMap::new()) };
}

// Neither is borrowed while something else is done: a callback may come while a host call of
// another is under way.

fn root(id: u32) -> Option<Rc<Plugin>> {
    ROOTS.with_borrow(|roots| roots.get(&id).cloned().flatten())
}

fn with_stream<T>(id: u32, run: impl FnOnce(&mut Stream) -> T) -> Option<T> {
    let stream = STREAMS.with_borrow(|streams| streams.get(&id).cloned())?;
    let mut stream = stream.try_borrow_mut().ok()?;
    Some(run(&mut stream))
}

unsafe extern "C" {
    fn __wasm_call_ctors();
}

/// Called first.
#[unsafe(no_mangle)]
extern "C" fn _initialize() {
    // SAFETY: of the linker; called once, before anything else.
    unsafe { __wasm_call_ctors() };
    super::start();
}

#[unsafe(no_mangle)]
extern "C" fn proxy_abi_version_0_2_1() {}

/// Memory for what a host call returns: `host_calls` frees it as a boxed slice.
#[unsafe(no_mangle)]
extern "C" fn proxy_on_memory_allocate(size: usize) -> *mut u8 {
    Box::into_raw(Box::<[u8]>::new_uninit_slice(size)).cast()
}

/// `of`: the root context of a stream's plugin; 0 for a root context.
#[unsafe(no_mangle)]
extern "C" fn proxy_on_context_create(id: u32, of: u32) {
    if of == 0 {
        ROOTS.with_borrow_mut(|roots| roots.insert(id, None));
    } else if let Some(plugin) = root(of) {
        let stream = Rc::new(RefCell::new(Stream::new(plugin)));
        let before = STREAMS.with_borrow_mut(|streams| streams.insert(id, stream));
        drop(before);
    }
}

/// False to refuse the configuration.
#[unsafe(no_mangle)]
extern "C" fn proxy_on_configure(id: u32, _size: usize) -> bool {
    let (plugin, is_taken) = plugin::configure();
    // Dropped when nothing is borrowed any more.
    let before = ROOTS.with_borrow_mut(|roots| roots.insert(id, plugin));
    drop(before);
    is_taken
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_tick(id: u32) {
    if let Some(plugin) = root(id) {
        plugin.on_tick();
    }
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_request_headers(id: u32, _count: usize, _is_end: bool) -> Action {
    with_stream(id, Stream::on_request_headers).unwrap_or(Action::Continue)
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_response_headers(id: u32, _count: usize, _is_end: bool) -> Action {
    with_stream(id, Stream::on_response_headers);
    Action::Continue
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_response_trailers(id: u32, _count: usize) -> Action {
    with_stream(id, Stream::on_response_trailers);
    Action::Continue
}

/// The answer to an HTTP call of a root context, or what Envoy says in its place.
#[unsafe(no_mangle)]
extern "C" fn proxy_on_http_call_response(
    id: u32,
    token: u32,
    _headers: usize,
    _body_size: usize,
    _trailers: usize,
) {
    if let Some(plugin) = root(id) {
        plugin.reported(token);
    }
}

/// A stream is over. Not called for upstream filters.
#[unsafe(no_mangle)]
extern "C" fn proxy_on_log(id: u32) {
    with_stream(id, Stream::on_log);
}

/// The last call for a context.
#[unsafe(no_mangle)]
extern "C" fn proxy_on_delete(id: u32) {
    // Dropped when nothing is borrowed any more.
    let stream = STREAMS.with_borrow_mut(|streams| streams.remove(&id));
    if stream.is_none() {
        let root = ROOTS.with_borrow_mut(|roots| roots.remove(&id));
        drop(root);
    }
    drop(stream);
}
