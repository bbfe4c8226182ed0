//! The order of the modules, as the table in src/lib.rs has it: a module uses those above
//! it, so that nothing imports upwards and there is no circle. And no file is long.
// A test may panic: that is how it fails.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::fs;
use std::path::{Path, PathBuf};

/// Lines of a file, its tests not counted.
const LONGEST: usize = 400;

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(sources(&path)),
            false if path.extension().is_some_and(|end| end == "rs") => found.push(path),
            false => {}
        }
    }
    found
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// The modules of the table, from the top.
fn order() -> Vec<String> {
    let map = fs::read_to_string(root().join("lib.rs")).unwrap();
    let rows = map.lines().filter_map(|line| line.strip_prefix("//! | "));
    let names = rows.filter_map(|row| row.split(" |").next());
    let names = names.map(|name| name.trim_matches(['[', ']', '`']).to_string());
    names.filter(|name| name != "module").collect()
}

/// The module that a file is of.
fn module(path: &Path) -> String {
    let inside = path.strip_prefix(root()).unwrap();
    let first = inside.components().next().unwrap().as_os_str();
    first.to_str().unwrap().trim_end_matches(".rs").to_string()
}

/// The lines of a file without the items that are there in tests only.
fn without_tests(text: &str) -> Vec<&str> {
    let mut lines = text.lines();
    let mut code = Vec::new();
    while let Some(line) = lines.next() {
        if !line.starts_with("#[cfg(test)]") {
            code.push(line);
            continue;
        }
        // The item's last line, if rustfmt has been here.
        let is_last = |line: &str| line == "}" || (!line.starts_with(' ') && line.ends_with(';'));
        lines.find(|line| is_last(line));
    }
    code
}

#[test]
fn what_is_behind_a_test_counts() {
    let text = "use a;\n#[cfg(test)]\nmod tests;\nfn b() {\n    c();\n}\n\
                #[cfg(test)]\nmod others {\n    use d;\n}\nfn e() {}";
    let expected = ["use a;", "fn b() {", "    c();", "}", "fn e() {}"];
    assert_eq!(without_tests(text), expected);
}

/// The modules that a file names as `crate::…`, but for its documentation.
fn used(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap();
    let code = without_tests(&text);
    let code = code
        .iter()
        .filter(|line| !line.trim_start().starts_with("//"));
    let parts = code.flat_map(|line| line.split("crate::").skip(1));
    let name = |part: &str| {
        let is_of_it = |c: &char| c.is_ascii_alphanumeric() || *c == '_';
        part.chars().take_while(is_of_it).collect::<String>()
    };
    parts.map(name).filter(|name| !name.is_empty()).collect()
}

#[test]
fn nothing_imports_upwards() {
    let order = order();
    let place = |name: &str| order.iter().position(|other| other == name);
    let mut wrong = Vec::new();
    for path in sources(&root()) {
        let module = module(&path);
        if module == "lib" {
            continue;
        }
        let own = place(&module).unwrap_or_else(|| panic!("{module} is not in the table"));
        for other in used(&path) {
            let is_above = other == module || place(&other).is_some_and(|at| at <= own);
            if !is_above {
                wrong.push(format!("{}: crate::{other}", path.display()));
            }
        }
    }
    assert_eq!(wrong, [""; 0]);
}

#[test]
fn no_file_is_long() {
    let mut long = Vec::new();
    for path in sources(&root()) {
        let text = fs::read_to_string(&path).unwrap();
        let is_tests = path.components().any(|part| {
            part.as_os_str()
                .to_str()
                .is_some_and(|name| name.starts_with("tests"))
        });
        let lines = without_tests(&text).len();
        if !is_tests && lines > LONGEST {
            long.push(format!("{}: {lines} lines", path.display()));
        }
    }
    assert_eq!(long, [""; 0]);
}
