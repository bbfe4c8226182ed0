//! Step 5: the plan, turned into edits, as far as there is room.

use super::Filter;
use super::request::Request;
use crate::b3::{Ids, Sampling};
use crate::config::Mode;
use crate::headers::{self, Edit};
use crate::relay::{self, Injection};
use crate::rules::Formats;

/// What is to be written onto a request.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Written whatever the size.
    pub always: Vec<Edit>,
    /// What mode `repair` writes.
    pub repair: Option<Injection>,
    /// The one of several request IDs that mode `repair` keeps.
    pub request_id: Option<Vec<u8>>,
    /// What the request is to say in the end; `None` to leave it.
    pub injection: Option<Injection>,
    /// The formats that stay as they are.
    pub unchanged: Formats,
    /// What else is to change.
    pub edits: Vec<Edit>,
}

impl Plan {
    /// Something would be written besides what always is.
    pub fn writes(&self) -> bool {
        self.injection.is_some() || self.request_id.is_some()
    }
}

/// What was written.
pub(super) struct Written {
    /// All changes, in order.
    pub edits: Vec<Edit>,
    /// All that was planned.
    pub is_whole: bool,
    /// What mode `repair` writes.
    pub is_repaired: bool,
    /// The formats of the context that the request has now.
    pub formats: Formats,
    /// All of them say the same.
    pub agree: bool,
}

impl Filter {
    /// Turns a plan into edits: the whole of it, or if the request would become larger
    /// than the next proxy takes, only the repair, or only what is always written.
    pub(super) fn write(&self, request: &Request<'_>, plan: Plan) -> Written {
        let Request {
            headers, extracted, ..
        } = request;
        let readable = |injection: Injection| match self.config.mode {
            Mode::Repair => readable_by_all(injection),
            Mode::Observe | Mode::Enforce => injection,
        };
        let [repair, injection] = [plan.repair, plan.injection].map(|one| one.map(readable));
        let rewritten = |injection: Option<Injection>, unchanged: Formats| {
            injection.map_or_else(Vec::new, |injection| {
                relay::rewrite(headers, &injection, unchanged)
            })
        };
        let formats = |injection: Option<Injection>| match injection {
            Some(injection) => injection.formats,
            None => renewed(request),
        };
        let agree =
            |injection: Option<Injection>| injection.is_some() || extracted.stale.is_empty();
        let mut edits = plan.always;
        let always = edits.len();
        let request_id = plan.request_id;
        edits.extend(request_id.map(|id| Edit::set(headers::REQUEST_ID, id)));
        let with_id = edits.len();
        let repairing = rewritten(repair, Formats::default());
        let is_repaired = repair.is_some() && (!repairing.is_empty() || with_id > always);
        append(&mut edits, rewritten(injection, plan.unchanged));
        append(&mut edits, plan.edits);
        if headers.has_room(&edits) {
            return Written {
                edits,
                is_whole: true,
                is_repaired,
                formats: formats(injection),
                agree: agree(injection),
            };
        }
        edits.truncate(with_id);
        edits.extend(repairing);
        if headers.has_room(&edits) {
            return Written {
                edits,
                is_whole: false,
                is_repaired,
                formats: formats(repair),
                agree: agree(repair),
            };
        }
        edits.truncate(always);
        Written {
            edits,
            is_whole: false,
            is_repaired: false,
            formats: formats(None),
            agree: agree(None),
        }
    }
}

/// Moves edits behind others; into an empty list without a copy.
fn append(edits: &mut Vec<Edit>, mut more: Vec<Edit>) {
    match edits.is_empty() {
        true => *edits = more,
        false => edits.append(&mut more),
    }
}

/// The formats of a request that is not rewritten. One that the tracer of this sidecar
/// leaves as it was, the next one will leave, too.
fn renewed(request: &Request<'_>) -> Formats {
    let all = request.extracted.formats;
    let renewed = all.without(request.extracted.stale);
    match renewed.multi || renewed.single {
        true => Formats {
            w3c: all.w3c,
            ..renewed
        },
        false => all,
    }
}

/// What a single header cannot say so that everybody reads it: debug (D04) goes
/// into the multiple headers beside it, and a parent without a decision (B06), for which
/// the grammar has no place, is left out of both.
fn readable_by_all(mut injection: Injection) -> Injection {
    let Injection { b3, formats, .. } = &mut injection;
    formats.multi |= formats.single && b3.sampling == Sampling::Debug;
    if formats.single && b3.sampling == Sampling::Defer {
        b3.ids = b3.ids.map(|ids| Ids {
            parent: None,
            ..ids
        });
    }
    injection
}
