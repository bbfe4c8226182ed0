//! The single header: `b3`.

use super::{Sampling, read_sampled};

/// The parts of a single header, before any of them is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Single<'a> {
    /// A sampling state alone.
    State(Sampling),
    /// `trace-span[-state[-parent]]`
    Ids {
        /// The trace ID's text.
        trace: &'a [u8],
        /// The span ID's text.
        span: &'a [u8],
        /// The state, if there is one.
        state: Option<Sampling>,
        /// The state is empty, or spelt true or false.
        odd_state: bool,
        /// The parent's text, if there is one.
        parent: Option<&'a [u8]>,
    },
}

impl<'a> Single<'a> {
    /// Splits the header by its grammar. Three things are not part of it but are
    /// accepted, as most implementations except proxies accept them: `t-s-parent`, without a state;
    /// `t-s-`, with an empty one; `t-s-true` and `t-s-false`.
    /// `None`: not of this form at all.
    pub fn split(text: &'a [u8]) -> Option<Self> {
        let state = |text: &[u8]| match text {
            b"0" => Some(Sampling::Deny),
            b"1" => Some(Sampling::Accept),
            b"d" => Some(Sampling::Debug),
            _ => None,
        };
        if let Some(state) = state(text) {
            return Some(Self::State(state));
        }
        let mut parts = text.split(|&byte| byte == b'-');
        let (trace, span) = (parts.next()?, parts.next()?);
        let (third, fourth) = (parts.next(), parts.next());
        if parts.next().is_some() {
            return None;
        }
        let mut odd_state = false;
        let (state, parent) = match (third, fourth) {
            (None, _) => (None, None),
            (Some(third), None) if third.len() == 16 => (None, Some(third)),
            (Some(b""), None) => {
                odd_state = true;
                (None, None)
            }
            (Some(third), parent) => match (state(third), read_sampled(third)) {
                (Some(state), _) => (Some(state), parent),
                (None, Some((sampled, _))) => {
                    odd_state = true;
                    let state = if sampled {
                        Sampling::Accept
                    } else {
                        Sampling::Deny
                    };
                    (Some(state), parent)
                }
                (None, None) => return None,
            },
        };
        Some(Self::Ids {
            trace,
            span,
            state,
            odd_state,
            parent,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::b3::{B3, Ids, SpanId, TraceId};
    use proptest::prelude::*;

    #[test]
    fn single_splits_by_its_grammar() {
        let (t, s, p) = (
            "463ac35c9f6413ad48485a3953bb6124",
            "a2fb4a1d1a96d312",
            "05e3ac9a4f6e3b90",
        );
        let cases = [
            (format!("{t}-{s}"), None, None, false),
            (format!("{t}-{s}-1"), Some(Sampling::Accept), None, false),
            (
                format!("{t}-{s}-d-{p}"),
                Some(Sampling::Debug),
                Some(p),
                false,
            ),
            (format!("{t}-{s}-{p}"), None, Some(p), false),
            (format!("{t}-{s}-"), None, None, true),
            (format!("{t}-{s}-true"), Some(Sampling::Accept), None, true),
            (
                format!("{t}-{s}-False-{p}"),
                Some(Sampling::Deny),
                Some(p),
                true,
            ),
        ];
        for (text, state, parent, odd_state) in cases {
            let parts = Single::Ids {
                trace: t.as_bytes(),
                span: s.as_bytes(),
                state,
                odd_state,
                parent: parent.map(str::as_bytes),
            };
            assert_eq!(Single::split(text.as_bytes()), Some(parts), "{text}");
        }
        assert_eq!(Single::split(b"d"), Some(Single::State(Sampling::Debug)));
        for bad in [
            "",
            "2",
            "1-",
            "abc",
            "true",
            &format!("{t}-{s}-2"),
            &format!("{t}-{s}--{p}"),
            &format!("{t}-{s}-1-{p}-1"),
        ] {
            let none = Single::split(bad.as_bytes()).is_none();
            assert!(none || bad == "1-", "{bad}");
        }
    }

    fn any_b3() -> impl Strategy<Value = B3> {
        let ids = (1u128.., any::<bool>(), 1u64.., proptest::option::of(1u64..));
        let sampling = prop_oneof![
            Just(Sampling::Defer),
            Just(Sampling::Deny),
            Just(Sampling::Accept),
            Just(Sampling::Debug)
        ];
        (proptest::option::of(ids), sampling).prop_map(|(ids, sampling)| B3 {
            ids: ids.map(|(trace, wide, span, parent)| Ids {
                trace: TraceId::new(trace, wide).unwrap(),
                span: SpanId::new(span).unwrap(),
                parent: parent.and_then(SpanId::new),
            }),
            sampling,
        })
    }

    proptest! {
        #[test]
        fn single_reads_back_what_it_wrote(b3 in any_b3()) {
            let Some(text) = b3.single() else {
                prop_assert!(b3.is_empty());
                return Ok(());
            };
            match Single::split(&text).unwrap() {
                Single::State(state) => prop_assert_eq!(b3, B3 { ids: None, sampling: state }),
                Single::Ids { trace, span, state, parent, odd_state: false } => {
                    let ids = b3.ids.unwrap();
                    prop_assert_eq!(TraceId::read(trace).unwrap().id, ids.trace);
                    prop_assert_eq!(SpanId::read(span).unwrap().id, ids.span);
                    prop_assert_eq!(state.unwrap_or_default(), b3.sampling);
                    let parent = parent.map(|text| SpanId::read(text).unwrap().id);
                    let kept = ids.parent.filter(|_| state.is_some());
                    prop_assert_eq!(parent, kept);
                }
                odd => prop_assert!(false, "{odd:?}"),
            }
        }

        #[test]
        fn reading_never_panics(bytes: Vec<u8>) {
            let _ = (TraceId::read(&bytes), SpanId::read(&bytes), Single::split(&bytes), read_sampled(&bytes));
        }
    }
}
