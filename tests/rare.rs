//! Requests and calls of which one condition in the middle of a rule decides, on the core.
// A test may panic: that is how it fails.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::string_slice
)]

mod support;

use b3relay::relay::Decision;
use support::{
    ID, OTHER_ID, OTHER_SPAN, PARENT, PROTO, SAMPLED, SPAN, Seen, Sidecar, TRACE, TRACEPARENT,
    headers, only,
};

const SINGLE: &str = "b3: 463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312-1";
/// With the span that is the parent of the other headers'.
const OLDER: &str = "traceparent: 00-463ac35c9f6413ad48485a3953bb6124-0020000000000001-01";
const ANOTHER: &str = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const CONTEXT: [&str; 4] = ["b3", "x-b3-", "traceparent", "tracestate"];

#[track_caller]
fn assert_context(seen: &Seen, lines: &[&str]) {
    assert_eq!(
        only(&seen.headers, &CONTEXT),
        only(&headers(lines), &CONTEXT)
    );
}

/// Before the router, the tracer that follows renews just one of two formats of B3.
#[test]
fn a_second_format_of_b3_is_added_where_no_tracer_follows() {
    let multi = [TRACE, SPAN, SAMPLED];
    let both = [TRACE, SPAN, SAMPLED, SINGLE];
    for before_router in [false, true] {
        let sidecar = Sidecar::new(r#"{"emit": ["b3"]}"#);
        sidecar.host.before_router.set(before_router);
        let seen = sidecar.inbound(&[&[ID], &multi[..]].concat());
        assert_context(&seen, if before_router { &multi } else { &both });
        let call = sidecar.outbound(&[&[OTHER_ID], &multi[..]].concat());
        assert_context(&call, &both);
        // Without B3 there is nothing that could be renewed.
        let seen = sidecar.inbound(&[OTHER_ID, TRACEPARENT]);
        assert_context(&seen, &[TRACEPARENT, SINGLE]);
    }
}

#[test]
fn a_traceparent_is_replaced_where_it_is_asked_for_and_wrong() {
    let b3 = [TRACE, SPAN, PARENT, SAMPLED];
    let replaced = |emit: &str, traceparent: &'static str| {
        let sidecar = Sidecar::new(&format!(r#"{{"emit": ["{emit}"]}}"#));
        let given = [&[ID], &b3[..], &[traceparent]].concat();
        let after = |seen: Seen| only(&seen.headers, &["traceparent"]) != headers(&[traceparent]);
        [
            after(sidecar.inbound(&given)),
            after(sidecar.outbound(&given)),
        ]
    };
    assert_eq!(replaced("w3c", TRACEPARENT), [false, false]);
    assert_eq!(replaced("w3c", ANOTHER), [false, false]);
    // A call may carry on what it was given, beside a span of its own.
    assert_eq!(replaced("w3c", OLDER), [true, false]);
    assert_eq!(replaced("w3c", "traceparent: 00-1"), [true, true]);
    for traceparent in [TRACEPARENT, ANOTHER, OLDER, "traceparent: 00-1"] {
        assert_eq!(replaced("b3multi", traceparent), [false, false]);
    }
}

#[test]
fn a_decision_of_the_calls_own_is_in_every_format() {
    let sidecar = Sidecar::new(r#"{"emit": ["b3multi", "b3"]}"#);
    sidecar.inbound(&[ID, TRACE, SPAN, SAMPLED]);
    let own = [TRACE, OTHER_SPAN, "x-b3-sampled: 0"];
    let single = "b3: 463ac35c9f6413ad48485a3953bb6124-b2fb4a1d1a96d312-0";
    let seen = sidecar.outbound(&[&[ID], &own[..]].concat());
    assert_context(&seen, &[&own[..], &[single]].concat());
    // One that is left open is that of the request.
    let seen = sidecar.outbound(&[ID, TRACE, OTHER_SPAN]);
    let single = "b3: 463ac35c9f6413ad48485a3953bb6124-b2fb4a1d1a96d312-1";
    assert_context(&seen, &[TRACE, OTHER_SPAN, SAMPLED, single]);
}

#[test]
fn a_call_that_leaves_the_mesh_with_a_context_of_its_own_is_not_added_to() {
    let outside = ":authority: api.example.com";
    let own = [TRACE, SPAN, SAMPLED];
    for (mode, decision, left) in [
        ("leave", Decision::Present, &own[..]),
        ("strip", Decision::Outside, &[]),
        (
            "relay",
            Decision::Present,
            &[TRACE, SPAN, SAMPLED, SINGLE][..],
        ),
    ] {
        let config = format!(r#"{{"outside": "{mode}", "emit": ["b3"]}}"#);
        let seen = Sidecar::new(&config).outbound(&[&[outside, ID], &own[..]].concat());
        assert_eq!(seen.decision, Some(decision), "{mode}");
        assert_context(&seen, left);
    }
}

/// Beside its B3 the request brought a `traceparent` of another trace.
#[test]
fn a_call_may_carry_on_the_other_trace_of_its_request() {
    let sidecar = Sidecar::new("{}");
    sidecar.inbound(&[ID, TRACE, SPAN, ANOTHER]);
    let own = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-1111111111111111-01";
    let seen = sidecar.outbound(&[ID, own]);
    assert_eq!(seen.decision, Some(Decision::Copied));
    assert_context(&seen, &[TRACE, SPAN, own]);
    let third = "traceparent: 00-3333333333333333333333333333333f-1111111111111111-01";
    let seen = sidecar.outbound(&[ID, third]);
    assert_eq!(seen.decision, Some(Decision::Conflict));
}

#[test]
fn attempts_of_one_request_keep_the_state_that_they_share() {
    let sidecar = Sidecar::new("{}");
    let w3c = [TRACEPARENT, "tracestate: a=1"];
    for _ in 0..2 {
        sidecar.inbound(&[&[ID], &w3c[..]].concat());
    }
    assert_context(&sidecar.outbound(&[ID]), &w3c);
    sidecar.inbound(&[ID, TRACEPARENT, "tracestate: a=2"]);
    assert_context(&sidecar.outbound(&[ID]), &[TRACEPARENT]);
}

#[test]
fn a_call_with_a_context_of_its_own_is_checked_by_its_trace() {
    let sidecar = Sidecar::new("{}");
    sidecar.inbound(&[ID, TRACE, SPAN, SAMPLED]);
    // The ID that Envoy has made up is no key.
    let seen = sidecar.outbound(&[TRACE, OTHER_SPAN, SAMPLED, PROTO, OTHER_ID]);
    assert_eq!(seen.decision, Some(Decision::Present));
    assert!(seen.rules.contains(&"P04"), "{:?}", seen.rules);
}

#[test]
fn a_later_key_tells_requests_of_one_trace_apart() {
    let sidecar = Sidecar::new(r#"{"keys": ["x-request-id", "x-part"]}"#);
    sidecar.inbound(&[ID, "x-part: 1", TRACE, SPAN]);
    sidecar.wait(5);
    sidecar.inbound(&[ID, "x-part: 2", TRACE, OTHER_SPAN]);
    assert_context(&sidecar.outbound(&[ID, "x-part: 1"]), &[TRACE, SPAN]);
    assert_context(&sidecar.outbound(&[ID, "x-part: 2"]), &[TRACE, OTHER_SPAN]);
    // Without one, the last one counts.
    assert_context(&sidecar.outbound(&[ID]), &[TRACE, OTHER_SPAN]);
}
