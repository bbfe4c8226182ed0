//! Which connection a request uses after which.
//!
//! Where each thread, or each process, has an HTTP client of its own, the calls of a request
//! go out through connections that belong together. Where all share one, a connection says
//! nothing. Which of the two it is shows in how well the connections of calls could be
//! foretold: if not clearly better than by chance, they are no evidence.

use crate::attribution::names::Name;
use crate::attribution::numbers::ln;

/// Connections at most. Then the one goes that has not been used for longest.
const MOST: usize = 64;
/// As if a request had used so many as any request does.
const PRIOR: f32 = 4.0;
/// Connections are evidence if they are foretold so much better, in nats: in all, and for
/// each call (twice as likely).
const GAIN: f32 = 20.0;
const GAIN_EACH: f32 = 0.7;
/// Counts are halved after so many calls.
const CALLS: f32 = 4000.0;

/// The connection of a call, by the application's port and the call's kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::attribution::inferred) struct Connection(u32);

impl Connection {
    /// Of a call of this kind, from this port; 0: it is not known.
    pub(in crate::attribution::inferred) fn new(kind: Name, port: u16) -> Self {
        match port {
            0 => Self::default(),
            port => Self(u32::from(kind) << 16 | u32::from(port)),
        }
    }

    fn is_known(self) -> bool {
        self.0 != 0
    }

    fn is_of_kind_of(self, other: Self) -> bool {
        self.0 >> 16 == other.0 >> 16
    }
}

/// A connection that was used of late.
#[derive(Clone, Debug)]
struct Used {
    connection: Connection,
    /// When it last was, by the clock.
    at: u32,
    /// How often after each of the connections.
    after: [f32; MOST],
}

/// Which connection a request uses after which.
#[derive(Clone, Debug, Default)]
pub(in crate::attribution::inferred) struct Connections {
    used: Vec<Used>,
    clock: u32,
    /// Calls that came after another one of their request.
    calls: f32,
    /// How much better their connections were foretold than by chance, in nats.
    gain: f32,
}

impl Connections {
    /// Connections say something of requests.
    pub(in crate::attribution::inferred) fn are_evidence(&self) -> bool {
        self.gain > GAIN && self.gain > GAIN_EACH * self.calls
    }

    /// How much likelier the next call of its kind has this connection if it belongs to a
    /// request whose last call had that one.
    pub(in crate::attribution::inferred) fn lift(&self, last: Connection, next: Connection) -> f32 {
        match self.are_evidence() {
            true => self.ratio(last, next),
            false => 1.0,
        }
    }

    /// One has been used after the other, by a request that has made both calls with this
    /// probability.
    pub(in crate::attribution::inferred) fn learn(
        &mut self,
        last: Connection,
        next: Connection,
        weight: f32,
    ) {
        if !last.is_known() || !next.is_known() {
            return;
        }
        self.gain += weight * ln(f64::from(self.ratio(last, next))) as f32;
        self.calls += weight;
        let last = self.index(last);
        let next = self.index(next);
        let counts = self.used.get_mut(next).map(|next| &mut next.after);
        if let Some(count) = counts.and_then(|counts| counts.get_mut(last)) {
            *count += weight;
        }
        if self.calls > CALLS {
            self.calls *= 0.5;
            self.gain *= 0.5;
            for count in self.used.iter_mut().flat_map(|used| &mut used.after) {
                *count *= 0.5;
            }
        }
    }

    fn position(&self, connection: Connection) -> Option<usize> {
        let mut used = self.used.iter();
        used.position(|used| used.connection == connection)
    }

    fn ratio(&self, last: Connection, next: Connection) -> f32 {
        let last = self.position(last).filter(|_| next.is_known());
        let Some(last) = last else { return 1.0 };
        // Calls of the kind: all, those with the connection, those after the last one, and
        // those that are both.
        let (mut all, mut with, mut after, mut both) = (0.5, 0.5, 0.0, 0.0);
        for used in &self.used {
            if used.connection.is_of_kind_of(next) {
                let sum: f32 = used.after.iter().sum();
                let count = used.after.get(last).copied().unwrap_or(0.0);
                all += sum + 0.5;
                after += count;
                if used.connection == next {
                    with += sum;
                    both = count;
                }
            }
        }
        (both * all / with + PRIOR) / (after + PRIOR)
    }

    /// The index of a connection, which is used now.
    fn index(&mut self, connection: Connection) -> usize {
        self.clock = self.clock.wrapping_add(1);
        let at = self.position(connection).unwrap_or_else(|| {
            if self.used.len() < MOST {
                self.used.push(Used {
                    connection,
                    at: 0,
                    after: [0.0; MOST],
                });
                return self.used.len() - 1;
            }
            let all = self.used.iter().enumerate();
            let oldest = all.min_by_key(|(_, used)| used.at);
            let oldest = oldest.map_or(0, |(at, _)| at);
            for (at, used) in self.used.iter_mut().enumerate() {
                if at == oldest {
                    used.connection = connection;
                    used.after = [0.0; MOST];
                } else if let Some(count) = used.after.get_mut(oldest) {
                    *count = 0.0;
                }
            }
            oldest
        });
        if let Some(used) = self.used.get_mut(at) {
            used.at = self.clock;
        }
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTS: [Name; 2] = [1, 2];

    /// Requests that each call both hosts; `of`: which connection the second call of the
    /// n-th request has, if the first one has connection n % 8.
    fn learned(of: impl Fn(u16) -> u16) -> Connections {
        let mut connections = Connections::default();
        for n in 0..400 {
            let first = Connection::new(HOSTS[0], 100 + n % 8);
            let second = Connection::new(HOSTS[1], 200 + of(n));
            connections.learn(first, second, 1.0);
        }
        connections
    }

    #[test]
    fn connections_of_one_thread_belong_together() {
        let connections = learned(|n| n % 8);
        assert!(connections.are_evidence());
        let lift = |last, next| {
            let next = Connection::new(HOSTS[1], next);
            connections.lift(Connection::new(HOSTS[0], last), next)
        };
        assert!(lift(103, 203) > 5.0);
        assert!(lift(103, 204) < 0.1);
        // Nothing is known of these.
        assert_eq!(lift(0, 203), 1.0);
        assert_eq!(lift(103, 0), 1.0);
        assert_eq!(lift(150, 203), 1.0);
        // Nor of a kind that comes out through one connection.
        assert!(lift(103, 250) <= 1.0);
    }

    #[test]
    fn those_of_a_shared_pool_are_no_evidence() {
        let random = |n: u16| (u32::from(n) * 40_503 >> 5) as u16 % 8;
        for connections in [learned(random), learned(|_| 0), learned(|n| n)] {
            assert!(!connections.are_evidence());
            let last = Connection::new(HOSTS[0], 103);
            let next = Connection::new(HOSTS[1], 203);
            assert_eq!(connections.lift(last, next), 1.0);
        }
    }

    #[test]
    fn only_those_used_of_late_are_kept() {
        let mut connections = learned(|n| n % 8);
        for port in 1000..1200 {
            let other = |kind| Connection::new(kind, port);
            connections.learn(other(HOSTS[0]), other(HOSTS[1]), 1.0);
        }
        assert_eq!(connections.used.len(), MOST);
        let old = Connection::new(HOSTS[0], 103);
        assert_eq!(connections.position(old), None);
        let sum: f32 = connections.used.iter().flat_map(|used| used.after).sum();
        assert_eq!(sum, MOST as f32 / 2.0);
    }
}
