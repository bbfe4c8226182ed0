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

/// The modules that a file names as `crate::…`, but for its documentation.
fn used(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap();
    let code = text
        .lines()
        .take_while(|line| !line.starts_with("#[cfg(test)]"))
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
    // How bytes are read and written: below all others.
    let place = |name: &str| match name {
        "bytes" => Some(0),
        name => order.iter().position(|other| other == name),
    };
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
        let code = text
            .lines()
            .take_while(|line| !line.starts_with("#[cfg(test)]"));
        let lines = code.count();
        if !is_tests && lines > LONGEST {
            long.push(format!("{}: {lines} lines", path.display()));
        }
    }
    assert_eq!(long, [""; 0]);
}
