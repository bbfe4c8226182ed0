//! The belief about everything in flight, by one model.

use super::NewCall;
use super::acceptance::Acceptance;
use super::belief::{Cluster, Ready};
use super::candidates::Candidate;
use super::model::{Counts, Model, Progress};
use super::surprises::Surprises;
use crate::attribution::in_flight::{InFlight, Request};
use crate::attribution::look_back::{LeftAlone, Told};
use crate::attribution::names::Name;
use crate::attribution::signature::Token;

/// A route of which so many requests were certain, in every step, is known.
const KNOWN: f32 = 20.0;
/// Calls that were left alone of which is known that they were, at most.
const LEFT_MOST: usize = 128;

/// What is noted of a request in flight.
#[derive(Clone, Debug)]
pub(super) struct Notes {
    pub(super) number: u64,
    pub(super) route: Name,
    pub(super) tokens: Vec<Token>,
    /// Every call so far was certainly its own, or certainly not.
    pub(super) certain: bool,
    /// It has been the only request in flight all the time.
    pub(super) is_alone: bool,
    /// A call came that it may have made, and that was not judged.
    missed_call: bool,
}

/// A call that was judged by evidence, accepted or not, and whose request has not ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Judged {
    pub(super) call: u64,
    /// The likeliest request, and its probability.
    pub(super) request: u64,
    pub(super) share: f32,
}

/// What a pass over recorded events gathers.
#[derive(Debug, Default)]
pub(super) struct Lesson {
    /// What the pass teaches. The model that the engine reckons with stays as it is.
    pub(super) model: Model,
    pub(super) counts: Counts,
    /// The logarithm of the probability of all events, by the model reckoned with.
    pub(super) evidence: f64,
    /// Of each call that was judged: the likeliest request, if it is likely enough.
    pub(super) verdicts: Vec<Option<u64>>,
}

/// The belief about everything in flight, and what has been learned.
#[derive(Debug, Default)]
pub(super) struct Engine {
    pub(super) model: Model,
    /// Each request is a member of one.
    pub(super) clusters: Vec<Cluster>,
    pub(super) requests: Vec<Notes>,
    pub(super) surprises: Surprises,
    pub(super) acceptance: Acceptance,
    pub(super) judged: Vec<Judged>,
    /// Another model explains the events as well, and says otherwise.
    pub(super) is_doubtful: bool,
    /// Calls that were left alone, and whose request is to be told; and those whose is known.
    pub(super) left: Vec<LeftAlone>,
    pub(super) told: Vec<Told>,
    /// `None`, but for a pass over recorded events.
    pub(super) lesson: Option<Box<Lesson>>,
}

impl Engine {
    /// So many microseconds have passed, with so many requests in flight.
    pub(super) fn pass(&mut self, us: u64, in_flight: usize) {
        self.taught().background.pass(us, in_flight);
    }

    /// The model that is taught by what happens.
    pub(super) fn taught(&mut self) -> &mut Model {
        match &mut self.lesson {
            Some(lesson) => &mut lesson.model,
            None => &mut self.model,
        }
    }

    /// Weighs all hypotheses by what has not happened, where it matters who is ready.
    pub(super) fn advance(&mut self, now_us: u64) {
        if self.lesson.is_none() && self.model.order.is_flat() {
            return;
        }
        let mut line: Vec<Ready> = Vec::with_capacity(self.requests.len());
        for cluster in &self.clusters {
            cluster.add_ready(&mut line);
        }
        line.sort_by_cached_key(|ready| ready.since_us);
        for cluster in &mut self.clusters {
            let counts = self.lesson.as_mut().map(|lesson| &mut lesson.counts);
            cluster.advance_in_line(&self.model, now_us, &line, counts);
        }
    }

    /// A request has begun: this one, if it is tracked. `is_alone`: no other one is in
    /// flight.
    pub(super) fn begin(
        &mut self,
        now_us: u64,
        request: Option<&Request>,
        is_alone: bool,
        tokens: Vec<Token>,
    ) {
        self.advance(now_us);
        self.model.tokens.learn(&tokens);
        for other in &mut self.requests {
            other.is_alone = false;
        }
        let Some(request) = request else { return };
        let progress = Progress::start(request.route);
        let node = self.model.nodes.of(progress);
        let cluster = Cluster::new(request, progress, node, now_us);
        self.clusters.push(cluster);
        self.requests.push(Notes {
            number: request.number,
            route: request.route,
            tokens,
            certain: true,
            is_alone,
            missed_call: false,
        });
    }

    /// A call has begun that is known to belong to this request.
    pub(super) fn called(&mut self, now_us: u64, call: NewCall<'_>, owner: u64) {
        self.advance(now_us);
        let has = |cluster: &Cluster| cluster.members.contains(&owner);
        if let Some(cluster) = self.clusters.iter().position(has) {
            let owner = Candidate::known(owner, cluster);
            let call = (call.number, call.kind, call.connection());
            self.branch(now_us, call, &[owner], 0.0);
        }
    }

    /// A call of the background has begun, while so many requests were in flight.
    pub(super) fn called_by_nobody(&mut self, kind: Name, active: usize) {
        self.taught().learn_call(kind, &[], 1.0, active);
    }

    /// A call was left alone. If it was judged by evidence, its request is to be told when it
    /// is known. The oldest goes if there are too many.
    pub(super) fn leave_alone(&mut self, call: LeftAlone) {
        if self.judged.iter().any(|judged| judged.call == call.call) {
            if self.left.len() >= LEFT_MOST {
                self.left.remove(0);
            }
            self.left.push(call);
        }
    }

    /// Notes which calls that were left alone this request has made, which ends.
    #[inline(never)]
    fn look_back(&mut self, request: &Request, cluster: &Cluster, member: usize) {
        if self.surprises.are_many() || self.told.len() >= LEFT_MOST {
            return;
        }
        let certainty = 1.0 - self.surprises.misplaced();
        let mut at = 0;
        while let Some(call) = self.left.get(at) {
            // It cannot have made those from before it began.
            let share = match call.at_us < request.began_us {
                true => 0.0,
                false => (certainty * cluster.share(member, call.call)) as f32,
            };
            if share < call.least {
                at += 1;
                continue;
            }
            self.told.push(Told {
                call: self.left.remove(at),
                request: request.number,
                bucket: request.bucket,
                share,
            });
        }
    }

    /// A call has begun that is not judged.
    pub(super) fn miss_call(&mut self) {
        for request in &mut self.requests {
            request.missed_call = true;
        }
    }

    /// A call has returned.
    pub(super) fn returned(&mut self, now_us: u64, call: u64, in_flight: &mut InFlight) {
        self.advance(now_us);
        let waits = |cluster: &Cluster| cluster.calls.contains(&call);
        let Some(at) = self.clusters.iter().position(waits) else {
            return;
        };
        let mut cluster = self.clusters.swap_remove(at);
        for request in in_flight.tracked_mut() {
            if cluster.members.contains(&request.number) {
                request.hear(now_us);
            }
        }
        cluster.returned(&mut self.model, now_us, call);
        self.add_cluster(cluster);
    }

    /// A request has been answered, or was broken off.
    pub(super) fn end(&mut self, now_us: u64, request: &Request, answered: bool) {
        self.advance(now_us);
        let Some(notes) = self.remove_notes(request.number) else {
            return;
        };
        let Some((mut cluster, member)) = self.remove_cluster(request.number) else {
            return;
        };
        // What it has done is known to the end.
        let is_known = answered && !notes.missed_call;
        if is_known {
            let counts = self.lesson.as_mut().map(|lesson| &mut lesson.counts);
            let expected = cluster.ended(&self.model, now_us, member, counts);
            if self.is_known_route(notes.route) {
                let usual = cluster.usual_surprises(&mut self.model, member);
                self.surprises.add(expected, usual, notes.is_alone);
                self.look_back(request, &cluster, member);
            }
            self.acceptance.end();
            let certain = match (&self.lesson, notes.certain, notes.is_alone) {
                (Some(_), ..) => None,
                (None, true, true) => Some(0.8),
                (None, true, false) if self.surprises.are_few() => Some(0.99),
                _ => Some(f32::INFINITY),
            };
            let duration_us = now_us.saturating_sub(request.began_us);
            let taught = self.taught();
            taught.routes.learn_duration(notes.route, duration_us);
            cluster.teach(taught, now_us, (member, request.connection), certain);
            if self.lesson.is_none() {
                self.model.nodes.work_out();
            }
        }
        let acceptance = &mut self.acceptance;
        let is_remembered = is_known && !cluster.is_full(member);
        self.judged.retain(|judged| {
            let ends = judged.request == request.number;
            if ends && is_remembered {
                acceptance.turned_out(judged.share, cluster.share(member, judged.call));
            }
            !ends
        });
        cluster.remove(member);
        self.add_cluster(cluster);
    }

    /// A request is gone, without an end that was seen.
    pub(super) fn abandon(&mut self, request: u64) {
        self.remove_notes(request);
        self.judged.retain(|judged| judged.request != request);
        if let Some((mut cluster, member)) = self.remove_cluster(request) {
            cluster.remove(member);
            self.add_cluster(cluster);
        }
    }

    /// About how much work the next event is.
    pub(super) fn size(&self) -> usize {
        self.clusters.iter().map(Cluster::size).sum()
    }

    /// Goes on with another model, and with what was found of it.
    pub(super) fn adopt(&mut self, learned: Self) {
        let tokens = std::mem::take(&mut self.model.tokens);
        self.model = learned.model;
        self.model.tokens = tokens;
        self.surprises = learned.surprises;
        self.is_doubtful = learned.is_doubtful;
        self.acceptance = learned.acceptance.of_other_events();
        for cluster in &mut self.clusters {
            cluster.renew(&mut self.model);
        }
    }

    /// Forgets what is in flight, and not what has been learned.
    pub(super) fn forget(&mut self) {
        self.clusters.clear();
        self.requests.clear();
        self.judged.clear();
        self.left.clear();
    }

    /// The name is of another route, or kind, from now on.
    pub(super) fn forget_name(&mut self, is_kind: bool, name: Name) {
        match is_kind {
            false => self.model.forget_route(name),
            true => self.model.forget_kind(name),
        }
    }

    pub(super) fn request(&self, number: u64) -> Option<&Notes> {
        self.requests.iter().find(|known| known.number == number)
    }

    fn remove_notes(&mut self, number: u64) -> Option<Notes> {
        let mut requests = self.requests.iter();
        let at = requests.position(|known| known.number == number)?;
        Some(self.requests.swap_remove(at))
    }

    /// Removes the cluster of a request, and returns it with the index of the member.
    fn remove_cluster(&mut self, request: u64) -> Option<(Cluster, usize)> {
        let member = |cluster: &Cluster| cluster.members.iter().position(|m| *m == request);
        let mut clusters = self.clusters.iter().enumerate();
        let (at, member) = clusters.find_map(|(at, cluster)| Some((at, member(cluster)?)))?;
        Some((self.clusters.swap_remove(at), member))
    }

    /// Adds a cluster, without doubts that are settled.
    pub(super) fn add_cluster(&mut self, mut cluster: Cluster) {
        if let Some(lesson) = &mut self.lesson {
            lesson.evidence += std::mem::take(&mut cluster.evidence);
        }
        self.clusters.extend(cluster.settle());
    }

    /// So many requests of the route were certain that it is known what they do.
    pub(super) fn is_known_route(&mut self, route: Name) -> bool {
        let start = self.model.nodes.of(Progress::start(route));
        self.model.nodes.certain_exits(start) >= KNOWN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_calls_that_were_left_alone_are_kept_than_so_many() {
        let mut engine = Engine::default();
        let left = |call| LeftAlone {
            call,
            ..LeftAlone::default()
        };
        engine.leave_alone(left(0));
        assert!(engine.left.is_empty(), "it was not judged");
        for call in 1..1000 {
            engine.judged.push(Judged {
                call,
                request: 7,
                share: 0.5,
            });
            engine.leave_alone(left(call));
            assert!(engine.left.len() <= LEFT_MOST);
        }
        let kept = engine.left.iter().map(|left| left.call);
        assert!(kept.eq(1000 - LEFT_MOST as u64..1000));
    }

    #[test]
    fn calls_that_are_not_remembered_do_not_turn_out_to_be_wrong() {
        let (mut engine, mut in_flight) = (Engine::default(), InFlight::default());
        let request = Request {
            number: 1,
            bucket: 0,
            route: 1,
            began_us: 1_000_000,
            heard_us: 1_000_000,
            connection: 0,
        };
        engine.begin(1_000_000, Some(&request), false, vec![]);
        in_flight.add(request.clone());
        for number in 100..200 {
            let call = NewCall {
                number,
                kind: 1,
                tokens: &[],
                port: 0,
            };
            let now_us = 1_000_000 + 1_000 * number;
            engine.called(now_us, call, 1);
            engine.judged.push(Judged {
                call: number,
                request: 1,
                share: 0.99,
            });
            engine.returned(now_us + 500, number, &mut in_flight);
        }
        engine.end(2_000_000, &request, true);
        assert!(engine.judged.is_empty());
        assert!(engine.acceptance.turned_out_wrong() < 0.01);
    }
}
