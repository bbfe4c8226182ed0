//! Numbers that are given to one after the other: of threads, and of connections.

use std::collections::VecDeque;

pub struct Threads {
    idle: VecDeque<u32>,
    made: u32,
    last_first: bool,
}

impl Threads {
    /// As many as there are needed; that which was used last is used next, as Envoy does
    /// with its connections.
    pub fn last_used_first() -> Self {
        Self {
            idle: VecDeque::new(),
            made: 0,
            last_first: true,
        }
    }

    /// So many; that which is idle for longest takes the next request.
    pub fn longest_idle_first(threads: usize) -> Self {
        let made = threads as u32;
        Self {
            idle: (1..=made).collect(),
            made,
            last_first: false,
        }
    }

    pub fn take(&mut self) -> u32 {
        let idle = match self.last_first {
            true => self.idle.pop_back(),
            false => self.idle.pop_front(),
        };
        idle.unwrap_or_else(|| {
            self.made += 1;
            self.made
        })
    }

    pub fn give(&mut self, number: u32) {
        self.idle.push_back(number);
    }
}
