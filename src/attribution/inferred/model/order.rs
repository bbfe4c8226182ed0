//! Which of several requests that are ready goes on first.
//!
//! A request is ready while none of its calls is outstanding. Threads go on independently
//! of each other; an event loop, a pool or a lock serves first the request that has been
//! ready for longest. A gain says how much likelier a request goes on than its node alone
//! has it, by the number of requests that are ready and by its rank among them.

/// Classes of the number of requests that are ready, and of the rank.
const QUEUES: usize = 9;
const RANKS: usize = 7;
/// As if a gain of 1 had been seen so often.
const PRIOR: f32 = 3.0;
/// A gain is within these bounds.
const GAINS: (f32, f32) = (0.003, 50.0);
/// Gains that explain less than this, in nats for each of them, are noise.
const FLAT: f32 = 2.0;

type Table = [[f32; RANKS]; QUEUES];

/// Where a request stands among those that are ready.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::attribution::inferred) struct Position {
    queue: u8,
    rank: u8,
}

impl Position {
    /// `ready`: how many requests are, this one included. `rank`: how many of them have
    /// been for longer.
    pub(in crate::attribution::inferred) fn new(ready: usize, rank: usize) -> Self {
        let queue = match ready {
            0..=3 => ready.saturating_sub(1),
            4..=5 => 3,
            6..=8 => 4,
            9..=12 => 5,
            13..=20 => 6,
            21..=32 => 7,
            _ => 8,
        };
        let rank = match rank {
            0..=3 => rank,
            4..=5 => 4,
            6..=9 => 5,
            _ => 6,
        };
        Self {
            queue: queue as u8,
            rank: rank as u8,
        }
    }

    fn of(self, table: &mut Table) -> Option<&mut f32> {
        let queue = table.get_mut(usize::from(self.queue))?;
        queue.get_mut(usize::from(self.rank))
    }
}

/// The gain of each position.
#[derive(Clone, Debug, Default)]
pub(in crate::attribution::inferred) struct Order {
    /// `None`: all are 1.
    gains: Option<Box<Table>>,
}

impl Order {
    /// Requests go on independently of each other, or nothing is known of it.
    pub(in crate::attribution::inferred) fn is_flat(&self) -> bool {
        self.gains.is_none()
    }

    /// How much likelier a request at this position goes on.
    pub(in crate::attribution::inferred) fn gain(&self, position: Position) -> f32 {
        let queue = |gains: &Table| gains.get(usize::from(position.queue)).copied();
        let queue = self.gains.as_deref().and_then(queue);
        let gain = queue.and_then(|queue| queue.get(usize::from(position.rank)).copied());
        gain.unwrap_or(1.0)
    }
}

/// By position: how often a request went on, and how often it should have by its node
/// alone.
#[derive(Clone, Debug, Default)]
pub(in crate::attribution::inferred) struct Counts {
    events: Table,
    expected: Table,
}

impl Counts {
    /// A request has gone on, with this probability.
    pub(in crate::attribution::inferred) fn went_on(&mut self, position: Position, weight: f32) {
        if let Some(events) = position.of(&mut self.events) {
            *events += weight;
        }
    }

    /// A request was at a position while so many events were to be expected of it.
    pub(in crate::attribution::inferred) fn waited(&mut self, position: Position, events: f32) {
        if let Some(expected) = position.of(&mut self.expected) {
            *expected += events;
        }
    }

    /// What these counts say.
    pub(in crate::attribution::inferred) fn order(&self) -> Order {
        let mut gains = [[1.0; RANKS]; QUEUES];
        let (mut explained, mut used) = (0.0, 0.0);
        let rows = self.events.iter().zip(&self.expected).zip(&mut gains);
        // Where one is ready, there is no order.
        for ((events, expected), gains) in rows.skip(1) {
            for ((events, expected), gain) in events.iter().zip(expected).zip(gains) {
                *gain = ((events + PRIOR) / (expected + PRIOR)).clamp(GAINS.0, GAINS.1);
                explained += events * gain.ln() - expected * (*gain - 1.0);
                used += f32::from(u8::from(*expected > 0.5));
            }
        }

        let is_noise = explained < FLAT * used;
        Order {
            gains: (!is_noise).then(|| Box::new(gains)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_in_line_goes_on_first() {
        let mut counts = Counts::default();
        for _ in 0..200 {
            for rank in 0..3 {
                counts.waited(Position::new(3, rank), 0.4);
            }
            counts.went_on(Position::new(3, 0), 1.0);
        }
        let order = counts.order();
        assert!(!order.is_flat());
        assert!(order.gain(Position::new(3, 0)) > 2.0);
        assert!(order.gain(Position::new(3, 1)) < 0.1);
        assert_eq!(order.gain(Position::new(1, 0)), 1.0);
        assert_eq!(order.gain(Position::new(20, 5)), 1.0);
    }

    #[test]
    fn those_that_go_on_by_themselves_have_no_order() {
        let mut counts = Counts::default();
        for n in 0..300 {
            for rank in 0..3 {
                counts.waited(Position::new(3, rank), 0.33);
            }
            counts.went_on(Position::new(3, n % 3), 1.0);
        }
        assert!(counts.order().is_flat());
        assert!(Order::default().is_flat());
    }
}
