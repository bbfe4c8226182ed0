//! What is stored of an inbound request, what is copied onto a call, and when a call is
//! left alone.
//!
//! A wrong stitch is worse than a missing one: [`decide`] copies only what it
//! is sure of, and names its reason either way.
//!
//! The trace context and the headers of the copy list are two things. A trace context
//! says of which trace a call is, and requests of one trace may stand for each other.
//! The headers of the copy list say whose a request is (a tenant, a user), and no
//! request may stand for another: see [`match_request`].
//!
//! | module | what it knows |
//! |---|---|
//! | `tracer` | which context of a request is the newer one |
//! | `stored` | what is stored of an inbound request, and its bytes |
//! | `matching` | the request that a call belongs to |
//! | `plan` | what is done with a call |
//! | `copy` | headers that are copied as they are |
//! | `propagation` | the rules of propagation |
//! | `inject` | a context written into headers |

mod copy;
mod inject;
mod matching;
mod plan;
mod propagation;
mod stored;
mod tracer;

pub use inject::rewrite;
pub use matching::{Match, OF_ANY, OF_SOME, SpanRefs, all_of_other_traces, last_of, match_request};
pub use plan::{CallPlan, Injection, OwnTrace, decide, present};
pub use propagation::propagation;
pub use stored::{COPIED_MOST, Headers, StoredContext};
pub use tracer::{KnownTracer, Tracer, W3cState, newest};

use crate::rules::Extracted;

macro_rules! decisions {
    ($($name:ident, $label:literal, $meaning:literal;)*) => {
        /// What was done with an outbound call, and why.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Decision {
            $(#[doc = $meaning] $name,)*
        }

        impl Decision {
            /// Every decision.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The metric's label.
            pub fn label(self) -> &'static str {
                match self { $(Self::$name => $label,)* }
            }

            /// In words.
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$name => $meaning,)* }
            }
        }
    };
}

decisions! {
    Present, "present", "the call carries a context of its own: left as it is";
    Copied, "copied", "the call carried none: the remembered context was copied onto it";
    Completed, "completed", "the call carried a part of the remembered context: the rest was copied";
    Exclusive, "exclusive", "the call carried nothing, and only one request is being served, or the call is in the made-up trace of a call that was attributed so: its context was copied (`attribution`)";
    Token, "token", "the call carried nothing but an identifier that one request in flight has: its context was copied (`attribution`)";
    Inferred, "inferred", "the call carried nothing, and by what requests do it is almost certainly of one of those in flight: its context was copied (`attribution`)";
    Unsure, "unsure", "the call carried nothing, and may be of several requests in flight, or of none: left alone (`attribution`)";
    NoKey, "no_key", "the call carries nothing to look it up by (`keys`), and is not attributed: left alone";
    Unknown, "unknown", "no request with this request ID (or other key) is being served: left alone (also where the application forwards none, Envoy has made up a new one, and calls are not attributed)";
    NoContext, "no_context", "the inbound request came without a context: nothing to copy";
    Ambiguous, "ambiguous", "requests of different traces with this request ID (or other key) are being served: left alone";
    Conflict, "conflict", "the call carries a part of some other context: left alone";
    Malformed, "malformed", "the call carries identifiers that cannot be read: left alone";
    SamplingOnly, "sampling_only", "the call says b3: 0, 1 or d, a decision of its own: left alone";
    Outside, "outside", "the call goes to a host outside the mesh: nothing was copied (`outside`)";
    TooLarge, "too_large", "with the context the call would have more than 95 headers, or 58 KiB of them, and the next Envoy takes 100 and 60 KiB with its own: left alone";
    Off, "off", "the relay is switched off";
}

/// Whether a call needs a look-up at all. `Err` holds the decision where it
/// doesn't.
///
/// `discard_malformed`: identifiers that cannot be read count as absent, since
/// they are about to be removed.
pub fn before_lookup(checked: &Extracted<'_>, discard_malformed: bool) -> Result<(), Decision> {
    if checked.b3.ids.is_some() {
        return Err(Decision::Present);
    }
    if checked.single_decides {
        return Err(Decision::SamplingOnly);
    }
    let malformed = checked
        .fragments
        .is_some_and(|fragments| fragments.malformed);
    if malformed && !discard_malformed {
        return Err(Decision::Malformed);
    }
    Ok(())
}
