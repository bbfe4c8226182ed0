//! The tables in docs are those of the code. When they are not:
//! `make docs`.
// A test may panic: that is how it fails.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::string_slice
)]

mod support;

use b3relay::config::Config;
use b3relay::metrics::{FAMILIES, PREFIX};
use b3relay::relay::Decision;
use b3relay::rules::{Rule, Severity, remark};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use support::Vector;

fn table(head: &[&str], rows: Vec<Vec<String>>) -> String {
    let row = |cells: &[String]| format!("| {} |\n", cells.join(" | ").replace('\n', " "));
    let mut text = row(&head.iter().map(|cell| cell.to_string()).collect::<Vec<_>>());
    text += &format!("|{}\n", "---|".repeat(head.len()));
    for cells in &rows {
        text += &row(cells);
    }
    text
}

/// What `src/config/reference.rs` makes of the types.
fn schema() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/config.schema.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn configuration() -> String {
    let schema = schema();
    let keys = schema["properties"].as_object().unwrap().iter();
    let rows = keys.map(|(name, key)| {
        vec![
            format!("`{name}`"),
            kind(key),
            format!("`{}`", spaced(&key["default"])),
            allowed(key),
            text(&key["x-side"]).to_string(),
            text(&key["description"]).replace("](docs/", "]("),
        ]
    });
    table(
        &["key", "type", "default", "allowed", "side", "meaning"],
        rows.collect(),
    )
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

/// A list as people write it.
fn spaced(value: &Value) -> String {
    value.to_string().replace("\",\"", "\", \"")
}

fn kind(schema: &Value) -> String {
    if let (None, Some(one_of)) = (schema.get("type"), schema["anyOf"].as_array()) {
        let kinds: Vec<String> = one_of.iter().map(kind).collect();
        return kinds.join(" or ");
    }
    match &schema["type"] {
        Value::String(kind) if kind == "array" => "list of strings".to_string(),
        Value::String(kind) => kind.to_string(),
        _ => "string".to_string(),
    }
}

/// The words of a schema, each in quotes.
fn words(schema: &Value) -> Vec<String> {
    let one_of = schema["oneOf"].as_array().into_iter().flatten();
    let words = one_of.map(|word| &word["const"]);
    let words = words.chain(schema["enum"].as_array().into_iter().flatten());
    let words = words.chain(schema.get("const"));
    words.map(|word| format!("`{word}`")).collect()
}

fn allowed(schema: &Value) -> String {
    if let (None, Some(one_of)) = (schema.get("type"), schema["anyOf"].as_array()) {
        let allowed: Vec<String> = one_of.iter().map(allowed).collect();
        return allowed.join(", or ");
    }
    let number = |key: &str| schema.get(key).map(Value::to_string);
    match schema["type"].as_str().unwrap_or("string") {
        "boolean" => "`true`, `false`".to_string(),
        "integer" | "number" => {
            let (least, most) = (number("minimum").unwrap(), number("maximum").unwrap());
            format!("{least} to {most}")
        }
        "array" => {
            let length = match (number("minItems"), number("maxItems")) {
                (Some(least), Some(most)) => format!("{least} to {most}"),
                (None, Some(most)) => format!("at most {most}"),
                (Some(least), None) => format!("at least {least}"),
                (None, None) => panic!("{schema}"),
            };
            let items = &schema["items"];
            let item = match words(items) {
                words if words.is_empty() => text(&items["description"]).to_string(),
                words => words.join(", "),
            };
            format!("{length}, each: {item}")
        }
        "object" if schema["properties"].get("cluster").is_some() => {
            let keys = schema["properties"].as_object().unwrap().keys();
            let keys: Vec<String> = keys.map(|key| format!("`{key}`")).collect();
            format!("none, or {}", keys.join(", "))
        }
        "object" => {
            let rules = schema["properties"].as_object().unwrap();
            let words = words(&rules["L01"]).join(", ");
            format!("IDs of [rules](rules.md), each with {words}")
        }
        _ => words(schema).join(", "),
    }
}

fn metrics() -> String {
    let rows = FAMILIES.iter().map(|family| {
        let labels = family.labels.iter().map(|label| format!("`{label}`"));
        vec![
            format!("`{PREFIX}{}`", family.name),
            labels.collect::<Vec<_>>().join(", "),
            family.help.to_string(),
        ]
    });
    table(&["metric", "labels", "counts"], rows.collect())
}

fn decisions() -> String {
    let rows = Decision::ALL.iter();
    let rows = rows.map(|d| vec![format!("`{}`", d.label()), d.meaning().to_string()]);
    table(&["decision", "meaning"], rows.collect())
}

fn rules() -> String {
    let rows = Rule::ALL.iter().map(|rule| {
        vec![
            format!("[{0}](#{1})", rule.id(), rule.id().to_lowercase()),
            rule.severity().name().to_string(),
            rule.condition().to_string(),
        ]
    });
    let mut text = table(&["rule", "severity", "what is wrong"], rows.collect());
    let vectors = Vector::all();
    for rule in Rule::ALL {
        let breaks = vectors
            .iter()
            .find(|v| v.findings.iter().any(|id| id == rule.id()));
        let near = vectors
            .iter()
            .find(|v| v.near.as_deref() == Some(rule.id()));
        text += &format!(
            "\n## {}\n\n{}: {}.\n\n- Right: {}.\n- Repair: {}.\n",
            rule.id(),
            capital(rule.severity().name()),
            rule.condition(),
            rule.right(),
            rule.repair().meaning(),
        );
        if !remark(*rule).is_empty() {
            text += &format!("- {}\n", remark(*rule));
        }
        text += &format!(
            "\n```text\n{}```\n\nNot broken by:\n\n```text\n{}```\n",
            example(breaks.unwrap()),
            example(near.unwrap()),
        );
        text += &read(*rule, &vectors);
    }
    text
}

/// What `make agreement` wrote of one form of context.
#[derive(Deserialize)]
struct Readings {
    /// Column and name of each, in the order of the readings.
    implementations: Vec<(String, String)>,
    vectors: BTreeMap<String, Asked>,
}

/// A vector as it was asked, and what each implementation read.
#[derive(Deserialize)]
struct Asked {
    request: Vec<String>,
    readings: Vec<String>,
}

/// By form, `B3` and `W3C`.
fn readings() -> BTreeMap<String, Readings> {
    serde_json::from_str(include_str!("agreement/readings.json")).unwrap()
}

fn form(rule: Rule) -> Option<&'static str> {
    match rule.id().as_bytes()[0] {
        b'L' | b'S' | b'D' | b'B' => Some("B3"),
        b'W' => Some("W3C"),
        _ => None,
    }
}

/// What each implementation made of the vectors that break the rule, when it was run.
fn read(rule: Rule, vectors: &[Vector]) -> String {
    let Some(form) = form(rule) else {
        return String::new();
    };
    let readings = &readings()[form];
    let breaks = |v: &&Vector| v.findings.iter().any(|id| id == rule.id());
    let mut asked: Vec<&Vector> = vectors.iter().filter(breaks).collect();
    let own = format!("{}: ", rule.id());
    if asked.iter().any(|vector| vector.name.starts_with(&own)) {
        asked.retain(|vector| vector.name.starts_with(&own));
    }
    let row = |vector: &&Vector| {
        let name = vector.name.split_once(": ").unwrap().1;
        let cells = readings.vectors[&vector.name].readings.iter();
        let cells = cells.map(|cell| if cell.is_empty() { "–" } else { cell }.to_string());
        [name.to_string()].into_iter().chain(cells).collect()
    };
    let rows: Vec<Vec<String>> = asked.iter().map(row).collect();
    let columns = readings.implementations.iter();
    let columns = columns.map(|(column, _)| column.as_str());
    let head: Vec<&str> = ["request"].into_iter().chain(columns).collect();
    format!("\nRead, when they were run:\n\n{}", table(&head, rows))
}

/// The implementations of the tables.
fn implementations() -> String {
    let mut text = String::new();
    for (form, readings) in readings() {
        let named = readings.implementations.iter();
        let named = named.map(|(column, name)| format!("`{column}` {name}"));
        text += &format!("- {form}: {}.\n", named.collect::<Vec<_>>().join("; "));
    }
    text
}

/// A vector that is new, or was changed, has to be run.
#[test]
fn the_readings_are_of_these_vectors() {
    let mut readings = readings();
    for vector in Vector::all() {
        let request = vector.request(&vector.headers);
        let latin = |bytes: &[u8]| {
            bytes
                .iter()
                .map(|byte| char::from(*byte))
                .collect::<String>()
        };
        let lines: Vec<String> = request
            .iter()
            .map(|(name, value)| format!("{name}: {}", latin(value)))
            .collect();
        for (form, families) in [("B3", "LSDB"), ("W3C", "W")] {
            let mut broken = vector.findings.iter();
            let asked = broken.any(|id| families.contains(&id[..1])) && vector.inbound.is_none();
            let of_form = readings.get_mut(form).unwrap();
            let found = of_form.vectors.remove(&vector.name);
            let found = found.map(|asked| asked.request);
            let expected = asked.then(|| lines.clone());
            assert_eq!(found, expected, "{}: make agreement", vector.name);
        }
    }
    for (form, readings) in readings {
        let left: Vec<_> = readings.vectors.keys().collect();
        assert!(left.is_empty(), "{form}: no such vectors: {left:?}");
    }
}

/// What the table of rules says of implementations, outside the tables of readings.
#[test]
fn what_the_rules_say_of_envoy_was_seen() {
    let readings = readings();
    let envoy = |name: &str| readings["B3"].vectors[name].readings[0].as_str();
    // Envoy reads only x-b3-sampled, not x-b3-flags.
    assert_eq!(readings["B3"].implementations[0].0, "Envoy");
    assert_eq!(envoy("D01: debug, yet not sampled"), "reads, not sampled");
    assert_eq!(envoy("D02: debug and sampled"), "reads");
    assert_eq!(envoy("D03: debug alone"), "reads, decides itself");
    // The repair of D04 is what all of them read.
    let repaired = "D04 near: debug in the multiple headers, beside b3";
    let all = &readings["B3"].vectors[repaired].readings;
    assert!(all.iter().all(|reading| reading == "reads"), "{all:?}");
}

fn capital(word: &str) -> String {
    word[..1].to_uppercase() + &word[1..]
}

/// The headers of a vector, as they would be in a request.
fn example(vector: &Vector) -> String {
    let lines = |lines: &[String]| {
        lines
            .iter()
            .map(|line| format!("{line}\n"))
            .collect::<String>()
    };
    match &vector.inbound {
        None if vector.request_id => lines(&vector.headers),
        None => format!("{}(no x-request-id)\n", lines(&vector.headers)),
        Some(inbound) => format!(
            "inbound request:\n{}call made for it:\n{}",
            lines(inbound),
            lines(&vector.headers)
        ),
    }
}

/// Replaces, or compares, what stands between the marks.
fn check(file: &str, name: &str, table: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    let text = std::fs::read_to_string(&path).expect(file);
    let (begin, end) = (format!("<!-- generated: {name} -->\n"), "<!-- end -->");
    let (before, rest) = text.split_once(&begin).expect("the mark");
    let (found, after) = rest.split_once(end).expect("the end mark");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, format!("{before}{begin}{table}{end}{after}")).unwrap();
    } else {
        assert_eq!(found, table, "{file} is stale: make docs");
    }
}

#[test]
fn tables_are_those_of_the_code() {
    check("docs/configuration.md", "configuration", &configuration());
    check("docs/metrics.md", "metrics", &metrics());
    check("docs/metrics.md", "decisions", &decisions());
    check("docs/rules.md", "implementations", &implementations());
    check("docs/rules.md", "rules", &rules());
}

#[test]
fn every_label_is_named_for_istio() {
    let mut labels: Vec<&str> = FAMILIES
        .iter()
        .flat_map(|family| family.labels)
        .copied()
        .collect();
    labels.sort_unstable();
    labels.dedup();
    let list = format!("\"extraStatTags\": [\"{}\"]", labels.join("\", \""));
    let page = include_str!("../docs/metrics.md").replace('\n', " ");
    assert!(page.contains(&list), "{list}");
}

/// The number in the keys of shared data, wherever a page names it.
#[test]
fn the_version_of_the_records_is_told_right() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |file: &str| std::fs::read_to_string(root.join(file)).unwrap();
    let versions = |text: &str| -> Vec<String> {
        let after = text.split("b3relay/").skip(1);
        let number = after.filter_map(|rest| rest.split_once('/').map(|(number, _)| number));
        let is_number = |number: &&str| number.parse::<u32>().is_ok();
        number.filter(is_number).map(str::to_string).collect()
    };
    let code = versions(&read("src/store/shared_data.rs"));
    for page in ["CONTRIBUTING.md", "docs/design.md", "docs/upgrade.md"] {
        assert_eq!(versions(&read(page)), code, "{page}");
    }
}

#[test]
fn the_number_of_rules_is_told_right() {
    let text = format!("[{} rules](docs/rules.md)", Rule::ALL.len());
    assert!(include_str!("../README.md").contains(&text), "{text}");
    let text = format!("The B3 checker: {} rules", Rule::ALL.len());
    assert!(include_str!("../CHANGELOG.md").contains(&text), "{text}");
}

#[test]
fn shipped_configurations_are_good() {
    let shipped = [
        include_str!("../envoyfilter/sidecars/envoyfilter.yaml"),
        include_str!("../envoyfilter/gateway-check.yaml"),
        include_str!("../envoyfilter/README.md"),
    ];
    let configurations = shipped
        .iter()
        .flat_map(|text| text.lines())
        .filter_map(|line| line.trim().strip_prefix("value: '"));
    let configurations: Vec<_> = configurations
        .map(|line| line.trim_end_matches('\''))
        .collect();
    assert_eq!(configurations.len(), 5);
    for configuration in configurations {
        Config::parse(configuration.as_bytes()).unwrap();
    }
}

#[test]
fn the_log_line_in_the_docs_is_a_real_one() {
    let finding = b3relay::rules::Finding {
        rule: Rule::S01,
        header: "x-b3-traceid",
        value: b"463ac35c9f6413ad48485a3953bb6124",
    };
    let line = b3relay::report::line(
        &finding,
        Severity::Error,
        Some(b3relay::config::Direction::Inbound),
    );
    assert!(include_str!("../docs/metrics.md").contains(&line), "{line}");
}

#[test]
fn the_report_in_the_readme_is_a_real_one() {
    let sidecar = support::Sidecar::new(r#"{"report_header": "request"}"#);
    let seen = sidecar.inbound(&[
        "x-request-id: 0f7a1c2e-1b2d-4c3e-9d4f-5a6b7c8d9e0f",
        "x-b3-traceid: xyz",
        "x-b3-spanid: a2fb4a1d1a96d312",
    ]);
    let report = support::only(&seen.headers, &["x-b3relay"]);
    let text = String::from_utf8(report[0].1.clone()).unwrap();
    let line = format!("\nx-b3relay: {text}\n");
    assert!(include_str!("../README.md").contains(&line), "{line}");
}

#[test]
fn the_boundary_removes_what_incoming_context_drops() {
    let removed: Vec<&str> = include_str!("../envoyfilter/gateway-boundary.yaml")
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- remove: "))
        .filter(|name| *name != b3relay::headers::REQUEST_ID)
        .collect();
    let trust = include_str!("../docs/trust.md");
    for name in &removed {
        assert!(b3relay::headers::is_context(name.as_bytes()), "{name}");
        assert!(trust.contains(&format!("- remove: {name}\n")), "{name}");
    }
    let listed = trust.lines().filter(|line| line.starts_with("| `"));
    let names = listed.flat_map(|line| line.split('|').nth(1).unwrap().split(", "));
    let names = names.map(|name| name.trim().trim_matches('`'));
    let names: Vec<&str> = names.filter(|name| *name != "x-datadog-*").collect();
    assert_eq!(names.len(), 16);
    for name in names {
        assert!(removed.contains(&name), "{name}");
    }
}
