//! Which of two contexts of an inbound request is the newer one, and which formats the
//! sidecar's tracer writes.

use crate::b3::{B3, Sampling};
use crate::headers::TraceHeaders;
use crate::rules::Extracted;

/// What an inbound request had of W3C Trace Context.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum W3cState {
    /// No `traceparent` that can be read.
    #[default]
    Absent,
    /// One of another trace than its B3: the application's own tracing.
    Other,
    /// One of the same trace, with an older span than B3: the sidecar's tracer does
    /// not write W3C.
    Stale,
    /// The request's own context: the sidecar's tracer writes W3C.
    Current,
}

/// Which formats the tracer of a sidecar writes, as far as inbound requests showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tracer {
    /// B3: Envoy's Zipkin tracer.
    B3,
    /// W3C: Envoy's OpenTelemetry tracer.
    W3c,
    /// Both: the Zipkin tracer with `USE_B3_WITH_W3C_PROPAGATION`.
    Both,
}

impl Tracer {
    /// What one request shows. An inbound filter behind the router sees what the tracer
    /// has written, and what the client sent in the other format.
    ///
    /// Envoy's OpenTelemetry tracer writes a `tracestate` in any case, if an empty one;
    /// the Zipkin tracer names the parent of a span in a trace that it continues. Both
    /// were seen with Envoy 1.36 to 1.40.
    pub fn shown(headers: &TraceHeaders<'_>, checked: &Extracted<'_>) -> Option<Self> {
        let has_b3 = checked.formats.multi || checked.formats.single;
        let has_empty_state = headers.tracestate.value() == Some(b"");
        match (checked.b3.ids, checked.w3c) {
            (Some(_), None) if headers.traceparent.value().is_none() => Some(Self::B3),
            (None, Some(_)) if !has_b3 => Some(Self::W3c),
            (Some(ids), Some(w3c)) => {
                let is_same_trace = ids.trace.same(w3c.trace);
                if is_same_trace && ids.span == w3c.span {
                    Some(Self::Both)
                } else if is_same_trace && ids.parent == Some(w3c.span) {
                    Some(Self::B3)
                } else if has_empty_state && ids.parent.is_none() {
                    Some(Self::W3c)
                } else {
                    None
                }
            }
            _ => None,
        }
    }
}

/// Which formats the tracer of a sidecar writes, by all requests so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KnownTracer {
    /// What the last request that showed it has shown.
    last: Option<Tracer>,
    /// Requests have contradicted each other.
    is_disputed: bool,
}

impl KnownTracer {
    /// A request has shown this. Before the router it is the client that has written the
    /// headers: one that contradicts others is not believed, and neither are they. Behind it
    /// a client that sends both formats cannot make a tracer that writes B3 look like one of
    /// W3C: with that one, others come without B3. `has_b3`: the request has B3.
    pub fn note(&mut self, shown: Option<Tracer>, has_b3: bool, is_before_router: bool) {
        let Some(shown) = shown else { return };
        let is_other = self.last.is_some_and(|last| last != shown);
        if is_other && is_before_router {
            self.is_disputed = true;
        } else if !(is_other && has_b3 && shown == Tracer::W3c) {
            self.last = Some(shown);
        }
    }

    /// `None` if it is not known.
    pub fn known(self) -> Option<Tracer> {
        self.last.filter(|_| !self.is_disputed)
    }
}

/// The context of an inbound request, of its B3 and its `traceparent` the newer one, and
/// what the `traceparent` is beside it.
///
/// Of two spans of one trace that one is newer whose parent is the other. A `traceparent`
/// does not name its parent. So it is newer if B3 names no parent either: a tracer that
/// continues a trace in B3 names it. Else, and where they are of different
/// traces, B3 counts, unless the tracer is known to write W3C alone.
pub fn newest(checked: &Extracted<'_>, tracer: Option<Tracer>) -> (B3, W3cState) {
    let b3 = checked.b3;
    let Some(w3c) = checked.w3c else {
        return (b3, W3cState::Absent);
    };
    // A decision alone is not a context: a tracer that writes B3 writes identifiers.
    let Some(ids) = b3.ids else {
        return (w3c.b3(), W3cState::Current);
    };
    if !ids.trace.same(w3c.trace) {
        match tracer {
            Some(Tracer::W3c) => (w3c.b3(), W3cState::Current),
            _ => (b3, W3cState::Other),
        }
    } else if ids.span == w3c.span {
        // A no may stand for a decision that was left open: W3C cannot leave it so.
        let sampling = match w3c.sampled {
            true => b3.sampling.or(Sampling::Accept),
            false => b3.sampling,
        };
        (B3 { sampling, ..b3 }, W3cState::Current)
    } else if ids.parent == Some(w3c.span) {
        (b3, W3cState::Stale)
    } else if tracer == Some(Tracer::W3c) || (tracer.is_none() && ids.parent.is_none()) {
        (w3c.b3(), W3cState::Current)
    } else {
        (b3, W3cState::Stale)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::headers::Wanted;
    use crate::rules::check;

    const TRACE: (&str, &str) = ("x-b3-traceid", "463ac35c9f6413ad48485a3953bb6124");
    const SPAN: (&str, &str) = ("x-b3-spanid", "a2fb4a1d1a96d312");
    const SINGLE: (&str, &str) = ("b3", "463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312");
    const SAME_SPAN: (&str, &str) = (
        "traceparent",
        "00-463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312-01",
    );
    const OLDER: (&str, &str) = (
        "traceparent",
        "00-463ac35c9f6413ad48485a3953bb6124-0020000000000001-01",
    );

    #[track_caller]
    fn assert_shown(headers: &[(&str, &str)], tracer: Option<Tracer>) {
        let pairs = headers.iter().map(|(n, v)| (n.as_bytes(), v.as_bytes()));
        let read = TraceHeaders::read(pairs, &Wanted::default());
        assert_eq!(Tracer::shown(&read, &check(&read)), tracer, "{headers:?}");
    }

    #[test]
    fn one_format_alone_shows_its_tracer() {
        assert_shown(&[TRACE, SPAN], Some(Tracer::B3));
        assert_shown(&[SINGLE], Some(Tracer::B3));
        assert_shown(&[SAME_SPAN], Some(Tracer::W3c));
        assert_shown(&[], None);
        // The other one is there, and nobody knows what it says.
        assert_shown(&[TRACE, SPAN, ("traceparent", "00-1")], None);
        assert_shown(&[SAME_SPAN, ("x-b3-sampled", "1")], None);
        assert_shown(&[SAME_SPAN, ("b3", "1")], None);
    }

    #[test]
    fn no_client_makes_a_tracer_look_like_another_one() {
        let [b3, w3c] = [Some(Tracer::B3), Some(Tracer::W3c)];
        let mut tracer = KnownTracer::default();
        for (shown, has_b3, known) in [
            (w3c, true, w3c),
            (b3, true, b3),
            (w3c, true, b3),
            (None, true, b3),
            // The mesh has another tracer now.
            (w3c, false, w3c),
            (w3c, true, w3c),
        ] {
            tracer.note(shown, has_b3, false);
            assert_eq!(tracer.known(), known);
        }
        let mut tracer = KnownTracer::default();
        for (shown, known) in [(b3, b3), (None, b3), (w3c, None), (b3, None)] {
            tracer.note(shown, shown == b3, true);
            assert_eq!(tracer.known(), known);
        }
    }

    #[test]
    fn two_formats_show_it_by_their_spans() {
        let parent = ("x-b3-parentspanid", "0020000000000001");
        let empty_state = ("tracestate", "");
        assert_shown(&[TRACE, SPAN, SAME_SPAN], Some(Tracer::Both));
        assert_shown(&[SINGLE, SAME_SPAN], Some(Tracer::Both));
        assert_shown(&[TRACE, SPAN, parent, OLDER], Some(Tracer::B3));
        assert_shown(&[TRACE, SPAN, OLDER, empty_state], Some(Tracer::W3c));
        assert_shown(&[TRACE, SPAN, OLDER], None);
        let other_parent = ("x-b3-parentspanid", "0030000000000001");
        assert_shown(&[TRACE, SPAN, other_parent, OLDER, empty_state], None);
    }
}
