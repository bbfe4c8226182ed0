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
use crate::attribution::names::{NAMES, Name};
use recording::{Recorded, Recording};
use study::{ANEW, Study};

pub(super) use recording::What;
pub(super) use study::Learned;

/// Work of one slice: a millisecond or two.
const SLICE: usize = 60_000;
/// One slice is done in the time of so many requests, so that learning takes about as many
/// requests at any rate: at least one in [`PACE_US`] microseconds, and at most [`FASTEST`].
const PACE: u64 = 20;
const FASTEST: u64 = 4;
const PACE_US: u64 = 100_000;
/// Requests that each of the first studies is of.
const REQUESTS: [usize; 3] = [150, 450, 900];
/// Requests after the last study before the next ones, if the application has changed, and
/// if few calls are attributed. Twice as many after each time that nothing came of it.
const CHANGED: usize = 400;
const UNKNOWN: usize = 2000;
const DOUBLINGS_MOST: u32 = 6;
/// Two guesses that come to the same once, or a few times, may do so by chance.
const SUSPICION: u8 = 4;
/// More than any name.
const KIND: u64 = NAMES as u64;

/// Records what happens, and studies it from time to time.
#[derive(Debug, Default)]
pub(super) struct Learner {
    recording: Recording,
    study: Option<Box<Study>>,
    /// Names that have been given to others since the study began: of routes, and of kinds,
    /// to which [`KIND`] is added. With `u64` the module has no further copy of `Vec`'s growth.
    forgotten: Vec<u64>,
    /// Studies that have come to an end since this began, or was begun anew.
    studies: usize,
    /// How often it was begun anew in vain, and requests since.
    in_vain: u32,
    requests: usize,
    /// Requests since a time, in microseconds; and how many slices are done in [`PACE_US`].
    came: u64,
    since_us: u64,
    pace: u64,
    /// So many studies without a doubt are wanted before a model is believed again.
    suspicion: u8,
    /// The part of all calls that may be given to a wrong request.
    wrong: f64,
}

impl Learner {
    /// Something has happened to the request, or call, of this number.
    pub(super) fn record(&mut self, at_us: u64, number: u64, what: What) {
        if let What::Begun { .. } = what {
            self.requests = self.requests.saturating_add(1);
            self.came += 1;
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

    /// A name is of another route, or kind, from now on.
    pub(super) fn forget_name(&mut self, is_kind: bool, name: Name) {
        let forgotten = u64::from(name) + if is_kind { KIND } else { 0 };
        if self.study.is_none() {
            self.recording.forget_name(is_kind, name);
        } else if !self.forgotten.contains(&forgotten) {
            self.forgotten.push(forgotten);
        }
    }

    /// Does a slice of a study, if one is due: with this model, and so many requests served
    /// at once, as a first guess. Returns what has been learned, and how many slices are to be
    /// done in [`PACE_US`] from now on; 0 if there is nothing to do.
    pub(super) fn learn(
        &mut self,
        now_us: u64,
        live: &Engine,
        limit: Option<usize>,
    ) -> (Option<Learned>, u64) {
        let passed_us = now_us.saturating_sub(self.since_us);
        if passed_us >= PACE_US {
            let came = self.came * PACE_US / passed_us;
            self.pace = (came / PACE).min(FASTEST);
            (self.came, self.since_us) = (0, now_us);
        }
        let Some(due) = REQUESTS.get(self.studies) else {
            self.begin_anew(live);
            return (None, 0);
        };
        if self.study.is_none() && (self.recording.requests() >= *due || self.recording.is_full()) {
            let others = self.others(live);
            let study = Study::new(self.recording.events(), &live.model, limit, others);
            self.study = Some(Box::new(study));
        }
        let Some(study) = &mut self.study else {
            return (None, 0);
        };
        let mut learned = study.work(self.recording.events(), SLICE, self.wrong);
        if let Some(learned) = &mut learned {
            self.suspicion = self.suspicion_after(learned, live);
            let engine = &mut learned.engine;
            engine.is_doubtful = self.suspicion > 0;
            while let Some(forgotten) = self.forgotten.pop() {
                engine.forget_name(forgotten >= KIND, forgotten as Name);
            }
            self.study = None;
            self.studies += 1;
            self.requests = 0;
            self.recording.clear();
        }
        match self.study {
            Some(_) => (learned, self.pace.max(1)),
            None => (learned, 0),
        }
    }

    /// How many first guesses a study has besides the present model.
    fn others(&self, live: &Engine) -> usize {
        match (self.studies, self.in_vain) {
            (0, _) => ANEW,
            _ if live.is_doubtful => ANEW,
            // The first study was of a few requests: few calls are accepted in any case, and
            // it may not have seen that another guess explains as much.
            (1, 0) => 1,
            _ if live.acceptance.is_high() => 0,
            _ => ANEW,
        }
    }

    /// How many studies without a doubt are wanted after this one.
    fn suspicion_after(&self, learned: &Learned, live: &Engine) -> u8 {
        // The first study is of a few requests. If the present model, which was taught by what
        // was certain, explains them best, and finds most calls, a rival is chance.
        let is_first = self.studies == 0 && self.in_vain == 0;
        let is_taught = is_first && learned.is_present && live.acceptance.is_high();
        match learned.engine.is_doubtful && !is_taught {
            true => SUSPICION,
            false => self.suspicion.saturating_sub(1),
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn begun(route: Name) -> What {
        What::Begun {
            route,
            connection: 0,
        }
    }

    /// Requests of routes 1 to 3, each of which makes a call of the kind of its route.
    fn record(learner: &mut Learner, requests: usize) {
        for n in 0..requests as u64 {
            let (at_us, name) = (10_000 * n, 1 + (n % 3) as u8);
            let call = What::Called {
                kind: name,
                port: 0,
            };
            let end = What::Ended { answered: true };
            learner.record(at_us, n, begun(name));
            learner.record(at_us + 1_000, 100_000 + n, call);
            learner.record(at_us + 2_000, 100_000 + n, What::Returned);
            learner.record(at_us + 3_000, n, end);
        }
    }

    #[test]
    fn a_name_that_is_given_to_another_is_renamed_in_the_recording() {
        let mut learner = Learner::default();
        record(&mut learner, 9);
        learner.forget_name(false, 2);
        learner.forget_name(true, 3);
        let events = || learner.recording.events().iter();
        let with = |what: fn(What) -> bool| events().filter(|event| what(event.what)).count();
        assert_eq!(events().count(), 36);
        assert_eq!(with(|what| what == begun(0)), 3);
        assert_eq!(with(|what| what == begun(2)), 0);
        assert_eq!(with(|what| what == begun(3)), 3);
        assert_eq!(with(|what| matches!(what, What::Called { kind: 0, .. })), 3);
        assert_eq!(with(|what| matches!(what, What::Called { kind: 3, .. })), 0);
    }

    #[test]
    fn a_name_that_was_given_to_another_during_a_study_does_not_come_back() {
        for is_forgotten in [false, true] {
            let (mut learner, live) = (Learner::default(), Engine::default());
            record(&mut learner, 200);
            assert!(
                learner.learn(0, &live, None).0.is_none(),
                "it has just begun"
            );
            if is_forgotten {
                learner.forget_name(false, 2);
            }
            let mut slices = (0..100_000).map(|_| learner.learn(0, &live, None));
            let mut learned = slices.find_map(|(learned, _)| learned).unwrap();
            for route in 1..4 {
                let is_known = learned.engine.is_known_route(route);
                assert_eq!(is_known, !is_forgotten || route != 2, "route {route}");
            }
        }
    }

    fn live(is_high: bool) -> Engine {
        let mut live = Engine::default();
        let share = if is_high { 0.9999 } else { 0.6 };
        for _ in 0..1000 {
            live.acceptance.add(share, 0.0);
            live.acceptance.accept(share, 0.0, 1.0, 0.005);
        }
        live
    }

    #[test]
    fn a_doubt_of_the_first_study_is_chance_if_the_present_model_is_best() {
        let learned = |is_doubtful, is_present| {
            let mut learned = Learned::default();
            learned.engine.is_doubtful = is_doubtful;
            learned.is_present = is_present;
            learned
        };
        let mut learner = Learner::default();
        for (is_doubtful, is_present, is_high, suspicion) in [
            (true, true, true, 0),
            (true, false, true, SUSPICION),
            (true, true, false, SUSPICION),
            (false, false, false, 0),
        ] {
            let learned = learned(is_doubtful, is_present);
            let found = learner.suspicion_after(&learned, &live(is_high));
            assert_eq!(found, suspicion, "{is_doubtful} {is_present} {is_high}");
        }
        for (studies, in_vain) in [(1, 0), (0, 1)] {
            (learner.studies, learner.in_vain) = (studies, in_vain);
            let found = learner.suspicion_after(&learned(true, true), &live(true));
            assert_eq!(found, SUSPICION, "{studies} {in_vain}");
        }
    }

    #[test]
    fn a_study_has_no_other_guess_only_if_most_calls_were_found_after_the_second() {
        let mut learner = Learner::default();
        for (studies, in_vain, is_high, is_doubtful, others) in [
            (0, 0, true, false, ANEW),
            (1, 0, true, false, 1),
            (1, 0, false, false, 1),
            (1, 0, true, true, ANEW),
            (1, 1, true, false, 0),
            (1, 1, false, false, ANEW),
            (2, 0, true, false, 0),
            (2, 0, false, false, ANEW),
            (2, 0, true, true, ANEW),
        ] {
            (learner.studies, learner.in_vain) = (studies, in_vain);
            let mut live = live(is_high);
            live.is_doubtful = is_doubtful;
            let case = format!("{studies} {in_vain} {is_high} {is_doubtful}");
            assert_eq!(learner.others(&live), others, "{case}");
        }
    }
}
