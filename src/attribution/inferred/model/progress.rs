//! How far a request is, and what it does next.

use crate::attribution::names::Name;

/// Calls made, and calls that have not returned, are counted up to this.
const COUNTED: u8 = 15;

/// How far a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::attribution::inferred) struct Progress {
    /// 0 for any route: what is known of those of which nothing is.
    pub(in crate::attribution::inferred) route: Name,
    /// Calls made.
    pub(in crate::attribution::inferred) made: u8,
    /// Calls that have not returned.
    pub(in crate::attribution::inferred) outstanding: u8,
    /// The kind of the last call; 0 before the first.
    pub(in crate::attribution::inferred) last: Name,
}

impl Progress {
    /// A request of this route that has just begun.
    pub(in crate::attribution::inferred) fn start(route: Name) -> Self {
        Self {
            route,
            made: 0,
            outstanding: 0,
            last: 0,
        }
    }

    /// A number for each progress.
    pub(super) fn number(self) -> u32 {
        u32::from_le_bytes([self.route, self.made, self.outstanding, self.last])
    }

    /// After this step.
    pub(in crate::attribution::inferred) fn after(self, step: Step) -> Self {
        match step {
            Step::Called(kind) => Self {
                made: (self.made + 1).min(COUNTED),
                outstanding: (self.outstanding + 1).min(COUNTED),
                last: kind,
                ..self
            },
            Step::Returned | Step::Ended => Self {
                outstanding: self.outstanding.saturating_sub(1),
                ..self
            },
        }
    }

    /// The same, of any route and with a last call of any kind.
    pub(super) fn general(self) -> Self {
        Self {
            route: 0,
            last: 0,
            ..self
        }
    }
}

/// What a request does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::attribution::inferred) enum Step {
    /// It makes a call of this kind.
    Called(Name),
    /// One of its calls returns.
    Returned,
    /// It is answered.
    Ended,
}
