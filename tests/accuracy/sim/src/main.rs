//! How well does the tracker attribute calls? Over simulated applications, or over
//! events recorded around real ones.
//!
//! ```text
//! b3relay-accuracy                     a table of all simulated applications
//! b3relay-accuracy --cold NAME...      of some; the load begins at once
//! b3relay-accuracy --thousands NAME... those by thousands of requests since the start,
//!                                      cold, and the worst 2,000 calls in a row; for
//!                                      8 and 16 clients, two seeds
//!     --levels=8,16 --seeds=2          other clients and seeds, of these tables
//! b3relay-accuracy --markdown=FILE     the tables of docs/accuracy-simulated.md, into it
//! b3relay-accuracy --bound NAME...     those beside the Bayes bound, where it is known; for 1
//!                                      to 16 clients
//!     --bound=FILE --figures=FILE      into that document; and for the plots of it
//! b3relay-accuracy --random=N           the worst of N applications that are drawn by lot
//!     --seed=S                         from this seed on
//! b3relay-accuracy FILE.jsonl...       recorded events (tests/accuracy/record.py)
//! b3relay-accuracy --stages=1x250,8x1000 FILE.jsonl...    that were recorded so
//! b3relay-accuracy --cold --stages=8x1000,8x1000 FILE.jsonl...    without a quiet start
//! ```

mod replay;
mod simulate;

/// The default of `confidence`.
const WRONG: f64 = 0.005;
const REQUESTS: u64 = 6000;
const SEEDS: u64 = 2;

/// What is asked for on the command line.
struct Asked {
    levels: Vec<usize>,
    seeds: u64,
}

impl Asked {
    fn measured(&self, names: &[String], quiet: u64, bound: bool) -> Vec<simulate::Measured> {
        let plan = simulate::Plan {
            size: simulate::Size {
                requests: REQUESTS,
                quiet,
            },
            levels: self.levels.clone(),
            seeds: 0..self.seeds,
            bound,
        };
        simulate::measure_all(names, &plan, WRONG)
    }

    fn tables(&self, names: &[String], quiet: u64) -> String {
        let found = self.measured(names, quiet, false);
        let parts = [
            simulate::table(&found),
            simulate::windows(&found),
            simulate::calibration(&found),
            simulate::exclusive(&found),
        ];
        parts.join("\n")
    }

    /// The tables with the bound, and their figures.
    fn beside(&self, names: &[String]) -> (String, Vec<simulate::Beside>) {
        let (warm, cold) = (
            self.measured(names, 1000, true),
            self.measured(names, 1, true),
        );
        let some: Vec<_> = cold.iter().map(|found| found.at(&[8, 16])).collect();
        let parts = [
            "After 1,000 requests one after the other, by clients:".to_string(),
            simulate::beside(&warm, false),
            "Under load from the first request, by time since the start: while the first \
             thousand requests began, the second, ...:"
                .to_string(),
            simulate::beside(&some, true),
        ];
        let text = parts.join("\n\n").replace("|\n\n\n", "|\n\n");
        let mut figures = simulate::figures(&warm, "warm");
        figures.extend(simulate::figures(&cold, "cold"));
        (text, figures)
    }

    /// What docs/accuracy-simulated.md has.
    fn document(&self) -> String {
        let (warm, cold) = (
            self.measured(&[], 1000, false),
            self.measured(&[], 1, false),
        );
        let some = cold.iter().map(|found| found.at(&[8, 16]));
        let some: Vec<_> = some.collect();
        let parts = [
            "After 1,000 requests one after the other:".to_string(),
            simulate::table(&warm),
            "Under load from the first request, those included in which nothing is known yet:"
                .to_string(),
            simulate::table(&cold),
            "The same by time since the start: while the first thousand requests began, the \
             second, ...; and the most wrong calls in 2,000 in a row, of any seed:"
                .to_string(),
            simulate::thousands(&some, false),
            "The most wrong calls in 2,000 in a row, in per cent, of any seed; after 1,000 \
             requests one after the other:"
                .to_string(),
            simulate::windows(&warm),
            "And under load from the first request:".to_string(),
            simulate::windows(&cold),
            "Of the calls that were given a context, those that the filter itself expects to be \
             wrong, and those that are; all applications of the first table together:"
                .to_string(),
            simulate::calibration(&warm),
            "The rules that do without a belief, after the same start, right / wrong:".to_string(),
            simulate::exclusive(&warm),
        ];
        parts.join("\n\n").replace("|\n\n\n", "|\n\n")
    }
}

/// Replaces what stands between the marks of a document.
fn write_block(file: &str, name: &str, text: &str) -> Result<(), Box<dyn std::error::Error>> {
    let begin = format!("<!-- generated: {name} -->\n");
    let old = std::fs::read_to_string(file)?;
    let (before, rest) = old.split_once(&begin).ok_or("no mark to write after")?;
    let (_, after) = rest.split_once("<!-- end -->").ok_or("no end mark")?;
    let text = text.trim_end();
    std::fs::write(file, format!("{before}{begin}{text}\n<!-- end -->{after}"))?;
    Ok(())
}

/// `None` if it is not understood.
fn asked(levels: Option<&str>, seeds: Option<&str>, usual: &[usize]) -> Option<Asked> {
    let levels = match levels {
        Some(text) => {
            let level = |word: &str| word.parse().ok().filter(|level| *level > 0);
            text.split(',').map(level).collect::<Option<_>>()?
        }
        None => usual.to_vec(),
    };
    let seeds = match seeds {
        Some(text) => text.parse().ok().filter(|seeds| *seeds > 0)?,
        None => SEEDS,
    };
    Some(Asked { levels, seeds })
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (files, words): (Vec<String>, Vec<String>) = arguments
        .into_iter()
        .partition(|word| word.ends_with(".jsonl"));
    let (flags, names): (Vec<String>, Vec<String>) =
        words.into_iter().partition(|word| word.starts_with("--"));
    /// What record.py does unless it is told otherwise.
    const STAGES: &str = "1x1000,1x1500,2x1500,4x1500,8x1500,16x1500,32x1500,64x1500";
    let given = |name: &str| flags.iter().find_map(|flag| flag.strip_prefix(name));
    let cold = given("--cold").is_some();
    if let Some(random) = given("--random=") {
        let number = |text: &str| text.parse::<u64>().ok();
        let (Some(random), Some(seed)) = (number(random), number(given("--seed=").unwrap_or("0")))
        else {
            eprintln!("random: how many; seed: the first one, as in --random=100 --seed=0");
            std::process::exit(2);
        };
        let found = simulate::measure_random(seed..seed.saturating_add(random), WRONG);
        print!("{}", simulate::worst(&found, WRONG));
    } else if files.is_empty() {
        let quick = given("--thousands").is_some();
        let bound = given("--bound");
        let usual: &[usize] = match (quick, bound) {
            (true, _) => &[8, 16],
            (false, Some(_)) => &simulate::BOUND_LEVELS,
            (false, None) => &simulate::LEVELS,
        };
        let Some(asked) = asked(given("--levels="), given("--seeds="), usual) else {
            eprintln!("levels: clients, as in --levels=8,16; seeds: how many, as in --seeds=2");
            std::process::exit(2);
        };
        let markdown = given("--markdown=");
        let mut figures = Vec::new();
        let text = match markdown {
            _ if bound.is_some() => {
                let (text, found) = asked.beside(&names);
                figures = found;
                text
            }
            None if quick => simulate::thousands(&asked.measured(&names, 1, false), true),
            None => asked.tables(&names, if cold { 1 } else { 1000 }),
            Some(_) => asked.document(),
        };
        print!("{text}");
        let written = match (given("--bound="), markdown) {
            (Some(file), _) => write_block(file, "accuracy-simulated-bound", &text),
            (None, Some(file)) => write_block(file, "accuracy-simulated", &text),
            (None, None) => Ok(()),
        };
        let written = written.and_then(|()| match given("--figures=") {
            Some(file) => Ok(std::fs::write(file, serde_json::to_string(&figures)?)?),
            None => Ok(()),
        });
        if let Err(error) = written {
            eprintln!("{error}");
            std::process::exit(1);
        }
    }
    let Some(stages) = replay::stages(given("--stages=").unwrap_or(STAGES)) else {
        eprintln!("stages: clients x requests, as in {STAGES}");
        std::process::exit(2);
    };
    for file in files {
        match replay::replay(&file, &stages, usize::from(!cold), WRONG) {
            Ok(line) => println!("{line}"),
            Err(error) => {
                eprintln!("{file}: {error}");
                std::process::exit(1);
            }
        }
    }
}
