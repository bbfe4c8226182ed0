//! The nodes of the model, each for one progress of a request.

use super::node::{Curve, Node, NodeId, Rates};
use super::progress::{Progress, Step};
use crate::attribution::names::Name;
use std::collections::VecDeque;

/// Nodes at most.
const NODES_MOST: usize = 1024;
/// A node that was left so often is taken by itself. Of others, a part is what requests of
/// any route do.
const KNOWN: f32 = 50.0;

/// All nodes. The first one is for a route that is not known.
#[derive(Clone, Debug)]
pub(in crate::attribution::inferred) struct Nodes {
    /// Node by [`Progress::number`], sorted.
    index: Vec<(u32, NodeId)>,
    nodes: Vec<Node>,
    /// Nodes that were removed, the first one first.
    free: VecDeque<NodeId>,
    /// Nodes that have been taught something since their rates were worked out.
    stale: Vec<NodeId>,
}

impl Default for Nodes {
    fn default() -> Self {
        Self {
            index: Vec::new(),
            nodes: vec![Node::new(Progress::start(0), 0, None)],
            free: VecDeque::new(),
            stale: Vec::new(),
        }
    }
}

impl Nodes {
    /// The node of a progress.
    pub(in crate::attribution::inferred) fn of(&mut self, progress: Progress) -> NodeId {
        let number = progress.number();
        let find = |index: &[(u32, NodeId)]| index.binary_search_by_key(&number, |known| known.0);
        if let Some((_, node)) = find(&self.index).ok().and_then(|at| self.index.get(at)) {
            return *node;
        }
        let general = match progress.general() {
            same if same == progress => 0,
            general => self.of(general),
        };
        let curve = match general {
            0 => None,
            general => self.get(general).map(|node| node.curve),
        };
        let node = Node::new(progress, general, curve);
        let id = if self.nodes.len() < NODES_MOST {
            self.nodes.push(node);
            (self.nodes.len() - 1) as NodeId
        } else if let Some(id) = self.free.pop_front() {
            if let Some(freed) = self.nodes.get_mut(usize::from(id)) {
                *freed = node;
            }
            id
        } else {
            return general;
        };
        let (Ok(at) | Err(at)) = find(&self.index);
        self.index.insert(at, (number, id));
        id
    }

    pub(super) fn get(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(usize::from(id))
    }

    /// Removes some nodes. Requests that are there teach nothing of them any more, or a
    /// little of the next ones with the same number.
    pub(super) fn remove(&mut self, gone: impl Fn(Progress) -> bool) {
        let (nodes, free) = (&mut self.nodes, &mut self.free);
        self.index.retain(|(_, id)| {
            let Some(node) = nodes.get_mut(usize::from(*id)) else {
                return false;
            };
            let gone = *id != 0 && gone(node.progress);
            if gone {
                *node = Node::new(node.progress, node.general, None);
                free.push_back(*id);
            }
            !gone
        });
    }

    pub(super) fn forget_kind(&mut self, kind: Name) {
        self.remove(|progress| progress.last == kind);
        for node in &mut self.nodes {
            node.forget_kind(kind);
        }
    }

    /// Calls of this kind per millisecond, by a request that has been in the
    /// node for so long.
    pub(in crate::attribution::inferred) fn call_rate(
        &self,
        id: NodeId,
        us: u64,
        kind: Name,
    ) -> f32 {
        let Some(node) = self.get(id) else { return 0.0 };
        let mut share = node.kind_share(kind);
        if node.exits < KNOWN
            && let Some(general) = self.get(node.general)
        {
            let own = node.exits / (node.exits + 2.0);
            share = own * share + (1.0 - own) * general.kind_share(kind);
        }
        node.curve.at(us).call * share
    }

    /// Ends per millisecond, of a request that has been in the node for so long.
    pub(in crate::attribution::inferred) fn end_rate(&self, id: NodeId, us: u64) -> f32 {
        self.get(id).map_or(0.0, |node| node.curve.at(us).end)
    }

    /// Calls and ends that are expected of a request from one time in the node to a later
    /// one.
    pub(in crate::attribution::inferred) fn expected(
        &self,
        id: NodeId,
        from_us: u64,
        to_us: u64,
    ) -> f32 {
        let Some(node) = self.get(id) else { return 0.0 };
        (node.curve.expected(to_us) - node.curve.expected(from_us)).max(0.0)
    }

    /// A request has left a node after so long, with this probability.
    pub(super) fn learn(&mut self, id: NodeId, us: u64, step: Step, weight: f32) {
        let Some(general) = self.get(id).map(|node| node.general) else {
            return;
        };
        for id in [general, id].into_iter().skip(usize::from(general == id)) {
            if let Some(node) = self.nodes.get_mut(usize::from(id)) {
                node.learn(us, step, weight);
                if !std::mem::replace(&mut node.is_stale, true) {
                    self.stale.push(id);
                }
            }
        }
    }

    /// Works out the rates of all nodes that have been taught something.
    pub(in crate::attribution::inferred) fn work_out(&mut self) {
        for id in std::mem::take(&mut self.stale) {
            self.work_out_one(id);
        }
    }

    /// Works out the rates of a node, of which a part is what requests of any route do as
    /// long as little is known of it.
    fn work_out_one(&mut self, id: NodeId) {
        let Some(node) = self.get(id) else { return };
        let own = |at: usize| node.rates(at);
        let general = match node.exits > KNOWN || node.general == id {
            true => None,
            false => self.get(node.general),
        };
        let share = node.exits / (node.exits + 2.0);
        let curve = Curve::new(|at| {
            let own = own(at);
            let Some(general) = general.map(|node| node.rates(at)) else {
                return own;
            };
            Rates {
                call: share * own.call + (1.0 - share) * general.call,
                end: share * own.end + (1.0 - share) * general.end,
            }
        });
        if let Some(node) = self.nodes.get_mut(usize::from(id)) {
            node.curve = curve;
            node.is_stale = false;
        }
    }

    /// A request of which every step was certain has left a node.
    pub(in crate::attribution::inferred) fn learn_certain(
        &mut self,
        id: NodeId,
        ended: bool,
        weight: f32,
    ) {
        if let Some(node) = self.nodes.get_mut(usize::from(id)) {
            node.learn_certain(ended, weight);
        }
    }

    /// How often requests have left the node, of which every step was certain.
    pub(in crate::attribution::inferred) fn certain_exits(&self, id: NodeId) -> f32 {
        self.get(id).map_or(0.0, |node| node.certain[0])
    }

    /// The share of those that left the node by ending, from 0 to 1.
    pub(in crate::attribution::inferred) fn certain_end_share(&self, id: NodeId) -> f32 {
        self.get(id)
            .map_or(0.0, |node| node.certain[1] / (node.certain[0] + 0.1))
    }
}
