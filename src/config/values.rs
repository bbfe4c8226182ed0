//! What serde cannot say of a value: ranges, formats, and what may not be there together.
//! Each is checked where it is read, so that a value of these types is a good one.

use super::choices::{Form, Level};
use super::error::cut;
use super::read::{List, Scalar, number, object};
use super::words::{Words, one_of};
use crate::headers::{self, HeaderPart, NamePattern};
use crate::mesh_hosts;
use crate::rules::Formats;
use crate::rules::{Rule, Severity};
use crate::store::KEYS_MOST;
use serde::de::{Deserialize, Deserializer};
use std::fmt;

/// A whole number from `LEAST` to `MOST`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Within<const LEAST: u32, const MOST: u32>(u32);

impl<const LEAST: u32, const MOST: u32> Within<LEAST, MOST> {
    /// `N`, which is checked when it is compiled.
    pub const fn of<const N: u32>() -> Self {
        const { assert!(LEAST <= N && N <= MOST) }
        Self(N)
    }

    /// The number.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl<'de, const LEAST: u32, const MOST: u32> Deserialize<'de> for Within<LEAST, MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let fits = |number: f64| {
            let least_most = f64::from(LEAST)..=f64::from(MOST);
            least_most.contains(&number) && f64::from(number as u32) == number
        };
        let allowed = format_args!("a whole number from {LEAST} to {MOST}");
        Ok(Self(number(deserializer, &allowed, fits)? as u32))
    }
}

/// A share from 0.9 to 0.9999.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Confidence {
    millionths: u32,
}

impl Confidence {
    /// The least and the greatest, in millionths.
    pub(super) const RANGE: (u32, u32) = (900_000, 999_900);

    /// In millionths.
    pub const fn millionths(self) -> u32 {
        self.millionths
    }

    fn rounded(share: f64) -> u32 {
        (share * 1e6 + 0.5) as u32
    }
}

impl Default for Confidence {
    fn default() -> Self {
        Self {
            millionths: 995_000,
        }
    }
}

impl<'de> Deserialize<'de> for Confidence {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let fits = |share| (Self::RANGE.0..=Self::RANGE.1).contains(&Self::rounded(share));
        let share = number(deserializer, &"a number from 0.9 to 0.9999", fits)?;
        Ok(Self {
            millionths: Self::rounded(share),
        })
    }
}

/// `copy_headers`: each once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CopyHeaders(pub(super) Vec<NamePattern>);

impl CopyHeaders {
    pub(super) const LIST: List = List {
        allowed: "a list of at most 32 header names",
        item: "a header name, or the beginning of some followed by `*`; none that begins with a colon, none that belongs to a connection or frames a message (host, connection, te, upgrade, content-length, ...), and none that is copied without being listed",
        length: (0, 32),
        or: None,
    };
}

impl<'de> Deserialize<'de> for CopyHeaders {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut patterns = Vec::new();
        Self::LIST.read(deserializer, |text| {
            let pattern = match text.strip_suffix('*') {
                Some(prefix) => header_name(prefix).map(NamePattern::Prefix),
                None => header_name(text).map(NamePattern::Name),
            };
            let pattern = pattern.ok_or(None)?;
            let by = match &pattern {
                NamePattern::Name(name) => copied_by(name).map(|by| (name, by)),
                NamePattern::Prefix(_) => None,
            };
            if let Some((name, by)) = by {
                let reason = format!("`{name}` is copied without being listed: {by}");
                return Err(Some(reason));
            }
            if !patterns.contains(&pattern) {
                patterns.push(pattern);
            }
            Ok(())
        })?;
        Ok(Self(patterns))
    }
}

/// The mechanism that copies this header already, so that it need not be listed.
pub(super) fn copied_by(name: &str) -> Option<&'static str> {
    Some(match name {
        headers::REQUEST_ID => "which is restored on calls that lack it (`keys`)",
        headers::OT_SPAN_CONTEXT => "which is copied as it is",
        headers::TRACEPARENT | headers::TRACESTATE | headers::B3 => {
            "a form of the context (`emit`)"
        }
        headers::TRACE_ID
        | headers::SPAN_ID
        | headers::PARENT_SPAN_ID
        | headers::SAMPLED
        | headers::FLAGS => "a part of the context (`emit`)",
        _ => return None,
    })
}

/// `token_headers`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenHeaders(pub(super) Vec<String>);

impl TokenHeaders {
    pub(super) const LIST: List = List {
        allowed: "a list of at most 16 header names",
        item: "a header name, none that begins with a colon or belongs to a connection or frames a message",
        length: (0, 16),
        or: None,
    };
}

impl Default for TokenHeaders {
    fn default() -> Self {
        Self(["authorization", "cookie"].map(str::to_string).into())
    }
}

impl<'de> Deserialize<'de> for TokenHeaders {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut names = Vec::new();
        Self::LIST.read(deserializer, |text| {
            names.push(header_name(text).ok_or(None)?);
            Ok(())
        })?;
        Ok(Self(names))
    }
}

/// What requests are looked up by, as the configuration names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyName {
    /// `x-request-id`
    RequestId,
    /// The trace ID of the `traceparent`.
    TraceParent,
    /// The trace ID in B3.
    B3,
    /// Another header, or a part of one.
    Header(HeaderPart),
}

impl KeyName {
    fn parse(text: &str) -> Option<Self> {
        Some(match text.to_ascii_lowercase().as_str() {
            headers::REQUEST_ID => Self::RequestId,
            headers::TRACEPARENT => Self::TraceParent,
            headers::B3 => Self::B3,
            name => Self::Header(named(name)?),
        })
    }
}

impl fmt::Display for KeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RequestId => f.write_str(headers::REQUEST_ID),
            Self::TraceParent => f.write_str(headers::TRACEPARENT),
            Self::B3 => f.write_str(headers::B3),
            Self::Header(named) => named.fmt(f),
        }
    }
}

/// A header that is a key, or a part of one that is.
fn named(text: &str) -> Option<HeaderPart> {
    let (header, parameter) = match text.split_once(':') {
        Some((header, parameter)) => (header, Some(parameter)),
        None => (text, None),
    };
    // B3 and the request ID are keys as a whole, and a trace ID has no parameters.
    let is_ours = |name: &str| {
        name == headers::REQUEST_ID
            || name == headers::B3
            || name == headers::TRACEPARENT
            || name.starts_with("x-b3-")
    };
    let header = header_name(header).filter(|name| !is_ours(name))?;
    let parameter = match parameter {
        Some(parameter) => Some(token(parameter)?),
        None => None,
    };
    Some(HeaderPart { header, parameter })
}

/// `keys`: 1 to 4, each once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys(pub(super) Vec<KeyName>);

impl Keys {
    pub(super) const LIST: List = List {
        allowed: "a list of 1 to 4 keys",
        item: "\"x-request-id\", \"traceparent\", \"b3\", the name of another header, or a part of one such as \"x-amzn-trace-id:Root\", each once",
        length: (1, KEYS_MOST),
        or: None,
    };
}

impl Default for Keys {
    fn default() -> Self {
        use KeyName::{B3, RequestId, TraceParent};
        Self([RequestId, TraceParent, B3].into())
    }
}

impl<'de> Deserialize<'de> for Keys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut keys = Vec::new();
        Self::LIST.read(deserializer, |text| {
            let key = KeyName::parse(text).ok_or(None)?;
            if keys.contains(&key) {
                return Err(Some(format!("`{key}` is there twice")));
            }
            keys.push(key);
            Ok(())
        })?;
        Ok(Self(keys))
    }
}

/// `emit`; `None` for the formats that the context came in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Emit(pub(super) Option<Formats>);

impl Emit {
    pub(super) const LIST: List = List {
        allowed: "\"received\", or a list of \"b3multi\", \"b3\" and \"w3c\"",
        item: "\"b3multi\", \"b3\" or \"w3c\"",
        // A form that is there twice is written once.
        length: (1, usize::MAX),
        or: Some("received"),
    };
}

impl<'de> Deserialize<'de> for Emit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut formats = Formats::default();
        Self::LIST.read(deserializer, |text| {
            match one_of(Scalar::Text(text)).ok_or(None)? {
                Form::Multi => formats.multi = true,
                Form::Single => formats.single = true,
                Form::W3c => formats.w3c = true,
            }
            Ok(())
        })?;
        Ok(Self(Some(formats).filter(|formats| !formats.is_empty())))
    }
}

/// `mesh_hosts`, `outside_hosts` or `egress_gateways`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hosts(pub(super) Vec<mesh_hosts::HostPattern>);

impl Hosts {
    pub(super) const LIST: List = List {
        allowed: "a list of at most 64 hosts",
        item: "a host without a port: a name, the end of names that begins with `*.`, an address or a range of addresses (`10.0.0.0/8`)",
        length: (0, 64),
        or: None,
    };
}

impl<'de> Deserialize<'de> for Hosts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut hosts = Vec::new();
        Self::LIST.read(deserializer, |text| {
            let reason = "it would match names of others, too: write `*.` and a name";
            let is_open = text.starts_with('*') && !text.starts_with("*.");
            let reason = is_open.then(|| reason.to_string());
            hosts.push(mesh_hosts::HostPattern::parse(text).ok_or(reason)?);
            Ok(())
        })?;
        Ok(Self(hosts))
    }
}

/// `rules`: what differs from the table, each rule once; `None` for one that is off.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules(pub(super) Vec<(Rule, Option<Severity>)>);

impl<'de> Deserialize<'de> for Rules {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut rules = Vec::new();
        let levels = Words::of::<Level>();
        let mut accept = |id: &str, level: Scalar<'_>| {
            let mut known = Rule::ALL.iter();
            let unknown = || Some(format!("no rule of docs/rules.md is called `{}`", cut(id)));
            let rule = *known.find(|rule| rule.id() == id).ok_or_else(unknown)?;
            if rules.iter().any(|(before, _)| *before == rule) {
                return Err(Some(format!("`{id}` is there twice")));
            }
            let severity = match one_of(level).ok_or(None)? {
                Level::Off => None,
                Level::Info => Some(Severity::Info),
                Level::Warn => Some(Severity::Warn),
                Level::Error => Some(Severity::Error),
            };
            rules.push((rule, severity));
            Ok(())
        };
        let allowed = format_args!("an object of rule IDs, each with {levels}");
        object(deserializer, &allowed, &levels, &mut accept)?;
        Ok(Self(rules))
    }
}

/// A header name that may be copied, in lower case.
fn header_name(name: &str) -> Option<String> {
    token(name).filter(|name| !headers::is_of_the_connection(name.as_bytes()))
}

/// A name, in lower case.
fn token(name: &str) -> Option<String> {
    // RFC 9110, section 5.6.2; `*` may be in a name, but stands for others here.
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'+-.^_`|~".contains(&byte);
    let fits = (1..=255).contains(&name.len()) && name.bytes().all(token);
    fits.then(|| name.to_ascii_lowercase())
}
