//! The multiple headers: `x-b3-*`.

use super::check::{Checker, Part};
use super::{Fragments, Rule};
use crate::b3::{B3, Ids, Sampling, SpanId, TraceId, read_sampled};
use crate::headers::{self, Field, TraceHeaders};

/// The multiple headers, read.
pub(super) struct MultiFormat {
    pub b3: B3,
    pub fragments: Fragments,
}

impl<'a> Checker<'a> {
    pub(super) fn multi(&mut self, headers: &TraceHeaders<'a>) -> MultiFormat {
        let trace = self.id(headers::TRACE_ID, headers.trace_id, TraceId::read);
        let span = self.id(headers::SPAN_ID, headers.span_id, SpanId::read);
        let parent = self.id(
            headers::PARENT_SPAN_ID,
            headers.parent_span_id,
            SpanId::read,
        );
        let sampling = self.sampling(headers);
        let fragments = Fragments {
            trace: trace.read(),
            span: span.read(),
            parent: parent.read(),
            malformed: trace.is_malformed() || span.is_malformed(),
        };
        let value = |field: Field<'a>| field.value().unwrap_or_default();
        let ids = match (trace, span) {
            (Part::Read(trace), Part::Read(span)) => {
                let ids = Ids {
                    trace,
                    span,
                    parent: parent.read(),
                };
                Some(self.structure(headers::PARENT_SPAN_ID, value(headers.parent_span_id), ids))
            }
            (Part::Read(_), Part::Absent) => {
                self.found(Rule::S01, headers::TRACE_ID, value(headers.trace_id));
                None
            }
            (Part::Absent, Part::Read(_)) => {
                self.found(Rule::S02, headers::SPAN_ID, value(headers.span_id));
                None
            }
            _ => None,
        };
        if ids.is_none() && parent.read().is_some() {
            self.found(
                Rule::S03,
                headers::PARENT_SPAN_ID,
                value(headers.parent_span_id),
            );
        }
        MultiFormat {
            b3: B3 { ids, sampling },
            fragments,
        }
    }

    pub(super) fn sampling(&mut self, headers: &TraceHeaders<'a>) -> Sampling {
        let whole = headers.sampled.value().unwrap_or_default();
        let sampled = match self.value(headers::SAMPLED, headers.sampled, Rule::L08) {
            Ok(None) => None,
            Ok(Some(text)) => match read_sampled(text) {
                Some((sampled, legacy)) => {
                    if legacy {
                        self.found(Rule::L07, headers::SAMPLED, whole);
                    }
                    Some(sampled)
                }
                None => {
                    self.found(Rule::L08, headers::SAMPLED, whole);
                    None
                }
            },
            Err(()) => None,
        };
        let flags = headers.flags.value().unwrap_or_default();
        let debug = match self.value(headers::FLAGS, headers.flags, Rule::L09) {
            Ok(Some(b"1")) => true,
            Ok(Some(b"0")) => {
                self.found(Rule::L14, headers::FLAGS, flags);
                false
            }
            Ok(Some(_)) => {
                self.found(Rule::L09, headers::FLAGS, flags);
                false
            }
            Ok(None) | Err(()) => false,
        };
        match (debug, sampled) {
            (true, Some(sampled)) => {
                let rule = if sampled { Rule::D02 } else { Rule::D01 };
                self.found(rule, headers::SAMPLED, whole);
                Sampling::Debug
            }
            (true, None) => {
                self.found(Rule::D03, headers::FLAGS, flags);
                Sampling::Debug
            }
            (false, Some(true)) => Sampling::Accept,
            (false, Some(false)) => Sampling::Deny,
            (false, None) => Sampling::Defer,
        }
    }
}
