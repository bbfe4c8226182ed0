//! Spans as they are encoded, and reports as they are sent.

use super::flags::letters;
use super::*;
use crate::b3::{B3, Ids, Sampling, SpanId, TraceId};
use crate::config::SpanFormat;
use crate::headers::{Pairs, TraceHeaders, Wanted, serialize};
use crate::relay::Decision;
use crate::rules::{Finding, Rule};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::collections::BTreeMap;

fn node() -> Node {
    Node::ask(&|path| {
        let text = match path {
            b"id" => "sidecar~10.0.0.7~web-1.shop~shop.svc.cluster.local",
            b"cluster" => "web.shop",
            b"metadata\0ISTIO_VERSION" => "1.30.0",
            b"metadata\0LABELS\0service.istio.io/canonical-name" => "web",
            b"metadata\0NAMESPACE" => "shop",
            // The node as a whole.
            b"" => "everything",
            _ => "",
        };
        text.as_bytes().to_vec()
    })
}

fn begun(lines: &[(&str, &str)], sampling: Sampling) -> Begun {
    let map = serialize(lines);
    let headers = TraceHeaders::read(Pairs::new(&map), &Wanted::default());
    let context = B3 {
        ids: Some(Ids {
            trace: TraceId::new(0x463a_c35c_9f64_13ad_4848_5a39_53bb_6124, true).unwrap(),
            span: SpanId::new(0xa2fb_4a1d_1a96_d312).unwrap(),
            parent: SpanId::new(7),
        }),
        sampling,
    };
    Begun::new(context, (&headers, b"an-id"), Decision::Copied, &[]).unwrap()
}

const CALL: [(&str, &str); 5] = [
    (":method", "GET"),
    (":authority", "ratings:9080"),
    (":path", "/ratings/0?a=\"b\""),
    (":scheme", "http"),
    ("user-agent", "curl/8"),
];

fn ended() -> Ended<'static> {
    Ended {
        start_ns: 1_700_000_000_000_123_456,
        duration_ns: 5_000_999,
        status: 200,
        flags: 0,
        request_size: 0,
        response_size: 48,
        protocol: b"HTTP/1.1",
        source: b"10.0.0.7:41234",
        cluster: b"outbound|9080||ratings.shop.svc.cluster.local",
        virtual_host: b"ratings.shop.svc.cluster.local:9080",
    }
}

fn zipkin(begun: &Begun, ended: &Ended<'_>) -> Value {
    let mut recorder = Recorder::new(SpanFormat::Zipkin, node());
    recorder.add(&Span { begun, ended });
    let report = recorder.take(0).unwrap();
    assert_eq!(report.content_type, "application/json");
    let spans: Vec<Value> = serde_json::from_slice(&report.body).unwrap();
    let [span] = spans.try_into().unwrap();
    span
}

#[test]
fn a_span_in_zipkins_format() {
    let span = zipkin(&begun(&CALL, Sampling::Accept), &ended());
    let expected = json!({
        "traceId": "463ac35c9f6413ad48485a3953bb6124",
        "id": "a2fb4a1d1a96d312",
        "parentId": "0000000000000007",
        "kind": "CLIENT",
        "name": "ratings.shop.svc.cluster.local:9080/*",
        "timestamp": 1_700_000_000_000_123u64,
        "duration": 5000,
        "localEndpoint": {"serviceName": "web.shop", "ipv4": "10.0.0.7"},
        "tags": {
            "component": "proxy",
            "node_id": "sidecar~10.0.0.7~web-1.shop~shop.svc.cluster.local",
            "istio.canonical_revision": "latest",
            "istio.canonical_service": "web",
            "istio.mesh_id": "unknown",
            "istio.namespace": "shop",
            "istio.cluster_id": "unknown",
            "guid:x-request-id": "an-id",
            "http.url": "http://ratings:9080/ratings/0?a=\"b\"",
            "http.method": "GET",
            "user_agent": "curl/8",
            "downstream_cluster": "-",
            "http.protocol": "HTTP/1.1",
            "request_size": "0",
            "response_size": "48",
            "http.status_code": "200",
            "response_flags": "-",
            "peer.address": "10.0.0.7",
            "upstream_cluster": "outbound|9080||ratings.shop.svc.cluster.local",
            "upstream_cluster.name": "outbound|9080||ratings.shop.svc.cluster.local;",
            "b3relay.decision": "copied",
        },
    });
    assert_eq!(span, expected);
    let debug = zipkin(&begun(&CALL, Sampling::Debug), &ended());
    assert_eq!(debug["debug"], json!(true));
}

/// A message of protobuf: numbers of fields, and what is in them.
fn fields(mut bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let (mut value, mut shift) = (0, 0);
        loop {
            let (first, rest) = bytes.split_first().unwrap();
            *bytes = rest;
            value |= u64::from(first & 0x7f) << shift;
            shift += 7;
            if first & 0x80 == 0 {
                return value;
            }
        }
    }
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let length = match key & 7 {
            0 => {
                let value = varint(&mut bytes);
                found.push((key >> 3, value.to_le_bytes().to_vec()));
                continue;
            }
            1 => 8,
            2 => varint(&mut bytes) as usize,
            other => panic!("wire type {other}"),
        };
        let (value, rest) = bytes.split_at(length);
        found.push((key >> 3, value.to_vec()));
        bytes = rest;
    }
    found
}

/// The one field of that number.
fn field(message: &[u8], number: u64) -> Vec<u8> {
    let mut found = fields(message);
    found.retain(|(field, _)| *field == number);
    assert_eq!(found.len(), 1, "{number}");
    found.remove(0).1
}

fn attributes(message: &[u8], number: u64) -> BTreeMap<String, String> {
    let of_it = fields(message).into_iter().filter(|(n, _)| *n == number);
    let text = |bytes| String::from_utf8(bytes).unwrap();
    of_it
        .map(|(_, pair)| (text(field(&pair, 1)), text(field(&field(&pair, 2), 1))))
        .collect()
}

/// All spans of a report.
fn otlp(spans: &[Span<'_>]) -> Vec<Vec<u8>> {
    let mut recorder = Recorder::new(SpanFormat::Otlp, node());
    for span in spans {
        recorder.add(span);
    }
    let report = recorder.take(0).unwrap();
    assert_eq!(report.content_type, "application/x-protobuf");
    let of_resource = field(&report.body, 1);
    let resource = attributes(&field(&of_resource, 1), 1);
    assert_eq!(resource["service.name"], "web.shop");
    let of_scope = field(&of_resource, 2);
    assert_eq!(field(&field(&of_scope, 1), 1), b"b3relay");
    let spans = fields(&of_scope).into_iter().filter(|(n, _)| *n == 2);
    spans.map(|(_, span)| span).collect()
}

#[test]
fn a_span_in_opentelemetrys_format() {
    let long = format!("/{}", "a".repeat(300));
    let mut call = CALL;
    call[2].1 = &long;
    let (begun, ended) = (begun(&call, Sampling::Accept), ended());
    let span = Span {
        begun: &begun,
        ended: &ended,
    };
    let spans = otlp(&[span, span]);
    assert_eq!(spans.len(), 2);
    for span in &spans {
        assert_eq!(field(span, 1)[..2], [0x46, 0x3a]);
        assert_eq!(field(span, 2)[..2], [0xa2, 0xfb]);
        assert_eq!(field(span, 4), [0, 0, 0, 0, 0, 0, 0, 7]);
        assert_eq!(field(span, 5), b"ratings.shop.svc.cluster.local:9080/*");
        assert_eq!(field(span, 6), 3u64.to_le_bytes());
        assert_eq!(field(span, 7), ended.start_ns.to_le_bytes());
        let end = ended.start_ns + ended.duration_ns;
        assert_eq!(field(span, 8), end.to_le_bytes());
        let tags = attributes(span, 9);
        let same = zipkin(&begun, &ended);
        let same = same["tags"].as_object().unwrap().iter();
        let same = same.map(|(name, value)| (name.clone(), value.as_str().unwrap().to_string()));
        assert_eq!(tags, same.collect());
        assert_eq!(tags["http.url"].len(), "http://ratings:9080".len() + 256);
        assert!(fields(span).iter().all(|(number, _)| *number != 15));
    }
}

#[test]
fn what_is_an_error_says_so() {
    let call = begun(&CALL, Sampling::Accept);
    for (status, is_error, is_error_in_otlp) in [
        (0, true, false),
        (101, false, false),
        (200, false, false),
        (404, false, true),
        (500, true, true),
        (599, true, true),
    ] {
        let ended = Ended { status, ..ended() };
        let tags = zipkin(&call, &ended)["tags"].clone();
        let error = is_error.then(|| json!("true"));
        assert_eq!(tags.get("error"), error.as_ref(), "{status}");
        assert_eq!(tags["http.status_code"], json!(status.to_string()));
        let span = Span {
            begun: &call,
            ended: &ended,
        };
        let in_otlp = fields(&otlp(&[span])[0]).iter().any(|(n, _)| *n == 15);
        assert_eq!(in_otlp, is_error_in_otlp, "{status}");
    }
}

#[test]
fn grpc_has_its_own_status() {
    let mut lines = CALL.to_vec();
    lines.push(("content-type", "application/grpc+proto"));
    lines.push(("grpc-timeout", "1S"));
    let mut call = begun(&lines, Sampling::Accept);
    assert!(call.is_grpc());
    call.answered(b"14".to_vec(), Some(b"down".to_vec()));
    let tags = zipkin(&call, &ended())["tags"].clone();
    for (name, value) in [
        ("grpc.path", "/ratings/0?a=\"b\""),
        ("grpc.authority", "ratings:9080"),
        ("grpc.content_type", "application/grpc+proto"),
        ("grpc.timeout", "1S"),
        ("grpc.status_code", "14"),
        ("grpc.message", "down"),
        ("error", "true"),
    ] {
        assert_eq!(tags[name], json!(value));
    }
    // Empty, as many servers have it; and none.
    for message in [Some(Vec::new()), None] {
        call.answered(b"5".to_vec(), message.clone());
        let tags = zipkin(&call, &ended())["tags"].clone();
        assert_eq!(tags.get("error"), None);
        assert_eq!(tags.get("grpc.message"), None);
        let ended = ended();
        let span = Span {
            begun: &call,
            ended: &ended,
        };
        let span = &otlp(&[span])[0];
        let told = attributes(span, 9).remove("grpc.message");
        assert_eq!(told, message.map(|_| String::new()));
        // To OpenTelemetry every status but `OK` is an error of the client's.
        assert_eq!(fields(&field(span, 15)), [(3, 2u64.to_le_bytes().to_vec())]);
    }
    call.answered(b"0".to_vec(), None);
    let ended_well = ended();
    let span = Span {
        begun: &call,
        ended: &ended_well,
    };
    assert!(fields(&otlp(&[span])[0]).iter().all(|(n, _)| *n != 15));
    for other in ["application/grpc-web", "application/json", ""] {
        let lines = [
            CALL[0],
            CALL[1],
            ("content-type", other),
            ("grpc-timeout", "1S"),
        ];
        let call = begun(&lines, Sampling::Accept);
        assert!(!call.is_grpc(), "{other}");
        assert_eq!(zipkin(&call, &ended())["tags"].get("grpc.timeout"), None);
    }
}

#[test]
fn names_addresses_and_flags_are_as_envoy_writes_them() {
    let call = begun(&CALL, Sampling::Accept);
    let named = |virtual_host: &'static [u8], flags| {
        let ended = Ended {
            virtual_host,
            flags,
            cluster: b"",
            ..ended()
        };
        let in_zipkin = zipkin(&call, &ended);
        assert_eq!(in_zipkin["tags"].get("upstream_cluster"), None);
        let span = Span {
            begun: &call,
            ended: &ended,
        };
        let in_otlp = String::from_utf8(field(&otlp(&[span])[0], 5)).unwrap();
        (in_zipkin["name"].as_str().unwrap().to_string(), in_otlp)
    };
    let same = |name: &str| (name.to_string(), name.to_string());
    let unnamed = || {
        (
            "ratings:9080".to_string(),
            "egress ratings:9080".to_string(),
        )
    };
    assert_eq!(named(b"a:80", 0), same("a:80/*"));
    assert_eq!(named(b"a:80", 0x20), same("a:80/*"));
    assert_eq!(named(b"a:80", 0x100), unnamed());
    assert_eq!(named(b"allow_any", 0), unnamed());
    assert_eq!(named(b"", 0), unnamed());
    for (source, shown) in [
        (&b"[2001:db8::1]:80"[..], "2001:db8::1"),
        (b"10.0.0.1:80", "10.0.0.1"),
        // What is empty is left out, as Envoy does.
        (b"", ""),
    ] {
        let ended = Ended { source, ..ended() };
        let tags = &zipkin(&call, &ended)["tags"];
        let told = tags.get("peer.address");
        assert_eq!(
            told,
            Some(json!(shown)).filter(|_| !shown.is_empty()).as_ref()
        );
    }
    let connect = begun(&[(":method", "CONNECT"), CALL[1]], Sampling::Accept);
    assert_eq!(zipkin(&connect, &ended())["tags"].get("http.url"), None);
    assert_eq!(letters(0), "-");
    assert_eq!(letters(0x4), "UT");
    assert_eq!(letters(0x20 | 0x8000), "UF,URX");
    assert_eq!(letters(1 << 29), "UDO");
    assert_eq!(letters(1 << 40), "-");
}

#[test]
fn a_rule_that_is_broken_again_is_told_once() {
    let map = serialize(&CALL);
    let headers = TraceHeaders::read(Pairs::new(&map), &Wanted::default());
    let context = B3 {
        ids: Some(begun(&CALL, Sampling::Accept).ids),
        sampling: Sampling::Accept,
    };
    let found = [Rule::L01, Rule::L02, Rule::L01, Rule::L01, Rule::L02].map(|rule| Finding {
        rule,
        header: "b3",
        value: b"",
    });
    let call = Begun::new(context, (&headers, b"an-id"), Decision::Present, &found).unwrap();
    let tags = zipkin(&call, &ended())["tags"].clone();
    assert_eq!(tags["b3relay.rules"], json!("L01,L02"));
    assert_eq!(tags["b3relay.decision"], json!("present"));
}

#[test]
fn what_is_no_list_of_the_properties_is_no_end() {
    let number = 7u64.to_le_bytes();
    let mut values: Vec<&[u8]> = vec![&number; 6];
    values.extend([&b"HTTP/2"[..], b"a", b"b", b"c"]);
    let read = Ended::read(values.iter().copied()).unwrap();
    assert_eq!((read.status, read.virtual_host), (7, &b"c"[..]));
    assert_eq!(
        PROPERTIES
            .split(", ")
            .filter(|one| !one.starts_with('0'))
            .count(),
        10
    );
    for at in 0..values.len() {
        assert_eq!(Ended::read(values.iter().copied().take(at)), None);
    }
    values[2] = b"";
    assert_eq!(Ended::read(values), None);
}

#[test]
fn a_node_outside_of_istio_has_no_tags_of_istio() {
    let node = Node::ask(&|path| match path {
        b"id" => b"envoy~host~x".to_vec(),
        _ => Vec::new(),
    });
    let named: Vec<&str> = node.tags().iter().map(|(name, _)| *name).collect();
    assert_eq!(named, ["component", "node_id"]);
    assert_eq!(node.address(), None);
}

#[test]
fn the_address_of_a_pod_may_be_one_of_ipv6() {
    for (id, field) in [
        (
            "sidecar~10.0.0.7~web-1.shop~shop",
            Some(("ipv4", "10.0.0.7")),
        ),
        ("sidecar~fd00::7~web-1.shop~shop", Some(("ipv6", "fd00::7"))),
        ("sidecar~1.2~web-1.shop~shop", None),
        ("sidecar~~web-1.shop~shop", None),
        ("sidecar", None),
    ] {
        let node = Node::ask(&|path| match path {
            b"id" => id.as_bytes().to_vec(),
            _ => Vec::new(),
        });
        let mut recorder = Recorder::new(SpanFormat::Zipkin, node);
        fill(&mut recorder, 1);
        let spans: Value = serde_json::from_slice(&recorder.take(0).unwrap().body).unwrap();
        let mut endpoint = json!({"serviceName": ""});
        if let Some((name, address)) = field {
            endpoint[name] = json!(address);
        }
        assert_eq!(spans[0]["localEndpoint"], endpoint, "{id}");
    }
}

fn fill(recorder: &mut Recorder, spans: u32) -> Vec<Added> {
    let (begun, ended) = (begun(&CALL, Sampling::Accept), ended());
    let span = Span {
        begun: &begun,
        ended: &ended,
    };
    (0..spans).map(|_| recorder.add(&span)).collect()
}

#[test]
fn a_full_batch_is_asked_for_once() {
    let mut recorder = Recorder::new(SpanFormat::Zipkin, node());
    assert_eq!(recorder.take(0), None);
    let added = fill(&mut recorder, 150);
    assert_eq!(added.iter().filter(|one| **one == Added::Full).count(), 1);
    assert_eq!(added[99], Added::Full);
    for token in 0..2 {
        let report = recorder.take(0).unwrap();
        recorder.sent((token, 1), report.spans, 0);
        fill(&mut recorder, 200);
    }
    // Two are in flight.
    assert_eq!(recorder.take(0), None);
    assert_eq!(recorder.answered(7, 202, 0), None);
    assert_eq!(recorder.answered(0, 202, 0), Some((150, true)));
    assert!(recorder.is_due());
    assert_eq!(recorder.take(0).unwrap().spans, 200);
}

#[test]
fn reports_of_few_spans_are_a_second_apart() {
    let mut recorder = Recorder::new(SpanFormat::Zipkin, node());
    let mut taken = Vec::new();
    // The ticks of a plugin that learns; one of 1000 ms may be a little early.
    for now_ms in [0, 100, 200, 900, 1000, 1799, 1899, 2799].map(|ms| 1_000_000 + ms) {
        fill(&mut recorder, 1);
        if let Some(report) = recorder.take(now_ms) {
            recorder.sent((1, 1), report.spans, now_ms);
            recorder.answered(1, 202, now_ms);
            taken.push((now_ms - 1_000_000, report.spans));
        }
    }
    assert_eq!(taken, [(0, 1), (900, 3), (1899, 3), (2799, 1)]);
    fill(&mut recorder, 100);
    assert_eq!(recorder.take(1_002_800).unwrap().spans, 100);
    // The clock is set back.
    fill(&mut recorder, 1);
    assert_eq!(recorder.take(1000).unwrap().spans, 1);
}

#[test]
fn no_span_begins_where_there_is_no_room() {
    let mut recorder = Recorder::new(SpanFormat::Zipkin, node());
    let mut closed = None;
    for n in 0..2000 {
        closed = closed.or((!recorder.is_open()).then_some(n));
        let added = fill(&mut recorder, 1);
        if added == [Added::Dropped] {
            let body = recorder.take(0).unwrap().body;
            assert!(
                (512 * 1024..514 * 1024).contains(&body.len()),
                "{}",
                body.len()
            );
            let closed = closed.unwrap();
            assert!(n - 20 < 2 * closed && 2 * closed < n + 20, "{closed} {n}");
            assert!(recorder.is_open());
            return;
        }
    }
    panic!("no bound");
}

#[test]
fn a_collector_that_always_says_no_gets_no_span() {
    for status in [400, 401, 403, 404, 413, 415, 429, 500] {
        let mut recorder = Recorder::new(SpanFormat::Zipkin, node());
        let mut began = 0;
        for second in 0..60u32 {
            let now_ms = 1000 * u64::from(second);
            if recorder.is_open() {
                fill(&mut recorder, 10);
                began += 10;
            }
            if let Some(report) = recorder.take(now_ms) {
                recorder.sent((second, 1), report.spans, now_ms);
                recorder.answered(second, status, now_ms);
            }
        }
        assert_eq!(began, 10, "{status}");
    }
}

#[test]
fn a_collector_that_has_failed_is_asked_again() {
    for status in [0, 301, 404, 503] {
        let mut recorder = Recorder::new(SpanFormat::Zipkin, node());
        fill(&mut recorder, 3);
        let report = recorder.take(1000).unwrap();
        recorder.sent((1, 1), report.spans, 1000);
        assert_eq!(recorder.answered(1, status, 2000), Some((3, false)));
        assert!(!recorder.is_open());
        // One that had begun before.
        assert_eq!(fill(&mut recorder, 1), [Added::Waiting]);
        assert_eq!(recorder.take(6999), None);
        let report = recorder.take(7000).unwrap();
        assert_eq!(report.spans, 1);
        recorder.failed(7000);
        // Nothing waits: it is asked all the same, by one report at a time.
        let report = recorder.take(12_000).unwrap();
        assert_eq!((report.spans, &*report.body), (0, &b"[]"[..]));
        recorder.sent((2, 1), 0, 12_000);
        assert_eq!(recorder.take(20_000), None);
        assert!(!recorder.is_open());
        // It does not like an empty report, but it is there.
        assert_eq!(recorder.answered(2, 400, 20_000), Some((0, true)));
        assert!(recorder.is_open());
    }
}

#[test]
fn a_report_that_gets_no_answer_is_forgotten() {
    let mut recorder = Recorder::new(SpanFormat::Otlp, node());
    fill(&mut recorder, 3);
    let report = recorder.take(0).unwrap();
    recorder.sent((1, 1), report.spans, 0);
    assert_eq!(recorder.forgotten(14_999), 0);
    assert_eq!(recorder.forgotten(15_000), 3);
    assert_eq!(recorder.answered(1, 202, 15_000), None);
}

#[test]
fn the_reports_of_a_plugin_that_is_gone_make_room() {
    let mut recorder = Recorder::new(SpanFormat::Otlp, node());
    let (old, new) = (recorder.sender(), recorder.sender());
    for (token, sender, spans, now_ms) in [(1, old, 3, 0), (2, new, 5, 1000)] {
        fill(&mut recorder, spans);
        assert_eq!(recorder.take(now_ms).unwrap().spans, spans);
        recorder.sent((token, sender), spans, now_ms);
    }
    fill(&mut recorder, 1);
    assert_eq!(recorder.take(2000), None);
    assert_eq!(recorder.gone(old), 3);
    assert_eq!(recorder.in_flight(), [2]);
    assert_eq!(recorder.take(2000).unwrap().spans, 1);
    assert_eq!(recorder.answered(1, 202, 2000), None);
}

proptest! {
    /// Whatever the collector does, memory is bounded and every span accounted for.
    #[test]
    fn every_span_is_accounted_for(steps in proptest::collection::vec((0u8..6, 0u16..600), 1..200)) {
        let mut recorder = Recorder::new(SpanFormat::Otlp, node());
        let (mut now, mut token) = (0, 0);
        let mut open: Vec<u32> = Vec::new();
        let (mut added, mut gone, mut in_flight) = (0u32, 0u32, BTreeMap::new());
        for (step, number) in steps {
            match step {
                0 => {
                    let some = fill(&mut recorder, u32::from(number) / 8);
                    added += some.iter().filter(|one| **one != Added::Dropped).count() as u32;
                }
                1 | 2 => if let Some(report) = recorder.take(now) {
                    prop_assert!(report.body.len() < 514 * 1024);
                    if number % 4 == 0 {
                        recorder.failed(now);
                        gone += report.spans;
                    } else {
                        token += 1;
                        open.push(token);
                        in_flight.insert(token, report.spans);
                        recorder.sent((token, u32::from(number % 3)), report.spans, now);
                    }
                },
                3 => if let Some(token) = open.pop() {
                    if let Some((spans, _)) = recorder.answered(token, number, now) {
                        prop_assert_eq!(in_flight.remove(&token), Some(spans));
                        gone += spans;
                    }
                },
                step => {
                    now += u64::from(number) * 10;
                    let forgotten = match step {
                        4 => recorder.forgotten(now),
                        _ => recorder.gone(u32::from(number % 3)),
                    };
                    gone += forgotten;
                    if forgotten > 0 {
                        let kept = recorder.in_flight();
                        in_flight.retain(|token, _| kept.contains(token));
                    }
                }
            }
            prop_assert!(recorder.in_flight().len() <= 2);
            let flying: u32 = in_flight.values().sum();
            prop_assert_eq!(added, gone + flying + recorder.waiting());
        }
    }
}
