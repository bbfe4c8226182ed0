//! The requests in flight, as this worker knows them from the journals of all.

use super::names::Name;
use super::{request_of, worker_of};

/// Requests that are tracked, at most.
const TRACKED: usize = 128;
/// Others of which only the number is known, at most.
const UNTRACKED: usize = 16_384;
/// A request of which nothing was heard for so long is not active: a stream that stays
/// open, say.
const INACTIVE_US: u64 = 10_000_000;

/// A request in flight that is tracked.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) number: u64,
    /// The bucket of the store that has it.
    pub(super) bucket: u16,
    pub(super) route: Name,
    /// When it began, in microseconds.
    pub(super) began_us: u64,
    /// When it last may have begun a call, or one has returned.
    pub(super) heard_us: u64,
    /// Of [`Pool::take`]; 0: not known.
    pub(super) connection: u8,
}

impl Request {
    /// It was heard of not long ago.
    pub(super) fn is_active(&self, now_us: u64) -> bool {
        now_us.saturating_sub(self.heard_us) < INACTIVE_US
    }

    /// It was heard of now.
    pub(super) fn hear(&mut self, now_us: u64) {
        self.heard_us = self.heard_us.max(now_us);
    }
}

/// The requests in flight.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    tracked: Vec<Request>,
    /// Numbers of the others, in order: a BTreeSet would bring the module 5 KB.
    untracked: Vec<u64>,
    /// How many more there are, of which not even that is known: by worker, which stands in a
    /// count as in the number of a request.
    more: Vec<u64>,
}

impl InFlight {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.tracked.len() + self.untracked.len() + self.more()
    }

    /// How many there are, without those of which nothing was heard for long.
    pub(super) fn active(&self, now_us: u64) -> usize {
        let active = |request: &&Request| request.is_active(now_us);
        let tracked = self.tracked.iter();
        tracked.filter(active).count() + self.untracked.len() + self.more()
    }

    /// How many there are of which not even the number is known.
    #[inline(never)]
    fn more(&self) -> usize {
        self.more
            .iter()
            .map(|count| request_of(*count).1)
            .sum::<u64>() as usize
    }

    /// How many of these the worker of this request has.
    #[inline(never)]
    fn more_of(&mut self, number: u64) -> Option<&mut u64> {
        let mut more = self.more.iter_mut();
        more.find(|count| worker_of(**count) == worker_of(number))
    }

    /// No request is tracked any more.
    pub(super) fn is_full(&self) -> bool {
        self.tracked.len() >= TRACKED
    }

    /// All are tracked.
    pub(super) fn all_tracked(&self) -> bool {
        self.untracked.is_empty() && self.more() == 0
    }

    /// Those that are tracked.
    pub(super) fn tracked(&self) -> &[Request] {
        &self.tracked
    }

    /// The same, to be changed.
    pub(super) fn tracked_mut(&mut self) -> &mut [Request] {
        &mut self.tracked
    }

    /// The one with this number, if it is tracked.
    pub(super) fn get(&self, number: u64) -> Option<&Request> {
        self.tracked.iter().find(|known| known.number == number)
    }

    /// The same, to be changed.
    pub(super) fn get_mut(&mut self, number: u64) -> Option<&mut Request> {
        self.tracked.iter_mut().find(|known| known.number == number)
    }

    /// Adds one that is tracked.
    pub(super) fn add(&mut self, request: Request) {
        self.tracked.push(request);
    }

    /// Adds one that is not. If there are too many, it is counted alone.
    pub(super) fn add_untracked(&mut self, number: u64) {
        if let Err(at) = self.untracked.binary_search(&number) {
            if self.untracked.len() < UNTRACKED {
                self.untracked.insert(at, number);
            } else if let Some(count) = self.more_of(number) {
                *count += 1;
            } else {
                self.more.push(super::number(worker_of(number), 1));
            }
        }
    }

    /// Removes one, and returns it if it was tracked.
    pub(super) fn remove(&mut self, number: u64) -> Option<Request> {
        let at = self.tracked.iter().position(|known| known.number == number);
        if at.is_none() {
            match self.untracked.binary_search(&number) {
                Ok(at) => drop(self.untracked.remove(at)),
                Err(_) => {
                    if let Some(count) = self.more_of(number)
                        && request_of(*count).1 > 0
                    {
                        *count -= 1;
                    }
                }
            }
        }
        Some(self.tracked.swap_remove(at?))
    }

    /// Removes several. Returns the numbers of those that were tracked.
    pub(super) fn remove_all(&mut self, gone: impl Fn(u64) -> bool) -> Vec<u64> {
        let mut numbers = Vec::new();
        while let Some(at) = self.tracked.iter().position(|known| gone(known.number)) {
            numbers.push(self.tracked.swap_remove(at).number);
        }
        for numbers in [&mut self.untracked, &mut self.more] {
            numbers.retain(|number| !gone(*number));
        }
        numbers
    }

    /// Removes all.
    pub(super) fn clear(&mut self) {
        self.tracked.clear();
        self.untracked.clear();
        self.more.clear();
    }
}
