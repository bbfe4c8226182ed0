//! The plugin configuration, a JSON object.
//!
//! | file | what it knows |
//! |---|---|
//! | `settings` | the keys: one field each, with its documentation, type and default |
//! | `choices` | the words of keys that hold one of several |
//! | `values` | ranges, formats of names, lists: what serde cannot say |
//! | `read` | how single values are read, so that errors say what is allowed |
//! | `spans` | where client spans are reported |
//! | `words` | how the words of an enum are read |
//! | `error` | what is said of a configuration that is refused |
//! | `reference` | what is made of all that, in tests only: `docs/configuration.md` and `docs/config.schema.json` |
//!
//! Every key is optional. What is not understood is refused by name, so that a
//! typing error cannot switch anything off unseen.

mod choices;
mod error;
mod read;
#[cfg(test)]
mod reference;
mod settings;
mod spans;
#[cfg(test)]
mod tests;
mod values;
mod words;

pub use choices::{
    AttributionMode, DeferredW3c, Direction, DirectionOf, Form, Incoming, Level, Mode, Outside,
    OwnSpans, ReportHeader, RestoreRequestId, SpanFormat, SpanIds,
};
pub use error::ConfigError;
pub use settings::{Capacity, EnforceStatus, GraceMs, LogLines, Settings};
pub use spans::{SpanReports, Spans};
pub use values::{
    Confidence, CopyHeaders, Emit, Hosts, KeyName, Keys, Rules, TokenHeaders, Within,
};

use crate::headers::{self, NamePattern, Wanted};
use crate::mesh_hosts::Declared;
use crate::rules::Formats;
use crate::rules::{Rule, Severity};
use read::Object;
use serde::Deserializer;
use serde_path_to_error::Track;
use std::marker::PhantomData;
use std::rc::Rc;

/// What requests are looked up by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyOf {
    /// `x-request-id`
    RequestId,
    /// The trace ID of the `traceparent`.
    TraceParent,
    /// The trace ID in B3.
    B3,
    /// Another header, or a part of one: index into [`Wanted::keys`].
    Header(usize),
}

/// The configuration of one plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `mode`
    pub mode: Mode,
    /// `direction`; `None` to ask the listener.
    pub direction: Option<Direction>,
    /// `relay`
    pub relay: bool,
    /// `generate_request_id`
    pub generate_request_id: bool,
    /// `copy_headers`, and the headers that `keys` and `token_headers` name.
    pub wanted: Wanted,
    /// `keys`
    pub keys: Vec<KeyOf>,
    /// `emit`; `None` for the formats that the context came in.
    pub emit: Option<Formats>,
    /// `deferred_w3c`
    pub deferred_w3c: DeferredW3c,
    /// `span_ids`
    pub span_ids: SpanIds,
    /// `own_spans`
    pub own_spans: OwnSpans,
    /// `restore_request_id`
    pub restore_request_id: RestoreRequestId,
    /// `copy_to_attributed`
    pub copy_to_attributed: bool,
    /// `outside`
    pub outside: Outside,
    /// `mesh_hosts`, `outside_hosts` and `egress_gateways`
    pub hosts: Rc<Declared>,
    /// `attribution`
    pub attribution: AttributionMode,
    /// `confidence`
    pub confidence: Confidence,
    /// `look_back`
    pub look_back: bool,
    /// `capacity`
    pub capacity: Capacity,
    /// `grace_ms`
    pub grace_ms: GraceMs,
    /// `log_lines_per_minute`
    pub log_lines_per_minute: LogLines,
    /// `rules`
    pub rules: Rules,
    /// `enforce_status`
    pub enforce_status: EnforceStatus,
    /// `report_header`
    pub report_header: ReportHeader,
    /// `incoming_context`
    pub incoming: Incoming,
    /// `spans`; `None` to report none.
    pub spans: Option<SpanReports>,
}

impl Config {
    /// The keys that both filters of a pod must hold the same, and what they hold.
    pub fn shared_settings(&self) -> Vec<(&'static str, String)> {
        let list = |parts: &mut dyn Iterator<Item = String>| {
            let mut text = String::from("[");
            for (n, part) in parts.enumerate() {
                text.push_str(if n == 0 { "" } else { ", " });
                text.push_str(&part);
            }
            text + "]"
        };
        let key = |key: &KeyOf| match *key {
            KeyOf::RequestId => headers::REQUEST_ID.to_string(),
            KeyOf::TraceParent => headers::TRACEPARENT.to_string(),
            KeyOf::B3 => headers::B3.to_string(),
            KeyOf::Header(index) => {
                let named = self.wanted.keys.get(index);
                named.map(|named| named.to_string()).unwrap_or_default()
            }
        };
        let pattern = |pattern: &NamePattern| match pattern {
            NamePattern::Name(name) => name.clone(),
            NamePattern::Prefix(prefix) => format!("{prefix}*"),
        };
        let mut settings = vec![
            ("relay", self.relay.to_string()),
            (
                "copy_headers",
                list(&mut self.wanted.copy.iter().map(pattern)),
            ),
            ("keys", list(&mut self.keys.iter().map(key))),
            ("attribution", self.attribution.label().to_string()),
        ];
        if self.attribution == AttributionMode::Inferred {
            let tokens = list(&mut self.wanted.tokens.iter().cloned());
            settings.push(("token_headers", tokens));
        }
        settings
    }

    /// How much a rule matters; `None` if it is off.
    pub fn severity(&self, rule: Rule) -> Option<Severity> {
        match self.rules.0.iter().find(|(changed, _)| *changed == rule) {
            Some((_, severity)) => *severity,
            None => Some(rule.severity()),
        }
    }

    /// Reads the plugin configuration, a JSON object. Nothing, or white space,
    /// is the default.
    ///
    /// # Errors
    /// Names the key, its place, what was found and what is allowed; or where the
    /// JSON is broken.
    ///
    /// ```
    /// # use b3relay::config::Config;
    /// let error = Config::parse(br#"{"copy_headers": ["baggage", "te"], "capacity": 7}"#);
    /// let error = error.unwrap_err().to_string();
    /// let found = "configuration key `copy_headers[1]`: found \"te\", allowed: a header name";
    /// assert!(error.starts_with(found) && error.ends_with("(line 1 column 33)"));
    /// ```
    pub fn parse(bytes: &[u8]) -> Result<Self, ConfigError> {
        if bytes.trim_ascii().is_empty() {
            return Ok(Self::default());
        }
        let mut json = serde_json::Deserializer::from_slice(bytes);
        let mut track = Track::new();
        let settings: Result<Settings, _> =
            serde_path_to_error::Deserializer::new(&mut json, &mut track)
                .deserialize_any(Object(PhantomData));
        let settings = settings.map_err(|error| ConfigError::at(&track.path(), error))?;
        json.end()?;
        Ok(settings.into())
    }
}

impl Default for Config {
    fn default() -> Self {
        Settings::default().into()
    }
}
