//! W3C Trace Context: meshes whose tracers write it, and applications with tracing of
//! their own.
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
    ID, OTHER_ID, PARENT, PROTO, SAMPLED, SPAN, Seen, Sidecar, TRACE, header, headers, only,
};

const NEW_ID: &str = "x-request-id: 8e8a1c2e-1b2d-4c3e-9d4f-5a6b7c8d9e0f";

/// The sidecar's span.
const SERVER: &str = "traceparent: 00-463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312-01";
/// A span of the application's own, below it.
const CLIENT: &str = "traceparent: 00-463ac35c9f6413ad48485a3953bb6124-cccccccccccccccc-01";
/// The caller's span.
const CALLER: &str = "traceparent: 00-463ac35c9f6413ad48485a3953bb6124-0020000000000001-01";
/// A trace that the application has made up.
const MADE_UP: &str = "traceparent: 00-dddddddddddddddddddddddddddddddd-cccccccccccccccc-01";

const B3: [&str; 4] = [TRACE, SPAN, PARENT, SAMPLED];
const CONTEXT: [&str; 4] = ["b3", "x-b3-", "traceparent", "tracestate"];

#[track_caller]
fn assert_seen(seen: &Seen, decision: Decision, lines: &[&str]) {
    let found = only(&seen.headers, &CONTEXT);
    assert_eq!(found, only(&headers(lines), &CONTEXT));
    assert_eq!(seen.decision, Some(decision));
}

/// Of that mesh, by what an inbound request came with.
fn sidecar(config: &str, inbound: &[&str]) -> Sidecar {
    let sidecar = Sidecar::new(config);
    sidecar.inbound(&[&[ID], inbound].concat());
    sidecar
}

#[test]
fn where_the_tracer_writes_w3c_a_call_of_the_trace_is_left_as_it_is() {
    for inbound in [&[SERVER][..], &[&B3[..], &[SERVER]].concat()] {
        // Forwarded as it came, or with a span of the application's own.
        for carried in [SERVER, CLIENT] {
            for id in [ID, NEW_ID] {
                let seen = sidecar("{}", inbound).outbound(&[carried, PROTO, id]);
                assert_seen(&seen, Decision::Present, &[carried]);
                assert_eq!(seen.rules, [""; 0]);
                assert_eq!(only(&seen.headers, &["x-request-id"]), [header(ID)]);
            }
        }
        let seen = sidecar("{}", inbound).outbound(&[CLIENT.replace("-01", "-00").as_str(), ID]);
        assert_eq!(seen.rules, ["P03"]);
    }
}

#[test]
fn a_span_that_nobody_reports_gives_way_if_the_user_says_so() {
    let config = r#"{"own_spans": "unreported"}"#;
    let both = [&B3[..], &[SERVER]].concat();
    for (inbound, expected) in [
        (&[SERVER][..], &[SERVER][..]),
        (&both, &both),
        (&B3, &[&B3[..], &[CLIENT]].concat()),
    ] {
        let seen = sidecar(config, inbound).outbound(&[CLIENT, ID]);
        assert_seen(&seen, Decision::Copied, expected);
    }
}

#[test]
fn a_span_that_is_reported_is_the_calls_in_b3_too_if_the_user_says_so() {
    let config = r#"{"own_spans": "reported", "emit": ["b3multi", "w3c"]}"#;
    let seen = sidecar(config, &B3).outbound(&[CLIENT, ID]);
    let expected = [TRACE, "x-b3-spanid: cccccccccccccccc", SAMPLED, CLIENT];
    assert_seen(&seen, Decision::Copied, &expected);
}

/// Copied by hand, beside what the application's tracing writes.
#[test]
fn own_spans_decides_between_two_formats_too() {
    let hand = [TRACE, SPAN, SAMPLED];
    let client = [TRACE, "x-b3-spanid: cccccccccccccccc", SAMPLED, CLIENT];
    let server = [TRACE, SPAN, SAMPLED, SERVER];
    let carried = [&[ID], &hand[..], &[CLIENT]].concat();
    for (own_spans, decision, expected) in [
        (
            "auto",
            Decision::Present,
            &[&hand[..], &[CLIENT]].concat()[..],
        ),
        ("reported", Decision::Copied, &client),
        ("unreported", Decision::Copied, &server),
    ] {
        let config = format!(r#"{{"own_spans": "{own_spans}"}}"#);
        let seen = sidecar(&config, &hand).outbound(&carried);
        assert_seen(&seen, decision, expected);
    }
    // An SDK that writes B3, and is said to report nowhere.
    let unreported = sidecar(r#"{"own_spans": "unreported"}"#, &B3);
    let seen = unreported.outbound(&[ID, TRACE, "x-b3-spanid: cccccccccccccccc", SAMPLED]);
    assert_seen(&seen, Decision::Copied, &B3);
    // Another trace is not touched.
    let other = ["x-b3-traceid: 563ac35c9f6413ad48485a3953bb6124", SPAN];
    let seen = unreported.outbound(&[&[ID], &other[..]].concat());
    assert_seen(&seen, Decision::Present, &other);
}

#[test]
fn a_traceparent_that_the_application_made_up_contradicts_nothing() {
    let expected = [&B3[..], &[MADE_UP]].concat();
    let seen = sidecar("{}", &B3).outbound(&[MADE_UP, ID]);
    assert_seen(&seen, Decision::Copied, &expected);
    let seen = sidecar("{}", &B3).outbound(&[":authority: b", MADE_UP, PROTO, NEW_ID]);
    assert_seen(&seen, Decision::Exclusive, &expected);
    let off = sidecar(r#"{"attribution": "off"}"#, &B3);
    let seen = off.outbound(&[MADE_UP, PROTO, NEW_ID]);
    assert_seen(&seen, Decision::Unknown, &[MADE_UP]);
}

#[test]
fn where_it_had_one_to_carry_on_another_trace_is_another_request() {
    for inbound in [&[SERVER][..], &[&B3[..], &[SERVER]].concat()] {
        let seen = sidecar("{}", inbound).outbound(&[MADE_UP, ID]);
        assert_seen(&seen, Decision::Present, &[MADE_UP]);
        assert_eq!(seen.rules, ["P02"]);
        let seen = sidecar("{}", inbound).outbound(&[":authority: b", MADE_UP, PROTO, NEW_ID]);
        assert_seen(&seen, Decision::Present, &[MADE_UP]);
    }
    // It was given a stale one.
    let seen = sidecar("{}", &[&B3[..], &[CALLER]].concat()).outbound(&[MADE_UP, ID]);
    assert_seen(&seen, Decision::Conflict, &[MADE_UP]);
}

#[test]
fn of_two_forms_at_odds_the_newer_one_is_copied() {
    // The Zipkin tracer writes B3, and leaves the client's traceparent.
    let seen = sidecar("{}", &[&B3[..], &[CALLER]].concat()).outbound(&[ID]);
    assert_seen(&seen, Decision::Copied, &[&B3[..], &[SERVER]].concat());
    // The OpenTelemetry tracer writes traceparent, and leaves the client's B3.
    let stale = [TRACE, "x-b3-spanid: 0020000000000001", SAMPLED];
    let with_parent = [&stale[..], &["x-b3-parentspanid: 0010000000000001"]].concat();
    for (stale, is_known) in [
        (&stale[..], false),
        (&stale[..], true),
        (&with_parent, true),
    ] {
        let otel = Sidecar::new("{}");
        if is_known {
            otel.inbound(&[OTHER_ID, MADE_UP]);
        }
        otel.inbound(&[&[ID], stale, &[SERVER]].concat());
        let newest = [TRACE, SPAN, SAMPLED, SERVER];
        assert_seen(&otel.outbound(&[ID]), Decision::Copied, &newest);
    }
    // One that is two hops old, or of a span of the caller's own.
    let old = "traceparent: 00-463ac35c9f6413ad48485a3953bb6124-0010000000000001-01";
    let zipkin = Sidecar::new("{}");
    zipkin.inbound(&[&[ID], &B3[..], &[old]].concat());
    assert_seen(
        &zipkin.outbound(&[ID]),
        Decision::Copied,
        &[&B3[..], &[SERVER]].concat(),
    );
    // Another trace in B3, where the tracer is known to write W3C.
    let otel = Sidecar::new("{}");
    otel.inbound(&[OTHER_ID, MADE_UP]);
    let foreign = "x-b3-traceid: 563ac35c9f6413ad48485a3953bb6124";
    otel.inbound(&[ID, foreign, SPAN, SAMPLED, SERVER]);
    assert_seen(
        &otel.outbound(&[ID]),
        Decision::Copied,
        &[TRACE, SPAN, SAMPLED, SERVER],
    );
}

#[test]
fn emit_replaces_a_traceparent_with_an_older_span_or_that_cannot_be_read() {
    let emit = r#"{"emit": ["b3multi", "w3c"]}"#;
    let zero = "traceparent: 00-00000000000000000000000000000000-0000000000000000-00";
    let whole = [&B3[..], &[SERVER]].concat();
    for given in [
        CALLER,
        zero,
        "traceparent: ",
        "traceparent: nonsense",
        "traceparent: \\xff",
    ] {
        let seen = Sidecar::new(emit).inbound(&[&[ID], &B3[..], &[given]].concat());
        assert_eq!(
            only(&seen.headers, &CONTEXT),
            only(&headers(&whole), &CONTEXT),
            "{given}"
        );
    }
    for given in [zero, "traceparent: "] {
        let seen = sidecar(emit, &B3).outbound(&[ID, given]);
        assert_seen(&seen, Decision::Copied, &whole);
        // Not asked for.
        let seen = sidecar("{}", &[SERVER]).outbound(&[ID, given]);
        assert_seen(&seen, Decision::Malformed, &[given]);
    }
}

#[test]
fn every_tracestate_is_kept_in_order() {
    let states = [
        "tracestate: b=2,a=1",
        "tracestate: c=3",
        "tracestate: \\xff=4",
    ];
    let seen = sidecar("{}", &[&[SERVER], &states[..]].concat()).outbound(&[ID]);
    let found: Vec<_> = seen
        .headers
        .iter()
        .filter(|(name, _)| name == "tracestate")
        .cloned()
        .collect();
    assert_eq!(found, headers(&states));
    // A state is of its own traceparent.
    let seen = sidecar("{}", &[&[SERVER], &states[..]].concat()).outbound(&[ID, CLIENT]);
    assert_seen(&seen, Decision::Present, &[CLIENT]);
}

#[test]
fn a_decision_left_open_is_not_written_as_a_no() {
    let open = [TRACE, SPAN];
    for (choice, flag) in [
        ("omit", None),
        ("sampled", Some("01")),
        ("not_sampled", Some("00")),
    ] {
        let config = format!(r#"{{"emit": ["b3multi", "w3c"], "deferred_w3c": "{choice}"}}"#);
        let written = flag.map(|flag| SERVER.replace("-01", &format!("-{flag}")));
        let expected = [
            &open[..],
            &written.iter().map(String::as_str).collect::<Vec<_>>(),
        ]
        .concat();
        let seen = Sidecar::new(&config).inbound(&[&[ID], &open[..]].concat());
        assert_eq!(
            only(&seen.headers, &CONTEXT),
            only(&headers(&expected), &CONTEXT)
        );
        let seen = sidecar(&config, &open).outbound(&[ID]);
        assert_seen(&seen, Decision::Copied, &expected);
    }
    // The request's decision stands in for that of its call.
    let seen = sidecar(r#"{"emit": ["b3multi", "w3c"]}"#, &B3).outbound(&[ID, TRACE, SPAN]);
    assert_seen(&seen, Decision::Completed, &[TRACE, SPAN, SAMPLED, SERVER]);
    let seen = sidecar(r#"{"emit": ["b3multi", "b3"]}"#, &B3).outbound(&[ID, TRACE, SPAN]);
    let single = "b3: 463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312-1";
    assert_seen(&seen, Decision::Completed, &[TRACE, SPAN, SAMPLED, single]);
    // In another form rather than not at all.
    let seen = sidecar(r#"{"emit": ["w3c"]}"#, &open).outbound(&[ID]);
    assert_seen(&seen, Decision::Copied, &open);
}

/// W3C reads two as none.
#[test]
fn a_call_has_one_traceparent() {
    let other = MADE_UP;
    let inbound = [&[ID], &B3[..], &[other]].concat();
    for (config, given) in [
        ("{}", "traceparent: "),
        (
            "{}",
            "traceparent: 00-00000000000000000000000000000000-0000000000000000-00",
        ),
        (r#"{"own_spans": "unreported"}"#, CLIENT),
    ] {
        let sidecar = Sidecar::new(config);
        sidecar.inbound(&inbound);
        let seen = sidecar.outbound(&[ID, given]);
        let found = only(&seen.headers, &["traceparent"]);
        assert_eq!(found, [header(given)], "{config}");
    }
}

/// The span of a `traceparent` that is put into B3, and the decision that the application
/// has in B3; or that of the request, where W3C cannot say it.
#[test]
fn a_decision_in_b3_counts_beside_a_traceparent() {
    let reported = r#"{"own_spans": "reported", "emit": ["b3multi", "w3c"]}"#;
    let seen = sidecar(reported, &B3).outbound(&[ID, CLIENT, "x-b3-sampled: 0"]);
    let expected = [header("x-b3-sampled: 0")];
    assert_eq!(only(&seen.headers, &["x-b3-sampled"]), expected);
    let debug = [&B3[..], &["x-b3-flags: 1"]].concat();
    let seen = sidecar(reported, &debug).outbound(&[ID, CLIENT]);
    let expected = [header("x-b3-flags: 1")];
    assert_eq!(only(&seen.headers, &["x-b3-flags"]), expected);
    let not_sampled = CLIENT.replace("-01", "-00");
    let seen = sidecar(reported, &debug).outbound(&[ID, &not_sampled]);
    assert_eq!(only(&seen.headers, &["x-b3-flags"]), []);

    let before_router = Sidecar::new("{}");
    before_router.host.before_router.set(true);
    let caller = "x-b3-spanid: 0020000000000001";
    before_router.inbound(&[ID, TRACE, caller, SAMPLED, "x-b3-flags: 1"]);
    let seen = before_router.outbound(&[ID, SERVER]);
    assert_eq!(only(&seen.headers, &["x-b3-flags"]), expected);
}

/// Two server spans may not have one ID.
#[test]
fn a_span_that_nobody_reports_gives_way_to_a_child() {
    let child = Sidecar::new(r#"{"own_spans": "unreported", "span_ids": "child"}"#);
    child.inbound(&[&[ID], &B3[..]].concat());
    let own = "x-b3-spanid: cccccccccccccccc";
    let seen = child.outbound(&[ID, TRACE, own, SAMPLED]);
    let found = only(&seen.headers, &["x-b3-spanid", "x-b3-parentspanid"]);
    let [parent] = &only(&headers(&[SPAN]), &["x-b3-"])[..] else {
        panic!("one span");
    };
    let is_child =
        |(name, value): &&(String, Vec<u8>)| name == "x-b3-parentspanid" && *value == parent.1;
    assert!(found.iter().any(|one| is_child(&one)), "{found:?}");
    assert!(!found.contains(&header(SPAN)) && !found.contains(&header(own)));
}

/// A decision that only the `traceparent` of the same span has.
#[test]
fn a_decision_of_one_form_is_that_of_the_other() {
    let seen = sidecar("{}", &[TRACE, SPAN, SERVER]).outbound(&[ID]);
    assert_seen(&seen, Decision::Copied, &[TRACE, SPAN, SAMPLED, SERVER]);
}

#[test]
fn a_decision_without_identifiers_is_written_in_b3() {
    let seen = sidecar(r#"{"emit": ["w3c"]}"#, &["x-b3-sampled: 0"]).outbound(&[ID]);
    assert_seen(&seen, Decision::Copied, &["x-b3-sampled: 0"]);
}

/// A background call of a mesh that traces by W3C.
#[test]
fn a_traceparent_of_nobodys_is_the_calls_own_context() {
    let sidecar = Sidecar::new(r#"{"attribution": "off"}"#);
    let seen = sidecar.inbound(&[ID, SERVER]);
    sidecar.end(&seen);
    sidecar.wait(2000);
    let seen = sidecar.outbound(&[MADE_UP, PROTO, NEW_ID]);
    assert_seen(&seen, Decision::Present, &[MADE_UP]);
}

/// No tracer has written what is in the headers of a tunnel (HBONE).
#[test]
fn a_tunnel_does_not_show_which_formats_the_tracer_writes() {
    let tunnel = [":method: CONNECT", PROTO, OTHER_ID, MADE_UP];
    for (inbound, decision) in [(&B3[..], Decision::Unknown), (&[SERVER], Decision::Present)] {
        let sidecar = sidecar(r#"{"attribution": "off"}"#, inbound);
        sidecar.inbound(&tunnel);
        let seen = sidecar.outbound(&[MADE_UP, PROTO, NEW_ID]);
        assert_seen(&seen, decision, &[MADE_UP]);
    }
}

/// The calls of one request share the trace that its application makes up, so that they
/// are found when other requests are in flight too.
#[test]
fn a_trace_that_the_application_made_up_groups_the_calls_of_a_request() {
    let call = |sidecar: &Sidecar, worker: usize, carried: &str| {
        let lines = [":authority: b", ":path: /b", carried, PROTO, NEW_ID];
        sidecar.on(worker, Some(Direction::Outbound), &headers(&lines))
    };
    let expected = [&B3[..], &[MADE_UP]].concat();
    for config in ["{}", r#"{"copy_headers": ["end-user"]}"#] {
        let sidecar = Sidecar::with(config, config, 2);
        let inbound = [&[ID], &B3[..], &["end-user: a"]].concat();
        let first = sidecar.inbound(&inbound);
        assert_seen(&call(&sidecar, 0, MADE_UP), Decision::Exclusive, &expected);
        // Another one begins.
        sidecar.inbound(&[
            OTHER_ID,
            "x-b3-traceid: 563ac35c9f6413ad48485a3953bb6124",
            "x-b3-spanid: b2fb4a1d1a96d312",
            "end-user: b",
        ]);
        for worker in [0, 1] {
            let seen = call(&sidecar, worker, MADE_UP);
            assert_seen(&seen, Decision::Exclusive, &expected);
            // A guess, all the same.
            assert_eq!(only(&seen.headers, &["end-user"]), []);
        }
        let unknown = MADE_UP.replace("dddd", "eeee");
        assert_seen(&call(&sidecar, 0, &unknown), Decision::Unsure, &[&unknown]);
        // The trace is of nobody once its request has gone.
        sidecar.end(&first);
        sidecar.wait(1000);
        sidecar.inbound(&[&["x-request-id: 7"], &B3[..]].concat());
        assert_seen(&call(&sidecar, 0, MADE_UP), Decision::Unknown, &[MADE_UP]);
    }
}

/// A trace that was attributed names its request for a minute, unless it comes again.
#[test]
fn a_trace_that_the_application_made_up_is_forgotten() {
    for (wait_s, decision) in [(55, Decision::Exclusive), (65, Decision::Unsure)] {
        let sidecar = Sidecar::new("{}");
        sidecar.inbound(&[&[ID], &B3[..]].concat());
        let call = || sidecar.outbound(&[":authority: b", ":path: /b", MADE_UP, PROTO, NEW_ID]);
        assert_eq!(call().decision, Some(Decision::Exclusive));
        sidecar.inbound(&[OTHER_ID, TRACE, "x-b3-spanid: b2fb4a1d1a96d312"]);
        for _ in 0..wait_s {
            sidecar.wait(1000);
            sidecar.tick();
        }
        assert_eq!(call().decision, Some(decision), "after {wait_s} s");
    }
}

/// As an ordinary HTTP filter it sees what the caller sent; the sidecar's tracer writes
/// something newer, and the application may carry that on.
#[test]
fn before_the_router_the_span_of_a_traceparent_is_newer_than_the_callers() {
    let sidecar = |inbound: &[&str]| {
        let sidecar = Sidecar::new("{}");
        sidecar.host.before_router.set(true);
        sidecar.inbound(&[&[ID], inbound].concat());
        sidecar
    };
    let caller = [TRACE, "x-b3-spanid: 0020000000000001", SAMPLED];
    let newer = [TRACE, SPAN, SAMPLED, SERVER];
    for inbound in [&caller[..], &[&caller[..], &[CALLER]].concat()] {
        let seen = sidecar(inbound).outbound(&[ID, SERVER]);
        assert_seen(&seen, Decision::Copied, &newer);
    }
    let seen = sidecar(&[CALLER]).outbound(&[ID, SERVER]);
    assert_seen(&seen, Decision::Present, &[SERVER]);
    // What carries nothing gets what is known.
    assert_seen(&sidecar(&caller).outbound(&[ID]), Decision::Copied, &caller);
}

/// The tracer comes behind the filter, and may read what was added rather than what it
/// renews: the application would get the caller's span.
#[test]
fn before_the_router_an_inbound_request_gets_no_other_format_of_b3() {
    let sidecar = Sidecar::new(r#"{"emit": ["b3", "b3multi", "w3c"]}"#);
    sidecar.host.before_router.set(true);
    let seen = sidecar.inbound(&[ID, TRACE, "x-b3-spanid: 0020000000000001", SAMPLED]);
    assert_eq!(only(&seen.headers, &["b3"]), []);
    assert_eq!(only(&seen.headers, &["traceparent"]), [header(CALLER)]);
}

/// Of a trace that clients share, each with a traceparent of its own.
#[test]
fn the_traceparent_of_another_request_is_never_copied() {
    let own = |n: u32| format!("traceparent: 00-{n:032x}-{n:016x}-01");
    let sidecar = Sidecar::new("{}");
    for n in 1..4 {
        let id = format!("x-request-id: {n}");
        let span = format!("x-b3-spanid: {n:016x}");
        sidecar.inbound(&[
            &id,
            TRACE,
            &span,
            PARENT,
            SAMPLED,
            &own(n),
            "tracestate: a=1",
        ]);
    }
    let seen = sidecar.outbound(&[TRACE]);
    assert_eq!(only(&seen.headers, &["traceparent"]), []);
    let seen = sidecar.outbound(&["x-request-id: 2"]);
    assert_eq!(only(&seen.headers, &["traceparent"]), [header(&own(2))]);
}

#[test]
fn a_guess_is_called_one_though_the_call_carries_a_decision() {
    let seen = sidecar("{}", &B3).outbound(&[":authority: b", SAMPLED, PROTO, NEW_ID]);
    assert_seen(&seen, Decision::Exclusive, &B3);
}

/// The application calls itself, and its tracing made the trace up: a request that comes
/// with it is not the one that the further calls are of.
#[test]
fn a_trace_that_began_in_this_pod_is_of_no_request_that_comes_with_it() {
    let made_up = |span: &str| MADE_UP.replace("cccccccccccccccc", span);
    let off = sidecar(r#"{"attribution": "off"}"#, &B3);
    let call = made_up("1111111111111111");
    assert_seen(
        &off.outbound(&[&call, PROTO, NEW_ID]),
        Decision::Unknown,
        &[&call],
    );
    let other = [
        "x-b3-traceid: 563ac35c9f6413ad48485a3953bb6124",
        "x-b3-spanid: b2fb4a1d1a96d312",
    ];
    off.inbound(&[&[OTHER_ID], &other[..], &[&call]].concat());
    let call = made_up("2222222222222222");
    assert_seen(
        &off.outbound(&[&call, PROTO, NEW_ID]),
        Decision::Ambiguous,
        &[&call],
    );

    // With attribution the first call was found to be of the first request, and so are
    // the others.
    let on = sidecar("{}", &B3);
    let call = made_up("1111111111111111");
    let seen = on.outbound(&[":authority: b", &call, PROTO, NEW_ID]);
    assert_eq!(seen.decision, Some(Decision::Exclusive));
    let inner = on.inbound(&[OTHER_ID, TRACE, "x-b3-spanid: b2fb4a1d1a96d312", &call]);
    on.end(&inner);
    let call = made_up("2222222222222222");
    let seen = on.outbound(&[":authority: b", &call, PROTO, NEW_ID]);
    assert_seen(&seen, Decision::Exclusive, &[&B3[..], &[&call]].concat());
}

/// Where the tracer writes W3C, the B3 of a client passes it, and the application may carry
/// it on.
#[test]
fn beside_a_traceparent_of_the_trace_a_clients_b3_is_no_other_trace() {
    let clients = ["x-b3-traceid: 563ac35c9f6413ad48485a3953bb6124", SPAN];
    let otel = Sidecar::new("{}");
    let state = "tracestate: ";
    otel.inbound(&[&[ID], &clients[..], &[SERVER, state]].concat());
    let seen = otel.outbound(&[&clients[..], &[SERVER, state, PROTO, NEW_ID]].concat());
    assert_eq!(seen.decision, Some(Decision::Present));
    assert!(
        !seen.rules.iter().any(|rule| rule.starts_with('P')),
        "{:?}",
        seen.rules
    );
}

/// Nor does it decide for the mesh's trace, if the application carries on its decision alone.
#[test]
fn a_clients_decision_in_b3_does_not_decide_for_a_traceparent() {
    let (denied, state) = ("x-b3-sampled: 0", "tracestate: ");
    let clients = [
        "x-b3-traceid: 563ac35c9f6413ad48485a3953bb6124",
        SPAN,
        denied,
    ];
    let emit = r#"{"emit": ["w3c"]}"#;
    let decision = [denied];
    for (config, clients) in [
        ("{}", &[][..]),
        ("{}", &clients),
        ("{}", &decision),
        (emit, &[]),
    ] {
        let otel = sidecar(config, &[clients, &[SERVER, state]].concat());
        let seen = otel.outbound(&[ID, denied]);
        assert_seen(&seen, Decision::Copied, &[denied, SERVER, state]);
    }
    // Nor does what the caller's application sends on, if it carries on nothing itself.
    for config in ["{}", r#"{"emit": ["b3multi", "w3c"]}"#] {
        let otel = sidecar(config, &[denied, SERVER, state]);
        let seen = otel.outbound(&[ID]);
        assert_eq!(only(&seen.headers, &["traceparent"]), [header(SERVER)]);
    }
    // With `emit` the application got a decision of the mesh in B3.
    let renewed = sidecar(emit, &[&clients[..], &[SERVER, state]].concat());
    let seen = renewed.outbound(&[ID, SAMPLED]);
    assert_seen(
        &seen,
        Decision::Completed,
        &[TRACE, SPAN, SAMPLED, SERVER, state],
    );
    // What reads B3 reads the decision, too.
    let both = sidecar("{}", &[&B3[..], &[SERVER]].concat());
    let seen = both.outbound(&[ID, denied]);
    let unsampled = SERVER.replace("-01", "-00");
    let expected = [TRACE, SPAN, PARENT, denied, &unsampled];
    assert_seen(&seen, Decision::Completed, &expected);
}

/// Nor does it before the router, where the span of the `traceparent` is put into B3.
#[test]
fn a_clients_decision_in_b3_is_not_that_of_a_newer_traceparent() {
    let denied = "x-b3-sampled: 0";
    // The inbound side leaves B3 as the client has sent it.
    let sidecar = Sidecar::with("{}", r#"{"emit": ["b3multi"]}"#, 1);
    sidecar.host.before_router.set(true);
    sidecar.inbound(&[ID, denied, CALLER]);
    let seen = sidecar.outbound(&[ID, denied, SERVER]);
    assert_seen(&seen, Decision::Copied, &[TRACE, SPAN, SAMPLED, SERVER]);
}

/// Envoy before 1.40 renews `x-b3-*` and leaves a client's `b3`: so would the next one, whose
/// application may carry on both. Envoy 1.40 the other way round.
#[test]
fn a_form_that_the_tracer_does_not_renew_is_not_copied() {
    let stale_single = "b3: 463ac35c9f6413ad48485a3953bb6124-0020000000000001-1";
    let seen = sidecar("{}", &[&B3[..], &[stale_single]].concat()).outbound(&[ID]);
    assert_seen(&seen, Decision::Copied, &B3);
    let fresh = "b3: 463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312-1-0020000000000001";
    let stale = [TRACE, "x-b3-spanid: 0020000000000001", SAMPLED];
    let seen = sidecar("{}", &[&stale[..], &[fresh]].concat()).outbound(&[ID]);
    assert_seen(&seen, Decision::Copied, &[fresh]);
    // With `emit` both are renewed here, and so in the next one.
    let emit = r#"{"emit": ["b3multi", "b3"]}"#;
    let seen = sidecar(emit, &[&B3[..], &[stale_single]].concat()).outbound(&[ID]);
    assert_seen(&seen, Decision::Copied, &[&B3[..], &[fresh]].concat());
}

/// Envoy 1.40 renews `b3` and leaves `x-b3-*`, which the application carries on.
#[test]
fn emit_renews_the_other_form_too() {
    let emit = r#"{"emit": ["b3", "w3c"]}"#;
    let fresh = "b3: 463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312-1-0020000000000001";
    let stale = [TRACE, "x-b3-spanid: 0020000000000001", SAMPLED];
    let seen = Sidecar::new(emit).inbound(&[&[ID, fresh], &stale[..]].concat());
    let renewed = [&[fresh, SERVER], &B3[..]].concat();
    assert_eq!(
        only(&seen.headers, &CONTEXT),
        only(&headers(&renewed), &CONTEXT)
    );
}
