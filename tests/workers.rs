//! What workers know of each other's requests, where one has lost sight of another.
// A test may panic: that is how it fails.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::string_slice
)]

mod support;

use b3relay::attribution::Call;
use b3relay::attribution::tracker::{Basis, Tracker};
use b3relay::config::Direction::{Inbound, Outbound};
use b3relay::relay::Decision::{self, Exclusive, Unknown, Unsure};
use std::cell::Cell;
use support::{PROTO, Seen, Sidecar, headers};

/// An application that forwards nothing, behind a sidecar with some workers.
struct App {
    sidecar: Sidecar,
    next: Cell<u32>,
}

impl App {
    fn new(workers: u64) -> Self {
        Self {
            sidecar: Sidecar::with("{}", "{}", workers),
            next: Cell::new(1),
        }
    }

    fn id(&self) -> String {
        self.next.set(self.next.get() + 1);
        format!(
            "x-request-id: 0f7a1c2e-1b2d-4c3e-9d4f-{:012x}",
            self.next.get()
        )
    }

    fn begin(&self, worker: usize) -> Seen {
        let id = self.id();
        let trace = format!(
            "x-b3-traceid: 463ac35c9f6413ad48485a39{:08x}",
            self.next.get()
        );
        let lines = [":path: /a", &id, &trace, "x-b3-spanid: a2fb4a1d1a96d312"];
        self.sidecar.on(worker, Some(Inbound), &headers(&lines))
    }

    /// Requests that make no call.
    fn serve(&self, worker: usize, requests: usize) {
        for _ in 0..requests {
            let request = self.begin(worker);
            self.sidecar.end(&request);
        }
    }

    /// With this header, beside what Envoy adds.
    fn call_with(&self, worker: usize, line: &[&str]) -> Seen {
        let id = self.id();
        let lines = [line, &[":path: /b", ":authority: b", PROTO, &id]].concat();
        self.sidecar.on(worker, Some(Outbound), &headers(&lines))
    }

    fn call(&self, worker: usize) -> Option<Decision> {
        let call = self.call_with(worker, &[]);
        self.sidecar.wait(1);
        self.sidecar.returned(&call);
        call.decision
    }

    /// What becomes of the call of a request that is alone.
    fn click(&self, from: usize, to: usize) -> Option<Decision> {
        let request = self.begin(from);
        self.sidecar.wait(1);
        let decision = self.call(to);
        self.sidecar.wait(1);
        self.sidecar.end(&request);
        self.sidecar.wait(50);
        decision
    }

    /// These workers tick for so long.
    fn seconds(&self, workers: &[usize], seconds: u64) {
        for _ in 0..seconds {
            self.sidecar.wait(1000);
            workers.iter().for_each(|n| self.sidecar.tick_on(*n));
        }
    }
}

/// More than a journal holds.
const MANY: usize = 8000;

/// The end of a request was overwritten before it was read: it is not in flight for ever.
#[test]
fn a_request_whose_end_was_lost() {
    for workers in [2, 3] {
        let app = App::new(workers);
        for worker in 0..workers as usize {
            app.serve(worker, 1);
        }
        assert_eq!(app.click(0, 1), Some(Exclusive));
        let request = app.begin(0);
        app.sidecar.wait(1);
        assert_eq!(app.call(1), Some(Exclusive));
        app.sidecar.end(&request);
        app.serve(0, MANY);
        assert_eq!(
            app.click(0, 1),
            Some(Unsure),
            "what else there is is not known"
        );
        app.seconds(&[0, 1], 11);
        assert_eq!(app.click(0, 1), Some(Exclusive), "{workers} workers");
    }
}

/// The beginning of a request was overwritten before it was read: it may make calls for as
/// long as it has not ended.
#[test]
fn a_request_whose_beginning_was_lost() {
    for first in [false, true] {
        let app = App::new(2);
        if first {
            assert_eq!(app.click(0, 1), Some(Exclusive));
        }
        let request = app.begin(0);
        app.serve(0, MANY);
        for _ in 0..3 {
            assert_eq!(app.click(0, 1), Some(Unsure));
            app.seconds(&[0, 1], 20);
        }
        app.sidecar.end(&request);
        app.sidecar.wait(50);
        assert_eq!(app.click(0, 1), Some(Exclusive));
    }
}

/// A worker that was taken for dead says what it has in flight when it comes back, under
/// its number or, if another one has got that, a new one.
#[test]
fn a_worker_that_was_taken_for_dead() {
    for is_given_away in [false, true] {
        let app = App::new(3);
        assert_eq!(app.click(0, 1), Some(Exclusive));
        let request = app.begin(0);
        app.seconds(&[1], 75);
        if is_given_away {
            app.serve(2, 1);
        }
        app.sidecar.tick_on(0);
        app.seconds(&[0, 1, 2], 11);
        assert_eq!(app.click(1, 1), Some(Unsure), "{is_given_away}");
        app.sidecar.end(&request);
        app.sidecar.wait(50);
        assert_eq!(app.click(1, 1), Some(Exclusive), "{is_given_away}");
    }
}

/// A worker that has judged no call for long reads no journal; the next call is judged like
/// the first one, whatever has happened since.
#[test]
fn a_worker_that_has_judged_nothing_for_long() {
    for requests in [10, MANY] {
        let app = App::new(2);
        assert_eq!(app.click(0, 1), Some(Exclusive));
        let open = app.begin(0);
        app.seconds(&[0, 1], 310);
        app.sidecar.end(&open);
        app.serve(0, requests);
        app.sidecar.wait(50);
        assert_eq!(app.click(0, 1), Some(Exclusive), "{requests}");
    }
}

/// Of one worker all is there, of another one only the end: calls of a time of which the
/// requests are not known are no background.
#[test]
fn what_one_worker_saw_alone_teaches_nothing() {
    let app = App::new(3);
    for _ in 0..300 {
        app.click(0, 1);
    }
    app.serve(0, MANY);
    app.sidecar.wait(100);
    // Calls of no request that is known: there may be others in flight.
    app.click(0, 2);
    app.seconds(&[0, 1, 2], 11);
    let clicks: Vec<_> = (0..30).map(|_| app.click(0, 2)).collect();
    assert_eq!(clicks, [Some(Exclusive); 30]);
}

/// Where the application gives a key to a tenth of its calls, those without one are calls of
/// the only request in flight all the same.
#[test]
fn calls_without_a_key_where_few_have_one() {
    let app = App::new(1);
    let mut decisions = Vec::new();
    for n in 0..60 {
        let request = app.begin(0);
        app.sidecar.wait(1);
        if n % 10 == 0 {
            let id = request
                .headers
                .iter()
                .find(|(name, _)| name == "x-request-id");
            let id = String::from_utf8(id.unwrap().1.clone()).unwrap();
            let lines = [":path: /b", ":authority: b", &format!("x-request-id: {id}")];
            let call = app.sidecar.on(0, Some(Outbound), &headers(&lines));
            assert_eq!(call.decision, Some(Decision::Copied));
            app.sidecar.returned(&call);
        } else {
            decisions.push(app.call(0).unwrap());
        }
        app.sidecar.wait(1);
        app.sidecar.end(&request);
        app.sidecar.wait(50);
    }
    let (first, later) = decisions.split_at(20);
    assert!(first.contains(&Unknown), "{first:?}");
    assert!(later.iter().all(|one| *one == Exclusive), "{later:?}");
}

/// Nor is one in flight twice that was told of twice.
#[test]
fn a_request_that_is_told_of_twice() {
    let mut tracker = Tracker::default();
    let what = |kind: u32| Call {
        kind: [kind; 2],
        tokens: vec![],
        port: 0,
    };
    tracker.begin(1_000_000, 1, 0, 7, vec![]);
    tracker.begin(1_001_000, 1, 0, 7, vec![]);
    let verdict = tracker.call(1_002_000, 1, &what(8), None).unwrap();
    assert_eq!((verdict.request, verdict.basis), (1, Basis::Exclusive));
    assert!((0.5..1.0).contains(&verdict.share), "{}", verdict.share);
    tracker.end(1_003_000, 1);
    assert_eq!(tracker.in_flight(), 0);
    // Beyond those that are followed, too.
    let many = 10..210;
    for _ in 0..2 {
        many.clone()
            .for_each(|n| tracker.begin(1_004_000, n, 5, 7, vec![]));
    }
    assert_eq!(tracker.in_flight(), 200);
    many.clone().for_each(|n| tracker.end(1_005_000, n));
    assert_eq!(tracker.in_flight(), 0);
}

/// More than are known by their number.
#[test]
fn requests_that_are_only_counted() {
    let mut tracker = Tracker::default();
    let last = 20_000;
    (1..=last).for_each(|n| tracker.begin(1_000_000, n, 0, 7, vec![]));
    assert_eq!(tracker.in_flight(), last as usize);
    // One of each sort stays: followed, known, and counted.
    let stay = [100, 200, last];
    let ends = (1..=last).filter(|n| !stay.contains(n));
    ends.for_each(|n| tracker.end(1_001_000, n));
    assert_eq!(tracker.in_flight(), stay.len());
    tracker.end(1_002_000, 100);
    tracker.end(1_002_000, 200);
    tracker.begin(1_003_000, last + 1, 0, 7, vec![]);
    let what = Call {
        kind: [8; 2],
        tokens: vec![],
        port: 0,
    };
    assert_eq!(tracker.call(1_004_000, 1, &what, None), None);
    tracker.end(1_005_000, last);
    assert!(tracker.call(1_006_000, 2, &what, None).is_some());
}

/// Those of a worker that is gone are in flight no more, and no others with them.
#[test]
fn requests_that_are_only_counted_of_a_worker_that_is_gone() {
    let mut tracker = Tracker::default();
    let of = |worker: u64, n: u64| (worker << 48) | n;
    for n in 1..=20_000 {
        tracker.begin(1_000_000, of(1, n), 0, 7, vec![]);
    }
    tracker.begin(1_000_000, of(2, 1), 0, 7, vec![]);
    tracker.begin(1_000_000, of(2, 2), 0, 7, vec![]);
    tracker.abandon(|number| number >> 48 == 1);
    assert_eq!(tracker.in_flight(), 2);
    tracker.end(1_001_000, of(2, 1));
    assert_eq!(tracker.in_flight(), 1);
    tracker.end(1_001_000, of(2, 2));
    assert_eq!(tracker.in_flight(), 0);
}
