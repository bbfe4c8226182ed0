//! The module: what is done when Envoy calls.
//!
//! [`crate::abi`] has the calls themselves, in both directions. What fails there
//! is counted and passed over: the request goes on without what it was for.

use crate::abi::{self, Failure, Map};
use crate::config::{Config, Direction};
use crate::filter::{Filter, Host, Outcome, REPORT, WorkerState};
use crate::headers::{Edit, Pairs};
use crate::metrics::Counter;
use crate::relay::Decision;
use crate::report::{self, RateLimit};
use crate::rules::Severity;
use crate::setup::{self, Expected, Labels, Setup};
use crate::store::{self, NotSet, SharedData, Ticket};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

/// How often Envoy is to call [`tick`], in milliseconds.
const TICK_MS: u32 = 1000;
const CRITICAL: u32 = 5;
/// A plugin that has not ticked for so long is gone.
const AT_WORK_MS: u64 = 5 * TICK_MS as u64;

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

/// What the module remembers: one for each VM, and Envoy has a VM on each
/// worker thread.
pub(crate) struct Module {
    /// By ID. Envoy numbers contexts one after the other: a new one goes to the
    /// end, and most of those that go are near it.
    contexts: VecDeque<(u32, Context)>,
    /// Shared by the plugins: inbound and outbound meet here.
    memory: Option<WorkerState>,
}

enum Context {
    /// A root context: one for each plugin configuration. `None` until it is
    /// configured, and if its configuration is bad.
    Plugin(Option<Rc<Plugin>>),
    Stream(Stream),
}

impl Module {
    pub(crate) const fn new() -> Self {
        Self {
            contexts: VecDeque::new(),
            memory: None,
        }
    }

    fn memory(&mut self) -> &mut WorkerState {
        self.memory
            .get_or_insert_with(|| WorkerState::open(&Envoy, first_half(abi::random())))
    }

    /// Where a context is, or would be.
    fn place(&self, id: u32) -> Result<usize, usize> {
        // The latest is asked for most.
        match self.contexts.back() {
            Some((last, _)) if *last == id => Ok(self.contexts.len() - 1),
            _ => self.contexts.binary_search_by_key(&id, |(id, _)| *id),
        }
    }

    fn put(&mut self, id: u32, context: Context) {
        match self.place(id) {
            Ok(at) => {
                if let Some(place) = self.contexts.get_mut(at) {
                    place.1 = context;
                }
            }
            Err(at) => self.contexts.insert(at, (id, context)),
        }
    }

    fn plugin(&self, id: u32) -> Option<Rc<Plugin>> {
        match self.contexts.get(self.place(id).ok()?)? {
            (_, Context::Plugin(plugin)) => plugin.clone(),
            (_, Context::Stream(_)) => None,
        }
    }

    fn stream(&mut self, id: u32) -> Option<&mut Stream> {
        let at = self.place(id).ok()?;
        match self.contexts.get_mut(at)? {
            (_, Context::Plugin(_)) => None,
            (_, Context::Stream(stream)) => Some(stream),
        }
    }

    fn take(&mut self, id: u32) -> Option<Context> {
        let at = self.place(id).ok()?;
        self.contexts.remove(at).map(|(_, context)| context)
    }
}

/// Envoy does not call in while the module calls out; should it ever, the inner
/// call does nothing rather than panic.
fn with<T: Default>(act: impl FnOnce(&mut Module) -> T) -> T {
    match abi::module().try_borrow_mut() {
        Ok(mut module) => act(&mut module),
        Err(_) => T::default(),
    }
}

/// Before anything else.
pub(crate) fn start() {
    // There is no other logger that it could clash with.
    let _ = log::set_logger(&Logger);
    log::set_max_level(log::LevelFilter::Info);
    // Nothing panics on purpose. The VM is gone then, with every plugin that shares it.
    std::panic::set_hook(Box::new(|panic| abi::log(CRITICAL, &panic.to_string())));
}

/// A new context: a root context if it has no `parent` (0), or else a stream.
pub(crate) fn create(context: u32, parent: u32) {
    with(|module| {
        let new = match parent {
            0 => Context::Plugin(None),
            _ => Context::Stream(Stream {
                plugin: module.plugin(parent),
                ticket: None,
                answered: false,
                call: None,
                expected: None,
                response_report: None,
            }),
        };
        module.put(context, new);
    });
}

/// Reads the configuration of a root context. False to refuse it.
pub(crate) fn configure(context: u32) -> bool {
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
            let plugin = Rc::new(Plugin::new(config, extension()));
            plugin.say_at_work();
            plugin.tried(abi::set_tick_period(TICK_MS));
            if let Some(problem) = setup::without_labels(&Envoy, Envoy.labels()) {
                log::warn!("{}", problem.text);
            }
            with(|module| {
                module.memory();
                module.put(context, Context::Plugin(Some(plugin)));
            });
            true
        }
        Err(error) => {
            log::error!("{error}");
            let idle = !has_fallback();
            if idle {
                log::error!("configuration: nothing is done until it is corrected");
            }
            idle
        }
    }
}

/// Envoy has something in the place of a plugin that is refused. Not so for Istio's
/// WasmPlugin and TrafficExtension, unless one is at work: without any, Envoy would
/// answer every request with 500, `FAIL_OPEN` or not.
fn has_fallback() -> bool {
    extension().is_none_or(|key| {
        let since = abi::shared_data(&key)
            .ok()
            .and_then(|(at, _)| at.try_into().ok());
        // Saturating: the clock of the machine may be set back.
        since.is_some_and(|at| Envoy.now_ms().saturating_sub(u64::from_le_bytes(at)) < AT_WORK_MS)
    })
}

/// The key under which a plugin says that it is at work, if it comes as a WasmPlugin
/// or a TrafficExtension. Istio names those by namespace and name, with a dot between.
fn extension() -> Option<Vec<u8>> {
    let name = abi::property(b"plugin_name").ok()?;
    let is_extension = name.contains(&b'.');
    is_extension.then(|| [store::PREFIX, b"at-work/", &name].concat())
}

/// Time has passed.
pub(crate) fn tick(context: u32) {
    with(|module| {
        module.memory().tick(&Envoy);
        if let Some(plugin) = module.plugin(context) {
            plugin.say_at_work();
            plugin.look_at_setup(module.memory());
        }
    });
}

/// The headers of a request. As an upstream filter, of one attempt of the router.
/// False to stop, since it has been answered.
pub(crate) fn request_headers(context: u32) -> bool {
    // As an `Option`, so that the default is to go on.
    let answered: Option<()> = with(|module| {
        let plugin = module.stream(context)?.plugin.clone()?;
        let direction = plugin.direction();
        plugin.setup.borrow_mut().request(direction);
        let map = plugin.tried(Map::Request.pairs())?;
        let memory = module.memory();
        let host = EnvoyOf(&plugin);
        let outcome = plugin
            .filter
            .request(memory, &host, direction, Pairs::new(&map));
        plugin.report(&outcome, direction);
        let answered = plugin.answer(&outcome);
        if answered.is_none() {
            plugin.edit(&outcome);
        }
        if let Some(stream) = module.stream(context) {
            stream.ticket = outcome.ticket;
            stream.call = outcome.call;
            let mut setup = plugin.setup.borrow_mut();
            stream.expected = outcome.expected.filter(|_| setup.samples());
            if answered.is_none() {
                stream.response_report = outcome.response_report;
            }
        }
        answered
    });
    answered.is_none()
}

/// The headers of the response.
pub(crate) fn response_headers(context: u32) {
    with(|module| {
        let Some(stream) = module.stream(context) else {
            return;
        };
        stream.answered = true;
        if let (Some(plugin), Some(report)) = (&stream.plugin, stream.response_report.take()) {
            plugin.tried(Map::Response.add(REPORT, report.as_bytes()));
        }
    });
}

/// The stream is over. An ordinary HTTP filter is told so while the headers of the
/// request can still be read, as they were sent.
pub(crate) fn over(context: u32) {
    with(|module| {
        let Some(stream) = module.stream(context) else {
            return;
        };
        let (Some(plugin), Some(expected)) = (&stream.plugin, stream.expected.take()) else {
            return;
        };
        let Some(map) = plugin.tried(Map::Request.pairs()) else {
            return;
        };
        if expected.is_overwritten(Pairs::new(&map)) {
            plugin.count(Counter::Overwritten);
            if let Some(problem) = setup::overwritten(&Envoy) {
                log::warn!("{}", problem.text);
            }
        }
    });
}

/// The context is gone. Of a stream, whichever way: an upstream filter gets no
/// `on_log`, and a stream that is reset gets no response callbacks.
pub(crate) fn delete(context: u32) {
    with(|module| {
        let Some(Context::Stream(stream)) = module.take(context) else {
            return;
        };
        let Some(plugin) = stream.plugin else { return };
        if let Some(ticket) = stream.ticket {
            let memory = module.memory();
            if !plugin.filter.end(memory, &Envoy, ticket, stream.answered) {
                plugin.count(Counter::NotStored);
            }
        }
        if let Some(call) = stream.call {
            plugin.filter.returned(module.memory(), &Envoy, call);
        }
    });
}

/// What the streams of one plugin on one worker have in common.
struct Plugin {
    filter: Filter,
    /// Where it says that it is at work; see [`has_fallback`].
    extension: Option<Vec<u8>>,
    /// Few enough to look through: no name is built for a counter that is known.
    metrics: RefCell<Vec<(Counter, u32)>>,
    log: RefCell<RateLimit>,
    setup: RefCell<Setup>,
    /// Of the inbound side; `None` until a request has come.
    is_before_router: Cell<Option<bool>>,
}

impl Plugin {
    fn new(config: Config, extension: Option<Vec<u8>>) -> Self {
        let log = RefCell::new(RateLimit::new(config.log_lines_per_minute));
        let plugin = Self {
            filter: Filter::new(config),
            extension,
            metrics: RefCell::default(),
            log,
            setup: RefCell::default(),
            is_before_router: Cell::default(),
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

    /// See [`has_fallback`].
    fn say_at_work(&self) {
        if let Some(key) = &self.extension {
            let now = Envoy.now_ms().to_le_bytes();
            self.tried(abi::set_shared_data(key, &now, 0));
        }
    }

    fn look_at_setup(&self, memory: &mut WorkerState) {
        let now_ms = Envoy.now_ms();
        let has_workers = || !memory.store.workers(&Envoy, now_ms).is_empty();
        let mut setup = self.setup.borrow_mut();
        for problem in setup.tick(&Envoy, &self.filter.config, now_ms, has_workers) {
            log::warn!("{}", problem.text);
            if let Some(key) = problem.key {
                self.count(Counter::Misconfigured(key));
            }
        }
    }

    fn metric(&self, counter: Counter) -> Option<u32> {
        let counter = counter.without_amount();
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
            let _ = abi::increment(id, counter.amount());
        }
    }

    /// Counts what the host refuses, and goes on.
    fn tried<T, E>(&self, result: Result<T, E>) -> Option<T> {
        if result.is_err() {
            self.count(Counter::HostErrors);
        }
        result.ok()
    }

    /// An upstream filter knows the address of the upstream, one before the router does
    /// not yet (seen with Envoy 1.36 and 1.40).
    fn is_before_router(&self) -> bool {
        self.is_before_router.get().unwrap_or_else(|| {
            let is = abi::property(b"upstream\0address").is_err();
            self.is_before_router.set(Some(is));
            is
        })
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
            if let Some(suppressed) = self.log.borrow_mut().take(Envoy.now_ms()) {
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

    /// Answers the request, if it is to be answered and Envoy does so.
    fn answer(&self, outcome: &Outcome<'_>) -> Option<()> {
        let reply = outcome.reply.as_ref()?;
        let mut headers = vec![("content-type", "text/plain")];
        let report = outcome.response_report.as_deref();
        headers.extend(report.map(|report| (REPORT, report)));
        self.tried(abi::reply(reply.status, &headers, &reply.body))
    }

    fn edit(&self, outcome: &Outcome<'_>) {
        for edit in &outcome.edits {
            self.tried(match edit {
                Edit::Set(name, value) => Map::Request.replace(name, value),
                Edit::Add(name, value) => Map::Request.add(name, value),
                Edit::Remove(name) => Map::Request.remove(name),
            });
        }
    }
}

/// One HTTP stream; as an upstream filter, one attempt of the router.
struct Stream {
    plugin: Option<Rc<Plugin>>,
    ticket: Option<Ticket>,
    /// The response has begun.
    answered: bool,
    call: Option<u64>,
    /// What is to be looked at again when the stream is over.
    expected: Option<Expected>,
    response_report: Option<String>,
}

/// Envoy, as the filter sees it.
struct Envoy;

fn first_half(random: [u8; 16]) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = random;
    // Should there be no randomness, two VMs still differ in the time.
    u64::from_le_bytes([a, b, c, d, e, f, g, h]) ^ abi::now().unwrap_or_default().rotate_left(20)
}

impl Envoy {
    /// What Istio was told of labels, as far as the node's metadata tell: pilot-agent
    /// puts the proxy configuration there. A list cannot be read as a property, but is
    /// told apart from one that is missing.
    fn labels(&self) -> Labels {
        let node = |name: &[u8]| abi::property(&[b"xds\0node\0metadata\0", name].concat());
        if node(b"ISTIO_VERSION").is_err() {
            return Labels::NotIstio;
        }
        match node(b"PROXY_CONFIG\0extraStatTags") {
            Err(Failure::NOT_FOUND) => Labels::Missing,
            Ok(_) | Err(_) => Labels::Given,
        }
    }
}

impl Host for Envoy {
    fn now_us(&self) -> u64 {
        abi::now().unwrap_or_default() / 1_000
    }

    fn random(&self) -> [u8; 16] {
        abi::random()
    }

    fn cluster(&self) -> Option<Vec<u8>> {
        abi::property(b"xds\0cluster_name").ok()
    }

    fn node_id(&self) -> Option<Vec<u8>> {
        abi::property(b"xds\0node\0id").ok()
    }

    fn is_istio(&self) -> bool {
        abi::property(b"xds\0node\0metadata\0ISTIO_VERSION").is_ok()
    }
}

impl SharedData for Envoy {
    fn get(&self, key: &[u8]) -> Option<(Vec<u8>, u32)> {
        abi::shared_data(key).ok()
    }

    fn set(&self, key: &[u8], value: &[u8], cas: u32) -> Result<(), NotSet> {
        abi::set_shared_data(key, value, cas).map_err(|_| NotSet)
    }
}

/// Envoy, as the filter of this plugin sees it.
struct EnvoyOf<'a>(&'a Plugin);

impl Host for EnvoyOf<'_> {
    fn now_us(&self) -> u64 {
        Envoy.now_us()
    }

    fn is_before_router(&self) -> bool {
        self.0.is_before_router()
    }

    fn random(&self) -> [u8; 16] {
        Envoy.random()
    }

    fn cluster(&self) -> Option<Vec<u8>> {
        Envoy.cluster()
    }

    fn node_id(&self) -> Option<Vec<u8>> {
        Envoy.node_id()
    }

    fn is_istio(&self) -> bool {
        Envoy.is_istio()
    }
}

impl SharedData for EnvoyOf<'_> {
    fn get(&self, key: &[u8]) -> Option<(Vec<u8>, u32)> {
        Envoy.get(key)
    }

    fn set(&self, key: &[u8], value: &[u8], cas: u32) -> Result<(), NotSet> {
        Envoy.set(key, value, cas)
    }
}
