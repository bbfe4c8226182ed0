//! What was found and done, in a header, if the configuration asks for it
//! (`report_header`).

use super::request::Request;
use super::write::Written;
use super::{Filter, Outcome};
use crate::config::{Direction, ReportHeader};
use crate::metrics::{Counter, direction_label};
use crate::relay::Decision;

/// The header in which b3relay says what it found and did, if it is told to.
pub const REPORT: &str = "x-b3relay";

impl Written {
    /// What to count. `decision`: that of a call; one that was left alone for lack of room is
    /// counted by that alone.
    pub fn counters(
        &self,
        direction: Option<Direction>,
        decision: Option<Decision>,
    ) -> impl Iterator<Item = Counter> + use<> {
        let repaired = self.is_repaired.then_some(Counter::Repaired(direction));
        let lacks_room = !self.is_whole && decision != Some(Decision::TooLarge);
        let no_room = lacks_room.then_some(Counter::NoRoom(direction));
        repaired.into_iter().chain(no_room)
    }
}

impl Filter {
    /// Adds the header, as far as there is room.
    pub(super) fn report(
        &self,
        direction: Option<Direction>,
        request: &Request<'_>,
        outcome: &mut Outcome<'_>,
    ) {
        match self.config.report_header {
            ReportHeader::Off => {}
            ReportHeader::Request => {
                let report = summary(direction, outcome);
                outcome.edits.push(request.headers.edit(REPORT, report));
                if !request.headers.has_room(&outcome.edits) {
                    outcome.edits.pop();
                }
            }
            ReportHeader::Response => outcome.response_report = Some(summary(direction, outcome)),
        }
    }
}

/// What was found and done, in one line: the direction, the rules that are
/// broken, and each counter.
fn summary(direction: Option<Direction>, outcome: &Outcome<'_>) -> String {
    let mut text = direction_label(direction).to_string();
    for finding in &outcome.findings {
        for part in ["; ", finding.rule.id(), " ", finding.header] {
            text.push_str(part);
        }
    }
    for counter in &outcome.counters {
        let done = match counter {
            Counter::Calls(decision) => decision.label(),
            Counter::Remembered => "remembered",
            Counter::Restored => "restored x-request-id",
            Counter::RequestIds => "generated x-request-id",
            Counter::Repaired(_) => "repaired",
            Counter::Rejected(_) => "rejected",
            Counter::Ignored => "ignored context",
            Counter::Dropped => "dropped context",
            _ => continue,
        };
        text.push_str("; ");
        text.push_str(done);
    }
    text
}
