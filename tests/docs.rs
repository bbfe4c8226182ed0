//! The tables in README and docs are those of the code. When they are not:
//! `UPDATE_DOCS=1 cargo test --test docs`.
// A test may panic: that is how it fails.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use b3relay::config::{Config, KEYS};
use b3relay::metrics::{FAMILIES, PREFIX};
use b3relay::relay::Decision;
use b3relay::rules::Rule;
use std::path::Path;

fn table(head: &[&str], rows: Vec<Vec<String>>) -> String {
    let row = |cells: &[String]| format!("| {} |\n", cells.join(" | ").replace('\n', " "));
    let mut text = row(&head.iter().map(|cell| cell.to_string()).collect::<Vec<_>>());
    text += &format!("|{}\n", "---|".repeat(head.len()));
    for cells in &rows {
        text += &row(cells);
    }
    text
}

fn configuration() -> String {
    let rows = KEYS.iter().map(|key| {
        vec![
            format!("`{}`", key.name),
            format!("`{}`", key.default),
            key.allowed.to_string(),
            key.meaning.to_string(),
        ]
    });
    table(&["key", "default", "allowed", "meaning"], rows.collect())
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
            rule.id().to_string(),
            rule.severity().name().to_string(),
            rule.condition().to_string(),
            rule.right().to_string(),
        ]
    });
    table(
        &["rule", "severity", "what is wrong", "what would be right"],
        rows.collect(),
    )
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
        assert_eq!(
            found, table,
            "{file} is stale: UPDATE_DOCS=1 cargo test --test docs"
        );
    }
}

#[test]
fn tables_are_those_of_the_code() {
    check("README.md", "configuration", &configuration());
    check("README.md", "metrics", &metrics());
    check("README.md", "decisions", &decisions());
    check("docs/rules.md", "rules", &rules());
}

#[test]
fn shipped_configurations_are_good() {
    let text = include_str!("../envoyfilter/sidecars.yaml");
    let configurations = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("value: \""));
    let configurations: Vec<_> = configurations
        .map(|line| line.trim_end_matches('"'))
        .collect();
    assert_eq!(configurations.len(), 2);
    for configuration in configurations {
        Config::parse(configuration.as_bytes()).unwrap();
    }
}

#[test]
fn the_log_line_in_the_readme_is_a_real_one() {
    let finding = b3relay::check::Finding {
        rule: Rule::S01,
        header: "x-b3-traceid",
        value: b"463ac35c9f6413ad48485a3953bb6124",
    };
    let line = b3relay::report::line(&finding, Some(b3relay::config::Direction::Inbound));
    assert!(include_str!("../README.md").contains(&line), "{line}");
}
