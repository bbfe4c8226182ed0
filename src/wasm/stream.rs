//! An HTTP stream; as an upstream filter, one attempt of the router.

use super::envoy::EnvoyOf;
use super::host_calls;
use super::plugin::Plugin;
use crate::filter::{REPORT, Watched};
use crate::headers::Pairs;
use crate::metrics::Counter;
use crate::setup::{self, Expected};
use crate::spans::Begun;
use crate::store::Ticket;
use proxy_wasm::traits::{Context, HttpContext};
use proxy_wasm::types::{Action, MapType};
use std::rc::Rc;

/// A stream of a plugin without a valid configuration.
pub(super) struct Idle;

impl Context for Idle {}
impl HttpContext for Idle {}

pub(super) struct Stream {
    plugin: Rc<Plugin>,
    ticket: Option<Ticket>,
    /// The response has begun.
    answered: bool,
    call: Option<u64>,
    /// What is compared with the headers when the stream is over.
    expected: Option<Expected>,
    /// Where the call went is read when it is over.
    watched: Option<Watched>,
    response_report: Option<String>,
    span: Option<Begun>,
}

impl Stream {
    /// The status of gRPC, in the headers of a response that has nothing else or behind it.
    fn read_grpc_status(&mut self, map: MapType) {
        let Some(span) = self.span.as_mut().filter(|span| span.is_grpc()) else {
            return;
        };
        if let Ok(status) = host_calls::header(map, "grpc-status") {
            span.answered(status, host_calls::header(map, "grpc-message").ok());
        }
    }

    pub(super) fn new(plugin: Rc<Plugin>) -> Self {
        Self {
            plugin,
            ticket: None,
            answered: false,
            call: None,
            expected: None,
            watched: None,
            response_report: None,
            span: None,
        }
    }
}

impl Context for Stream {}
impl HttpContext for Stream {
    fn on_http_request_headers(&mut self, _: usize, _: bool) -> Action {
        let plugin = &*self.plugin;
        let direction = plugin.direction();
        plugin.setup.borrow_mut().request(direction);
        let Some(map) = plugin.ok(host_calls::headers(MapType::HttpRequestHeaders)) else {
            return Action::Continue;
        };
        let outcome = plugin.filter.request(
            &mut plugin.memory.borrow_mut(),
            &EnvoyOf(plugin),
            direction,
            Pairs::new(&map),
        );
        plugin.report(&outcome, direction);
        let replied = plugin.reply(&outcome);
        if !replied {
            plugin.edit(&outcome);
        }
        self.ticket = outcome.ticket;
        self.call = outcome.call;
        self.span = outcome.span;
        self.watched = outcome.watched;
        let mut setup = plugin.setup.borrow_mut();
        self.expected = outcome.expected.filter(|_| setup.samples());
        if replied {
            return Action::Pause;
        }
        self.response_report = outcome.response_report;
        Action::Continue
    }

    fn on_http_response_headers(&mut self, _: usize, _: bool) -> Action {
        self.answered = true;
        if let Some(report) = self.response_report.take() {
            let map = MapType::HttpResponseHeaders;
            self.plugin
                .ok(host_calls::add_header(map, REPORT, report.as_bytes()));
        }
        self.read_grpc_status(MapType::HttpResponseHeaders);
        Action::Continue
    }

    fn on_http_response_trailers(&mut self, _: usize) -> Action {
        self.read_grpc_status(MapType::HttpResponseTrailers);
        Action::Continue
    }

    /// An ordinary HTTP filter gets this call at the end of a stream, while the headers
    /// of the request can still be read, as they were sent. An upstream filter does not.
    fn on_log(&mut self) {
        let plugin = &*self.plugin;
        if let Some(watched) = self.watched.take() {
            let memory = &mut *plugin.memory.borrow_mut();
            plugin.filter.sent(memory, &EnvoyOf(plugin), watched);
        }
        let Some(expected) = self.expected.take() else {
            return;
        };
        let map = host_calls::headers(MapType::HttpRequestHeaders);
        let Some(map) = plugin.ok(map) else {
            return;
        };
        if expected.is_overwritten(Pairs::new(&map)) {
            plugin.count(Counter::Overwritten);
            if let Some(problem) = setup::overwritten(&EnvoyOf(plugin)) {
                log::warn!("{}", problem.text);
            }
        }
    }
}

/// The end of a stream, whichever way: one that is reset gets no response callbacks.
/// The SDK has no callback for `proxy_on_delete`; it drops the context.
impl Drop for Stream {
    fn drop(&mut self) {
        let plugin = &*self.plugin;
        if let Some(span) = self.span.take() {
            plugin.end_span(&span);
        }
        let memory = &mut *plugin.memory.borrow_mut();
        if let Some(ticket) = self.ticket.take()
            && !plugin
                .filter
                .end(memory, &EnvoyOf(plugin), ticket, self.answered)
        {
            plugin.count(Counter::NotStored);
        }
        if let Some(call) = self.call {
            plugin.filter.returned(memory, &EnvoyOf(plugin), call);
        }
    }
}
