//! To which of several requests in flight does a call belong? A belief about every
//! request in flight, from what a sidecar sees: requests that begin and end, and calls
//! that begin and end.
//!
//! A request is a walk through the nodes of the [`Model`]; each call is a step of
//! one of them, or of none (the background). The belief is a set of
//! hypotheses, each of which says for every call so far to which request it belonged, with
//! its probability by Bayes' rule: a hypothesis gains when what happens next was likely
//! under it, and loses while what it expects does not happen. That a thread which
//! waits for its call makes no other one, or that a request which has been
//! answered waits for nothing, is not a rule here: it is learned.
//!
//! Requests of which every hypothesis says the same are apart from the others,
//! so that the work grows with the doubt and not with the load: a [`Cluster`] is a
//! set of requests that doubts have entangled.
//!
//! The rest of [`crate::attribution`] knows of [`Inferred`] alone, and works without it.
//!
//! | module | what it knows |
//! |---|---|
//! | [`model`] | what has been learned of the application |
//! | [`belief`] | the hypotheses |
//! | [`candidates`] | the requests that a call may belong to |
//! | [`judge`] | to which of them it belongs, and whether that is sure enough |
//! | [`surprises`] | how often the belief turned out to be wrong |
//! | [`acceptance`] | how many verdicts may be accepted |

mod acceptance;
mod belief;
mod candidates;
mod judge;
mod model;
mod surprises;

use super::in_flight::{InFlight, Request};
use super::names::Name;
use super::signature::Token;
use acceptance::Acceptance;
use belief::Cluster;
use candidates::Candidate;
use model::{Model, Progress};
use surprises::Surprises;

/// A route of which so many requests were certain, in every step, is known.
const KNOWN: f32 = 20.0;

/// A call that has begun.
#[derive(Clone, Copy, Debug)]
pub(super) struct NewCall<'a> {
    pub(super) number: u64,
    pub(super) kind: Name,
    pub(super) tokens: &'a [Token],
}

/// What is noted of a request in flight.
#[derive(Clone, Debug)]
struct Notes {
    number: u64,
    route: Name,
    tokens: Vec<Token>,
    /// Every call so far was certainly its own, or certainly not.
    certain: bool,
    /// It has been the only request in flight all the time.
    exclusive: bool,
    /// A call came that it may have made, and that was not judged.
    missed_call: bool,
}

/// The belief about everything in flight, and what has been learned.
#[derive(Debug, Default)]
pub(super) struct Inferred {
    model: Model,
    /// Each request is a member of one.
    clusters: Vec<Cluster>,
    requests: Vec<Notes>,
    surprises: Surprises,
    acceptance: Acceptance,
}

impl Inferred {
    /// So many microseconds have passed, with so many requests in flight.
    pub(super) fn pass(&mut self, us: u64, in_flight: usize) {
        self.model.background.pass(us, in_flight);
    }

    /// A request has begun: this one, if it is tracked. `exclusive`: no other one is in
    /// flight.
    pub(super) fn begin(
        &mut self,
        now_us: u64,
        request: Option<&Request>,
        exclusive: bool,
        tokens: Vec<Token>,
    ) {
        self.model.tokens.learn(&tokens);
        for other in &mut self.requests {
            other.exclusive = false;
        }
        let Some(request) = request else { return };
        let progress = Progress::start(request.route);
        let node = self.model.nodes.of(progress);
        let cluster = Cluster::new(request.number, progress, node, now_us);
        self.clusters.push(cluster);
        self.requests.push(Notes {
            number: request.number,
            route: request.route,
            tokens,
            certain: true,
            exclusive,
            missed_call: false,
        });
    }

    /// A call has begun that is known to belong to this request.
    pub(super) fn called(&mut self, now_us: u64, call: u64, kind: Name, owner: u64) {
        let has = |cluster: &Cluster| cluster.members.contains(&owner);
        if let Some(cluster) = self.clusters.iter().position(has) {
            let owner = Candidate::known(owner, cluster);
            self.branch(now_us, (call, kind), &[owner], 0.0);
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
        let Some(notes) = self.remove_notes(request.number) else {
            return;
        };
        let Some((mut cluster, member)) = self.remove_cluster(request.number) else {
            return;
        };
        if answered && !notes.missed_call {
            let expected = cluster.ended(&self.model, now_us, member);
            if self.is_known_route(notes.route) {
                self.surprises.add(expected, notes.exclusive);
            }
            let duration_us = now_us.saturating_sub(request.began_us);
            self.model.routes.learn_duration(notes.route, duration_us);
            let certain = match (notes.certain, notes.exclusive) {
                (true, true) => 0.8,
                (true, false) if self.surprises.are_few() => 0.99,
                _ => f32::INFINITY,
            };
            cluster.learn(&mut self.model, now_us, member, certain);
        }
        cluster.remove(member);
        self.add_cluster(cluster);
    }

    /// A request is gone, without an end that was seen.
    pub(super) fn abandon(&mut self, request: u64) {
        self.remove_notes(request);
        if let Some((mut cluster, member)) = self.remove_cluster(request) {
            cluster.remove(member);
            self.add_cluster(cluster);
        }
    }

    /// Forgets what is in flight, and not what has been learned.
    pub(super) fn forget(&mut self) {
        self.clusters.clear();
        self.requests.clear();
    }

    /// The name is of another route from now on.
    pub(super) fn forget_route(&mut self, route: Name) {
        self.model.forget_route(route);
    }

    /// The name is of another kind from now on.
    pub(super) fn forget_kind(&mut self, kind: Name) {
        self.model.forget_kind(kind);
    }

    fn request(&self, number: u64) -> Option<&Notes> {
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
    fn add_cluster(&mut self, cluster: Cluster) {
        self.clusters.extend(cluster.settle());
    }

    /// So many requests of the route were certain that it is known what they do.
    fn is_known_route(&mut self, route: Name) -> bool {
        let start = self.model.nodes.of(Progress::start(route));
        self.model.nodes.certain_exits(start) >= KNOWN
    }
}
