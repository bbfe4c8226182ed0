//! Spans as they are encoded.

mod reports;

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
