//! To which request a call belongs, and whether that is sure enough.

use super::NewCall;
use super::belief::Cluster;
use super::candidates::Candidate;
use super::engine::{Engine, Judged};
use super::model::Connection;
use crate::attribution::in_flight::InFlight;
use crate::attribution::names::Name;
use crate::attribution::numbers::{ln, sort_key};
use crate::attribution::signature::Token;
use crate::attribution::tracker::{Basis, Verdict};

/// Calls of which it is to turn out whether they were judged rightly, at most.
const JUDGED_MOST: usize = 512;
/// Candidates of one call at most.
const CANDIDATES: usize = 12;
/// A verdict of a lesson counts from this probability on.
const SURE: f64 = 0.95;
/// Candidates that are less likely than this do not count.
const NEGLIGIBLE: f64 = 1e-3;
/// A kind of which so many calls were seen is known.
const KNOWN_CALLS: f32 = 3.0;
/// How much likelier a token must make its request, to decide by itself.
const TOKEN: f64 = 50.0;

impl Engine {
    /// A call has begun: the request that it belongs to, if that is sure. `exclusive`: the
    /// only request in flight, if it belongs to that one by the rules of
    /// [`crate::attribution::exclusive`]. `wrong`: the part of all calls that may be given
    /// to a wrong request, from 0 to 1.
    pub(in crate::attribution) fn judge(
        &mut self,
        now_us: u64,
        call: NewCall<'_>,
        in_flight: &mut InFlight,
        exclusive: Option<Verdict>,
        wrong: f64,
    ) -> Option<Verdict> {
        let (kind, connection) = (call.kind, call.connection());
        let active = in_flight.active(now_us);
        self.advance(now_us);
        let (mut candidates, background) =
            self.candidates(now_us, (kind, connection), call.tokens, in_flight);
        candidates.sort_by_cached_key(|candidate| !sort_key(candidate.weight()));
        let total: f64 = candidates.iter().map(Candidate::weight).sum::<f64>() + background;
        let certainty = self.certainty(&candidates, total);
        let foreign = self.foreign_tokens(call.tokens);
        candidates.retain(|candidate| candidate.weight() / total > NEGLIGIBLE);
        candidates.truncate(CANDIDATES);
        if candidates.is_empty() {
            self.taught().learn_call(kind, &foreign, 1.0, active);
            if let Some(lesson) = &mut self.lesson {
                lesson.evidence += ln(total);
                lesson.verdicts.push(None);
            }
            return exclusive;
        }
        let background = match background / total > NEGLIGIBLE {
            true => background,
            false => 0.0,
        };
        let the_call = (call.number, kind, connection);
        // One of those that do not count may have made it, unless an identifier tells.
        let kept = candidates.iter().map(Candidate::weight).sum::<f64>() + background;
        let certainty = match candidates.first() {
            Some(best) if best.tokens > TOKEN => certainty,
            _ => certainty * (kept / total),
        };
        let shares = self.branch(now_us, the_call, &candidates, background);
        let background = shares.last().copied().unwrap_or(1.0);
        let shares = shares.into_iter().map(|share| share * certainty);
        let mut weighed: Vec<(Candidate, f64)> = candidates.into_iter().zip(shares).collect();
        weighed.sort_by_cached_key(|(_, share)| !sort_key(*share));
        for (candidate, share) in &weighed {
            self.note_share(candidate.request, *share);
            let request = in_flight.get_mut(candidate.request);
            if let Some(request) = request.filter(|_| *share > 0.1) {
                request.hear(now_us);
            }
        }
        self.taught()
            .learn_call(kind, &foreign, background as f32, active);
        let (best, share) = *weighed.first()?;
        if let Some(lesson) = &mut self.lesson {
            lesson.verdicts.push((share > SURE).then_some(best.request));
        }
        if share > 0.9 {
            self.model.tokens.learn_match(kind, best.tokens > TOKEN);
        }
        self.decide(
            (call.number, kind),
            &best,
            share as f32,
            background,
            exclusive,
            wrong,
        )
    }

    /// The probability that the belief is not wrong about the candidates, of which the
    /// likeliest comes first, with this sum of weights.
    fn certainty(&self, candidates: &[Candidate], total: f64) -> f64 {
        let others = candidates.iter().skip(1);
        let doubt: f64 = others
            .map(|other| (other.usual - other.rate).max(0.0))
            .sum();
        // The call belongs to a misplaced request as likely as others make such calls.
        let usual: f64 = candidates.iter().map(Candidate::usual_weight).sum();
        let best = candidates.first().map_or(0.0, Candidate::usual_weight);
        let misplaced = self.surprises.misplaced() * (1.0 - best / usual);
        total / (total + doubt) * (1.0 - misplaced)
    }

    /// Tokens that no request in flight has.
    fn foreign_tokens(&self, tokens: &[Token]) -> Vec<Token> {
        let is_foreign = |token: &Token| {
            let mut requests = self.requests.iter();
            !requests.any(|request| request.tokens.contains(token))
        };
        tokens.iter().copied().filter(is_foreign).collect()
    }

    /// A call belongs to a request with this probability.
    fn note_share(&mut self, request: u64, share: f64) {
        let mut requests = self.requests.iter_mut();
        if let Some(request) = requests.find(|known| known.number == request) {
            // Where there is nothing else but the background, less will do.
            let doubtful = match request.is_alone {
                true => 0.2..0.8,
                false => 0.01..0.99,
            };
            request.certain &= !doubtful.contains(&share);
        }
    }

    /// Whether the best candidate is sure enough. `background`: the probability that it is
    /// none.
    fn decide(
        &mut self,
        (call, kind): (u64, Name),
        best: &Candidate,
        share: f32,
        background: f64,
        exclusive: Option<Verdict>,
        wrong: f64,
    ) -> Option<Verdict> {
        let verdict = |basis| Verdict {
            request: best.request,
            share,
            basis,
        };
        if best.tokens > TOKEN && f64::from(share) > 1.0 - 0.25 * wrong {
            return Some(verdict(Basis::Token));
        }
        let route = self.request(best.request)?.route;
        let is_known =
            self.is_known_route(route) && self.model.background.calls(kind) >= KNOWN_CALLS;
        if exclusive.is_some() && (share > 0.9 || !is_known) {
            return exclusive;
        }
        if !is_known || self.surprises.are_many() || self.is_doubtful {
            return None;
        }
        self.acceptance.add(share, background);
        if self.judged.len() >= JUDGED_MOST {
            // The oldest, of a request that does not end, such as a stream.
            self.judged.remove(0);
        }
        self.judged.push(Judged {
            call,
            request: best.request,
            share,
        });
        let trust = self.surprises.trust();
        let rate = self.acceptance.accept(share, background, trust, wrong)?;
        Some(Verdict {
            share: 1.0 - rate as f32,
            ..verdict(Basis::Evidence)
        })
    }

    /// Continues the belief with each of the candidates, and with the background at this
    /// rate per millisecond. Returns the probability of each, the background's last.
    pub(super) fn branch(
        &mut self,
        now_us: u64,
        call: (u64, Name, Connection),
        candidates: &[Candidate],
        background: f64,
    ) -> Vec<f64> {
        let mut merged: Option<Cluster> = None;
        let mut others = Vec::with_capacity(self.clusters.len());
        for (at, cluster) in std::mem::take(&mut self.clusters).into_iter().enumerate() {
            if !candidates.iter().any(|candidate| candidate.cluster == at) {
                others.push(cluster);
                continue;
            }
            merged = Some(match merged {
                Some(merged) => merged.merge(cluster),
                None => cluster,
            });
        }
        self.clusters = others;
        let Some(mut cluster) = merged else {
            return Vec::new();
        };
        let counts = self.lesson.as_mut().map(|lesson| &mut lesson.counts);
        let shares = cluster.branch(
            &mut self.model,
            now_us,
            call,
            candidates,
            background,
            counts,
        );
        self.add_cluster(cluster);
        shares
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attribution::in_flight::Request;
    use crate::attribution::inferred::model::Progress;

    /// So many requests of a route that is known have just begun.
    fn begun(requests: u64) -> (Engine, InFlight) {
        let (mut engine, mut in_flight) = (Engine::default(), InFlight::default());
        let start = engine.model.nodes.of(Progress::start(1));
        engine.model.nodes.learn_certain(start, false, 30.0);
        for _ in 0..5 {
            engine.model.background.learn_call(1, 0.0, 5);
        }
        for number in 1..=requests {
            let request = Request {
                number,
                bucket: 0,
                route: 1,
                began_us: 1_000_000,
                heard_us: 1_000_000,
                connection: 0,
            };
            engine.begin(1_000_000, Some(&request), false, vec![]);
            in_flight.add(request);
        }
        (engine, in_flight)
    }

    fn judge(engine: &mut Engine, in_flight: &mut InFlight, number: u64) {
        let call = NewCall {
            number,
            kind: 1,
            tokens: &[],
            port: 0,
        };
        engine.judge(1_001_000, call, in_flight, None, 0.005);
    }

    #[test]
    fn candidates_that_are_left_out_are_a_doubt() {
        let (mut engine, mut in_flight) = begun(40);
        judge(&mut engine, &mut in_flight, 1);
        let share = engine.judged.first().map(|judged| judged.share);
        assert!(share.is_some_and(|share| share < 1.1 / 40.0), "{share:?}");
    }

    #[test]
    fn the_oldest_verdict_goes_first() {
        let (mut engine, mut in_flight) = begun(2);
        for call in 1..=JUDGED_MOST as u64 {
            engine.judged.push(Judged {
                call,
                request: 99,
                share: 0.9,
            });
        }
        for call in 1001..=1010 {
            judge(&mut engine, &mut in_flight, call);
        }
        let new = engine.judged.iter().filter(|judged| judged.call > 1000);
        assert_eq!(new.count(), 10);
    }
}
