//! The rules for one header by itself, except those that are specific to a format of B3.

use super::formats::is_older;
use super::single::SingleFormat;
use super::{Extracted, Finding, Formats, Rule};
use crate::b3::{B3, IdError, Ids, Lenient};
use crate::bytes::contains;
use crate::headers::{self, Field, TraceHeaders};
use crate::request_id;
use crate::w3c::TraceParent;

/// Longer than any encoding of `x-ot-span-context` seen in use, in bytes.
const OT_SPAN_CONTEXT_MOST: usize = 1024;

/// Bytes of a value that are looked at: the longest that is good has 68, and several
/// may be joined. What is longer is malformed without a look at the rest, so that
/// no request costs more than others.
const LOOKED_AT: usize = 512;

pub(super) fn beginning(value: &[u8]) -> &[u8] {
    value.get(..LOOKED_AT).unwrap_or(value)
}

/// Checks the B3 headers, the request ID and `x-ot-span-context`.
pub fn check<'a>(headers: &TraceHeaders<'a>) -> Extracted<'a> {
    let mut checker = Checker::default();
    checker.request_id(headers.request_id);
    checker.ot_span_context(headers.ot_span_context);
    let multi = checker.multi(headers);
    let single = checker.single(headers.b3);
    let (b3, mut stale) = checker.both(headers, &multi, single);
    let fragments = match b3.ids {
        Some(_) => None,
        None => {
            let mut fragments = multi.fragments;
            fragments.malformed |= matches!(single, SingleFormat::Malformed);
            Some(fragments).filter(|fragments| !fragments.is_empty())
        }
    };
    let w3c = checker.w3c(headers.traceparent, &b3, fragments);
    stale.w3c = w3c.is_some_and(|w3c| is_older(w3c, &b3));
    let w3c_too = |w3c: TraceParent| b3.ids.is_none_or(|ids| ids.trace.same(w3c.trace));
    Extracted {
        b3,
        formats: Formats {
            multi: headers
                .multi()
                .iter()
                .any(|(_, field)| field.value().is_some()),
            single: headers.b3.value().is_some(),
            w3c: w3c.is_some_and(w3c_too),
        },
        stale,
        w3c,
        single_decides: matches!(single, SingleFormat::Read(B3 { ids: None, .. })),
        fragments,
        findings: checker.findings,
    }
}

/// A header that should hold an ID.
#[derive(Clone, Copy)]
pub(super) enum Part<T> {
    Absent,
    Malformed,
    Read(T),
}

impl<T: Copy> Part<T> {
    pub(super) fn read(self) -> Option<T> {
        match self {
            Self::Read(id) => Some(id),
            _ => None,
        }
    }

    pub(super) fn is_malformed(self) -> bool {
        matches!(self, Self::Malformed)
    }
}

#[derive(Default)]
pub(super) struct Checker<'a> {
    findings: Vec<Finding<'a>>,
}

impl<'a> Checker<'a> {
    /// In the order of the table, whichever header was read first.
    pub(super) fn found(&mut self, rule: Rule, header: &'static str, value: &'a [u8]) {
        let before = |other: &Finding<'_>| other.rule <= rule;
        let at = self.findings.iter().take_while(|other| before(other));
        let at = at.count();
        // The parts of one `b3` may break one rule several times.
        let mut same = self.findings.iter();
        if same.any(|other| (other.rule, other.header) == (rule, header)) {
            return;
        }
        self.findings.insert(
            at,
            Finding {
                rule,
                header,
                value,
            },
        );
    }

    pub(super) fn request_id(&mut self, field: Field<'a>) {
        let name = headers::REQUEST_ID;
        let value = field.value().unwrap_or_default();
        // Envoy joins repeated request IDs before a filter sees them.
        if field.repeated() || contains(beginning(value), b',') {
            self.found(Rule::R06, name, value);
        }
        if value.is_empty() {
            self.found(Rule::R01, name, value);
            return;
        }
        if request_id::is_uuid(value) {
            return;
        }
        let hex8 = value
            .get(..8)
            .is_some_and(|v| v.iter().all(u8::is_ascii_hexdigit));
        if !hex8 {
            self.found(Rule::R02, name, value);
        }
        if value.len() == request_id::LENGTH {
            self.found(Rule::R03, name, value);
        }
    }

    pub(super) fn ot_span_context(&mut self, field: Field<'a>) {
        let Some(value) = field.value() else { return };
        if value.is_empty() || field.repeated() || value.len() > OT_SPAN_CONTEXT_MOST {
            self.found(Rule::O01, headers::OT_SPAN_CONTEXT, value);
        }
    }

    /// The one value that a B3 header stands for. `None` if it is absent or
    /// empty, `Err` if it holds several that differ, or is far too long: `malformed`
    /// is the rule that says so.
    pub(super) fn value(
        &mut self,
        name: &'static str,
        field: Field<'a>,
        malformed: Rule,
    ) -> Result<Option<&'a [u8]>, ()> {
        let Some(value) = field.value() else {
            return Ok(None);
        };
        if field.differing() {
            self.found(Rule::L13, name, value);
        } else if field.repeated() {
            self.found(Rule::L11, name, value);
        }
        if value.is_empty() {
            // Flags that say nothing harm nobody.
            let rule = if name == headers::FLAGS {
                malformed
            } else {
                Rule::L10
            };
            self.found(rule, name, value);
            return Ok(None);
        }
        let joined = contains(beginning(value), b',');
        if joined {
            self.found(Rule::L12, name, value);
        }
        if value.len() > LOOKED_AT {
            self.found(malformed, name, value);
            return Err(());
        }
        if !joined {
            return Ok(Some(value));
        }
        let mut values = value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii);
        match values.next() {
            Some(first) if !first.is_empty() && values.all(|other| other == first) => {
                Ok(Some(first))
            }
            _ => Err(()),
        }
    }

    pub(super) fn forgiven<T>(&mut self, name: &'static str, value: &'a [u8], read: &Lenient<T>) {
        if read.upper_case {
            self.found(Rule::L04, name, value);
        }
        if read.padded {
            self.found(Rule::L02, name, value);
        }
    }

    pub(super) fn id<T: Copy>(
        &mut self,
        name: &'static str,
        field: Field<'a>,
        read: impl Fn(&[u8]) -> Result<Lenient<T>, IdError>,
    ) -> Part<T> {
        let whole = field.value().unwrap_or_default();
        let is_parent = name == headers::PARENT_SPAN_ID;
        let too_long = if is_parent { Rule::L06 } else { Rule::L03 };
        let text = match self.value(name, field, too_long) {
            Ok(Some(text)) => text,
            Ok(None) => return Part::Absent,
            Err(()) => return Part::Malformed,
        };
        match read(text) {
            Ok(lenient) => {
                self.forgiven(name, whole, &lenient);
                Part::Read(lenient.id)
            }
            Err(error) => {
                let rule = if is_parent { Rule::L06 } else { rule_of(error) };
                self.found(rule, name, whole);
                Part::Malformed
            }
        }
    }

    pub(super) fn structure(&mut self, name: &'static str, value: &'a [u8], mut ids: Ids) -> Ids {
        if ids.parent == Some(ids.span) {
            self.found(Rule::S04, name, value);
            ids.parent = None;
        }
        if ids.parent.is_some() && ids.span.value() == ids.trace.low() {
            self.found(Rule::S05, name, value);
        }
        ids
    }
}

pub(super) fn rule_of(error: IdError) -> Rule {
    match error {
        IdError::Empty => Rule::L10,
        IdError::TooLong => Rule::L03,
        IdError::TooShort => Rule::L15,
        IdError::NotHex => Rule::L01,
        IdError::Zero => Rule::L05,
    }
}
