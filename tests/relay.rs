//! From an inbound request to the calls made for it, on the core.
// A test may panic: that is how it fails.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::string_slice
)]

mod support;

use b3relay::config::Direction;
use b3relay::metrics::Counter;
use b3relay::relay::Decision;
use proptest::prelude::*;
use support::{
    Headers, ID, OTHER_ID, OTHER_SPAN, PARENT, PROTO, SAMPLED, SPAN, Seen, Sidecar, TRACE,
    TRACEPARENT, header, headers, only,
};

const SINGLE: &str = "b3: 463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312-1-0020000000000001";
const OTHER_TRACE: &str = "x-b3-traceid: 563ac35c9f6413ad48485a3953bb6124";
const B3: [&str; 2] = ["b3", "x-b3-"];

fn sidecar() -> Sidecar {
    Sidecar::keyed("{}")
}

#[track_caller]
fn assert_b3(seen: &Seen, decision: Decision, lines: &[&str]) {
    assert_eq!(seen.decision, Some(decision));
    assert_eq!(only(&seen.headers, &B3), only(&headers(lines), &B3));
}

#[test]
fn the_context_is_copied_in_the_form_it_came_in() {
    let formats: [&[&str]; 5] = [
        &[TRACE, SPAN, PARENT, SAMPLED],
        &[TRACE, SPAN],
        &[SINGLE],
        &[SINGLE, TRACE, SPAN, PARENT, SAMPLED],
        &["x-b3-sampled: 0"],
    ];
    for form in formats {
        let sidecar = sidecar();
        sidecar.inbound(&[&[ID], form].concat());
        let seen = sidecar.outbound(&[ID]);
        assert_b3(&seen, Decision::Copied, form);
        assert_headers(&seen, &W3C, &[]);
        // Every call of the request gets it.
        assert_b3(
            &sidecar.outbound(&[ID, "accept: */*"]),
            Decision::Copied,
            form,
        );
    }
}

#[test]
fn the_character_that_envoy_rewrites_does_not_matter() {
    let sidecar = sidecar();
    sidecar.inbound(&[
        "x-request-id: 0f7a1c2e-1b2d-9c3e-9d4f-5a6b7c8d9e0f",
        TRACE,
        SPAN,
    ]);
    assert_b3(&sidecar.outbound(&[ID]), Decision::Copied, &[TRACE, SPAN]);
}

#[test]
fn a_request_id_is_the_same_however_it_is_said() {
    let id = ID.strip_prefix("x-request-id: ").unwrap();
    let ways = [
        ID.to_string(),
        format!("x-request-id: {}", id.to_uppercase()),
        format!("x-request-id: {id},{id}"),
        format!("x-request-id: {id}, {}", id.to_uppercase()),
    ];
    for mode in ["observe", "repair"] {
        for attribution in ["off", "exclusive"] {
            let config = format!(r#"{{"mode": "{mode}", "attribution": "{attribution}"}}"#);
            for (inbound, outbound) in ways.iter().flat_map(|a| ways.iter().map(move |b| (a, b))) {
                let sidecar = Sidecar::new(&config);
                sidecar.inbound(&[inbound, TRACE, SPAN]);
                // Another one, so that nothing is exclusive.
                sidecar.inbound(&["x-request-id: other", OTHER_TRACE, OTHER_SPAN]);
                let seen = sidecar.outbound(&[outbound]);
                assert_b3(&seen, Decision::Copied, &[TRACE, SPAN]);
                if mode == "observe" {
                    // It is the application's own.
                    assert_headers(&seen, &["x-request-id"], &[outbound]);
                }
            }
        }
    }
    // A list of different ones is not one of them.
    let sidecar = sidecar();
    sidecar.inbound(&[&format!("x-request-id: {id},a"), TRACE, SPAN]);
    assert_b3(&sidecar.outbound(&[ID]), Decision::Unknown, &[]);
}

#[test]
fn a_context_of_its_own_is_left_alone() {
    let sidecar = sidecar();
    sidecar.inbound(&[ID, TRACE, SPAN, PARENT, SAMPLED]);
    for own in [
        &[OTHER_TRACE, OTHER_SPAN][..],
        &["b3: 563ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312"],
    ] {
        assert_b3(
            &sidecar.outbound(&[&[ID], own].concat()),
            Decision::Present,
            own,
        );
    }
}

#[test]
fn what_has_no_key_or_an_unknown_one_is_left_alone() {
    let sidecar = sidecar();
    sidecar.inbound(&[ID, TRACE, SPAN]);
    assert_b3(&sidecar.outbound(&[]), Decision::NoKey, &[]);
    assert_b3(&sidecar.outbound(&["x-request-id: "]), Decision::NoKey, &[]);
    let long = format!("x-request-id: {}", "a".repeat(256));
    assert_b3(&sidecar.outbound(&[&long]), Decision::NoKey, &[]);
    assert_b3(
        &sidecar.outbound(&["x-request-id: 1"]),
        Decision::Unknown,
        &[],
    );
    let by_id_only = Sidecar::keyed(r#"{"keys": ["x-request-id"]}"#);
    assert!(
        by_id_only
            .inbound(&[&long, TRACE, SPAN])
            .counters
            .contains(&Counter::NoKey)
    );
}

#[test]
fn a_request_without_a_context_lends_none() {
    let sidecar = sidecar();
    sidecar.inbound(&[ID]);
    assert_b3(&sidecar.outbound(&[ID]), Decision::NoContext, &[]);
    // Nor does another one with its ID lend it its own.
    sidecar.inbound(&[ID, TRACE, SPAN]);
    assert_b3(&sidecar.outbound(&[ID]), Decision::Ambiguous, &[]);
}

/// Without a trace nothing says that requests with one key belong together: they lend
/// neither the headers of the copy list nor their request IDs.
#[test]
fn requests_without_a_context_are_not_mixed() {
    let sidecar =
        Sidecar::new(r#"{"copy_headers": ["end-user"], "keys": ["x-session", "x-request-id"]}"#);
    let session = "x-session: 7";
    sidecar.inbound(&[session, ID, "end-user: alice"]);
    let seen = sidecar.outbound(&[session, PROTO, GENERATED_ID]);
    assert_b3(&seen, Decision::NoContext, &[]);
    assert_headers(
        &seen,
        &["x-request-id", "end-user"],
        &["end-user: alice", ID],
    );
    // Another attempt.
    sidecar.inbound(&[session, ID, "end-user: alice"]);
    let seen = sidecar.outbound(&[session, GENERATED_ID]);
    assert_eq!(seen.decision, Some(Decision::NoContext));

    for other in [[OTHER_ID, "end-user: alice"], [ID, "end-user: bob"]] {
        let sidecar = Sidecar::new(
            r#"{"copy_headers": ["end-user"], "keys": ["x-session", "x-request-id"]}"#,
        );
        sidecar.inbound(&[session, ID, "end-user: alice"]);
        sidecar.inbound(&[&[session][..], &other].concat());
        let seen = sidecar.outbound(&[session, GENERATED_ID]);
        assert_eq!(seen.decision, Some(Decision::Ambiguous));
        assert_headers(&seen, &["x-request-id", "end-user"], &[GENERATED_ID]);
    }
}

#[test]
fn an_entry_ends_with_its_request_and_the_grace() {
    let sidecar = sidecar();
    let seen = sidecar.inbound(&[ID, TRACE, SPAN]);
    sidecar.wait(3_600_000);
    assert_b3(&sidecar.outbound(&[ID]), Decision::Copied, &[TRACE, SPAN]);
    sidecar.end(&seen);
    sidecar.wait(999);
    assert_b3(&sidecar.outbound(&[ID]), Decision::Copied, &[TRACE, SPAN]);
    sidecar.wait(1);
    assert_b3(&sidecar.outbound(&[ID]), Decision::Unknown, &[]);
}

/// The filters of a pod are configured one by one.
#[test]
fn the_grace_is_that_of_the_inbound_filter() {
    for (inbound, outbound) in [(5000, 0), (5000, 60_000), (0, 5000)] {
        let config = |grace: u32| format!(r#"{{"attribution": "off", "grace_ms": {grace}}}"#);
        let sidecar = Sidecar::with(&config(inbound), &config(outbound), 2);
        let seen = sidecar.inbound(&[ID, TRACE, SPAN]);
        sidecar.end(&seen);
        sidecar.wait(u64::from(inbound).saturating_sub(1));
        for worker in [0, 1] {
            let seen = sidecar.on(worker, Some(Direction::Outbound), &headers(&[ID]));
            let known = (Decision::Copied, &[TRACE, SPAN][..]);
            let (decision, lines) = match inbound {
                0 => (Decision::Unknown, &[][..]),
                _ => known,
            };
            assert_b3(&seen, decision, lines);
        }
        sidecar.wait(1);
        for worker in [0, 1] {
            let seen = sidecar.on(worker, Some(Direction::Outbound), &headers(&[ID]));
            assert_b3(&seen, Decision::Unknown, &[]);
        }
    }
}

#[test]
fn two_traces_under_one_id_are_never_mixed() {
    let sidecar = sidecar();
    let first = sidecar.inbound(&[ID, TRACE, SPAN]);
    let second = sidecar.inbound(&[ID, OTHER_TRACE, SPAN]);
    assert_b3(&sidecar.outbound(&[ID]), Decision::Ambiguous, &[]);
    sidecar.end(&first);
    assert_b3(&sidecar.outbound(&[ID]), Decision::Ambiguous, &[]);
    sidecar.wait(1000);
    assert_b3(
        &sidecar.outbound(&[ID]),
        Decision::Copied,
        &[OTHER_TRACE, SPAN],
    );
    sidecar.end(&second);
}

/// A call may come after the grace: it is not of the other request that has the key.
#[test]
fn a_late_call_is_not_taken_for_one_of_another_request() {
    for grace in [0, 50, 999] {
        let config = format!(
            r#"{{"attribution": "off", "grace_ms": {grace}, "copy_headers": ["x-tenant"]}}"#
        );
        let sidecar = Sidecar::with(&config, &config, 2);
        let on = |worker: usize, lines: &[&str]| {
            sidecar.on(worker, Some(Direction::Outbound), &headers(lines))
        };
        let late = sidecar.inbound(&[ID, TRACE, SPAN, "x-tenant: a"]);
        sidecar.inbound(&[ID, OTHER_TRACE, OTHER_SPAN, "x-tenant: b"]);
        sidecar.end(&late);
        sidecar.wait(grace);
        for worker in [0, 1] {
            assert_b3(&on(worker, &[ID]), Decision::Ambiguous, &[]);
            // It names the other request.
            let seen = on(worker, &[ID, OTHER_TRACE]);
            let whole = [OTHER_TRACE, OTHER_SPAN];
            assert_b3(&seen, Decision::Completed, &whole);
        }
        sidecar.wait(1000 - grace);
        for worker in [0, 1] {
            let whole = [OTHER_TRACE, OTHER_SPAN];
            assert_b3(&on(worker, &[ID]), Decision::Copied, &whole);
        }

        // Two of one trace, each with a header of its own.
        let sidecar = Sidecar::with(&config, &config, 2);
        let late = sidecar.inbound(&[ID, TRACE, SPAN, "x-tenant: a"]);
        sidecar.inbound(&[ID, TRACE, OTHER_SPAN, "x-tenant: b"]);
        sidecar.end(&late);
        sidecar.wait(grace);
        for worker in [0, 1] {
            let seen = sidecar.on(worker, Some(Direction::Outbound), &headers(&[ID]));
            assert_b3(&seen, Decision::Copied, &[TRACE, OTHER_SPAN]);
            assert_eq!(only(&seen.headers, &["x-tenant"]), headers(&[]));
            // It names the span of the one that is past.
            let seen = sidecar.on(worker, Some(Direction::Outbound), &headers(&[TRACE, SPAN]));
            assert_eq!(only(&seen.headers, &["x-tenant"]), headers(&[]));
        }
    }
}

/// Nor is it if its own request had to make room for others meanwhile.
#[test]
fn a_late_call_of_a_request_that_made_room_is_not_taken_for_one_of_another() {
    let config = r#"{"attribution": "off", "capacity": 64, "copy_headers": ["x-tenant"]}"#;
    let sidecar = Sidecar::with(config, config, 2);
    let late = sidecar.inbound(&[ID, TRACE, SPAN, "x-tenant: a"]);
    sidecar.inbound(&[ID, OTHER_TRACE, OTHER_SPAN, "x-tenant: b"]);
    let sibling = sidecar.inbound(&[OTHER_ID, TRACE, SPAN, "x-tenant: a"]);
    sidecar.inbound(&[OTHER_ID, TRACE, OTHER_SPAN, "x-tenant: b"]);
    sidecar.end(&late);
    sidecar.end(&sibling);
    // Of 192 entries two are left for each of those that have not ended.
    for n in 0..94 {
        let id = format!("x-request-id: 2f7a1c2e-1b2d-4c3e-9d4f-5a6b7c8d{n:04x}");
        let trace = format!("x-b3-traceid: 663ac35c9f6413ad48485a3953bb{n:04x}");
        let seen = sidecar.inbound(&[&id, &trace, SPAN]);
        assert!(!seen.counters.contains(&Counter::Evicted));
    }
    for ticks in [false, true] {
        if ticks {
            sidecar.tick();
        }
        for worker in [0, 1] {
            let call = |id| sidecar.on(worker, Some(Direction::Outbound), &headers(&[id]));
            assert_b3(&call(ID), Decision::Ambiguous, &[]);
            let seen = call(OTHER_ID);
            assert_b3(&seen, Decision::Copied, &[TRACE, OTHER_SPAN]);
            assert_eq!(only(&seen.headers, &["x-tenant"]), headers(&[]));
        }
    }
    // Not for ever.
    sidecar.wait(1000);
    sidecar.tick();
    for worker in [0, 1] {
        let seen = sidecar.on(worker, Some(Direction::Outbound), &headers(&[ID]));
        assert_b3(&seen, Decision::Copied, &[OTHER_TRACE, OTHER_SPAN]);
        assert_eq!(
            only(&seen.headers, &["x-tenant"]),
            headers(&["x-tenant: b"])
        );
    }
}

/// A late call names its request: it is not guessed that it is of the only one in flight.
#[test]
fn a_late_call_is_not_guessed() {
    for attribution in ["exclusive", "inferred"] {
        let config = format!(r#"{{"attribution": "{attribution}", "grace_ms": 0}}"#);
        let sidecar = Sidecar::with(&config, &config, 1);
        for n in 0..40 {
            // One after the other, so that it is known what requests do.
            let id = format!("x-request-id: 0f7a1c2e-1b2d-9c3e-9d4f-5a6b7c8d{n:04x}");
            let request = sidecar.inbound(&[&id, TRACE, SPAN, ":path: /a"]);
            sidecar.wait(5);
            let new = format!("x-request-id: 1f7a1c2e-1b2d-9c3e-9d4f-5a6b7c8d{n:04x}");
            sidecar.outbound(&[&new, ":authority: stock", ":path: /b"]);
            sidecar.wait(5);
            sidecar.end(&request);
            sidecar.wait(1500);
        }
        let late = sidecar.inbound(&[ID, TRACE, SPAN, ":path: /a"]);
        sidecar.wait(5);
        sidecar.end(&late);
        sidecar.wait(5);
        sidecar.inbound(&[OTHER_ID, OTHER_TRACE, OTHER_SPAN, ":path: /a"]);
        sidecar.wait(5);
        // A call with an ID that nobody knows is of the only request.
        let new = "x-request-id: 2f7a1c2e-1b2d-9c3e-9d4f-5a6b7c8d9e0f";
        let guessed = sidecar.outbound(&[new, ":authority: stock", ":path: /b"]);
        assert!(matches!(
            guessed.decision,
            Some(Decision::Exclusive | Decision::Inferred)
        ));
        assert_b3(
            &sidecar.outbound(&[ID, ":authority: stock", ":path: /b"]),
            Decision::Unknown,
            &[],
        );
    }
}

#[test]
fn within_one_trace_the_latest_request_counts() {
    let sidecar = sidecar();
    sidecar.inbound(&[ID, TRACE, SPAN]);
    sidecar.wait(5);
    let inner = sidecar.inbound(&[ID, TRACE, OTHER_SPAN]);
    assert_b3(
        &sidecar.outbound(&[ID]),
        Decision::Copied,
        &[TRACE, OTHER_SPAN],
    );
    // The inner request has been answered: the outer one is still served.
    sidecar.end(&inner);
    assert_b3(&sidecar.outbound(&[ID]), Decision::Copied, &[TRACE, SPAN]);
}

#[test]
fn a_retry_does_not_disturb() {
    let sidecar = sidecar();
    let attempt = sidecar.inbound(&[ID, TRACE, SPAN]);
    let retry = sidecar.inbound(&[ID, TRACE, SPAN]);
    sidecar.end(&attempt);
    sidecar.wait(2000);
    assert_b3(&sidecar.outbound(&[ID]), Decision::Copied, &[TRACE, SPAN]);
    sidecar.end(&retry);
}

#[test]
fn a_missing_request_id_is_made_and_found_again() {
    let sidecar = sidecar();
    for given in [&[TRACE, SPAN][..], &["x-request-id: ", TRACE, SPAN]] {
        let seen = sidecar.inbound(given);
        let id = only(&seen.headers, &["x-request-id"]);
        assert_eq!(id.len(), 1);
        assert!(b3relay::request_id::is_uuid(&id[0].1) && id[0].1[14] == b'4');
        assert!(seen.rules.contains(&"R01") && seen.counters.contains(&Counter::RequestIds));
        let call = sidecar.request(Some(Direction::Outbound), &id);
        assert_b3(&call, Decision::Copied, &[TRACE, SPAN]);
    }
    let ids: Vec<Headers> = (0..2)
        .map(|_| only(&sidecar.inbound(&[]).headers, &["x-request-id"]))
        .collect();
    assert_ne!(ids[0], ids[1]);
    let off = Sidecar::new(r#"{"generate_request_id": false}"#);
    assert_eq!(off.inbound(&[TRACE, SPAN]).headers, headers(&[TRACE, SPAN]));
}

#[test]
fn the_copy_list_is_copied_where_it_is_missing() {
    let sidecar = Sidecar::new(r#"{"copy_headers": ["Baggage", "end-user"]}"#);
    let copied = [
        "baggage: a=1",
        "baggage: b=\\xff",
        "end-user: jason",
        "x-ot-span-context: \\x80;1",
    ];
    sidecar.inbound(&[&[ID, TRACE, SPAN, "cookie: secret"], &copied[..]].concat());
    let seen = sidecar.outbound(&[ID]);
    let names = ["baggage", "end-user", "x-ot-span-context", "cookie"];
    assert_eq!(only(&seen.headers, &names), only(&headers(&copied), &names));
    let seen = sidecar.outbound(&[ID, "end-user: other", "baggage: c=2"]);
    let kept = [
        "baggage: c=2",
        "end-user: other",
        "x-ot-span-context: \\x80;1",
    ];
    assert_eq!(only(&seen.headers, &names), only(&headers(&kept), &names));
}

#[test]
fn copied_headers_are_bounded() {
    let sidecar = Sidecar::new(r#"{"copy_headers": ["baggage"]}"#);
    let big = format!("baggage: {}", "x".repeat(8192));
    let seen = sidecar.inbound(&[ID, TRACE, SPAN, &big, "baggage: small"]);
    assert!(seen.counters.contains(&Counter::CopyDropped));
    let seen = sidecar.outbound(&[ID]);
    assert_eq!(
        only(&seen.headers, &["baggage"]),
        [header("baggage: small")]
    );
}

/// As many as there is room for, and then the latest; the context of each in any case.
#[test]
fn large_headers_are_kept_of_many_requests() {
    let sidecar = Sidecar::keyed(r#"{"copy_headers": ["baggage"]}"#);
    let request = |n: u32| {
        [
            format!("x-request-id: {n:08x}-1b2d-4c3e-9d4f-5a6b7c8d9e0f"),
            format!("x-b3-traceid: {:032x}", n + 1),
            format!("x-b3-spanid: {:016x}", n + 1),
            format!("baggage: {n:08x}{}", "x".repeat(8192 - 15)),
        ]
    };
    let lines = |lines: &[String]| headers(&lines.iter().map(String::as_str).collect::<Vec<_>>());
    for n in 0..1000 {
        sidecar.request(Some(Direction::Inbound), &lines(&request(n)));
        let kept = (n + 1).saturating_sub(400)..=n;
        for n in [0, *kept.start(), n / 2, n] {
            let [id, trace, span, baggage] = request(n);
            let seen = sidecar.outbound(&[&id]);
            assert_b3(&seen, Decision::Copied, &[&trace, &span]);
            if kept.contains(&n) {
                assert_headers(&seen, &["baggage"], &[&baggage]);
            }
        }
    }
}

/// gRPC's binary headers are in base64 on the wire.
#[test]
fn a_binary_header_is_copied_and_may_be_a_key() {
    let binary = "grpc-trace-bin: AABGOsNcn2QTrUhIWjlTu2EkAaL7Sh0altMSAgE";
    let sidecar = Sidecar::keyed(r#"{"copy_headers": ["grpc-trace-bin"]}"#);
    sidecar.inbound(&[ID, TRACE, SPAN, binary]);
    let seen = sidecar.outbound(&[ID]);
    assert_b3(&seen, Decision::Copied, &[TRACE, SPAN]);
    assert_headers(&seen, &["grpc-trace-bin"], &[binary]);
    let sidecar = Sidecar::keyed(r#"{"keys": ["grpc-trace-bin"]}"#);
    sidecar.inbound(&[TRACE, SPAN, binary]);
    sidecar.inbound(&[OTHER_TRACE, OTHER_SPAN, "grpc-trace-bin: AAA"]);
    let seen = sidecar.outbound(&[binary]);
    assert_b3(&seen, Decision::Copied, &[TRACE, SPAN]);
}

#[test]
fn a_part_of_the_context_is_completed_and_of_another_is_not() {
    let sidecar = sidecar();
    let whole = [TRACE, SPAN, PARENT, SAMPLED];
    sidecar.inbound(&[&[ID], &whole[..]].concat());
    for part in [
        &[TRACE][..],
        &[SPAN],
        &[PARENT],
        &[SAMPLED],
        &[TRACE, SAMPLED],
    ] {
        assert_b3(
            &sidecar.outbound(&[&[ID], part].concat()),
            Decision::Completed,
            &whole,
        );
    }
    for other in [
        OTHER_TRACE,
        OTHER_SPAN,
        "x-b3-parentspanid: 0020000000000002",
    ] {
        assert_b3(
            &sidecar.outbound(&[ID, other]),
            Decision::Conflict,
            &[other],
        );
    }
}

#[test]
fn a_decision_of_the_application_stays() {
    let sidecar = sidecar();
    sidecar.inbound(&[ID, TRACE, SPAN, SAMPLED]);
    let kept = [TRACE, SPAN, "x-b3-sampled: 0"];
    assert_b3(
        &sidecar.outbound(&[ID, "x-b3-sampled: 0"]),
        Decision::Completed,
        &kept,
    );
    for decision in ["b3: 0", "b3: 1", "b3: d"] {
        assert_b3(
            &sidecar.outbound(&[ID, decision]),
            Decision::SamplingOnly,
            &[decision],
        );
    }
}

#[test]
fn what_cannot_be_read_is_left_alone_or_replaced() {
    for bad in ["x-b3-traceid: xyz", "x-b3-spanid: \\xff", "b3: nonsense"] {
        let observe = sidecar();
        observe.inbound(&[ID, TRACE, SPAN]);
        assert_b3(&observe.outbound(&[ID, bad]), Decision::Malformed, &[bad]);
        let repair = Sidecar::new(r#"{"mode": "repair"}"#);
        repair.inbound(&[ID, TRACE, SPAN]);
        let seen = repair.outbound(&[ID, bad]);
        let b3 = only(&seen.headers, &B3);
        let single = "b3: 463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312";
        let mut expected = vec![header(TRACE), header(SPAN)];
        // A call that began a single header gets a good one.
        expected.extend(bad.starts_with("b3").then(|| header(single)));
        expected.sort();
        assert_eq!(b3, expected, "{bad}");
    }
}

#[test]
fn relay_off_only_checks() {
    let sidecar = Sidecar::new(r#"{"relay": false}"#);
    let seen = sidecar.inbound(&[ID, "x-b3-traceid: xyz"]);
    assert!(seen.ticket.is_none() && seen.rules == ["L01"]);
    assert_b3(&sidecar.outbound(&[ID]), Decision::Off, &[]);
}

/// What envoyfilter/README.md tells users to set, to switch it off at once.
#[test]
fn switched_off_it_changes_nothing() {
    let sidecar = Sidecar::new(r#"{"relay": false, "generate_request_id": false}"#);
    let page = include_str!("../envoyfilter/README.md");
    assert!(page.contains(r#"`"relay": false, "generate_request_id": false`"#));
    let odd = ["x-b3-traceid: XYZ", "x-b3-spanid: A", "traceparent: 00"];
    for given in [&[][..], &[ID], &[ID, TRACE, SPAN], &odd] {
        let given = headers(given);
        for direction in [Direction::Inbound, Direction::Outbound] {
            assert_eq!(sidecar.request(Some(direction), &given).headers, given);
        }
    }
}

#[test]
fn without_a_direction_nothing_changes() {
    let sidecar = sidecar();
    let given = headers(&[TRACE]);
    let seen = sidecar.request(None, &given);
    assert_eq!(seen.headers, given);
    assert_eq!(seen.rules, ["S01", "R01"]);
    assert_eq!(seen.counters, [Counter::Requests(None)]);
}

#[test]
fn enforce_answers_with_the_rule() {
    let sidecar = Sidecar::new(r#"{"mode": "enforce"}"#);
    let seen = sidecar.inbound(&[ID, TRACE]);
    assert_eq!(
        seen.reply,
        Some((
            400,
            "b3relay: S01 x-b3-traceid: a trace ID without a span ID; right: both, or neither\n"
                .to_string()
        ))
    );
    assert!(seen.ticket.is_none());
    // A warning is no reason to answer.
    assert_eq!(
        sidecar
            .inbound(&[ID, TRACE, SPAN, "x-b3-sampled: true"])
            .reply,
        None
    );
}

const GENERATED_ID: &str = "x-request-id: 8e8a1c2e-1b2d-4c3e-9d4f-5a6b7c8d9e0f";
const W3C: [&str; 2] = ["traceparent", "tracestate"];

#[track_caller]
fn assert_headers(seen: &Seen, prefixes: &[&str], lines: &[&str]) {
    assert_eq!(
        only(&seen.headers, prefixes),
        only(&headers(lines), prefixes)
    );
}

#[test]
fn a_call_is_recognised_by_the_trace_id_that_it_carries_on() {
    let context = [TRACE, SPAN, SAMPLED];
    // Of the same trace, but the span is the application's own: it may never be
    // reported, so the call gets the one that is.
    let carried = "traceparent: 00-463ac35c9f6413ad48485a3953bb6124-ffffffffffffffff-01";
    let sidecar = sidecar();
    sidecar.inbound(&[&[ID], &context[..]].concat());
    for (part, decision) in [(carried, Decision::Copied), (TRACE, Decision::Completed)] {
        let seen = sidecar.outbound(&[part, PROTO, OTHER_ID]);
        assert_b3(&seen, decision, &context);
        assert_headers(&seen, &["traceparent"], &[part]);
        // The ID that Envoy has made up gives way to the request's.
        assert_headers(&seen, &["x-request-id"], &[ID]);
        assert!(seen.counters.contains(&Counter::Restored));
    }
    // One of another form is the application's own.
    let seen = sidecar.outbound(&["x-request-id: job-7", carried]);
    assert_b3(&seen, Decision::Copied, &context);
    assert_headers(&seen, &["x-request-id"], &["x-request-id: job-7"]);
    // Only if it is asked for.
    let by_id = Sidecar::new(r#"{"keys": ["x-request-id"]}"#);
    by_id.inbound(&[&[ID], &context[..]].concat());
    assert_b3(
        &by_id.outbound(&[OTHER_ID, TRACE]),
        Decision::Unknown,
        &[TRACE],
    );
}

/// It cannot be of both: one of the two was taken from somewhere else.
#[test]
fn a_call_that_carries_on_the_trace_of_another_request_is_left_alone() {
    let sidecar = sidecar();
    sidecar.inbound(&[ID, TRACE, SPAN]);
    let other = sidecar.inbound(&[OTHER_ID, OTHER_TRACE, OTHER_SPAN]);
    let foreign = "traceparent: 00-563ac35c9f6413ad48485a3953bb6124-1111111111111111-01";
    assert_b3(&sidecar.outbound(&[ID, foreign]), Decision::Conflict, &[]);
    // A context of its own is checked as before.
    let context = [ID, foreign, OTHER_TRACE, SPAN];
    let seen = sidecar.outbound(&context);
    assert_b3(&seen, Decision::Present, &context);
    assert!(seen.rules.contains(&"P02"));
    // Nobody else came with that trace: it is the application's own.
    sidecar.end(&other);
    sidecar.wait(1000);
    let seen = sidecar.outbound(&[ID, foreign]);
    assert_b3(&seen, Decision::Copied, &[TRACE, SPAN]);
    // Nor is it another one if a request of this trace came with it, as in a loop.
    sidecar.inbound(&[OTHER_ID, TRACE, OTHER_SPAN, foreign]);
    let seen = sidecar.outbound(&[ID, foreign]);
    assert_b3(&seen, Decision::Copied, &[TRACE, SPAN]);

    // With a list of formats what it carries on is a context of its own.
    let sidecar = Sidecar::keyed(r#"{"emit": ["b3multi"]}"#);
    sidecar.inbound(&[ID, TRACE, SPAN]);
    sidecar.inbound(&[OTHER_ID, OTHER_TRACE, OTHER_SPAN]);
    let seen = sidecar.outbound(&[ID, foreign]);
    let given = [OTHER_TRACE, "x-b3-spanid: 1111111111111111", SAMPLED];
    assert_b3(&seen, Decision::Present, &given);
}

#[test]
fn headers_that_the_user_names_are_keys_in_order_of_preference() {
    let sidecar = Sidecar::new(r#"{"keys": ["X-Correlation-Id", "x-request-id"]}"#);
    let first = ["x-correlation-id: \\xff7", ID, TRACE, SPAN];
    let second = ["x-correlation-id: 8", OTHER_ID, OTHER_TRACE, OTHER_SPAN];
    sidecar.inbound(&first);
    sidecar.inbound(&second);
    let seen = sidecar.outbound(&["x-correlation-id: \\xff7", PROTO, OTHER_ID]);
    assert_b3(&seen, Decision::Copied, &first);
    assert_headers(&seen, &["x-request-id"], &[ID]);
    let seen = sidecar.outbound(&["x-correlation-id: 9", OTHER_ID]);
    assert_b3(&seen, Decision::Copied, &second);
    // The value of one header is no key of another.
    sidecar.inbound(&["x-request-id: 9", OTHER_TRACE, OTHER_SPAN]);
    let seen = sidecar.outbound(&["x-correlation-id: 9", "x-request-id: 10"]);
    assert_b3(&seen, Decision::Unknown, &[]);
}

/// Also one that is read for other reasons.
#[test]
fn any_header_may_be_a_key() {
    for key in ["x-ot-span-context", "tracestate", "x-id"] {
        let sidecar = Sidecar::keyed(&format!(r#"{{"keys": ["{key}"]}}"#));
        let value = format!("{key}: 7");
        sidecar.inbound(&[&value, TRACE, SPAN]);
        let seen = sidecar.outbound(&[&value]);
        assert_b3(&seen, Decision::Copied, &[TRACE, SPAN]);
    }
}

#[test]
fn a_part_of_a_header_may_be_a_key() {
    let sidecar =
        Sidecar::new(r#"{"keys": ["X-Amzn-Trace-Id:Root", "cookie:session", "x-request-id"]}"#);
    let root = |root: &str, rest: &str| format!("x-amzn-trace-id: {rest}Root={root}");
    let first = [&root("1-67891233-a", "Self=1-2-3;"), ID, TRACE, SPAN];
    let second = [&root("1-67891233-b", ""), OTHER_ID, OTHER_TRACE, OTHER_SPAN];
    sidecar.inbound(&first);
    sidecar.inbound(&second);
    // An application or a proxy writes a parent of its own into it.
    let own = root("1-67891233-a", "Parent=53995c3f42cd8ad8; Sampled=1; ");
    assert_b3(&sidecar.outbound(&[&own]), Decision::Copied, &[TRACE, SPAN]);
    // A part that is not there is no key.
    let none = sidecar.outbound(&["x-amzn-trace-id: Parent=1", OTHER_ID]);
    assert_b3(&none, Decision::Copied, &[OTHER_TRACE, OTHER_SPAN]);
    // The value of one part is no key of another.
    let other = sidecar.outbound(&["cookie: session=1-67891233-a", "x-request-id: x"]);
    assert_b3(&other, Decision::Unknown, &[]);
    // HTTP/2 may send a cookie in pieces.
    let third = ["x-b3-traceid: 663ac35c9f6413ad48485a3953bb6124", SPAN];
    sidecar.inbound(&[&["cookie: a=b", "cookie: session=7; c=d"], &third[..]].concat());
    let seen = sidecar.outbound(&["cookie: session=7"]);
    assert_b3(&seen, Decision::Copied, &third);
}

#[test]
fn a_later_key_tells_requests_of_one_id_apart() {
    let sidecar = sidecar();
    sidecar.inbound(&[ID, TRACE, SPAN]);
    sidecar.inbound(&[ID, OTHER_TRACE, OTHER_SPAN]);
    assert_b3(&sidecar.outbound(&[ID]), Decision::Ambiguous, &[]);
    assert_b3(
        &sidecar.outbound(&[ID, OTHER_TRACE]),
        Decision::Completed,
        &[OTHER_TRACE, OTHER_SPAN],
    );
    // A request with another ID is not among them.
    let third = "x-b3-traceid: 663ac35c9f6413ad48485a3953bb6124";
    sidecar.inbound(&[OTHER_ID, third, SPAN]);
    assert_b3(
        &sidecar.outbound(&[ID, third]),
        Decision::Ambiguous,
        &[third],
    );
}

#[test]
fn a_span_that_the_call_names_tells_requests_of_one_trace_apart() {
    for named in [
        SPAN,
        "traceparent: 00-463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312-01",
    ] {
        let sidecar = sidecar();
        sidecar.inbound(&[ID, TRACE, SPAN]);
        sidecar.wait(5);
        sidecar.inbound(&[ID, TRACE, OTHER_SPAN]);
        let seen = sidecar.outbound(&[ID, named]);
        assert_headers(&seen, &B3, &[TRACE, SPAN]);
    }
}

#[test]
fn emit_says_in_which_forms() {
    let multi = [TRACE, SPAN, SAMPLED];
    let single = "b3: 463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312-1";
    for (emit, expected) in [
        ("b3multi", &multi[..]),
        ("b3", &[single]),
        ("w3c", &[TRACEPARENT]),
        ("b3\", \"w3c", &[single, TRACEPARENT]),
    ] {
        let emit = format!("{{\"emit\": [\"{emit}\"]}}");
        for came in [&multi[..], &[single], &[TRACEPARENT]] {
            let sidecar = Sidecar::with("{}", &emit, 1);
            sidecar.inbound(&[&[ID], came].concat());
            let seen = sidecar.outbound(&[ID]);
            assert_eq!(seen.decision, Some(Decision::Copied));
            assert_headers(&seen, &[&B3[..], &W3C].concat(), expected);
        }
    }
    // By default those that it came in.
    let sidecar = sidecar();
    sidecar.inbound(&[ID, TRACEPARENT, "tracestate: a=1"]);
    let seen = sidecar.outbound(&[ID]);
    assert_headers(
        &seen,
        &[&B3[..], &W3C].concat(),
        &[TRACEPARENT, "tracestate: a=1"],
    );
}

#[test]
fn emit_gives_a_context_of_its_own_the_forms_it_lacks() {
    let emit = r#"{"emit": ["b3multi", "w3c"]}"#;
    let multi = [TRACE, SPAN, SAMPLED];
    for (given, expected) in [
        (&multi[..], [&multi[..], &[TRACEPARENT]].concat()),
        (&[TRACEPARENT], [&multi[..], &[TRACEPARENT]].concat()),
        // What is there is not touched.
        (
            &[
                "x-b3-traceid: 463AC35C9F6413AD48485A3953BB6124",
                SPAN,
                SAMPLED,
            ],
            vec![
                "x-b3-traceid: 463AC35C9F6413AD48485A3953BB6124",
                SPAN,
                SAMPLED,
                TRACEPARENT,
            ],
        ),
        (&["x-b3-sampled: 1"], vec!["x-b3-sampled: 1"]),
    ] {
        let sidecar = Sidecar::new(emit);
        let names = [&B3[..], &W3C].concat();
        let call = sidecar.outbound(&[&[OTHER_ID], given].concat());
        assert_headers(&call, &names, &expected);
        let seen = sidecar.inbound(&[&[ID], given].concat());
        assert_headers(&seen, &names, &expected);
        // The application carries on nothing but what it was given.
        let carried = only(&seen.headers, &["traceparent"]);
        if !carried.is_empty() {
            let call = sidecar.request(Some(Direction::Outbound), &carried);
            // Where the request came with one, it is a context of the call's own.
            let decision = match given == [TRACEPARENT] {
                true => Decision::Present,
                false => Decision::Copied,
            };
            assert_eq!(call.decision, Some(decision));
            assert!(call.headers.contains(&header(SPAN)));
        }
    }
}

#[test]
fn trace_ids_of_64_bits_stay_so() {
    let short = ["x-b3-traceid: 48485a3953bb6124", SPAN, SAMPLED];
    let padded = "traceparent: 00-000000000000000048485a3953bb6124-a2fb4a1d1a96d312-01";
    let sidecar = Sidecar::new(r#"{"emit": ["b3multi", "w3c"]}"#);
    let seen = sidecar.inbound(&[&[ID], &short[..]].concat());
    assert_headers(&seen, &W3C, &[padded]);
    let call = sidecar.outbound(&[OTHER_ID, padded]);
    assert_b3(&call, Decision::Copied, &short);
    let alone =
        sidecar.outbound(&["traceparent: 00-000000000000000058485a3953bb6124-a2fb4a1d1a96d312-01"]);
    assert_b3(
        &alone,
        Decision::Present,
        &["x-b3-traceid: 58485a3953bb6124", SPAN, SAMPLED],
    );
}

#[test]
fn a_traceparent_of_another_trace_is_copied_as_it_is() {
    let own = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
    let sidecar = sidecar();
    let w3c = [own, "tracestate: congo=t61rcWkgMzE"];
    sidecar.inbound(&[&[ID, TRACE, SPAN], &w3c[..]].concat());
    let seen = sidecar.outbound(&[ID]);
    assert_b3(&seen, Decision::Copied, &[TRACE, SPAN]);
    assert_headers(&seen, &W3C, &w3c);
    // A call with one of its own keeps it, and gets no state of another.
    let seen = sidecar.outbound(&[ID, TRACEPARENT]);
    assert_headers(&seen, &W3C, &[TRACEPARENT]);
    // One of the same trace is made anew, with the span of the application.
    let stale = "traceparent: 00-463ac35c9f6413ad48485a3953bb6124-0020000000000001-01";
    sidecar.inbound(&[OTHER_ID, TRACE, SPAN, PARENT, SAMPLED, stale]);
    assert_headers(&sidecar.outbound(&[OTHER_ID]), &W3C, &[TRACEPARENT]);
}

#[test]
fn beginnings_of_names_are_copied_too() {
    let sidecar = Sidecar::new(r#"{"copy_headers": ["x-tenant-*", "t*", "x-b3-*"]}"#);
    let copied = [
        "x-tenant-id: 7",
        "x-tenant-name: a",
        "trace-hint: 1",
        "x-b3-custom: y",
    ];
    let not = ["te: trailers", "x-other: 1", "transfer-encoding: chunked"];
    sidecar.inbound(&[&[ID, TRACE, SPAN], &copied[..], &not].concat());
    let seen = sidecar.outbound(&[ID, "x-tenant-id: own"]);
    let expected = [&[ID, "x-tenant-id: own", TRACE, SPAN][..], &copied[1..]].concat();
    assert_headers(&seen, &[""], &expected);
    // A call with a context of its own, but of this trace, gets them as well.
    let seen = sidecar.outbound(&[ID, TRACE, OTHER_SPAN]);
    assert_headers(&seen, &["x-tenant"], &copied[..2]);
    let seen = sidecar.outbound(&[ID, OTHER_TRACE, OTHER_SPAN]);
    assert_headers(&seen, &["x-tenant"], &[]);
}

#[test]
fn hosts_outside_the_mesh_get_nothing_unless_asked_to() {
    let cases: [(&str, Option<&'static str>, bool); 12] = [
        ("reviews:9080", None, false),
        // Istio's word comes before the look of the name.
        ("reviews.default.svc:9080", Some("PassthroughCluster"), true),
        (
            "reviews.default.svc.cluster.local",
            Some("PassthroughCluster"),
            true,
        ),
        (
            "reviews.default",
            Some("outbound|9080||reviews.default.svc.cluster.local"),
            false,
        ),
        (
            "REVIEWS.default",
            Some("outbound|9080||reviews.default.svc.corp.example"),
            // It is not the domain of this mesh.
            true,
        ),
        ("api.example.com", Some("PassthroughCluster"), true),
        (
            "api.example.com:443",
            Some("outbound|443||api.example.com"),
            true,
        ),
        ("10.0.0.7:80", Some("PassthroughCluster"), true),
        ("[fd00::7]:80", Some("PassthroughCluster"), true),
        (
            "vm.internal.example.org",
            Some("outbound|80||vm.internal.example.org"),
            false,
        ),
        // Somebody's own Envoy.
        ("127.0.0.1:9080", Some("reviews"), false),
        ("api.example.com", None, true),
    ];
    for (authority, cluster, outside) in cases {
        let authority = format!(":authority: {authority}");
        for mode in ["leave", "relay", "strip"] {
            let config = format!(
                "{{\"outside\": \"{mode}\", \"mesh_hosts\": [\"*.internal.example.org\"], \"copy_headers\": [\"tenant\"]}}"
            );
            let sidecar = Sidecar::new(&config);
            *sidecar.host.cluster.borrow_mut() = cluster;
            sidecar.inbound(&[ID, TRACE, SPAN, "tenant: 7"]);
            let seen = sidecar.outbound(&[&authority, ID]);
            let own = [OTHER_TRACE, OTHER_SPAN, "tenant: 8"];
            let with_own = sidecar.outbound(&[&[authority.as_str(), ID], &own[..]].concat());
            let names = [&B3[..], &["tenant"]].concat();
            if outside && mode != "relay" {
                assert_eq!(seen.decision, Some(Decision::Outside), "{authority}");
                assert_headers(&seen, &names, &[]);
            } else {
                assert_eq!(seen.decision, Some(Decision::Copied), "{authority}");
                assert_headers(&seen, &names, &[TRACE, SPAN, "tenant: 7"]);
            }
            if outside && mode == "strip" {
                assert_headers(&with_own, &names, &[]);
                assert_headers(&with_own, &["x-request-id"], &[ID]);
            } else {
                assert_headers(&with_own, &names, &own);
            }
        }
    }
}

#[test]
fn a_child_span_is_one_of_its_own() {
    let sidecar = Sidecar::new(r#"{"span_ids": "child", "emit": ["b3multi", "w3c"]}"#);
    sidecar.inbound(&[ID, TRACE, SPAN, PARENT, SAMPLED]);
    let mut spans = Vec::new();
    for _ in 0..2 {
        let seen = sidecar.outbound(&[ID]);
        assert_headers(
            &seen,
            &["x-b3-traceid", "x-b3-parentspanid", "x-b3-sampled"],
            &[TRACE, "x-b3-parentspanid: a2fb4a1d1a96d312", SAMPLED],
        );
        let (_, span) = only(&seen.headers, &["x-b3-spanid"]).remove(0);
        let (_, w3c) = only(&seen.headers, &["traceparent"]).remove(0);
        assert_eq!(w3c[36..52], span);
        spans.push(span);
    }
    assert!(spans[0] != spans[1] && !spans.contains(&b"a2fb4a1d1a96d312".to_vec()));
}

#[test]
fn a_call_is_not_made_larger_than_envoy_takes() {
    for (many, long, decision) in [
        (85, 10, Decision::Copied),
        (93, 10, Decision::TooLarge),
        (1, 59_000, Decision::Copied),
        (1, 59_370, Decision::TooLarge),
    ] {
        let sidecar = sidecar();
        sidecar.inbound(&[ID, TRACE, SPAN, SAMPLED]);
        let mut lines: Vec<String> = (0..many).map(|n| format!("h{n}: v")).collect();
        lines.push(format!("long: {}", "v".repeat(long)));
        lines.push(ID.to_string());
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let seen = sidecar.outbound(&lines);
        assert_eq!(seen.decision, Some(decision), "{many} {long}");
        let written = seen.headers.len() - lines.len();
        assert_eq!(written, if decision == Decision::Copied { 3 } else { 0 });
        // That says it all.
        let no_room = |counter: &Counter| matches!(counter, Counter::NoRoom(_));
        assert!(!seen.counters.iter().any(no_room));
    }
}

/// A finding must be true. A call with a context of its own is looked up among the
/// requests that its worker knows, and one of another worker may be its own.
#[test]
fn what_a_call_breaks_is_asked_of_every_worker() {
    let config = r#"{"restore_request_id": "never"}"#;
    let sidecar = Sidecar::with(config, config, 2);
    let outer = headers(&[ID, TRACE, SPAN, SAMPLED]);
    let inner = headers(&[ID, OTHER_TRACE, SPAN, SAMPLED]);
    sidecar.on(0, Some(Direction::Inbound), &inner);
    // This worker is new: the other one has not looked for it yet.
    sidecar.on(1, Some(Direction::Inbound), &outer);
    // With the second call, it has.
    for _ in 0..2 {
        let seen = sidecar.on(0, Some(Direction::Outbound), &outer);
        assert_eq!(seen.decision, Some(Decision::Present));
        assert_eq!(seen.rules, [""; 0]);
    }
}

/// Of one span, of which one form has its trace ID cut.
#[test]
fn a_repair_keeps_the_parent_that_one_form_has() {
    let sidecar = Sidecar::new(r#"{"mode": "repair"}"#);
    let cut = "b3: 48485a3953bb6124-a2fb4a1d1a96d312-1";
    let seen = sidecar.inbound(&[ID, cut, TRACE, SPAN, PARENT, SAMPLED]);
    assert_eq!(seen.rules, ["B04"]);
    let expected = headers(&[SINGLE, TRACE, SPAN, PARENT, SAMPLED]);
    assert_eq!(only(&seen.headers, &B3), only(&expected, &B3));
    // That of another span is not its own.
    let cut = "b3: 48485a3953bb6124-b2fb4a1d1a96d312-1";
    let sidecar = Sidecar::new(r#"{"mode": "repair"}"#);
    let seen = sidecar.inbound(&[ID, cut, TRACE, SPAN, PARENT, SAMPLED]);
    assert_eq!(seen.rules, ["B04"]);
    let single = "b3: 463ac35c9f6413ad48485a3953bb6124-b2fb4a1d1a96d312-1";
    let span = "x-b3-spanid: b2fb4a1d1a96d312";
    let expected = headers(&[single, TRACE, span, SAMPLED]);
    assert_eq!(only(&seen.headers, &B3), only(&expected, &B3));
}

/// An application that forwards the identifiers, and forgets the rest.
#[test]
fn a_decision_that_the_call_leaves_open_is_that_of_its_request() {
    for decision in [
        &["x-b3-sampled: 0"][..],
        &["x-b3-sampled: 1"],
        &["x-b3-sampled: 1", "x-b3-flags: 1"],
    ] {
        let sidecar = sidecar();
        let inbound = [&[ID, TRACE, SPAN, PARENT], decision].concat();
        sidecar.request(Some(Direction::Inbound), &headers(&inbound));
        for own in [&[TRACE, SPAN][..], &[TRACE, SPAN, PARENT]] {
            let call = headers(&[&[ID], own].concat());
            let seen = sidecar.request(Some(Direction::Outbound), &call);
            let expected = [&[ID], own, decision].concat();
            let mut found = seen.headers.clone();
            found.retain(|(name, _)| name.starts_with("x-"));
            assert_eq!(found, headers(&expected));
            assert_eq!(seen.decision, Some(Decision::Completed));
        }
        let single = "b3: 463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312";
        let seen = sidecar.request(Some(Direction::Outbound), &headers(&[ID, single]));
        let letter = match decision {
            ["x-b3-sampled: 0"] => "0",
            ["x-b3-sampled: 1"] => "1",
            _ => "d",
        };
        let expected = format!("{single}-{letter}");
        assert_b3(&seen, Decision::Completed, &[&expected]);
    }
    // One of its own stays, and so does what is of another trace.
    let sidecar = sidecar();
    let inbound = headers(&[ID, TRACE, SPAN, "x-b3-sampled: 0"]);
    sidecar.request(Some(Direction::Inbound), &inbound);
    for own in [
        [TRACE, SPAN, "x-b3-sampled: 1"].as_slice(),
        &[OTHER_TRACE, SPAN],
    ] {
        let call = headers(&[&[ID], own].concat());
        let seen = sidecar.request(Some(Direction::Outbound), &call);
        assert_eq!(seen.headers, call);
        assert_eq!(seen.decision, Some(Decision::Present));
    }
}

/// Nothing else of it is touched.
#[test]
fn a_decision_is_added_to_what_is_there() {
    const SERVER: &str = "traceparent: 00-463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312-01";
    let client = SERVER.replace("a2fb4a1d1a96d312", "cccccccccccccccc");
    let denied = SERVER.replace("-01", "-00");
    let denied_client = client.replace("-01", "-00");
    let open = "b3: 463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312";
    let other = "x-b3-traceid: 563ac35c9f6413ad48485a3953bb6124";
    let (yes, no) = ("x-b3-sampled: 1", "x-b3-sampled: 0");
    let cases: [(&str, &[&str], &[&str]); 10] = [
        // A parent beside it.
        (
            "{}",
            &[open, TRACE, SPAN, PARENT],
            &[&format!("{open}-1"), TRACE, SPAN, PARENT, yes],
        ),
        // A span of the application's own beside it, and one that was denied.
        ("{}", &[TRACE, SPAN, &client], &[TRACE, SPAN, &client, yes]),
        ("{}", &[TRACE, SPAN, &denied], &[TRACE, SPAN, &denied, no]),
        ("{}", &[TRACE, SPAN, SERVER], &[TRACE, SPAN, SERVER, yes]),
        (
            "{}",
            &[TRACE, SPAN, &denied_client],
            &[TRACE, SPAN, &denied_client, yes],
        ),
        // The other format says something else.
        (
            "{}",
            &[open, other, SPAN],
            &[&format!("{open}-1"), other, SPAN],
        ),
        (r#"{"mode": "repair"}"#, &[TRACE, SPAN], &[TRACE, SPAN, yes]),
        (
            r#"{"mode": "repair"}"#,
            &[
                open,
                &TRACE.to_uppercase().replace("X-B3-TRACEID", "x-b3-traceid"),
                SPAN,
            ],
            &[&format!("{open}-1"), TRACE, SPAN, yes],
        ),
        (
            r#"{"mode": "repair"}"#,
            &["b3: 1-2", TRACE, SPAN],
            &[&format!("{open}-1"), TRACE, SPAN, yes],
        ),
        (
            r#"{"emit": ["b3multi", "w3c"]}"#,
            &[TRACE, SPAN, "traceparent: 00-1"],
            &[TRACE, SPAN, yes, SERVER],
        ),
    ];
    for (config, own, expected) in cases {
        let sidecar = Sidecar::new(config);
        sidecar.inbound(&[ID, TRACE, SPAN, PARENT, SAMPLED]);
        let seen = sidecar.outbound(&[&[ID], own].concat());
        let context = ["b3", "x-b3-", "traceparent"];
        let found = only(&seen.headers, &context);
        assert_eq!(
            found,
            only(&headers(expected), &context),
            "{config} {own:?}"
        );
        assert_eq!(seen.decision, Some(Decision::Completed), "{config} {own:?}");
    }
}

/// The first call of a worker, before its first tick.
#[test]
fn a_call_is_checked_beside_the_first_request_of_another_worker() {
    let config = r#"{"restore_request_id": "never"}"#;
    let sidecar = Sidecar::with(config, config, 2);
    sidecar.on(
        1,
        Some(Direction::Inbound),
        &headers(&[ID, TRACE, SPAN, "x-b3-sampled: 1"]),
    );
    let other = headers(&[ID, OTHER_TRACE, SPAN, "x-b3-sampled: 1"]);
    for _ in 0..2 {
        let seen = sidecar.on(0, Some(Direction::Outbound), &other);
        assert_eq!(seen.decision, Some(Decision::Present));
        assert_eq!(seen.rules, ["P02"]);
    }
}

#[test]
fn workers_know_of_each_other() {
    let sidecar = Sidecar::with("{}", "{}", 3);
    let inbound = headers(&[ID, TRACE, SPAN]);
    let seen = sidecar.on(1, Some(Direction::Inbound), &inbound);
    for worker in 0..3 {
        let call = sidecar.on(worker, Some(Direction::Outbound), &headers(&[ID]));
        assert_b3(&call, Decision::Copied, &[TRACE, SPAN]);
    }
    // Another trace under the same ID, elsewhere.
    let other = headers(&[ID, OTHER_TRACE, SPAN]);
    sidecar.on(2, Some(Direction::Inbound), &other);
    for worker in 0..3 {
        let call = sidecar.on(worker, Some(Direction::Outbound), &headers(&[ID]));
        assert_b3(&call, Decision::Ambiguous, &[]);
    }
    sidecar.end(&seen);
    sidecar.wait(1000);
    for worker in 0..3 {
        let call = sidecar.on(worker, Some(Direction::Outbound), &headers(&[ID]));
        assert_b3(&call, Decision::Copied, &[OTHER_TRACE, SPAN]);
    }
}

fn any_headers() -> impl Strategy<Value = Headers> {
    const NAMES: &[&str] = &[
        "x-request-id",
        "x-b3-traceid",
        "x-b3-spanid",
        "x-b3-parentspanid",
        "x-b3-sampled",
        "x-b3-flags",
        "b3",
        "x-ot-span-context",
        "accept",
    ];
    let value = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..40),
        "[0-9a-fA-F]{1,33}".prop_map(String::into_bytes),
        "[0-9a-f]{16}".prop_map(String::into_bytes),
        "[0-9a-f]{32}-[0-9a-f]{16}(-[01d](-[0-9a-f]{16})?)?".prop_map(String::into_bytes),
        "[01d,-]{0,3}".prop_map(String::into_bytes),
    ];
    proptest::collection::vec(
        (
            proptest::sample::select(NAMES).prop_map(str::to_string),
            value,
        ),
        0..12,
    )
}

proptest! {
    /// In `observe`, an inbound request is changed in its missing request ID
    /// only, and an outbound one not at all unless something is copied.
    #[test]
    fn observe_changes_nothing(given in any_headers()) {
        let sidecar = sidecar();
        let seen = sidecar.request(Some(Direction::Outbound), &given);
        prop_assert_eq!(&seen.headers, &given);
        let seen = sidecar.request(Some(Direction::Inbound), &given);
        let rest = |headers: &Headers| -> Headers {
            headers.iter().filter(|(name, _)| name != "x-request-id").cloned().collect()
        };
        prop_assert_eq!(rest(&seen.headers), rest(&given));
        let id = |headers: &Headers| headers.iter().find(|(name, _)| name == "x-request-id").map(|h| h.1.clone());
        if id(&given).is_some_and(|id| !id.is_empty()) {
            prop_assert_eq!(&seen.headers, &given);
        }
    }

    #[test]
    fn repairing_twice_changes_nothing(given in any_headers()) {
        let sidecar = Sidecar::new(r#"{"mode": "repair", "relay": false}"#);
        let once = sidecar.request(Some(Direction::Outbound), &given).headers;
        let twice = sidecar.request(Some(Direction::Outbound), &once);
        prop_assert_eq!(&twice.headers, &once);
    }

    /// Whatever came in, what is copied onto a bare call has no finding of its own
    /// but the legal ones.
    #[test]
    fn what_is_copied_is_well_formed(given in any_headers()) {
        let sidecar = sidecar();
        let mut given = given;
        given.retain(|(name, _)| name != "x-request-id");
        given.push(header(ID));
        sidecar.request(Some(Direction::Inbound), &given);
        let call = sidecar.outbound(&[ID]);
        let mut again = call.headers;
        again.retain(|(name, _)| name != "x-ot-span-context");
        let checked = sidecar.request(None, &again);
        prop_assert!(checked.rules.iter().all(|rule| ["S05", "S06", "D02", "D04", "W04"].contains(rule)), "{:?}", checked.rules);
    }

    /// Requests in any interleaving, each with an ID of its own: every call
    /// gets the context of its own request.
    #[test]
    fn no_call_gets_the_context_of_another_request(steps in proptest::collection::vec((0usize..40, 0u8..4, 0u64..300), 1..300)) {
        let sidecar = sidecar();
        let mut open: Vec<Option<Seen>> = (0..40).map(|_| None).collect();
        let mut generation = [0u32; 40];
        for (n, step, wait) in steps {
            sidecar.wait(wait);
            let id = |generation: u32| format!("x-request-id: {n:08x}-0000-4000-8000-{generation:012x}");
            let trace = |generation: u32| format!("x-b3-traceid: {:016x}{:016x}", n + 1, generation);
            match (step, open[n].take()) {
                (0, Some(seen)) => sidecar.end(&seen),
                (_, Some(seen)) => {
                    let call = sidecar.outbound(&[&id(generation[n])]);
                    prop_assert_eq!(call.decision, Some(Decision::Copied));
                    prop_assert!(call.headers.contains(&header(&trace(generation[n]))));
                    open[n] = Some(seen);
                }
                (1, None) => {
                    let call = sidecar.outbound(&[&id(generation[n] + 1)]);
                    prop_assert_eq!(call.decision, Some(Decision::Unknown));
                }
                (_, None) => {
                    generation[n] += 1;
                    open[n] = Some(sidecar.inbound(&[&id(generation[n]), &trace(generation[n]), SPAN]));
                }
            }
        }
    }
}

#[test]
fn repaired_request_ids_are_the_key() {
    let sidecar = Sidecar::new(r#"{"mode": "repair"}"#);
    let first = "0f7a1c2e-1b2d-4c3e-9d4f-5a6b7c8d9e0f";
    let joined = format!("x-request-id: {first},1f7a1c2e-1b2d-4c3e-9d4f-5a6b7c8d9e0f");
    let seen = sidecar.inbound(&[&joined, TRACE, SPAN]);
    assert_eq!(seen.rules, ["S06", "R06"]);
    assert_eq!(only(&seen.headers, &["x-request-id"]), [header(ID)]);
    assert_b3(&sidecar.outbound(&[ID]), Decision::Copied, &[TRACE, SPAN]);
}

#[test]
fn b3_from_outside_is_dropped_or_ignored() {
    let given = [ID, TRACE, SPAN, PARENT, "x-b3-sampled: yes", SINGLE];
    let drop = Sidecar::new(r#"{"incoming_b3": "drop"}"#);
    let seen = drop.inbound(&given);
    assert_eq!(seen.headers, headers(&[ID]));
    assert!(seen.rules.is_empty() && seen.counters.contains(&Counter::Dropped));
    assert_b3(&drop.outbound(&[ID]), Decision::NoContext, &[]);

    let ignore = Sidecar::new(r#"{"incoming_b3": "ignore", "mode": "enforce"}"#);
    let seen = ignore.inbound(&given);
    assert_eq!(seen.headers, headers(&given));
    assert!(seen.rules.is_empty() && seen.reply.is_none());
    assert!(seen.counters.contains(&Counter::Ignored));
    assert_b3(&ignore.outbound(&[ID]), Decision::NoContext, &[]);

    let neither = drop.inbound(&[ID]);
    assert!(!neither.counters.contains(&Counter::Dropped));
}

/// A context in each of its formats, and what asks an Envoy for a trace.
const FORMS: [&str; 17] = [
    TRACE,
    SPAN,
    PARENT,
    "x-b3-sampled: 1",
    "x-b3-flags: 1",
    SINGLE,
    TRACEPARENT,
    "tracestate: congo=t61rcWkgMzE",
    "x-ot-span-context: 1",
    "grpc-trace-bin: AAA",
    "x-client-trace-id: 1",
    "x-envoy-force-trace: true",
    "uber-trace-id: 1:2:0:1",
    "sw8: 1-a",
    "sw8-correlation: a",
    "x-datadog-trace-id: 1",
    "x-datadog-sampling-priority: 2",
];

/// One setting for all formats: what is not trusted leaves no trace.
#[test]
fn a_context_from_outside_is_dropped_or_ignored_in_every_form() {
    let every = r#""emit": ["b3multi", "b3", "w3c"],
        "keys": ["x-request-id", "traceparent", "b3", "sw8"],
        "copy_headers": ["grpc-trace-bin", "uber-*", "x-*", "sw8", "trace*"]"#;
    let lists: [&[&str]; 3] = [&FORMS, &[], &[TRACEPARENT]];
    let singles = FORMS.each_ref().map(core::slice::from_ref);
    for brought in lists.into_iter().chain(singles) {
        for mode in ["observe", "repair", "enforce"] {
            for what in ["drop", "ignore"] {
                let config =
                    format!(r#"{{"incoming_context": "{what}", "mode": "{mode}", {every}}}"#);
                let sidecar = Sidecar::new(&config);
                let given = [&[ID, "accept: */*"], brought].concat();
                let seen = sidecar.inbound(&given);
                let expected = match what {
                    "drop" => headers(&[ID, "accept: */*"]),
                    _ => headers(&given),
                };
                assert_eq!(seen.headers, expected, "{brought:?} {config}");
                assert!(seen.rules.is_empty() && seen.reply.is_none());
                let counted = match what {
                    "drop" => Counter::Dropped,
                    _ => Counter::Ignored,
                };
                let counted = seen.counters.contains(&counted);
                assert_eq!(counted, !brought.is_empty(), "{brought:?}");
                // Found by the ID of the request alone, and without a context.
                let call = sidecar.outbound(&[ID]);
                assert_eq!(call.decision, Some(Decision::NoContext));
                assert_eq!(call.headers, headers(&[ID]), "{brought:?} {config}");
                for key in [&[TRACEPARENT][..], &[TRACE], &["sw8: 1-a"]] {
                    if key != [TRACEPARENT] {
                        let call = sidecar.outbound(key);
                        assert_ne!(call.decision, Some(Decision::Copied), "{key:?}");
                        assert_ne!(call.decision, Some(Decision::Completed), "{key:?}");
                    }
                }
            }
        }
    }
}

/// Envoy keeps in it whether a request is traced: the next one would heed it.
#[test]
fn a_request_id_from_outside_asks_for_no_trace() {
    let sidecar = Sidecar::new(r#"{"incoming_context": "drop"}"#);
    for reason in ["9", "a", "b"] {
        let given = format!("x-request-id: 0f7a1c2e-1b2d-{reason}c3e-9d4f-5a6b7c8d9e0f");
        let seen = sidecar.inbound(&[&given]);
        assert_eq!(seen.headers, headers(&[ID]));
        assert!(!seen.counters.contains(&Counter::Dropped));
        // Nor does a call that gets it back.
        let call = sidecar.outbound(&[&given]);
        assert_eq!(call.headers, headers(&[&given]));
    }
    for kept in [ID, "x-request-id: my-own-9999999", "x-request-id: "] {
        let trust = Sidecar::new(r#"{"generate_request_id": false}"#);
        let drop = Sidecar::new(r#"{"incoming_context": "drop", "generate_request_id": false}"#);
        let ignore = Sidecar::new(r#"{"incoming_context": "ignore"}"#);
        assert_eq!(drop.inbound(&[kept]).headers, headers(&[kept]));
        assert_eq!(trust.inbound(&[kept]).headers, headers(&[kept]));
        let forced = "x-request-id: 0f7a1c2e-1b2d-9c3e-9d4f-5a6b7c8d9e0f";
        assert_eq!(ignore.inbound(&[forced]).headers, headers(&[forced]));
    }
}

#[test]
fn the_report_header_says_what_was_found_and_done() {
    let sidecar = Sidecar::new(r#"{"report_header": "request", "mode": "repair"}"#);
    let report = |seen: &Seen| {
        let values = only(&seen.headers, &["x-b3relay"]);
        assert_eq!(values.len(), 1);
        String::from_utf8(values[0].1.clone()).unwrap()
    };
    let seen = sidecar.inbound(&[TRACE, "x-b3-spanid: A2FB4A1D1A96D312", "x-b3relay: forged"]);
    let expected = "inbound; L04 x-b3-spanid; S06 x-b3-traceid; R01 x-request-id; \
                    repaired; generated x-request-id; remembered";
    assert_eq!(report(&seen), expected);
    let call = sidecar.request(
        Some(Direction::Outbound),
        &only(&seen.headers, &["x-request-id"]),
    );
    assert_eq!(report(&call), "outbound; P01 x-b3-traceid; copied");
    let call = sidecar.outbound(&[TRACE, "x-b3-spanid: a2fb4a1d1a96d312", PROTO, ID]);
    assert!(report(&call).contains("; restored x-request-id"));
    for (config, line, part) in [
        (
            "\"incoming_context\": \"ignore\"",
            SPAN,
            "; ignored context",
        ),
        ("\"incoming_context\": \"drop\"", SPAN, "; dropped context"),
    ] {
        let config = format!(r#"{{"report_header": "request", {config}}}"#);
        let seen = Sidecar::new(&config).inbound(&[ID, line]);
        assert!(report(&seen).contains(part), "{config}");
    }
}

#[test]
fn a_raised_rule_is_enforced() {
    let config = r#"{"mode": "enforce", "rules": {"P02": "error", "S01": "warn"}}"#;
    let sidecar = Sidecar::new(config);
    assert_eq!(sidecar.inbound(&[ID, TRACE]).reply, None);
    let sidecar = Sidecar::new(config);
    sidecar.inbound(&[ID, TRACE, SPAN]);
    let (status, body) = sidecar.outbound(&[ID, OTHER_TRACE, SPAN]).reply.unwrap();
    assert!(
        status == 400 && body.starts_with("b3relay: P02 x-b3-traceid: "),
        "{body}"
    );
}

/// What goes out after repair and relay together is one whole context.
#[test]
fn repair_and_relay_write_together() {
    let whole = [TRACE, SPAN, PARENT, SAMPLED];
    let parts: [&[&str]; 6] = [
        &[TRACE],
        &[SPAN],
        &[PARENT],
        &[TRACE, SAMPLED],
        &[TRACE, "x-b3-spanid: "],
        &["x-b3-traceid: 463AC35C9F6413AD48485A3953BB6124"],
    ];
    for part in parts {
        let sidecar = Sidecar::new(r#"{"mode": "repair"}"#);
        sidecar.inbound(&[&[ID], &whole[..]].concat());
        let call = sidecar.outbound(&[&[ID], part].concat());
        assert_b3(&call, Decision::Completed, &whole);
        let again = sidecar.request(Some(Direction::Outbound), &call.headers);
        assert_eq!(again.headers, call.headers, "{part:?}");
    }
}

#[test]
fn repair_reaches_the_relayed_context() {
    let sidecar = Sidecar::new(r#"{"mode": "repair"}"#);
    let seen = sidecar.inbound(&[
        ID,
        "b3: 463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312-d",
    ]);
    // Who reads b3 alone still finds it, without the state that not all know.
    let both = [
        "b3: 463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312-1",
        TRACE,
        SPAN,
        SAMPLED,
        "x-b3-flags: 1",
    ];
    assert_eq!(only(&seen.headers, &B3), only(&headers(&both), &B3));
    assert_b3(&sidecar.outbound(&[ID]), Decision::Copied, &both);
}

#[test]
fn debug_is_not_lost_where_the_application_forwards_the_decision() {
    let sidecar = sidecar();
    let debug = [TRACE, SPAN, SAMPLED, "x-b3-flags: 1"];
    sidecar.inbound(&[&[ID], &debug[..]].concat());
    assert_b3(
        &sidecar.outbound(&[ID, SAMPLED]),
        Decision::Completed,
        &debug,
    );
}

#[test]
fn a_b3_that_is_empty_decides_nothing() {
    let sidecar = sidecar();
    sidecar.inbound(&[ID, TRACE, SPAN, SAMPLED]);
    let call = sidecar.outbound(&[ID, "b3: ", SAMPLED]);
    assert_eq!(call.decision, Some(Decision::Completed));
    assert!(call.headers.contains(&header(TRACE)));
}

#[test]
fn a_call_keeps_the_form_that_it_has_begun() {
    let sidecar = sidecar();
    sidecar.inbound(&[ID, SINGLE]);
    let both = [SINGLE, TRACE, SPAN, PARENT, SAMPLED];
    assert_b3(&sidecar.outbound(&[ID, TRACE]), Decision::Completed, &both);
}

#[test]
fn one_rule_is_found_once_in_a_header() {
    let upper = "b3: 463AC35C9F6413AD48485A3953BB6124-A2FB4A1D1A96D312-1-002000000000000A";
    assert_eq!(sidecar().inbound(&[ID, upper]).rules, ["L04"]);
}

#[test]
fn only_a_cut_trace_id_is_taken_for_one() {
    let low = "b3: f63ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312-1";
    assert_eq!(
        sidecar().inbound(&[ID, low, TRACE, SPAN, SAMPLED]).rules,
        ["B02"]
    );
}

#[test]
fn what_the_application_sends_is_not_distrusted() {
    let sidecar = Sidecar::new(r#"{"incoming_b3": "drop"}"#);
    let own = [TRACE, SPAN, SAMPLED];
    assert_b3(
        &sidecar.outbound(&[&[ID], &own[..]].concat()),
        Decision::Present,
        &own,
    );
}

#[test]
fn a_request_id_alone_is_repaired_and_counted() {
    let repaired = Counter::Repaired(Some(Direction::Inbound));
    let sidecar = Sidecar::new(r#"{"mode": "repair"}"#);
    let seen = sidecar.inbound(&[ID, OTHER_ID]);
    assert_eq!(seen.headers, headers(&[ID]));
    assert!(seen.counters.contains(&repaired));
    for right in [ID, "x-request-id: ,3"] {
        let seen = sidecar.inbound(&[right]);
        assert_eq!(seen.headers, headers(&[right]));
        assert!(!seen.counters.contains(&repaired));
    }
}
