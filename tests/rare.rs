//! Requests and calls of which one condition in the middle of a rule decides, on the core.
// A test may panic: that is how it fails.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::string_slice
)]

mod support;

use b3relay::config::Direction;
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

/// The rules that a call breaks beside its request, and the headers that break them.
#[track_caller]
fn assert_breaks(sidecar: &Sidecar, call: &[&str], expected: &[&str]) {
    let seen = sidecar.outbound(&[&[ID], call].concat());
    let report = only(&seen.headers, &["x-b3relay"]);
    let report = String::from_utf8(report[0].1.clone()).unwrap();
    let broken: Vec<&str> = report
        .split("; ")
        .filter(|part| part.starts_with('P'))
        .collect();
    assert_eq!(broken, expected, "{call:?}");
}

#[test]
fn a_call_is_only_said_to_break_what_it_breaks() {
    let config = r#"{"report_header": "request", "restore_request_id": "never"}"#;
    let sidecar = Sidecar::new(config);
    sidecar.inbound(&[ID, TRACE, SPAN, SAMPLED]);
    let another = "x-b3-traceid: 0af7651916cd43dd8448eb211c80319c";
    let single = "b3: 0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-1";
    assert_breaks(&sidecar, &[another, SPAN, SAMPLED], &["P02 x-b3-traceid"]);
    assert_breaks(&sidecar, &[single], &["P02 b3"]);
    // The tracers write no W3C: B3 of another trace is no client's.
    assert_breaks(&sidecar, &[single, TRACEPARENT], &["P02 b3"]);
    assert_breaks(
        &sidecar,
        &[TRACE, SPAN, "x-b3-sampled: 0"],
        &["P03 x-b3-sampled"],
    );
    // A decision that is left open is no other one.
    assert_breaks(&sidecar, &[TRACE, SPAN], &[]);
    assert_breaks(
        &sidecar,
        &[TRACE, OTHER_SPAN, SAMPLED],
        &["P04 x-b3-spanid"],
    );
    // What cannot be read is not compared.
    assert_breaks(&sidecar, &["x-b3-traceid: z", SPAN, SAMPLED], &[]);

    // They do: one that the call carries on is the client's.
    let sidecar = Sidecar::new(config);
    sidecar.inbound(&[ID, TRACEPARENT, "tracestate: "]);
    assert_breaks(&sidecar, &[single, TRACEPARENT], &[]);
    assert_breaks(&sidecar, &[single], &["P02 b3"]);
}

/// For the rules alone, not all workers are asked; the first one need not be enough.
#[test]
fn spans_that_a_call_may_name_are_asked_of_every_worker() {
    let config = r#"{"restore_request_id": "never"}"#;
    let sidecar = Sidecar::with(config, config, 2);
    for (worker, span) in [(0, SPAN), (1, "x-b3-spanid: 1111111111111111")] {
        let inbound = headers(&[ID, TRACE, span, SAMPLED]);
        sidecar.on(worker, Some(Direction::Inbound), &inbound);
    }
    sidecar.tick();
    let rules = |span| {
        // The ID that Envoy has made up is no key.
        let call = headers(&[TRACE, span, SAMPLED, PROTO, OTHER_ID]);
        sidecar.on(0, Some(Direction::Outbound), &call).rules
    };
    assert_eq!(rules(OTHER_SPAN), ["P04"]);
    assert_eq!(rules(SPAN), [""; 0]);
    assert_eq!(rules("x-b3-spanid: 1111111111111111"), [""; 0]);
}

/// With the rules about calls off, a call with a context is looked up for what it may get.
#[test]
fn a_call_gets_what_it_lacks_whatever_rules_are_on() {
    let off = r#""rules": {"P02": "off", "P03": "off", "P04": "off"}"#;
    let never = r#""restore_request_id": "never""#;
    let tenant = "x-tenant: 7";
    let call = |more: &str, made_up: bool, own: &[&str]| {
        let sidecar = Sidecar::new(&format!("{{{off}, {more}}}"));
        sidecar.inbound(&[ID, TRACE, SPAN, SAMPLED, tenant]);
        let ids = match made_up {
            true => &[PROTO, OTHER_ID][..],
            false => &[ID],
        };
        let sent = headers(&[&[TRACE, SPAN], own, ids].concat());
        let mut added = sidecar.request(Some(Direction::Outbound), &sent).headers;
        added.retain(|header| !sent.contains(header));
        added
    };
    let copies = format!(r#"{never}, "copy_headers": ["x-tenant"]"#);
    assert_eq!(call(&copies, false, &[SAMPLED]), headers(&[tenant]));
    assert_eq!(call(never, false, &[]), headers(&[SAMPLED]));
    assert_eq!(call(never, true, &[SAMPLED]), headers(&[]));
    let restores = r#""restore_request_id": "new""#;
    assert_eq!(call(restores, true, &[SAMPLED]), headers(&[ID]));
}

/// Two requests of one trace, one after the other, of which the later one is found first.
#[test]
fn the_latest_request_counts_by_the_millisecond() {
    let sidecar = Sidecar::with("{}", "{}", 2);
    sidecar.on(1, Some(Direction::Inbound), &headers(&[ID, TRACE, SPAN]));
    sidecar.wait(1);
    sidecar.on(
        0,
        Some(Direction::Inbound),
        &headers(&[ID, TRACE, OTHER_SPAN]),
    );
    for worker in [0, 1] {
        let seen = sidecar.on(worker, Some(Direction::Outbound), &headers(&[ID]));
        assert_context(&seen, &[TRACE, OTHER_SPAN]);
    }
}

/// One of the requests that came with that other trace is the call's.
#[test]
fn a_trace_that_several_came_with_is_no_contradiction() {
    let sidecar = Sidecar::new("{}");
    sidecar.inbound(&[ID, TRACE, SPAN, ANOTHER]);
    let other_trace = "x-b3-traceid: 563ac35c9f6413ad48485a3953bb6124";
    sidecar.inbound(&[OTHER_ID, other_trace, OTHER_SPAN, ANOTHER]);
    let own = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-1111111111111111-01";
    let seen = sidecar.outbound(&[ID, own]);
    assert_eq!(seen.decision, Some(Decision::Copied));
}

#[test]
fn a_call_has_one_traceparent_in_place_of_another_of_its_request() {
    let sidecar = Sidecar::new(r#"{"emit": ["b3multi", "w3c"]}"#);
    sidecar.inbound(&[ID, TRACE, SPAN, SAMPLED, ANOTHER]);
    let seen = sidecar.outbound(&[ID]);
    assert_context(&seen, &[TRACE, SPAN, SAMPLED, TRACEPARENT]);
}

/// B3 of another trace beside a `traceparent`.
#[test]
fn a_call_is_of_the_trace_that_the_tracers_read() {
    let single = "b3: 1111111111111111-1111111111111111-1";
    let tenant = "x-tenant: 7";
    let gets_tenant = |inbound: &str, traceparent: &str| {
        let sidecar = Sidecar::new(r#"{"copy_headers": ["x-tenant"]}"#);
        sidecar.inbound(&[ID, inbound, tenant]);
        let seen = sidecar.outbound(&[ID, single, traceparent]);
        assert_eq!(seen.decision, Some(Decision::Present));
        !only(&seen.headers, &["x-tenant"]).is_empty()
    };
    assert!(gets_tenant(TRACEPARENT, TRACEPARENT));
    assert!(!gets_tenant(TRACEPARENT, ANOTHER));
    assert!(!gets_tenant(SINGLE, TRACEPARENT));
}

#[test]
fn the_span_of_an_application_counts_only_beside_that_of_its_request() {
    let client = "traceparent: 00-463ac35c9f6413ad48485a3953bb6124-1111111111111111-01";
    let b3 = |own_spans: &str, call: &[&str]| {
        let sidecar = Sidecar::new(&format!(r#"{{"own_spans": "{own_spans}"}}"#));
        sidecar.inbound(&[ID, TRACE, SPAN, SAMPLED]);
        let seen = sidecar.outbound(&[&[ID], call].concat());
        (
            seen.decision.unwrap(),
            only(&seen.headers, &["x-b3-spanid"]),
        )
    };
    let own = (
        Decision::Copied,
        headers(&["x-b3-spanid: 1111111111111111"]),
    );
    assert_eq!(b3("reported", &[TRACE, SPAN, SAMPLED, client]), own);
    for (span, traceparent) in [(SPAN, ANOTHER), (SPAN, TRACEPARENT), (OTHER_SPAN, client)] {
        let left = (Decision::Present, headers(&[span]));
        let call = [TRACE, span, SAMPLED, traceparent];
        assert_eq!(b3("reported", &call), left, "{call:?}");
    }
    let left = (Decision::Present, headers(&[SPAN]));
    assert_eq!(b3("unreported", &[TRACE, SPAN, SAMPLED]), left);
    // The decision stays the call's own.
    let sidecar = Sidecar::new(r#"{"own_spans": "unreported"}"#);
    sidecar.inbound(&[ID, TRACE, SPAN, SAMPLED]);
    let seen = sidecar.outbound(&[ID, TRACE, OTHER_SPAN, "x-b3-sampled: 0"]);
    assert_context(&seen, &[TRACE, SPAN, "x-b3-sampled: 0"]);
    let replaced = (Decision::Copied, headers(&[SPAN]));
    assert_eq!(b3("unreported", &[TRACE, OTHER_SPAN, SAMPLED]), replaced);
}

/// Which of the requests that several keys lead to.
#[test]
fn keys_narrow_each_other_down_and_a_span_ends_it() {
    let config = r#"{"keys": ["x-request-id", "x-part", "b3"], "copy_headers": ["x-tenant"]}"#;
    let sidecar = |config| {
        let sidecar = Sidecar::new(config);
        sidecar.inbound(&[ID, "x-part: 1", "x-tenant: 1", TRACE, SPAN, SAMPLED]);
        sidecar.wait(5);
        sidecar.inbound(&[ID, "x-part: 2", "x-tenant: 2", TRACE, OTHER_SPAN, SAMPLED]);
        sidecar
    };
    let tenant = |sidecar: &Sidecar, call: &[&str]| {
        let seen = sidecar.outbound(call);
        only(&seen.headers, &["x-tenant"])
    };
    // A span says more than a key, and ends the search.
    let call = [ID, "x-part: 2", TRACE, SPAN, SAMPLED];
    assert_eq!(tenant(&sidecar(config), &call), headers(&["x-tenant: 1"]));
    let no_trace = r#"{"keys": ["x-request-id", "x-part"], "copy_headers": ["x-tenant"]}"#;
    assert_eq!(tenant(&sidecar(no_trace), &call), headers(&["x-tenant: 1"]));
    // The same span under another ID: the ID counts.
    let again = sidecar(config);
    again.inbound(&[OTHER_ID, "x-tenant: 3", TRACE, SPAN, SAMPLED]);
    let call = [ID, TRACE, SPAN, SAMPLED];
    assert_eq!(tenant(&again, &call), headers(&["x-tenant: 1"]));
    // An ID that Envoy has made up names no other request.
    let alone = Sidecar::new(config);
    alone.inbound(&[ID, "x-tenant: 1", TRACE, SPAN, SAMPLED]);
    let made_up = [
        TRACE,
        "x-b3-spanid: 1111111111111111",
        SAMPLED,
        PROTO,
        OTHER_ID,
    ];
    assert_eq!(tenant(&alone, &made_up), headers(&["x-tenant: 1"]));
    // A later key that an earlier request of another trace had takes nothing away.
    let late = Sidecar::new(&config.replace('{', "{\"grace_ms\": 100, "));
    let earlier = late.inbound(&[OTHER_ID, "x-part: 1", ANOTHER]);
    late.end(&earlier);
    late.wait(500);
    late.inbound(&[ID, "x-part: 1", TRACE, SPAN]);
    late.inbound(&[ID, "x-part: 2", TRACE, OTHER_SPAN]);
    let seen = late.outbound(&["x-part: 1"]);
    assert_eq!(seen.decision, Some(Decision::Ambiguous));
    let seen = late.outbound(&[ID, "x-part: 1"]);
    assert_eq!(seen.decision, Some(Decision::Copied));
}

/// What is left alone has no context of its own.
#[test]
fn a_call_without_a_traceparent_has_none_of_its_own() {
    let sidecar = Sidecar::keyed(r#"{"emit": ["b3"]}"#);
    let seen = sidecar.outbound(&[OTHER_ID]);
    assert_eq!(seen.decision, Some(Decision::Unknown));
    let seen = sidecar.outbound(&[OTHER_ID, ANOTHER]);
    assert_eq!(seen.decision, Some(Decision::Present));
}

/// Before the sidecar's tracer: what implementations read differently, it may have begun anew.
#[test]
fn a_call_is_compared_with_what_the_tracer_continues_for_sure() {
    let word = "x-request-id: checkout-17";
    let upper = "x-b3-traceid: 463AC35C9F6413AD48485A3953BB6124";
    let breaks = |before_router: bool, id: &str, inbound: &[&str]| {
        let sidecar = Sidecar::new(r#"{"restore_request_id": "never"}"#);
        sidecar.host.before_router.set(before_router);
        sidecar.inbound(&[&[id], inbound].concat());
        let call = sidecar.outbound(&[id, TRACE, OTHER_SPAN, SAMPLED]);
        call.rules.iter().any(|rule| rule.starts_with('P'))
    };
    assert!(breaks(true, ID, &[TRACE, SPAN, SAMPLED]));
    // A note is not a difference, and what is wrong with the request ID is none of the trace.
    assert!(breaks(true, ID, &[TRACE, SPAN, SAMPLED, "x-b3-flags: 0"]));
    assert!(breaks(true, word, &[TRACE, SPAN, SAMPLED]));
    for inbound in [&[upper, SPAN, SAMPLED][..], &[TRACEPARENT]] {
        assert!(!breaks(true, ID, inbound), "{inbound:?}");
        assert!(breaks(false, ID, inbound), "{inbound:?}");
    }
}

/// The tracer writes W3C, and what a client has sent in B3 stays: the application may carry on
/// that.
#[test]
fn a_call_is_found_by_the_other_context_of_its_request() {
    let sidecar = Sidecar::keyed("{}");
    sidecar.inbound(&[
        OTHER_ID,
        "traceparent: 00-3333333333333333333333333333333f-1111111111111111-01",
        "tracestate: ",
    ]);
    sidecar.inbound(&[ID, TRACE, SPAN, ANOTHER, "tracestate: "]);
    sidecar.inbound(&["x-request-id: 3", TRACE, OTHER_SPAN]);
    // It may be of either.
    let seen = sidecar.outbound(&[TRACE]);
    assert_eq!(seen.decision, Some(Decision::Ambiguous));
}

/// Where a call goes is asked only if it would get something.
#[test]
fn a_call_that_gets_nothing_is_asked_nothing() {
    let sidecar = Sidecar::new("{}");
    sidecar.inbound(&[ID, TRACE, SPAN, SAMPLED]);
    let calls = [&[TRACE, OTHER_SPAN, SAMPLED][..], &[]];
    let asked = calls.map(|own| {
        sidecar.outbound(&[&[":authority: a", ID], own].concat());
        sidecar.host.asked.get()
    });
    assert_eq!(asked, [0, 1]);
}

/// A trace that a call has made up is noted, one beside its B3 is not.
#[test]
fn a_trace_beside_b3_is_not_taken_for_made_up() {
    for (beside, decision) in [
        (&[TRACE, SPAN][..], Decision::Completed),
        (&[], Decision::Ambiguous),
    ] {
        let sidecar = Sidecar::keyed("{}");
        sidecar.outbound(&[&["x-request-id: 1"], beside, &[ANOTHER]].concat());
        let trace = "x-b3-traceid: 0af7651916cd43dd8448eb211c80319c";
        // Longer than a request is known.
        sidecar.wait(5_000);
        sidecar.inbound(&[ID, trace, SPAN]);
        let seen = sidecar.outbound(&[trace]);
        assert_eq!(seen.decision, Some(decision), "{beside:?}");
    }
}
