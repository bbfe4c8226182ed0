//! What has not happened: each hypothesis loses while what it expects does not.

use super::{Cluster, Hypothesis};
use crate::attribution::inferred::model::{Counts, Model, NodeId, Position};

/// With this probability something else than the application holds a request
/// up (the machine is busy, a collector runs): no silence proves more than so.
const STALL: f32 = 0.05;

/// A request that is ready, by the likeliest hypothesis.
#[derive(Clone, Copy, Debug)]
pub(in crate::attribution::inferred) struct Ready {
    pub(in crate::attribution::inferred) since_us: u64,
    request: u64,
}

impl Cluster {
    /// Weighs the hypotheses by what has not happened since the last time.
    pub(in crate::attribution::inferred) fn advance(&mut self, model: &Model, now_us: u64) {
        let from_us = self.at_us;
        let now_us = now_us.max(from_us);
        self.at_us = now_us;
        if self.hypotheses.len() < 2 || now_us <= from_us {
            return;
        }
        let mut known: Vec<(NodeId, u64, f64)> = Vec::new();
        for member in 0..self.members.len() {
            let mut states = self.hypotheses.iter().filter_map(|h| h.states.get(member));
            let Some(first) = states.next() else { continue };
            if states.all(|state| state.is(first)) {
                continue;
            }
            known.clear();
            for hypothesis in &mut self.hypotheses {
                let Some(state) = hypothesis.states.get(member) else {
                    continue;
                };
                let (node, since) = (state.node, state.since_us);
                let factor = match known.iter().find(|k| k.0 == node && k.1 == since) {
                    Some((_, _, factor)) => *factor,
                    None => {
                        let from = from_us.saturating_sub(since);
                        let to = now_us.saturating_sub(since);
                        let survival = (-model.nodes.expected(node, from, to)).exp();
                        let factor = f64::from(STALL + (1.0 - STALL) * survival);
                        known.push((node, since, factor));
                        factor
                    }
                };
                hypothesis.weight *= factor;
            }
        }
        self.normalize();
    }

    /// Adds the members that are ready by the likeliest hypothesis.
    pub(in crate::attribution::inferred) fn add_ready(&self, line: &mut Vec<Ready>) {
        let likeliest = self.hypotheses.iter();
        let likeliest = likeliest.max_by(|a, b| a.weight.total_cmp(&b.weight));
        let Some(likeliest) = likeliest else { return };
        for (request, state) in self.members.iter().zip(&likeliest.states) {
            if state.is_ready() {
                line.push(Ready {
                    since_us: state.since_us,
                    request: *request,
                });
            }
        }
    }

    /// The same as [`Cluster::advance`], where it matters who is ready. `line`: all requests
    /// that are, those that have been for longest first. `counts` counts what happens.
    pub(in crate::attribution::inferred) fn advance_in_line(
        &mut self,
        model: &Model,
        now_us: u64,
        line: &[Ready],
        mut counts: Option<&mut Counts>,
    ) {
        let from_us = self.at_us;
        let now_us = now_us.max(from_us);
        self.at_us = now_us;
        let others = line.iter().filter(|r| !self.members.contains(&r.request));
        let others: Vec<u64> = others.map(|ready| ready.since_us).collect();
        let mut own: Vec<u64> = Vec::new();
        let mut known: Vec<(usize, NodeId, u64, f32)> = Vec::new();
        for Hypothesis { weight, states, .. } in &mut self.hypotheses {
            own.clear();
            own.extend(states.iter().filter(|s| s.is_ready()).map(|s| s.since_us));
            let ready = others.len() + own.len();
            let mut factor = 1.0;
            for (member, state) in states.iter_mut().enumerate() {
                let (node, since) = (state.node, state.since_us);
                let same =
                    |k: &&(usize, NodeId, u64, f32)| (k.0, k.1, k.2) == (member, node, since);
                let expected = match known.iter().find(same) {
                    Some((.., expected)) => *expected,
                    None => {
                        let [from, to] = [from_us, now_us].map(|us| us.saturating_sub(since));
                        let expected = model.nodes.expected(node, from, to);
                        known.push((member, node, since, expected));
                        expected
                    }
                };
                state.position = state.is_ready().then(|| {
                    let longer = others.partition_point(|other| *other < since)
                        + own.iter().filter(|other| **other < since).count();
                    Position::new(ready, longer)
                });
                state.gain = 1.0;
                if let Some(position) = state.position {
                    state.gain = model.order.gain(position);
                    if let Some(counts) = &mut counts {
                        counts.waited(position, *weight as f32 * expected);
                    }
                }
                let survival = (-expected * state.gain).exp();
                factor *= f64::from(STALL + (1.0 - STALL) * survival);
            }
            *weight *= factor;
        }
        self.normalize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attribution::in_flight::Request;
    use crate::attribution::inferred::belief::NO_OWNER;
    use crate::attribution::inferred::model::{Connection, Progress, Step};

    /// A request that has made a call, or has not.
    fn cluster(model: &mut Model) -> Cluster {
        let progress = Progress::start(1);
        let node = model.nodes.of(progress);
        let request = Request {
            number: 1,
            bucket: 0,
            route: 1,
            began_us: 0,
            heard_us: 0,
            connection: 0,
        };
        let mut cluster = Cluster::new(&request, progress, node, 0);
        let hypotheses = &mut cluster.hypotheses;
        let mut other = hypotheses.first().cloned().unwrap();
        for state in &mut other.states {
            state.step(model, 0, Step::Called(1), (7, Connection::NONE));
        }
        other.owners.push(0);
        hypotheses.push(other);
        for hypothesis in hypotheses.iter_mut() {
            hypothesis.weight = 0.5;
        }
        hypotheses.first_mut().unwrap().owners.push(NO_OWNER);
        cluster.calls.push(7);
        cluster
    }

    fn odds(cluster: &Cluster) -> f64 {
        let mut weights = cluster
            .hypotheses
            .iter()
            .map(|hypothesis| hypothesis.weight);
        weights.next().unwrap() / weights.next().unwrap_or(f64::INFINITY)
    }

    type Advance = fn(&mut Cluster, &Model, u64);
    const WAYS: [Advance; 2] = [Cluster::advance, |cluster, model, now_us| {
        cluster.advance_in_line(model, now_us, &[], None);
    }];

    #[test]
    fn an_event_out_of_order_does_not_count_the_silence_twice() {
        let model = &mut Model::default();
        for advance in WAYS {
            let (mut one, mut late) = (cluster(model), cluster(model));
            advance(&mut one, model, 2_000);
            for us in [2_000, 1, 2_000] {
                advance(&mut late, model, us);
            }
            assert_eq!(odds(&one), odds(&late));
        }
    }
}
