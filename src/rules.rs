//! The table of rules: what b3relay checks on every request.
//!
//! [`crate::check`] decides which of them a request breaks; everything that is
//! said about a rule (metrics, log lines, documentation) is taken from here.

use std::fmt;

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
    /// As it is written in logs and documentation.
    pub fn name(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }
}

macro_rules! rules {
    ($($id:ident, $severity:ident, $condition:literal, $right:literal;)*) => {
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

            /// How much it matters.
            pub fn severity(self) -> Severity {
                match self { $(Self::$id => Severity::$severity,)* }
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
    };
}

rules! {
    // Lexical: one header by itself.
    L01, Error, "an ID has a character that is not a hexadecimal digit", "only 0-9 and a-f";
    L02, Warn, "an ID is shorter than the format asks for", "16 or 32 characters for a trace ID, 16 for a span ID";
    L03, Error, "an ID is too long", "at most 32 characters for a trace ID, 16 for a span ID";
    L04, Warn, "an ID has upper-case digits", "lower-case digits";
    L05, Error, "a trace ID or span ID is all zeros", "an ID other than zero";
    L06, Warn, "the parent span ID is malformed or zero", "16 lower-case hexadecimal characters, or no header on a root span";
    L07, Warn, "the sampling decision is spelt true or false", "1 or 0";
    L08, Error, "the sampling decision is neither 1 nor 0", "1, 0, or no header to leave the decision open";
    L09, Warn, "x-b3-flags is neither 1 nor 0", "1 for debug, or no header";
    L10, Warn, "a B3 header is empty", "a value, or no header";
    L11, Warn, "a B3 header came more than once, with the same value", "one header";
    L12, Error, "several values are joined by a comma in one B3 header", "one value";
    L13, Error, "a B3 header came more than once, with different values", "one header";
    L14, Info, "x-b3-flags is 0", "no header";
    // Structural: the multiple headers together.
    S01, Error, "a trace ID without a span ID", "both, or neither";
    S02, Error, "a span ID without a trace ID", "both, or neither";
    S03, Error, "a parent span ID without a trace ID and a span ID", "all three, or no parent";
    S04, Error, "the span is its own parent", "a parent other than the span";
    S05, Info, "the span ID is the root's (the low 64 bits of the trace ID), yet there is a parent", "no parent on a root span";
    S06, Info, "identifiers without a sampling decision, or a decision without identifiers", "legal: the receiver decides, or starts the trace";
    // Debug.
    D01, Error, "x-b3-flags is 1 (debug) and x-b3-sampled is 0", "debug implies sampled: one of the two";
    D02, Info, "x-b3-flags is 1 (debug) and x-b3-sampled is 1", "the specification wants x-b3-flags alone; Envoy needs x-b3-sampled";
    D03, Warn, "x-b3-flags is 1 (debug) without x-b3-sampled, and Envoy reads only the second", "x-b3-sampled: 1 beside it";
    // Both forms in one request.
    B01, Error, "the b3 header is malformed", "{trace}-{span}[-{0|1|d}[-{parent}]], or 0, 1 or d";
    B02, Error, "b3 and the multiple headers name different traces", "the same trace in both forms";
    B03, Warn, "b3 and the multiple headers name the same trace, but different spans", "the same span in both forms";
    B04, Warn, "the trace IDs of b3 and of the multiple headers agree only in their low 64 bits", "the same 128 bits in both forms";
    B05, Error, "b3 and the multiple headers disagree on sampling", "the same decision in both forms";
    B06, Warn, "b3 has a parent but no sampling decision", "{trace}-{span}-{0|1|d}-{parent}";
    B07, Warn, "b3 is a sampling decision alone, but the multiple headers have identifiers", "identifiers in b3 too, or no b3";
    // The request ID.
    R01, Warn, "x-request-id is missing or empty", "a UUIDv4";
    R02, Warn, "x-request-id does not begin with 8 hexadecimal digits, so Envoy never samples by it", "a UUIDv4";
    R03, Warn, "x-request-id has 36 characters but is no UUID, and Envoy may overwrite its 15th", "a UUIDv4";
    R06, Error, "x-request-id came more than once", "one header";
    // OpenTracing.
    O01, Info, "x-ot-span-context is empty, repeated, or longer than 1024 bytes", "one opaque value, copied verbatim";
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
            assert!(
                Rule::ALL
                    .iter()
                    .skip(i + 1)
                    .all(|other| other.id() != rule.id())
            );
        }
    }
}
