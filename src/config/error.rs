//! What is said of a configuration that is refused.

use super::settings::FORMER;
use serde_path_to_error::Path;
use std::fmt;

/// Why a configuration was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError(String);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ConfigError {}

impl From<serde_json::Error> for ConfigError {
    /// The JSON is broken.
    fn from(error: serde_json::Error) -> Self {
        Self(format!("configuration: {error}"))
    }
}

impl ConfigError {
    /// What was found at a path is not what is allowed there, or the JSON is broken.
    pub(super) fn at(path: &Path, error: serde_json::Error) -> Self {
        if !error.is_data() {
            return error.into();
        }
        let (line, column) = (error.line(), error.column());
        let text = error.to_string();
        let place = format!(" at line {line} column {column}");
        let text = text.strip_suffix(&place).unwrap_or(&text);
        let mut path = path.to_string();
        // serde names a key that is not known, or there twice, and the path has the first.
        let unknown = text.strip_prefix("unknown field `");
        let known =
            unknown.and_then(|text| text.get(path.len()..)?.strip_prefix("`, expected one of "));
        let twice = text.strip_prefix("duplicate field `");
        let text = match (known, twice.and_then(|name| name.strip_suffix('`'))) {
            (Some(known), _) => format!("not known, allowed: {known}"),
            (None, Some(name)) => {
                path = name.to_string();
                let former = FORMER.iter().find(|(now, _)| *now == path);
                let former = former.map(|(_, former)| format!("; `{former}` is its former name"));
                "found twice, allowed: once".to_string() + &former.unwrap_or_default()
            }
            (None, None) => text.to_string(),
        };
        let key = match path.as_str() {
            "." => String::new(),
            _ => format!(" key `{}`", cut(&path)),
        };
        Self(format!(
            "configuration{key}: {text} (line {line} column {column})"
        ))
    }
}

/// Enough of a text to recognise it by, without what could forge a log line.
pub(super) fn cut(text: &str) -> String {
    const MOST: usize = 80;
    let mut short = String::new();
    for (count, c) in text.chars().enumerate() {
        match c {
            _ if count == MOST => {
                short.push('…');
                break;
            }
            _ if c.is_control() => short.extend(c.escape_unicode()),
            _ => short.push(c),
        }
    }
    short
}
