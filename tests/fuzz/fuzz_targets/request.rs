//! Requests made of the headers that b3relay reads, with any values: the
//! parser, the checker, the repair and the relay, by their properties.
#![no_main]

#[path = "../../support/mod.rs"]
mod support;

use b3relay::config::Direction;
use b3relay::headers::{Pairs, TraceHeaders, Wanted};
use b3relay::relay::{Decision, StoredContext, newest};
use b3relay::rules::check;
use libfuzzer_sys::fuzz_target;
use support::{Headers, Sidecar, map};

const NAMES: [&str; 10] = [
    "x-request-id",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-flags",
    "b3",
    "x-ot-span-context",
    "traceparent",
    "accept",
];

thread_local! {
    static OBSERVE: Sidecar = Sidecar::new(r#"{"grace_ms": 0}"#);
    static REPAIR: Sidecar = Sidecar::new(r#"{"mode": "repair", "relay": false}"#);
    static RELAY: Sidecar = Sidecar::new(r#"{"mode": "repair", "grace_ms": 0}"#);
    static ENFORCE: Sidecar = Sidecar::new(r#"{"mode": "enforce", "relay": false}"#);
}

/// Lines of `{name's number}{value}`, ended by a newline, so that a dictionary
/// and the examples can be read.
fn headers(input: &[u8]) -> Headers {
    let lines = input.split(|byte| *byte == b'\n');
    let pair = |line: &[u8]| {
        let (number, value) = line.split_first()?;
        let name = NAMES.get(usize::from(number.wrapping_sub(b'0')))?;
        Some((name.to_string(), value.to_vec()))
    };
    lines.filter_map(pair).collect()
}

fn without_id(headers: &Headers) -> Headers {
    let kept = headers.iter().filter(|(name, _)| name != "x-request-id");
    kept.cloned().collect()
}

fuzz_target!(|input: &[u8]| {
    let given = headers(input);

    // Observing changes a missing request ID, and nothing else.
    OBSERVE.with(|sidecar| {
        // The call first: nothing is remembered for it.
        let call = sidecar.request(Some(Direction::Outbound), &given);
        assert_eq!(call.headers, given);
        let seen = sidecar.request(Some(Direction::Inbound), &given);
        assert_eq!(without_id(&seen.headers), without_id(&given));
        if seen.ticket.is_some() {
            sidecar.end(&seen);
        }
    });

    // Repairing twice changes nothing, and leaves nothing that would be repaired.
    REPAIR.with(|sidecar| {
        let once = sidecar.request(Some(Direction::Inbound), &given);
        let twice = sidecar.request(Some(Direction::Inbound), &once.headers);
        assert_eq!(once.headers, twice.headers);
        let before = map(&given);
        let before = TraceHeaders::read(Pairs::new(&before), &Wanted::default());
        let after = map(&once.headers);
        let after = TraceHeaders::read(Pairs::new(&after), &Wanted::default());
        let (before, after) = (check(&before), check(&after));
        let trace = |b3: b3relay::b3::B3| b3.ids.map(|ids| (ids.trace.value(), ids.span));
        // Beside a traceparent, that may be the newer one.
        if before.w3c.is_none() {
            assert_eq!(trace(before.b3), trace(after.b3), "the reading stays");
            assert_eq!(before.b3.sampling.decided(), after.b3.sampling.decided());
        }
    });

    // Repairing and relaying together leave one whole context, or none.
    RELAY.with(|sidecar| {
        let inbound = sidecar.request(Some(Direction::Inbound), &given);
        let id = |(name, _): &&(String, Vec<u8>)| name == "x-request-id";
        let mut call: Headers = inbound.headers.iter().filter(id).cloned().collect();
        // Every second header is forwarded.
        call.extend(without_id(&given).into_iter().step_by(2));
        let call = sidecar.request(Some(Direction::Outbound), &call);
        if matches!(call.decision, Some(Decision::Copied | Decision::Completed)) {
            let again = map(&call.headers);
            let again = TraceHeaders::read(Pairs::new(&again), &Wanted::default());
            let broken = check(&again).findings;
            let rewritten = |f: &b3relay::rules::Finding<'_>| f.rule.repair().rewrites();
            let about_b3 = |f: &b3relay::rules::Finding<'_>| f.header != "x-request-id";
            assert!(
                !broken.iter().any(|f| rewritten(f) && about_b3(f)),
                "{broken:?}"
            );
        }
        if inbound.ticket.is_some() {
            sidecar.end(&inbound);
        }
    });

    // Enforcing never forwards what it answers, and answers with a rule's name.
    ENFORCE.with(|sidecar| {
        let seen = sidecar.request(None, &given);
        if let Some((status, body)) = seen.reply {
            assert!(status == 400 && seen.rules.iter().any(|rule| body.contains(rule)));
            assert!(
                body.bytes()
                    .all(|byte| byte == b'\n' || (b' '..=b'~').contains(&byte))
            );
        }
    });

    // What is remembered comes back as it was.
    let bytes = map(&given);
    let read = TraceHeaders::read(Pairs::new(&bytes), &Wanted::default());
    let checked = check(&read);
    let (remembered, _) = StoredContext::of(&read, checked.formats, newest(&checked, None));
    let (context, headers) = (remembered.encode_context(), remembered.encode_headers());
    assert_eq!(StoredContext::decode(&context, &headers), Some(remembered));
});
