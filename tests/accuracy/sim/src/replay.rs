//! Runs recorded events through the tracker.
use b3relay::attribution::text::Token;
use b3relay::attribution::tracker::Tracker;
use serde::Deserialize;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::process::{Command, Stdio};

#[derive(Deserialize)]
struct Row {
    side: String,
    start_ms: f64,
    ms: f64,
    route: Option<String>,
    host: Option<String>,
    #[serde(default)]
    path: Option<String>,
    request: Option<serde_json::Value>,
}

pub fn hash(text: &str) -> u32 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish() as u32
}

#[derive(Default, Clone, Copy)]
pub struct Tally {
    pub right: u32,
    pub unsure: u32,
    pub wrong: u32,
    pub taken: u32,
    pub expected: f64,
}

pub fn replay(path: &str) {
    let out = Command::new("zcat").arg(path).stdout(Stdio::piped()).output().unwrap();
    let rows: Vec<Row> = String::from_utf8(out.stdout).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let wrong: f64 = std::env::var("WRONG").ok().and_then(|w| w.parse().ok()).unwrap_or(0.005);
    let mut events = Vec::new();
    for (n, row) in rows.iter().enumerate() {
        let us = |ms: f64| (ms * 1000.0) as u64 + 1_000_000;
        events.push((us(row.start_ms), false, n));
        events.push((us(row.start_ms + row.ms), true, n));
    }
    events.sort();
    let sizes = [1000usize, 1500, 1500, 1500, 1500, 1500, 1500, 1500];
    let levels = [1, 1, 2, 4, 8, 16, 32, 64];
    let mut tracker = Tracker::default();
    let mut ids: HashMap<String, usize> = HashMap::new();
    let (mut seen, mut level) = (0, 0);
    let mut tally = vec![Tally::default(); 8];
    let begin = std::time::Instant::now();
    let path_tokens = |row: &Row| row.path.as_ref().map_or(vec![], |p| b3relay::attribution::text::tokens(1, p.as_bytes(), []));
    for (us, ended, n) in events {
        let row = &rows[n];
        let request = row.request.as_ref().filter(|r| !r.is_null()).map(|r| r.to_string());
        if row.side == "inbound" {
            if ended {
                tracker.end(us, n as u64);
                continue;
            }
            if seen >= sizes[..=level].iter().sum::<usize>() && level + 1 < sizes.len() {
                level += 1;
            }
            seen += 1;
            ids.insert(request.unwrap(), n);
            tracker.begin(us, n as u64, 0, hash(row.route.as_deref().unwrap()), path_tokens(row));
        } else if ended {
            tracker.call_end(us, n as u64);
        } else {
            let kind = match &row.path { Some(p) => b3relay::attribution::text::kind(b"GET", row.host.as_deref().unwrap().as_bytes(), p.as_bytes()), None => [hash(row.host.as_deref().unwrap()), 1] };
            let sure = tracker.call(us, n as u64, kind, &path_tokens(row), None, wrong);
            let truth = request.and_then(|r| ids.get(&r).copied());
            let tally = &mut tally[level];
            if let Some(v) = sure {
                tally.expected += 1.0 - f64::from(v.share);
            }
            match (sure, truth) {
                (None, None) => {}
                (Some(_), None) => tally.taken += 1,
                (None, Some(_)) => tally.unsure += 1,
                (Some(v), Some(truth)) if v.request == truth as u64 => tally.right += 1,
                (Some(_), Some(_)) => tally.wrong += 1,
            }
        }
    }
    print!("{:40}", path.rsplit('/').next().unwrap());
    for level in 1..8 {
        let t = tally[level];
        let n = f64::from(t.right + t.unsure + t.wrong);
        if n > 0.0 {
            print!(" | {}: {:5.1}/{:.2}+{} ({:.2})", levels[level], 100.0 * f64::from(t.right) / n, 100.0 * f64::from(t.wrong) / n, t.taken, 100.0 * t.expected / n);
        }
    }
    println!(" {:?}", begin.elapsed());
}
