//! The module: everything that talks to Envoy, through the proxy-wasm ABI 0.2.1.
//!
//! No call here may panic: that would kill the VM of every plugin that shares
//! it on this worker. So only calls of the SDK that take and give bytes are
//! used, and what fails is counted and passed over.

use crate::config::{Config, Direction};
use crate::filter::{Filter, Host, Outcome};
use crate::header::{Edit, Pairs};
use crate::metrics::Counter;
use crate::relay::Decision;
use crate::report::{self, RateLimit};
use crate::rules::Severity;
use crate::store::{CasMismatch, SharedData, Ticket};
use proxy_wasm::hostcalls;
use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{Action, BufferType, ContextType, LogLevel, MapType, MetricType};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::UNIX_EPOCH;

proxy_wasm::main! {{
    proxy_wasm::set_log_level(LogLevel::Info);
    proxy_wasm::set_root_context(|_| Box::new(Root { plugin: None }));
}}

/// The root context: one for each plugin configuration and worker.
struct Root {
    plugin: Option<Rc<Plugin>>,
}

impl Context for Root {}

impl RootContext for Root {
    fn on_configure(&mut self, _: usize) -> bool {
        let configuration = hostcalls::get_buffer(BufferType::PluginConfiguration, 0, usize::MAX)
            .ok()
            .flatten()
            .unwrap_or_default();
        match Config::parse(&configuration) {
            Ok(config) => {
                self.plugin = Some(Rc::new(Plugin::new(config)));
                true
            }
            Err(error) => {
                log::error!("{error}");
                false
            }
        }
    }

    fn create_http_context(&self, _: u32) -> Option<Box<dyn HttpContext>> {
        Some(Box::new(Stream {
            plugin: self.plugin.clone(),
            ticket: None,
        }))
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }
}

/// What the streams of one plugin on one worker have in common.
struct Plugin {
    filter: Filter,
    envoy: Envoy,
    /// Few enough to look through: no name is built for a counter that is known.
    metrics: RefCell<Vec<(Counter, u32)>>,
    log: RefCell<RateLimit>,
}

impl Plugin {
    fn new(config: Config) -> Self {
        let envoy = Envoy::new();
        let log = RefCell::new(RateLimit::new(config.log_lines_per_minute));
        let plugin = Self {
            filter: Filter::new(config, &envoy),
            envoy,
            metrics: RefCell::default(),
            log,
        };
        // Counters that exist from the start read 0 until something happens.
        for decision in Decision::ALL {
            plugin.metric(Counter::Calls(*decision));
        }
        for counter in [Counter::Remembered, Counter::RequestIds, Counter::Evicted] {
            plugin.metric(counter);
        }
        plugin
    }

    fn metric(&self, counter: Counter) -> Option<u32> {
        let mut metrics = self.metrics.borrow_mut();
        if let Some((_, id)) = metrics.iter().find(|(known, _)| *known == counter) {
            return Some(*id);
        }
        let id = hostcalls::define_metric(MetricType::Counter, &counter.stat_name()).ok()?;
        metrics.push((counter, id));
        Some(id)
    }

    fn count(&self, counter: Counter) {
        if let Some(id) = self.metric(counter) {
            let _ = hostcalls::increment_metric(id, 1);
        }
    }

    /// Counts what the host refuses, and goes on.
    fn tried<T, E>(&self, result: Result<T, E>) -> Option<T> {
        if result.is_err() {
            self.count(Counter::HostErrors);
        }
        result.ok()
    }

    fn direction(&self) -> Option<Direction> {
        if self.filter.config.direction.is_some() {
            return self.filter.config.direction;
        }
        // envoy.config.core.v3.TrafficDirection, as a 64-bit integer.
        let property = hostcalls::get_property(vec!["xds", "listener_direction"]).ok()??;
        match u64::from_le_bytes(property.try_into().ok()?) {
            1 => Some(Direction::Inbound),
            2 => Some(Direction::Outbound),
            _ => None,
        }
    }

    fn report(&self, outcome: &Outcome<'_>, direction: Option<Direction>) {
        for counter in &outcome.counters {
            self.count(*counter);
        }
        for finding in &outcome.findings {
            self.count(Counter::Findings(finding.rule, direction));
            if finding.rule.severity() == Severity::Info {
                continue;
            }
            if let Some(suppressed) = self.log.borrow_mut().take(self.envoy.now_ms()) {
                let line = report::line(finding, direction);
                match suppressed {
                    0 => log::warn!("{line}"),
                    _ => {
                        log::warn!("b3relay: {line} ({suppressed} lines before this one left out)")
                    }
                }
            }
        }
    }
}

/// One HTTP stream; as an upstream filter, one attempt of the router.
struct Stream {
    plugin: Option<Rc<Plugin>>,
    ticket: Option<Ticket>,
}

impl Context for Stream {}

impl HttpContext for Stream {
    fn on_http_request_headers(&mut self, _: usize, _: bool) -> Action {
        let Some(plugin) = self.plugin.clone() else {
            return Action::Continue;
        };
        let direction = plugin.direction();
        let Some(map) = plugin.tried(abi::request_headers()) else {
            return Action::Continue;
        };
        let outcome = plugin
            .filter
            .request(&plugin.envoy, direction, Pairs::new(&map));
        self.ticket = outcome.ticket;
        plugin.report(&outcome, direction);
        if let Some(reply) = &outcome.reply {
            let headers = vec![("content-type", "text/plain")];
            let body = Some(reply.body.as_bytes());
            let sent = hostcalls::send_http_response(reply.status, headers, body);
            if plugin.tried(sent).is_some() {
                return Action::Pause;
            }
        }
        for edit in &outcome.edits {
            let map = MapType::HttpRequestHeaders;
            plugin.tried(match edit {
                Edit::Set(name, value) => hostcalls::set_map_value_bytes(map, name, Some(value)),
                Edit::Add(name, value) => hostcalls::add_map_value_bytes(map, name, value),
                Edit::Remove(name) => hostcalls::remove_map_value(map, name),
            });
        }
        Action::Continue
    }
}

/// The stream is gone, whichever way: an upstream filter gets no `on_log`, and
/// a stream that is reset gets no response callbacks.
impl Drop for Stream {
    fn drop(&mut self) {
        if let (Some(plugin), Some(ticket)) = (&self.plugin, self.ticket) {
            if !plugin.filter.end(&plugin.envoy, ticket) {
                plugin.count(Counter::Contention);
            }
        }
    }
}

/// Envoy, as the filter sees it.
struct Envoy {
    /// Tells the streams of this VM's plugin from those of every other.
    nonce: u64,
    streams: Cell<u64>,
}

impl Envoy {
    fn new() -> Self {
        let [a, b, c, d, e, f, g, h, ..] = random();
        Self {
            nonce: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            streams: Cell::new(0),
        }
    }
}

fn random() -> [u8; 16] {
    let mut bytes = [0; 16];
    // Envoy's `random_get` does not fail; if it did, IDs would be zeros.
    let _ = getrandom::fill(&mut bytes);
    bytes
}

impl Host for Envoy {
    fn now_ms(&self) -> u64 {
        let now = hostcalls::get_current_time().unwrap_or(UNIX_EPOCH);
        let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    fn random(&self) -> [u8; 16] {
        random()
    }

    fn unique(&self) -> u64 {
        let stream = self.streams.get();
        self.streams.set(stream.wrapping_add(1));
        self.nonce.wrapping_add(stream)
    }
}

impl SharedData for Envoy {
    fn get(&self, key: &str) -> Option<(Vec<u8>, u32)> {
        // A value of no bytes comes back as `None` with a CAS number.
        let (value, cas) = hostcalls::get_shared_data(key).ok()?;
        Some((value.unwrap_or_default(), cas?))
    }

    fn set(&self, key: &str, value: &[u8], cas: u32) -> Result<(), CasMismatch> {
        hostcalls::set_shared_data(key, Some(value), Some(cas)).map_err(|_| CasMismatch)
    }
}

/// The one call that the SDK has no fitting form of: its own makes two
/// allocations for each header, and panics on a name that is not UTF-8.
mod abi {
    #![allow(unsafe_code)]

    use proxy_wasm::types::Status;
    use std::ptr;

    #[link(wasm_import_module = "env")]
    unsafe extern "C" {
        fn proxy_get_header_map_pairs(map: u32, data: *mut *mut u8, size: *mut usize) -> u32;
    }

    /// `HttpRequestHeaders` of the ABI.
    const REQUEST_HEADERS: u32 = 0;

    /// The serialised header map of the request.
    pub(super) fn request_headers() -> Result<Vec<u8>, Status> {
        let mut data = ptr::null_mut();
        let mut size = 0;
        // SAFETY: on success the host has allocated `size` bytes at `data` with
        // the module's own `proxy_on_memory_allocate`, a boxed slice of that
        // length, and has handed them over.
        unsafe {
            match proxy_get_header_map_pairs(REQUEST_HEADERS, &mut data, &mut size) {
                0 if data.is_null() => Ok(Vec::new()),
                0 => Ok(Vec::from_raw_parts(data, size, size)),
                _ => Err(Status::InternalFailure),
            }
        }
    }
}
