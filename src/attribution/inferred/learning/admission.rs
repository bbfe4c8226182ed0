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

/// How many requests the application may serve at once, if there is such a limit: no more
/// than so many calls are ever outstanding, although more requests are in flight.
pub(super) fn limit(events: &[Recorded]) -> Option<usize> {
    let (mut requests, mut calls): (Vec<u64>, Vec<u64>) = (Vec::new(), Vec::new());
    let mut most_calls = 0;
    let mut in_flight = Vec::with_capacity(events.len());
    for event in events {
        // Those that began before the first event are not known.
        match event.what {
            What::Begun(_) => requests.push(event.number),
            What::Ended { .. } => requests.retain(|number| *number != event.number),
            What::Called(_) if calls.len() >= CALLS_MOST => return None,
            What::Called(_) => calls.push(event.number),
            What::Returned => calls.retain(|number| *number != event.number),
            What::Owner => {}
        }
        most_calls = most_calls.max(calls.len());
        in_flight.push(requests.len());
    }
    let above = in_flight.iter().filter(|requests| **requests > most_calls);
    let is_limit = most_calls > 0 && 4 * above.count() > events.len();
    is_limit.then_some(most_calls)
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
            What::Begun(_) => {
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
