//! The vectors of `tests/vectors`, on the core.
// A test may panic: that is how it fails.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::string_slice
)]

mod support;

use b3relay::check::check;
use b3relay::config::Direction;
use b3relay::header::{Pairs, TraceHeaders, Wanted};
use b3relay::rules::Rule;
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
