//! How far a request is in one hypothesis, and on which way it came there.

use crate::attribution::inferred::model::{Model, NodeId, Progress, Rank, Step};
use std::rc::Rc;

/// Steps of one request that are remembered to learn from.
const STEPS: u16 = 64;

/// A step of a request, and those before it.
#[derive(Clone, Debug)]
pub(super) struct Path {
    /// The node that it left.
    pub(super) node: NodeId,
    /// How long it had been there.
    pub(super) us: u64,
    pub(super) step: Step,
    /// Of a call for which several requests had waited.
    pub(super) rank: Option<Rank>,
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
}

impl State {
    /// Of a request that has just begun.
    pub(super) fn new(progress: Progress, node: NodeId, now_us: u64) -> Self {
        Self {
            progress,
            node,
            since_us: now_us,
            path: None,
        }
    }

    /// The two are equal, but for the way there.
    pub(super) fn is(&self, other: &Self) -> bool {
        self.node == other.node
            && self.since_us == other.since_us
            && self.progress == other.progress
    }

    /// The request makes a step.
    pub(super) fn step(&mut self, model: &mut Model, now_us: u64, step: Step, rank: Option<Rank>) {
        let length = self.path.as_ref().map_or(0, |path| path.length);
        if length < STEPS {
            self.path = Some(Rc::new(Path {
                node: self.node,
                us: now_us.saturating_sub(self.since_us),
                step,
                rank,
                length: length + 1,
                previous: self.path.take(),
            }));
        }
        self.progress = self.progress.after(step);
        self.node = model.nodes.of(self.progress);
        self.since_us = now_us;
    }

    /// Time in the node, in microseconds.
    pub(super) fn waited_us(&self, now_us: u64) -> u64 {
        now_us.saturating_sub(self.since_us)
    }
}
