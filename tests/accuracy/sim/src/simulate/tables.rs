//! What was measured, as tables.

use super::Measured;
use super::tally::{THOUSANDS, Tally, WINDOW};

pub fn row(cells: impl IntoIterator<Item = String>) -> String {
    format!(
        "| {} |\n",
        cells.into_iter().collect::<Vec<_>>().join(" | ")
    )
}

pub fn head(first: &[&str], columns: impl IntoIterator<Item = String>) -> String {
    let first = first.iter().map(|word| word.to_string());
    let cells: Vec<String> = first.chain(columns).collect();
    let rule = "|---".repeat(cells.len()) + "|\n";
    row(cells) + &rule
}

pub fn levels(measured: &[Measured]) -> impl Iterator<Item = String> {
    let levels = measured.first().map_or(&[][..], |m| &m.levels);
    levels.iter().map(usize::to_string)
}

/// Right and wrong in per cent, with the interval over the seeds.
pub fn table(measured: &[Measured]) -> String {
    let mut table = head(&["application"], levels(measured));
    for Measured { app, by_level, .. } in measured {
        let cells = by_level.iter().map(|seeds| {
            let right: Vec<f64> = seeds.iter().map(|t| 100.0 * t.share(t.right)).collect();
            let wrong: Vec<f64> = seeds.iter().map(|t| 100.0 * t.share(t.wrong)).collect();
            format!(
                "{} / {}",
                with_interval(&right, 1),
                with_interval(&wrong, 2)
            )
        });
        table += &row(std::iter::once(app.says.to_string()).chain(cells));
    }
    table
}

/// The same of rules that do without a belief: `exclusive`, and where it comes out
/// otherwise, the only request in flight.
pub fn exclusive(measured: &[Measured]) -> String {
    let mut table = head(&["application, rule"], levels(measured));
    for Measured { app, by_level, .. } in measured {
        let sums: Vec<Tally> = by_level.iter().map(|seeds| Tally::of(seeds)).collect();
        let mut add = |rule: &str, of: fn(&Tally) -> [u32; 2]| {
            let cells = sums.iter().map(|sum| {
                let [right, wrong] = of(sum).map(|count| 100.0 * sum.share(count));
                format!("{right:.1} / {wrong:.2}")
            });
            table += &row(std::iter::once(format!("{}: {rule}", app.says)).chain(cells));
        };
        // An identifier decides before anything else is asked.
        if !app.token {
            add("`exclusive`", |sum| sum.exclusive);
        }
        if app.token || sums.iter().any(|sum| 100 * sum.only[1] > sum.only[0]) {
            add("the only request in flight", |sum| sum.only);
        }
    }
    table
}

/// What the filter expects to be wrong and what is, in per cent of the calls that
/// it gave to a request: all applications together.
pub fn calibration(measured: &[Measured]) -> String {
    let columns = [
        "in flight",
        "given a context",
        "of those expected wrong",
        "wrong",
    ];
    let mut table = head(&columns, []);
    for (level, sum) in levels(measured).zip(by_level(measured)) {
        let given = f64::from(sum.right + sum.wrong);
        let percent = |count: f64| format!("{:.3} %", 100.0 * count / given);
        table += &row([
            level,
            given.to_string(),
            percent(sum.expected),
            percent(f64::from(sum.wrong)),
        ]);
    }
    table
}

/// The most wrong calls in any window, in per cent, of all seeds.
pub fn windows(measured: &[Measured]) -> String {
    let mut table = head(&["application"], levels(measured));
    for Measured { app, by_level, .. } in measured {
        let cells = by_level.iter().map(|seeds| worst(&Tally::of(seeds)));
        table += &row(std::iter::once(app.says.to_string()).chain(cells));
    }
    table
}

fn worst(sum: &Tally) -> String {
    format!("{:.2}", 100.0 * sum.worst)
}

/// Right and wrong in per cent by time since the start, and the worst window. `name`:
/// instead of what the application does.
pub fn thousands(measured: &[Measured], name: bool) -> String {
    let columns = (1..=THOUSANDS).map(|n| format!("{n},000"));
    let last = format!("worst {WINDOW} calls");
    let mut table = head(&["application", "clients"], columns.chain([last]));
    for measured in measured {
        let app = &measured.app;
        let says = if name { app.name } else { app.says };
        for (level, seeds) in measured.levels.iter().zip(&measured.by_level) {
            let cells = (0..THOUSANDS).map(|n| thousand(seeds, n));
            let first = [says.to_string(), level.to_string()];
            let last = worst(&Tally::of(seeds));
            table += &row(first.into_iter().chain(cells).chain([last]));
        }
    }
    table
}

fn thousand(seeds: &[Tally], n: usize) -> String {
    let shares = |of: usize| -> Vec<f64> {
        let share = |tally: &Tally| {
            let counts = tally.thousands[n];
            let calls = counts.iter().sum::<u32>().max(1);
            100.0 * f64::from(counts[of]) / f64::from(calls)
        };
        seeds.iter().map(share).collect()
    };
    let (wrong, _) = interval(&shares(2));
    format!("{} / {wrong:.2}", with_interval(&shares(0), 1))
}

/// All applications as one.
pub fn by_level(measured: &[Measured]) -> Vec<Tally> {
    let levels = 0..measured.first().map_or(0, |m| m.levels.len());
    let sum = |level: usize| {
        let all: Vec<Tally> = measured
            .iter()
            .map(|m| Tally::of(&m.by_level[level]))
            .collect();
        Tally::of(&all)
    };
    levels.map(sum).collect()
}

/// The mean, so many digits after the point; of one value, there is no interval.
fn with_interval(values: &[f64], digits: usize) -> String {
    let (mean, about) = interval(values);
    match values.len() {
        1 => format!("{mean:.digits$}"),
        _ => format!("{mean:.digits$} ±{about:.digits$}"),
    }
}

/// Mean, and half of the 95 % interval of it, after Student.
fn interval(values: &[f64]) -> (f64, f64) {
    // For 2 to 10 values.
    const T: [f64; 9] = [12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26];
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0);
    let t = values.len().checked_sub(2).and_then(|at| T.get(at));
    (mean, t.copied().unwrap_or(1.96) * (variance / n).sqrt())
}
