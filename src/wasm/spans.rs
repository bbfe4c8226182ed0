//! Client spans: what Envoy knows of a call that is over, and the reports.
//!
//! Reports go out with the root context's tick, never with a request. A batch that is full
//! before asks for an earlier tick.

use super::envoy::Envoy;
use super::host_calls;
use super::plugin::{Plugin, TICK_MS};
use crate::config::SpanReports;
use crate::headers::Pairs;
use crate::host::{Host, Recording};
use crate::metrics::Counter;
use crate::spans::{Added, Begun, Ended, Node, PROPERTIES, Recorder, Span, TIMEOUT_MS};
use proxy_wasm::hostcalls::dispatch_http_call;
use proxy_wasm::types::MapType;
use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::time::Duration;

/// Of a trace that is not sampled: a proxy before the collector is not to trace reports.
const UNSAMPLED: [(&str, &str); 2] = [
    ("x-b3-sampled", "0"),
    (
        "traceparent",
        "00-b3b3b3b3b3b3b3b3b3b3b3b3b3b3b3b3-b3b3b3b3b3b3b3b3-00",
    ),
];

/// So many calls in a row of whose end Envoy does not tell: no further span begins.
const UNTOLD: u8 = 10;
/// For so many ticks; then one is tried.
const CLOSED: u8 = 60;

type Shared = Rc<RefCell<Recorder>>;

thread_local! {
    /// The recorder of the plugin that was configured last: one with another configuration
    /// that reports to the same place goes on with it, and no span is lost.
    static LAST: RefCell<Option<(SpanReports, Weak<RefCell<Recorder>>)>> =
        const { RefCell::new(None) };
}

/// Where the client spans of one plugin on one worker go.
pub(super) struct Reporter {
    reports: SpanReports,
    recorder: Shared,
    sender: u32,
    /// The number of [`PROPERTIES`], as Envoy has it ready.
    expression: Option<Vec<u8>>,
    /// How many calls in a row Envoy has not told the end of.
    untold: Cell<u8>,
    /// An earlier tick was asked for. Kept here, not in the recorder: Envoy ticks at the last
    /// period until it gets another one, whoever has sent the batch meanwhile.
    is_early: Cell<bool>,
}

impl Reporter {
    #[inline(never)]
    pub(super) fn start(reports: SpanReports) -> Self {
        let recorder = LAST.with_borrow_mut(|last| {
            if let Some((to, recorder)) = last
                && *to == reports
                && let Some(recorder) = recorder.upgrade()
            {
                return recorder;
            }
            let node = Node::ask(&|path| {
                host_calls::property(&[b"xds\0node\0", path].concat()).unwrap_or_default()
            });
            let recorder = Recorder::new(reports.format, node);
            let recorder = Rc::new(RefCell::new(recorder));
            *last = Some((reports.clone(), Rc::downgrade(&recorder)));
            recorder
        });
        let sender = recorder.borrow_mut().sender();
        Self {
            reports,
            recorder,
            sender,
            expression: host_calls::foreign("expr_create", PROPERTIES.as_bytes()).ok(),
            untold: Cell::default(),
            is_early: Cell::default(),
        }
    }

    /// A span that begins is likely to be reported.
    fn is_open(&self) -> bool {
        let is_told = self.expression.is_some() && self.untold.get() < UNTOLD;
        is_told && self.recorder.borrow().is_open()
    }

    /// Sends a report, if there is one to be sent. Returns the spans that are lost by that.
    #[inline(never)]
    fn send(&self) -> Option<Counter> {
        let now_ms = Envoy.now_ms();
        let report = self.recorder.borrow_mut().take(now_ms)?;
        let SpanReports {
            cluster,
            path,
            authority,
            ..
        } = &self.reports;
        let mut headers = vec![
            (":method", "POST"),
            (":path", path),
            (":authority", authority),
            ("content-type", report.content_type),
        ];
        headers.extend(UNSAMPLED);
        let timeout = Duration::from_millis(TIMEOUT_MS.into());
        let body = Some(report.body.as_slice());
        let sent = host_calls::has_envoys_http_call()
            .then(|| dispatch_http_call(cluster, headers, body, Vec::new(), timeout));
        let mut recorder = self.recorder.borrow_mut();
        match sent {
            Some(Ok(token)) => {
                recorder.sent((token, self.sender), report.spans, now_ms);
                None
            }
            // There is no such cluster, or it has no endpoints.
            Some(Err(_)) | None => {
                recorder.failed(now_ms);
                Some(Counter::SpansLost(report.spans))
            }
        }
    }
}

impl Plugin {
    /// Counters that exist from the start.
    pub(super) fn start_spans(&self) {
        let Some(reporter) = &self.reporter else {
            return;
        };
        for counter in [
            Counter::SpansSent(0),
            Counter::SpansDropped(0),
            Counter::SpansLost(0),
        ] {
            self.add(counter, None);
        }
        if reporter.expression.is_none() {
            self.count(Counter::HostErrors);
        }
    }

    /// Whether a span may begin.
    pub(super) fn recording(&self) -> Recording {
        match &self.reporter {
            None => Recording::Off,
            Some(reporter) if reporter.is_open() => Recording::Open,
            Some(_) => Recording::Closed,
        }
    }

    /// The call of a span is over.
    pub(super) fn end_span(&self, begun: &Begun) {
        let Some(reporter) = &self.reporter else {
            return;
        };
        let expression = reporter.expression.as_deref();
        let values = expression.map(|expression| host_calls::foreign("expr_evaluate", expression));
        let values = values.and_then(|values| self.ok(values));
        let values = values.unwrap_or_default();
        let values = Pairs::new(&values).map(|(value, _)| value);
        let Some(ended) = Ended::read(values) else {
            let untold = &reporter.untold;
            untold.set(match untold.get() + 1 {
                UNTOLD.. => UNTOLD + CLOSED,
                fewer => fewer,
            });
            self.count(Counter::SpansDropped(1));
            return;
        };
        reporter.untold.set(0);
        let span = Span {
            begun,
            ended: &ended,
        };
        let added = reporter.recorder.borrow_mut().add(&span);
        match added {
            Added::Waiting => {}
            Added::Full => {
                reporter.is_early.set(true);
                self.ok(host_calls::set_tick_period(1));
            }
            Added::Dropped => self.count(Counter::SpansDropped(1)),
        }
    }

    /// A tick: of its own time, or since a batch is full.
    pub(super) fn tick_of_spans(&self) {
        let Some(reporter) = &self.reporter else {
            return;
        };
        let untold = &reporter.untold;
        if untold.get() >= UNTOLD {
            untold.set(untold.get() - 1);
        }
        let now_ms = Envoy.now_ms();
        let forgotten = reporter.recorder.borrow_mut().forgotten(now_ms);
        if reporter.is_early.take() {
            self.ok(host_calls::set_tick_period(TICK_MS));
        }
        self.count_spans(Counter::SpansLost(forgotten));
        let lost = reporter.send();
        lost.into_iter().for_each(|lost| self.count_spans(lost));
    }

    /// A report was answered, or Envoy has answered in the collector's place.
    pub(super) fn reported(&self, token: u32) {
        let Some(reporter) = &self.reporter else {
            return;
        };
        let status = host_calls::header(MapType::HttpCallResponseHeaders, ":status");
        let status = status
            .ok()
            .and_then(|text| str::from_utf8(&text).ok()?.parse().ok());
        let answered = {
            let mut recorder = reporter.recorder.borrow_mut();
            recorder.answered(token, status.unwrap_or_default(), Envoy.now_ms())
        };
        match answered {
            Some((spans, true)) => self.count_spans(Counter::SpansSent(spans)),
            Some((spans, false)) => self.count_spans(Counter::SpansLost(spans)),
            None => {}
        }
        if reporter.recorder.borrow().is_due() {
            let lost = reporter.send();
            lost.into_iter().for_each(|lost| self.count_spans(lost));
        }
    }

    /// The plugin goes, and Envoy cancels its reports. What nobody else reports is lost, too.
    pub(super) fn end_spans(&self) {
        let Some(reporter) = &self.reporter else {
            return;
        };
        let lost = {
            let mut recorder = reporter.recorder.borrow_mut();
            let in_flight = recorder.gone(reporter.sender);
            match Rc::strong_count(&reporter.recorder) {
                1 => in_flight + recorder.waiting(),
                _ => in_flight,
            }
        };
        self.count_spans(Counter::SpansLost(lost));
    }

    /// Envoy refuses to count nothing.
    fn count_spans(&self, counter: Counter) {
        if counter.amount() > 0 {
            self.count(counter);
        }
    }
}
