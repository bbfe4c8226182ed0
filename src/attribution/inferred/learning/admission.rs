//! An application that serves so many requests at once, and lets the others wait: a pool of
//! threads, or of processes.
//!
//! A request that waits does nothing. For the belief it begins when it is let in: when
//! another one has ended. Those that came first are let in first.

use super::recording::{Recorded, What};
use std::collections::VecDeque;

/// A limit is ruled out if more than this part of the requests end without it letting
/// them in.
const AGAINST: f32 = 0.01;

/// Outstanding calls that are told apart, at most.
const CALLS_MOST: usize = 256;

/// How many requests the application may serve at once, if there is such a limit (0: there
/// is none): no more than so many calls are ever outstanding; and hardly any but the first so
/// many requests end; although more requests are in flight. If requests make several calls at
/// once, or there is a background, the first is too many; if all take as long, the second may
/// be too few.
pub(super) fn limits(events: &[Recorded]) -> [usize; 2] {
    let (mut requests, mut calls): (Vec<u64>, Vec<u64>) = (Vec::new(), Vec::new());
    let mut most_calls = 0;
    let mut in_flight = Vec::with_capacity(events.len());
    // Of those that have ended: how many in flight had begun before.
    let mut before = Vec::with_capacity(events.len());
    for event in events {
        let number = event.number;
        // Those that began before the first event are not known.
        match event.what {
            What::Begun { .. } => requests.push(number),
            What::Ended { answered } => {
                let at = requests.iter().position(|known| *known == number);
                if answered {
                    before.extend(at);
                }
                requests.retain(|known| *known != number);
            }
            What::Called { .. } if calls.len() >= CALLS_MOST => return [0; 2],
            What::Called { .. } => calls.push(number),
            What::Returned => calls.retain(|known| *known != number),
            What::Owner => {}
        }
        most_calls = most_calls.max(calls.len());
        in_flight.push(requests.len());
    }
    let above = |counts: &[usize], limit| counts.iter().filter(|count| **count > limit).count();
    if 4 * above(&in_flight, most_calls) <= events.len() {
        return [0; 2];
    }
    let against = AGAINST * before.len() as f32;
    let mut by_ends = 1;
    while above(&before, by_ends - 1) as f32 > against {
        by_ends += 1;
    }
    [most_calls, by_ends.min(most_calls)]
}

/// The same events, in which each request begins when it is let in. `None` if that is not
/// how the application works.
pub(super) fn admitted(events: &[Recorded], limit: usize) -> Option<Vec<Recorded>> {
    let mut admitted = Vec::with_capacity(events.len());
    let mut running: Vec<u64> = Vec::new();
    let mut waiting: VecDeque<Recorded> = VecDeque::new();
    let (mut against, mut requests) = (0.0f32, 0.0f32);
    for event in events {
        match event.what {
            What::Begun { .. } => {
                requests += 1.0;
                match running.len() < limit {
                    true => {
                        running.push(event.number);
                        admitted.push(*event);
                    }
                    false => waiting.push_back(*event),
                }
            }
            What::Ended { answered } => {
                if let Some(at) = waiting.iter().position(|w| w.number == event.number) {
                    against += f32::from(u8::from(answered));
                    waiting.remove(at);
                    continue;
                }
                admitted.push(*event);
                running.retain(|number| *number != event.number);
                if running.len() < limit
                    && let Some(next) = waiting.pop_front()
                {
                    running.push(next.number);
                    let at_us = event.at_us;
                    admitted.push(Recorded { at_us, ..next });
                }
            }
            _ => admitted.push(*event),
        }
    }
    (against <= AGAINST * requests).then_some(admitted)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEGUN: What = What::Begun {
        route: 1,
        connection: 0,
    };

    fn event(at_us: u64, number: u64, what: What) -> Recorded {
        Recorded {
            at_us,
            number,
            what,
        }
    }

    /// Requests 1 to 40 of one route, eight in flight, each of which makes one call; so many
    /// are served at once. Their calls have the numbers of the requests.
    fn served(limit: u64) -> Vec<Recorded> {
        let answered = true;
        let mut events: Vec<Recorded> = (1..=8).map(|n| event(n, n, BEGUN)).collect();
        for first in (1..=40).step_by(limit as usize) {
            let batch = first..(first + limit).min(41);
            let at = 100 * first;
            events.extend(
                batch
                    .clone()
                    .map(|n| event(at, n, What::Called { kind: 1, port: 0 })),
            );
            for number in batch.rev() {
                events.push(event(at + 50, number, What::Returned));
                events.push(event(at + 60, number, What::Ended { answered }));
                if number + 8 <= 40 {
                    events.push(event(at + 70, number + 8, BEGUN));
                }
            }
        }
        events
    }

    #[test]
    fn the_limit_is_seen_in_the_outstanding_calls_and_in_the_ends() {
        assert_eq!(limits(&served(2)), [2; 2]);
        assert_eq!(limits(&served(4)), [4; 2]);
        assert_eq!(limits(&served(8)), [0; 2]);
        assert_eq!(limits(&[]), [0; 2]);
    }

    #[test]
    fn the_limit_is_seen_in_the_ends_if_calls_are_made_at_once() {
        let twice = |event: Recorded| {
            let number = event.number + 1000;
            let is_call = matches!(event.what, What::Called { .. } | What::Returned);
            [event]
                .into_iter()
                .chain(is_call.then_some(Recorded { number, ..event }))
        };
        let events: Vec<Recorded> = served(2).into_iter().flat_map(twice).collect();
        assert_eq!(limits(&events), [4, 2]);
    }

    #[test]
    fn requests_are_let_in_when_others_have_ended() {
        let events = served(2);
        let admitted = admitted(&events, 2).unwrap();
        assert_eq!(admitted.len(), events.len());
        let begun = |events: &[Recorded], number: u64| {
            let is_it = |event: &&Recorded| event.number == number && event.what == BEGUN;
            events.iter().find(is_it).map(|event| event.at_us)
        };
        assert_eq!(begun(&admitted, 1), Some(1));
        assert_eq!(begun(&events, 3), Some(3));
        assert_eq!(begun(&admitted, 3), Some(160));
    }

    #[test]
    fn a_limit_that_requests_do_not_keep_is_none() {
        let begun = (1..=3).map(|n| event(n, n, BEGUN));
        let answered = true;
        let ended = [3, 1, 2].map(|n| event(10, n, What::Ended { answered }));
        let events: Vec<Recorded> = begun.chain(ended).collect();
        assert!(admitted(&events, 1).is_none());
        assert!(admitted(&events, 3).is_some());
    }
}
