//! No call gets what belongs to another request, whatever clients and applications send, and
//! whatever has been forgotten.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::string_slice
)]

mod support;

use b3relay::b3::TraceId;
use b3relay::config::Direction::{Inbound, Outbound};
use b3relay::metrics::Counter;
use b3relay::relay::Decision;
use b3relay::store::key::Key;
use b3relay::store::{InMemory, Limits, Store};
use support::{Seen, Sidecar, headers, only};

const ID: &str = "x-request-id: 0f7a1c2e-1b2d-4c3e-9d4f-5a6b7c8d9e0f";
const OTHER_ID: &str = "x-request-id: 1f7a1c2e-1b2d-4c3e-9d4f-5a6b7c8d9e0f";
const THIRD_ID: &str = "x-request-id: 2f7a1c2e-1b2d-4c3e-9d4f-5a6b7c8d9e0f";
const VICTIM: &str = "authorization: victim";

type Lines<'a> = &'a [&'a str];

fn id(n: u64) -> String {
    format!("x-request-id: 3f7a1c2e-1b2d-4c3e-9d4f-{n:012x}")
}

fn trace(n: u128) -> String {
    format!("x-b3-traceid: {n:032x}")
}

fn span(n: u64) -> String {
    format!("x-b3-spanid: {n:016x}")
}

fn traceparent(trace: u128, span: u64) -> String {
    format!("traceparent: 00-{trace:032x}-{span:016x}-01")
}

fn evicted(seen: &Seen) -> bool {
    seen.counters.contains(&Counter::Evicted)
}

#[track_caller]
fn assert_got_nothing(seen: &Seen, decision: Decision) {
    assert_eq!(seen.decision, Some(decision));
    assert_eq!(only(&seen.headers, &["authorization", "x-tenant-"]), []);
}

/// Its request had to go for lack of room, and another one has the same ID.
#[test]
fn a_call_of_a_request_that_was_evicted_does_not_get_another_trace() {
    let config = r#"{"capacity": 64, "copy_headers": ["authorization"]}"#;
    let sidecar = Sidecar::with(config, config, 2);
    let call = headers(&[":authority: b", ":path: /b", ID]);
    sidecar.on(
        0,
        Some(Inbound),
        &headers(&[ID, &trace(1), &span(1), VICTIM]),
    );
    let other = [OTHER_ID, &trace(2), &span(2)];
    sidecar.on(1, Some(Inbound), &headers(&other));
    let flood = (0..1000).find(|n| {
        sidecar.wait(1);
        let request = [&*id(*n), &trace(0x1000 + u128::from(*n)), &span(7)];
        evicted(&sidecar.on(0, Some(Inbound), &headers(&request)))
    });
    assert!(flood.is_some(), "it was evicted");
    let same_id = [ID, &trace(3), &span(3), "authorization: other"];
    sidecar.on(1, Some(Inbound), &headers(&same_id));
    for worker in [0, 1] {
        let seen = sidecar.on(worker, Some(Outbound), &call);
        assert_got_nothing(&seen, Decision::Ambiguous);
        assert_eq!(only(&seen.headers, &["x-b3-"]), []);
    }
}

/// Of a request that is evicted it stays known that it is in flight: under each of its keys,
/// two of which may be in one bucket.
#[test]
fn evicting_a_request_twice_does_not_forget_it() {
    let limits = Limits {
        entries: 1 << 20,
        bytes: 1 << 20,
        bucket_bytes: 100_000,
        grace_ms: 100,
        past_ms: 1000,
    };
    let request_id =
        |n: u64| Key::request_id(format!("0f7a1c2e-1b2d-4c3e-9d4f-{n:012x}").as_bytes()).unwrap();
    let data = InMemory::default();
    let mut probe = Store::open(&data, 7);
    let mut bucket = |key: &Key| {
        let inserted = probe.insert(&data, limits, 0, std::slice::from_ref(key), b"c", b"");
        inserted.ticket.bucket().unwrap()
    };
    let first = request_id(0);
    let wanted = bucket(&first);
    let mut traces = (1..100_000).map(|n| Key::trace(TraceId::new(n, true).unwrap()));
    let second = traces.find(|key| bucket(key) == wanted).unwrap();

    let data = InMemory::default();
    let mut store = Store::open(&data, 7);
    let few = Limits {
        entries: 4,
        ..limits
    };
    let both = [first.clone(), second];
    store.insert(&data, few, 0, &both, b"victim", b"");
    store.insert(&data, few, 1, std::slice::from_ref(&first), b"other", b"");
    let evicted = (1000..2000).any(|n| {
        let inserted = store.insert(&data, few, 2, &[request_id(n)], b"x", b"");
        inserted.evicted > 0
    });
    assert!(evicted);
    assert!(!store.find(&data, &|| 3, &first).complete);
}

/// The same from the outside: first it goes from the bucket of its trace, which is full, and
/// then altogether.
#[test]
fn a_sibling_does_not_lend_its_headers_to_one_that_was_evicted() {
    let sidecar = Sidecar::keyed(r#"{"capacity": 256, "copy_headers": ["x-tenant-*"]}"#);
    let mine = trace(0xaaaa);
    let victim = sidecar.inbound(&[ID, &mine, &span(0x100), "x-tenant-id: victim"]);
    let mut others = Vec::new();
    for n in 1..400 {
        sidecar.wait(1);
        let tenant = format!("x-tenant-id: {n}");
        others.push(sidecar.inbound(&[&id(n), &mine, &span(0x100 + n), &tenant]));
        if others.last().is_some_and(evicted) {
            break;
        }
    }
    let last = others.pop().unwrap();
    assert!(evicted(&last));
    let call = [":authority: b", ":path: /b", &mine];
    assert_got_nothing(&sidecar.outbound(&call), Decision::Completed);
    let is_gone = (400..2400).any(|n| {
        sidecar.wait(1);
        others.push(sidecar.inbound(&[&id(n), &trace(0x9000 + u128::from(n)), &span(5)]));
        sidecar
            .outbound(&[":authority: b", ":path: /b", ID])
            .decision
            == Some(Decision::Unknown)
    });
    assert!(is_gone);
    for other in &others {
        sidecar.end(other);
    }
    sidecar.wait(3000);
    sidecar.tick();
    let seen = sidecar.outbound(&call);
    assert_got_nothing(&seen, Decision::Completed);
    assert_eq!(only(&seen.headers, &["x-request-id"]), []);
    drop((victim, last));
}

/// The application may carry on any of several values, and any of several contexts.
#[test]
fn a_client_that_names_another_request_besides_its_own_gets_nothing_of_it() {
    let config = r#"{"keys": ["x-request-id", "x-correlation-id", "x-amzn-trace-id:Root", "b3"],
                     "copy_headers": ["authorization"]}"#;
    let (own, its) = (trace(0xaaaa), trace(0xbbbb));
    let [own_span, its_span] = [0xa1, 0xb1].map(span);
    let single = "b3: 0000000000000000000000000000aaaa-00000000000000a1-1";
    let joined = format!("{},0f7a1c2e-1b2d-4c3e-9d4f-5a6b7c8d9e0f", "x-request-id: x");
    let unread = format!(
        "x-request-id: {},0f7a1c2e-1b2d-4c3e-9d4f-5a6b7c8d9e0f",
        "x".repeat(300)
    );
    let correlation = "x-correlation-id: its";
    let (lent, not_lent) = (Decision::Copied, Decision::Unknown);
    // What the client sends, what the request that it names has, what the application carries
    // on, and what becomes of that where the client's request is the only one.
    let cases: [(Lines<'_>, Lines<'_>, Lines<'_>, Decision); 6] = [
        (
            &[
                OTHER_ID,
                "x-correlation-id: own",
                correlation,
                &own,
                &own_span,
            ],
            &[ID, correlation],
            &[THIRD_ID, correlation],
            not_lent,
        ),
        (
            &[
                OTHER_ID,
                correlation,
                "x-correlation-id: own",
                &own,
                &own_span,
            ],
            &[ID, correlation],
            &[THIRD_ID, correlation],
            lent,
        ),
        (
            &[
                OTHER_ID,
                "x-amzn-trace-id: Root=own;Root=its",
                &own,
                &own_span,
            ],
            &[ID, "x-amzn-trace-id: Root=its"],
            &[THIRD_ID, "x-amzn-trace-id: Root=its"],
            not_lent,
        ),
        (&[&joined, &own, &own_span], &[ID], &[ID], not_lent),
        (&[&unread], &[ID], &[ID], not_lent),
        (
            &[OTHER_ID, single, &its, &span(0xdead)],
            &[ID],
            &[THIRD_ID, &its],
            not_lent,
        ),
    ];
    for (client, victim, call, alone) in cases {
        let sidecar = Sidecar::keyed(config);
        let victim = [victim, &[&*its, &its_span, VICTIM]].concat();
        sidecar.inbound(client);
        sidecar.inbound(&victim);
        let seen = sidecar.outbound(call);
        assert_got_nothing(&seen, Decision::Ambiguous);
        // What is not certainly the client's is none of it either where it is alone.
        let sidecar = Sidecar::keyed(config);
        sidecar.inbound(&[client, &["authorization: client"]].concat());
        let seen = sidecar.outbound(call);
        assert_eq!(seen.decision, Some(alone), "{client:?}");
        let authorizations = only(&seen.headers, &["authorization"]).len();
        assert_eq!(authorizations, usize::from(alone == lent), "{client:?}");
    }
}

/// Its request has been answered, and was forgotten; another one of the trace is in flight.
#[test]
fn a_late_call_that_names_its_request_gets_no_headers_of_another_one() {
    let (mine, parent) = (trace(0xaaaa), "x-b3-parentspanid: 0000000000000009");
    let (own, child) = (span(0xa1), span(0xc1));
    let of_own = "x-b3-parentspanid: 00000000000000a1";
    let w3c = traceparent(0xaaaa, 0xa1);
    let calls: [(&[&str], Decision); 3] = [
        (&[ID, &mine, &own, "x-b3-sampled: 1"], Decision::Present),
        // What it gets is the decision, which is that of the trace.
        (&[ID, &mine, &child, of_own], Decision::Completed),
        (&[ID, &w3c], Decision::Copied),
    ];
    for (call, decision) in calls {
        let sidecar = Sidecar::new(r#"{"copy_headers": ["x-tenant-*"]}"#);
        let first =
            sidecar.inbound(&[ID, &mine, &own, parent, "x-b3-sampled: 1", "x-tenant-id: a"]);
        sidecar.wait(10);
        let other = [
            OTHER_ID,
            &mine,
            &span(0xb1),
            parent,
            "x-b3-sampled: 1",
            "x-tenant-id: b",
        ];
        sidecar.inbound(&other);
        sidecar.end(&first);
        sidecar.wait(1500);
        sidecar.tick();
        let call = [&[":authority: b", ":path: /b"], call].concat();
        assert_got_nothing(&sidecar.outbound(&call), decision);
        // A call of that other one names its span, or its ID.
        let its = [":authority: b", ":path: /b", OTHER_ID, &mine, &child];
        let seen = sidecar.outbound(&its);
        assert_eq!(only(&seen.headers, &["x-tenant-"]).len(), 1, "{its:?}");
    }
}

/// The same, and all that it carries besides its ID is the trace.
#[test]
fn a_late_call_with_its_id_and_a_trace_gets_no_headers_of_another_request() {
    let mine = trace(0xaaaa);
    for more in [&[][..], &["x-b3-sampled: 1"]] {
        let sidecar = Sidecar::new(r#"{"copy_headers": ["x-tenant-*"]}"#);
        let first = sidecar.inbound(&[ID, &mine, &span(0xa1), "x-tenant-id: a"]);
        sidecar.inbound(&[OTHER_ID, &mine, &span(0xb1), "x-tenant-id: b"]);
        sidecar.end(&first);
        sidecar.wait(3000);
        sidecar.tick();
        let call =
            |id| sidecar.outbound(&[&[":authority: b", ":path: /b", id, &mine], more].concat());
        assert_got_nothing(&call(ID), Decision::Completed);
        let seen = call(OTHER_ID);
        assert_eq!(
            only(&seen.headers, &["x-tenant-"]),
            headers(&["x-tenant-id: b"])
        );
    }
}

/// It names the trace of another request: that is so however many requests have its ID.
#[test]
fn a_conflict_is_one_where_an_id_is_shared() {
    let sidecar = Sidecar::keyed("{}");
    let call = [ID, &*traceparent(0xbbbb, 0xb9)];
    sidecar.inbound(&[
        OTHER_ID,
        &traceparent(0xbbbb, 0xb1),
        &trace(0xcccc),
        &span(0xc1),
    ]);
    for n in [0xa1, 0xa2] {
        sidecar.wait(1);
        sidecar.inbound(&[ID, &trace(0xaaaa), &span(n)]);
        assert_got_nothing(&sidecar.outbound(&call), Decision::Conflict);
    }
}

/// No client can make the sidecar's tracer look like another one, so that the calls of others
/// get another trace.
#[test]
fn what_a_client_sends_does_not_change_the_trace_of_others() {
    let parent = "x-b3-parentspanid: 0000000000000009";
    for is_before_router in [false, true] {
        let sidecar = Sidecar::new("{}");
        sidecar.host.before_router.set(is_before_router);
        let first = sidecar.inbound(&[&id(1), &trace(0x1111), &span(1), parent]);
        sidecar.end(&first);
        let b3 = [trace(0x2222), span(2), "tracestate: ".to_string()];
        let w3c = traceparent(0x3333, 3);
        let mut forged = vec![ID, &w3c];
        forged.extend(b3.iter().filter(|_| !is_before_router).map(String::as_str));
        let forged = sidecar.inbound(&forged);
        sidecar.end(&forged);
        let its = [
            OTHER_ID,
            &*trace(0x4444),
            &span(4),
            parent,
            &traceparent(0x5555, 5),
        ];
        sidecar.inbound(&its);
        let seen = sidecar.outbound(&[":authority: b", ":path: /b", OTHER_ID]);
        assert_eq!(seen.decision, Some(Decision::Copied));
        let trace_id = only(&seen.headers, &["x-b3-traceid"]);
        let expected = headers(&[&trace(0x4444)]);
        assert_eq!(trace_id, expected, "before the router: {is_before_router}");
    }
}
