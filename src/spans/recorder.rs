//! Batches of spans, their bounds, and how the collector is.
//!
//! A span that has begun is in the headers of its call: the callee's span names it as its
//! parent. So where it might not be reported none begins, and the callee's span hangs from
//! the span that the application got. Of those that have begun already, few are lost.

use super::otlp::Otlp;
use super::zipkin::Zipkin;
use super::{Encoder, Node, Span};
use crate::config::SpanFormat;

/// Spans that are worth a report before the tick.
const SPANS: u32 = 100;
/// Fewer are reported every second: so far apart are such reports at least, as a tick may be
/// a little early. There are more ticks where several plugins share the recorder, and while
/// one learns.
const APART_MS: u64 = 900;
/// Reports that may be in flight.
const IN_FLIGHT: usize = 2;
/// Bytes that wait to be reported, from which on no span begins.
const WAITING: usize = 256 * 1024;
/// Those from which on spans are dropped that have begun before.
const WAITING_MOST: usize = 2 * WAITING;
/// How long the collector may take to answer, in milliseconds.
pub const TIMEOUT_MS: u32 = 5000;
/// So many empty reports, one every `RETRY_MS`, are refused before spans are tried.
const PATIENCE: std::ops::Range<u32> = 12..720;
/// A report without an answer for so long never gets one.
const FORGOTTEN_MS: u64 = 3 * TIMEOUT_MS as u64;
/// How often a collector that has failed is asked whether it is well again.
const RETRY_MS: u64 = 5000;

/// What became of a span that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Added {
    /// It waits for the next report.
    Waiting,
    /// There are enough for a report: now, please.
    Full,
    /// There was no room.
    Dropped,
}

/// What is to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The body; of a collector that has failed, perhaps without a span.
    pub body: Vec<u8>,
    /// Its content type.
    pub content_type: &'static str,
    /// How many spans there are in it.
    pub spans: u32,
}

struct InFlight {
    token: u32,
    sender: u32,
    spans: u32,
    since_ms: u64,
}

/// The spans that wait to be reported, and the reports that wait for an answer.
pub struct Recorder {
    encoder: Box<dyn Encoder>,
    batch: Vec<u8>,
    spans: u32,
    in_flight: Vec<InFlight>,
    senders: u32,
    /// When a report was taken last.
    taken_ms: Option<u64>,
    /// When the collector failed last; `None`: it is well.
    failed_ms: Option<u64>,
    /// The answer to the last report that had spans.
    status: u16,
    /// So many empty reports were refused since spans were last tried in vain.
    refused: u32,
    /// So many are to be before spans are tried again.
    patience: u32,
    /// A report was asked for before the tick ([`Added::Full`]).
    is_asked: bool,
}

impl std::fmt::Debug for Recorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Recorder")
    }
}

impl Recorder {
    /// Of a proxy.
    pub fn new(format: SpanFormat, node: Node) -> Self {
        Self {
            encoder: match format {
                SpanFormat::Zipkin => Box::new(Zipkin(node)),
                SpanFormat::Otlp => Box::new(Otlp::new(node)),
            },
            batch: Vec::new(),
            spans: 0,
            in_flight: Vec::new(),
            senders: 0,
            taken_ms: None,
            failed_ms: None,
            status: 0,
            refused: 0,
            patience: PATIENCE.start,
            is_asked: false,
        }
    }

    /// A span may begin.
    pub fn is_open(&self) -> bool {
        self.failed_ms.is_none() && self.batch.len() < WAITING
    }

    /// A span is over.
    pub fn add(&mut self, span: &Span<'_>) -> Added {
        if self.batch.len() >= WAITING_MOST {
            return Added::Dropped;
        }
        self.encoder.append(span, &mut self.batch);
        self.spans += 1;
        let is_due = self.spans >= SPANS && self.failed_ms.is_none();
        match is_due && self.in_flight.len() < IN_FLIGHT && !self.is_asked {
            true => {
                self.is_asked = true;
                Added::Full
            }
            false => Added::Waiting,
        }
    }

    /// As many spans wait as are worth a report.
    pub fn is_due(&self) -> bool {
        self.spans >= SPANS
    }

    fn is_worth_it(&self, now_ms: u64) -> bool {
        let taken_ms = self.taken_ms;
        let is_late = taken_ms.is_none_or(|taken_ms| now_ms.abs_diff(taken_ms) >= APART_MS);
        self.is_due() || self.spans > 0 && is_late
    }

    /// What is to be sent now, if anything. A collector that has failed gets one report at a
    /// time, and every `RETRY_MS` only.
    pub fn take(&mut self, now_ms: u64) -> Option<Report> {
        self.is_asked = false;
        let may_send = match self.failed_ms {
            None => self.in_flight.len() < IN_FLIGHT && self.is_worth_it(now_ms),
            Some(at) => now_ms.abs_diff(at) >= RETRY_MS && self.in_flight.is_empty(),
        };
        if !may_send {
            return None;
        }
        self.taken_ms = Some(now_ms);
        let body = self.encoder.body(&self.batch);
        self.batch.clear();
        Some(Report {
            body,
            content_type: self.encoder.content_type(),
            spans: std::mem::take(&mut self.spans),
        })
    }

    /// The number of a plugin that is to send reports.
    pub fn sender(&mut self) -> u32 {
        self.senders = self.senders.wrapping_add(1);
        self.senders
    }

    /// A report is on its way.
    pub fn sent(&mut self, (token, sender): (u32, u32), spans: u32, now_ms: u64) {
        self.in_flight.push(InFlight {
            token,
            sender,
            spans,
            since_ms: now_ms,
        });
    }

    /// A report could not be sent.
    pub fn failed(&mut self, now_ms: u64) {
        self.failed_ms = Some(now_ms);
    }

    /// A report was answered, with this status: how many spans it had, and whether the
    /// collector has taken them. `None` if it is not one of this recorder.
    pub fn answered(&mut self, token: u32, status: u16, now_ms: u64) -> Option<(u32, bool)> {
        let at = self.in_flight.iter().position(|one| one.token == token)?;
        let report = self.in_flight.swap_remove(at);
        let is_taken = match (report.spans, status) {
            (_, 200..300) => true,
            // Some collectors take no empty report: they are well again, unless that is what
            // they said to the spans. Then spans are tried now and then.
            (0, 400) if self.status != 400 => true,
            (0, 400..500) => self.tries(),
            _ => false,
        };
        if report.spans > 0 {
            self.status = status;
        }
        if is_taken && report.spans > 0 {
            self.patience = PATIENCE.start;
        }
        match is_taken {
            true => self.failed_ms = None,
            false => self.failed_ms = Some(now_ms),
        }
        Some((report.spans, is_taken))
    }

    /// An empty report was refused. Whether spans are to be tried all the same: after a minute,
    /// two, four, up to an hour.
    fn tries(&mut self) -> bool {
        self.refused += 1;
        let tries = self.refused >= self.patience;
        if tries {
            self.refused = 0;
            self.patience = (2 * self.patience).min(PATIENCE.end);
        }
        tries
    }

    #[cfg(test)]
    pub(super) fn in_flight(&self) -> Vec<u32> {
        self.in_flight.iter().map(|one| one.token).collect()
    }

    /// How many spans wait to be reported.
    pub fn waiting(&self) -> u32 {
        self.spans
    }

    /// How many spans were in reports that will get no answer any more.
    pub fn forgotten(&mut self, now_ms: u64) -> u32 {
        self.forget(&|report| now_ms.abs_diff(report.since_ms) >= FORGOTTEN_MS)
    }

    /// The same, since Envoy cancels those of a plugin that is gone.
    pub fn gone(&mut self, sender: u32) -> u32 {
        self.forget(&|report| report.sender == sender)
    }

    fn forget(&mut self, is_over: &dyn Fn(&InFlight) -> bool) -> u32 {
        let mut spans = 0;
        self.in_flight.retain(|report| {
            let is_over = is_over(report);
            if is_over {
                spans += report.spans;
            }
            !is_over
        });
        spans
    }
}
