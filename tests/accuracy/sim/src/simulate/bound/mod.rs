//! The Bayes bound: how much anybody could have right, who knows the true parameters of the
//! application, decides about a call when it is made, and may have so much wrong.

mod belief;
mod model;

use super::app::App;
use super::run::run;
use super::seen::{Seen, Size};
use super::tally::{Thousands, add_thousands, thousand};
use belief::Belief;
use model::Model;

/// A call, judged when it is made.
struct Judged {
    /// How likely it is that the guess is right.
    share: f64,
    /// It is more likely to be of the background.
    is_left_alone: bool,
    is_right: bool,
    /// It was made for a request.
    is_owned: bool,
    thousand: usize,
}

/// Right, left alone and wrong, by thousands of requests since the start.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bound {
    pub thousands: Thousands,
    /// What the best guesses are expected to have right, and have, if none is left alone;
    /// and the variance of it.
    pub guessed: [f64; 3],
    /// Events that were thought impossible.
    pub lost: u32,
    /// How likely, as a logarithm, the events are with these parameters.
    pub evidence: f64,
}

impl Bound {
    pub fn add(&mut self, other: Self) {
        add_thousands(&mut self.thousands, other.thousands);
        for (sum, other) in self.guessed.iter_mut().zip(other.guessed) {
            *sum += other;
        }
        self.lost += other.lost;
        self.evidence += other.evidence;
    }
}

pub fn is_known(app: &App) -> bool {
    Model::of(app).is_some()
}

/// `None` where it is not known. Calls and what is wrong are counted as the tracker's are.
pub fn bound(app: &App, clients: usize, size: Size, seed: u64, wrong: f64) -> Option<Bound> {
    let model = Model::of(app)?;
    let run = run(app, clients, size, seed);
    Some(of_run(model, run, size, wrong))
}

/// The events of a run, and from when on they count.
type Run = (Vec<(u64, Seen)>, u64);

fn of_run(model: Model, (events, counts_from): Run, size: Size, wrong: f64) -> Bound {
    let mut belief = Belief::new(model, (size.requests + size.quiet) / 2);
    let mut begun = 0;
    let mut judged = Vec::new();
    for (us, event) in events {
        match event {
            Seen::Begin(request) => {
                begun += 1;
                belief.begin(us, &request);
            }
            Seen::End(id) | Seen::BrokenOff(id) => belief.end(us, id),
            Seen::CallEnd(id) => belief.call_end(us, id),
            Seen::Call(call) => {
                let guess = belief.call(us, &call);
                if us >= counts_from && !call.keyed {
                    judged.push(Judged {
                        share: guess.share,
                        is_left_alone: guess.nobodys >= guess.share,
                        is_right: guess.owner.is_some() && guess.owner == call.owner,
                        is_owned: call.owner.is_some(),
                        thousand: thousand(begun),
                    });
                }
            }
        }
    }
    Bound {
        lost: belief.lost,
        evidence: belief.evidence,
        ..best(judged, wrong)
    }
}

/// The surest calls are given away, as many as are expected to have no more wrong than that
/// share of the calls that were made for requests: no other choice has more right.
fn best(mut judged: Vec<Judged>, wrong: f64) -> Bound {
    let mut bound = Bound::default();
    judged.sort_by(|a, b| b.share.total_cmp(&a.share));
    let owned = judged.iter().filter(|call| call.is_owned).count();
    let allowed = wrong * owned as f64;
    let mut expected = 0.0;
    for call in judged {
        if !call.is_left_alone {
            expected += 1.0 - call.share;
        }
        let given = !call.is_left_alone && expected <= allowed;
        let counts = &mut bound.thousands[call.thousand];
        match (given, call.is_right, call.is_owned) {
            (true, true, _) => counts[0] += 1,
            (true, false, _) => counts[2] += 1,
            (false, _, true) => counts[1] += 1,
            (false, _, false) => {}
        }
        let [thought, was, variance] = &mut bound.guessed;
        *thought += call.share;
        *was += f64::from(u8::from(call.is_right));
        *variance += call.share * (1.0 - call.share);
    }
    bound
}

#[cfg(test)]
mod tests;
