//! The B3 format of openzipkin/b3-propagation: types, reading and writing.
//!
//! Reading is lenient where implementations are (upper case, short IDs in the
//! multiple headers) and says so; writing is canonical: lower case, IDs of 16 or 32 characters,
//! `1`/`0`.
//!
//! Grammar of the single header:
//!
//! ```text
//! b3       = ids [ "-" state [ "-" span-id ] ] / state      ; the last span-id is the parent
//! ids      = trace-id "-" span-id
//! state    = "0" / "1" / "d"
//! trace-id = 16hex / 32hex        span-id = 16hex
//! ```

pub(crate) mod hex;
mod id;
mod single;

pub use id::{IdError, Lenient, SpanId, TraceId};
pub use single::Single;

/// The sampling state, the four of the specification.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sampling {
    /// No decision: the receiver makes it.
    #[default]
    Defer,
    /// `0`
    Deny,
    /// `1`
    Accept,
    /// `d`, or `x-b3-flags: 1`: accept, and collect whatever the cost.
    Debug,
}

impl Sampling {
    /// This one; the other where this one leaves it open.
    pub fn or(self, other: Self) -> Self {
        match self {
            Self::Defer => other,
            decided => decided,
        }
    }

    /// Sampled or not; `None` if that is left open.
    pub fn decided(self) -> Option<bool> {
        match self {
            Self::Defer => None,
            Self::Deny => Some(false),
            Self::Accept | Self::Debug => Some(true),
        }
    }
}

/// The identifiers of a trace context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ids {
    /// The trace.
    pub trace: TraceId,
    /// The span of the sender.
    pub span: SpanId,
    /// Its parent, where the sender says so.
    pub parent: Option<SpanId>,
}

/// What a request says in B3: identifiers, a sampling state, or both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct B3 {
    /// Trace, span and parent.
    pub ids: Option<Ids>,
    /// The sampling state.
    pub sampling: Sampling,
}

impl B3 {
    /// Nothing is said at all.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The single header's value; `None` where there is nothing to say.
    pub fn single(&self) -> Option<Vec<u8>> {
        let state = match self.sampling {
            Sampling::Defer => None,
            Sampling::Deny => Some(b'0'),
            Sampling::Accept => Some(b'1'),
            Sampling::Debug => Some(b'd'),
        };
        let Some(ids) = self.ids else {
            return state.map(|state| vec![state]);
        };
        let mut text = Vec::with_capacity(68);
        ids.trace.write(&mut text);
        text.push(b'-');
        ids.span.write(&mut text);
        if let Some(state) = state {
            text.extend_from_slice(&[b'-', state]);
            // The grammar has no place for a parent without a state.
            if let Some(parent) = ids.parent {
                text.push(b'-');
                parent.write(&mut text);
            }
        }
        Some(text)
    }
}

/// `x-b3-sampled`: the decision, and whether it was spelt in a legacy way
/// (`true`/`false` in any case). `None` if it is neither.
pub fn read_sampled(text: &[u8]) -> Option<(bool, bool)> {
    match text {
        b"1" => Some((true, false)),
        b"0" => Some((false, false)),
        _ if text.eq_ignore_ascii_case(b"true") => Some((true, true)),
        _ if text.eq_ignore_ascii_case(b"false") => Some((false, true)),
        _ => None,
    }
}
