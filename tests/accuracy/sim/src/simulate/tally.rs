//! The events of a run go through the tracker; its answers are held against the truth.

use super::app::App;
use super::bound::Bound;
use super::run::run;
use super::seen::{Seen, SeenCall, Size};
use b3relay::attribution::Call;
use b3relay::attribution::signature::Token;
use b3relay::attribution::tracker::{Basis, Tracker};
use std::collections::VecDeque;

/// Thousands of requests that are told apart, from the first on; what is later is of
/// the last.
pub const THOUSANDS: usize = 6;

/// In each so many calls in a row the promise is to hold.
pub const WINDOW: usize = 2000;

/// Time in the simulation between two ticks: those of both filters of a sidecar, each of which
/// ticks every 100 ms, or more often, while there is something to learn.
const TICK_US: u64 = 50_000;

/// While which thousand of requests it is, counted from 0, if so many have begun.
pub fn thousand(begun: usize) -> usize {
    (THOUSANDS - 1).min(begun.saturating_sub(1) / 1000)
}

/// What the sidecar does with each tick. Returns the time until the next one.
fn tick(tracker: &mut Tracker) -> u64 {
    TICK_US / tracker.learn().max(1)
}

/// Calls that were made for requests, and what became of them; those of nobody that
/// were given to a request are wrong, too. Calls with a key are in none of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    pub right: u32,
    pub unsure: u32,
    pub wrong: u32,
    /// As many wrong ones the tracker expected.
    pub expected: f64,
    /// Right and wrong, if only those are believed that are alone: what
    /// `"attribution": "exclusive"` does.
    pub exclusive: [u32; 2],
    /// Right and wrong, by a rule that is told nothing and learns nothing: the only
    /// request in flight.
    pub only: [u32; 2],
    /// Right, left alone and wrong while these thousand requests began.
    pub thousands: Thousands,
    /// The greatest share of wrong ones in any window, whose calls are all that were
    /// made, those of the background and of the quiet start too.
    pub worst: f64,
    /// The same of `exclusive`.
    pub worst_exclusive: f64,
    /// Of these calls, how many there were, and how many were wrong; and by `exclusive`.
    pub all: [u32; 3],
    /// What could have been right, if that was asked for and is known.
    pub bound: Option<Bound>,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.right += other.right;
        self.unsure += other.unsure;
        self.wrong += other.wrong;
        self.expected += other.expected;
        for at in 0..2 {
            self.exclusive[at] += other.exclusive[at];
            self.only[at] += other.only[at];
        }
        add_thousands(&mut self.thousands, other.thousands);
        self.worst = self.worst.max(other.worst);
        self.worst_exclusive = self.worst_exclusive.max(other.worst_exclusive);
        for (sum, other) in self.all.iter_mut().zip(other.all) {
            *sum += other;
        }
        if let Some(other) = other.bound {
            self.bound.get_or_insert_default().add(other);
        }
    }

    pub fn of(tallies: &[Self]) -> Self {
        let mut sum = Self::default();
        for tally in tallies {
            sum.add(*tally);
        }
        sum
    }

    pub fn calls(&self) -> f64 {
        f64::from(self.right + self.unsure + self.wrong)
    }

    /// The part of all calls, those of the background included, that is in `all` at this place.
    pub fn of_all(&self, at: usize) -> f64 {
        f64::from(self.all[at]) / f64::from(self.all[0].max(1))
    }

    pub fn share(&self, count: u32) -> f64 {
        f64::from(count) / self.calls()
    }
}

/// Right, left alone and wrong, by thousands of requests.
pub type Thousands = [[u32; 3]; THOUSANDS];

pub fn in_all(thousands: Thousands) -> [u32; 3] {
    [0, 1, 2].map(|of| thousands.iter().map(|counts| counts[of]).sum())
}

pub fn add_thousands(sums: &mut Thousands, others: Thousands) {
    for (sum, other) in sums.iter_mut().flatten().zip(others.iter().flatten()) {
        *sum += other;
    }
}

/// What became of a call.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Became {
    Right,
    LeftAlone,
    Wrong,
    /// It is nobody's, and was left alone.
    Background,
}

impl Became {
    fn of(given: Option<u64>, owner: Option<u64>) -> Self {
        match (given, owner) {
            (None, None) => Self::Background,
            (None, Some(_)) => Self::LeftAlone,
            (given, owner) if given == owner => Self::Right,
            _ => Self::Wrong,
        }
    }
}

/// The last calls, and the most wrong ones that there were in so many.
#[derive(Default)]
struct Window {
    last: VecDeque<bool>,
    wrong: u32,
    most: u32,
    in_all: u32,
}

impl Window {
    fn add(&mut self, is_wrong: bool) {
        if self.last.len() == WINDOW {
            let first = self.last.pop_front().unwrap_or(false);
            self.wrong -= u32::from(first);
        }
        self.last.push_back(is_wrong);
        self.wrong += u32::from(is_wrong);
        self.in_all += u32::from(is_wrong);
        self.most = self.most.max(self.wrong);
    }

    /// Of a window, or of all calls if there were not as many.
    fn worst(&self) -> f64 {
        f64::from(self.most) / self.last.len().max(1) as f64
    }
}

/// Both trackers, and what they are judged by.
struct Judge {
    tracker: Tracker,
    exclusive: Tracker,
    in_flight: Vec<u64>,
    begun: usize,
    window: Window,
    window_exclusive: Window,
    hosts: u32,
    tally: Tally,
}

fn tokens(token: u32) -> Vec<Token> {
    match token {
        0 => vec![],
        _ => vec![Token::from_u32(token | 3), Token::from_u32(8)],
    }
}

impl Judge {
    fn event(&mut self, us: u64, event: Seen, counts: bool) {
        match event {
            Seen::Begin(request) => {
                self.begun += 1;
                self.in_flight.push(request.id);
                let tokens = tokens(request.token);
                let (id, route) = (request.id, request.route);
                self.tracker.begin(us, id, 0, route, tokens);
                self.exclusive.begin(us, id, 0, route, vec![]);
            }
            Seen::End(id) => {
                self.in_flight.retain(|known| *known != id);
                self.tracker.end(us, id);
                self.exclusive.end(us, id);
            }
            Seen::BrokenOff(id) => {
                self.in_flight.retain(|known| *known != id);
                self.tracker.broken_off(us, id);
                self.exclusive.broken_off(us, id);
            }
            Seen::CallEnd(id) => {
                self.tracker.call_end(us, id);
                self.exclusive.call_end(us, id);
            }
            Seen::Call(call) => self.call(us, call, counts),
        }
    }

    fn call(&mut self, us: u64, call: SeenCall, counts: bool) {
        let (kind, told) = (
            [call.kind, 99 + call.kind % self.hosts],
            call.owner.filter(|_| call.keyed),
        );
        let mut what = Call {
            kind,
            tokens: tokens(call.token),
            port: call.connection as u16,
        };
        let sure = self.tracker.call(us, call.id, &what, told);
        what.tokens.clear();
        let alone = self.exclusive.call(us, call.id, &what, told);
        if call.keyed {
            return;
        }
        let became = Became::of(sure.map(|v| v.request), call.owner);
        self.window.add(became == Became::Wrong);
        let alone = alone.filter(|v| v.basis == Basis::Exclusive);
        let became_alone = Became::of(alone.map(|v| v.request), call.owner);
        self.window_exclusive.add(became_alone == Became::Wrong);
        self.tally.all[0] += 1;
        if !counts {
            return;
        }
        let tally = &mut self.tally;
        tally.expected += sure.map_or(0.0, |v| 1.0 - f64::from(v.share));
        let thousand = &mut tally.thousands[thousand(self.begun)];
        match became {
            Became::Background => {}
            Became::Right => {
                tally.right += 1;
                thousand[0] += 1;
            }
            Became::LeftAlone => {
                tally.unsure += 1;
                thousand[1] += 1;
            }
            Became::Wrong => {
                tally.wrong += 1;
                thousand[2] += 1;
            }
        }
        if let Some(v) = alone {
            tally.exclusive[usize::from(Some(v.request) != call.owner)] += 1;
        }
        if let [only] = self.in_flight[..] {
            tally.only[usize::from(Some(only) != call.owner)] += 1;
        }
    }
}

/// One run. `wrong`: the part of the calls that may be.
pub fn measure(app: &App, clients: usize, size: Size, seed: u64, wrong: f64) -> Tally {
    let (events, counts_from) = run(app, clients, size, seed);
    let mut judge = Judge {
        tracker: Tracker::default(),
        exclusive: Tracker::default(),
        in_flight: Vec::new(),
        begun: 0,
        window: Window::default(),
        window_exclusive: Window::default(),
        hosts: app.hosts,
        tally: Tally::default(),
    };
    judge.tracker.infer(wrong);
    let mut next_tick = events.first().map_or(0, |(us, _)| us + TICK_US);
    for (us, event) in events {
        while next_tick <= us {
            next_tick += tick(&mut judge.tracker);
        }
        judge.event(us, event, us >= counts_from);
    }
    judge.tally.worst = judge.window.worst();
    judge.tally.worst_exclusive = judge.window_exclusive.worst();
    judge.tally.all[1] = judge.window.in_all;
    judge.tally.all[2] = judge.window_exclusive.in_all;
    judge.tally
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_window_is_the_one_with_the_most_wrong_calls_in_a_row() {
        let mut window = Window::default();
        for n in 0..10 * WINDOW {
            // One in a thousand; and thirty in a row where two windows would meet.
            let in_a_row = (3 * WINDOW - 15..3 * WINDOW + 15).contains(&n);
            window.add(in_a_row || n % 1000 == 999);
        }
        assert_eq!(window.most, 31);
        assert_eq!(window.worst(), 31.0 / 2000.0);
    }

    #[test]
    fn a_background_call_that_is_given_away_is_wrong() {
        assert!(Became::of(Some(1), None) == Became::Wrong);
        assert!(Became::of(None, None) == Became::Background);
        assert!(Became::of(Some(1), Some(1)) == Became::Right);
        assert!(Became::of(Some(1), Some(2)) == Became::Wrong);
        assert!(Became::of(None, Some(2)) == Became::LeftAlone);
    }
}
