//! Events that were recorded around a real service, through the tracker.

use b3relay::attribution::text;
use b3relay::attribution::tracker::Tracker;
use serde::Deserialize;
use std::collections::HashMap;

/// Requests in flight of each stage of a recording, and how many requests it has.
const STAGES: [(u32, usize); 8] = [
    (1, 1000),
    (1, 1500),
    (2, 1500),
    (4, 1500),
    (8, 1500),
    (16, 1500),
    (32, 1500),
    (64, 1500),
];

/// A line of a recording: see tests/accuracy/record.py.
#[derive(Deserialize)]
struct Row {
    side: String,
    start_ms: f64,
    ms: f64,
    #[serde(default)]
    host: String,
    #[serde(default)]
    path: String,
    /// The truth; none for a call of the background.
    request: Option<u64>,
}

/// The share of calls that are right, and wrong, by stage.
pub fn replay(file: &str, wrong: f64) -> Result<String, Box<dyn std::error::Error>> {
    let text = std::fs::read_to_string(file)?;
    let rows: Result<Vec<Row>, _> = text.lines().map(serde_json::from_str).collect();
    let rows = rows?;
    let mut events = Vec::new();
    for (n, row) in rows.iter().enumerate() {
        let us = |ms: f64| (ms * 1000.0) as u64 + 1_000_000;
        events.push((us(row.start_ms), false, n));
        events.push((us(row.start_ms + row.ms), true, n));
    }
    events.sort();
    let mut tracker = Tracker::default();
    let mut requests: HashMap<u64, u64> = HashMap::new();
    let mut seen = 0;
    // Right, left alone, wrong.
    let mut tally = [[0u32; 3]; STAGES.len()];
    for (us, ended, n) in events {
        let (row, id) = (&rows[n], n as u64);
        let inbound = row.side == "inbound";
        let tokens = || text::tokens(1, row.path.as_bytes(), []);
        match (inbound, ended) {
            (true, true) => tracker.end(us, id),
            (false, true) => tracker.call_end(us, id),
            (true, false) => {
                seen += 1;
                requests.extend(row.request.map(|request| (request, id)));
                let route = text::route(b"POST", row.path.as_bytes());
                tracker.begin(us, id, 0, route, tokens());
            }
            (false, false) => {
                let kind = text::kind(b"POST", row.host.as_bytes(), row.path.as_bytes());
                let verdict = tracker.call(us, id, kind, &tokens(), None, wrong);
                let truth = row.request.and_then(|request| requests.get(&request));
                let class = match (verdict, truth) {
                    (None, None) => continue,
                    (Some(verdict), Some(truth)) if verdict.request == *truth => 0,
                    (None, Some(_)) => 1,
                    (Some(_), _) => 2,
                };
                let mut before = 0;
                let stage = STAGES.iter().position(|(_, size)| {
                    before += size;
                    seen <= before
                });
                tally[stage.unwrap_or(STAGES.len() - 1)][class] += 1;
            }
        }
    }
    let mut line = file.to_string();
    for ((level, _), [right, unsure, wrong]) in STAGES.iter().zip(tally).skip(1) {
        let percent = |count: u32| 100.0 * f64::from(count) / f64::from(right + unsure + wrong);
        let (right, wrong) = (percent(right), percent(wrong));
        line.push_str(&format!(
            " | {level}: {right:.1} % right, {wrong:.2} % wrong"
        ));
    }
    Ok(line)
}
