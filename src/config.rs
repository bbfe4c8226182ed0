//! The plugin configuration: one table of keys, and what they may hold.
//!
//! Every key is optional. What is not understood is refused by name, so that a
//! typing error cannot switch anything off unseen.

use crate::headers::{self, HeaderPart, NamePattern, Wanted};
use crate::json::Value;
use crate::mesh_hosts::{self, Declared};
use crate::rules::Formats;
use crate::rules::{Rule, Severity};
use crate::store::KEYS_MOST;
use std::fmt;

/// Which way the requests of a listener go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To the application.
    Inbound,
    /// From the application.
    Outbound,
}

impl Direction {
    /// As metrics and log lines call it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

/// What is done about broken rules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Report them.
    #[default]
    Observe,
    /// Report them, and rewrite the headers so that everybody reads the same.
    Repair,
    /// Answer a request that breaks a rule of severity error.
    Enforce,
}

/// What is done with the trace context that a request brings, in whichever form.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Incoming {
    /// It is checked and remembered.
    #[default]
    Trust,
    /// It is passed on, but neither checked nor remembered.
    Ignore,
    /// It is removed.
    Drop,
}

/// Where b3relay says what it found and did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReportHeader {
    /// Nowhere but in metrics and logs.
    #[default]
    Off,
    /// In a header of the request that goes on.
    Request,
    /// In a header of the response.
    Response,
}

/// Whose span a relayed call says it is of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SpanIds {
    /// The one that the application serves the request in.
    #[default]
    Forward,
    /// One of its own, for a callee that takes it over.
    Child,
}

/// Whether the request ID of a call gives way to that of its inbound request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RestoreRequestId {
    /// If Envoy made it up, since the application sent none.
    #[default]
    New,
    /// If Envoy may have made it up: also a UUIDv4 of the application's own.
    AnyUuid,
    /// Never.
    Never,
}

/// What is made of the spans that the application's own tracing puts into
/// `traceparent`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OwnSpans {
    /// They are left where the mesh's tracer reads them, and else passed over.
    #[default]
    Auto,
    /// They are reported: calls are of them.
    Reported,
    /// Nobody reports them: calls are of the span of the inbound request.
    Unreported,
}

/// What a `traceparent` says where B3 leaves the sampling decision open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeferredW3c {
    /// There is none.
    #[default]
    Omit,
    /// Sampled.
    Sampled,
    /// Not sampled.
    NotSampled,
}

impl DeferredW3c {
    /// What to say; `None` for nothing.
    pub fn sampled(self) -> Option<bool> {
        match self {
            Self::Omit => None,
            Self::Sampled => Some(true),
            Self::NotSampled => Some(false),
        }
    }
}

/// What is done with calls to hosts outside the mesh.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Outside {
    /// Nothing is copied onto them.
    #[default]
    Leave,
    /// They get what calls inside get.
    Relay,
    /// What they carry about the trace is removed.
    Strip,
}

/// How calls are attributed that say nothing of the request they are made for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AttributionMode {
    /// Not at all.
    #[default]
    Off,
    /// Where only one request is in flight.
    Exclusive,
    /// By what they have in common with one, and by what the application is known
    /// to do.
    Inferred,
}

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
    /// `copy_headers`, and those of `keys` that are other headers.
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
    pub hosts: Declared,
    /// `attribution`
    pub attribution: AttributionMode,
    /// `confidence`, in millionths.
    pub confidence: u32,
    /// `capacity`
    pub capacity: u32,
    /// `grace_ms`
    pub grace_ms: u64,
    /// `log_lines_per_minute`
    pub log_lines_per_minute: u32,
    /// `rules`: what differs from the table; `None` for a rule that is off.
    pub rules: Vec<(Rule, Option<Severity>)>,
    /// `enforce_status`
    pub enforce_status: u32,
    /// `report_header`
    pub report_header: ReportHeader,
    /// `incoming_context`
    pub incoming: Incoming,
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
        let attribution = match self.attribution {
            AttributionMode::Off => "off",
            AttributionMode::Exclusive => "exclusive",
            AttributionMode::Inferred => "inferred",
        };
        let mut settings = vec![
            ("relay", self.relay.to_string()),
            (
                "copy_headers",
                list(&mut self.wanted.copy.iter().map(pattern)),
            ),
            ("keys", list(&mut self.keys.iter().map(key))),
            ("attribution", attribution.to_string()),
        ];
        if self.attribution == AttributionMode::Inferred {
            let tokens = list(&mut self.wanted.tokens.iter().cloned());
            settings.push(("token_headers", tokens));
        }
        settings
    }

    /// How much a rule matters; `None` if it is off.
    pub fn severity(&self, rule: Rule) -> Option<Severity> {
        match self.rules.iter().find(|(changed, _)| *changed == rule) {
            Some((_, severity)) => *severity,
            None => Some(rule.severity()),
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            mode: Mode::Observe,
            direction: None,
            relay: true,
            generate_request_id: true,
            wanted: Wanted {
                tokens: vec!["authorization".to_string(), "cookie".to_string()],
                ..Wanted::default()
            },
            keys: vec![KeyOf::RequestId, KeyOf::TraceParent, KeyOf::B3],
            emit: None,
            deferred_w3c: DeferredW3c::Omit,
            span_ids: SpanIds::Forward,
            own_spans: OwnSpans::Auto,
            restore_request_id: RestoreRequestId::New,
            copy_to_attributed: false,
            outside: Outside::Leave,
            hosts: Declared::default(),
            attribution: AttributionMode::Exclusive,
            confidence: 995_000,
            capacity: 4096,
            grace_ms: 1000,
            log_lines_per_minute: 60,
            rules: Vec::new(),
            enforce_status: 400,
            report_header: ReportHeader::Off,
            incoming: Incoming::Trust,
        }
    }
}

/// Which of a pod's two filters reads a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// That of the requests which the application serves.
    Inbound,
    /// That of the calls which it makes.
    Outbound,
    /// Both, and they must be told the same.
    Same,
    /// Both, each for its own requests.
    Each,
}

impl Side {
    /// As the table in the README says it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
            Self::Same => "both, the same",
            Self::Each => "either",
        }
    }
}

/// A configuration key.
#[derive(Debug)]
pub struct Key {
    /// Its name.
    pub name: &'static str,
    /// Whom it is for.
    pub side: Side,
    /// Its default, as JSON.
    pub default: &'static str,
    /// What it may hold, in words.
    pub allowed: &'static str,
    /// What it does.
    pub meaning: &'static str,
    set: fn(&mut Config, &Value) -> Option<()>,
}

const HOSTS_ALLOWED: &str = "a list of at most 64 hosts, without ports: names, ends of names that begin with `*.`, addresses and ranges of addresses (`10.0.0.0/8`)";

/// Names that keys had before.
const FORMER: &[(&str, &str)] = &[("incoming_b3", "incoming_context")];

/// Every key. The table in the README is checked against this one.
pub const KEYS: &[Key] = &[
    Key {
        name: "mode",
        side: Side::Each,
        default: "\"observe\"",
        allowed: "\"observe\", \"repair\" or \"enforce\"",
        meaning: "What to do about a broken rule: report it; rewrite the B3 headers so that every implementation reads the same; or answer requests that break a rule of severity error.",
        set: |config, value| {
            config.mode = match value.as_str()? {
                "observe" => Mode::Observe,
                "repair" => Mode::Repair,
                "enforce" => Mode::Enforce,
                _ => return None,
            };
            Some(())
        },
    },
    Key {
        name: "direction",
        side: Side::Each,
        default: "\"auto\"",
        allowed: "\"auto\", \"inbound\" or \"outbound\"",
        meaning: "Which way the requests of the listener go. `auto` asks the listener (`traffic_direction`), which is right in Istio's sidecars; set it where a listener has none.",
        set: |config, value| {
            config.direction = match value.as_str()? {
                "auto" => None,
                "inbound" => Some(Direction::Inbound),
                "outbound" => Some(Direction::Outbound),
                _ => return None,
            };
            Some(())
        },
    },
    Key {
        name: "relay",
        side: Side::Same,
        default: "true",
        allowed: "true or false",
        meaning: "Remember the context of inbound requests and copy it onto the calls made for them. `false` only checks.",
        set: |config, value| {
            config.relay = value.as_bool()?;
            Some(())
        },
    },
    Key {
        name: "generate_request_id",
        side: Side::Inbound,
        default: "true",
        allowed: "true or false",
        meaning: "Give an inbound request without an `x-request-id`, or with an empty one, a UUIDv4.",
        set: |config, value| {
            config.generate_request_id = value.as_bool()?;
            Some(())
        },
    },
    Key {
        name: "copy_headers",
        side: Side::Same,
        default: "[]",
        allowed: "a list of at most 32 header names, or beginnings of names followed by `*`; none that begins with a colon, none that belongs to a connection or frames a message (host, connection, te, upgrade, content-length, ...), and none that is copied without being listed",
        meaning: "Headers to copy besides the seven of Istio's guide, such as `baggage`, `end-user` or `x-tenant-*`. A call that carries one already keeps it.",
        set: |config, value| {
            let names = value.as_array()?;
            if names.len() > 32 {
                return None;
            }
            for name in names {
                let pattern = pattern(name.as_str()?)?;
                if matches!(&pattern, NamePattern::Name(name) if copied_by(name).is_some()) {
                    return None;
                }
                if !config.wanted.copy.contains(&pattern) {
                    config.wanted.copy.push(pattern);
                }
            }
            Some(())
        },
    },
    Key {
        name: "copy_to_attributed",
        side: Side::Outbound,
        default: "false",
        allowed: "true or false",
        meaning: "Copy the headers of `copy_headers` onto calls too whose request was found by `attribution`. Those say nothing of the request themselves: a wrong one would hand one user's headers to another's call. See [docs/trust.md](docs/trust.md).",
        set: |config, value| {
            config.copy_to_attributed = value.as_bool()?;
            Some(())
        },
    },
    Key {
        name: "restore_request_id",
        side: Side::Outbound,
        default: "\"new\"",
        allowed: "\"new\", \"any_uuid\" or \"never\"",
        meaning: "Which request ID of a call gives way to that of its inbound request, so that access logs join: one that Envoy made up for the call; any UUIDv4 in lower case, also one that the application has set itself; or none.",
        set: |config, value| {
            config.restore_request_id = match value.as_str()? {
                "new" => RestoreRequestId::New,
                "any_uuid" => RestoreRequestId::AnyUuid,
                "never" => RestoreRequestId::Never,
                _ => return None,
            };
            Some(())
        },
    },
    Key {
        name: "keys",
        side: Side::Same,
        default: "[\"x-request-id\", \"traceparent\", \"b3\"]",
        allowed: "a list of 1 to 4 of \"x-request-id\", \"traceparent\", \"b3\", names of other headers, and parts of other headers such as \"x-amzn-trace-id:Root\", each once",
        meaning: "What a call is recognised by, best first. `traceparent` and `b3` (in either form) stand for the trace ID in them: an application that carries on a `traceparent`, or just a part of B3, is recognised by it. A name of your own, such as `x-correlation-id`, stands for its value, up to 255 bytes; with a colon and the name of a parameter, `x-amzn-trace-id:Root`, for the value of that one (`Root=...`, among parameters with `;` or `,` between them; in the first 8 KiB). UUIDs in an `x-request-id` are compared without regard to case, and an ID that it says twice counts once.",
        set: |config, value| {
            let names = value.as_array()?;
            config.keys.clear();
            for name in names {
                let key = match name.as_str()?.to_ascii_lowercase().as_str() {
                    headers::REQUEST_ID => KeyOf::RequestId,
                    headers::TRACEPARENT => KeyOf::TraceParent,
                    headers::B3 => KeyOf::B3,
                    name => {
                        config.wanted.keys.push(named(name)?);
                        KeyOf::Header(config.wanted.keys.len() - 1)
                    }
                };
                config.keys.push(key);
            }
            let again = |(n, key): (usize, &KeyOf)| {
                let name = |key: &KeyOf| match key {
                    KeyOf::Header(index) => config.wanted.keys.get(*index),
                    _ => None,
                };
                let before = config.keys.iter().take(n);
                before
                    .into_iter()
                    .any(|other| other == key || (name(key).is_some() && name(other) == name(key)))
            };
            let repeats = config.keys.iter().enumerate().any(again);
            ((1..=KEYS_MOST).contains(&config.keys.len()) && !repeats).then_some(())
        },
    },
    Key {
        name: "emit",
        side: Side::Each,
        default: "\"received\"",
        allowed: "\"received\", or a list of \"b3multi\", \"b3\" and \"w3c\"",
        meaning: "The formats in which a context is copied: those that it came in, or those of the list. With a list, a request that carries a context of its own gets the formats it lacks, inbound ones too: `[\"b3multi\", \"w3c\"]` gives the application a `traceparent` made from B3.",
        set: |config, value| {
            config.emit = match value {
                Value::String(text) if text == "received" => None,
                _ => {
                    let mut formats = Formats::default();
                    for form in value.as_array()? {
                        match form.as_str()? {
                            "b3multi" => formats.multi = true,
                            "b3" => formats.single = true,
                            "w3c" => formats.w3c = true,
                            _ => return None,
                        }
                    }
                    Some(formats).filter(|formats| !formats.is_empty())?.into()
                }
            };
            Some(())
        },
    },
    Key {
        name: "span_ids",
        side: Side::Outbound,
        default: "\"forward\"",
        allowed: "\"forward\" or \"child\"",
        meaning: "The span that a call says it is of: the one that the application serves the request in, or a new child of it. `child` is for callees that share span IDs, which Istio's sidecars do not: see [docs/formats.md](docs/formats.md).",
        set: |config, value| {
            config.span_ids = match value.as_str()? {
                "forward" => SpanIds::Forward,
                "child" => SpanIds::Child,
                _ => return None,
            };
            Some(())
        },
    },
    Key {
        name: "deferred_w3c",
        side: Side::Each,
        default: "\"omit\"",
        allowed: "\"omit\", \"sampled\" or \"not_sampled\"",
        meaning: "What a `traceparent` made from B3 says where B3 leaves the sampling decision open, which W3C cannot: it is not written; or it says sampled, or not sampled.",
        set: |config, value| {
            config.deferred_w3c = match value.as_str()? {
                "omit" => DeferredW3c::Omit,
                "sampled" => DeferredW3c::Sampled,
                "not_sampled" => DeferredW3c::NotSampled,
                _ => return None,
            };
            Some(())
        },
    },
    Key {
        name: "own_spans",
        side: Side::Outbound,
        default: "\"auto\"",
        allowed: "\"auto\", \"reported\" or \"unreported\"",
        meaning: "Whether anybody reports the spans that the application's own tracing (an OpenTelemetry SDK, .NET's HttpClient) puts into the `traceparent` of its calls. `auto` leaves such a call as it is where the sidecars trace by W3C, and gives it the sidecar's span in B3 where they trace by B3 alone; `reported` gives it the application's span in B3 there; `unreported` replaces the application's span by the sidecar's. See [docs/formats.md](docs/formats.md).",
        set: |config, value| {
            config.own_spans = match value.as_str()? {
                "auto" => OwnSpans::Auto,
                "reported" => OwnSpans::Reported,
                "unreported" => OwnSpans::Unreported,
                _ => return None,
            };
            Some(())
        },
    },
    Key {
        name: "outside",
        side: Side::Outbound,
        default: "\"leave\"",
        allowed: "\"leave\", \"relay\" or \"strip\"",
        meaning: "What to do with calls to hosts outside the mesh: copy nothing onto them; treat them as any other; or remove what they carry about the trace (all headers of the guide but `x-request-id`, `traceparent`, `tracestate`, the copy list, and the rest of what `incoming_context` removes). What is outside, `mesh_hosts`, `outside_hosts` and Istio's cluster tell: [docs/formats.md](docs/formats.md).",
        set: |config, value| {
            config.outside = match value.as_str()? {
                "leave" => Outside::Leave,
                "relay" => Outside::Relay,
                "strip" => Outside::Strip,
                _ => return None,
            };
            Some(())
        },
    },
    Key {
        name: "mesh_hosts",
        side: Side::Outbound,
        default: "[]",
        allowed: HOSTS_ALLOWED,
        meaning: "Further hosts that are inside the mesh, such as `*.internal.example.com` (services that a ServiceEntry adds) or `10.0.0.0/8` (calls by the address of a pod). An end begins with `*.`, so that nobody can buy a name that matches it.",
        set: |config, value| {
            config.hosts.inside = hosts(value)?;
            Some(())
        },
    },
    Key {
        name: "outside_hosts",
        side: Side::Outbound,
        default: "[]",
        allowed: HOSTS_ALLOWED,
        meaning: "Hosts that are outside the mesh whatever else says, `mesh_hosts` included: a service of type ExternalName, say.",
        set: |config, value| {
            config.hosts.outside = hosts(value)?;
            Some(())
        },
    },
    Key {
        name: "egress_gateways",
        side: Side::Outbound,
        default: "[]",
        allowed: HOSTS_ALLOWED,
        meaning: "Services of the mesh that calls leave it through, such as `proxy.edge.svc.cluster.local`. One with `egress` in its name (`istio-egressgateway`) is known without being listed.",
        set: |config, value| {
            config.hosts.egress = hosts(value)?;
            Some(())
        },
    },
    Key {
        name: "attribution",
        side: Side::Same,
        default: "\"exclusive\"",
        allowed: "\"off\", \"exclusive\" or \"inferred\"",
        meaning: "What to do with calls that carry none of `keys`: leave them alone; copy the context of the only request in flight; or also judge by identifiers that a call shares with one request, and by what requests of each route were seen to do. Inbound and outbound filters of a pod must say the same. See [docs/attribution.md](docs/attribution.md).",
        set: |config, value| {
            config.attribution = match value.as_str()? {
                "off" => AttributionMode::Off,
                "exclusive" => AttributionMode::Exclusive,
                "inferred" => AttributionMode::Inferred,
                _ => return None,
            };
            Some(())
        },
    },
    Key {
        name: "confidence",
        side: Side::Outbound,
        default: "0.995",
        allowed: "a number from 0.9 to 0.9999",
        meaning: "With `attribution` `inferred`: the share of calls that are not to be given to a wrong request. The higher, the more are left alone.",
        set: |config, value| {
            config.confidence = value
                .as_millionths()
                .filter(|n| (900_000..=999_900).contains(n))?;
            Some(())
        },
    },
    Key {
        name: "token_headers",
        side: Side::Same,
        default: "[\"authorization\", \"cookie\"]",
        allowed: "a list of at most 16 header names",
        meaning: "With `attribution` `inferred`: headers whose values may identify a request, besides the parts of its path and of its query. Only hashes of them are kept, and never leave the pod.",
        set: |config, value| {
            let names = value.as_array()?;
            config.wanted.tokens.clear();
            for name in names {
                config.wanted.tokens.push(header_name(name.as_str()?)?);
            }
            (names.len() <= 16).then_some(())
        },
    },
    Key {
        name: "capacity",
        side: Side::Same,
        default: "4096",
        allowed: "a whole number from 64 to 65536",
        meaning: "Requests in flight in one pod for which there is room for sure, with 1 KiB for each on average: an entry has about 150 bytes for each key, and what is copied besides the context is stored once. Beyond that the oldest copied headers are forgotten, and then the oldest requests; both are counted. With 4096 there is room for 495 requests with 8 KiB of copied headers each, and for the contexts of 4096 all the same ([docs/accuracy-keyed.md](docs/accuracy-keyed.md#what-capacity-means)). Each worker of Envoy that receives requests has room for so many, twice: in its own memory, and in that shared with the others.",
        set: |config, value| {
            config.capacity = within(value, 64, 65536)?;
            Some(())
        },
    },
    Key {
        name: "grace_ms",
        side: Side::Same,
        default: "1000",
        allowed: "a whole number from 0 to 60000",
        meaning: "Milliseconds after the response during which calls still get the request's context. The inbound filter's counts; of the outbound one it has no effect.",
        set: |config, value| {
            config.grace_ms = within(value, 0, 60000)?.into();
            Some(())
        },
    },
    Key {
        name: "log_lines_per_minute",
        side: Side::Each,
        default: "60",
        allowed: "a whole number from 0 to 6000",
        meaning: "Log lines about broken rules, for each worker; what is left out is counted in the next line. Metrics count everything.",
        set: |config, value| {
            config.log_lines_per_minute = within(value, 0, 6000)?;
            Some(())
        },
    },
    Key {
        name: "rules",
        side: Side::Each,
        default: "{}",
        allowed: "an object of rule IDs, each with \"off\", \"info\", \"warn\" or \"error\"",
        meaning: "Rules to switch off, raise or lower, such as `{\"L04\": \"off\"}`.",
        set: |config, value| {
            for (id, severity) in value.as_object()? {
                let rule = Rule::ALL.iter().find(|rule| rule.id() == id)?;
                if config.rules.iter().any(|(known, _)| known == rule) {
                    return None;
                }
                let severity = match severity.as_str()? {
                    "off" => None,
                    "info" => Some(Severity::Info),
                    "warn" => Some(Severity::Warn),
                    "error" => Some(Severity::Error),
                    _ => return None,
                };
                config.rules.push((*rule, severity));
            }
            Some(())
        },
    },
    Key {
        name: "enforce_status",
        side: Side::Each,
        default: "400",
        allowed: "a whole number from 400 to 599",
        meaning: "The status of the answers of mode `enforce`. Envoy closes an HTTP/1.1 connection after a 400, and keeps it after others.",
        set: |config, value| {
            config.enforce_status = within(value, 400, 599)?;
            Some(())
        },
    },
    Key {
        name: "report_header",
        side: Side::Each,
        default: "\"off\"",
        allowed: "\"off\", \"request\" or \"response\"",
        meaning: "Say in a header `x-b3relay`, of the request that goes on or of the response, what was found and done: for trying it with curl.",
        set: |config, value| {
            config.report_header = match value.as_str()? {
                "off" => ReportHeader::Off,
                "request" => ReportHeader::Request,
                "response" => ReportHeader::Response,
                _ => return None,
            };
            Some(())
        },
    },
    Key {
        name: "incoming_context",
        side: Side::Inbound,
        default: "\"trust\"",
        allowed: "\"trust\", \"ignore\" or \"drop\"",
        meaning: "What to do with the trace context that requests bring, in all its formats (B3, W3C and those of other tracers, and what asks an Envoy for a trace), calls of the application excepted: use it; pass it on unread; or remove it. For edges without a tracer, where a client must not force sampling or join traces: see [docs/trust.md](docs/trust.md) first. Its former name, `incoming_b3`, will do as well.",
        set: |config, value| {
            config.incoming = match value.as_str()? {
                "trust" => Incoming::Trust,
                "ignore" => Incoming::Ignore,
                "drop" => Incoming::Drop,
                _ => return None,
            };
            Some(())
        },
    },
];

fn hosts(value: &Value) -> Option<Vec<mesh_hosts::Pattern>> {
    let hosts = value.as_array()?.iter();
    let hosts: Option<Vec<_>> = hosts
        .map(|host| mesh_hosts::Pattern::parse(host.as_str()?))
        .collect();
    hosts.filter(|hosts| hosts.len() <= 64)
}

fn within(value: &Value, least: u32, most: u32) -> Option<u32> {
    let number = u32::try_from(value.as_u64()?).ok()?;
    (least..=most).contains(&number).then_some(number)
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

/// A header that is a key, or a part of one that is.
fn named(text: &str) -> Option<HeaderPart> {
    let (header, parameter) = match text.split_once(':') {
        Some((header, parameter)) => (header, Some(parameter)),
        None => (text, None),
    };
    let header = header_name(header).filter(|name| !is_ours(name))?;
    let parameter = match parameter {
        // A trace ID has no parameters.
        Some(_) if header == headers::TRACEPARENT => return None,
        Some(parameter) => Some(token(parameter)?),
        None => None,
    };
    Some(HeaderPart { header, parameter })
}

/// A header that is copied, or read, whatever the configuration says.
fn is_ours(name: &str) -> bool {
    name == headers::REQUEST_ID || name == headers::B3 || name.starts_with("x-b3-")
}

/// What copies a header that need not be listed.
fn copied_by(name: &str) -> Option<&'static str> {
    Some(match name {
        headers::REQUEST_ID => "which a call gets back that came without it (`keys`)",
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

/// Why a value is refused, where what is allowed does not say it.
fn reason(key: &str, value: &Value) -> Option<String> {
    let mut items = value.as_array()?.iter().filter_map(Value::as_str);
    match key {
        "copy_headers" => items.find_map(|item| {
            let name = item.to_ascii_lowercase();
            let by = copied_by(&name)?;
            Some(format!("`{name}` is copied without being listed: {by}"))
        }),
        "mesh_hosts" | "outside_hosts" | "egress_gateways" => {
            let bad = items.find(|item| mesh_hosts::Pattern::parse(item).is_none())?;
            let why = match bad.starts_with('*') && !bad.starts_with("*.") {
                true => "would match names of others, too: write `*.` and a name",
                false => "is none of these",
            };
            Some(format!("`{}` {why}", cut(bad)))
        }
        _ => None,
    }
}

/// A name of the copy list, or the beginning of some.
fn pattern(text: &str) -> Option<NamePattern> {
    match text.strip_suffix('*') {
        Some(prefix) => header_name(prefix).map(NamePattern::Prefix),
        None => header_name(text).map(NamePattern::Name),
    }
}

/// Why a configuration was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError(String);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ConfigError {}

impl Config {
    /// Reads the plugin configuration, a JSON object. Nothing, or white space,
    /// is the default.
    ///
    /// # Errors
    /// Names the key, what was found and what is allowed; or where the JSON is
    /// broken.
    ///
    /// ```
    /// # use b3relay::config::Config;
    /// let error = Config::parse(br#"{"capacity": 7}"#).unwrap_err();
    /// assert_eq!(
    ///     error.to_string(),
    ///     "configuration key `capacity`: found 7, allowed: a whole number from 64 to 65536"
    /// );
    /// ```
    pub fn parse(bytes: &[u8]) -> Result<Self, ConfigError> {
        let mut config = Self::default();
        if bytes.trim_ascii().is_empty() {
            return Ok(config);
        }
        let value: Value = serde_json::from_slice(bytes)
            .map_err(|error| ConfigError(format!("configuration: {error}")))?;
        let Some(entries) = value.as_object() else {
            return Err(ConfigError(format!(
                "configuration: found {}, allowed: a JSON object such as {{\"mode\": \"observe\"}}",
                cut(&value.to_string())
            )));
        };
        let mut seen: Vec<&str> = Vec::new();
        for (name, value) in entries {
            let now = FORMER.iter().find(|(former, _)| former == name);
            let now = now.map_or(name.as_str(), |(_, now)| *now);
            let Some(key) = KEYS.iter().find(|key| key.name == now) else {
                let mut text = format!(
                    "configuration key `{}` is not known; known keys are",
                    cut(name)
                );
                for (n, key) in KEYS.iter().enumerate() {
                    text.push_str(if n == 0 { " " } else { ", " });
                    text.push_str(key.name);
                }
                return Err(ConfigError(text));
            };
            if seen.contains(&key.name) {
                let also = match FORMER.iter().find(|(_, now)| *now == key.name) {
                    Some((former, _)) => format!(" (`{former}` is its former name)"),
                    None => String::new(),
                };
                return Err(ConfigError(format!(
                    "configuration key `{}`: found twice, allowed: once{also}",
                    key.name
                )));
            }
            seen.push(key.name);
            (key.set)(&mut config, value).ok_or_else(|| {
                let reason = reason(key.name, value).map(|reason| format!("; {reason}"));
                ConfigError(format!(
                    "configuration key `{name}`: found {}, allowed: {}{}",
                    cut(&value.to_string()),
                    key.allowed,
                    reason.unwrap_or_default()
                ))
            })?;
        }
        Ok(config)
    }
}

/// Enough of a text to recognise it by, without what could forge a log line.
fn cut(text: &str) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn error(text: &str) -> String {
        Config::parse(text.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn nothing_is_the_default() {
        for text in ["", " \n", "{}"] {
            assert_eq!(Config::parse(text.as_bytes()), Ok(Config::default()));
        }
    }

    #[test]
    fn the_tables_defaults_are_the_defaults() {
        for key in KEYS {
            let text = format!("{{\"{}\": {}}}", key.name, key.default);
            assert_eq!(
                Config::parse(text.as_bytes()),
                Ok(Config::default()),
                "{text}"
            );
        }
    }

    #[test]
    fn every_key_does_something() {
        let others = [
            ("mode", "\"repair\""),
            ("direction", "\"inbound\""),
            ("relay", "false"),
            ("generate_request_id", "false"),
            ("copy_headers", "[\"Baggage\"]"),
            ("copy_to_attributed", "true"),
            ("restore_request_id", "\"never\""),
            ("keys", "[\"x-correlation-id\", \"x-request-id\"]"),
            ("emit", "[\"b3\"]"),
            ("span_ids", "\"child\""),
            ("deferred_w3c", "\"sampled\""),
            ("own_spans", "\"unreported\""),
            ("outside", "\"strip\""),
            ("mesh_hosts", "[\"*.example.com\"]"),
            ("outside_hosts", "[\"10.0.0.0/8\"]"),
            ("egress_gateways", "[\"proxy\"]"),
            ("attribution", "\"inferred\""),
            ("confidence", "0.99"),
            ("token_headers", "[\"x-user\"]"),
            ("capacity", "64"),
            ("grace_ms", "0"),
            ("log_lines_per_minute", "0"),
            ("rules", "{\"L04\": \"off\"}"),
            ("enforce_status", "422"),
            ("report_header", "\"response\""),
            ("incoming_context", "\"drop\""),
        ];
        assert_eq!(others.len(), KEYS.len());
        for (name, value) in others {
            let text = format!("{{\"{name}\": {value}}}");
            assert_ne!(
                Config::parse(text.as_bytes()).unwrap(),
                Config::default(),
                "{text}"
            );
        }
    }

    #[test]
    fn errors_name_the_key_what_was_found_and_what_is_allowed() {
        assert_eq!(
            error(r#"{"mod": "repair"}"#),
            "configuration key `mod` is not known; known keys are mode, direction, relay, \
             generate_request_id, copy_headers, copy_to_attributed, restore_request_id, keys, emit, span_ids, \
             deferred_w3c, own_spans, outside, mesh_hosts, outside_hosts, egress_gateways, attribution, \
             confidence, token_headers, capacity, grace_ms, log_lines_per_minute, rules, enforce_status, report_header, incoming_context"
        );
        assert_eq!(
            error(r#"{"mode": "watch"}"#),
            "configuration key `mode`: found \"watch\", allowed: \"observe\", \"repair\" or \"enforce\""
        );
        assert_eq!(
            error(r#"{"relay": "yes"}"#),
            "configuration key `relay`: found \"yes\", allowed: true or false"
        );
        for bad in [
            "-1",
            "63",
            "65537",
            "1e99",
            "64.5",
            "null",
            "\"64\"",
            "4294967360",
        ] {
            let text = error(&format!("{{\"capacity\": {bad}}}"));
            assert!(
                text.starts_with("configuration key `capacity`: found "),
                "{text}"
            );
        }
        for bad in ["0.89", "0.99995", "1", "\"0.99\"", "-0.99"] {
            let text = error(&format!("{{\"confidence\": {bad}}}"));
            assert!(
                text.ends_with(", allowed: a number from 0.9 to 0.9999"),
                "{text}"
            );
        }
        for bad in [
            "[\"\"]",
            "[\":path\"]",
            "[\"*\"]",
            "[\"a*b\"]",
            "[\"a b\"]",
            "[1]",
            "\"a\"",
            "[\"host\"]",
            "[\"Content-Length\"]",
            "[\"te\"]",
        ] {
            let text = error(&format!("{{\"copy_headers\": {bad}}}"));
            assert!(
                text.starts_with("configuration key `copy_headers`: found "),
                "{text}"
            );
        }
    }

    /// What is copied anyway would be listed in vain.
    #[test]
    fn headers_that_are_copied_anyway_are_refused_with_the_reason() {
        for (name, reason) in [
            (
                "x-request-id",
                "which a call gets back that came without it (`keys`)",
            ),
            ("B3", "a form of the context (`emit`)"),
            ("x-b3-traceid", "a part of the context (`emit`)"),
            ("x-b3-spanid", "a part of the context (`emit`)"),
            ("x-b3-parentspanid", "a part of the context (`emit`)"),
            ("X-B3-Sampled", "a part of the context (`emit`)"),
            ("x-b3-flags", "a part of the context (`emit`)"),
            ("traceparent", "a form of the context (`emit`)"),
            ("tracestate", "a form of the context (`emit`)"),
            ("x-ot-span-context", "which is copied as it is"),
        ] {
            let text = error(&format!("{{\"copy_headers\": [\"end-user\", \"{name}\"]}}"));
            let name = name.to_ascii_lowercase();
            assert!(
                text.starts_with("configuration key `copy_headers`: found [\"end-user\"")
                    && text.ends_with(&format!(
                        "; `{name}` is copied without being listed: {reason}"
                    )),
                "{text}"
            );
        }
        for good in ["x-b3-*", "x-b3-custom", "baggage", "grpc-trace-bin", "b3*"] {
            let text = format!("{{\"copy_headers\": [\"{good}\"]}}");
            assert!(Config::parse(text.as_bytes()).is_ok(), "{good}");
        }
    }

    #[test]
    fn hosts_are_names_ends_addresses_and_ranges() {
        let config = |key: &str, hosts: &str| {
            Config::parse(format!("{{\"{key}\": [\"{hosts}\"]}}").as_bytes())
        };
        for key in ["mesh_hosts", "outside_hosts", "egress_gateways"] {
            for good in [
                "db",
                "DB.Example.com.",
                "*.example.com",
                "_dns.example.com",
                "10.0.0.7",
                "fd00::7",
                "[fd00::7]",
                "10.0.0.0/8",
                "0.0.0.0/0",
                "fd00::/8",
                "::ffff:10.0.0.0/104",
            ] {
                assert!(config(key, good).is_ok(), "{key}: {good}");
            }
            for bad in [
                "",
                "*",
                "*.",
                ".",
                "a..b",
                "a:80",
                "a/b",
                "10.0.0.0/33",
                "10.0.0.0/+8",
                "10.0.0.0/",
                "fd00::/129",
                "::ffff:10.0.0.0/8",
                "10.0/8",
                "[fd00::7",
                "[fd00::7]:80",
                "2130706433",
                "0x7f000001",
                "127.1",
                "a.*.b",
                "https://a",
                "a b",
                "\u{e9}",
            ] {
                let text = config(key, bad).unwrap_err().to_string();
                assert!(
                    text.starts_with(&format!("configuration key `{key}`: found "))
                        && text.ends_with(" is none of these")
                        || bad == "*" && text.ends_with(": write `*.` and a name"),
                    "{text}"
                );
            }
            let text = config(key, "*example.com").unwrap_err().to_string();
            assert!(
                text.ends_with(
                    "; `*example.com` would match names of others, too: write `*.` and a name"
                ),
                "{text}"
            );
            let many = vec!["a"; 65].join("\", \"");
            assert!(config(key, &many).is_err());
        }
    }

    #[test]
    fn a_former_name_of_a_key_will_do() {
        let parse = |text: &str| Config::parse(text.as_bytes());
        for value in ["trust", "ignore", "drop"] {
            assert_eq!(
                parse(&format!("{{\"incoming_b3\": \"{value}\"}}")),
                parse(&format!("{{\"incoming_context\": \"{value}\"}}"))
            );
        }
        for both in [
            r#"{"incoming_b3": "drop", "incoming_context": "drop"}"#,
            r#"{"incoming_context": "trust", "incoming_b3": "drop"}"#,
        ] {
            assert_eq!(
                error(both),
                "configuration key `incoming_context`: found twice, allowed: once \
                 (`incoming_b3` is its former name)"
            );
        }
        assert_eq!(
            error(r#"{"incoming_b3": "no"}"#),
            "configuration key `incoming_b3`: found \"no\", allowed: \"trust\", \"ignore\" or \"drop\""
        );
    }

    #[test]
    fn a_key_may_be_a_part_of_a_header() {
        let keys = |text: &str| Config::parse(format!("{{\"keys\": {text}}}").as_bytes());
        let config =
            keys(r#"["X-Amzn-Trace-Id:Root", "b3", "x-amzn-trace-id", "x-amzn-trace-id:self"]"#)
                .unwrap();
        let named = |parameter: Option<&str>| HeaderPart {
            header: "x-amzn-trace-id".to_string(),
            parameter: parameter.map(str::to_string),
        };
        assert_eq!(
            config.wanted.keys,
            [named(Some("root")), named(None), named(Some("self"))]
        );
        let by = [
            KeyOf::Header(0),
            KeyOf::B3,
            KeyOf::Header(1),
            KeyOf::Header(2),
        ];
        assert_eq!(config.keys, by);
        for bad in [
            r#"["x:root", "X:Root"]"#,
            r#"["x:"]"#,
            r#"[":root"]"#,
            r#"[":path:root"]"#,
            r#"["x:a b"]"#,
            r#"["x:a:b"]"#,
            r#"["x:a=b"]"#,
            r#"["x:a;b"]"#,
            r#"["x-request-id:root"]"#,
            r#"["traceparent:root"]"#,
            r#"["b3:root"]"#,
            r#"["x-b3-traceid:root"]"#,
            r#"["host:root"]"#,
        ] {
            let text = keys(bad).unwrap_err().to_string();
            assert!(
                text.starts_with("configuration key `keys`: found "),
                "{text}"
            );
            assert!(text.contains("x-amzn-trace-id:Root"), "{text}");
        }
    }

    #[test]
    fn errors_cannot_forge_log_lines() {
        for text in [
            r#"{"\u001b[31m\n\u009b": 1}"#,
            r#"{"mode": "\u007f\u009b\n"}"#,
        ] {
            let error = error(text);
            assert!(!error.chars().any(char::is_control), "{error:?}");
        }
        let long = format!("{{\"{}\": 1}}", "x".repeat(1000));
        assert!(error(&long).contains(&("x".repeat(80) + "…` is not known")));
    }

    #[test]
    fn rules_are_changed_by_their_id() {
        let config = Config::parse(br#"{"rules": {"L04": "off", "S06": "error"}}"#).unwrap();
        assert_eq!(config.severity(Rule::L04), None);
        assert_eq!(config.severity(Rule::S06), Some(Severity::Error));
        assert_eq!(config.severity(Rule::L01), Some(Severity::Error));
        for bad in [
            "{\"L99\": \"off\"}",
            "{\"L04\": \"of\"}",
            "[]",
            "{\"L04\": false}",
        ] {
            let text = error(&format!("{{\"rules\": {bad}}}"));
            assert!(
                text.starts_with("configuration key `rules`: found "),
                "{text}"
            );
        }
    }

    #[test]
    fn repeated_keys_are_refused() {
        assert_eq!(
            error(r#"{"relay": true, "relay": false}"#),
            "configuration key `relay`: found twice, allowed: once"
        );
    }

    #[test]
    fn broken_json_is_refused_with_its_place() {
        assert_eq!(
            error("{\"relay\": tru}"),
            "configuration: expected ident at line 1 column 14"
        );
        assert_eq!(
            error("[1]"),
            "configuration: found [1], allowed: a JSON object such as {\"mode\": \"observe\"}"
        );
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let _ = Config::parse(&bytes);
        }
    }
}
