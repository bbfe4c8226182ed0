//! How a model is learned of an application under load, when hardly anything is certain.
//!
//! The last events are recorded. When there are enough, a study begins: a first guess at
//! which request made which call ([`declustering`]), and a few passes over the events, each
//! of which weighs all that may have happened by the model of the one before, and teaches
//! the next one ([`replay`]): expectation maximisation. There are several first guesses, and
//! the present model is one of them; the one that makes the events likeliest is adopted.
//!
//! A study is done in slices of a few milliseconds, between requests. Each worker has its
//! own: it reads the journals of all workers, so that all learn from the same events.

mod admission;
mod declustering;
mod recording;
mod replay;
mod study;

use super::engine::Engine;
use recording::{Recorded, Recording};
use study::Study;

pub(super) use recording::What;
pub(super) use study::Learned;

/// Work of one slice: a millisecond or two.
const SLICE: usize = 60_000;
/// Requests that each of the first studies is of.
const REQUESTS: [usize; 3] = [150, 450, 900];
/// Requests after the last study before the next ones, if the application has changed, and
/// if few calls are attributed. Twice as many after each time that nothing came of it.
const CHANGED: usize = 400;
const UNKNOWN: usize = 2000;
const DOUBLINGS_MOST: u32 = 6;
/// Two guesses that come to the same once may do so by chance.
const SUSPICION: u8 = 2;

/// Records what happens, and studies it from time to time.
#[derive(Debug, Default)]
pub(super) struct Learner {
    recording: Recording,
    study: Option<Box<Study>>,
    /// Studies that have come to an end since this began, or was begun anew.
    studies: usize,
    /// How often it was begun anew in vain, and requests since.
    in_vain: u32,
    requests: usize,
    /// So many studies without a doubt are wanted before a model is believed again.
    suspicion: u8,
    /// The part of all calls that may be given to a wrong request.
    wrong: f64,
}

impl Learner {
    /// Something has happened to the request, or call, of this number.
    pub(super) fn record(&mut self, at_us: u64, number: u64, what: What) {
        if let What::Begun(_) = what {
            self.requests = self.requests.saturating_add(1);
        }
        if self.study.is_none() && self.studies < REQUESTS.len() {
            self.recording.add(Recorded {
                at_us,
                number,
                what,
            });
        }
    }

    /// So many calls may be wrong, as a part of all.
    pub(super) fn allow(&mut self, wrong: f64) {
        self.wrong = wrong;
    }

    /// Something has happened that is not known.
    pub(super) fn forget(&mut self) {
        if self.study.is_none() {
            self.recording.clear();
        }
    }

    /// Does a slice of a study, if one is due: with this model, and so many requests served
    /// at once, as a first guess. Returns what has been learned, and whether there is more to
    /// do at once.
    pub(super) fn learn(&mut self, live: &Engine, limit: Option<usize>) -> (Option<Learned>, bool) {
        let Some(due) = REQUESTS.get(self.studies) else {
            self.begin_anew(live);
            return (None, false);
        };
        if self.study.is_none() && (self.recording.requests() >= *due || self.recording.is_full()) {
            let events = self.recording.events();
            let knows = self.studies > 0 && live.acceptance.is_high() && !live.is_doubtful;
            let study = Study::new(events, &live.model, limit, !knows);
            self.study = Some(Box::new(study));
        }
        let Some(study) = &mut self.study else {
            return (None, false);
        };
        let mut learned = study.work(self.recording.events(), SLICE, self.wrong);
        if let Some(Learned { engine, .. }) = &mut learned {
            self.suspicion = match engine.is_doubtful {
                true => SUSPICION,
                false => self.suspicion.saturating_sub(1),
            };
            engine.is_doubtful = self.suspicion > 0;
            self.study = None;
            self.studies += 1;
            self.requests = 0;
            self.recording.clear();
        }
        (learned, self.study.is_some())
    }

    /// Begins anew if the application has changed, or little is known of it.
    fn begin_anew(&mut self, live: &Engine) {
        let changed = live.surprises.are_many();
        let after = if changed { CHANGED } else { UNKNOWN };
        if self.requests < after << self.in_vain {
            return;
        }
        if changed || live.is_doubtful || !live.acceptance.is_high() {
            self.studies = usize::from(!changed);
            self.in_vain = (self.in_vain + 1).min(DOUBLINGS_MOST);
        } else {
            self.in_vain = 0;
        }
        self.requests = 0;
    }
}
