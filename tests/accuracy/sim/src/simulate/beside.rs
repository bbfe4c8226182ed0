//! What the tracker reaches, beside the Bayes bound.

use super::Measured;
use super::tables::{head, levels, row};
use super::tally::{THOUSANDS, Tally, Thousands, in_all};
use serde::Serialize;

/// Counts of all seeds together, for the plots.
#[derive(Serialize)]
pub struct Beside {
    app: &'static str,
    says: &'static str,
    /// `warm` or `cold`.
    start: &'static str,
    clients: usize,
    /// Right, left alone and wrong, by thousands of requests.
    bound: Thousands,
    tracker: Thousands,
}

pub fn figures(measured: &[Measured], start: &'static str) -> Vec<Beside> {
    let mut figures = Vec::new();
    for Measured {
        app,
        levels,
        by_level,
    } in measured
    {
        for (clients, seeds) in levels.iter().zip(by_level) {
            let sum = Tally::of(seeds);
            if let Some(bound) = sum.bound {
                figures.push(Beside {
                    app: app.name,
                    says: app.says,
                    start,
                    clients: *clients,
                    bound: bound.thousands,
                    tracker: sum.thousands,
                });
            }
        }
    }
    figures
}

/// Right / left alone / wrong in per cent: by clients, or by time since the start.
pub fn beside(measured: &[Measured], by_time: bool) -> String {
    let mut table = match by_time {
        false => head(&["application", "whose"], levels(measured)),
        true => head(
            &["application", "clients", "whose"],
            (1..=THOUSANDS).map(|n| format!("{n},000")),
        ),
    };
    for measured in measured {
        let sums = measured.by_level.iter().map(|seeds| Tally::of(seeds));
        let sums: Vec<Tally> = sums.collect();
        let bounds = sums.iter().map(|sum| sum.bound.map(|b| b.thousands));
        let trackers = sums.iter().map(|sum| Some(sum.thousands));
        let both = [
            ("bound", bounds.collect::<Vec<_>>()),
            ("b3relay", trackers.collect()),
        ];
        let says = measured.app.says.to_string();
        if !by_time {
            for (whose, by_level) in both {
                let whole = |of: Option<Thousands>| cell(of.map(in_all));
                let cells = by_level.into_iter().map(whole);
                let first = [says.clone(), whose.to_string()];
                table += &row(first.into_iter().chain(cells));
            }
            continue;
        }
        for (at, clients) in measured.levels.iter().enumerate() {
            for (whose, by_level) in &both {
                let cells = (0..THOUSANDS).map(|n| cell(by_level[at].map(|of| of[n])));
                let first = [says.clone(), clients.to_string(), whose.to_string()];
                table += &row(first.into_iter().chain(cells));
            }
        }
    }
    table
}

fn cell(counts: Option<[u32; 3]>) -> String {
    let Some(counts) = counts else {
        return "-".to_string();
    };
    let calls = f64::from(counts.iter().sum::<u32>().max(1));
    let [right, unsure, wrong] = counts.map(|count| 100.0 * f64::from(count) / calls);
    format!("{right:.1} / {unsure:.1} / {wrong:.2}")
}
