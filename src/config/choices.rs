//! Keys that hold one word of several.
//!
//! The documentation of a variant is that of the word: `docs/config.schema.json` has it.

#[cfg(test)]
use schemars::JsonSchema;
use serde::Deserialize;
#[cfg(test)]
use serde::Serialize;

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

/// An enum whose variants are the words of a key.
macro_rules! words {
    ($($(#[$attribute:meta])* $name:ident { $($variants:tt)* })*) => {
        $(
            $(#[$attribute])*
            #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
            #[cfg_attr(test, derive(JsonSchema, Serialize))]
            #[serde(rename_all = "snake_case")]
            pub enum $name { $($variants)* }
        )*
    };
}

words! {
    /// Where the direction of a listener is taken from.
    DirectionOf {
        /// The listener says it.
        #[default]
        Auto,
        /// To the application.
        Inbound,
        /// From the application.
        Outbound,
    }

    /// What is done about broken rules.
    Mode {
        /// Report them.
        #[default]
        Observe,
        /// Report them, and rewrite the headers so that everybody reads the same.
        Repair,
        /// Answer a request that breaks a rule of severity error.
        Enforce,
    }

    /// What is done with the trace context that a request brings, in whichever form.
    Incoming {
        /// It is checked and remembered.
        #[default]
        Trust,
        /// It is passed on, but neither checked nor remembered.
        Ignore,
        /// It is removed.
        Drop,
    }

    /// Where b3relay says what it found and did.
    ReportHeader {
        /// Nowhere but in metrics and logs.
        #[default]
        Off,
        /// In a header of the request that goes on.
        Request,
        /// In a header of the response.
        Response,
    }

    /// Whose span a relayed call says it is of.
    SpanIds {
        /// The one that the application serves the request in.
        #[default]
        Forward,
        /// One of its own, for a callee that takes it over.
        Child,
    }

    /// Whether the request ID of a call gives way to that of its inbound request.
    RestoreRequestId {
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
    OwnSpans {
        /// They are left where the mesh's tracer reads them, and else passed over.
        #[default]
        Auto,
        /// They are reported: calls are of them.
        Reported,
        /// Nobody reports them: calls are of the span of the inbound request.
        Unreported,
    }

    /// What a `traceparent` says where B3 leaves the sampling decision open.
    DeferredW3c {
        /// There is none.
        #[default]
        Omit,
        /// Sampled.
        Sampled,
        /// Not sampled.
        NotSampled,
    }

    /// What is done with calls to hosts outside the mesh.
    Outside {
        /// Nothing is copied onto them.
        #[default]
        Leave,
        /// They get what calls inside get.
        Relay,
        /// What they carry about the trace is removed.
        Strip,
    }

    /// How calls are attributed that say nothing of the request they are made for.
    AttributionMode {
        /// Not at all.
        Off,
        /// Where only one request is in flight.
        #[default]
        Exclusive,
        /// By what they have in common with one, and by what the application is known
        /// to do.
        Inferred,
    }

    /// What a rule counts as.
    Level {
        /// It is not checked.
        Off,
        /// Counted, not logged.
        #[default]
        Info,
        /// Counted and logged.
        Warn,
        /// Counted and logged; mode `enforce` answers the request.
        Error,
    }

    /// A format of spans.
    SpanFormat {
        /// Zipkin v2, JSON.
        #[default]
        Zipkin,
        /// OTLP over HTTP, protobuf.
        Otlp,
    }

    /// A form that a trace context is written in.
    Form {
        /// The `x-b3-*` headers.
        #[default]
        #[serde(rename = "b3multi")]
        Multi,
        /// The single header `b3`.
        #[serde(rename = "b3")]
        Single,
        /// `traceparent`.
        W3c,
    }
}

impl From<DirectionOf> for Option<Direction> {
    fn from(setting: DirectionOf) -> Self {
        match setting {
            DirectionOf::Auto => None,
            DirectionOf::Inbound => Some(Direction::Inbound),
            DirectionOf::Outbound => Some(Direction::Outbound),
        }
    }
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

impl AttributionMode {
    /// As the configuration has it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Exclusive => "exclusive",
            Self::Inferred => "inferred",
        }
    }
}
