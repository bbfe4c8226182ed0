//! What an application may be doing, given all that its sidecar has seen: hypotheses and
//! their probabilities, by Bayes, with the true parameters.

use super::model::{Model, Outcome};
use crate::simulate::seen::{Begun, SeenCall};
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, DefaultHasher};

/// Hypotheses that are kept after an event, of those that are most likely.
const KEPT: usize = 1000;
/// A hypothesis that is less likely than the best one by this factor (e^-16, one in nine million)
/// is dropped.
const UNLIKELY: f64 = 16.0;

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Doing {
    /// It waits for a thread, or for a core.
    Waits,
    /// Since then it runs.
    Runs(u64),
    /// So many calls are out.
    Out(usize),
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Request {
    id: u64,
    route: usize,
    step: usize,
    doing: Doing,
}

/// A call that is out; those of the background are not known.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Out {
    id: u64,
    owner: u64,
    /// Its place in `Model::calls`.
    call: usize,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct State {
    requests: Vec<Request>,
    out: Vec<Out>,
    running: usize,
    /// For a core, in this order.
    ready: VecDeque<u64>,
    /// The calls that this request makes at this very moment, after that which was seen.
    next: Option<(u64, Vec<usize>)>,
}

impl State {
    fn request(&mut self, id: u64) -> Option<&mut Request> {
        self.requests.iter_mut().find(|request| request.id == id)
    }

    fn cpu(&mut self, now: u64, id: u64, cores: usize) {
        let free = self.running < cores;
        if free {
            self.running += 1;
        } else {
            self.ready.push_back(id);
        }
        if let Some(request) = self.request(id) {
            request.doing = match free {
                true => Doing::Runs(now),
                false => Doing::Waits,
            };
        }
    }

    /// A burst is over: the core is free for the next.
    fn ran(&mut self, now: u64, cores: usize) {
        self.running -= 1;
        if let Some(next) = self.ready.pop_front() {
            self.cpu(now, next, cores);
        }
    }

    /// The outcome of a burst is that these calls are made, the first of them is seen.
    fn calls(&mut self, now: u64, call: u64, owner: u64, outcome: &Outcome, cores: usize) {
        if let Some(request) = self.request(owner) {
            request.step = outcome.step;
            request.doing = Doing::Out(outcome.calls.len());
        }
        self.ran(now, cores);
        self.next = Some((owner, outcome.calls.clone()));
        self.calls_next(call);
    }

    fn calls_next(&mut self, id: u64) {
        if let Some((owner, mut calls)) = self.next.take() {
            let call = calls.remove(0);
            self.out.push(Out { id, owner, call });
            self.next = (!calls.is_empty()).then_some((owner, calls));
        }
    }

    fn returned(&mut self, now: u64, owner: u64, cores: usize) {
        let Some(request) = self.request(owner) else {
            return;
        };
        match &mut request.doing {
            Doing::Out(1) => self.cpu(now, owner, cores),
            Doing::Out(calls) => *calls -= 1,
            _ => {}
        }
    }
}

#[derive(Clone)]
struct Hypothesis {
    ln: f64,
    state: State,
}

/// The most likely owner of a call, and how likely it is.
pub struct Guess {
    pub owner: Option<u64>,
    pub share: f64,
    /// How likely it is that it is of the background.
    pub nobodys: f64,
}

pub struct Belief {
    model: Model,
    /// So many have begun when the application changes.
    middle: u64,
    hypotheses: Vec<Hypothesis>,
    now: u64,
    begun: u64,
    serving: usize,
    /// For a thread.
    waiting: VecDeque<u64>,
    /// Events that no hypothesis allows: the true one was dropped.
    pub lost: u32,
    /// The logarithm of how likely all that was seen is, but for what depends on no hypothesis.
    pub evidence: f64,
}

impl Belief {
    pub fn new(model: Model, middle: u64) -> Self {
        let state = State {
            requests: vec![],
            out: vec![],
            running: 0,
            ready: VecDeque::new(),
            next: None,
        };
        Self {
            model,
            middle,
            hypotheses: vec![Hypothesis { ln: 0.0, state }],
            now: 0,
            begun: 0,
            serving: 0,
            waiting: VecDeque::new(),
            lost: 0,
            evidence: 0.0,
        }
    }

    fn is_late(&self) -> bool {
        self.begun > self.middle
    }

    /// No burst was over until now.
    fn advance(&mut self, now: u64) {
        let burst = &self.model.burst;
        for Hypothesis { ln, state } in &mut self.hypotheses {
            for request in &state.requests {
                if let Doing::Runs(since) = request.doing {
                    *ln += burst.survives(self.now - since, now - since);
                }
            }
        }
        // Calls that are made at once are seen one after the other: there is nothing between.
        if now > self.now {
            self.nothing_next();
        }
        self.now = now;
    }

    fn nothing_next(&mut self) {
        if self.hypotheses.iter().all(|h| h.state.next.is_some()) {
            self.lost += 1;
            for hypothesis in &mut self.hypotheses {
                hypothesis.state.next = None;
            }
        }
        self.hypotheses.retain(|h| h.state.next.is_none());
    }

    /// Those that are the same become one; the likely ones are kept.
    fn tidy(&mut self) {
        // Hashed without chance, so that each run has the same result.
        let mut sums: HashMap<State, f64, BuildHasherDefault<DefaultHasher>> = HashMap::default();
        sums.reserve(self.hypotheses.len());
        let lns = self.hypotheses.iter().map(|h| h.ln);
        let best = lns.fold(f64::NEG_INFINITY, f64::max);
        self.evidence += best;
        for Hypothesis { ln, state } in self.hypotheses.drain(..) {
            *sums.entry(state).or_default() += (ln - best).exp();
        }
        let likely = sums.into_iter().filter(|(_, sum)| *sum > (-UNLIKELY).exp());
        let kept = likely.map(|(state, sum)| Hypothesis {
            ln: sum.ln(),
            state,
        });
        self.hypotheses.extend(kept);
        self.hypotheses.sort_by(|a, b| b.ln.total_cmp(&a.ln));
        self.hypotheses.truncate(KEPT);
    }

    pub fn begin(&mut self, now: u64, begun: &Begun) {
        self.advance(now);
        self.nothing_next();
        self.begun += 1;
        let served = self.serving < self.model.threads;
        if served {
            self.serving += 1;
        } else {
            self.waiting.push_back(begun.id);
        }
        for Hypothesis { state, .. } in &mut self.hypotheses {
            state.requests.push(Request {
                id: begun.id,
                route: begun.route as usize - 100,
                step: 0,
                doing: Doing::Waits,
            });
            if served {
                state.cpu(now, begun.id, self.model.cores);
            }
        }
    }

    /// Whose call it is, as one says it when it is seen.
    pub fn call(&mut self, now: u64, seen: &SeenCall) -> Guess {
        self.advance(now);
        let model = &self.model;
        let (is_late, kind) = (self.is_late(), seen.kind);
        let keyed = if seen.keyed {
            0.0
        } else {
            model.without_key(kind)
        };
        let nobody = model.background(kind, is_late);
        // The probability, the hypothesis, the owner, and the outcome if a burst was over.
        let mut found: Vec<(f64, usize, Option<u64>, Option<&Outcome>)> = Vec::new();
        for (at, Hypothesis { ln, state }) in self.hypotheses.iter().enumerate() {
            if let Some((owner, calls)) = &state.next {
                if model.calls[calls[0]].kind == kind {
                    found.push((ln + keyed, at, Some(*owner), None));
                }
                continue;
            }
            if nobody.is_finite() {
                found.push((ln + nobody, at, None, None));
            }
            for request in &state.requests {
                let Doing::Runs(since) = request.doing else {
                    continue;
                };
                let over = ln + keyed + model.burst.ends(now - since);
                for outcome in model.outcomes(request.route, request.step, is_late) {
                    let first = outcome.calls.first();
                    if first.is_some_and(|call| model.calls[*call].kind == kind) {
                        found.push((over + outcome.ln, at, Some(request.id), Some(outcome)));
                    }
                }
            }
        }
        if seen.keyed {
            found.retain(|(_, _, owner, _)| *owner == seen.owner);
        }
        let best = found.iter().map(|one| one.0);
        let best = best.fold(f64::NEG_INFINITY, f64::max);
        if found.is_empty() {
            self.lost += 1;
            found.extend((0..self.hypotheses.len()).map(|at| (0.0, at, None, None)));
        }
        let guess = guess(found.iter().map(|(ln, _, owner, _)| (ln - best, *owner)));
        found.retain(|(ln, ..)| *ln > best - UNLIKELY);
        let cores = model.cores;
        let next = found.into_iter().map(|(ln, at, owner, outcome)| {
            let mut state = self.hypotheses[at].state.clone();
            match (owner, outcome) {
                (Some(owner), Some(outcome)) => state.calls(now, seen.id, owner, outcome, cores),
                (Some(_), None) => state.calls_next(seen.id),
                (None, _) => {}
            }
            Hypothesis { ln, state }
        });
        self.hypotheses = next.collect();
        self.tidy();
        guess
    }

    pub fn call_end(&mut self, now: u64, id: u64) {
        self.advance(now);
        self.nothing_next();
        let mut again = Vec::new();
        for hypothesis in &mut self.hypotheses {
            let state = &mut hypothesis.state;
            let Some(at) = state.out.iter().position(|out| out.id == id) else {
                continue;
            };
            let out = state.out.remove(at);
            let retry = self.model.calls[out.call].retry;
            if retry > 0.0 {
                let mut retried = hypothesis.clone();
                retried.ln += retry.ln();
                retried.state.next = Some((out.owner, vec![out.call]));
                again.push(retried);
                hypothesis.ln += (1.0 - retry).ln();
            }
            hypothesis.state.returned(now, out.owner, self.model.cores);
        }
        self.hypotheses.extend(again);
        self.tidy();
    }

    pub fn end(&mut self, now: u64, id: u64) {
        self.advance(now);
        self.nothing_next();
        let (model, is_late) = (&self.model, self.is_late());
        let answers = |state: &State| {
            let request = state.requests.iter().find(|request| request.id == id)?;
            let Doing::Runs(since) = request.doing else {
                return None;
            };
            let outcomes = model.outcomes(request.route, request.step, is_late);
            let answer = outcomes.iter().find(|outcome| outcome.calls.is_empty())?;
            Some(answer.ln + model.burst.ends(now - since))
        };
        let lns = self.hypotheses.iter().map(|h| answers(&h.state));
        let lns: Vec<Option<f64>> = lns.collect();
        let lost = lns.iter().all(Option::is_none);
        self.lost += u32::from(lost);
        let mut kept = Vec::new();
        for (mut hypothesis, ln) in self.hypotheses.drain(..).zip(lns) {
            if ln.is_none() && !lost {
                continue;
            }
            hypothesis.ln += ln.unwrap_or(0.0);
            let state = &mut hypothesis.state;
            let runs = |request: &Request| matches!(request.doing, Doing::Runs(_));
            let ran = state.request(id).is_some_and(|request| runs(request));
            state.requests.retain(|request| request.id != id);
            state.ready.retain(|ready| *ready != id);
            if ran {
                state.ran(now, model.cores);
            }
            kept.push(hypothesis);
        }
        self.hypotheses = kept;
        self.serving -= 1;
        if let Some(next) = self.waiting.pop_front() {
            self.serving += 1;
            for Hypothesis { state, .. } in &mut self.hypotheses {
                state.cpu(now, next, self.model.cores);
            }
        }
        self.tidy();
    }
}

/// The request that is most likely to be the owner.
fn guess(weights: impl Iterator<Item = (f64, Option<u64>)>) -> Guess {
    let mut sums: Vec<(Option<u64>, f64)> = Vec::new();
    let mut all = 0.0;
    for (ln, owner) in weights {
        let weight = ln.exp();
        all += weight;
        match sums.iter_mut().find(|(of, _)| *of == owner) {
            Some((_, sum)) => *sum += weight,
            None => sums.push((owner, weight)),
        }
    }
    let nobodys = sums.iter().find(|(owner, _)| owner.is_none());
    let nobodys = nobodys.map_or(0.0, |(_, sum)| sum / all);
    let requests = sums.into_iter().filter(|(owner, _)| owner.is_some());
    let best = requests.max_by(|a, b| a.1.total_cmp(&b.1));
    let (owner, sum) = best.unwrap_or((None, 0.0));
    Guess {
        owner,
        share: sum / all,
        nobodys,
    }
}
