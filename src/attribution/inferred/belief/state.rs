//! How far a request is in one hypothesis, and on which way it came there.

use crate::attribution::inferred::model::{Connection, Model, NodeId, Position, Progress, Step};
use crate::attribution::inferred::surprises::SURPRISE;
use crate::attribution::names::Name;
use std::rc::Rc;

/// Steps of one request that are remembered to learn from.
const STEPS: u16 = 128;
/// Steps that are less likely than this are not.
const NEGLIGIBLE: f32 = 0.003;

/// A step of a request, and those before it; or that it may have taken, beside others.
#[derive(Clone, Debug)]
pub(super) struct Path {
    /// How far it was.
    pub(super) progress: Progress,
    /// For how long it had been so.
    pub(super) us: u64,
    pub(super) step: Step,
    /// The call that it made; 0 if the step is none.
    call: u64,
    /// That call's.
    pub(super) connection: Connection,
    /// The probability that it was taken, if the hypothesis is right.
    pub(super) share: f32,
    length: u16,
    pub(super) previous: Option<Rc<Path>>,
}

impl Path {
    /// It is the same step, after whichever others.
    fn is(&self, other: &Self) -> bool {
        self.call == other.call
            && self.us == other.us
            && self.step == other.step
            && self.progress == other.progress
    }

    /// The step after these, if there is room for it.
    fn after(self, previous: Option<Rc<Self>>) -> Option<Rc<Self>> {
        let length = previous.as_ref().map_or(0, |path| path.length);
        if length >= STEPS {
            return previous;
        }
        Some(Rc::new(Self {
            length: length + 1,
            previous,
            ..self
        }))
    }
}

/// How far a request is, in one hypothesis.
#[derive(Clone, Debug)]
pub(super) struct State {
    progress: Progress,
    pub(super) node: NodeId,
    pub(super) since_us: u64,
    pub(super) path: Option<Rc<Path>>,
    /// Where it stands among the requests that are ready, if it is and that is asked for.
    pub(super) position: Option<Position>,
    /// How much likelier it goes on, for its position.
    pub(super) gain: f32,
    /// That to the application; from its first call on that call's, where these are evidence.
    pub(super) connection: Connection,
}

impl State {
    /// Of a request that has just begun.
    pub(super) fn new(
        progress: Progress,
        node: NodeId,
        now_us: u64,
        connection: Connection,
    ) -> Self {
        Self {
            progress,
            node,
            since_us: now_us,
            path: None,
            position: None,
            gain: 1.0,
            connection,
        }
    }

    /// The two are equal, but for the way there.
    pub(super) fn is(&self, other: &Self) -> bool {
        self.node == other.node
            && self.since_us == other.since_us
            && self.progress == other.progress
            && self.connection == other.connection
    }

    /// Another one that is equal becomes this one, with this part of the probability of both:
    /// which of them took the steps that only one of them took stays as probable as it is.
    pub(super) fn join(&mut self, other: &Self, part: f32) {
        let length = |path: &Option<Rc<Path>>| path.as_ref().map_or(0, |path| path.length);
        let (mut longer, mut other) = ((&self.path, 1.0 - part), (&other.path, part));
        let mut steps: Vec<Path> = Vec::new();
        // As far as the two have taken other steps.
        loop {
            if length(longer.0) < length(other.0) {
                std::mem::swap(&mut longer, &mut other);
            }
            let Some(path) = longer.0 else { break };
            if other
                .0
                .as_ref()
                .is_some_and(|other| Rc::ptr_eq(path, other))
            {
                break;
            }
            let share = path.share * longer.1;
            match steps.iter_mut().find(|step| step.is(path)) {
                Some(step) => step.share += share,
                None => steps.push(Path {
                    share,
                    ..Path::clone(path)
                }),
            }
            longer.0 = &path.previous;
        }
        if steps.is_empty() {
            return;
        }
        let mut joined = longer.0.clone();
        while let Some(step) = steps.pop() {
            if step.share > NEGLIGIBLE {
                joined = step.after(joined);
            }
        }
        self.path = joined;
    }

    /// None of its calls is outstanding.
    pub(super) fn is_ready(&self) -> bool {
        self.progress.outstanding == 0
    }

    /// How far it is.
    pub(super) fn progress(&self) -> Progress {
        self.progress
    }

    /// The model has been replaced.
    pub(super) fn renew(&mut self, model: &mut Model) {
        self.node = model.nodes.of(self.progress);
    }

    /// Some of its steps may not be remembered.
    pub(super) fn is_full(&self) -> bool {
        self.path.as_ref().is_some_and(|path| path.length >= STEPS)
    }

    /// The probability that the request has made this call, if the hypothesis is right.
    pub(super) fn made(&self, call: u64) -> f32 {
        let mut share = 0.0;
        let mut path = self.path.as_deref();
        while let Some(step) = path {
            if step.call == call && matches!(step.step, Step::Called(_)) {
                share += step.share;
            }
            path = step.previous.as_deref();
        }
        share
    }

    /// How many ends that would be surprises were to be expected on its way: while it waited for
    /// no call, since one that ends while it does was taken for another one.
    pub(super) fn usual_surprises(&self, model: &mut Model) -> f64 {
        let (mut progress, mut weight) = (self.progress, 1.0);
        let (mut sum, mut path) = (0.0, &self.path);
        loop {
            let node = model.nodes.of(progress);
            let share = f64::from(model.nodes.certain_end_share(node));
            if progress.outstanding == 0 && share < SURPRISE {
                sum += f64::from(weight) * share;
            }
            let Some(step) = path else { return sum };
            (progress, weight, path) = (step.progress, step.share, &step.previous);
        }
    }

    /// The request makes a step; `call`: its number and its connection, if the step is a
    /// call.
    pub(super) fn step(
        &mut self,
        model: &mut Model,
        now_us: u64,
        step: Step,
        (call, connection): (u64, Connection),
    ) {
        let taken = Path {
            progress: self.progress,
            us: now_us.saturating_sub(self.since_us),
            step,
            call,
            connection,
            share: 1.0,
            length: 0,
            previous: None,
        };
        self.path = taken.after(self.path.take());
        if matches!(step, Step::Called(_)) {
            self.connection = match model.connections.are_evidence() {
                true => connection,
                false => Connection::NONE,
            };
        }
        self.progress = self.progress.after(step);
        self.node = model.nodes.of(self.progress);
        self.since_us = now_us;
    }

    /// Calls of this kind, with this connection, per millisecond that are to be expected.
    pub(super) fn call_rate(
        &self,
        model: &Model,
        now_us: u64,
        (kind, connection): (Name, Connection),
    ) -> f32 {
        let rate = model
            .nodes
            .call_rate(self.node, self.waited_us(now_us), kind);
        rate * self.gain * model.lift(self.connection, connection)
    }

    /// Time in the node, in microseconds.
    pub(super) fn waited_us(&self, now_us: u64) -> u64 {
        now_us.saturating_sub(self.since_us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a request that has made these calls, each of which returned after a millisecond.
    fn after(model: &mut Model, before: &State, calls: &[u64]) -> State {
        let mut state = before.clone();
        for call in calls {
            state.step(
                model,
                1000 * call,
                Step::Called(1),
                (*call, Connection::NONE),
            );
            state.step(
                model,
                1000 * call + 1000,
                Step::Returned,
                (0, Connection::NONE),
            );
        }
        state
    }

    #[test]
    fn calls_that_only_one_of_two_states_made_are_as_likely_as_that_one() {
        let model = &mut Model::default();
        let progress = Progress::start(1);
        let begun = State::new(progress, model.nodes.of(progress), 0, Connection::NONE);
        let begun = after(model, &begun, &[1]);
        let mut joined = after(model, &begun, &[2, 4]);
        let other = after(model, &begun, &[3, 4]);
        assert!(joined.is(&other));
        joined.join(&other, 0.25);
        let about = |shares: [f32; 4]| shares.map(|share| (1000.0 * share).round());
        let made = |state: &State| about([1, 2, 3, 4].map(|call| state.made(call)));
        assert_eq!(made(&joined), about([1.0, 0.75, 0.25, 1.0]));
        // A third one, by the first one's calls.
        let third = after(model, &begun, &[2, 4]);
        joined.join(&third, 0.5);
        assert_eq!(made(&joined), about([1.0, 0.875, 0.125, 1.0]));
        // Two with the same steps are one.
        let length = joined.path.as_ref().map(|path| path.length);
        joined.join(&joined.clone(), 0.5);
        assert_eq!(joined.path.as_ref().map(|path| path.length), length);
        assert_eq!(made(&joined), about([1.0, 0.875, 0.125, 1.0]));
    }
}
