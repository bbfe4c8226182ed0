//! The client span of a call: where it begins, and what the call then says.
// A test may panic: that is how it fails.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::string_slice
)]

mod support;

use b3relay::config::{Direction, SpanFormat};
use b3relay::host::{Host, Recording};
use b3relay::metrics::Counter;
use b3relay::relay::Decision;
use b3relay::spans::{Begun, Ended, Node, Recorder, Span};
use serde_json::Value;
use support::{ID, PARENT, SAMPLED, SPAN, Seen, Sidecar, TRACE, headers, only};

const SINGLE: &str = "b3: 463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312-1";
const W3C: &str = "traceparent: 00-463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312-01";
const CONTEXT: [&str; 3] = ["b3", "x-b3-", "traceparent"];
/// What the first eight random bytes of the host are.
const CHILD: &str = "0000000000000001";

fn sidecar(config: &str, recording: Recording) -> Sidecar {
    let sidecar = Sidecar::keyed(config);
    sidecar.host.recording.set(recording);
    sidecar
}

/// Trace, span and parent.
fn ids(span: &Begun) -> [String; 3] {
    let parent = span.ids.parent.unwrap();
    [
        format!("{:032x}", span.ids.trace.value()),
        format!("{:016x}", span.ids.span.value()),
        format!("{:016x}", parent.value()),
    ]
}

#[track_caller]
fn assert_child(seen: &Seen, lines: &[&str]) {
    assert_eq!(
        only(&seen.headers, &CONTEXT),
        only(&headers(lines), &CONTEXT)
    );
    let of = [
        "463ac35c9f6413ad48485a3953bb6124",
        CHILD,
        "a2fb4a1d1a96d312",
    ];
    assert_eq!(ids(seen.span.as_ref().unwrap()), of);
}

/// The child in each format.
const MULTI_CHILD: [&str; 4] = [
    TRACE,
    "x-b3-spanid: 0000000000000001",
    "x-b3-parentspanid: a2fb4a1d1a96d312",
    SAMPLED,
];
const SINGLE_CHILD: &str =
    "b3: 463ac35c9f6413ad48485a3953bb6124-0000000000000001-1-a2fb4a1d1a96d312";
/// In B3 beside a `traceparent`: without a parent, by which one tells which of the two the
/// tracer of the callee's sidecar has renewed.
const BESIDE_W3C: [&str; 3] = [TRACE, "x-b3-spanid: 0000000000000001", SAMPLED];
const SINGLE_BESIDE_W3C: &str = "b3: 463ac35c9f6413ad48485a3953bb6124-0000000000000001-1";
const W3C_CHILD: &str = "traceparent: 00-463ac35c9f6413ad48485a3953bb6124-0000000000000001-01";

#[test]
fn a_call_gets_a_span_below_that_of_its_request() {
    let multi: &[&str] = &[TRACE, SPAN, PARENT, SAMPLED];
    for (form, child) in [
        (multi, &MULTI_CHILD[..]),
        (&[SINGLE], &[SINGLE_CHILD]),
        (&[W3C], &[W3C_CHILD]),
        (
            &[TRACE, SPAN, SAMPLED, W3C],
            &[&BESIDE_W3C[..], &[W3C_CHILD]].concat(),
        ),
    ] {
        // Nothing but the request ID, and the context carried on as it came.
        for (carried, decision) in [(&[][..], Decision::Copied), (form, Decision::Present)] {
            let sidecar = sidecar("{}", Recording::Open);
            sidecar.inbound(&[&[ID], form].concat());
            let seen = sidecar.outbound(&[&[ID], carried].concat());
            assert_eq!(seen.decision, Some(decision));
            assert_child(&seen, child);
            assert_eq!(seen.span.unwrap().decision, decision);
        }
    }
}

#[test]
fn a_context_of_the_applications_own_gets_one_too() {
    let sidecar = sidecar("{}", Recording::Open);
    // Outside any request.
    let seen = sidecar.outbound(&[ID, TRACE, SPAN, SAMPLED]);
    assert_eq!(seen.decision, Some(Decision::Present));
    assert_child(&seen, &MULTI_CHILD);
}

/// `spans` says so, and the log (`tests/setup.rs`).
#[test]
fn without_the_relay_none_begins() {
    for call in [&[ID][..], &[ID, TRACE, SPAN, SAMPLED]] {
        let sidecar = sidecar(r#"{"relay": false}"#, Recording::Open);
        sidecar.inbound(&[ID, TRACE, SPAN, PARENT, SAMPLED]);
        let seen = sidecar.outbound(call);
        assert_eq!(seen.decision, Some(Decision::Off), "{call:?}");
        assert_eq!(seen.span, None, "{call:?}");
    }
}

#[test]
fn where_none_begins_the_call_says_what_it_says_without_spans() {
    let cases: [(&[&str], &[&str]); 6] = [
        (&[TRACE, SPAN, "x-b3-sampled: 0"], &[]),
        (&[TRACE, SPAN], &[]),
        (&["x-b3-sampled: 1"], &[]),
        (&[TRACE, SPAN, SAMPLED], &["b3: 1"]),
        (&[TRACE, SPAN, SAMPLED], &["x-b3-traceid: 1"]),
        (&[], &[TRACE, SPAN]),
    ];
    for (request, call) in cases {
        let [off, open] = [Recording::Off, Recording::Open].map(|recording| {
            let sidecar = sidecar("{}", recording);
            sidecar.inbound(&[&[ID], request].concat());
            sidecar.outbound(&[&[ID], call].concat())
        });
        assert_eq!(open.span, None, "{request:?} {call:?}");
        assert_eq!(open.headers, off.headers);
        assert_eq!(open.counters, off.counters);
    }
}

#[test]
fn where_there_is_no_room_for_a_span_the_trace_is_whole_without() {
    let [off, closed] = [Recording::Off, Recording::Closed].map(|recording| {
        let sidecar = sidecar("{}", recording);
        sidecar.inbound(&[ID, TRACE, SPAN, PARENT, SAMPLED]);
        sidecar.outbound(&[ID])
    });
    assert_eq!(closed.span, None);
    assert_eq!(closed.headers, off.headers);
    let dropped = Counter::SpansDropped(1);
    assert!(closed.counters.contains(&dropped) && !off.counters.contains(&dropped));
}

#[test]
fn a_call_that_leaves_the_mesh_has_a_span_and_does_not_say_so() {
    for own in [&[][..], &[TRACE, SPAN, SAMPLED]] {
        let sidecar = sidecar("{\"outside_hosts\": [\"example.com\"]}", Recording::Open);
        sidecar.inbound(&[ID, TRACE, SPAN, SAMPLED]);
        let call = [&[":authority: example.com", ID], own].concat();
        let seen = sidecar.outbound(&call);
        assert_eq!(seen.headers, headers(&call));
        assert_eq!(ids(seen.span.as_ref().unwrap())[2], "a2fb4a1d1a96d312");
    }
}

#[test]
fn a_child_is_made_once() {
    let sidecar = sidecar("{\"span_ids\": \"child\"}", Recording::Open);
    sidecar.inbound(&[ID, TRACE, SPAN, PARENT, SAMPLED]);
    assert_child(&sidecar.outbound(&[ID]), &MULTI_CHILD);
}

#[test]
fn what_has_no_room_for_the_span_has_none() {
    let sidecar = sidecar("{}", Recording::Open);
    sidecar.inbound(&[ID, TRACE, SPAN, PARENT, SAMPLED]);
    let long = format!("x-long: {}", "a".repeat(58 * 1024));
    let seen = sidecar.outbound(&[ID, &long]);
    assert_eq!(seen.decision, Some(Decision::TooLarge));
    assert_eq!(seen.span, None);
    let call = [ID, TRACE, SPAN, SAMPLED, &long];
    let seen = sidecar.outbound(&call);
    assert_eq!((seen.span, seen.headers), (None, headers(&call)));
}

#[test]
fn in_every_format_that_it_is_given() {
    let config = "{\"emit\": [\"b3\", \"b3multi\", \"w3c\"]}";
    for carried in [&[][..], &[TRACE, SPAN, SAMPLED]] {
        let sidecar = sidecar(config, Recording::Open);
        sidecar.inbound(&[ID, TRACE, SPAN, SAMPLED]);
        let seen = sidecar.outbound(&[&[ID], carried].concat());
        let all = [&BESIDE_W3C[..], &[SINGLE_BESIDE_W3C, W3C_CHILD]].concat();
        assert_child(&seen, &all);
    }
}

#[test]
fn a_sampling_decision_of_a_client_stays_beside_w3c() {
    let sidecar = sidecar("{}", Recording::Open);
    sidecar.inbound(&[ID, W3C]);
    let seen = sidecar.outbound(&[ID, W3C, "x-b3-sampled: 0"]);
    assert_child(&seen, &[W3C_CHILD, "x-b3-sampled: 0"]);
}

/// The filter itself makes the call sampled.
#[test]
fn a_call_that_lacks_just_the_decision_gets_a_span() {
    let single = "b3: 463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312";
    let multi: &[&str] = &[TRACE, SPAN];
    for (own, child) in [(multi, &MULTI_CHILD[..]), (&[single], &[SINGLE_CHILD])] {
        let sidecar = sidecar("{}", Recording::Open);
        sidecar.inbound(&[ID, TRACE, SPAN, SAMPLED]);
        let seen = sidecar.outbound(&[&[ID], own].concat());
        assert_eq!(seen.decision, Some(Decision::Completed));
        assert_child(&seen, child);
    }
    let sidecar = sidecar("{}", Recording::Open);
    sidecar.inbound(&[ID, TRACE, SPAN, "x-b3-sampled: 0"]);
    let seen = sidecar.outbound(&[ID, TRACE, SPAN]);
    assert_eq!(seen.decision, Some(Decision::Completed));
    assert!(seen.span.is_none());
}

/// A `traceparent` that stays says what the application's tracer gave it; where B3 names the
/// same span, both get the client span.
#[test]
fn a_traceparent_that_stays_is_neither_expected_nor_taken_for_the_newer_one() {
    const OWN: &str = "traceparent: 00-463ac35c9f6413ad48485a3953bb6124-cccccccccccccccc-01";
    const CALLERS: &str = "traceparent: 00-463ac35c9f6413ad48485a3953bb6124-0020000000000001-01";
    let parent = "x-b3-parentspanid: 0020000000000001";
    let multi: &[&str] = &[ID, TRACE, SPAN, parent, SAMPLED];
    let emits = r#"{"emit": ["b3multi", "w3c"]}"#;
    let documented = r#"{"emit": ["b3multi", "w3c"], "own_spans": "reported"}"#;
    for (config, request, with_span) in [
        (emits, multi, OWN),
        (documented, multi, W3C_CHILD),
        ("{}", &[multi, &[CALLERS]].concat(), OWN),
    ] {
        for recording in [Recording::Off, Recording::Open] {
            let caller = sidecar(config, recording);
            caller.inbound(request);
            let call = caller.outbound(&[ID, OWN]);
            assert!(!call.is_taken_for_overwritten(), "{config}");
            let expected = match recording {
                Recording::Open => with_span,
                _ => OWN,
            };
            assert_eq!(only(&call.headers, &["traceparent"]), headers(&[expected]));
            // Its callee has the filter before the router.
            let callee = sidecar("{}", Recording::Open);
            callee.host.before_router.set(true);
            for _ in 0..5 {
                callee.host.random();
            }
            callee.request(Some(Direction::Inbound), &call.headers);
            let (caller, callee) = (call.span, callee.outbound(&[ID]).span);
            if recording == Recording::Open {
                let parent = callee.unwrap().ids.parent;
                assert_eq!(parent, Some(caller.unwrap().ids.span), "{config}");
            }
        }
    }
}

/// The tracers write W3C, the caller has the filter before the router, and its application
/// carries on the `traceparent`. Only that one is read: without the client span in it, or with a
/// parent in the B3 beside it, the callee's application would get the client span as its own.
#[test]
fn b3_that_is_written_beside_a_traceparent_leaves_that_one_the_newer() {
    const SERVER: &str = "traceparent: 00-463ac35c9f6413ad48485a3953bb6124-dddddddddddddddd-01";
    let emits = r#"{"emit": ["b3multi", "w3c"]}"#;
    let caller = sidecar(emits, Recording::Open);
    caller.host.before_router.set(true);
    caller.inbound(&[ID, TRACE, "x-b3-spanid: 0020000000000001", SAMPLED]);
    let call = caller.outbound(&[ID, W3C, "tracestate: "]);
    assert_child(&call, &[&BESIDE_W3C[..], &[W3C_CHILD]].concat());
    let callee = sidecar(emits, Recording::Open);
    let got = callee.inbound(&[&[ID, SERVER, "tracestate: "], &BESIDE_W3C[..]].concat());
    assert_eq!(only(&got.headers, &["traceparent"]), headers(&[SERVER]));
}

/// The callee's tracer writes a `traceparent` beside the B3 that it gets.
#[test]
fn where_the_tracers_write_w3c_b3_names_no_parent() {
    let others = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-a2fb4a1d1a96d312-01";
    let b3 = [TRACE, SPAN, SAMPLED];
    let w3c = [others, "tracestate: "];
    // Before the router clients may contradict each other.
    for (is_before_router, requests, child) in [
        (false, &[&w3c[..]][..], &BESIDE_W3C[..]),
        (false, &[&b3], &MULTI_CHILD),
        (false, &[], &MULTI_CHILD),
        (true, &[&b3], &MULTI_CHILD),
        (true, &[&b3, &w3c], &BESIDE_W3C),
        (true, &[], &BESIDE_W3C),
    ] {
        let caller = sidecar("{}", Recording::Open);
        caller.host.before_router.set(is_before_router);
        for request in requests {
            caller.inbound(&[&["x-request-id: 1"], *request].concat());
        }
        let call = caller.outbound(&[&[ID], &b3[..]].concat());
        assert_child(&call, child);
    }
}

#[test]
fn the_span_says_what_was_found_and_done() {
    let sidecar = sidecar("{}", Recording::Open);
    let fixed = "x-request-id: 0f7a1c2e-1b2d-4c3e-9d4f-5a6b7c8d9e0f";
    sidecar.inbound(&[fixed, TRACE, SPAN, SAMPLED]);
    let seen = sidecar.outbound(&[fixed, ":path: /a", ":authority: b", ":method: PUT"]);
    assert!(!seen.rules.is_empty());
    let begun = seen.span.unwrap();
    let mut recorder = Recorder::new(SpanFormat::Zipkin, Node::default());
    let ended = Ended::default();
    recorder.add(&Span {
        begun: &begun,
        ended: &ended,
    });
    let body = recorder.take(0).unwrap().body;
    let spans: Value = serde_json::from_slice(&body).unwrap();
    let tags = &spans[0]["tags"];
    let text = |name: &str| tags[name].as_str().unwrap().to_string();
    assert_eq!(text("b3relay.decision"), "copied");
    assert_eq!(text("b3relay.rules"), seen.rules.join(","));
    assert_eq!(text("http.url"), "http://b/a");
    assert_eq!(text("http.method"), "PUT");
    assert_eq!(text("guid:x-request-id"), &fixed["x-request-id: ".len()..]);
}

/// B3 and `traceparent` with a span each: that one counts which the tracers of the mesh read.
#[test]
fn of_two_spans_of_a_call_that_of_the_tracers_gets_one_below() {
    let own = "traceparent: 00-463ac35c9f6413ad48485a3953bb6124-cccccccccccccccc-01";
    let another = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-a2fb4a1d1a96d312-01";
    let b3 = [TRACE, SPAN, SAMPLED];
    for traceparent in [own, another] {
        let sidecar = sidecar("{}", Recording::Open);
        let seen = sidecar.outbound(&[&[ID], &b3[..], &[traceparent]].concat());
        assert_child(&seen, &[&MULTI_CHILD[..], &[traceparent]].concat());
    }
    let sidecar = sidecar("{}", Recording::Open);
    sidecar.inbound(&["x-request-id: 1", another, "tracestate: "]);
    let seen = sidecar.outbound(&[&[ID], &b3[..], &[own]].concat());
    let parent = &ids(seen.span.as_ref().unwrap())[2];
    assert_eq!(parent, "cccccccccccccccc");
    let child = headers(&[&b3[..], &[W3C_CHILD]].concat());
    assert_eq!(only(&seen.headers, &CONTEXT), only(&child, &CONTEXT));
    assert!(!seen.is_taken_for_overwritten());
}

/// With `span_ids` `child`, a call has one already, unless its span is the application's.
#[test]
fn a_span_of_the_applications_own_is_none_of_the_calls() {
    let client = "traceparent: 00-463ac35c9f6413ad48485a3953bb6124-cccccccccccccccc-01";
    let of_request = "x-b3-parentspanid: a2fb4a1d1a96d312";
    for (call, parent) in [
        (&[][..], "a2fb4a1d1a96d312"),
        (&[TRACE, SPAN, SAMPLED], "a2fb4a1d1a96d312"),
        (
            &[TRACE, "x-b3-spanid: cccccccccccccccc", of_request, SAMPLED],
            "cccccccccccccccc",
        ),
        (&[client], "cccccccccccccccc"),
    ] {
        let config = r#"{"span_ids": "child", "own_spans": "reported"}"#;
        let sidecar = sidecar(config, Recording::Open);
        sidecar.inbound(&[ID, TRACE, SPAN, SAMPLED]);
        let seen = sidecar.outbound(&[&[ID], call].concat());
        let ids = ids(seen.span.as_ref().unwrap());
        assert_eq!(ids[2], parent, "{call:?}");
    }
}
