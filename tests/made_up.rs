//! An application whose own tracing makes a trace up for each request, since the sidecar gives
//! it none that it reads: an OpenTelemetry SDK behind sidecars that trace with B3. Its calls
//! carry a `traceparent` of that trace, also those that come after the answer.
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
use std::collections::HashMap;
use support::{PROTO, Seen, Sidecar, headers, only};

/// An application, and how many calls it has made.
struct App {
    sidecar: Sidecar,
    calls: std::cell::Cell<u64>,
}

impl App {
    fn new() -> Self {
        Self {
            sidecar: Sidecar::with("{}", "{}", 2),
            calls: 0.into(),
        }
    }

    /// A request of this number, with a trace of the same number.
    fn begin(&self, n: u128) -> Seen {
        self.begin_with(n, &[])
    }

    /// The same, with these headers besides.
    fn begin_with(&self, n: u128, more: &[&str]) -> Seen {
        let lines = [
            ":method: GET",
            ":path: /a",
            ":authority: app",
            &format!("x-request-id: 0f7a1c2e-1b2d-4c3e-9d4f-{n:012x}"),
            &format!("x-b3-traceid: {n:032x}"),
            "x-b3-spanid: a2fb4a1d1a96d312",
        ];
        let lines = [&lines[..], more].concat();
        self.sidecar.on(0, Some(Inbound), &headers(&lines))
    }

    /// A call in the trace that was made up for that request. Returns the number of the request
    /// that it was given to, too.
    fn call(&self, n: u128) -> (Option<Decision>, Option<u128>) {
        self.calls.set(self.calls.get() + 1);
        let call = self.calls.get();
        let lines = [
            ":method: GET",
            ":path: /b",
            ":authority: b",
            &format!("traceparent: 00-{:032x}-{call:016x}-01", n + 0xdddd_0000),
            PROTO,
            &format!("x-request-id: 8f7a1c2e-1b2d-4c3e-9d4f-{call:012x}"),
        ];
        let seen = self.sidecar.on(1, Some(Outbound), &headers(&lines));
        self.sidecar.wait(1);
        self.sidecar.returned(&seen);
        let trace = only(&seen.headers, &["x-b3-traceid"]).pop();
        let trace = trace.map(|(_, value)| String::from_utf8(value).unwrap());
        let of = trace.map(|trace| u128::from_str_radix(&trace, 16).unwrap());
        (seen.decision, of)
    }

    fn wait(&self, ms: u64) {
        for _ in 0..ms / 1000 {
            self.sidecar.wait(1000);
            self.sidecar.tick();
        }
        self.sidecar.wait(ms % 1000);
    }
}

const ALONE: [Option<Decision>; 2] = [Some(Decision::Unknown), Some(Decision::Unsure)];

/// The trace says that it is of the earlier request.
#[test]
fn a_late_call_is_not_given_to_the_next_request() {
    for late_ms in [10, 1500, 5000, 50_000] {
        let app = App::new();
        let first = app.begin(1);
        app.wait(2);
        assert_eq!(app.call(1), (Some(Decision::Exclusive), Some(1)));
        app.sidecar.end(&first);
        app.wait(late_ms);
        app.begin(2);
        app.wait(2);
        for _ in 0..2 {
            let (decision, of) = app.call(1);
            assert!(
                of.is_none() && ALONE.contains(&decision),
                "{late_ms}: {decision:?}"
            );
        }
        assert_eq!(app.call(2), (Some(Decision::Exclusive), Some(2)));
        assert_eq!(app.call(1).1, None);
    }
}

/// Of which of two it was is not known, and it is of none that began later.
#[test]
fn a_trace_that_is_older_than_a_request_is_not_of_it() {
    let app = App::new();
    let both = [1, 2].map(|n| app.begin(n));
    app.wait(2);
    assert_eq!(app.call(1), (Some(Decision::Unsure), None));
    app.sidecar.end(&both[0]);
    // The other one may be it.
    assert_eq!(app.call(1), (Some(Decision::Exclusive), Some(2)));

    let app = App::new();
    let both = [1, 2].map(|n| app.begin(n));
    app.wait(2);
    assert_eq!(app.call(1), (Some(Decision::Unsure), None));
    both.iter().for_each(|request| app.sidecar.end(request));
    app.wait(5000);
    app.begin(3);
    app.wait(2);
    assert_eq!(app.call(1), (Some(Decision::Unsure), None));
    assert_eq!(app.call(3), (Some(Decision::Exclusive), Some(3)));
}

/// Most clients bring a `traceparent`, which the application carries on: that a call of another
/// client's request has none of those says nothing.
#[test]
fn a_trace_that_most_clients_bring() {
    let app = App::new();
    for n in 1..400 {
        let own = format!("traceparent: 00-{:032x}-{n:016x}-01", n + 0xdddd_0000);
        let brings = n % 20 != 0;
        let request = app.begin_with(n, &[&*own][..usize::from(brings)]);
        app.wait(2);
        let decision = match brings {
            true => Decision::Copied,
            false => Decision::Exclusive,
        };
        assert_eq!(app.call(n), (Some(decision), Some(n)));
        app.sidecar.end(&request);
        app.wait(50);
    }
}

/// One ID, or one `traceparent`, for many requests, one after the other: a call with it is of the only
/// one in flight as much as a call with nothing is.
#[test]
fn a_key_that_a_client_uses_again() {
    let page = |n: u64| format!("traceparent: 00-{:032x}-{n:016x}-01", 0xeeee);
    for key in ["x-request-id: batch-17", &page(1)] {
        for again in [false, true] {
            let sidecar = Sidecar::new(r#"{"copy_headers": ["x-tenant"]}"#);
            for n in 0..40u64 {
                let trace = format!("x-b3-traceid: {:032x}", n + 1);
                let context = [&*trace, "x-b3-spanid: a2fb4a1d1a96d312"];
                let route = [":method: GET", ":path: /a", "x-tenant: 7"];
                let request = sidecar.inbound(&[&route[..], &context, &[key]].concat());
                sidecar.wait(2);
                let id = format!("x-request-id: 8f7a1c2e-1b2d-4c3e-9d4f-{n:012x}");
                let own = page(n + 9);
                let to = [":method: GET", ":path: /b", ":authority: b"];
                let call = match key.starts_with("traceparent") {
                    true => [&to[..], &[&*own, PROTO, &id]].concat(),
                    false => [&to[..], &[key, PROTO]].concat(),
                };
                let seen = sidecar.outbound(&call);
                let others = n > 0 && again;
                let decision = match (n, others) {
                    (0, _) => Decision::Copied,
                    (_, false) => Decision::Exclusive,
                    (_, true) => Decision::Ambiguous,
                };
                assert_eq!(seen.decision, Some(decision), "{key} {n}");
                let expected = if others { vec![] } else { headers(&[&trace]) };
                assert_eq!(only(&seen.headers, &["x-b3-traceid"]), expected);
                sidecar.wait(3);
                sidecar.returned(&seen);
                // The next one comes while this one is in flight, or not.
                if !again {
                    sidecar.end(&request);
                }
                sidecar.wait(20);
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Begin,
    /// A call for the request that began so many before the last one.
    Call(u128),
    /// The end of one of those in flight.
    End(prop::sample::Index),
    Wait(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => Just(Step::Begin),
        6 => (0..4u128).prop_map(Step::Call),
        3 => any::<prop::sample::Index>().prop_map(Step::End),
        2 => (1..30u64).prop_map(Step::Wait),
        2 => (30..40_000u64).prop_map(Step::Wait),
    ];
    prop::collection::vec(step, 1..120)
}

/// Nor is it of the only one if it is made after the answer.
#[test]
fn a_late_call_with_a_key_that_a_client_uses_again() {
    let sidecar = Sidecar::new("{}");
    let key = "x-request-id: batch-17";
    let call = |host: &str| {
        let host = format!(":authority: {host}");
        sidecar.outbound(&[":method: GET", ":path: /b", &host, key, PROTO])
    };
    let mut late = 0;
    for n in 0..400u64 {
        let trace = format!("x-b3-traceid: {:032x}", n + 1);
        let context = [&*trace, "x-b3-spanid: a2fb4a1d1a96d312"];
        let request = sidecar.inbound(&[&[":path: /a", key], &context[..]].concat());
        // The job of the one before.
        if n % 5 == 1 {
            sidecar.wait(1);
            let job = call("jobs");
            late += usize::from(!only(&job.headers, &["x-b3-traceid"]).is_empty());
            sidecar.returned(&job);
        }
        sidecar.wait(2);
        let seen = call("b");
        let given = only(&seen.headers, &["x-b3-traceid"]);
        assert!(n < 10 || given == headers(&[&trace]), "{n}");
        sidecar.wait(3);
        sidecar.returned(&seen);
        sidecar.end(&request);
        if n % 5 != 0 {
            sidecar.wait(3);
            let job = call("jobs");
            assert_eq!(only(&job.headers, &["x-b3-traceid"]), []);
            sidecar.returned(&job);
        }
        sidecar.wait(match n {
            // A call while nothing is in flight may be of a request from before the start.
            9 => 11_000,
            _ if n % 5 == 0 => 1,
            _ => 20,
        });
        sidecar.tick();
    }
    assert!(late < 10, "of a new kind: {late}");
}

proptest! {
    /// While its request is in flight, a call gets its context or none. What an earlier call of
    /// its trace got, or that nothing could be said of that one, holds for a while.
    #[test]
    fn a_trace_is_of_one_request(steps in steps()) {
        let app = App::new();
        let now = || app.sidecar.host.now.get();
        let (mut last, mut in_flight) = (0, Vec::new());
        let mut began = HashMap::new();
        // By trace: the request that a call was given to, and since when one was left alone.
        let mut given: HashMap<u128, (u64, u128)> = HashMap::new();
        let mut alone: HashMap<u128, u64> = HashMap::new();
        for step in steps {
            match step {
                Step::Begin => {
                    last += 1;
                    began.insert(last, now());
                    in_flight.push((last, app.begin(last)));
                }
                Step::Call(before) if before < last => {
                    let (n, at) = (last - before, now());
                    let (decision, of) = app.call(n);
                    let Some(of) = of else {
                        let since = alone.entry(n).or_insert(at);
                        if at >= *since + 30_000 {
                            *since = at;
                        }
                        continue;
                    };
                    prop_assert_eq!(decision, Some(Decision::Exclusive));
                    if in_flight.iter().any(|(known, _)| *known == n) {
                        prop_assert_eq!(of, n);
                    }
                    if let Some((_, earlier)) = given.get(&n).filter(|(since, _)| at < since + 60_000) {
                        prop_assert_eq!(of, *earlier);
                    }
                    if let Some(since) = alone.get(&n).filter(|since| at < **since + 30_000) {
                        prop_assert!(began[&of] <= *since);
                    }
                    let since = given.entry(n).or_insert((at, of));
                    if at >= since.0 + 60_000 {
                        *since = (at, of);
                    }
                }
                Step::Call(_) => {}
                Step::End(at) if !in_flight.is_empty() => {
                    let (_, request) = in_flight.swap_remove(at.index(in_flight.len()));
                    app.sidecar.end(&request);
                }
                Step::End(_) => {}
                Step::Wait(ms) => app.wait(ms),
            }
        }
    }
}
