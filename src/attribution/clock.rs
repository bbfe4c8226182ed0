//! A clock that does not go back.

/// A machine's clock that is set back by less than this is let be, in microseconds: a few
/// events are then in the wrong order.
const JITTER_US: u64 = 1_000_000;

/// The time since the epoch in microseconds, as the machine says it, until its clock is set
/// back: then it goes on from where it was.
#[derive(Debug, Default)]
pub(super) struct Clock {
    latest_us: u64,
    /// What the machine's clock was set back by, in all.
    offset_us: u64,
}

impl Clock {
    /// The time now. `machine_us`: by the machine's clock.
    pub(super) fn now(&mut self, machine_us: u64) -> u64 {
        let now_us = self.shifted(machine_us);
        if now_us.saturating_add(JITTER_US) < self.latest_us {
            self.offset_us = self.latest_us.saturating_sub(machine_us);
            return self.latest_us;
        }
        self.latest_us = self.latest_us.max(now_us);
        now_us
    }

    /// When something happened, no later than now.
    pub(super) fn past(&self, machine_us: u64) -> u64 {
        self.shifted(machine_us).min(self.latest_us)
    }

    /// The last time that somebody asked.
    pub(super) fn latest(&self) -> u64 {
        self.latest_us
    }

    fn shifted(&self, machine_us: u64) -> u64 {
        machine_us.saturating_add(self.offset_us)
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
        assert_eq!(clock.past(9 * hour_us + 6), 10 * hour_us + 6);
        // By the clock as it was.
        assert_eq!(clock.past(10 * hour_us), 10 * hour_us + 7);
        assert_eq!(clock.now(8 * hour_us), 10 * hour_us + 7);
        assert_eq!(clock.now(20 * hour_us), 22 * hour_us + 7);
        assert_eq!(clock.latest(), 22 * hour_us + 7);
    }
}
