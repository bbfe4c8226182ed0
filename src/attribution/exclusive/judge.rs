//! Whether a call is of the only request in flight, and how sure that is.

use super::super::buckets::{begin_ms, bucket, ms};
use super::super::names::Name;
use super::Exclusive;
use super::cells::{ANY_TIME, get};
use super::lifts::{PRIOR_BACKGROUND, Timing};
use super::only_request::OnlyRequest;
use super::route::CallsPerRequest;

/// Odds from which on requests are known to make a kind. A background passes them with a
/// probability of one to this number.
const PROVEN: f32 = 400.0;
/// So many calls of a kind may be given to requests before the odds are good; from then on
/// these odds will do. A background passes these with a probability of one to this number.
const EARLY_CALLS: u8 = 9;
const LIKELY: f32 = 20.0;
/// The doubt that may be spent at once, in calls.
pub(super) const BUDGET: f32 = 3.0;
/// A doubt is an estimate: of the budget it costs so much more.
const DOUBT_COST: f32 = 5.0;
/// What the first call of an unknown kind costs, and each further one until the odds are
/// good.
const FIRST_COST: f32 = 0.3;
const EARLY_COST: f32 = 0.1;
/// No call is given to a request that is the background's with a greater probability.
const DOUBT: f32 = 0.1;
/// The same, of an unexpected call, soon after others of its kind.
const DOUBT_UNEXPECTED: f32 = 0.008;
/// If the background made more calls of a kind than this, none of the kind is given to a
/// request that overlapped others.
const OVERLAPPED_BACKGROUND: f32 = 1.0;
/// With a greater doubt, a call is rather the background's.
pub(super) const UNLIKELY: f32 = 0.5;
/// A route is known after so many requests that were the only one from beginning to end.
pub(super) const KNOWN: f32 = 5.0;
/// Odds stay in this range, so that a change is noticed.
pub(super) const ODDS: std::ops::RangeInclusive<f32> = 1e-3..=1e5;
/// One call changes the odds by no more than these.
pub(super) const WEIGHTS: std::ops::RangeInclusive<f32> = 0.05..=200.0;
/// Odds below which requests are known not to make a kind.
pub(super) const REFUTED: f32 = 0.04;
/// Of fewer calls of a kind only the odds count.
pub(super) const FEW: f32 = 4.0;
/// Requests after which it is known that each makes just one call of a kind.
const ALWAYS: f32 = 30.0;

/// What speaks against the only request in flight having made a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::attribution) enum Against {
    Nothing,
    /// Calls of its kind take no notice of requests, or a request that was broken off, or has
    /// gone on for long, may make them.
    Kind,
    /// And it came where requests make no more calls than the background.
    All,
}

/// What is known of a call that came while one request was in flight.
#[derive(Clone, Copy, Debug)]
pub(super) struct Evidence {
    /// The cell that it came in, with calls of its kind counted, and without.
    pub(super) cells: [usize; 2],
    /// The lift of these cells.
    pub(super) lift: f32,
    /// The likelihood ratio of a timer.
    pub(super) timer: f32,
    /// The likelihood ratio of this call, of requests against the background.
    pub(super) weight: f32,
    /// The odds with it.
    pub(super) odds: f32,
    pub(super) judgement: Judgement,
}

/// What is known of a call, given that requests make calls of its kind.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Judgement {
    /// The probability that it is the background's.
    pub(super) doubt: f32,
    /// Little is known so far.
    pub(super) young: bool,
    /// Each request of the route makes just one such call.
    pub(super) always: bool,
    /// Requests seldom make such a call, or not at that time.
    pub(super) is_unexpected: bool,
    /// The share of requests that make an unexpected call next.
    pub(super) usual: f32,
}

impl Evidence {
    /// What speaks against the request.
    pub(super) fn against(&self) -> Against {
        match self.odds < REFUTED {
            true if self.judgement.doubt > UNLIKELY => Against::All,
            true => Against::Kind,
            false => Against::Nothing,
        }
    }
}

impl Exclusive {
    pub(super) fn evidence(&self, only: &OnlyRequest, kind: Name, timing: Timing) -> Evidence {
        let now_us = self.now_us;
        let Timing { timer, since_us } = timing;
        // One call after the other, each when the one before has returned: the calls of a
        // kind are no events of their own then. If not, what the request did apart from them
        // counts as well.
        let (returned, at_us) = only.returned;
        let follows = returned == kind && now_us.saturating_sub(at_us) < since_us / 2;
        let event_us = now_us.saturating_sub(only.last_event_us);
        let cell = only.first_cell(None) + bucket(event_us);
        let (other_cell, timer) = if follows {
            (cell, 1.0)
        } else {
            let us = now_us.saturating_sub(only.last_event_without(kind));
            (only.first_cell(Some(kind)) + bucket(us), timer)
        };
        let cells = [cell, other_cell];
        let lift = self.lift(kind, cells);
        let judgement = self.judge(only, kind, lift.max(self.sparse_lift(kind, cells)));
        let in_cell_us = event_us.saturating_sub((1000.0 * begin_ms(bucket(event_us))) as u64);
        let silence = self.silence(kind, lift, in_cell_us.min(since_us));
        let learned_lift = match only.overlapped {
            true => lift.min(self.overlapped_lift(kind, cell)),
            false => lift,
        };
        let weight = (learned_lift * silence / timer).clamp(*WEIGHTS.start(), *WEIGHTS.end());
        // One call after the other says as little as the first one of them.
        let weight = if follows { 1.0 } else { weight };
        Evidence {
            cells,
            lift,
            timer,
            weight,
            odds: weight * self.odds(kind),
            judgement,
        }
    }

    fn judge(&self, only: &OnlyRequest, kind: Name, lift: f32) -> Judgement {
        let Some(known) = self.known(kind) else {
            return Judgement::default();
        };
        let own = self.routes.get(usize::from(only.route));
        let route = own.filter(|route| route.requests >= KNOWN);
        let route = route.or(self.routes.first());
        let none = CallsPerRequest::new(kind, route.map_or(0.0, |route| route.requests));
        let calls = route
            .and_then(|route| route.calls_of(kind))
            .unwrap_or(&none);
        let (made, before_us) = match only.overlapped {
            true => (0, only.last_event_us),
            false => only.made(kind),
        };
        let one_more = calls.probability_of_one_more(made);
        let waited = ms(self.now_us.saturating_sub(before_us));
        let mean_wait = calls.mean_wait_ms(made, waited);
        // The rate at which the request makes such calls now: by the time of the calls of all
        // requests, and by the calls per request.
        let rate = lift * (known.calls + 2.0 * PRIOR_BACKGROUND.0) / (get(&self.sums, 0) + 1.0);
        let rate = if made == 0 { rate } else { rate * one_more };
        let mean_rate = one_more / mean_wait.max(0.05);
        // A call that is due may be late.
        let late = one_more >= 0.5 && waited >= 0.8 * mean_wait;
        let rate = rate.max(if late {
            mean_rate
        } else {
            mean_rate * lift.min(1.0)
        });
        let reached = get(&calls.reached, 0);
        let each_makes_one =
            get(&calls.went_on, 0) > 0.98 * reached && get(&calls.went_on, 1) < 0.02 * reached;
        let always = reached >= ALWAYS && each_makes_one;
        let background = self.background_rate(known, always && made == 0);
        let doubt = background / (background + rate);
        let young = known.calls < FEW
            || get(&calls.reached, made.min(1)) < FEW - 1.0
            || (made == 0 && each_makes_one && !always);
        let one_too_many = made > 0 && one_more < 0.5;
        let at_odd_time = !late && lift < 0.5;
        let next = calls.probability_of_one_more(made + 1);
        let next = if next < 0.5 { next } else { 0.0 };
        let usual = next + 0.2 * ANY_TIME;
        Judgement {
            doubt: if young { doubt.min(0.02) } else { doubt },
            young,
            always,
            is_unexpected: one_too_many || at_odd_time,
            usual,
        }
    }

    /// Whether to give the call to the request. Returns the probability that this is wrong.
    pub(super) fn decide(
        &mut self,
        only: &OnlyRequest,
        [kind, class]: [Name; 2],
        evidence: &Evidence,
    ) -> Option<f32> {
        let judgement = &evidence.judgement;
        let known = self.known(kind);
        let recent = known.is_some_and(|kind| kind.recent_rate(self.now_us) > 0.0);
        let background = known.map_or(0.0, |kind| kind.background);
        let is_unexpected = recent
            && !judgement.young
            && judgement.is_unexpected
            && judgement.doubt > DOUBT_UNEXPECTED;
        // What a request has made that overlapped others is not known.
        if is_unexpected || (only.overlapped && background > OVERLAPPED_BACKGROUND) {
            return None;
        }
        let doubt = self.spend(kind, class, evidence)?;
        let settled = judgement.young || judgement.always;
        if judgement.is_unexpected && evidence.lift < 1.0 && !settled {
            if self.unexpected < 1.0 {
                return None;
            }
            self.unexpected -= 1.0;
        }
        Some(doubt)
    }

    /// Spends the doubt, if the odds are good or there are few calls so far.
    fn spend(&mut self, kind: Name, class: Name, evidence: &Evidence) -> Option<f32> {
        let Evidence {
            odds, judgement, ..
        } = *evidence;
        let known_class = self.known(class);
        let unknown_class =
            known_class.is_none_or(|class| class.calls < 1.0 || class.odds < REFUTED);
        let budget = self.budget;
        let room = budget / BUDGET;
        let known = self.known_mut(kind)?;
        if (odds < REFUTED && !judgement.always) || judgement.doubt > DOUBT {
            return None;
        }
        let good = match known.given_early < EARLY_CALLS {
            true => PROVEN,
            false => LIKELY,
        };
        if odds >= good || judgement.always {
            // What was given early was right.
            let back = std::mem::take(&mut known.charged_early);
            let doubt = judgement.doubt + if judgement.always { 0.0 } else { 1.0 / odds };
            let sure = doubt <= DOUBT * room * room;
            let spent = if sure { DOUBT_COST * doubt } else { 0.0 };
            self.budget = (budget + back - spent).min(BUDGET);
            return sure.then_some(doubt);
        }
        let cost = match known.calls < 1.0 && unknown_class {
            true => FIRST_COST,
            false => EARLY_COST,
        };
        if known.given_early >= EARLY_CALLS || cost > budget {
            return None;
        }
        known.given_early += 1;
        known.charged_early += cost;
        self.budget -= cost;
        Some(cost.min(judgement.doubt + 1.0 / (1.0 + odds)))
    }
}
