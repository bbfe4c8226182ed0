//! The table of rules. Everything that is said about a rule in metrics, log lines and
//! `docs/rules.md` is taken from here.

use super::{Repair, Severity};
use std::fmt;

macro_rules! rules {
    ($($id:ident, $severity:ident, $repair:ident, $condition:literal, $right:literal, $remark:literal;)*) => {
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

        /// Why it matters, where that needs a word: what real implementations make
        /// of it, `docs/rules.md` shows from runs. For documentation: not part of the
        /// module.
        #[cfg(not(target_arch = "wasm32"))]
        pub fn remark(rule: Rule) -> &'static str {
            match rule { $(Rule::$id => $remark,)* }
        }
    };
}

#[rustfmt::skip]
rules! {
    // Lexical: one header by itself.
    L01, Error, DropIds,
        "an ID has a character that is not a hexadecimal digit",
        "only 0-9 and a-f",
        "";
    L02, Warn, Pad,
        "an ID of the multiple headers has only 2 to 15 characters",
        "16 or 32 characters for a trace ID, 16 for a span ID",
        "Some of the first implementations wrote numbers without the zeros before them.";
    L03, Error, DropIds,
        "an ID is too long",
        "at most 32 characters for a trace ID, 16 for a span ID",
        "";
    L04, Warn, LowerCase,
        "an ID has upper-case digits",
        "lower-case digits",
        "";
    L05, Error, DropIds,
        "a trace ID or span ID is all zeros",
        "an ID other than zero",
        "Whoever continues the trace of zeros shares it with everybody else who does.";
    L06, Error, RemoveParent,
        "the parent span ID is malformed or zero",
        "16 lower-case hexadecimal characters, or no parent on a root span",
        "";
    L07, Warn, Rewrite,
        "the sampling decision is spelt true or false",
        "1 or 0",
        "Legacy: may be read, and is not to be written.";
    L08, Error, RemoveDecision,
        "the sampling decision is neither 1 nor 0",
        "1, 0, or no header to leave the decision open",
        "";
    L09, Warn, Rewrite,
        "x-b3-flags is neither 1 nor 0",
        "1 for debug, or no header",
        "The specification says to ignore it.";
    L10, Error, Rewrite,
        "a B3 header is empty",
        "a value, or no header",
        "";
    L11, Warn, Rewrite,
        "a B3 header came more than once, with the same value",
        "one header",
        "Frameworks differ in what they hand over: the first value, or both joined by a comma.";
    L12, Error, FirstIfEqual,
        "several values are joined by a comma in one B3 header",
        "one value",
        "";
    L13, Error, First,
        "a B3 header came more than once, with different values",
        "one header",
        "Frameworks differ in what they hand over: the first value, or both joined by a comma.";
    L14, Info, Rewrite,
        "x-b3-flags is 0",
        "no header",
        "";
    L15, Error, DropIds,
        "an ID is too short to be read: of one character, a trace ID of 17 to 31, or any but full length in b3",
        "16 or 32 characters for a trace ID, 16 for a span ID",
        "Padded with zeros, an ID such as 1 would be a trace that all requests share which carry it.";
    // Structural: the multiple headers together.
    S01, Error, DropIds,
        "a trace ID without a span ID",
        "both, or neither",
        "";
    S02, Error, DropIds,
        "a span ID without a trace ID",
        "both, or neither",
        "";
    S03, Error, RemoveParent,
        "a parent span ID without a trace ID and a span ID",
        "all three, or no parent",
        "";
    S04, Error, RemoveParent,
        "the span is its own parent",
        "a parent other than the span",
        "";
    S05, Info, None,
        "the span ID is the root's (the low 64 bits of the trace ID), yet there is a parent",
        "no parent on a root span",
        "A tracer that gives its root span the trace's ID sends no parent with it.";
    S06, Info, None,
        "identifiers without a sampling decision, or a decision without identifiers",
        "legal: the receiver decides, or starts the trace",
        "Legal.";
    // Debug.
    D01, Error, Rewrite,
        "x-b3-flags is 1 (debug) and x-b3-sampled is 0",
        "debug implies sampled: one of the two",
        "";
    D02, Info, None,
        "x-b3-flags is 1 (debug) and x-b3-sampled is 1",
        "the specification wants x-b3-flags alone; Envoy needs x-b3-sampled",
        "";
    D03, Warn, Rewrite,
        "x-b3-flags is 1 (debug) without x-b3-sampled, and Envoy reads only the second",
        "x-b3-sampled: 1 beside it",
        "";
    D04, Info, MultiFormat,
        "b3 says debug",
        "x-b3-flags: 1 and x-b3-sampled: 1, with 1 in b3, which everybody reads",
        "Legal.";
    // Both formats in one request.
    B01, Error, OtherForm,
        "the b3 header is malformed",
        "{trace}-{span}[-{0|1|d}[-{parent}]], or 0, 1 or d",
        "";
    B02, Error, Single,
        "b3 and the multiple headers name different traces",
        "the same trace in both formats",
        "The single header wins by the specification.";
    B03, Warn, Newer,
        "b3 and the multiple headers name the same trace, but different spans; found is the stale one, whose span is the other's parent, or b3 where neither is",
        "the same span in both formats",
        "Somebody on the way renewed one form and passed the other on, as Envoy 1.36 to 1.39 do with b3. The single header wins by the specification, also where it is the older one.";
    B04, Warn, Wide,
        "the trace IDs of b3 and of the multiple headers agree only in their low 64 bits",
        "the same 128 bits in both formats",
        "Somebody on the way cut the trace ID to 64 bits.";
    B05, Error, Newer,
        "b3 and the multiple headers disagree on sampling",
        "the same decision in both formats",
        "";
    B06, Warn, RemoveParent,
        "b3 has a parent but no sampling decision",
        "{trace}-{span}-{0|1|d}-{parent}",
        "";
    B07, Warn, FoldIn,
        "b3 is a sampling decision alone, but the multiple headers have identifiers",
        "identifiers in b3 too, or no b3",
        "";
    B08, Warn, FoldIn,
        "b3 leaves the sampling decision open, but the multiple headers have one",
        "the decision in b3 too, or no b3",
        "The single header wins by the specification, which leaves the decision open.";
    B09, Info, FoldIn,
        "b3 leaves out the parent that x-b3-parentspanid names",
        "the parent in b3 too, or no b3",
        "The single header wins by the specification, and has no parent.";
    B10, Error, Rewrite,
        "the sampling state in b3 is empty, or spelt true or false",
        "0, 1 or d, or nothing behind the span ID",
        "";
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
        "";
    W04, Warn, None,
        "traceparent is malformed, empty or has an ID of zeros",
        "{2 hex}-{32 hex}-{16 hex}-{2 hex}, in lower case",
        "By the specification whoever reads it starts a new trace.";
    W05, Warn, None,
        "traceparent is stale: of B3's trace, but it names the parent of B3's span",
        "the same span in both",
        "Somebody on the way renewed B3 and passed traceparent on. Who reads it hangs beside the span that B3 names, not below it.";
    W06, Error, None,
        "traceparent came more than once",
        "one header",
        "By the specification none of them is taken, and a new trace starts; so does b3relay.";
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
        "Envoy joins them with a comma.";
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
    P04, Info, None,
        "the call carries the trace of its inbound request, but neither its span nor its parent is that request's span",
        "the span that the application serves the request in, or a child of it",
        "Legal where the application reports the spans between; if nobody does, the callee hangs from a span that is nowhere.";
    // OpenTracing.
    O01, Info, None,
        "x-ot-span-context is empty, repeated, or longer than 1024 bytes",
        "one opaque value, copied verbatim",
        "";
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
