//! A study of recorded events, in slices.

use super::admission;
use super::declustering::{Declustering, Start};
use super::recording::Recorded;
use super::replay::Replay;
use crate::attribution::inferred::engine::Engine;
use crate::attribution::inferred::model::Model;

/// Passes over the events for each first guess, and for the best one further at most.
const PASSES: usize = 3;
const FURTHER_PASSES: usize = 5;
/// Another pass is worth its time if it makes the events likelier by this for each of them,
/// in nats.
const WORTH: f64 = 0.002;
/// Another guess explains the events about as well if it makes them less likely by no more
/// than this for each of them, in nats.
const AS_WELL: f64 = 0.25;
/// The part of the calls of which two such guesses may say otherwise, and so many calls more:
/// where few are sure, one is chance.
const OTHERWISE: f32 = 0.01;
const BY_CHANCE: f32 = 2.0;
/// Work of an event, at least.
const EVENT: usize = 24;

/// First guesses that know nothing of the present model. The first is the only rival that the
/// second study has: where it says otherwise, jobs in a queue are found out.
const STARTS: [Start; 3] = [
    Start {
        background: false,
        budget: false,
    },
    Start {
        background: false,
        budget: true,
    },
    Start {
        background: true,
        budget: true,
    },
];
/// All of them.
pub(super) const ANEW: usize = STARTS.len();

/// What a first guess rests on.
#[derive(Clone, Copy, Debug)]
struct Guess {
    /// `None`: the present model.
    start: Option<Start>,
    /// Requests are let in one after the other: an index of the limits.
    limit: usize,
}

/// Limits, and the events as they would be with each; none, if it is none.
type Admitted = [(usize, Vec<Recorded>); 2];

impl Guess {
    /// The present model, and no limit.
    const NONE: Self = Self {
        start: None,
        limit: 2,
    };

    /// The limit, and the events, if they are others.
    fn admitted(self, admitted: &Admitted) -> Option<&(usize, Vec<Recorded>)> {
        let with_limit = admitted.get(self.limit);
        with_limit.filter(|(_, events)| !events.is_empty())
    }
}

/// What has been learned.
#[derive(Debug)]
#[cfg_attr(test, derive(Default))]
pub(in crate::attribution::inferred) struct Learned {
    /// With what was found out about the verdicts by its model.
    pub(in crate::attribution::inferred) engine: Engine,
    /// How many requests the application serves at once.
    pub(in crate::attribution::inferred) limit: Option<usize>,
    /// No other first guess explained the events better than the present model.
    pub(super) is_present: bool,
    evidence: f64,
    /// Of each call: the likeliest request, if it is likely enough.
    verdicts: Vec<Option<u64>>,
}

impl Learned {
    /// The part of the calls of which both are sure and another guess says otherwise.
    fn otherwise(&self, other: &Self) -> f32 {
        let both = self.verdicts.iter().zip(&other.verdicts);
        let (mut all, mut otherwise) = (1.0, -BY_CHANCE);
        for (a, b) in both {
            if let (Some(a), Some(b)) = (a, b) {
                all += 1.0;
                otherwise += f32::from(u8::from(a != b));
            }
        }
        otherwise / all
    }
}

/// What a study is doing.
#[derive(Debug)]
enum Stage {
    Declustering(Box<Declustering>),
    Replaying(Box<Replay>),
}

/// A study of recorded events.
#[derive(Debug)]
pub(super) struct Study {
    /// The limits that there may be.
    admitted: Admitted,
    guesses: Vec<Guess>,
    guess: Guess,
    stage: Stage,
    /// Index of the next event.
    at: usize,
    /// Replays of this guess that are over, and the evidence of the last one.
    passes: usize,
    evidence: f64,
    best: Option<(Guess, Learned)>,
    /// The best is being improved.
    is_last: bool,
}

impl Study {
    /// Of these events. The present model is the first guess, besides so many `others`, with
    /// each of the limits; `limit`: how many requests are served at once by the present model.
    pub(super) fn new(
        events: &[Recorded],
        present: &Model,
        limit: Option<usize>,
        others: usize,
    ) -> Self {
        let [by_calls, by_ends] = admission::limits(events);
        let by_calls = match by_calls {
            0 => limit.unwrap_or(0),
            by_calls => by_calls,
        };
        let admitted = [by_calls, if by_ends == by_calls { 0 } else { by_ends }].map(|limit| {
            let admitted = (limit > 0).then(|| admission::admitted(events, limit));
            (limit, admitted.flatten().unwrap_or_default())
        });
        let (mut guesses, mut guess) = (Vec::new(), Guess::NONE);
        for (at, (served, events)) in admitted.iter().enumerate() {
            // The present model is of the present limit.
            let is_present = limit == Some(*served);
            if !events.is_empty() && (is_present || guess.limit == Guess::NONE.limit) {
                guess.limit = at;
            }
        }
        for start in STARTS.into_iter().take(others).map(Some) {
            for limit in 0..=Guess::NONE.limit {
                let guess = Guess { start, limit };
                if limit == Guess::NONE.limit || guess.admitted(&admitted).is_some() {
                    guesses.push(guess);
                }
            }
        }
        Self {
            admitted,
            guesses,
            guess,
            stage: Stage::Replaying(Box::new(Replay::new(present.clone()))),
            at: 0,
            passes: 0,
            evidence: f64::NEG_INFINITY,
            best: None,
            is_last: false,
        }
    }

    /// Does about so much work. Returns what has been learned if that was the end.
    pub(super) fn work(
        &mut self,
        recorded: &[Recorded],
        most: usize,
        wrong: f64,
    ) -> Option<Learned> {
        let mut work = 0;
        while work < most {
            let events = self
                .guess
                .admitted(&self.admitted)
                .map_or(recorded, |(_, events)| events);
            work += EVENT;
            match (&mut self.stage, events.get(self.at)) {
                (Stage::Declustering(declustering), Some(event)) => {
                    work += declustering.event(event);
                    self.at += 1;
                }
                (Stage::Replaying(replay), Some(event)) => {
                    work += replay.event(event, wrong);
                    self.at += 1;
                }
                (Stage::Declustering(declustering), None) => {
                    self.at = 0;
                    if declustering.end_pass() {
                        let owners = declustering.take_owners();
                        self.stage = Stage::Replaying(Box::new(Replay::guessed(owners)));
                    }
                }
                (Stage::Replaying(replay), None) => {
                    self.at = 0;
                    let replay = std::mem::replace(&mut **replay, Replay::new(Model::default()));
                    let worth = WORTH * events.len() as f64;
                    if let Some(model) = self.end_replay(replay, worth) {
                        self.stage = Stage::Replaying(Box::new(Replay::new(model)));
                    } else if self.is_last {
                        return self.best.take().map(|(_, learned)| learned);
                    } else {
                        self.next_guess(recorded);
                    }
                }
            }
        }
        None
    }

    /// A replay is over. Returns the model for the next one; `None` if no other one of this
    /// guess is worth it.
    fn end_replay(&mut self, replay: Replay, worth: f64) -> Option<Model> {
        let is_guessed = replay.is_guessed();
        let (lesson, mut engine) = replay.finish();
        if is_guessed {
            return Some(lesson.model);
        }
        self.passes += 1;
        let gained = lesson.evidence - self.evidence;
        self.evidence = lesson.evidence;
        let goes_on = match self.is_last {
            false => self.passes < PASSES,
            true => self.passes < FURTHER_PASSES && gained > worth,
        };
        if goes_on {
            return Some(lesson.model);
        }
        engine.model = lesson.model;
        let limit = self.guess.admitted(&self.admitted).map(|(limit, _)| *limit);
        let mut learned = Learned {
            engine,
            limit,
            is_present: self.guess.start.is_none(),
            evidence: lesson.evidence,
            verdicts: lesson.verdicts,
        };
        let Some((of, best)) = &mut self.best else {
            self.best = Some((self.guess, learned));
            return None;
        };
        if self.is_last {
            learned.engine.is_doubtful = best.engine.is_doubtful;
        } else {
            let gap = (learned.evidence - best.evidence).abs();
            let is_doubtful = gap < AS_WELL / WORTH * worth && learned.otherwise(best) > OTHERWISE;
            learned.engine.is_doubtful = is_doubtful;
            best.engine.is_doubtful |= is_doubtful;
        }
        if learned.evidence > best.evidence {
            (*of, *best) = (self.guess, learned);
        }
        None
    }

    /// Begins with the next guess, or to improve the best.
    fn next_guess(&mut self, events: &[Recorded]) {
        self.passes = 0;
        self.evidence = f64::NEG_INFINITY;
        if let Some(guess) = self.guesses.pop() {
            self.guess = guess;
            let events = guess
                .admitted(&self.admitted)
                .map_or(events, |(_, events)| events);
            if let Some(start) = guess.start {
                self.stage = Stage::Declustering(Box::new(Declustering::new(events, start)));
            }
        } else if let Some((guess, learned)) = &self.best {
            self.guess = *guess;
            self.evidence = learned.evidence;
            self.is_last = true;
            let replay = Replay::new(learned.engine.model.clone());
            self.stage = Stage::Replaying(Box::new(replay));
        }
    }
}
