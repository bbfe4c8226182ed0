//! How much a token says: how rare it is, and whether calls of a kind carry one.

use crate::attribution::names::{NAMES, Name};
use crate::attribution::signature::Token;

/// How common tokens are: counters that several tokens share, so that each is
/// counted too often rather than too rarely.
#[derive(Clone, Debug)]
struct Sketch {
    /// Two for each token, at [`Sketch::indices`].
    counters: Vec<[u16; 2]>,
    /// Requests and calls.
    messages: f32,
}

impl Default for Sketch {
    fn default() -> Self {
        Self {
            counters: vec![[0; 2]; Self::COUNTERS],
            messages: 0.0,
        }
    }
}

impl Sketch {
    const COUNTERS: usize = 2048;
    /// As if there had been so many messages without it, by [`Token::rarity`].
    const PRIOR: [f32; 4] = [20.0, 200.0, 5_000.0, 50_000.0];

    fn indices(token: Token) -> [usize; 2] {
        let number = token.to_u32();
        [number >> 2, number >> 13].map(|part| part as usize % Self::COUNTERS)
    }

    fn add(&mut self, tokens: &[Token]) {
        self.messages += 1.0;
        for token in tokens {
            let [first, second] = Self::indices(*token);
            if let Some([count, _]) = self.counters.get_mut(first) {
                *count = count.saturating_add(1);
            }
            if let Some([_, count]) = self.counters.get_mut(second) {
                *count = count.saturating_add(1);
            }
        }
        if self.messages > 5_000.0 {
            self.messages *= 0.5;
            for [first, second] in &mut self.counters {
                *first /= 2;
                *second /= 2;
            }
        }
    }

    /// The part of all messages that have it, but for one.
    fn share(&self, token: Token) -> f32 {
        let [first, second] = Self::indices(token);
        let first = self.counters.get(first).map_or(0, |counts| counts[0]);
        let second = self.counters.get(second).map_or(0, |counts| counts[1]);
        let others = f32::from(first.min(second).saturating_sub(1));
        let prior = Self::PRIOR.get(token.rarity()).copied().unwrap_or(20.0);
        (others + 0.5) / (self.messages + prior)
    }
}

/// What is known of tokens.
#[derive(Clone, Debug)]
pub(in crate::attribution::inferred) struct Tokens {
    sketch: Sketch,
    /// By kind: calls of requests, and those that had a token of their request.
    matches: Vec<[f32; 2]>,
}

impl Default for Tokens {
    fn default() -> Self {
        Self {
            sketch: Sketch::default(),
            matches: vec![[0.0; 2]; NAMES],
        }
    }
}

impl Tokens {
    /// A request or a call came with these tokens.
    pub(in crate::attribution::inferred) fn learn(&mut self, tokens: &[Token]) {
        self.sketch.add(tokens);
    }

    /// How much likelier a call is a request's, if both have this token: the more,
    /// the fewer others have it.
    pub(in crate::attribution::inferred) fn likelihood_ratio(&self, token: Token) -> f32 {
        0.9 / self.sketch.share(token)
    }

    /// A call of this kind has been found to be a request's, with or without a
    /// token of it.
    pub(in crate::attribution::inferred) fn learn_match(&mut self, kind: Name, matched: bool) {
        if let Some([calls, matches]) = self.matches.get_mut(usize::from(kind)) {
            *calls += 1.0;
            *matches += f32::from(u8::from(matched));
            if *calls > 1000.0 {
                *calls *= 0.5;
                *matches *= 0.5;
            }
        }
    }

    /// How much less likely a call of this kind is a request's, if no token of it
    /// is in it.
    pub(in crate::attribution::inferred) fn likelihood_ratio_without(&self, kind: Name) -> f32 {
        let [calls, matches] = self
            .matches
            .get(usize::from(kind))
            .copied()
            .unwrap_or_default();
        // Not to be sure of after a few.
        (calls - matches + 2.0) / (calls + 2.0)
    }

    pub(super) fn forget_kind(&mut self, kind: Name) {
        if let Some(counts) = self.matches.get_mut(usize::from(kind)) {
            *counts = [0.0; 2];
        }
    }
}
