//! How well does the tracker attribute calls? Over simulated applications, or over
//! events recorded around real ones.
//!
//! ```text
//! b3relay-accuracy                     a table of all simulated applications
//! b3relay-accuracy --cold NAME...      of some; the load begins at once
//! b3relay-accuracy FILE.jsonl...       recorded events (tests/accuracy/record.py)
//! b3relay-accuracy --stages=1x250,8x1000 FILE.jsonl...    that were recorded so
//! ```

mod replay;
mod simulate;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (files, words): (Vec<String>, Vec<String>) = arguments
        .into_iter()
        .partition(|word| word.ends_with(".jsonl"));
    let (flags, names): (Vec<String>, Vec<String>) =
        words.into_iter().partition(|word| word.starts_with("--"));
    const WRONG: f64 = 0.005;
    /// What record.py does unless it is told otherwise.
    const STAGES: &str = "1x1000,1x1500,2x1500,4x1500,8x1500,16x1500,32x1500,64x1500";
    if files.is_empty() {
        let quiet = if flags.iter().any(|flag| flag == "--cold") {
            1
        } else {
            1000
        };
        print!("{}", simulate::table(&names, 6000, quiet, WRONG));
    }
    let given = flags.iter().find_map(|flag| flag.strip_prefix("--stages="));
    let Some(stages) = replay::stages(given.unwrap_or(STAGES)) else {
        eprintln!("stages: clients x requests, as in {STAGES}");
        std::process::exit(2);
    };
    for file in files {
        match replay::replay(&file, &stages, WRONG) {
            Ok(line) => println!("{line}"),
            Err(error) => {
                eprintln!("{file}: {error}");
                std::process::exit(1);
            }
        }
    }
}
