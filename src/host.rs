//! The module: contexts and callbacks, between Envoy and the filter.
//!
//! The SDK hands the callbacks on; host functions are called through
//! [`crate::abi`]. What fails there is counted and passed over: the request
//! goes on without what it was for.

use crate::abi::{self, Failure, Map};
use crate::config::{Config, Direction};
use crate::filter::{Filter, Host, Outcome, REPORT};
use crate::header::{Edit, Pairs};
use crate::metrics::Counter;
use crate::relay::Decision;
use crate::report::{self, RateLimit};
use crate::rules::Severity;
use crate::store::{CasMismatch, SharedData, Ticket};
use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{Action, ContextType};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

proxy_wasm::main! {{
    // There is no other logger that it could clash with.
    let _ = log::set_logger(&Logger);
    log::set_max_level(log::LevelFilter::Info);
    std::panic::set_hook(Box::new(|panic| abi::log(CRITICAL, &panic.to_string())));
    proxy_wasm::set_root_context(|_| Box::new(Root { plugin: None }));
}}

const CRITICAL: u32 = 5;

/// Writes to Envoy's log, component `wasm`.
struct Logger;

impl log::Log for Logger {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &log::Record<'_>) {
        let level = match record.level() {
            log::Level::Trace => 0,
            log::Level::Debug => 1,
            log::Level::Info => 2,
            log::Level::Warn => 3,
            log::Level::Error => 4,
        };
        if self.enabled(record.metadata()) {
            abi::log(level, &record.args().to_string());
        }
    }

    fn flush(&self) {}
}

/// The root context: one for each plugin configuration and worker.
struct Root {
    plugin: Option<Rc<Plugin>>,
}

impl Context for Root {}

impl RootContext for Root {
    fn on_configure(&mut self, _: usize) -> bool {
        // No configuration at all is not found, and is the default.
        let configuration = match abi::plugin_configuration() {
            Ok(configuration) => configuration,
            Err(Failure::NOT_FOUND) => Vec::new(),
            Err(Failure(status)) => {
                log::error!("configuration: cannot be read (status {status})");
                return false;
            }
        };
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
            response_report: None,
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
        let id = abi::define_counter(&counter.stat_name()).ok()?;
        metrics.push((counter, id));
        Some(id)
    }

    fn count(&self, counter: Counter) {
        if let Some(id) = self.metric(counter) {
            let _ = abi::increment(id);
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
        let property = abi::property(b"xds\0listener_direction").ok()?;
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
            let severity = self.filter.config.severity(finding.rule);
            let Some(severity @ (Severity::Warn | Severity::Error)) = severity else {
                continue;
            };
            if let Some(suppressed) = self.log.borrow_mut().take(self.envoy.now_ms()) {
                let line = report::line(finding, severity, direction);
                match suppressed {
                    0 => log::warn!("{line}"),
                    _ => {
                        log::warn!("{line} ({suppressed} lines before this one left out)")
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
    response_report: Option<String>,
}

impl Context for Stream {}

impl HttpContext for Stream {
    fn on_http_request_headers(&mut self, _: usize, _: bool) -> Action {
        let Some(plugin) = self.plugin.clone() else {
            return Action::Continue;
        };
        let direction = plugin.direction();
        let Some(map) = plugin.tried(Map::Request.pairs()) else {
            return Action::Continue;
        };
        let outcome = plugin
            .filter
            .request(&plugin.envoy, direction, Pairs::new(&map));
        self.ticket = outcome.ticket;
        plugin.report(&outcome, direction);
        if let Some(reply) = &outcome.reply {
            let mut headers = vec![("content-type", "text/plain")];
            let report = outcome.response_report.as_deref();
            headers.extend(report.map(|report| (REPORT, report)));
            let sent = abi::reply(reply.status, &headers, &reply.body);
            if plugin.tried(sent).is_some() {
                return Action::Pause;
            }
        }
        for edit in &outcome.edits {
            plugin.tried(match edit {
                Edit::Set(name, value) => Map::Request.replace(name, value),
                Edit::Add(name, value) => Map::Request.add(name, value),
                Edit::Remove(name) => Map::Request.remove(name),
            });
        }
        self.response_report = outcome.response_report;
        Action::Continue
    }

    fn on_http_response_headers(&mut self, _: usize, _: bool) -> Action {
        if let (Some(plugin), Some(report)) = (&self.plugin, self.response_report.take()) {
            plugin.tried(Map::Response.add(REPORT, report.as_bytes()));
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
        let nonce = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
        Self {
            // Should there be no randomness, two VMs still differ in the time.
            nonce: nonce ^ abi::now().unwrap_or_default().rotate_left(20),
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
        abi::now().unwrap_or_default() / 1_000_000
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
        abi::shared_data(key).ok()
    }

    fn set(&self, key: &str, value: &[u8], cas: u32) -> Result<(), CasMismatch> {
        abi::set_shared_data(key, value, cas).map_err(|_| CasMismatch)
    }
}
