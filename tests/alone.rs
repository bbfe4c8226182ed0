//! The only request in flight, and what may have made a call in its place: the rules of
//! `exclusive` of which one decides, on the tracker.
// A test may panic: that is how it fails.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use b3relay::attribution::Call;
use b3relay::attribution::tracker::Tracker;

/// A tracker, with a clock in microseconds.
struct App {
    tracker: Tracker,
    now_us: u64,
    next: u64,
}

impl App {
    fn new() -> Self {
        Self {
            tracker: Tracker::default(),
            now_us: 1_000_000_000,
            next: 0,
        }
    }

    fn wait(&mut self, ms: u64) {
        self.now_us += 1000 * ms;
    }

    fn begin(&mut self, route: u32) -> u64 {
        self.next += 1;
        let request = self.next;
        self.tracker.begin(self.now_us, request, 0, route, vec![]);
        request
    }

    fn end(&mut self, request: u64) {
        self.tracker.end(self.now_us, request);
    }

    /// A call of this kind and class, which takes 2 ms. Whether it was given to a request.
    fn call_of(&mut self, kind: [u32; 2]) -> bool {
        self.next += 1;
        let what = Call {
            kind,
            tokens: vec![],
            port: 0,
        };
        let verdict = self.tracker.call(self.now_us, self.next, &what, None);
        self.now_us += 2000;
        self.tracker.call_end(self.now_us, self.next);
        verdict.is_some()
    }

    fn call(&mut self, kind: u32) -> bool {
        self.call_of([kind; 2])
    }

    /// A request that makes these calls, a millisecond after each other, and takes 5 ms more.
    fn click(&mut self, route: u32, kinds: &[u32]) -> Vec<bool> {
        let request = self.begin(route);
        let call = |kind: &u32| {
            self.wait(1);
            self.call(*kind)
        };
        let given = kinds.iter().map(call).collect();
        self.wait(5);
        self.end(request);
        self.wait(20);
        given
    }

    /// An application of which these requests are known.
    fn trained(route: u32, kinds: &[u32]) -> Self {
        let mut app = Self::new();
        for _ in 0..60 {
            app.click(route, kinds);
        }
        assert!(app.click(route, kinds).iter().all(|given| *given));
        app
    }
}

const ROUTE: u32 = 7;
const A: u32 = 101;
const B: u32 = 102;

/// A request that was broken off may go on for half as long as the longest one of its route,
/// even if it has taken longer than any. `inferred` makes no guess in that time, either.
#[test]
fn a_request_that_was_broken_off_late() {
    for (wrong, after_ms, is_given) in [
        (0.0, 40, false),
        (0.0, 80, true),
        (0.005, 40, false),
        (0.005, 80, true),
    ] {
        let mut app = App::new();
        app.tracker.infer(wrong);
        for _ in 0..60 {
            let request = app.begin(ROUTE);
            app.wait(1);
            app.call(A);
            app.wait(97);
            app.end(request);
            app.wait(20);
        }
        let gone = app.begin(ROUTE);
        app.wait(160);
        app.tracker.broken_off(app.now_us, gone);
        app.wait(after_ms);
        app.begin(ROUTE);
        app.wait(1);
        assert_eq!(app.call(A), is_given, "{wrong}: after {after_ms} ms");
    }
}

/// One of a route of which nothing is known may go on for twice as long as it has taken, and
/// make calls of any kind.
#[test]
fn a_request_of_an_unknown_route_that_was_broken_off() {
    for (lasted_ms, after_ms, is_given) in [
        (10, 900, false),
        (10, 1100, true),
        (3000, 5500, false),
        (3000, 6500, true),
        (30_000, 9500, false),
        (30_000, 10_500, true),
    ] {
        let mut app = App::trained(ROUTE, &[A, B]);
        let gone = app.begin(ROUTE + 1);
        app.wait(lasted_ms);
        app.tracker.broken_off(app.now_us, gone);
        app.wait(after_ms);
        let given = app.click(ROUTE, &[A, B]);
        assert_eq!(given[0], is_given, "{lasted_ms} ms, after {after_ms} ms");
    }
}

/// There are names for 255 routes, too: nothing is known of one that gets the name of another.
#[test]
fn a_route_that_gets_the_name_of_another() {
    for (after_ms, is_given) in [(900, false), (1100, true)] {
        let mut app = App::trained(ROUTE, &[A, B]);
        for n in 0..260 * 6 {
            app.click(1000 + n / 6, &[]);
        }
        app.click(ROUTE, &[A, B]);
        let gone = app.begin(5000);
        app.wait(10);
        app.tracker.broken_off(app.now_us, gone);
        app.wait(after_ms);
        assert_eq!(
            app.click(ROUTE, &[A, B])[0],
            is_given,
            "after {after_ms} ms"
        );
    }
}

/// There are names for 255 kinds. One that gets the name of another is as new as any, and the
/// others are known as before.
#[test]
fn a_kind_that_gets_the_name_of_another() {
    let mut app = App::trained(ROUTE, &[A, B]);
    for kind in 1000..1260 {
        for _ in 0..3 {
            app.call(kind);
            app.wait(50);
        }
        assert_eq!(app.click(ROUTE, &[A, B]), [true, true], "{kind}");
    }
    for kind in 2000..2004 {
        assert_eq!(app.click(ROUTE, &[A, B, kind]), [true; 3], "{kind}");
    }
}

/// A kind that is new is taken for what others of its class are.
#[test]
fn a_new_kind_of_a_class_of_the_background() {
    let mut app = App::trained(ROUTE, &[A, B]);
    const CLASS: u32 = 500;
    for n in 0..12 {
        for _ in 0..3 {
            app.call_of([600 + n, CLASS]);
            app.wait(50);
        }
    }
    for (kind, is_given) in [([700, CLASS], false), ([701, CLASS + 1], true)] {
        let request = app.begin(ROUTE);
        app.wait(1);
        assert!(app.call(A) && app.call(B));
        app.wait(1);
        assert_eq!(app.call_of(kind), is_given);
        app.end(request);
        app.wait(20);
    }
}

/// Of calls whose kind nobody has seen before, as one that has an identifier in its path may
/// look, a few are given to the only request in flight, and no more.
#[test]
fn kinds_that_come_once() {
    let mut app = App::trained(ROUTE, &[A, B]);
    let given: Vec<bool> = (0..200)
        .map(|n| app.click(ROUTE, &[A, B, 10_000 + n])[2])
        .collect();
    let count = given.iter().filter(|given| **given).count();
    assert!((5..=15).contains(&count) && given[0], "{count}");
    assert_eq!(app.click(ROUTE, &[A, B]), [true, true]);
}

/// As many calls of a kind as requests make, and none that comes later.
#[test]
fn many_calls_of_a_kind() {
    let mut app = App::trained(ROUTE, &[A; 9]);
    for _ in 0..20 {
        assert_eq!(app.click(ROUTE, &[A; 9]), [true; 9]);
    }
}

/// For most of an hour a job makes calls of a kind while nothing is in flight. Then it stops,
/// and requests make them.
#[test]
fn what_was_long_ago_is_forgotten() {
    let mut app = App::trained(ROUTE, &[A]);
    for _ in 0..2400 {
        app.wait(1000);
        app.call(B);
        app.click(ROUTE, &[A]);
    }
    for n in 0..1000 {
        app.wait(1000);
        let given = app.click(ROUTE, &[A, B]);
        assert!(n < 400 || given == [true, true], "{n}");
    }
}

/// What comes soon after an answer, while a stream is open, is of the one that was answered, not of
/// the stream.
#[test]
fn jobs_after_the_answer_beside_a_stream() {
    for open_ms in [20_000, 600_000] {
        let mut app = App::trained(ROUTE, &[A]);
        let stream = app.begin(ROUTE + 1);
        app.wait(open_ms);
        for n in 0..200 {
            assert_eq!(app.click(ROUTE, &[A]), [false], "either may have made it");
            assert!(!app.call(B), "{n}");
            app.wait(100 + n * 37 % 200);
        }
        app.end(stream);
        app.wait(20);
        assert_eq!(app.click(ROUTE, &[A]), [true], "nothing was learned of it");
    }
}

/// What others of its route make may be its own, or not: that speaks against nobody.
#[test]
fn calls_of_a_long_request_that_others_were_beside() {
    let mut app = App::trained(ROUTE, &[A]);
    for _ in 0..60 {
        app.click(ROUTE + 1, &[B]);
    }
    let long = app.begin(ROUTE + 1);
    app.wait(12_000);
    for _ in 0..20 {
        app.click(ROUTE, &[A]);
        assert!(!app.call(B));
        app.wait(100);
    }
    app.end(long);
    app.wait(20);
    assert_eq!(app.click(ROUTE + 1, &[B]), [true]);
}

/// One call after the other, from the first request on: as many as a list has items.
#[test]
fn a_loop_of_many_calls() {
    for class in [A, 500] {
        let mut app = App::new();
        for n in 0..20 {
            let request = app.begin(ROUTE);
            let call = |_: &u32| {
                app.wait(1);
                app.call_of([A, class])
            };
            let given = (0..100).filter(call).count();
            assert!(n < 8 || given == 100, "{n}: {given}");
            app.end(request);
            app.wait(20);
        }
    }
}

/// The same of a job, in a pod that is never idle.
#[test]
fn a_loop_of_calls_of_a_job() {
    let mut app = App::new();
    let mut given = 0;
    for n in 0..3000u64 {
        let request = app.begin(ROUTE);
        // Now sooner, now later.
        let before = ((n * 2_654_435_761) >> 16) % 40;
        app.wait(before);
        if n % 30 == 7 {
            for _ in 0..8 {
                given += usize::from(app.call_of([B, 500]));
                app.now_us += 200;
            }
        }
        app.wait(40 - before);
        app.call(A);
        app.end(request);
        app.now_us += 200;
    }
    assert!(given <= 10, "{given}");
}

/// Milliseconds, about so many, in a row that is always the same.
fn about(seed: &mut u64, ms: f64) -> u64 {
    *seed = seed
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    let part = (*seed >> 11) as f64 / (1u64 << 53) as f64;
    (-ms * (1.0 - part).ln()) as u64
}

fn inferring() -> App {
    let mut app = App::new();
    app.tracker.infer(0.005);
    app
}

/// With `inferred`, too: a poll is nearly always in flight, and hardly anything else.
#[test]
fn jobs_beside_long_polls() {
    let (mut app, mut seed) = (inferring(), 1);
    let mut given = 0;
    let mut poll = app.begin(900);
    let mut until_us = app.now_us + 30_000_000;
    for job in 0..3000 {
        let next_us = app.now_us + 1000 * about(&mut seed, 2000.0);
        app.tracker.learn();
        while next_us > until_us {
            app.now_us = app.now_us.max(until_us);
            app.end(poll);
            poll = app.begin(900);
            until_us = app.now_us + 30_000_000;
        }
        app.now_us = next_us;
        for kind in [8, 9, 10] {
            let is_given = app.call(kind);
            // The first ones are learned from.
            given += usize::from(is_given && job >= 300);
        }
        if job % 10 == 9 {
            app.wait(about(&mut seed, 1000.0));
            app.click(1, &[1]);
        }
    }
    assert!(given <= 45, "{given} of 8,100");
}

/// With `inferred`, too: the calls of a job come one after the other, now and then while a
/// request works.
#[test]
fn chains_of_a_job() {
    for kinds in [[8, 9, 10, 11, 12], [8, 8, 8, 8, 8]] {
        let (mut app, mut seed) = (inferring(), 1);
        let (mut given, mut own) = (0, 0);
        for _ in 0..3000 {
            app.tracker.learn();
            let request = app.begin(1);
            let before = about(&mut seed, 1000.0) % 50;
            app.wait(before);
            if about(&mut seed, 10.0) < 1 {
                for kind in kinds {
                    given += usize::from(app.call(kind));
                }
            }
            app.wait(50 - before);
            own += usize::from(app.call(1)) + usize::from(app.call(2));
            app.end(request);
            app.wait(about(&mut seed, 50.0));
            if about(&mut seed, 10.0) < 1 {
                for kind in kinds {
                    app.call(kind);
                }
                app.wait(about(&mut seed, 20.0));
            }
        }
        assert!(given <= 30, "{given} of the job's {kinds:?}");
        assert!(own >= 5900, "{own} of 6,000, {kinds:?}");
    }
}
