//! A plugin: its root context, and what its streams on one worker have in common.

use super::envoy::{Envoy, EnvoyOf};
use super::host_calls::{self, Failure};
use super::spans::Reporter;
use super::stream::{Idle, Stream};
use crate::config::{Config, Direction};
use crate::filter::{Filter, Outcome, REPORT, WorkerState};
use crate::headers::Edit;
use crate::host::Host;
use crate::metrics::{Counter, Sum};
use crate::relay::Decision;
use crate::report::{self, RateLimit};
use crate::rules::Severity;
use crate::setup::{self, Setup};
use crate::store;
use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{ContextType, MapType};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// How often Envoy calls [`RootContext::on_tick`], in milliseconds.
pub(super) const TICK_MS: u32 = 1000;
/// The same, while there is something to learn of the application; or a part of it.
const LEARN_MS: u32 = 100;
/// A plugin that has not ticked for so long is gone.
const AT_WORK_MS: u64 = 5 * TICK_MS as u64;

thread_local! {
    /// What the plugins of this VM remember together: inbound and outbound meet here.
    /// Envoy has a VM on each worker thread.
    /// It goes with the VM, and never before.
    static MEMORY: &'static RefCell<WorkerState> =
        Box::leak(Box::new(RefCell::new(WorkerState::open(&Envoy, Envoy.seed()))));
}

/// The root context: one for each plugin configuration. Without a plugin until it is
/// configured, and if its configuration is bad.
#[derive(Default)]
pub(super) struct Root(Option<Rc<Plugin>>);

/// Envoy goes on with the ticks of a root context that is gone: it would wake up each worker
/// for nothing, at the last period, up to a thousand times a second.
impl Drop for Root {
    fn drop(&mut self) {
        let _ = host_calls::set_tick_period(0);
    }
}

impl Context for Root {
    fn on_http_call_response(&mut self, token: u32, _: usize, _: usize, _: usize) {
        if let Some(plugin) = &self.0 {
            plugin.reported(token);
        }
    }
}

impl RootContext for Root {
    /// False to refuse the configuration.
    fn on_configure(&mut self, _: usize) -> bool {
        // No configuration at all is not found, and is the default.
        let configuration = match host_calls::plugin_configuration() {
            Ok(configuration) => configuration,
            Err(Failure::NOT_FOUND) => Vec::new(),
            Err(Failure(status)) => {
                log::error!("configuration: cannot be read (status {status})");
                return false;
            }
        };
        match Config::parse(&configuration) {
            Ok(config) => {
                self.0 = Some(Rc::new(Plugin::start(config)));
                true
            }
            Err(error) => {
                log::error!("{error}");
                let idle = is_idle(&configuration);
                if idle {
                    log::error!("configuration: nothing is done until it is corrected");
                }
                idle
            }
        }
    }

    fn on_tick(&mut self) {
        if let Some(plugin) = &self.0 {
            plugin.tick_of_spans();
            if plugin.is_due() {
                plugin.tick();
            }
            plugin.learn();
        }
    }

    fn create_http_context(&self, _: u32) -> Option<Box<dyn HttpContext>> {
        Some(match &self.0 {
            Some(plugin) => Box::new(Stream::new(plugin.clone())),
            None => Box::new(Idle),
        })
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }
}

/// Whether a wrong configuration is taken, to do nothing, rather than refused.
///
/// What was taken once is taken again: Envoy tries a configuration apart from the VM that is
/// at work, but only once for each VM (proxy-wasm-cpp-host, `WasmHandleBase::canary`). If it
/// was refused later, the VM at work would count as failed, and Envoy would refuse the
/// corrected configuration, too.
fn is_idle(configuration: &[u8]) -> bool {
    let Some(name) = extension() else {
        return false;
    };
    let hash = crate::bytes::fnv1a(0, &[&name, configuration].concat());
    let key = [store::PREFIX, b"idle/", &hash.to_le_bytes()].concat();
    if host_calls::shared_data(&key).is_ok() {
        return true;
    }
    let idle = !has_fallback(&name);
    if idle {
        let _ = host_calls::set_shared_data(&key, &[], 0);
    }
    idle
}

/// Envoy has another answer where a plugin is refused. Not so for Istio's WasmPlugin
/// and TrafficExtension, unless one is at work: without any, Envoy would answer every
/// request with 500, `FAIL_OPEN` or not.
fn has_fallback(extension: &[u8]) -> bool {
    let since = host_calls::shared_data(extension)
        .ok()
        .and_then(|(at, _)| at.try_into().ok());
    // Saturating: the clock of the machine may be set back.
    since.is_some_and(|at| Envoy.now_ms().saturating_sub(u64::from_le_bytes(at)) < AT_WORK_MS)
}

/// The key under which a plugin announces that it is at work, if it comes as a WasmPlugin
/// or a TrafficExtension. Istio names those by namespace and name, with a dot between.
fn extension() -> Option<Vec<u8>> {
    let name = host_calls::property(b"plugin_name").ok()?;
    let is_extension = name.contains(&b'.');
    is_extension.then(|| [store::PREFIX, b"at-work/", &name].concat())
}

/// A counter of Envoy's.
struct Metric {
    counter: Counter,
    id: u32,
    sum: Sum,
}

/// What the streams of one plugin on one worker have in common.
pub(super) struct Plugin {
    pub(super) filter: Filter,
    pub(super) memory: &'static RefCell<WorkerState>,
    pub(super) setup: RefCell<Setup>,
    /// Where it announces that it is at work; see [`has_fallback`].
    extension: Option<Vec<u8>>,
    /// Few enough to look through: no name is built for a counter that is known.
    metrics: RefCell<Vec<Metric>>,
    log: RefCell<RateLimit>,
    /// Of the inbound side; `None` until a request has come.
    is_before_router: Cell<Option<bool>>,
    /// Where its client spans go.
    pub(super) reporter: Option<Reporter>,
    /// When it has ticked last, but for the spans and to learn.
    ticked_ms: Cell<u64>,
    /// It ticks more often, to learn.
    learns: Cell<bool>,
}

impl Plugin {
    fn start(config: Config) -> Self {
        let log = RefCell::new(RateLimit::new(config.log_lines_per_minute.get()));
        let reporter = config.spans.clone().map(Reporter::start);
        let plugin = Self {
            filter: Filter::new(config),
            memory: MEMORY.with(|memory| *memory),
            setup: RefCell::default(),
            extension: extension(),
            metrics: RefCell::default(),
            log,
            is_before_router: Cell::default(),
            reporter,
            ticked_ms: Cell::default(),
            learns: Cell::default(),
        };
        // Counters that exist from the start read 0 until something happens.
        for decision in Decision::ALL {
            plugin.add(Counter::Calls(*decision), None);
        }
        for counter in [Counter::Remembered, Counter::RequestIds, Counter::Evicted] {
            plugin.add(counter, None);
        }
        plugin.start_spans();
        plugin.announce();
        plugin.ok(host_calls::set_tick_period(TICK_MS));
        if let Some(problem) = setup::without_labels(&Envoy, Envoy.labels()) {
            warn(&problem.text, 0);
        }
        plugin
    }

    /// The spans, or the learning, may have asked for an earlier one.
    fn is_due(&self) -> bool {
        if self.reporter.is_none() && !self.learns.get() {
            return true;
        }
        let now_ms = Envoy.now_ms();
        // A clock that was set back, too.
        let is_due = now_ms.abs_diff(self.ticked_ms.get()) >= u64::from(TICK_MS / 2);
        if is_due {
            self.ticked_ms.set(now_ms);
        }
        is_due
    }

    fn tick(&self) {
        let memory = &mut *self.memory.borrow_mut();
        // As in requests, so that the module has the code once.
        let host = EnvoyOf(self);
        memory.tick(&host);
        self.announce();
        self.raise_counters();
        let now_ms = Envoy.now_ms();
        for line in self.filter.look_back(memory, &host) {
            self.count(Counter::LookedBack);
            if let Some(suppressed) = self.log.borrow_mut().take(now_ms) {
                warn(&line, suppressed);
            }
        }
        let mut setup = self.setup.borrow_mut();
        for problem in setup.tick(&host, &self.filter.config, now_ms) {
            warn(&problem.text, 0);
            if let Some(key) = problem.key {
                self.count(Counter::Misconfigured(key));
            }
        }
    }

    /// Learns for a few milliseconds at most, and asks for the next tick soon if there is
    /// more to do.
    fn learn(&self) {
        let slices = self.memory.borrow_mut().attribution.learn() as u32;
        let goes_on = slices > 0;
        if goes_on {
            self.ok(host_calls::set_tick_period(LEARN_MS / slices));
        } else if self.learns.get() {
            self.ok(host_calls::set_tick_period(TICK_MS));
        }
        self.learns.set(goes_on);
    }

    /// See [`has_fallback`].
    fn announce(&self) {
        if let Some(key) = &self.extension {
            let now = Envoy.now_ms().to_le_bytes();
            self.ok(host_calls::set_shared_data(key, &now, 0));
        }
    }

    /// Defines a counter, and adds an amount to it.
    pub(super) fn add(&self, counter: Counter, amount: Option<u32>) {
        let counter = counter.without_amount();
        let metrics = &mut *self.metrics.borrow_mut();
        let known = metrics.iter().position(|known| known.counter == counter);
        let at = known.unwrap_or(metrics.len());
        if known.is_none() {
            let Ok(id) = host_calls::define_counter(&counter.stat_name()) else {
                return;
            };
            let sum = Sum::default();
            metrics.push(Metric { counter, id, sum });
        }
        let Some(metric) = metrics.get_mut(at) else {
            return;
        };
        if let Some(by) = amount.and_then(|amount| metric.sum.add(amount)) {
            let _ = host_calls::increment(metric.id, by);
        }
        if let Some(before) = at.checked_sub(1) {
            // What is counted often is soon found first.
            metrics.swap(before, at);
        }
    }

    pub(super) fn count(&self, counter: Counter) {
        self.add(counter, Some(counter.amount()));
    }

    /// Raises the counters by what has been added up since the last tick.
    fn raise_counters(&self) {
        for Metric { id, sum, .. } in &mut *self.metrics.borrow_mut() {
            if let Some(by) = sum.take() {
                let _ = host_calls::increment(*id, by);
            }
        }
    }

    /// What a host call returned. A failure is counted, and the request goes on.
    pub(super) fn ok<T>(&self, result: Result<T, Failure>) -> Option<T> {
        if result.is_err() {
            self.count(Counter::HostErrors);
        }
        result.ok()
    }

    /// An upstream filter knows the address of the upstream, one before the router does
    /// not yet (seen with Envoy 1.36 and 1.40).
    pub(super) fn is_before_router(&self) -> bool {
        self.is_before_router.get().unwrap_or_else(|| {
            let is = host_calls::property(b"upstream\0address").is_err();
            self.is_before_router.set(Some(is));
            is
        })
    }

    /// As configured, or as the listener's `traffic_direction`.
    pub(super) fn direction(&self) -> Option<Direction> {
        if self.filter.config.direction.is_some() {
            return self.filter.config.direction;
        }
        // envoy.config.core.v3.TrafficDirection, as a 64-bit integer.
        let property = host_calls::property(b"xds\0listener_direction").ok()?;
        match u64::from_le_bytes(property.try_into().ok()?) {
            1 => Some(Direction::Inbound),
            2 => Some(Direction::Outbound),
            _ => None,
        }
    }

    /// Counts what was found and done, and logs what was found.
    pub(super) fn report(&self, outcome: &Outcome<'_>, direction: Option<Direction>) {
        for counter in &outcome.counters {
            self.count(*counter);
        }
        for finding in &outcome.findings {
            self.count(Counter::Findings(finding.rule, direction));
            let severity = self.filter.config.severity(finding.rule);
            let Some(severity @ (Severity::Warn | Severity::Error)) = severity else {
                continue;
            };
            if let Some(suppressed) = self.log.borrow_mut().take(Envoy.now_ms()) {
                warn(&report::line(finding, severity, direction), suppressed);
            }
        }
    }

    /// Answers the request if the outcome has a reply. True if Envoy sends it.
    pub(super) fn reply(&self, outcome: &Outcome<'_>) -> bool {
        let Some(reply) = &outcome.reply else {
            return false;
        };
        let mut headers = vec![("content-type", "text/plain")];
        let report = outcome.response_report.as_deref();
        headers.extend(report.map(|report| (REPORT, report)));
        self.ok(host_calls::reply(reply.status, &headers, &reply.body))
            .is_some()
    }

    /// Writes the outcome's edits onto the request.
    pub(super) fn edit(&self, outcome: &Outcome<'_>) {
        let map = MapType::HttpRequestHeaders;
        for edit in &outcome.edits {
            self.ok(match edit {
                Edit::Set(name, value) => host_calls::replace_header(map, name, value),
                Edit::Add(name, value) => host_calls::add_header(map, name, value),
                Edit::Remove(name) => host_calls::remove_header(map, name),
            });
        }
    }
}

/// Logs a line, after so many that were left out.
#[inline(never)]
fn warn(line: &str, suppressed: u64) {
    match suppressed {
        0 => log::warn!("{line}"),
        _ => log::warn!("{line} ({suppressed} lines before this one left out)"),
    }
}

/// A configuration that is replaced goes with its last stream.
impl Drop for Plugin {
    fn drop(&mut self) {
        self.end_spans();
        self.raise_counters();
    }
}
