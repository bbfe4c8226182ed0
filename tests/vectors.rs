//! The vectors of `tests/vectors`, on the core.
// A test may panic: that is how it fails.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::string_slice
)]

mod support;

use b3relay::config::Direction;
use b3relay::headers::{Pairs, TraceHeaders, Wanted};
use b3relay::rules::Rule;
use b3relay::rules::{Formats, check};
use std::collections::BTreeSet;
use support::{Headers, Sidecar, Vector, map, only};

const B3: [&str; 2] = ["b3", "x-b3-"];

#[test]
fn findings_and_reading() {
    for vector in Vector::all() {
        let sidecar = Sidecar::new("{}");
        let headers = vector.request(&vector.headers);
        let direction = match &vector.inbound {
            None => None,
            Some(lines) => {
                let inbound = vector.request(lines);
                sidecar.request(Some(Direction::Inbound), &inbound);
                Some(Direction::Outbound)
            }
        };
        let seen = sidecar.request(direction, &headers);
        assert_eq!(seen.rules, vector.findings, "{}", vector.name);

        let map = map(&headers);
        let headers = TraceHeaders::read(Pairs::new(&map), &Wanted::default());
        let reads = check(&headers).b3.single();
        let reads = reads.map(|text| String::from_utf8(text).unwrap());
        assert_eq!(reads, vector.reads, "{}", vector.name);
        if let Some(near) = vector.near {
            assert!(!vector.findings.contains(&near), "{}", vector.name);
        }
    }
}

#[test]
fn repair() {
    let repaired = |headers: &Headers| {
        let sidecar = Sidecar::new(r#"{"mode": "repair"}"#);
        sidecar.request(Some(Direction::Inbound), headers).headers
    };
    for vector in Vector::all() {
        let given = vector.request(&vector.headers);
        let after = repaired(&given);
        let expected = match &vector.repaired {
            Some(lines) => vector.request(lines),
            None => given,
        };
        assert_eq!(only(&after, &B3), only(&expected, &B3), "{}", vector.name);
        assert_eq!(repaired(&after), after, "{}: repairing twice", vector.name);
    }
}

/// The formats that name an older span of the trace, as few readers as possible are to
/// be misled by.
#[test]
fn the_older_form_is_told() {
    let checked = |lines: &[&str]| {
        let map = map(&support::headers(lines));
        let headers = TraceHeaders::read(Pairs::new(&map), &Wanted::default());
        let checked = check(&headers);
        let b03 = checked.findings.iter().find(|f| f.rule == Rule::B03);
        (checked.stale, b03.map(|finding| finding.header))
    };
    const T: &str = "x-b3-traceid: 463ac35c9f6413ad48485a3953bb6124";
    const FRESH: [&str; 3] = [
        T,
        "x-b3-spanid: b2fb4a1d1a96d312",
        "x-b3-parentspanid: a2fb4a1d1a96d312",
    ];
    const OLD: &str = "b3: 463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312-1";
    let old_w3c = "traceparent: 00-463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312-01";
    let none = Formats::default();
    let single = Formats {
        single: true,
        ..none
    };
    let multi = Formats {
        multi: true,
        ..none
    };
    let with = |lines: &[&'static str]| [&FRESH[..], &["x-b3-sampled: 1"], lines].concat();
    assert_eq!(checked(&with(&[OLD])), (single, Some("b3")));
    let both = Formats {
        w3c: true,
        ..single
    };
    assert_eq!(checked(&with(&[OLD, old_w3c])), (both, Some("b3")));
    let w3c = Formats { w3c: true, ..none };
    assert_eq!(checked(&with(&[old_w3c])), (w3c, None));
    // Fresh in b3, old in the others.
    let fresh = "b3: 463ac35c9f6413ad48485a3953bb6124-b2fb4a1d1a96d312-1-a2fb4a1d1a96d312";
    let old = [T, "x-b3-spanid: a2fb4a1d1a96d312", fresh];
    assert_eq!(checked(&old), (multi, Some("x-b3-spanid")));
    // It cannot be told, or there is nothing to tell.
    let unknown = [T, "x-b3-spanid: c2fb4a1d1a96d312", fresh];
    assert_eq!(checked(&unknown), (none, Some("b3")));
    let other_trace = "b3: 563ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312-1";
    assert_eq!(checked(&with(&[other_trace])), (none, None));
    let another = "traceparent: 00-463ac35c9f6413ad48485a3953bb6124-c2fb4a1d1a96d312-01";
    assert_eq!(checked(&with(&[another])), (none, None));
}

/// Values are looked at up to a size, the last one of which is still good.
#[test]
fn what_is_too_long_begins_where_the_rules_say() {
    let rules = |lines: &[String]| {
        let map = map(&lines.iter().map(|line| support::header(line)).collect());
        let headers = TraceHeaders::read(Pairs::new(&map), &Wanted::default());
        let found = check(&headers).findings;
        let rules = found.iter().map(|found| found.rule);
        rules.filter(|rule| *rule != Rule::R01).collect::<Vec<_>>()
    };
    let opaque = |length: usize| format!("x-ot-span-context: {}", "a".repeat(length));
    assert_eq!(rules(&[opaque(1024)]), []);
    assert_eq!(rules(&[opaque(1025)]), [Rule::O01]);
    assert_eq!(rules(&[opaque(3), opaque(3)]), [Rule::O01]);
    // The same trace ID again and again, and spaces.
    let joined = |length: usize| {
        let ids = vec!["48485a3953bb6124"; 30].join(",");
        let spaces = " ".repeat(length - ids.len());
        let (first, rest) = ids.split_once(',').unwrap();
        [
            format!("x-b3-traceid: {first},{spaces}{rest}"),
            "x-b3-spanid: a2fb4a1d1a96d312".to_string(),
            "x-b3-sampled: 1".to_string(),
        ]
    };
    assert_eq!(rules(&joined(512)), [Rule::L12]);
    assert!(rules(&joined(513)).contains(&Rule::L03));
}

/// A decision left open has no place for a parent in `b3`, so none is read.
#[test]
fn without_a_decision_two_formats_name_no_parent() {
    let lines = [
        "b3: 463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312",
        "x-b3-traceid: 463ac35c9f6413ad48485a3953bb6124",
        "x-b3-spanid: b2fb4a1d1a96d312",
        "x-b3-parentspanid: a2fb4a1d1a96d312",
    ];
    let map = map(&support::headers(&lines));
    let headers = TraceHeaders::read(Pairs::new(&map), &Wanted::default());
    let ids = check(&headers).b3.ids.unwrap();
    assert_eq!(ids.span.value(), 0xb2fb_4a1d_1a96_d312);
    assert_eq!(ids.parent, None);
}

/// Every combination of both formats over few IDs: repair keeps the reading, leaves
/// nothing to repair, and writes the newer of two spans into both formats.
#[test]
fn both_forms_in_all_combinations() {
    const TRACES: [&str; 3] = [
        "463ac35c9f6413ad48485a3953bb6124",
        "48485a3953bb6124",
        "563ac35c9f6413ad48485a3953bb6124",
    ];
    const SPANS: [&str; 3] = ["a2fb4a1d1a96d312", "b2fb4a1d1a96d312", "c2fb4a1d1a96d312"];
    let some = |values: &[&str]| -> Vec<Option<String>> {
        let values = values.iter().map(|value| Some(value.to_string()));
        [None].into_iter().chain(values).collect()
    };
    let mut singles = some(&["0", "1", "d"]);
    for (trace, span) in TRACES.iter().flat_map(|t| SPANS.map(|s| (t, s))) {
        for end in ["", "-", "-0", "-1", "-d", "-true", "-2"] {
            for parent in some(&SPANS) {
                let parent = parent.map(|parent| format!("-{parent}"));
                let parent = parent.unwrap_or_default();
                singles.push(Some(format!("{trace}-{span}{end}{parent}")));
            }
        }
    }
    let mut multis = Vec::new();
    for trace in some(&TRACES[..2]) {
        for (span, parent) in some(&SPANS[..2])
            .iter()
            .flat_map(|s| some(&SPANS).into_iter().map(move |p| (s.clone(), p)))
        {
            for (sampled, flags) in [
                (None, None),
                (Some("0"), None),
                (Some("1"), Some("1")),
                (None, Some("1")),
            ] {
                let field = |name: &str, value: Option<String>| {
                    value.map(|value| (name.to_string(), value.into_bytes()))
                };
                let fields = [
                    field("x-b3-traceid", trace.clone()),
                    field("x-b3-spanid", span.clone()),
                    field("x-b3-parentspanid", parent.clone()),
                    field("x-b3-sampled", sampled.map(str::to_string)),
                    field("x-b3-flags", flags.map(str::to_string)),
                ];
                multis.push(fields.into_iter().flatten().collect::<Headers>());
            }
        }
    }
    let sidecar = Sidecar::new(r#"{"mode": "repair", "relay": false, "rules": {"R01": "off"}}"#);
    let read = |headers: &Headers| {
        let map = map(headers);
        let headers = TraceHeaders::read(Pairs::new(&map), &Wanted::default());
        let checked = check(&headers);
        (checked.b3, checked.stale)
    };
    let parts = |headers: &Headers| {
        let of = |name: &str| {
            let value = headers.iter().find(|(found, _)| found == name);
            value.map(|(_, value)| String::from_utf8(value.clone()).unwrap())
        };
        (of("b3"), of("x-b3-spanid"))
    };
    for (single, multi) in singles
        .iter()
        .flat_map(|s| multis.iter().map(move |m| (s, m)))
    {
        let single = single
            .iter()
            .map(|b3| ("b3".to_string(), b3.clone().into_bytes()));
        let given: Headers = single.chain(multi.iter().cloned()).collect();
        let (before, stale) = read(&given);
        let once = sidecar.request(Some(Direction::Outbound), &given).headers;
        let again = sidecar.request(Some(Direction::Outbound), &once);
        assert_eq!(again.headers, once, "{given:?}");
        let left = again
            .rules
            .iter()
            .filter_map(|id| Rule::ALL.iter().find(|rule| rule.id() == *id));
        let left: Vec<_> = left.filter(|rule| rule.repair().rewrites()).collect();
        assert!(left.is_empty(), "{left:?}: {once:?} of {given:?}");
        let (after, still) = read(&once);
        let ids = |b3: &b3relay::b3::B3| b3.ids.map(|ids| (ids.trace.value(), ids.span));
        assert_eq!(ids(&after), ids(&before), "{given:?}");
        assert_eq!(
            after.sampling.decided(),
            before.sampling.decided(),
            "{given:?}"
        );
        assert_eq!(still, Formats::default(), "{once:?}");
        // Neither form is left behind, and neither is lost that names the newer span.
        if let (Some(single), Some(multi)) = parts(&once) {
            assert!(single.contains(&format!("-{multi}")), "{once:?}");
        }
        if stale.single || stale.multi {
            let (single, multi) = parts(&given);
            let newer = if stale.single {
                multi.unwrap()
            } else {
                single.unwrap()[..].split('-').nth(1).unwrap().to_string()
            };
            assert_eq!(parts(&once).1, Some(newer), "{given:?}");
        }
    }
}

/// What is far too long is malformed by the rule of its header, and told once.
#[test]
fn very_long_values() {
    for (name, rules) in [
        ("x-b3-traceid", vec!["L03"]),
        ("x-b3-spanid", vec!["L03"]),
        ("x-b3-parentspanid", vec!["L06"]),
        ("x-b3-sampled", vec!["L08"]),
        ("x-b3-flags", vec!["L09"]),
        ("b3", vec!["B01"]),
        ("traceparent", vec!["W04"]),
        ("tracestate", vec![]),
    ] {
        for (part, more) in [("a", None), ("-", None), ("0", None), ("1,", Some("L12"))] {
            let value = part.repeat(60_000 / part.len());
            let sidecar = Sidecar::new(r#"{"mode": "repair"}"#);
            let line = format!("{name}: {value}");
            let id = "x-request-id: 0f7a1c2e-1b2d-4c3e-9d4f-5a6b7c8d9e0f";
            let before = support::headers(&[id, line.as_str()]);
            let seen = sidecar.request(Some(Direction::Inbound), &before);
            let mut expected = rules.clone();
            match more {
                Some(_) if name == "traceparent" => expected = vec!["W06"],
                Some(_) if name == "tracestate" => {}
                Some(more) => expected.push(more),
                None => {}
            }
            expected.sort_by_key(|id| Rule::ALL.iter().position(|rule| rule.id() == *id));
            assert_eq!(seen.rules, expected, "{name} {part}");
            let b3 = only(&seen.headers, &B3);
            assert!(b3.is_empty(), "{name} {part}");
        }
    }
}

#[test]
fn enforce_answers_errors_and_nothing_else() {
    for vector in Vector::all() {
        let sidecar = Sidecar::new(r#"{"mode": "enforce", "enforce_status": 422}"#);
        let seen = sidecar.request(None, &vector.request(&vector.headers));
        let error = |rule: &&Rule| {
            rule.severity() == b3relay::rules::Severity::Error && seen.rules.contains(&rule.id())
        };
        let broken: Vec<_> = Rule::ALL.iter().filter(error).collect();
        match seen.reply {
            None => assert!(broken.is_empty(), "{}", vector.name),
            Some((status, body)) => {
                assert_eq!(status, 422);
                assert!(!broken.is_empty(), "{}: {body}", vector.name);
                assert!(broken.iter().all(|rule| body.contains(rule.id())), "{body}");
            }
        }
    }
}

#[test]
fn a_rule_that_is_off_is_neither_reported_nor_repaired() {
    for vector in Vector::all() {
        let headers = vector.request(&vector.headers);
        for rule in &vector.findings {
            let config = format!(r#"{{"rules": {{"{rule}": "off"}}, "mode": "repair"}}"#);
            let sidecar = Sidecar::new(&config);
            let seen = sidecar.request(None, &headers);
            assert!(!seen.rules.contains(&rule.as_str()), "{}", vector.name);
            if seen.rules.is_empty() {
                assert_eq!(seen.headers, headers, "{}", vector.name);
            }
        }
    }
}

#[test]
fn every_rule_has_a_vector_and_a_near_miss() {
    let vectors = Vector::all();
    let triggered = vectors.iter().flat_map(|v| &v.findings);
    let triggered: BTreeSet<&str> = triggered.map(String::as_str).collect();
    let near: BTreeSet<&str> = vectors.iter().filter_map(|v| v.near.as_deref()).collect();
    let all: BTreeSet<&str> = Rule::ALL.iter().map(|rule| rule.id()).collect();
    let missing: Vec<_> = all.difference(&triggered).collect();
    assert!(missing.is_empty(), "no vector for {missing:?}");
    let missing: Vec<_> = all.difference(&near).collect();
    assert!(missing.is_empty(), "no near miss for {missing:?}");
    assert!(near.is_subset(&all) && triggered.is_subset(&all));
}
