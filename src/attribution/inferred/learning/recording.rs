//! The last events, to learn from.

use crate::attribution::names::Name;

/// Events at most: those of some 1,000 requests with two calls each.
pub(super) const EVENTS_MOST: usize = 6144;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::attribution::inferred) enum What {
    /// A request of this route has begun, that came through this connection.
    Begun { route: Name, connection: u8 },
    /// It has been answered, or was broken off.
    Ended {
        /// It has been answered.
        answered: bool,
    },
    /// The next call belongs to this request, which is known by other means.
    Owner,
    /// A call of this kind has begun, from this port of the application.
    Called { kind: Name, port: u16 },
    /// It has returned.
    Returned,
}

/// An event.
#[derive(Clone, Copy, Debug)]
pub(super) struct Recorded {
    pub(super) at_us: u64,
    /// The number of the request, or of the call.
    pub(super) number: u64,
    pub(super) what: What,
}

/// Events without a gap, the earliest first.
#[derive(Debug, Default)]
pub(super) struct Recording {
    events: Vec<Recorded>,
    requests: usize,
}

impl Recording {
    /// Adds an event, if there is room for it.
    pub(super) fn add(&mut self, event: Recorded) {
        if self.is_full() {
            return;
        }
        self.requests += usize::from(matches!(event.what, What::Begun { .. }));
        self.events.push(event);
    }

    /// Requests that have begun in it.
    pub(super) fn requests(&self) -> usize {
        self.requests
    }

    /// There is no room for more.
    pub(super) fn is_full(&self) -> bool {
        self.events.len() >= EVENTS_MOST
    }

    /// This name of a route, or of a kind, becomes that of all of them together.
    pub(super) fn forget_name(&mut self, is_kind: bool, forgotten: Name) {
        for event in &mut self.events {
            let name = match &mut event.what {
                What::Begun { route, .. } if !is_kind => route,
                What::Called { kind, .. } if is_kind => kind,
                _ => continue,
            };
            if *name == forgotten {
                *name = 0;
            }
        }
    }

    pub(super) fn events(&self) -> &[Recorded] {
        &self.events
    }

    pub(super) fn clear(&mut self) {
        self.events.clear();
        self.requests = 0;
    }
}
