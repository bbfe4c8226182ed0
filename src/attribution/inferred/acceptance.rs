//! Which verdicts are accepted, so that no more than the allowed part of all calls is
//! given to a wrong request.

/// Lower bounds of classes of probability.
const CLASSES: [f32; 12] = [
    0.0, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995,
];
/// Of the wrong calls that are allowed, as many are planned for: what is planned
/// with is an estimate.
const PLANNED: f64 = 0.6;
/// Calls after which half is forgotten.
const HALVED_AT: f64 = 2000.0;

/// How sure the recent verdicts by evidence were, accepted or not.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Acceptance {
    /// By class: verdicts, and the sum of what was missing to certainty.
    classes: [(f64, f64); CLASSES.len()],
    /// Verdicts, but for those on calls of the background.
    calls: f64,
    /// The sum of what was missing to certainty of those that were accepted.
    spent: f64,
}

impl Acceptance {
    /// There is a verdict of this probability, on a call that is of the background with
    /// that one.
    pub(super) fn add(&mut self, share: f32, background: f64) {
        let class = CLASSES.iter().rposition(|least| share >= *least);
        if let Some((calls, doubt)) = class.and_then(|class| self.classes.get_mut(class)) {
            *calls += 1.0;
            *doubt += f64::from(1.0 - share);
        }
        self.calls += 1.0 - background;
        if self.calls > HALVED_AT {
            self.calls *= 0.5;
            self.spent *= 0.5;
            for (calls, doubt) in &mut self.classes {
                *calls *= 0.5;
                *doubt *= 0.5;
            }
        }
    }

    /// Whether to accept a verdict of this probability, so that no more than this part of
    /// all calls is wrong, and not many of those accepted. `trust`: what the probability
    /// is worth. All from 0 to 1.
    pub(super) fn accept(&mut self, share: f32, trust: f64, wrong: f64) -> bool {
        let wrong = PLANNED * trust * wrong;
        // As if there had been a few calls already, all of them right.
        let all = 50.0 + self.calls;
        let (mut accepted, mut doubts) = (0.0, 0.0);
        let classes = self.classes.iter().zip(CLASSES).skip(1).rev();
        let mut sure = false;
        for ((calls, doubt), bound) in classes {
            accepted += calls;
            doubts += doubt;
            let room = doubts <= wrong * all;
            if doubts > 3.0 * wrong * accepted + 0.01 {
                break;
            }
            if share >= bound {
                // Of the last class as many as there is room for.
                sure = room || self.spent + f64::from(1.0 - share) <= wrong * all;
                break;
            }
            if !room {
                break;
            }
        }
        if sure {
            self.spent += f64::from(1.0 - share);
        }
        sure
    }
}
