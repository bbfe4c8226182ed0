//! Which connection a request uses after which.
//!
//! Where each thread, or each process, has an HTTP client of its own, the calls of a request
//! go out through connections that belong together. Where all share one, a connection says
//! nothing. Which of the two it is shows in how well the connections of calls could be
//! foretold: if not clearly better than by chance, they are no evidence.

use crate::attribution::names::Name;
use crate::attribution::numbers::ln;

/// Connections at most.
const MOST: usize = 128;
/// As if a request had used so many as any request does.
const PRIOR: f32 = 4.0;
/// Connections are evidence if they are foretold so much better, in nats: in all, and for
/// each call (twice as likely).
const GAIN: f32 = 20.0;
const GAIN_EACH: f32 = 0.7;
/// Counts are halved after so many calls.
const CALLS: f32 = 4000.0;

/// A bit above all kinds.
const TO_APPLICATION: u32 = 1 << 24;

/// The connection of a call, by the application's port and the call's kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::attribution::inferred) struct Connection(u32);

impl Connection {
    /// Not known.
    pub(in crate::attribution::inferred) const NONE: Self = Self(0);

    /// Of a call of this kind, from this port; 0: it is not known.
    pub(in crate::attribution::inferred) fn new(kind: Name, port: u16) -> Self {
        match port {
            0 => Self::NONE,
            port => Self(u32::from(kind) << 16 | u32::from(port)),
        }
    }

    /// To the application, of this number; 0: it is not known.
    pub(in crate::attribution::inferred) fn to_application(number: u8) -> Self {
        match number {
            0 => Self::NONE,
            number => Self(TO_APPLICATION | u32::from(number)),
        }
    }

    pub(in crate::attribution::inferred) fn is_to_application(self) -> bool {
        self.0 & TO_APPLICATION != 0
    }

    fn is_of_kind_of(self, other: Self) -> bool {
        self.0 >> 16 == other.0 >> 16
    }
}

/// The connections that were used of late.
#[derive(Clone, Debug)]
struct Table {
    known: [Connection; MOST],
    /// Of each: how often it was used after each.
    after: [[f32; MOST]; MOST],
    /// Of each: how often it was used after any.
    sums: [f32; MOST],
    /// The one that was known first, and will be forgotten first.
    first: usize,
}

/// Which connection a request uses after which.
#[derive(Clone, Debug, Default)]
pub(in crate::attribution::inferred) struct Connections {
    table: Option<Box<Table>>,
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
        match &self.table {
            Some(table) if self.are_evidence() => table.ratio(last, next),
            _ => 1.0,
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
        if last == Connection::NONE || next == Connection::NONE {
            return;
        }
        let table = self.table.get_or_insert_with(|| {
            Box::new(Table {
                known: [Connection::NONE; MOST],
                after: [[0.0; MOST]; MOST],
                sums: [0.0; MOST],
                first: 0,
            })
        });
        self.gain += weight * ln(f64::from(table.ratio(last, next))) as f32;
        self.calls += weight;
        let (last, next) = (table.index(last), table.index(next));
        let row = table.after.get_mut(next);
        let count = row.and_then(|row| row.get_mut(last));
        for count in count.into_iter().chain(table.sums.get_mut(next)) {
            *count += weight;
        }
        if self.calls > CALLS {
            self.calls *= 0.5;
            self.gain *= 0.5;
            let counts = table.after.as_flattened_mut().iter_mut();
            for count in counts.chain(&mut table.sums) {
                *count *= 0.5;
            }
        }
    }
}

impl Table {
    fn position(&self, connection: Connection) -> Option<usize> {
        self.known.iter().position(|known| *known == connection)
    }

    #[inline(never)]
    fn ratio(&self, last: Connection, next: Connection) -> f32 {
        let last = match self.position(last) {
            Some(at) if last != Connection::NONE && next != Connection::NONE => at,
            _ => return 1.0,
        };
        // Calls of the kind: all, those with the connection, those after the last one, and
        // those that are both.
        let (mut all, mut with, mut after, mut both) = (0.5, 0.5, 0.0, 0.0);
        for ((known, row), sum) in self.known.iter().zip(&self.after).zip(&self.sums) {
            if known.is_of_kind_of(next) {
                let count = row.get(last).copied().unwrap_or_default();
                after += count;
                all += sum + 0.5;
                if *known == next {
                    both = count;
                    with += sum;
                }
            }
        }
        (both * all / with + PRIOR) / (after + PRIOR)
    }

    /// The index of a connection, which is known from now on.
    fn index(&mut self, connection: Connection) -> usize {
        if let Some(at) = self.position(connection) {
            return at;
        }
        let at = self.first;
        self.first = (at + 1) % MOST;
        let rows = self.known.iter_mut().zip(&mut self.after);
        for (n, ((known, row), sum)) in rows.zip(&mut self.sums).enumerate() {
            if n == at {
                *known = connection;
                *row = [0.0; MOST];
                *sum = 0.0;
            } else if let Some(count) = row.get_mut(at) {
                *sum -= std::mem::take(count);
            }
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
        let random = |n: u16| ((u32::from(n) * 40_503) >> 5) as u16 % 8;
        for connections in [learned(random), learned(|_| 0), learned(|n| n)] {
            assert!(!connections.are_evidence());
            let last = Connection::new(HOSTS[0], 103);
            let next = Connection::new(HOSTS[1], 203);
            assert_eq!(connections.lift(last, next), 1.0);
        }
    }

    #[test]
    fn only_the_last_ones_are_kept() {
        let mut connections = learned(|n| n % 8);
        for port in 1000..1200 {
            let other = |kind| Connection::new(kind, port);
            connections.learn(other(HOSTS[0]), other(HOSTS[1]), 1.0);
        }
        let table = connections.table.unwrap();
        let old = Connection::new(HOSTS[0], 103);
        assert_eq!(table.position(old), None);
        let sum: f32 = table.after.as_flattened().iter().sum();
        assert_eq!(sum, MOST as f32 / 2.0);
    }
}
