//! What is learned of an application: which call a request makes next, and when.
//!
//! A request is a walk through `Node`s: its route, the calls that it has made,
//! those that have not returned, and the last one's kind. From each node the next step
//! is a call, the return of one, or the end of the request. Per node the model
//! counts calls and ends by the time since the node was entered, and the time
//! spent there (competing risks, as survival analysis has it: hazard = events /
//! time at risk, in half-octave buckets).
//!
//! Everything is a weight rather than a count: what is not certain is learned by
//! its probability. All is bounded, and forgotten by halves.
//!
//! | module | what it knows |
//! |---|---|
//! | [`progress`] | how far a request is, and what it can do next |
//! | [`nodes`] | what requests do at each progress, and when |
//! | [`routes`] | what requests of a route do in all |
//! | [`background`] | calls that no request makes |
//! | [`tokens`] | how much a token says |
//! | [`connections`] | which connection a request uses after which |
//! | [`order`] | which of several requests that are ready goes on first |

mod background;
mod connections;
mod kinds;
mod node;
mod nodes;
mod order;
mod progress;
mod routes;
mod tokens;

use crate::attribution::names::Name;
use crate::attribution::signature::Token;

pub(super) use connections::Connection;
pub(super) use node::NodeId;
pub(super) use order::{Counts, Order, Position};
pub(super) use progress::{Progress, Step};

/// What has been learned.
#[derive(Clone, Debug, Default)]
pub(super) struct Model {
    pub(super) nodes: nodes::Nodes,
    pub(super) routes: routes::Routes,
    pub(super) background: background::Background,
    pub(super) tokens: tokens::Tokens,
    pub(super) order: Order,
    pub(super) connections: connections::Connections,
    /// Which connection the first call of a request uses, by that to the application.
    pub(super) first_connections: connections::Connections,
}

impl Model {
    /// How much likelier the next call of its kind has this connection if it belongs to a
    /// request whose last call had that one, or that came through that one.
    pub(super) fn lift(&self, last: Connection, next: Connection) -> f32 {
        match last.is_to_application() {
            true => self.first_connections.lift(last, next),
            false => self.connections.lift(last, next),
        }
    }

    /// The name is of another route from now on.
    pub(super) fn forget_route(&mut self, route: Name) {
        self.nodes.remove(|progress| progress.route == route);
        self.routes.forget_route(route);
    }

    /// The name is of another kind from now on.
    pub(super) fn forget_kind(&mut self, kind: Name) {
        self.nodes.forget_kind(kind);
        self.routes.forget_kind(kind);
        self.background.forget_kind(kind);
        self.tokens.forget_kind(kind);
    }

    /// A call was seen that is of the background with this probability. `tokens`:
    /// those that no request in flight has. `in_flight`: how many requests are.
    pub(super) fn learn_call(
        &mut self,
        kind: Name,
        tokens: &[Token],
        background: f32,
        in_flight: usize,
    ) {
        self.background.learn_call(kind, background, in_flight);
        self.tokens.learn(tokens);
    }

    /// A request has left this progress after so long, with this probability.
    pub(super) fn learn_step(&mut self, progress: Progress, us: u64, step: Step, weight: f32) {
        if let Step::Called(kind) = step {
            self.routes.learn_call(progress.route, kind, weight);
        }
        let id = self.nodes.of(progress);
        self.nodes.learn(id, us, step, weight);
    }

    /// A request has left this progress of which every step was certain, as far as the
    /// weight says.
    pub(super) fn learn_certain(&mut self, progress: Progress, ended: bool, weight: f32) {
        let id = self.nodes.of(progress);
        self.nodes.learn_certain(id, ended, weight);
    }
}
