//! How far a request is in one hypothesis, and on which way it came there.

use crate::attribution::inferred::model::{Connection, Model, NodeId, Position, Progress, Step};
use crate::attribution::names::Name;
use std::rc::Rc;

/// Steps of one request that are remembered to learn from.
const STEPS: u16 = 64;

/// A step of a request, and those before it.
#[derive(Clone, Debug)]
pub(super) struct Path {
    /// How far it was.
    pub(super) progress: Progress,
    /// For how long it had been so.
    pub(super) us: u64,
    pub(super) step: Step,
    /// The call that it made; 0 if the step is none.
    pub(super) call: u64,
    /// That call's.
    pub(super) connection: Connection,
    length: u16,
    pub(super) previous: Option<Rc<Path>>,
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
    /// That of its last call, where connections are evidence.
    pub(super) connection: Connection,
}

impl State {
    /// Of a request that has just begun.
    pub(super) fn new(progress: Progress, node: NodeId, now_us: u64) -> Self {
        Self {
            progress,
            node,
            since_us: now_us,
            path: None,
            position: None,
            gain: 1.0,
            connection: Connection::NONE,
        }
    }

    /// The two are equal, but for the way there.
    pub(super) fn is(&self, other: &Self) -> bool {
        self.node == other.node
            && self.since_us == other.since_us
            && self.progress == other.progress
            && self.connection == other.connection
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

    /// The request has made this call.
    pub(super) fn made(&self, call: u64) -> bool {
        let mut path = self.path.as_deref();
        while let Some(step) = path {
            if step.call == call && matches!(step.step, Step::Called(_)) {
                return true;
            }
            path = step.previous.as_deref();
        }
        false
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
        let length = self.path.as_ref().map_or(0, |path| path.length);
        if length < STEPS {
            self.path = Some(Rc::new(Path {
                progress: self.progress,
                us: now_us.saturating_sub(self.since_us),
                step,
                call,
                connection,
                length: length + 1,
                previous: self.path.take(),
            }));
        }
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
        rate * self.gain * model.connections.lift(self.connection, connection)
    }

    /// Time in the node, in microseconds.
    pub(super) fn waited_us(&self, now_us: u64) -> u64 {
        now_us.saturating_sub(self.since_us)
    }
}
