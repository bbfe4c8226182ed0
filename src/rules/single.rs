//! The single header: `b3`.

use super::Rule;
use super::check::{Checker, rule_of};
use crate::b3::{B3, IdError, Ids, Lenient, Sampling, Single, SpanId, TraceId};
use crate::headers::{self, Field};

/// The single header, read.
#[derive(Clone, Copy)]
pub(super) enum SingleFormat {
    Absent,
    Malformed,
    Read(B3),
}

impl<'a> Checker<'a> {
    pub(super) fn single(&mut self, field: Field<'a>) -> SingleFormat {
        let name = headers::B3;
        let whole = field.value().unwrap_or_default();
        let text = match self.value(name, field, Rule::B01) {
            Ok(Some(text)) => text,
            Ok(None) => return SingleFormat::Absent,
            Err(()) => return SingleFormat::Malformed,
        };
        let (trace, span, state, odd_state, parent) = match Single::split(text) {
            None => {
                self.found(Rule::B01, name, whole);
                return SingleFormat::Malformed;
            }
            Some(Single::State(sampling)) => {
                self.debug(sampling, whole);
                return SingleFormat::Read(B3 {
                    ids: None,
                    sampling,
                });
            }
            Some(Single::Ids {
                trace,
                span,
                state,
                odd_state,
                parent,
            }) => (trace, span, state, odd_state, parent),
        };
        self.debug(state.unwrap_or_default(), whole);
        let trace = TraceId::read(trace).and_then(Lenient::of_full_length);
        let span_of = |text| SpanId::read(text).and_then(Lenient::of_full_length);
        let (trace, span) = match (trace, span_of(span)) {
            (Ok(trace), Ok(span)) => (trace, span),
            (Err(error), _) | (_, Err(error)) => {
                if error != IdError::Empty {
                    self.found(rule_of(error), name, whole);
                }
                self.found(Rule::B01, name, whole);
                return SingleFormat::Malformed;
            }
        };
        self.forgiven(name, whole, &trace);
        self.forgiven(name, whole, &span);
        if odd_state {
            self.found(Rule::B10, name, whole);
        }
        let parent = parent.and_then(|text| match span_of(text) {
            Ok(parent) => {
                self.forgiven(name, whole, &parent);
                Some(parent.id)
            }
            Err(_) => {
                self.found(Rule::L06, name, whole);
                None
            }
        });
        if state.is_none() && parent.is_some() {
            self.found(Rule::B06, name, whole);
        }
        let ids = Ids {
            trace: trace.id,
            span: span.id,
            parent,
        };
        SingleFormat::Read(B3 {
            ids: Some(self.structure(name, whole, ids)),
            sampling: state.unwrap_or_default(),
        })
    }

    pub(super) fn debug(&mut self, sampling: Sampling, whole: &'a [u8]) {
        if sampling == Sampling::Debug {
            self.found(Rule::D04, headers::B3, whole);
        }
    }
}
