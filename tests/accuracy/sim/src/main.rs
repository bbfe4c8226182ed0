//! How well does the tracker attribute calls? Over simulated applications, or over
//! events recorded around real ones.
//!
//! ```text
//! b3relay-accuracy                     a table of all simulated applications
//! b3relay-accuracy --cold NAME...      of some; the load begins at once
//! b3relay-accuracy FILE.jsonl...       recorded events (tests/accuracy/record.py)
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
    if files.is_empty() {
        let quiet = if flags.iter().any(|flag| flag == "--cold") {
            1
        } else {
            1000
        };
        print!("{}", simulate::table(&names, 6000, quiet, WRONG));
    }
    for file in files {
        match replay::replay(&file, WRONG) {
            Ok(line) => println!("{line}"),
            Err(error) => {
                eprintln!("{file}: {error}");
                std::process::exit(1);
            }
        }
    }
}
