//! Which headers are read besides those of the trace context.

use super::is_of_the_connection;
use std::fmt;

/// Which headers to pick out, besides those that have a field of their own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The copy list.
    pub copy: Vec<NamePattern>,
    /// Look-up keys.
    pub keys: Vec<HeaderPart>,
    /// Names of headers that may identify a request, in lower case.
    pub tokens: Vec<String>,
}

/// A header, or a part of its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderPart {
    /// Its name in lower case.
    pub header: String,
    /// The name of a parameter in lower case.
    pub parameter: Option<String>,
}

impl fmt::Display for HeaderPart {
    /// As the configuration has it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.header)?;
        match &self.parameter {
            Some(parameter) => write!(f, ":{parameter}"),
            None => Ok(()),
        }
    }
}

impl HeaderPart {
    /// Bytes of a value in which parameters are looked for.
    const SEARCHED: usize = 8192;

    /// What counts of a value: all of it, or what follows `name=`, among parameters that
    /// are separated by `;` or `,`. Names are compared without regard to case. Of a
    /// parameter that is repeated the first one and the last one, which may be the same.
    pub fn values<'a>(&self, value: &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
        let Some(parameter) = &self.parameter else {
            return Some((value, value));
        };
        let cut = value.len() > Self::SEARCHED;
        let mut searched = value.get(..Self::SEARCHED).unwrap_or(value);
        if cut {
            // Not the last one, which may be cut.
            let end = searched.iter().rposition(is_separator);
            searched = searched.get(..end.unwrap_or(0)).unwrap_or_default();
        }
        let parts = searched.split(is_separator);
        let mut named = parts.filter_map(|part| {
            let equals = part.iter().position(|&byte| byte == b'=')?;
            let (name, value) = part.split_at_checked(equals)?;
            let value = value.get(1..)?.trim_ascii();
            let name = name.trim_ascii();
            let named = name.eq_ignore_ascii_case(parameter.as_bytes());
            (named && !value.is_empty()).then_some(value)
        });
        let first = named.next()?;
        Some((first, named.next_back().unwrap_or(first)))
    }
}

fn is_separator(byte: &u8) -> bool {
    matches!(byte, b';' | b',')
}

/// A header name in lower case, or the beginning of some.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NamePattern {
    /// This name.
    Name(String),
    /// Every name that begins so, but for those that frame a message.
    Prefix(String),
}

impl NamePattern {
    /// The name is one of those meant.
    pub fn matches(&self, name: &[u8]) -> bool {
        match self {
            Self::Name(wanted) => wanted.as_bytes() == name,
            Self::Prefix(prefix) => {
                name.starts_with(prefix.as_bytes()) && !is_of_the_connection(name)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_value_is_found_by_its_name() {
        let root = HeaderPart {
            header: "x-amzn-trace-id".to_string(),
            parameter: Some("root".to_string()),
        };
        let part = |text: &str| {
            root.values(text.as_bytes())
                .map(|(first, _)| first.to_vec())
        };
        let found = Some(b"1-67891233-abcdef".to_vec());
        for text in [
            "Root=1-67891233-abcdef",
            "Root=1-67891233-abcdef;Parent=53995c3f42cd8ad8;Sampled=1",
            "Self=1-6789-0;Root=1-67891233-abcdef",
            "Self=1-6789-0; root = 1-67891233-abcdef ;x",
            "a=1, ROOT=1-67891233-abcdef",
            ";;,Root=;Root=1-67891233-abcdef;Root=2",
        ] {
            assert_eq!(part(text), found, "{text}");
        }
        for text in [
            "", "Root", "Root=", "xRoot=1", "Root;=1", "a=Root=1", "Root: 1",
        ] {
            assert_eq!(part(text), None, "{text}");
        }
        // What follows the first equals sign, base64 say, is the value.
        assert_eq!(part("root=YQ=="), Some(b"YQ==".to_vec()));
    }

    #[test]
    fn a_part_is_shown_as_it_is_configured() {
        let [header, parameter] = ["a".to_string(), "b".to_string()];
        let whole = HeaderPart {
            header: header.clone(),
            parameter: None,
        };
        let part = HeaderPart {
            header,
            parameter: Some(parameter),
        };
        assert_eq!([whole, part].map(|one| one.to_string()), ["a", "a:b"]);
    }

    #[test]
    fn the_search_for_a_part_is_bounded() {
        let last = HeaderPart {
            header: "a".to_string(),
            parameter: Some("last".to_string()),
        };
        for (before, found) in [
            (0, true),
            (8000, true),
            (8178, true),
            (8179, false),
            (60_000, false),
        ] {
            let text = format!("{};last=1234567;b=2", "x".repeat(before));
            assert_eq!(last.values(text.as_bytes()).is_some(), found, "{before}");
        }
        // All of it.
        let text = format!("{};last=1", "x".repeat(HeaderPart::SEARCHED - 7));
        assert_eq!(text.len(), HeaderPart::SEARCHED);
        assert!(last.values(text.as_bytes()).is_some());
        // Not a part of it.
        let text = format!("last={}", "x".repeat(9000));
        assert_eq!(last.values(text.as_bytes()), None);
    }
}
