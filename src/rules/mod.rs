//! Which rules a request breaks, and how to read it all the same.
//!
//! Reading follows the specification where it has a word (the single header
//! wins), and otherwise what loses least; but of two formats of one trace that one is
//! read which names the other's span as its parent: the other was left behind by
//! somebody on the way. A context that most implementations would not read is none.
//!
//! | module | what it knows |
//! |---|---|
//! | `table` | the table of rules |
//! | `severity` | how much a rule matters, what `repair` does |
//! | `check` | one request: its IDs, and what its parts have in common |
//! | `multi`, `single` | the rules of each format of B3 |
//! | `formats` | the rules of one format beside another |
//!
//! The rules of propagation (`P`), which need the inbound request too, are in
//! [`crate::relay`].

mod check;
mod formats;
mod multi;
mod severity;
mod single;
mod table;

pub use check::check;
pub use severity::{Repair, Severity};
pub use table::Rule;
#[cfg(not(target_arch = "wasm32"))]
pub use table::remark;

use crate::b3::{B3, SpanId, TraceId};
use crate::w3c::TraceParent;

/// A rule that a request breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finding<'a> {
    /// The rule.
    pub rule: Rule,
    /// The offending header.
    pub header: &'static str,
    /// Its first value; empty where it is absent.
    pub value: &'a [u8],
}

/// Which formats a context is in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Formats {
    /// At least one `x-b3-*` header.
    pub multi: bool,
    /// The `b3` header.
    pub single: bool,
    /// `traceparent`, of the same trace.
    pub w3c: bool,
}

impl Formats {
    /// All three.
    pub const ALL: Self = Self {
        multi: true,
        single: true,
        w3c: true,
    };

    /// The formats of both.
    pub fn and(self, other: Self) -> Self {
        Self {
            multi: self.multi || other.multi,
            single: self.single || other.single,
            w3c: self.w3c || other.w3c,
        }
    }

    /// These formats without those.
    pub fn without(self, other: Self) -> Self {
        Self {
            multi: self.multi && !other.multi,
            single: self.single && !other.single,
            w3c: self.w3c && !other.w3c,
        }
    }

    /// No format at all.
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }
}

/// Identifiers that do not make a context: what can be read of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fragments {
    /// The trace ID of the multiple headers.
    pub trace: Option<TraceId>,
    /// Their span ID.
    pub span: Option<SpanId>,
    /// Their parent.
    pub parent: Option<SpanId>,
    /// Some identifier is there that cannot be read.
    pub malformed: bool,
}

impl Fragments {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What was found in the headers of one request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extracted<'a> {
    /// The context in B3, as b3relay reads it.
    pub b3: B3,
    /// The `traceparent`, if there is one that can be read.
    pub w3c: Option<TraceParent>,
    /// The formats that the request uses.
    pub formats: Formats,
    /// Those of them that name an older span of the trace: the parent of the span
    /// that another form names.
    pub stale: Formats,
    /// `b3` is a sampling decision and nothing else.
    pub single_decides: bool,
    /// Identifiers, where they do not make a context.
    pub fragments: Option<Fragments>,
    /// The rules that it breaks, in the order of the table.
    pub findings: Vec<Finding<'a>>,
}
