//! The table of rules: what b3relay checks on every request.
//!
//! [`crate::check`] decides which of them a request breaks (`P`, which needs the
//! inbound request too: [`crate::relay`]). Everything that is said about a rule
//! in metrics, log lines and `docs/rules.md` is taken from here.

use core::fmt;

/// How much a broken rule matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Legal, and worth knowing. Counted, not logged.
    Info,
    /// Implementations may read it differently.
    Warn,
    /// The trace breaks, or the readings are known to differ.
    Error,
}

impl Severity {
    /// As it is written in configuration, logs and documentation.
    pub fn name(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }
}

/// What mode `repair` does about a broken rule.
///
/// All of these but the last three are one act: what the request says in B3 is
/// read once ([`crate::check`]) and written again in the forms that it came in
/// ([`crate::relay::rewrite`]). They say what comes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// Removes trace, span and parent; keeps a valid sampling decision.
    DropIds,
    /// Puts zeros before the ID.
    Pad,
    /// Writes the ID in lower case.
    LowerCase,
    /// Removes the parent.
    RemoveParent,
    /// Removes the decision, so that the receiver makes it.
    RemoveDecision,
    /// Writes the canonical form.
    Rewrite,
    /// Keeps the one value if all are equal, else removes the header.
    FirstIfEqual,
    /// Keeps the first value.
    First,
    /// Takes the other form, if it is good.
    OtherForm,
    /// Writes the multiple headers instead of the single one.
    MultiForm,
    /// Takes the single header, as the specification says.
    Single,
    /// Takes the trace ID of 128 bits.
    Wide,
    /// Takes what is missing in one form from the other.
    FoldIn,
    /// Fills it in, in every mode.
    Generate,
    /// Copies it onto the call, in every mode.
    Relay,
    /// Nothing.
    None,
}

impl Repair {
    /// What it does, as documentation says it.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::DropIds => "removes trace, span and parent; keeps a valid sampling decision",
            Self::Pad => "puts zeros before the ID",
            Self::LowerCase => "writes the ID in lower case",
            Self::RemoveParent => "removes the parent",
            Self::RemoveDecision => "removes the decision, so that the receiver makes it",
            Self::Rewrite => "writes the canonical form",
            Self::FirstIfEqual => "keeps the value if all are equal, else removes the header",
            Self::First => "keeps the first value",
            Self::OtherForm => "takes the other form, if it is good",
            Self::MultiForm => "writes the multiple headers instead of the single one",
            Self::Single => "takes the single header, as the specification says",
            Self::Wide => "takes the trace ID of 128 bits",
            Self::FoldIn => "takes what is missing in one form from the other",
            Self::Generate => "fills it in, in every mode",
            Self::Relay => "copies the context onto the call, in every mode",
            Self::None => "nothing",
        }
    }

    /// Mode `repair` rewrites the headers of a request for it.
    pub fn rewrites(self) -> bool {
        !matches!(self, Self::Generate | Self::Relay | Self::None)
    }
}

macro_rules! rules {
    ($($id:ident, $severity:ident, $repair:ident, $condition:literal, $right:literal, $readers:literal;)*) => {
        /// A rule, by its ID.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Rule {
            $(#[doc = $condition] $id,)*
        }

        impl Rule {
            /// Every rule, in the order of the table.
            pub const ALL: &'static [Self] = &[$(Self::$id,)*];

            /// The ID, for example `L01`.
            pub fn id(self) -> &'static str {
                match self { $(Self::$id => stringify!($id),)* }
            }

            /// How much it matters, unless the configuration says otherwise.
            pub fn severity(self) -> Severity {
                match self { $(Self::$id => Severity::$severity,)* }
            }

            /// What mode `repair` does about it.
            pub fn repair(self) -> Repair {
                match self { $(Self::$id => Repair::$repair,)* }
            }

            /// What is wrong, as a sentence about the header.
            pub fn condition(self) -> &'static str {
                match self { $(Self::$id => $condition,)* }
            }

            /// What would be right.
            pub fn right(self) -> &'static str {
                match self { $(Self::$id => $right,)* }
            }
        }

        /// What real implementations do with a request that breaks the rule.
        /// For documentation: not part of the module.
        #[cfg(not(target_arch = "wasm32"))]
        pub fn readers(rule: Rule) -> &'static str {
            match rule { $(Rule::$id => $readers,)* }
        }
    };
}

#[rustfmt::skip]
rules! {
    // Lexical: one header by itself.
    L01, Error, DropIds,
        "an ID has a character that is not a hexadecimal digit",
        "only 0-9 and a-f",
        "brave, OpenTelemetry and linkerd start a new trace; Envoy makes no span at this hop and forwards the headers as they are.";
    L02, Warn, Pad,
        "an ID is shorter than the format asks for",
        "16 or 32 characters for a trace ID, 16 for a span ID",
        "brave and Envoy read it as a number, padded with zeros (Envoy not for trace IDs of 17 to 31 characters, and not in `b3`); OpenTelemetry drops the context, except for JavaScript's trace IDs.";
    L03, Error, DropIds,
        "an ID is too long",
        "at most 32 characters for a trace ID, 16 for a span ID",
        "All drop the context, but Envoy makes no span at this hop and forwards the headers as they are.";
    L04, Warn, LowerCase,
        "an ID has upper-case digits",
        "lower-case digits",
        "Envoy, OpenTelemetry for Python and linkerd read it; brave and most of OpenTelemetry drop the context.";
    L05, Error, DropIds,
        "a trace ID or span ID is all zeros",
        "an ID other than zero",
        "Envoy and linkerd continue the trace of zeros, which everybody shares; brave and OpenTelemetry drop the context.";
    L06, Warn, RemoveParent,
        "the parent span ID is malformed or zero",
        "16 lower-case hexadecimal characters, or no header on a root span",
        "brave drops the whole context, Envoy makes no span at this hop (zero it takes), OpenTelemetry ignores the parent.";
    L07, Warn, Rewrite,
        "the sampling decision is spelt true or false",
        "1 or 0",
        "Legacy. brave reads any case; Envoy takes TRUE for a no; OpenTelemetry is of several minds.";
    L08, Error, RemoveDecision,
        "the sampling decision is neither 1 nor 0",
        "1, 0, or no header to leave the decision open",
        "brave drops the context, Envoy takes it for a no, OpenTelemetry is of several minds.";
    L09, Warn, Rewrite,
        "x-b3-flags is neither 1 nor 0",
        "1 for debug, or no header",
        "The specification says to ignore it.";
    L10, Warn, Rewrite,
        "a B3 header is empty",
        "a value, or no header",
        "brave drops the context for an empty ID and for an empty decision; Envoy takes an empty decision for a no; others ignore the header.";
    L11, Warn, Rewrite,
        "a B3 header came more than once, with the same value",
        "one header",
        "Most read the first; brave reads what the framework's getter gives, which may be both joined by a comma.";
    L12, Error, FirstIfEqual,
        "several values are joined by a comma in one B3 header",
        "one value",
        "brave and OpenTelemetry drop the context; Envoy makes no span at this hop.";
    L13, Error, First,
        "a B3 header came more than once, with different values",
        "one header",
        "Most read the first; brave reads what the framework's getter gives.";
    L14, Info, Rewrite,
        "x-b3-flags is 0",
        "no header",
        "All ignore it.";
    // Structural: the multiple headers together.
    S01, Error, DropIds,
        "a trace ID without a span ID",
        "both, or neither",
        "All start a new trace; brave and Envoy keep the sampling decision.";
    S02, Error, DropIds,
        "a span ID without a trace ID",
        "both, or neither",
        "All start a new trace; brave and Envoy keep the sampling decision.";
    S03, Error, RemoveParent,
        "a parent span ID without a trace ID and a span ID",
        "all three, or no parent",
        "All ignore it.";
    S04, Error, RemoveParent,
        "the span is its own parent",
        "a parent other than the span",
        "All take it, and the backend draws a circle.";
    S05, Info, None,
        "the span ID is the root's (the low 64 bits of the trace ID), yet there is a parent",
        "no parent on a root span",
        "All take it. A tracer that gives its root span the trace's ID sends no parent with it.";
    S06, Info, None,
        "identifiers without a sampling decision, or a decision without identifiers",
        "legal: the receiver decides, or starts the trace",
        "Legal. OpenTelemetry reads an open decision as a no, and cannot hold a decision without identifiers.";
    // Debug.
    D01, Error, Rewrite,
        "x-b3-flags is 1 (debug) and x-b3-sampled is 0",
        "debug implies sampled: one of the two",
        "brave and OpenTelemetry sample, Envoy and linkerd do not: the trace has holes.";
    D02, Info, None,
        "x-b3-flags is 1 (debug) and x-b3-sampled is 1",
        "the specification wants x-b3-flags alone; Envoy needs x-b3-sampled",
        "All sample. Without x-b3-sampled Envoy would not know.";
    D03, Warn, Rewrite,
        "x-b3-flags is 1 (debug) without x-b3-sampled, and Envoy reads only the second",
        "x-b3-sampled: 1 beside it",
        "brave and OpenTelemetry sample; Envoy never reads x-b3-flags, and decides by itself.";
    D04, Info, MultiForm,
        "b3 says debug",
        "x-b3-flags: 1 and x-b3-sampled: 1, which everybody reads",
        "Legal, but OpenTelemetry for Rust drops the context, or continues it unsampled if it was set up for both forms.";
    // Both forms in one request.
    B01, Error, OtherForm,
        "the b3 header is malformed",
        "{trace}-{span}[-{0|1|d}[-{parent}]], or 0, 1 or d",
        "brave and OpenTelemetry for Go, Java and Rust fall back to the multiple headers; OpenTelemetry for Python and JavaScript drop the context; Envoy makes no span at this hop.";
    B02, Error, Single,
        "b3 and the multiple headers name different traces",
        "the same trace in both forms",
        "The single header wins by the specification, except in linkerd, which reads only the multiple ones. Envoy passes both on, disagreeing.";
    B03, Warn, Single,
        "b3 and the multiple headers name the same trace, but different spans",
        "the same span in both forms",
        "Somebody on the way copied a stale header. The single header wins, except in linkerd.";
    B04, Warn, Wide,
        "the trace IDs of b3 and of the multiple headers agree only in their low 64 bits",
        "the same 128 bits in both forms",
        "Somebody on the way cut the trace ID to 64 bits. The single header wins, except in linkerd, and backends show two traces.";
    B05, Error, Single,
        "b3 and the multiple headers disagree on sampling",
        "the same decision in both forms",
        "The single header wins, except in linkerd: the trace has holes.";
    B06, Warn, RemoveParent,
        "b3 has a parent but no sampling decision",
        "{trace}-{span}-{0|1|d}-{parent}",
        "brave takes it, Envoy makes no span at this hop, OpenTelemetry is of several minds.";
    B07, Warn, FoldIn,
        "b3 is a sampling decision alone, but the multiple headers have identifiers",
        "identifiers in b3 too, or no b3",
        "brave and Envoy follow b3 and start a new trace; OpenTelemetry is of several minds.";
    B08, Warn, FoldIn,
        "b3 leaves the sampling decision open, but the multiple headers have one",
        "the decision in b3 too, or no b3",
        "The single header wins by the specification, which leaves the decision open; of OpenTelemetry, Python then reads a yes and the others a no.";
    B09, Info, FoldIn,
        "b3 leaves out the parent that x-b3-parentspanid names",
        "the parent in b3 too, or no b3",
        "The single header wins by the specification, and has no parent: brave sees a root.";
    // W3C Trace Context beside B3.
    W01, Warn, None,
        "traceparent and B3 name different traces",
        "the same trace, padded with zeros to 32 characters",
        "Each reader follows the format that it was set up for: the trace splits where they meet.";
    W02, Warn, None,
        "traceparent and B3 disagree on sampling",
        "the same decision",
        "Each reader follows the format that it was set up for: the trace has holes.";
    W03, Error, DropIds,
        "B3 is malformed, but traceparent is good",
        "a good B3 context, or none",
        "Envoy set up for both formats reads B3 first, makes no span, and does not fall back.";
    W04, Warn, None,
        "traceparent is malformed",
        "{2 hex}-{32 hex}-{16 hex}-{2 hex}, in lower case",
        "By the specification whoever reads it starts a new trace.";
    // The request ID.
    R01, Warn, Generate,
        "x-request-id is missing or empty",
        "a UUIDv4",
        "Envoy fills it in, unless it is told not to.";
    R02, Warn, None,
        "x-request-id does not begin with 8 hexadecimal digits, so Envoy never samples by it",
        "a UUIDv4",
        "Envoy derives its sampling decision from these digits.";
    R03, Warn, None,
        "x-request-id has 36 characters but is no UUID, and Envoy may overwrite its 15th",
        "a UUIDv4",
        "Envoy keeps the reason for tracing in that character, whether the value is a UUID or not.";
    R06, Error, First,
        "x-request-id came more than once",
        "one header",
        "Envoy joins them with a comma, and everybody logs something else.";
    // Propagation: an outbound call beside the inbound request that it was made for.
    P01, Info, Relay,
        "the call lost the context of its inbound request",
        "the context copied by the application",
        "The callee starts a new trace.";
    P02, Warn, None,
        "the call carries another trace than its inbound request",
        "the same trace",
        "The callee's spans are in the other trace.";
    P03, Warn, None,
        "the call carries another sampling decision than its inbound request",
        "the same decision",
        "The trace has holes.";
    // OpenTracing.
    O01, Info, None,
        "x-ot-span-context is empty, repeated, or longer than 1024 bytes",
        "one opaque value, copied verbatim",
        "Opaque; nobody checks it.";
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.id())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_unique() {
        for (i, rule) in Rule::ALL.iter().enumerate() {
            let mut others = Rule::ALL.iter().skip(i + 1);
            assert!(others.all(|other| other.id() != rule.id()));
        }
    }
}
