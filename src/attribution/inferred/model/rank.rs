//! Which of several requests that wait makes the next call.
//!
//! Some applications serve those first that have waited longest, an event loop above all.

/// Requests that may have made a call, the one that has waited longest first; and which
/// of them it was.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::attribution::inferred) struct Rank {
    /// How many there were, less 2: the last stands for more, too.
    queue: u8,
    /// How many had waited longer: the last stands for more, too.
    rank: u8,
    /// The probability of each rank by everything else, in parts of 255.
    shares: [u8; Self::RANKS],
}

impl Rank {
    const QUEUES: usize = 3;
    const RANKS: usize = 4;

    /// Of a queue with these probabilities: the rank of each. Nothing where there
    /// is no choice.
    pub(in crate::attribution::inferred) fn all(shares: &[f64]) -> Vec<Self> {
        let Some(queue) = shares.len().checked_sub(2) else {
            return Vec::new();
        };
        let mut by_rank = [0u8; Self::RANKS];
        let rank = |at: usize| at.min(Self::RANKS - 1);
        for (at, share) in shares.iter().enumerate() {
            if let Some(sum) = by_rank.get_mut(rank(at)) {
                *sum = sum.saturating_add((share * 255.0) as u8);
            }
        }
        let ranks = (0..shares.len()).map(|at| Self {
            queue: queue.min(Self::QUEUES - 1) as u8,
            rank: rank(at) as u8,
            shares: by_rank,
        });
        ranks.collect()
    }
}

/// By length of the queue and rank: how often a call was of that one, and how often it
/// should have been by everything else.
#[derive(Debug, Default)]
pub(in crate::attribution::inferred) struct Ranks([[[f32; 2]; Rank::RANKS]; Rank::QUEUES]);

impl Ranks {
    /// How much likelier its rank makes a request.
    pub(in crate::attribution::inferred) fn ratio(&self, rank: Rank) -> f32 {
        let queue = self.0.get(usize::from(rank.queue));
        let counts = queue.and_then(|queue| queue.get(usize::from(rank.rank)));
        let [was, should] = counts.copied().unwrap_or_default();
        (was + 5.0) / (should + 5.0)
    }

    /// A call has turned out to be of the request of this rank.
    pub(in crate::attribution::inferred) fn learn(&mut self, rank: Rank) {
        let Some(queue) = self.0.get_mut(usize::from(rank.queue)) else {
            return;
        };
        for ([_, should], share) in queue.iter_mut().zip(rank.shares) {
            *should += f32::from(share) / 255.0;
        }
        if let Some([was, _]) = queue.get_mut(usize::from(rank.rank)) {
            *was += 1.0;
        }
        if queue.iter().map(|[was, _]| was).sum::<f32>() > 200.0 {
            for counts in queue {
                *counts = counts.map(|count| 0.5 * count);
            }
        }
    }
}
