//! The headers of the copy list say whose a request is: no call may get those of another
//! request.
// A test may panic: that is how it fails.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::string_slice
)]

mod support;

use b3relay::config::Direction::{Inbound, Outbound};
use b3relay::relay::Decision;
use proptest::prelude::*;
use support::{Headers, ID, PROTO, Seen, Sidecar, header, headers, only};

const COPY: &str = r#"{"copy_headers": ["x-tenant-*"]}"#;
const TRACE: &str = "463ac35c9f6413ad48485a3953bb6124";
const NEW_ID: &str = "x-request-id: 8e8a1c2e-1b2d-4c3e-9d4f-5a6b7c8d9e0f";

fn span(n: usize) -> String {
    format!("{:016x}", 0xa2fb_4a1d_0000_0000_u64 + n as u64)
}

/// The request of the nth tenant, all of one trace and one request ID.
fn sibling(n: usize) -> Vec<String> {
    vec![
        ID.to_string(),
        format!("x-b3-traceid: {TRACE}"),
        format!("x-b3-spanid: {}", span(n)),
        "x-b3-parentspanid: 0020000000000001".to_string(),
        "x-b3-sampled: 1".to_string(),
        format!("x-tenant-id: {n}"),
        "x-tenant-plan: gold".to_string(),
    ]
}

fn parsed(lines: &[String]) -> Headers {
    lines.iter().map(|line| header(line)).collect()
}

fn tenants(seen: &Seen) -> Vec<String> {
    let found = only(&seen.headers, &["x-tenant-id"]);
    let values = found
        .into_iter()
        .map(|(_, value)| String::from_utf8(value).unwrap());
    values.collect()
}

/// What calls of the nth request may carry, and whether it tells the request.
fn calls(n: usize) -> Vec<(Vec<String>, bool)> {
    let own = span(n);
    let new = format!("{:016x}", 0xcccc_0000_0000_0000_u64 + n as u64);
    let trace = format!("x-b3-traceid: {TRACE}");
    vec![
        (vec![ID.to_string()], false),
        (vec![format!("traceparent: 00-{TRACE}-{new}-01")], false),
        (vec![trace.clone()], false),
        // Its own context, as it came.
        (vec![trace.clone(), format!("x-b3-spanid: {own}")], true),
        (vec![format!("b3: {TRACE}-{own}-1")], true),
        (vec![format!("traceparent: 00-{TRACE}-{own}-01")], true),
        (vec![ID.to_string(), format!("x-b3-spanid: {own}")], true),
        // A span of the application's own, below it.
        (
            vec![
                trace.clone(),
                format!("x-b3-spanid: {new}"),
                format!("x-b3-parentspanid: {own}"),
            ],
            true,
        ),
        (vec![format!("b3: {TRACE}-{new}-1-{own}")], true),
        // A span of which nothing is known.
        (vec![trace, format!("x-b3-spanid: {new}")], false),
        (vec![ID.to_string(), format!("b3: {TRACE}-{new}-1")], false),
    ]
}

#[test]
fn siblings_of_one_trace_keep_their_headers_to_themselves() {
    for workers in 1..=4 {
        let sidecar = Sidecar::with(COPY, COPY, workers as u64);
        let on = |n: usize| n % workers;
        for n in 0..8 {
            sidecar.wait(1);
            sidecar.on(on(n), Some(Inbound), &parsed(&sibling(n)));
        }
        for n in 0..8 {
            for (lines, tells) in calls(n) {
                let seen = sidecar.on(on(n + 1), Some(Outbound), &parsed(&lines));
                let expected: Vec<String> = match tells {
                    true => vec![n.to_string()],
                    false => Vec::new(),
                };
                assert_eq!(tenants(&seen), expected, "{n} {lines:?}");
                // What all of them have is nobody's own.
                assert!(
                    seen.headers.contains(&header("x-tenant-plan: gold")),
                    "{lines:?}"
                );
                let copied = only(&seen.headers, &["x-b3-traceid", "b3", "traceparent"]);
                assert!(
                    !copied.is_empty(),
                    "the trace is right in any case: {lines:?}"
                );
            }
        }
    }
}

#[test]
fn a_request_id_of_one_sibling_is_given_to_no_other() {
    let sidecar = Sidecar::new(COPY);
    for n in 0..2 {
        let mut lines = sibling(n);
        lines[0] = format!("x-request-id: 0f7a1c2e-1b2d-4c3e-9d4f-00000000000{n}");
        sidecar.request(Some(Inbound), &parsed(&lines));
    }
    let carried = format!("traceparent: 00-{TRACE}-cccc000000000000-01");
    let seen = sidecar.outbound(&[&carried, PROTO, NEW_ID]);
    assert_eq!(only(&seen.headers, &["x-request-id"]), [header(NEW_ID)]);
    let named = format!("traceparent: 00-{TRACE}-{}-01", span(1));
    let seen = sidecar.outbound(&[&named, PROTO, NEW_ID]);
    let restored = header("x-request-id: 0f7a1c2e-1b2d-4c3e-9d4f-000000000001");
    assert_eq!(only(&seen.headers, &["x-request-id"]), [restored]);
}

/// A client sends the trace ID of somebody else's request, with headers of its own.
#[test]
fn a_client_that_knows_a_trace_id_puts_nothing_on_calls_of_that_trace() {
    let attack = |headers: &mut Vec<String>| {
        headers[0] = "x-request-id: 1f7a1c2e-1b2d-4c3e-9d4f-5a6b7c8d9e0f".to_string();
        headers[5] = "x-tenant-id: mallory".to_string();
        headers[6] = "x-tenant-plan: none".to_string();
    };
    for (lines, tells) in calls(0) {
        let sidecar = Sidecar::new(COPY);
        sidecar.request(Some(Inbound), &parsed(&sibling(0)));
        sidecar.wait(1);
        let mut mallory = sibling(1);
        attack(&mut mallory);
        sidecar.request(Some(Inbound), &parsed(&mallory));
        let seen = sidecar.request(Some(Outbound), &parsed(&lines));
        // The victim's request ID tells it, too.
        let by_id = lines.iter().any(|line| line == ID);
        let expected: Vec<String> = match tells || by_id {
            true => vec!["0".to_string()],
            false => Vec::new(),
        };
        assert_eq!(tenants(&seen), expected, "{lines:?}");
    }
}

#[test]
fn the_span_says_more_than_the_request_id() {
    let sidecar = Sidecar::new(COPY);
    let mut other = sibling(1);
    other[0] = "x-request-id: 1f7a1c2e-1b2d-4c3e-9d4f-5a6b7c8d9e0f".to_string();
    sidecar.request(Some(Inbound), &parsed(&sibling(0)));
    sidecar.request(Some(Inbound), &parsed(&other));
    let own = [
        ID.to_string(),
        format!("x-b3-traceid: {TRACE}"),
        format!("x-b3-spanid: {}", span(1)),
    ];
    let seen = sidecar.request(Some(Outbound), &parsed(&own));
    assert_eq!(tenants(&seen), ["1"]);
}

/// Who says nothing of itself may be of the background, or of another client's request.
#[test]
fn a_guess_copies_the_trace_context_alone() {
    for attribution in ["exclusive", "inferred"] {
        for copies in [false, true] {
            let sidecar = Sidecar::new(&format!(
                r#"{{"copy_headers": ["authorization", "end-user"], "attribution": "{attribution}", "copy_to_attributed": {copies}}}"#
            ));
            sidecar.inbound(&[
                ID,
                ":path: /a",
                &format!("x-b3-traceid: {TRACE}"),
                "x-b3-spanid: a2fb4a1d1a96d312",
                "x-ot-span-context: opaque",
                "authorization: secret",
                "end-user: jason",
            ]);
            let seen = sidecar.outbound(&[":path: /b", ":authority: b", PROTO, NEW_ID]);
            assert_eq!(seen.decision, Some(Decision::Exclusive));
            let found = only(&seen.headers, &["authorization", "end-user"]);
            assert_eq!(found.len(), if copies { 2 } else { 0 });
            let context = only(&seen.headers, &["x-ot-", "x-b3-", "x-request-id"]);
            assert_eq!(context.len(), 4, "{context:?}");
            assert!(context.contains(&header(ID)));
        }
    }
}

#[test]
fn a_request_id_of_the_applications_own_stays() {
    let of = |config: &str, lines: &[&str]| {
        let sidecar = Sidecar::new(config);
        sidecar.inbound(&[
            ID,
            &format!("x-b3-traceid: {TRACE}"),
            "x-b3-spanid: a2fb4a1d1a96d312",
        ]);
        let carried = format!("x-b3-traceid: {TRACE}");
        let given = [&[carried.as_str()][..], lines].concat();
        let seen = sidecar.outbound(&given);
        assert_eq!(seen.decision, Some(Decision::Completed));
        only(&seen.headers, &["x-request-id"]).contains(&header(ID))
    };
    // Behind x-forwarded-proto, and before what Envoy adds later: Envoy made it up.
    let new = [PROTO, NEW_ID];
    let new_too = [PROTO, NEW_ID, "x-envoy-peer-metadata-id: x"];
    // Istio's proxyHeaders.xForwardedPort.
    let new_with_port = [PROTO, "x-forwarded-port: 9080", NEW_ID];
    let own = [NEW_ID, PROTO];
    let own_too = [PROTO, NEW_ID, "accept: */*"];
    let unclear = [PROTO, "accept: */*", NEW_ID];
    let (default, any, never) = (
        "{}",
        r#"{"restore_request_id": "any_uuid"}"#,
        r#"{"restore_request_id": "never"}"#,
    );
    for lines in [&new[..], &new_too, &new_with_port] {
        assert!(
            of(default, lines) && of(any, lines) && !of(never, lines),
            "{lines:?}"
        );
    }
    for lines in [&own[..], &own_too, &unclear] {
        assert!(
            !of(default, lines) && of(any, lines) && !of(never, lines),
            "{lines:?}"
        );
    }
    assert!(of(default, &[]) && !of(never, &[]));
}

/// Access logs join for a call with a context of its own, too.
#[test]
fn a_call_with_a_context_of_its_own_gets_its_request_id_back() {
    let sidecar = Sidecar::new("{}");
    let own = [
        format!("x-b3-traceid: {TRACE}"),
        "x-b3-spanid: a2fb4a1d1a96d312".to_string(),
    ];
    sidecar.inbound(&[ID, &own[0], &own[1]]);
    let seen = sidecar.outbound(&[&own[0], &own[1], PROTO, NEW_ID]);
    assert_eq!(seen.decision, Some(Decision::Present));
    assert_eq!(only(&seen.headers, &["x-request-id"]), [header(ID)]);
}

/// A trace ID with a digit too many is none. Its beginning is that of another trace, whose
/// calls are left alone where a request has brought both.
#[test]
fn a_trace_id_that_is_too_long_is_no_key() {
    const OTHER: &str = "0af7651916cd43dd8448eb211c80319c";
    for (given, decision) in [
        (OTHER.to_string(), Decision::Ambiguous),
        (format!("{OTHER}1"), Decision::Completed),
    ] {
        let sidecar = Sidecar::new(r#"{"keys": ["b3"], "attribution": "off"}"#);
        let b3 = |trace: &str| format!("b3: {trace}-a2fb4a1d1a96d312-1");
        sidecar.inbound(&[&b3(TRACE), &format!("x-b3-traceid: {given}")]);
        sidecar.inbound(&[&b3(OTHER)]);
        let seen = sidecar.outbound(&[&format!("x-b3-traceid: {OTHER}")]);
        assert_eq!(seen.decision, Some(decision), "{given}");
    }
}

/// What the outbound side lists need not be what the inbound side remembers.
#[test]
fn a_header_that_is_there_is_not_doubled() {
    let sidecar = Sidecar::with(r#"{"copy_headers": ["end-user"]}"#, "{}", 1);
    sidecar.inbound(&[
        ID,
        &format!("x-b3-traceid: {TRACE}"),
        "x-b3-spanid: a2fb4a1d1a96d312",
        "end-user: a",
    ]);
    let seen = sidecar.outbound(&[ID, "end-user: b"]);
    assert_eq!(only(&seen.headers, &["end-user"]), [header("end-user: b")]);
    let seen = sidecar.outbound(&[ID]);
    assert_eq!(only(&seen.headers, &["end-user"]), [header("end-user: a")]);
}

/// A good request never becomes one that the next proxy refuses.
#[test]
fn nothing_makes_a_request_larger_than_envoy_takes() {
    let configs = [
        r#"{"mode": "repair", "emit": ["b3multi", "b3", "w3c"], "copy_headers": ["x-*"], "report_header": "request"}"#,
        r#"{"emit": ["b3multi", "b3", "w3c"], "generate_request_id": true}"#,
        r#"{"mode": "repair"}"#,
        "{}",
    ];
    let contexts: [&[&str]; 4] = [
        &["b3: 463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312-d"],
        &[
            "x-b3-traceid: 463AC35C9F6413AD48485A3953BB6124",
            "x-b3-spanid: a2fb4a1d1a96d312",
            "x-b3-flags: 1",
        ],
        &["traceparent: 00-463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312-01"],
        &[ID],
    ];
    for config in configs {
        for context in contexts {
            for (many, long) in (80..100)
                .map(|n| (n, 0))
                .chain((57..61).map(|k| (1, k * 1024 - 300)))
            {
                for direction in [Inbound, Outbound] {
                    let sidecar = Sidecar::new(config);
                    let big = "v".repeat(4000);
                    sidecar.inbound(&[
                        ID,
                        "x-b3-traceid: 463ac35c9f6413ad48485a3953bb6124",
                        "x-b3-spanid: a2fb4a1d1a96d312",
                        &format!("x-big: {big}"),
                    ]);
                    let mut given: Headers = (0..usize::saturating_sub(many, context.len() + 1))
                        .map(|n| header(&format!("h{n}: v")))
                        .collect();
                    given.extend(headers(context));
                    given.push(header(&format!("long: {}", "v".repeat(long))));
                    let size = |headers: &Headers| {
                        let bytes: usize = headers.iter().map(|(n, v)| n.len() + v.len()).sum();
                        (headers.len(), bytes)
                    };
                    let seen = sidecar.request(Some(direction), &given);
                    let (before, after) = (size(&given), size(&seen.headers));
                    assert!(
                        after.0 <= before.0.max(95),
                        "{config} {context:?} {before:?} {after:?}"
                    );
                    assert!(
                        after.1 <= before.1.max(58 * 1024),
                        "{config} {context:?} {before:?} {after:?}"
                    );
                }
            }
        }
    }
}

/// A request that had to go for lack of room may be the one: another one with its key is
/// not taken for the only one, and nobody guesses.
#[test]
fn what_had_to_go_for_lack_of_room_is_not_taken_for_another() {
    let config = r#"{"copy_headers": ["x-tenant-*"], "capacity": 64}"#;
    let sidecar = Sidecar::new(config);
    for n in 0..400 {
        sidecar.wait(1);
        sidecar.request(Some(Inbound), &parsed(&sibling(n)));
    }
    // The first ones are gone, and the call may be of one of them: the trace is theirs, too.
    let seen = sidecar.request(Some(Outbound), &parsed(&[ID.to_string()]));
    assert_eq!(seen.decision, Some(Decision::Copied));
    assert_eq!(only(&seen.headers, &["x-tenant-"]), []);
    // The span tells.
    let last = format!("b3: {TRACE}-{}-1", span(399));
    assert_eq!(tenants(&sidecar.outbound(&[&last])), ["399"]);

    let sidecar = Sidecar::new(config);
    for n in 0..1000 {
        sidecar.wait(1);
        sidecar.inbound(&[
            &format!("x-request-id: 0f7a1c2e-1b2d-4c3e-9d4f-{n:012}"),
            &format!("x-b3-traceid: {:032x}", n + 1),
            "x-b3-spanid: a2fb4a1d1a96d312",
        ]);
    }
    let gone = "x-request-id: 0f7a1c2e-1b2d-4c3e-9d4f-000000000000";
    let seen = sidecar.outbound(&[":authority: b", ":path: /b", gone]);
    assert_eq!(seen.decision, Some(Decision::Unknown));
}

proptest! {
    /// Requests of a few traces and IDs begin and end; calls carry a part of what their
    /// request has. A call gets its own request's headers, or those that all have.
    #[test]
    fn no_call_gets_headers_of_another_request(
        steps in proptest::collection::vec((0usize..6, 0usize..3, 0usize..3, 0u8..7, 0u64..400), 1..80),
        workers in 1u64..4,
    ) {
        let sidecar = Sidecar::with(COPY, COPY, workers);
        let mut open: Vec<Option<(Seen, usize, usize, usize)>> = (0..6).map(|_| None).collect();
        for (next, (slot, trace, id, step, wait)) in (1usize..).zip(steps) {
            sidecar.wait(wait);
            let worker = next % workers as usize;
            match open[slot].take() {
                None => {
                    let tenant = next;
                    let lines = [
                        format!("x-request-id: 0f7a1c2e-1b2d-4c3e-9d4f-00000000000{id}"),
                        format!("x-b3-traceid: {:032x}", trace + 1),
                        format!("x-b3-spanid: {}", span(tenant)),
                        format!("x-tenant-id: {tenant}"),
                    ];
                    let seen = sidecar.on(worker, Some(Inbound), &parsed(&lines));
                    open[slot] = Some((seen, tenant, trace, id));
                }
                Some((seen, ..)) if step == 0 => sidecar.end(&seen),
                Some((seen, tenant, trace, id)) => {
                    let (trace_id, own) = (format!("{:032x}", trace + 1), span(tenant));
                    let lines = match step {
                        1 => vec![format!("x-request-id: 0f7a1c2e-1b2d-4c3e-9d4f-00000000000{id}")],
                        2 => vec![format!("traceparent: 00-{trace_id}-cccc00000000000{slot}-01")],
                        3 => vec![format!("b3: {trace_id}-{own}-1")],
                        4 => vec![format!("b3: {trace_id}-cccc00000000000{slot}-1-{own}")],
                        5 => vec![format!("x-b3-traceid: {trace_id}")],
                        _ => vec![PROTO.to_string(), NEW_ID.to_string()],
                    };
                    let call = sidecar.on(worker, Some(Outbound), &parsed(&lines));
                    let found = tenants(&call);
                    prop_assert!(found.is_empty() || found == [tenant.to_string()], "{lines:?} {found:?} {tenant}");
                    if matches!(step, 3 | 4) {
                        prop_assert_eq!(found, [tenant.to_string()]);
                    }
                    open[slot] = Some((seen, tenant, trace, id));
                }
            }
        }
    }
}
