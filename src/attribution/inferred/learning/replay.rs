//! Recorded events once more, by a model that stays as it is, to teach another one.

use super::recording::{Recorded, What};
use crate::attribution::in_flight::{InFlight, Request};
use crate::attribution::inferred::NewCall;
use crate::attribution::inferred::engine::{Engine, Lesson};
use crate::attribution::inferred::model::Model;

/// A pass over recorded events.
#[derive(Debug)]
pub(super) struct Replay {
    engine: Engine,
    in_flight: InFlight,
    now_us: Option<u64>,
    began_us: u64,
    /// The request that the next call is known to belong to.
    owner: Option<u64>,
    /// The owner of each further call, if that has been guessed.
    guessed: Option<std::vec::IntoIter<Option<u64>>>,
}

impl Replay {
    /// In which each call belongs to the owner that was guessed.
    pub(super) fn guessed(owners: Vec<Option<u64>>) -> Self {
        Self {
            guessed: Some(owners.into_iter()),
            ..Self::new(Model::default())
        }
    }

    /// It only takes the guess for granted.
    pub(super) fn is_guessed(&self) -> bool {
        self.guessed.is_some()
    }

    /// By this model.
    pub(super) fn new(model: Model) -> Self {
        Self {
            engine: Engine {
                model,
                lesson: Some(Box::default()),
                ..Engine::default()
            },
            in_flight: InFlight::default(),
            now_us: None,
            began_us: 0,
            owner: None,
            guessed: None,
        }
    }

    /// The next event. `wrong`: the part of all calls that may be given to a wrong request.
    /// Returns about how much work that was.
    pub(super) fn event(&mut self, event: &Recorded, wrong: f64) -> usize {
        let Recorded { at_us, number, .. } = *event;
        let passed_us = match self.now_us {
            Some(now_us) => at_us.saturating_sub(now_us),
            None => {
                self.began_us = at_us;
                0
            }
        };
        self.now_us = Some(at_us);
        let active = self.in_flight.active(at_us);
        self.engine.pass(passed_us, active);
        match event.what {
            What::Begun { route, connection } => {
                let request = Request {
                    number,
                    bucket: 0,
                    route,
                    began_us: at_us,
                    heard_us: at_us,
                    connection,
                };
                let is_alone = active == 0;
                self.engine
                    .begin(at_us, Some(&request), is_alone, Vec::new());
                self.in_flight.add(request);
            }
            What::Ended { answered } => {
                if let Some(request) = self.in_flight.remove(number) {
                    self.engine.end(at_us, &request, answered);
                }
            }
            What::Owner => self.owner = Some(number),
            What::Called { kind, port } => {
                let call = NewCall {
                    number,
                    kind,
                    tokens: &[],
                    port,
                };
                match (self.owner.take(), self.guess()) {
                    (Some(owner), _) | (None, Some(Some(owner))) => {
                        self.engine.called(at_us, call, owner);
                    }
                    (None, Some(None)) => self.engine.called_by_nobody(kind, active),
                    (None, None) => {
                        let in_flight = &mut self.in_flight;
                        self.engine.judge(at_us, call, in_flight, None, wrong);
                    }
                }
            }
            What::Returned => self.engine.returned(at_us, number, &mut self.in_flight),
        }
        self.engine.size()
    }

    /// The guess for the next call, if there are guesses: a request, or none.
    fn guess(&mut self) -> Option<Option<u64>> {
        self.guessed.as_mut().map(|owners| owners.next().flatten())
    }

    /// What has been learned by the end, and the engine that has learned it.
    pub(super) fn finish(mut self) -> (Lesson, Engine) {
        let lesson = self.engine.lesson.take().unwrap_or_default();
        let mut lesson = *lesson;
        for cluster in &self.engine.clusters {
            lesson.evidence += cluster.evidence;
        }
        let us = self.now_us.unwrap_or(0).saturating_sub(self.began_us);
        lesson.evidence -= self.engine.model.background.expected(us);
        if self.guessed.is_none() {
            lesson.model.order = lesson.counts.order();
        }
        lesson.model.nodes.work_out();
        (lesson, self.engine)
    }
}
