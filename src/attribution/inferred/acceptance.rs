//! Which verdicts are accepted, so that no more than the allowed part of all calls is
//! given to a wrong request.
//!
//! A verdict is as good as those of its class have turned out to be: when a request ends,
//! more is known of the calls that it was thought to have made than when they were.

/// Lower bounds of classes of probability.
const CLASSES: [f32; 14] = [
    0.0, 0.5, 0.7, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995,
];
/// Of the wrong calls that are allowed, as many are planned for: what is planned
/// with is an estimate.
const PLANNED: f64 = 0.35;
/// Calls after which half is forgotten.
const HALVED_AT: f64 = 2000.0;
/// As if so many verdicts of a class had turned out as they say of themselves.
const PRIOR: f64 = 8.0;
/// Verdicts on the events that a model was learned from tell less of others: no more than
/// so many of a class count.
const LEARNED: f64 = 16.0;
/// A verdict is not much better than it says of itself.
const BETTER: f64 = 0.15;

/// This part of the verdicts is taken for accepted before there were any.
const FIRST: f32 = 0.45;
/// Most verdicts are accepted if this part of them is.
const HIGH: f32 = 0.5;
/// If no more than this part of them is, the model does not fit: none is accepted, since what
/// it is sure of may be wrong, too.
const LOW: f32 = 0.44;
/// The model fits a call, too, if it is so sure which request has made it, should one have.
const FITS: f64 = 0.98;

/// Verdicts of one class of probability.
#[derive(Clone, Copy, Debug, Default)]
struct Class {
    /// Verdicts, and the sum of what was missing to certainty.
    calls: f64,
    doubt: f64,
    /// Those whose request has ended, and how many of them have turned out to be wrong.
    known: f64,
    wrong: f64,
}

impl Class {
    /// The part of the verdicts that is wrong.
    fn rate(&self) -> f64 {
        let stated = self.doubt / self.calls.max(1e-9);
        let rate = (self.wrong + PRIOR * stated) / (self.known + PRIOR);
        rate.max(BETTER * stated)
    }
}

/// How sure the recent verdicts by evidence were, accepted or not, and what has become of
/// them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Acceptance {
    classes: [Class; CLASSES.len()],
    /// Verdicts, but for those on calls of the background.
    calls: f64,
    /// Requests that have ended.
    requests: f64,
    /// The sum of what was missing to certainty of those that were accepted.
    spent: f64,
    /// The part of the last verdicts that was accepted, or that the model fits: a moving
    /// average, in which a call counts as far as it is none of the background, since that has no
    /// request to find.
    accepted: f32,
}

impl Default for Acceptance {
    fn default() -> Self {
        Self {
            classes: [Class::default(); CLASSES.len()],
            calls: 0.0,
            requests: 0.0,
            spent: 0.0,
            accepted: FIRST,
        }
    }
}

impl Acceptance {
    fn class(&mut self, share: f32) -> Option<&mut Class> {
        let class = CLASSES.iter().rposition(|least| share >= *least)?;
        self.classes.get_mut(class)
    }

    /// The same, for other events than those that the model was learned from.
    pub(super) fn of_other_events(mut self) -> Self {
        for class in &mut self.classes {
            let share = LEARNED / class.known.max(LEARNED);
            class.known *= share;
            class.wrong *= share;
        }
        self
    }

    /// There is a verdict of this probability, on a call that is of the background with
    /// that one.
    pub(super) fn add(&mut self, share: f32, background: f64) {
        if let Some(class) = self.class(share) {
            class.calls += 1.0;
            class.doubt += f64::from(1.0 - share);
        }
        self.calls += 1.0 - background;
        if self.calls > HALVED_AT {
            self.calls *= 0.5;
            self.requests *= 0.5;
            self.spent *= 0.5;
            for class in &mut self.classes {
                class.calls *= 0.5;
                class.doubt *= 0.5;
                class.known *= 0.5;
                class.wrong *= 0.5;
            }
        }
    }

    /// A request has ended.
    pub(super) fn end(&mut self) {
        self.requests += 1.0;
    }

    /// What of the allowed part is planned for: less where a request makes many calls, since
    /// one that is taken for another has all of them wrong.
    fn planned(&self) -> f64 {
        let calls_per_request = self.calls / self.requests.max(1.0);
        PLANNED * (1.5 / calls_per_request.max(1.5))
    }

    /// A verdict of this probability was right with that one, as is known now.
    pub(super) fn turned_out(&mut self, share: f32, right: f64) {
        if let Some(class) = self.class(share) {
            class.known += 1.0;
            class.wrong += (1.0 - right).max(0.0);
        }
    }

    #[cfg(test)]
    pub(super) fn turned_out_wrong(&self) -> f64 {
        self.classes.iter().map(|class| class.wrong).sum()
    }

    /// Whether to accept a verdict of this probability, so that no more than this part of
    /// all calls is wrong, and not many of those accepted. `trust`: what the probability
    /// is worth. `background`: that of the call being of the background. All from 0 to 1.
    ///
    /// Returns the part of such verdicts that is wrong, if it is accepted.
    pub(super) fn accept(
        &mut self,
        share: f32,
        background: f64,
        trust: f64,
        wrong: f64,
    ) -> Option<f64> {
        let rate = self.rate_if_accepted(share, trust, wrong);
        let counts = (1.0 - background) as f32 / 256.0;
        let fits = rate.is_some() || f64::from(share) >= FITS * (1.0 - background);
        self.accepted += counts * (f32::from(u8::from(fits)) - self.accepted);
        rate.filter(|_| self.accepted > LOW)
    }

    /// Most verdicts are accepted.
    pub(super) fn is_high(&self) -> bool {
        self.accepted > HIGH
    }

    fn rate_if_accepted(&mut self, share: f32, trust: f64, wrong: f64) -> Option<f64> {
        let wrong = self.planned() * trust * wrong;
        // As if there had been a few calls already, all of them right.
        let all = 50.0 + self.calls;
        let (mut accepted, mut doubts) = (0.0, 0.0);
        let classes = self.classes.iter().zip(CLASSES).skip(1).rev();
        for (class, bound) in classes {
            accepted += class.calls;
            let rate = class.rate();
            doubts += rate * class.calls;
            let room = doubts <= wrong * all;
            if doubts > 3.0 * wrong * accepted + 0.01 {
                break;
            }
            if share >= bound {
                // Of the last class as many as there is room for.
                let sure = room || self.spent + rate <= wrong * all;
                if sure {
                    self.spent += rate;
                }
                return sure.then_some(rate);
            }
            if !room {
                break;
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRUST: f64 = 1.0;
    const WRONG: f64 = 0.005;

    /// Whether calls of requests are accepted, beside so many others as likely as that to be
    /// of the background.
    fn beside(others: usize, background: f64) -> bool {
        let mut acceptance = Acceptance::default();
        let mut accepted = false;
        for _ in 0..2000 {
            acceptance.add(0.9999, 0.0);
            accepted = acceptance.accept(0.9999, 0.0, TRUST, WRONG).is_some();
            acceptance.end();
            for _ in 0..others {
                acceptance.add(0.3, background);
                acceptance.accept(0.3, background, TRUST, WRONG);
            }
        }
        accepted
    }

    #[test]
    fn the_background_says_nothing_about_whether_the_model_fits() {
        assert!(beside(0, 1.0));
        assert!(beside(3, 1.0));
    }

    #[test]
    fn nothing_is_accepted_where_few_calls_are_sure() {
        assert!(beside(1, 0.0));
        assert!(!beside(3, 0.0));
    }

    /// Of so many calls, two of a request, in turn with one of these probabilities, and with
    /// that one as is known when the request ends, if it ever is: the part of each that was
    /// accepted, and the part of all calls that was given to a wrong request.
    fn run(calls: usize, verdicts: &[(f32, f64)], turn_out: bool) -> (Vec<f64>, f64) {
        let mut acceptance = Acceptance::default();
        let mut accepted = vec![0.0; verdicts.len()];
        let mut wrong = 0.0;
        for n in 0..calls {
            let at = n % verdicts.len();
            let (share, right) = verdicts[at];
            acceptance.add(share, 0.0);
            if acceptance.accept(share, 0.0, TRUST, WRONG).is_some() {
                accepted[at] += verdicts.len() as f64 / calls as f64;
                wrong += (1.0 - right) / calls as f64;
            }
            if turn_out {
                acceptance.turned_out(share, right);
            }
            if n % 2 == 1 {
                acceptance.end();
            }
        }
        (accepted, wrong)
    }

    const SURE: (f32, f64) = (0.9999, 0.9999);

    /// Whatever verdicts say of themselves, and however few are known to have turned out.
    #[test]
    fn no_more_than_the_allowed_part_is_wrong() {
        for calls in [200, 2000, 20_000] {
            for (share, right) in [
                (0.9999, 0.99),
                (0.9999, 0.9),
                (0.996, 0.996),
                (0.996, 0.97),
                (0.96, 0.96),
                (0.96, 0.8),
                (0.6, 0.6),
            ] {
                for verdicts in [
                    &[(share, right)][..],
                    &[SURE, (share, right)],
                    &[(share, right), SURE, SURE, SURE],
                ] {
                    let (accepted, wrong) = run(calls, verdicts, true);
                    let case = format!("{calls} of {verdicts:?}: {accepted:?}, {wrong}");
                    // It takes some to notice that they say too much.
                    let noticed = 12.0 * (1.0 - right) / calls as f64;
                    assert!(wrong <= 0.6 * WRONG + noticed, "{case}");
                    if (right - f64::from(share)).abs() < 1e-6 {
                        let (_, wrong) = run(calls, verdicts, false);
                        assert!(wrong <= 0.5 * WRONG, "{case}");
                    }
                }
            }
        }
    }

    /// Those that are sure are accepted, and of the others as many as there is room for.
    #[test]
    fn what_is_sure_is_accepted() {
        for (share, least, most) in [(0.993, 0.5, 0.9), (0.96, 0.0, 0.05), (0.6, 0.0, 0.0)] {
            let others = (share, f64::from(share));
            let (accepted, _) = run(20_000, &[SURE, SURE, others, SURE], true);
            let [.., others, sure] = accepted[..] else {
                panic!("four");
            };
            assert!(sure > 0.99, "{accepted:?}");
            assert!((least..=most).contains(&others), "{accepted:?}");
        }
    }
}
