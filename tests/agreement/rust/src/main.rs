//! `agreement repair`: requests in, repaired requests out.
//! `agreement read`: requests in, b3relay's own reading out.
//! `agreement otel`: requests in, the reading of OpenTelemetry for Rust out; with
//! `single` behind it, of its propagator that is set up for the single header.
//!
//! Lines: see `lines.py`.

#[path = "../../../support/mod.rs"]
mod support;

use b3relay::rules::check;
use b3relay::config::Direction;
use b3relay::headers::{Pairs, TraceHeaders, Wanted};
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::TraceContextExt;
#[allow(deprecated)] // with the exporter; it is still the B3 propagator
use opentelemetry_zipkin::{B3Encoding, Propagator};
use std::io::{BufRead, Write, stdin, stdout};
use support::{Headers, Sidecar, map};

fn parse(line: &str) -> Headers {
    let pair = |word: &str| {
        let (name, hex) = word.split_once('=').unwrap();
        let digits: Vec<u8> = hex.bytes().collect();
        let byte = |two: &[u8]| u8::from_str_radix(std::str::from_utf8(two).unwrap(), 16).unwrap();
        (name.to_string(), digits.chunks(2).map(byte).collect())
    };
    line.split_whitespace().map(pair).collect()
}

fn print(headers: &Headers) -> String {
    let word = |(name, value): &(String, Vec<u8>)| {
        let hex: String = value.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{name}={hex}")
    };
    headers.iter().map(word).collect::<Vec<_>>().join(" ")
}

fn read(headers: &Headers) -> String {
    let bytes = map(headers);
    let b3 = check(&TraceHeaders::read(Pairs::new(&bytes), &Wanted::default())).b3;
    let decision = match b3.sampling.decided() {
        Some(true) => '1',
        Some(false) => '0',
        None => '?',
    };
    match b3.ids {
        Some(ids) => {
            let parent = ids.parent.map(|parent| format!("{:016x}", parent.value()));
            let parent = parent.unwrap_or("-".to_string());
            format!("{:032x} {:016x} {parent} {decision}", ids.trace.value(), ids.span.value())
        }
        None => format!("- - - {decision}"),
    }
}

/// As `opentelemetry-http` does it: the first value, if it is visible ASCII.
struct Carrier<'a>(&'a Headers);

impl Extractor for Carrier<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        let (_, value) = self.0.iter().find(|(name, _)| name.eq_ignore_ascii_case(key))?;
        let visible = value.iter().all(|byte| (b' '..=b'~').contains(byte) || *byte == b'\t');
        std::str::from_utf8(value).ok().filter(|_| visible)
    }

    fn keys(&self) -> Vec<&str> {
        self.0.iter().map(|(name, _)| name.as_str()).collect()
    }
}

#[allow(deprecated)]
fn otel(headers: &Headers, single: bool) -> String {
    let propagator = match single {
        true => Propagator::with_encoding(B3Encoding::SingleHeader),
        false => Propagator::new(),
    };
    let context = propagator.extract(&Carrier(headers));
    let span = context.span();
    let span = span.span_context();
    match span.is_valid() {
        true => format!("{} {} ~ {}", span.trace_id(), span.span_id(), u8::from(span.is_sampled())),
        false => "- - ~ ~".to_string(),
    }
}

fn main() {
    let job = std::env::args().nth(1).unwrap();
    let mut out = stdout().lock();
    for line in stdin().lock().lines() {
        let headers = parse(&line.unwrap());
        let answer = match job.as_str() {
            "repair" => {
                let sidecar = Sidecar::new(r#"{"mode": "repair", "relay": false}"#);
                print(&sidecar.request(Some(Direction::Outbound), &headers).headers)
            }
            "read" => read(&headers),
            "otel" => otel(&headers, std::env::args().nth(2).as_deref() == Some("single")),
            other => panic!("no such job: {other}"),
        };
        writeln!(out, "{answer}").unwrap();
    }
}
