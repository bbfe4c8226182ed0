//! A clock that does not go back.

/// A machine's clock that is set back by less than this is let be, in microseconds: a few
/// events are then in the wrong order.
const JITTER_US: u64 = 1_000_000;

/// So many times that it was set back are remembered.
const BEFORE_MOST: usize = 8;

/// The time since the epoch in microseconds, as the machine says it, until its clock is set
/// back: then it goes on from where it was.
#[derive(Debug, Default)]
pub(super) struct Clock {
    latest_us: u64,
    /// What the machine's clock was set back by, in all.
    offset_us: u64,
    /// The same of before, newest last.
    before_us: Vec<u64>,
}

impl Clock {
    /// The time now. `machine_us`: by the machine's clock.
    pub(super) fn now(&mut self, machine_us: u64) -> u64 {
        let now_us = machine_us.saturating_add(self.offset_us);
        if now_us.saturating_add(JITTER_US) < self.latest_us {
            if self.before_us.len() >= BEFORE_MOST {
                self.before_us.remove(0);
            }
            self.before_us.push(self.offset_us);
            self.offset_us = self.latest_us.saturating_sub(machine_us);
            return self.latest_us;
        }
        self.latest_us = self.latest_us.max(now_us);
        now_us
    }

    /// Turns the times of events by the machine's clock into those of this one. The events
    /// are of one journal, in their order; the last one is no later than now. Where the clock
    /// was set back between two of them, those before keep their distances, too.
    pub(super) fn place<T>(&self, events: &mut [(u64, u16, T)]) {
        let mut offset_us = self.offset_us as i64;
        let mut next: Option<(u64, u64)> = None;
        for (at_us, ..) in events.iter_mut().rev() {
            let machine_us = *at_us;
            let latest_us = next.map_or(self.latest_us, |(_, placed_us)| placed_us);
            let is_back = match next {
                Some((next_us, _)) => machine_us > next_us.saturating_add(JITTER_US),
                None => {
                    let placed_us = machine_us.saturating_add_signed(offset_us);
                    placed_us > latest_us.saturating_add(JITTER_US)
                }
            };
            if is_back {
                let most_us = (latest_us as i64).saturating_sub(machine_us as i64);
                let known = self.before_us.iter().map(|before_us| *before_us as i64);
                let known = known.filter(|before_us| *before_us <= most_us).max();
                offset_us = known.unwrap_or(offset_us.min(most_us));
            }
            *at_us = machine_us.saturating_add_signed(offset_us).min(latest_us);
            next = Some((machine_us, *at_us));
        }
    }

    /// The last time that somebody asked.
    pub(super) fn latest(&self) -> u64 {
        self.latest_us
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_on_where_the_machines_clock_is_set_back() {
        let mut clock = Clock::default();
        let hour_us = 3_600_000_000;
        assert_eq!(clock.now(10 * hour_us), 10 * hour_us);
        // A little is let be.
        assert_eq!(clock.now(10 * hour_us - 5), 10 * hour_us - 5);
        assert_eq!(clock.now(9 * hour_us), 10 * hour_us);
        assert_eq!(clock.now(9 * hour_us + 7), 10 * hour_us + 7);
        assert_eq!(clock.now(8 * hour_us), 10 * hour_us + 7);
        assert_eq!(clock.now(20 * hour_us), 22 * hour_us + 7);
        assert_eq!(clock.latest(), 22 * hour_us + 7);
    }

    fn placed(clock: &Clock, times: &[u64]) -> Vec<u64> {
        let mut events: Vec<_> = times.iter().map(|time| (*time, 0, ())).collect();
        clock.place(&mut events);
        events.into_iter().map(|(at_us, ..)| at_us).collect()
    }

    #[test]
    fn events_keep_their_distances() {
        const S: u64 = 1_000_000;
        let mut clock = Clock::default();
        clock.now(1000 * S);
        assert_eq!(placed(&clock, &[990 * S, 1000 * S]), [990 * S, 1000 * S]);
        // A little before, a little after.
        let times = [999 * S + 5, 999 * S, 1000 * S + 7];
        assert_eq!(placed(&clock, &times), [999 * S, 999 * S, 1000 * S]);
        // Set back by 400 s, which nobody saw here.
        let times = [1380 * S, 1390 * S, 990 * S, 998 * S];
        let expected = [980 * S, 990 * S, 990 * S, 998 * S];
        assert_eq!(placed(&clock, &times), expected);
        // And which was seen, 5 s after the last event.
        clock.now(1395 * S);
        clock.now(990 * S);
        clock.now(998 * S);
        let expected = [1380 * S, 1390 * S, 1395 * S, 1403 * S];
        assert_eq!(placed(&clock, &times), expected);
        assert_eq!(placed(&clock, &times[..2]), [1380 * S, 1390 * S]);
        assert!(placed(&clock, &[]).is_empty());
    }
}
