//! The module that Envoy loads, on the SDK (crate `proxy-wasm`); on `wasm32` only.
//!
//! | module | what it is |
//! |---|---|
//! | `plugin` | the root context: configuration, ticks, what its streams share |
//! | `stream` | the HTTP context: the headers of a request, its end |
//! | `spans` | client spans: what Envoy knows of a call, and reports |
//! | `envoy` | Envoy, as the core sees it |
//! | `host_calls` | the host calls, where the SDK's own would panic |
//!
//! `exports.json` lists the callbacks that the build leaves in the module: Envoy calls
//! every one that is exported, for each request. A new one goes there too.

mod envoy;
mod host_calls;
mod plugin;
mod spans;
mod stream;

use proxy_wasm::types::LogLevel;

/// Writes to Envoy's log, component `wasm`. The SDK's logger panics where a line cannot
/// be written.
struct Logger;

impl log::Log for Logger {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &log::Record<'_>) {
        let level = match record.level() {
            log::Level::Trace => LogLevel::Trace,
            log::Level::Debug => LogLevel::Debug,
            log::Level::Info => LogLevel::Info,
            log::Level::Warn => LogLevel::Warn,
            log::Level::Error => LogLevel::Error,
        };
        if self.enabled(record.metadata()) {
            host_calls::log(level, &record.args().to_string());
        }
    }

    fn flush(&self) {}
}

proxy_wasm::main! {{
    // Fails if there is a logger already: there is none.
    let _ = log::set_logger(&Logger);
    log::set_max_level(log::LevelFilter::Info);
    // A panic ends the VM, with every plugin that shares it.
    std::panic::set_hook(Box::new(|panic| {
        host_calls::log(LogLevel::Critical, &panic.to_string());
    }));
    proxy_wasm::set_root_context(|_| Box::new(plugin::Root::default()));
}}
