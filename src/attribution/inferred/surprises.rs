//! How often the belief turned out to be wrong.
//!
//! A request that ends where requests of its route do not end was taken for another one.
//! Where that happens often, as in a pod without CPU time to spare, the belief is worth
//! nothing. Where a few requests of a route do end, it happens as often as that without a
//! mistake: each request has a few usual surprises, which are subtracted.

/// An end that is less likely than this is a surprise.
pub(super) const SURPRISE: f64 = 0.05;
/// Surprises are usual up to so many times as often as the model has them: its shares are
/// estimates.
const USUAL: f64 = 1.3;
/// Surprises beyond this part of all ends: the belief is wrong too often.
const MISLED: f64 = 0.06;
/// Surprises below this part of all ends: a request of which every step was likely is
/// certain.
const RELIABLE: f64 = 0.02;
/// The part of the belief about a request that is taken for wrong at any time,
/// and how much more for each surprise.
const DOUBT: (f64, f64) = (0.02, 3.0);
/// Requests that are not where they are believed to be, for each surprise: of two
/// that were taken for each other, the one that ends last often surprises nobody.
const MISPLACED: f64 = 1.5;
/// Ends after which a third is left of what requests showed that were alone.
const FORGOTTEN: f64 = 512.0;

/// How much more often ends were surprises than usual: moving averages.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Surprises {
    /// Of all requests.
    all: f64,
    /// Of requests that were the only one in flight, where there is nothing to be wrong
    /// about but what the route does.
    alone: f64,
    /// Of the last few.
    recent: f64,
}

impl Surprises {
    /// A request has ended, which had this probability. `usual`: how many surprises are usual
    /// on the way that it went.
    pub(super) fn add(&mut self, expected: f64, usual: f64, is_alone: bool) {
        let surprise = f64::from(u8::from(expected < SURPRISE)) - USUAL * usual;
        self.all += (surprise - self.all) / 128.0;
        self.recent += (surprise - self.recent) / 32.0;
        // Under load, what those showed that were alone is forgotten.
        self.alone -= self.alone / FORGOTTEN;
        if is_alone {
            self.alone += (surprise - self.alone) / 128.0;
        }
    }

    fn excess(self) -> f64 {
        (self.all - self.excused()).max(0.0)
    }

    /// What needs no mistake of the belief.
    fn excused(self) -> f64 {
        2.0 * self.alone.max(0.0)
    }

    /// The belief is wrong too often for anything.
    pub(super) fn are_many(self) -> bool {
        self.excess() > MISLED
    }

    /// The belief is hardly ever wrong.
    pub(super) fn are_few(self) -> bool {
        self.excess() < RELIABLE
    }

    /// What the belief's own estimates are worth, from 0 to 1: the less, the more often it
    /// is wrong.
    pub(super) fn trust(self) -> f64 {
        1.0 - self.excess() / MISLED
    }

    /// The part of the belief about a request that is taken for wrong, from 0 to 1.
    pub(super) fn doubt(self) -> f64 {
        (DOUBT.0 + DOUBT.1 * self.excess()).min(1.0)
    }

    /// The probability that a request is not where it is believed to be, although
    /// nothing speaks against it: two that have been taken for each other go on
    /// doing what is expected, until they end.
    pub(super) fn misplaced(self) -> f64 {
        (MISPLACED * (self.recent - self.excused())).clamp(0.0, 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_requests_alone_showed_excuses_no_mistakes_under_load_for_ever() {
        let mut surprises = Surprises::default();
        for n in 0..140 {
            surprises.add(if n < 40 { 0.0 } else { 1.0 }, 0.0, true);
        }
        for n in 0..5000 {
            surprises.add(if n % 8 == 0 { 0.0 } else { 1.0 }, 0.0, false);
        }
        assert!(surprises.are_many(), "{surprises:?}");
    }

    #[test]
    fn ends_as_rare_as_they_are_known_to_be_are_no_mistakes() {
        let mut surprises = Surprises::default();
        for n in 0..5000 {
            surprises.add(if n % 25 == 0 { 0.04 } else { 0.96 }, 0.04, n % 7 == 0);
        }
        assert!(surprises.are_few(), "{surprises:?}");
        for n in 0..400 {
            surprises.add(if n % 5 == 0 { 0.04 } else { 0.96 }, 0.04, false);
        }
        assert!(surprises.are_many(), "{surprises:?}");
    }
}
