//! `docs/config.schema.json`, made from the types: what editors read, and what
//! `docs/configuration.md` is made from in turn (`tests/docs.rs`).

use super::values::copied_by;
use super::{Confidence, CopyHeaders, Emit, Hosts, Keys, Rules, Settings, Spans, TokenHeaders};
use super::{SpanFormat, Within};
use crate::headers;
use crate::rules::Formats;
use crate::rules::Rule;
use schemars::generate::SchemaSettings;
use schemars::transform::transform_subschemas;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::ser::{Serialize, Serializer};
use serde_json::{Value, json};
use std::borrow::Cow;

/// Of RFC 9110, section 5.6.2, but for `*`.
const TOKEN: &str = "[-!#$%&'+.^_`|~0-9A-Za-z]{1,255}";

/// Headers that are never copied: [`headers::is_of_the_connection`].
const OF_THE_CONNECTION: [&str; 10] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Headers that are copied without being listed: [`copied_by`].
const COPIED: [&str; 10] = [
    headers::REQUEST_ID,
    headers::TRACE_ID,
    headers::SPAN_ID,
    headers::PARENT_SPAN_ID,
    headers::SAMPLED,
    headers::FLAGS,
    headers::B3,
    headers::TRACEPARENT,
    headers::TRACESTATE,
    headers::OT_SPAN_CONTEXT,
];

/// A pattern for names without regard to case: JSON Schema has no flag for that.
fn any_case(names: &[&str]) -> String {
    let letter = |c: char| match c.is_ascii_alphabetic() {
        true => format!("[{c}{}]", c.to_ascii_uppercase()),
        false => c.to_string(),
    };
    let name = |name: &&str| name.chars().map(letter).collect::<String>();
    let names: Vec<String> = names.iter().map(name).collect();
    format!("(?:{})", names.join("|"))
}

macro_rules! schema {
    ($name:ident, $schema:expr) => {
        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                $schema
            }
        }
    };
}

impl<const LEAST: u32, const MOST: u32> JsonSchema for Within<LEAST, MOST> {
    fn schema_name() -> Cow<'static, str> {
        format!("From{LEAST}To{MOST}").into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "integer", "minimum": LEAST, "maximum": MOST })
    }
}

fn share(millionths: u32) -> f64 {
    f64::from(millionths) / 1e6
}

schema!(Confidence, {
    let (least, most) = Self::RANGE;
    json_schema!({ "type": "number", "minimum": share(least), "maximum": share(most) })
});

/// Of a list of strings that are of a pattern, and not of others.
fn list(list: &super::read::List, pattern: &str, but: Option<String>) -> Schema {
    let mut items = json!({
        "type": "string",
        "description": list.item,
        "pattern": format!("^{pattern}$"),
    });
    if let Some(but) = but {
        items["not"] = json!({ "pattern": format!("^(?:{but})$") });
    }
    let (least, most) = list.length;
    let mut schema = json_schema!({ "type": "array", "items": items });
    if least > 0 {
        schema.insert("minItems".into(), json!(least));
    }
    schema.insert("maxItems".into(), json!(most));
    schema
}

schema!(CopyHeaders, {
    let (connection, copied) = (any_case(&OF_THE_CONNECTION), any_case(&COPIED));
    let but = format!("{connection}\\*?|{copied}");
    list(&Self::LIST, &format!("{TOKEN}\\*?"), Some(but))
});

schema!(TokenHeaders, {
    list(&Self::LIST, TOKEN, Some(any_case(&OF_THE_CONNECTION)))
});

schema!(Keys, {
    let connection = any_case(&OF_THE_CONNECTION);
    let whole = any_case(&[headers::REQUEST_ID, headers::TRACEPARENT, headers::B3]);
    let part_of_b3 = any_case(&["x-b3-"]);
    let but = format!("{connection}(?::.*)?|{whole}:.*|{part_of_b3}.*");
    let mut schema = list(&Self::LIST, &format!("{TOKEN}(?::{TOKEN})?"), Some(but));
    schema.insert("uniqueItems".into(), true.into());
    schema
});

/// A name or the end of some (or an address of IPv4), an address of IPv6 or a range, one of
/// IPv4 in brackets, a range of IPv4. It takes all that b3relay takes, and some strings more.
const HOST: &str = concat!(
    r"(?:(?:\*\.)?[-0-9A-Za-z_]+(?:\.[-0-9A-Za-z_]+)*\.?",
    r"|\[?[0-9A-Fa-f]*:[0-9A-Fa-f]*:[0-9A-Fa-f:.]*\]?(?:/0*[0-9]{1,3})?",
    r"|\[[0-9.]+\]|[0-9.]+/0*[0-9]{1,2})",
);

schema!(Hosts, list(&Self::LIST, HOST, None));

schema!(Emit, {
    let form = super::Form::json_schema(&mut SchemaGenerator::default());
    json_schema!({ "anyOf": [
        { "const": "received", "description": "The formats that the context came in." },
        { "type": "array", "minItems": 1, "items": form },
    ]})
});

schema!(Rules, {
    let level = super::Level::json_schema(&mut SchemaGenerator::default());
    let words = level.get("oneOf").and_then(Value::as_array).unwrap();
    let words: Vec<&Value> = words.iter().map(|word| &word["const"]).collect();
    let rules = Rule::ALL.iter().map(|rule| {
        let (severity, condition) = (rule.severity().name(), rule.condition());
        let schema = json!({
            "enum": words,
            "description": format!("{condition} (severity {severity})"),
        });
        (rule.id().to_string(), schema)
    });
    json_schema!({
        "type": "object",
        "properties": rules.collect::<serde_json::Map<_, _>>(),
        "additionalProperties": false,
    })
});

schema!(Spans, {
    let text = |pattern: &str, description: &str| json!({ "type": "string", "pattern": pattern, "description": description });
    let format = SpanFormat::json_schema(&mut SchemaGenerator::default());
    json_schema!({
        "type": "object",
        "properties": {
            "cluster": text("^[!-~]{1,255}$", "The Envoy cluster of the collector."),
            "format": format,
            "path": text("^/[!-~]{0,254}$", "Where the collector takes spans."),
            "authority": text("^[!-~]{1,255}$", "The collector's host."),
        },
        "additionalProperties": false,
        "anyOf": [{ "maxProperties": 0 }, { "required": ["cluster", "format"] }],
    })
});

// Defaults are written into the schema; nothing else writes settings.

impl<const LEAST: u32, const MOST: u32> Serialize for Within<LEAST, MOST> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u32(self.get())
    }
}

impl Serialize for Confidence {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(share(self.millionths()))
    }
}

impl Serialize for TokenHeaders {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(&self.0)
    }
}

impl Serialize for Keys {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(ToString::to_string))
    }
}

impl Serialize for Emit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        assert_eq!(self.0, None::<Formats>);
        serializer.serialize_str("received")
    }
}

impl Serialize for Spans {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        assert!(self.0.is_none());
        json!({}).serialize(serializer)
    }
}

macro_rules! empty {
    ($name:ident, $empty:expr) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                assert!(self.0.is_empty());
                $empty.serialize(serializer)
            }
        }
    };
}

empty!(CopyHeaders, json!([]));
empty!(Hosts, json!([]));
empty!(Rules, json!({}));

fn one_line(schema: &mut Schema) {
    if let Some(Value::String(text)) = schema.get_mut("description") {
        *text = text.replace('\n', " ");
    }
    transform_subschemas(&mut one_line, schema);
}

/// The schema of the plugin configuration.
pub(super) fn schema() -> Value {
    // Draft 7 is what editors know best.
    let settings = SchemaSettings::draft07().with(|settings| settings.inline_subschemas = true);
    let mut schema = settings.into_generator().into_root_schema_for::<Settings>();
    one_line(&mut schema);
    let mut schema = schema.to_value();
    schema["title"] = json!("b3relay");
    let mut former = schema["properties"]["incoming_context"].clone();
    former["description"] = json!("Former name of `incoming_context`.");
    former["deprecated"] = json!(true);
    schema["properties"]["incoming_b3"] = former;
    schema["not"] = json!({ "required": ["incoming_b3", "incoming_context"] });
    schema
}

#[test]
fn the_schema_in_the_docs_is_that_of_the_types() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/config.schema.json");
    let text = serde_json::to_string_pretty(&schema()).unwrap() + "\n";
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(path, text).unwrap();
    } else {
        let found = std::fs::read_to_string(path).unwrap_or_default();
        assert!(found == text, "docs/config.schema.json is stale: make docs");
    }
}

#[test]
fn every_key_says_what_it_does_for_whom_and_its_default() {
    let schema = schema();
    assert_eq!(schema["additionalProperties"], json!(false));
    for (name, key) in schema["properties"].as_object().unwrap() {
        assert!(key["description"].as_str().is_some(), "{name}");
        assert!(key["x-side"].as_str().is_some(), "{name}");
        let text = json!({ name: key["default"] }).to_string();
        let parsed = super::Config::parse(text.as_bytes());
        assert_eq!(parsed, Ok(super::Config::default()), "{text}");
    }
}

#[test]
fn the_names_in_the_schema_are_those_of_the_code() {
    for name in OF_THE_CONNECTION {
        assert!(headers::is_of_the_connection(name.as_bytes()), "{name}");
    }
    for name in COPIED {
        assert!(copied_by(name).is_some(), "{name}");
    }
}
