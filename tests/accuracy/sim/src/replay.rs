//! Events that were recorded around a real service, through the tracker.

use b3relay::attribution::tracker::Tracker;
use b3relay::attribution::{Call, signature};
use serde::Deserialize;
use std::collections::HashMap;

/// Clients of each stage of a recording, and how many requests it has.
pub type Stages = Vec<(u32, usize)>;

/// Stages as they are given on the command line: `1x1000,8x1500`.
pub fn stages(text: &str) -> Option<Stages> {
    let stage = |stage: &str| {
        let (clients, requests) = stage.split_once('x')?;
        Some((clients.parse().ok()?, requests.parse().ok()?))
    };
    text.split(',').map(stage).collect()
}

/// Microseconds between two ticks, each of which does a slice of learning, as a sidecar's two
/// filters do.
const TICK_US: u64 = 50_000;

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
    /// The peer's, of the connection.
    port: u16,
    /// Of the client to the sidecar, and of the sidecar to the application.
    #[serde(default)]
    connection: u64,
    #[serde(default)]
    upstream_connection: u64,
    /// The truth; none for a call of the background.
    request: Option<u64>,
}

/// The worker of each inbound request: those that share a connection have one.
fn workers(rows: &[Row]) -> Vec<u64> {
    let mut workers: Vec<u64> = (0..rows.len() as u64).collect();
    let mut changed = true;
    while changed {
        changed = false;
        let mut least: HashMap<(bool, u64), u64> = HashMap::new();
        for pass in 0..2 {
            for (row, worker) in rows.iter().zip(&mut workers) {
                if row.side != "inbound" {
                    continue;
                }
                for end in [(false, row.connection), (true, row.upstream_connection)] {
                    let least = least.entry(end).or_insert(*worker);
                    changed |= pass == 1 && *worker > *least;
                    *least = (*least).min(*worker);
                    *worker = *least;
                }
            }
        }
    }
    // Named 0, 1, ...
    let mut names: HashMap<u64, u64> = HashMap::new();
    let named = |worker: u64| {
        let next = names.len() as u64;
        *names.entry(worker).or_insert(next)
    };
    workers.into_iter().map(named).collect()
}

/// The share of calls that are right, and wrong, by stage, but for the first so many, which are
/// there to learn from.
pub fn replay(
    file: &str,
    stages: &Stages,
    learned: usize,
    wrong: f64,
) -> Result<String, Box<dyn std::error::Error>> {
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
    let workers = workers(&rows);
    let mut tracker = Tracker::default();
    tracker.infer(wrong);
    let mut requests: HashMap<u64, u64> = HashMap::new();
    let mut seen = 0;
    // Right, left alone, wrong.
    let mut tally = vec![[0u32; 3]; stages.len()];
    let mut expected = vec![0.0; stages.len()];
    let mut next_tick = 0;
    for (us, ended, n) in events {
        if us >= next_tick {
            next_tick = us + TICK_US / tracker.learn().max(1);
        }
        let row = &rows[n];
        let id = (workers[n] % 0x1_0000) << 48 | n as u64;
        let inbound = row.side == "inbound";
        let tokens = || signature::tokens(1, row.path.as_bytes(), []);
        match (inbound, ended) {
            (true, true) => tracker.end(us, id),
            (false, true) => tracker.call_end(us, id),
            (true, false) => {
                seen += 1;
                requests.extend(row.request.map(|request| (request, id)));
                let route = signature::route(b"POST", row.path.as_bytes());
                tracker.begin(us, id, 0, route, tokens());
            }
            (false, false) => {
                let kind = signature::kind(b"POST", row.host.as_bytes(), row.path.as_bytes());
                let (tokens, port) = (tokens(), row.port);
                let call = Call { kind, tokens, port };
                let verdict = tracker.call(us, id, &call, None);
                let truth = row.request.and_then(|request| requests.get(&request));
                let mut before = 0;
                let stage = stages.iter().position(|(_, size)| {
                    before += size;
                    seen <= before
                });
                let stage = stage.unwrap_or(stages.len() - 1);
                expected[stage] += verdict.map_or(0.0, |v| 1.0 - f64::from(v.share));
                let class = match (verdict, truth) {
                    (None, None) => continue,
                    (Some(verdict), Some(truth)) if verdict.request == *truth => 0,
                    (None, Some(_)) => 1,
                    (Some(_), _) => 2,
                };
                tally[stage][class] += 1;
            }
        }
    }
    let mut line = file.to_string();
    for (((clients, _), [right, unsure, wrong]), expected) in
        stages.iter().zip(tally).zip(expected).skip(learned)
    {
        let percent = |count: f64| 100.0 * count / f64::from(right + unsure + wrong);
        line.push_str(&format!(
            " | {clients}: {:.1} % right, {:.2} % wrong ({:.2} expected)",
            percent(f64::from(right)),
            percent(f64::from(wrong)),
            percent(expected),
        ));
    }
    Ok(line)
}
