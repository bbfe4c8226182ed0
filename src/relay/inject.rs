//! Writing a context into the headers of a request.

use super::plan::Injection;
use crate::b3::{B3, Ids, Sampling};
use crate::headers::{self, Edit, Field, TraceHeaders};
use crate::rules::{Extracted, Formats};
use crate::w3c::{self, TraceParent};

/// The edits after which a request has just this context, in these formats. Headers
/// that are right already are not touched, nor are those of a format in `unchanged`, nor
/// a `traceparent` that is there, unless it is to be replaced: it may be of a span
/// that the application reports itself.
///
/// Debug is written as `x-b3-flags: 1` and `x-b3-sampled: 1`: the specification
/// asks for the first alone, but Envoy's Zipkin tracer reads only the second. Where
/// they say it, `b3` says `1`: not everybody who reads `b3` knows its `d`.
pub fn rewrite(headers: &TraceHeaders<'_>, injection: &Injection, unchanged: Formats) -> Vec<Edit> {
    let Injection { b3, formats, .. } = injection;
    let hex = |write: &dyn Fn(&mut Vec<u8>)| {
        let mut text = Vec::with_capacity(32);
        write(&mut text);
        text
    };
    let ids = b3.ids.filter(|_| formats.multi);
    let sampled = b3.sampling.decided().filter(|_| formats.multi);
    let sampled = sampled.map(|yes| if yes { b"1".to_vec() } else { b"0".to_vec() });
    let debug = (formats.multi && b3.sampling == Sampling::Debug).then(|| b"1".to_vec());
    let mut single = *b3;
    if debug.is_some() {
        single.sampling = Sampling::Accept;
    }
    let mut edits = Vec::with_capacity(5);
    let mut write = |name: &'static str, field: Field<'_>, value: Option<Vec<u8>>| match value {
        Some(value) if field.repeated() || !field.is(&value) => {
            edits.push(headers.edit(name, value));
        }
        None if field.value().is_some() => edits.push(Edit::remove(name)),
        _ => {}
    };
    if !unchanged.multi {
        let trace = ids.map(|ids| hex(&|to| ids.trace.write(to)));
        let span = ids.map(|ids| hex(&|to| ids.span.write(to)));
        let parent = ids.and_then(|ids| ids.parent);
        let parent = parent.map(|id| hex(&|to| id.write(to)));
        write(headers::TRACE_ID, headers.trace_id, trace);
        write(headers::SPAN_ID, headers.span_id, span);
        write(headers::PARENT_SPAN_ID, headers.parent_span_id, parent);
        write(headers::SAMPLED, headers.sampled, sampled);
        write(headers::FLAGS, headers.flags, debug);
    }
    if !unchanged.single {
        let single = formats.single.then(|| single.single()).flatten();
        write(headers::B3, headers.b3, single);
    }
    let sampled = w3c::sampled(b3.sampling, injection.deferred);
    let w3c = b3
        .ids
        .zip(sampled)
        .filter(|_| formats.w3c && !unchanged.w3c);
    if let Some((ids, sampled)) = w3c {
        let value = w3c::write(ids, sampled);
        let given = headers.traceparent;
        let is_right = given.value() == Some(&value) && !given.repeated();
        if given.value().is_none() || (injection.replaces_traceparent && !is_right) {
            edits.push(headers.edit(headers::TRACEPARENT, value));
        }
    }
    edits
}

/// A sampling decision for B3 that leaves it open, and the edits that add it: to those formats
/// that have just the identifiers that count. A `traceparent` of the same span that is not sampled
/// counts before `sampling`.
pub(super) fn added_decision(
    headers: &TraceHeaders<'_>,
    checked: &Extracted<'_>,
    sampling: Sampling,
) -> (Sampling, Vec<Edit>) {
    let (Some(ids), Sampling::Defer) = (checked.b3.ids, checked.b3.sampling) else {
        return (Sampling::Defer, Vec::new());
    };
    let of_span = |w3c: &TraceParent| w3c.trace.same(ids.trace) && w3c.span == ids.span;
    let sampling = match checked.w3c.filter(of_span) {
        Some(w3c) if !w3c.sampled => Sampling::Deny,
        _ => sampling,
    };
    let mut b3 = B3 {
        ids: Some(Ids {
            parent: None,
            ..ids
        }),
        sampling: Sampling::Defer,
    };
    let open = b3.single().unwrap_or_default();
    let is = |field: Field<'_>, value: Option<&[u8]>| !field.repeated() && field.value() == value;
    let mut parts = open.split(|&byte| byte == b'-');
    let mut is_part = |field| is(field, parts.next());
    let formats = Formats {
        multi: is_part(headers.trace_id) && is_part(headers.span_id),
        single: is(headers.b3, Some(&open)),
        w3c: false,
    };
    b3.sampling = sampling;
    let injection = Injection {
        b3,
        formats,
        ..Injection::default()
    };
    let mut edits = rewrite(headers, &injection, Formats::ALL.without(formats));
    // The parent stays as it is.
    edits.retain(|edit| [headers::SAMPLED, headers::FLAGS, headers::B3].contains(&edit.name()));
    (sampling, edits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::headers::Wanted;
    use crate::rules::check;

    const W3C: (&str, &str) = (
        "traceparent",
        "00-463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312-01",
    );
    const ALL: [(&str, &str); 6] = [
        ("x-b3-traceid", "463ac35c9f6413ad48485a3953bb6124"),
        ("x-b3-spanid", "a2fb4a1d1a96d312"),
        ("x-b3-parentspanid", "0020000000000001"),
        ("x-b3-sampled", "1"),
        (
            "b3",
            "463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312-1-0020000000000001",
        ),
        W3C,
    ];

    /// The names in the edits that make such a request say what it says in all formats.
    fn edited(headers: &[(&str, &str)], replaces_traceparent: bool) -> Vec<String> {
        let pairs = headers.iter().map(|(n, v)| (n.as_bytes(), v.as_bytes()));
        let read = TraceHeaders::read(pairs, &Wanted::default());
        let injection = Injection {
            b3: check(&read).b3,
            formats: Formats {
                multi: true,
                single: true,
                w3c: true,
            },
            replaces_traceparent,
            deferred: None,
        };
        let edits = rewrite(&read, &injection, Formats::default());
        edits.iter().map(|edit| edit.name().to_string()).collect()
    }

    #[test]
    fn what_is_right_already_is_not_written_again() {
        for replaces_traceparent in [false, true] {
            assert_eq!(edited(&ALL, replaces_traceparent), [""; 0]);
        }
    }

    #[test]
    fn what_is_there_twice_is_written_once() {
        for (at, again) in ALL.into_iter().enumerate().take(5) {
            let twice = [&ALL[..], &[again]].concat();
            assert_eq!(edited(&twice, false), [ALL[at].0]);
        }
        let twice = [&ALL[..], &[W3C]].concat();
        assert_eq!(edited(&twice, false), [""; 0]);
        assert_eq!(edited(&twice, true), ["traceparent"]);
    }

    #[test]
    fn a_traceparent_that_is_there_is_replaced_only_if_it_is_to_be() {
        let other = (
            "traceparent",
            "00-463ac35c9f6413ad48485a3953bb6124-1111111111111111-01",
        );
        let given = [&ALL[..5], &[other]].concat();
        assert_eq!(edited(&given, false), [""; 0]);
        assert_eq!(edited(&given, true), ["traceparent"]);
    }
}
