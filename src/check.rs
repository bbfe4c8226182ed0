//! Which rules a request breaks, and how to read it all the same.
//!
//! Reading follows the specification where it has a word (the single header
//! wins), and otherwise what loses least; but of two formats of one trace that one is
//! read which names the other's span as its parent: the other was left behind by
//! somebody on the way. A context that most implementations would not read is none.

use crate::b3::{B3, IdError, Ids, Lenient, Sampling, Single, SpanId, TraceId, read_sampled};
use crate::headers::{self, Field, TraceHeaders};
use crate::rules::Rule;
use crate::w3c::TraceParent;

/// Longer than any encoding of `x-ot-span-context` seen in use, in bytes.
const OT_SPAN_CONTEXT_MOST: usize = 1024;

/// Bytes of a value that are looked at: the longest that is good has 68, and several
/// may be joined. What is longer is malformed without a look at the rest, so that
/// no request costs more than others.
const LOOKED_AT: usize = 512;

fn beginning(value: &[u8]) -> &[u8] {
    value.get(..LOOKED_AT).unwrap_or(value)
}

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

    /// No form at all.
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
            fragments.malformed |= matches!(single, SingleForm::Malformed);
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
        single_decides: matches!(single, SingleForm::Read(B3 { ids: None, .. })),
        fragments,
        findings: checker.findings,
    }
}

/// The `traceparent` is of the trace, and names the parent of its span.
fn is_older(w3c: TraceParent, b3: &B3) -> bool {
    b3.ids
        .is_some_and(|ids| ids.trace.same(w3c.trace) && ids.parent == Some(w3c.span))
}

/// The multiple headers, read.
struct MultiForm {
    b3: B3,
    fragments: Fragments,
}

/// The single header, read.
#[derive(Clone, Copy)]
enum SingleForm {
    Absent,
    Malformed,
    Read(B3),
}

/// A header that should hold an ID.
#[derive(Clone, Copy)]
enum Part<T> {
    Absent,
    Malformed,
    Read(T),
}

impl<T: Copy> Part<T> {
    fn read(self) -> Option<T> {
        match self {
            Self::Read(id) => Some(id),
            _ => None,
        }
    }

    fn is_malformed(self) -> bool {
        matches!(self, Self::Malformed)
    }
}

#[derive(Default)]
struct Checker<'a> {
    findings: Vec<Finding<'a>>,
}

impl<'a> Checker<'a> {
    /// In the order of the table, whichever header was read first.
    fn found(&mut self, rule: Rule, header: &'static str, value: &'a [u8]) {
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

    fn request_id(&mut self, field: Field<'a>) {
        let name = headers::REQUEST_ID;
        let value = field.value().unwrap_or_default();
        // Envoy joins repeated request IDs before a filter sees them.
        if field.repeated() || beginning(value).contains(&b',') {
            self.found(Rule::R06, name, value);
        }
        if value.is_empty() {
            self.found(Rule::R01, name, value);
            return;
        }
        let hex8 = value
            .get(..8)
            .is_some_and(|v| v.iter().all(u8::is_ascii_hexdigit));
        if !hex8 {
            self.found(Rule::R02, name, value);
        }
        if value.len() == crate::request_id::LENGTH && !crate::request_id::is_uuid(value) {
            self.found(Rule::R03, name, value);
        }
    }

    fn ot_span_context(&mut self, field: Field<'a>) {
        let Some(value) = field.value() else { return };
        if value.is_empty() || field.repeated() || value.len() > OT_SPAN_CONTEXT_MOST {
            self.found(Rule::O01, headers::OT_SPAN_CONTEXT, value);
        }
    }

    fn w3c(
        &mut self,
        field: Field<'a>,
        b3: &B3,
        fragments: Option<Fragments>,
    ) -> Option<TraceParent> {
        let value = field.value()?;
        let name = headers::TRACEPARENT;
        // As the specification has it: none of them is taken.
        if field.repeated() || beginning(value).contains(&b',') {
            self.found(Rule::W06, name, value);
            return None;
        }
        let Some(read) = TraceParent::read(value) else {
            self.found(Rule::W04, name, value);
            return None;
        };
        match b3.ids {
            Some(ids) if !ids.trace.same(read.trace) => self.found(Rule::W01, name, value),
            Some(_) => {
                if b3.sampling.decided().is_some_and(|yes| yes != read.sampled) {
                    self.found(Rule::W02, name, value);
                }
                if is_older(read, b3) {
                    self.found(Rule::W05, name, value);
                }
            }
            None if fragments.is_some_and(|fragments| fragments.malformed) => {
                self.found(Rule::W03, name, value);
            }
            None => {}
        }
        Some(read)
    }

    /// The one value that a B3 header stands for. `None` if it is absent or
    /// empty, `Err` if it holds several that differ, or is far too long: `malformed`
    /// is the rule that says so.
    fn value(
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
        let joined = beginning(value).contains(&b',');
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

    fn forgiven<T>(&mut self, name: &'static str, value: &'a [u8], read: &Lenient<T>) {
        if read.upper_case {
            self.found(Rule::L04, name, value);
        }
        if read.padded {
            self.found(Rule::L02, name, value);
        }
    }

    fn id<T: Copy>(
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

    fn multi(&mut self, headers: &TraceHeaders<'a>) -> MultiForm {
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
        MultiForm {
            b3: B3 { ids, sampling },
            fragments,
        }
    }

    fn structure(&mut self, name: &'static str, value: &'a [u8], mut ids: Ids) -> Ids {
        if ids.parent == Some(ids.span) {
            self.found(Rule::S04, name, value);
            ids.parent = None;
        }
        if ids.parent.is_some() && ids.span.value() == ids.trace.low() {
            self.found(Rule::S05, name, value);
        }
        ids
    }

    fn sampling(&mut self, headers: &TraceHeaders<'a>) -> Sampling {
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

    fn single(&mut self, field: Field<'a>) -> SingleForm {
        let name = headers::B3;
        let whole = field.value().unwrap_or_default();
        let text = match self.value(name, field, Rule::B01) {
            Ok(Some(text)) => text,
            Ok(None) => return SingleForm::Absent,
            Err(()) => return SingleForm::Malformed,
        };
        let (trace, span, state, odd_state, parent) = match Single::split(text) {
            None => {
                self.found(Rule::B01, name, whole);
                return SingleForm::Malformed;
            }
            Some(Single::State(sampling)) => {
                self.debug(sampling, whole);
                return SingleForm::Read(B3 {
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
                return SingleForm::Malformed;
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
        SingleForm::Read(B3 {
            ids: Some(self.structure(name, whole, ids)),
            sampling: state.unwrap_or_default(),
        })
    }

    fn debug(&mut self, sampling: Sampling, whole: &'a [u8]) {
        if sampling == Sampling::Debug {
            self.found(Rule::D04, headers::B3, whole);
        }
    }

    /// The two formats side by side, the one reading of both, and which of them is
    /// stale.
    fn both(
        &mut self,
        headers: &TraceHeaders<'a>,
        multi: &MultiForm,
        single: SingleForm,
    ) -> (B3, Formats) {
        let name = headers::B3;
        let value = headers.b3.value().unwrap_or_default();
        let multi = multi.b3;
        let mut stale = Formats::default();
        let b3 = match single {
            SingleForm::Absent | SingleForm::Malformed => multi,
            SingleForm::Read(single) => {
                let (ours, theirs) = (single.sampling.decided(), multi.sampling.decided());
                if ours.is_some() && theirs.is_some() && ours != theirs {
                    self.found(Rule::B05, name, value);
                }
                if single.ids.is_some() && ours.is_none() && theirs.is_some() {
                    self.found(Rule::B08, name, value);
                }
                let mut ids = single.ids.or(multi.ids);
                if let (Some(one), Some(other)) = (single.ids, multi.ids) {
                    stale = older(&one, &other);
                    let newer = if stale.single { other } else { one };
                    if one.trace.same(other.trace) {
                        ids = Some(newer);
                        if one.span != other.span {
                            let multi = (headers::SPAN_ID, headers.span_id);
                            let single = (name, headers.b3);
                            let (name, field) = if stale.multi { multi } else { single };
                            self.found(Rule::B03, name, field.value().unwrap_or_default());
                        } else if ours.or(theirs).is_some() {
                            if one.parent.is_none() && other.parent.is_some() {
                                self.found(Rule::B09, name, value);
                            }
                            let parent = one.parent.or(other.parent);
                            ids = Some(Ids { parent, ..one });
                        }
                    } else if is_cut(one.trace, other.trace) {
                        self.found(Rule::B04, name, value);
                        // The longer one is the original.
                        let wide = one.trace.value().max(other.trace.value());
                        let trace = TraceId::new(wide, true).unwrap_or(one.trace);
                        ids = Some(Ids { trace, ..newer });
                    } else {
                        self.found(Rule::B02, name, value);
                    }
                } else if multi.ids.is_some() {
                    self.found(Rule::B07, name, value);
                }
                let (first, second) = match stale.single {
                    true => (multi.sampling, single.sampling),
                    false => (single.sampling, multi.sampling),
                };
                let sampling = match (first, second) {
                    (Sampling::Defer, other) => other,
                    // One decision, of which debug says more.
                    (Sampling::Accept, Sampling::Debug) => Sampling::Debug,
                    (decided, _) => decided,
                };
                if sampling == Sampling::Defer && single.ids.is_some() {
                    // Without a decision there is no place in b3 for a parent.
                    ids = ids.map(|ids| Ids {
                        parent: None,
                        ..ids
                    });
                }
                B3 { ids, sampling }
            }
        };
        if !b3.is_empty() && b3.ids.is_some() == (b3.sampling == Sampling::Defer) {
            let (name, value) = match headers.multi().iter().find(|(_, f)| f.value().is_some()) {
                Some((name, field)) => (*name, field.value().unwrap_or_default()),
                None => (name, value),
            };
            self.found(Rule::S06, name, value);
        }
        (b3, stale)
    }
}

/// One of the two trace IDs is the other, cut to its low 64 bits somewhere.
fn is_cut(one: TraceId, other: TraceId) -> bool {
    let narrow = |trace: TraceId| trace.value() == u128::from(trace.low());
    one.low() == other.low() && (narrow(one) || narrow(other))
}

/// Which of the two formats names an older span: the parent of the other's. None
/// where they are of different traces, or it cannot be told.
fn older(single: &Ids, multi: &Ids) -> Formats {
    let same = single.trace.same(multi.trace) || is_cut(single.trace, multi.trace);
    let single_is = same && multi.parent == Some(single.span);
    let multi_is = same && single.parent == Some(multi.span);
    Formats {
        single: single_is && !multi_is,
        multi: multi_is && !single_is,
        w3c: false,
    }
}

fn rule_of(error: IdError) -> Rule {
    match error {
        IdError::Empty => Rule::L10,
        IdError::TooLong => Rule::L03,
        IdError::TooShort => Rule::L15,
        IdError::NotHex => Rule::L01,
        IdError::Zero => Rule::L05,
    }
}
