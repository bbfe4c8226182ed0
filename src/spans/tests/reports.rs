//! Reports: when they are sent, and what their answers mean.

use super::*;

#[test]
fn a_full_batch_is_asked_for_once() {
    let mut recorder = Recorder::new(SpanFormat::Zipkin, node());
    assert_eq!(recorder.take(0), None);
    let added = fill(&mut recorder, 150);
    assert_eq!(added.iter().filter(|one| **one == Added::Full).count(), 1);
    assert_eq!(added[99], Added::Full);
    for token in 0..2 {
        let report = recorder.take(0).unwrap();
        recorder.sent((token, 1), report.spans, 0);
        fill(&mut recorder, 200);
    }
    // Two are in flight.
    assert_eq!(recorder.take(0), None);
    assert_eq!(recorder.answered(7, 202, 0), None);
    assert_eq!(recorder.answered(0, 202, 0), Some((150, true)));
    assert!(recorder.is_due());
    assert_eq!(recorder.take(0).unwrap().spans, 200);
}

#[test]
fn reports_of_few_spans_are_a_second_apart() {
    let mut recorder = Recorder::new(SpanFormat::Zipkin, node());
    let mut taken = Vec::new();
    // The ticks of a plugin that learns; one of 1000 ms may be a little early.
    for now_ms in [0, 100, 200, 900, 1000, 1799, 1899, 2799].map(|ms| 1_000_000 + ms) {
        fill(&mut recorder, 1);
        if let Some(report) = recorder.take(now_ms) {
            recorder.sent((1, 1), report.spans, now_ms);
            recorder.answered(1, 202, now_ms);
            taken.push((now_ms - 1_000_000, report.spans));
        }
    }
    assert_eq!(taken, [(0, 1), (900, 3), (1899, 3), (2799, 1)]);
    fill(&mut recorder, 100);
    assert_eq!(recorder.take(1_002_800).unwrap().spans, 100);
    // The clock is set back.
    fill(&mut recorder, 1);
    assert_eq!(recorder.take(1000).unwrap().spans, 1);
}

#[test]
fn no_span_begins_where_there_is_no_room() {
    let mut recorder = Recorder::new(SpanFormat::Zipkin, node());
    let mut closed = None;
    for n in 0..2000 {
        closed = closed.or((!recorder.is_open()).then_some(n));
        let added = fill(&mut recorder, 1);
        if added == [Added::Dropped] {
            let body = recorder.take(0).unwrap().body;
            assert!(
                (512 * 1024..514 * 1024).contains(&body.len()),
                "{}",
                body.len()
            );
            let closed = closed.unwrap();
            assert!(n - 20 < 2 * closed && 2 * closed < n + 20, "{closed} {n}");
            assert!(recorder.is_open());
            return;
        }
    }
    panic!("no bound");
}

#[test]
fn a_collector_that_always_says_no_gets_no_span() {
    for status in [400, 401, 403, 404, 413, 415, 429, 500] {
        let mut recorder = Recorder::new(SpanFormat::Zipkin, node());
        let mut began = 0;
        for second in 0..60u32 {
            let now_ms = 1000 * u64::from(second);
            if recorder.is_open() {
                fill(&mut recorder, 10);
                began += 10;
            }
            if let Some(report) = recorder.take(now_ms) {
                recorder.sent((second, 1), report.spans, now_ms);
                recorder.answered(second, status, now_ms);
            }
        }
        assert_eq!(began, 10, "{status}");
    }
}

/// Says no to empty reports whether it is well or not. When it gets spans: `is_well` of the
/// second and of how often it got some.
fn tried(is_well: impl Fn(u32, usize) -> bool) -> Vec<u32> {
    let mut recorder = Recorder::new(SpanFormat::Zipkin, node());
    let mut tried = Vec::new();
    for second in 0..1000u32 {
        let now_ms = 1000 * u64::from(second);
        if recorder.is_open() {
            fill(&mut recorder, 1);
        }
        if let Some(report) = recorder.take(now_ms) {
            recorder.sent((second, 1), report.spans, now_ms);
            if report.spans > 0 {
                tried.push(second);
            }
            let is_well = report.spans > 0 && is_well(second, tried.len());
            let status = if is_well { 202 } else { 400 };
            recorder.answered(second, status, now_ms);
        }
    }
    tried
}

#[test]
fn spans_are_tried_after_a_minute_and_ever_more_seldom() {
    for (refuses, tried_at) in [(3, vec![0, 61, 182, 423]), (10, vec![0, 61, 182, 423, 904])] {
        let tried = tried(|_, times| times > refuses);
        let seldom = &tried[..tried_at.len().min(tried.len())];
        assert_eq!(seldom, tried_at);
        assert_eq!(tried.len() > 500, refuses == 3, "{}", tried.len());
    }
    // Once it has taken some, a minute counts again.
    let tried = tried(|second, times| times > 3 && second < 700);
    let late = tried.iter().copied().filter(|second| *second > 698);
    assert_eq!(late.collect::<Vec<_>>(), [699, 700, 761, 882]);
}

#[test]
fn a_collector_that_has_failed_is_asked_again() {
    for status in [0, 301, 404, 503] {
        let mut recorder = Recorder::new(SpanFormat::Zipkin, node());
        fill(&mut recorder, 3);
        let report = recorder.take(1000).unwrap();
        recorder.sent((1, 1), report.spans, 1000);
        assert_eq!(recorder.answered(1, status, 2000), Some((3, false)));
        assert!(!recorder.is_open());
        // One that had begun before.
        assert_eq!(fill(&mut recorder, 1), [Added::Waiting]);
        assert_eq!(recorder.take(6999), None);
        let report = recorder.take(7000).unwrap();
        assert_eq!(report.spans, 1);
        recorder.failed(7000);
        assert_eq!(recorder.take(11_999), None);
        // Nothing waits: it is asked all the same, by one report at a time.
        let report = recorder.take(12_000).unwrap();
        assert_eq!((report.spans, &*report.body), (0, &b"[]"[..]));
        recorder.sent((2, 1), 0, 12_000);
        assert_eq!(recorder.take(20_000), None);
        assert!(!recorder.is_open());
        // It does not like an empty report, but it is there.
        assert_eq!(recorder.answered(2, 400, 20_000), Some((0, true)));
        assert!(recorder.is_open());
    }
}

#[test]
fn a_report_that_gets_no_answer_is_forgotten() {
    let mut recorder = Recorder::new(SpanFormat::Otlp, node());
    fill(&mut recorder, 3);
    let report = recorder.take(0).unwrap();
    recorder.sent((1, 1), report.spans, 0);
    assert_eq!(recorder.forgotten(14_999), 0);
    assert_eq!(recorder.forgotten(15_000), 3);
    assert_eq!(recorder.answered(1, 202, 15_000), None);
}

#[test]
fn the_reports_of_a_plugin_that_is_gone_make_room() {
    let mut recorder = Recorder::new(SpanFormat::Otlp, node());
    let (old, new) = (recorder.sender(), recorder.sender());
    for (token, sender, spans, now_ms) in [(1, old, 3, 0), (2, new, 5, 1000)] {
        fill(&mut recorder, spans);
        assert_eq!(recorder.take(now_ms).unwrap().spans, spans);
        recorder.sent((token, sender), spans, now_ms);
    }
    fill(&mut recorder, 1);
    assert_eq!(recorder.take(2000), None);
    assert_eq!(recorder.gone(old), 3);
    assert_eq!(recorder.in_flight(), [2]);
    assert_eq!(recorder.take(2000).unwrap().spans, 1);
    assert_eq!(recorder.answered(1, 202, 2000), None);
}

proptest! {
    /// Whatever the collector does, memory is bounded and every span accounted for.
    #[test]
    fn every_span_is_accounted_for(steps in proptest::collection::vec((0u8..6, 0u16..600), 1..200)) {
        let mut recorder = Recorder::new(SpanFormat::Otlp, node());
        let (mut now, mut token) = (0, 0);
        let mut open: Vec<u32> = Vec::new();
        let (mut added, mut gone, mut in_flight) = (0u32, 0u32, BTreeMap::new());
        for (step, number) in steps {
            match step {
                0 => {
                    let some = fill(&mut recorder, u32::from(number) / 8);
                    added += some.iter().filter(|one| **one != Added::Dropped).count() as u32;
                }
                1 | 2 => if let Some(report) = recorder.take(now) {
                    prop_assert!(report.body.len() < 514 * 1024);
                    if number % 4 == 0 {
                        recorder.failed(now);
                        gone += report.spans;
                    } else {
                        token += 1;
                        open.push(token);
                        in_flight.insert(token, report.spans);
                        recorder.sent((token, u32::from(number % 3)), report.spans, now);
                    }
                },
                3 => if let Some(token) = open.pop()
                    && let Some((spans, _)) = recorder.answered(token, number, now)
                {
                    prop_assert_eq!(in_flight.remove(&token), Some(spans));
                    gone += spans;
                },
                step => {
                    now += u64::from(number) * 10;
                    let forgotten = match step {
                        4 => recorder.forgotten(now),
                        _ => recorder.gone(u32::from(number % 3)),
                    };
                    gone += forgotten;
                    if forgotten > 0 {
                        let kept = recorder.in_flight();
                        in_flight.retain(|token, _| kept.contains(token));
                    }
                }
            }
            prop_assert!(recorder.in_flight().len() <= 2);
            let flying: u32 = in_flight.values().sum();
            prop_assert_eq!(added, gone + flying + recorder.waiting());
        }
    }
}
