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
use b3relay::header::{Pairs, TraceHeaders};
use b3relay::rules::Rule;
use std::collections::BTreeSet;
use support::{Headers, Sidecar, header, map, only};

struct Vector {
    name: String,
    headers: Headers,
    findings: Vec<String>,
    near: Option<String>,
    reads: Option<String>,
    repaired: Option<Headers>,
}

fn vectors() -> Vec<Vector> {
    let file: toml::Table = include_str!("vectors/rules.toml").parse().unwrap();
    let list = |vector: &toml::Value, key: &str| -> Option<Vec<String>> {
        let list = vector.get(key)?.as_array().unwrap();
        Some(
            list.iter()
                .map(|line| line.as_str().unwrap().to_string())
                .collect(),
        )
    };
    let text =
        |vector: &toml::Value, key: &str| vector.get(key).map(|v| v.as_str().unwrap().to_string());
    let mut vectors = Vec::new();
    for vector in file["vector"].as_array().unwrap() {
        let known = [
            "name",
            "headers",
            "request_id",
            "findings",
            "near",
            "reads",
            "repaired",
        ];
        let unknown = vector
            .as_table()
            .unwrap()
            .keys()
            .find(|key| !known.contains(&key.as_str()));
        assert_eq!(unknown, None);
        let mut headers: Headers = Vec::new();
        let lines = list(vector, "headers").unwrap();
        let own = lines.iter().any(|line| line.starts_with("x-request-id:"));
        if !own && vector.get("request_id").is_none() {
            headers.push(header("x-request-id: 0f7a1c2e-1b2d-4c3e-9d4f-5a6b7c8d9e0f"));
        }
        headers.extend(lines.iter().map(|line| header(line)));
        vectors.push(Vector {
            name: text(vector, "name").unwrap(),
            headers,
            findings: list(vector, "findings").unwrap_or_default(),
            near: text(vector, "near"),
            reads: text(vector, "reads"),
            repaired: list(vector, "repaired")
                .map(|lines| lines.iter().map(|line| header(line)).collect()),
        });
    }
    vectors
}

fn repaired(headers: &Headers) -> Headers {
    let sidecar = Sidecar::new(r#"{"mode": "repair"}"#);
    sidecar.request(Some(Direction::Inbound), headers).headers
}

#[test]
fn findings_and_reading() {
    for vector in vectors() {
        let map = map(&vector.headers);
        let headers = TraceHeaders::read(Pairs::new(&map), &[]);
        let checked = check(&headers);
        let found: Vec<&str> = checked
            .findings
            .iter()
            .map(|finding| finding.rule.id())
            .collect();
        assert_eq!(found, vector.findings, "{}", vector.name);
        let reads = checked
            .b3
            .single()
            .map(|text| String::from_utf8(text).unwrap());
        assert_eq!(reads, vector.reads, "{}", vector.name);
        if let Some(near) = vector.near {
            assert!(!vector.findings.contains(&near), "{}", vector.name);
        }
    }
}

#[test]
fn repair() {
    for vector in vectors() {
        let after = repaired(&vector.headers);
        let expected = vector.repaired.as_ref().unwrap_or(&vector.headers);
        let b3 = ["b3", "x-b3-"];
        assert_eq!(only(&after, &b3), only(expected, &b3), "{}", vector.name);
        assert_eq!(repaired(&after), after, "{}: repairing twice", vector.name);
    }
}

#[test]
fn every_rule_has_a_vector_and_a_near_miss() {
    let vectors = vectors();
    let triggered: BTreeSet<&str> = vectors
        .iter()
        .flat_map(|v| &v.findings)
        .map(String::as_str)
        .collect();
    let near: BTreeSet<&str> = vectors.iter().filter_map(|v| v.near.as_deref()).collect();
    let all: BTreeSet<&str> = Rule::ALL.iter().map(|rule| rule.id()).collect();
    let missing: Vec<_> = all.difference(&triggered).collect();
    assert!(missing.is_empty(), "no vector for {missing:?}");
    let missing: Vec<_> = all.difference(&near).collect();
    assert!(missing.is_empty(), "no near miss for {missing:?}");
    assert!(near.is_subset(&all) && triggered.is_subset(&all));
}
