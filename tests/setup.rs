//! What is said of the setup of a pod whose filters are configured, once and again.
#![allow(clippy::unwrap_used)]

use b3relay::b3::{B3, Ids, SpanId, TraceId};
use b3relay::config::{Config, Direction};
use b3relay::relay::Injection;
use b3relay::rules::Formats;
use b3relay::setup::{Expected, Labels, Problem, Setup, overwritten, without_labels};
use b3relay::store::InMemory;

/// A pod of two workers, with both filters on each.
struct Pod {
    data: InMemory,
    now_ms: u64,
}

/// A filter on two workers.
struct Filter {
    config: Config,
    workers: [Setup; 2],
}

impl Filter {
    fn new(text: &str) -> Self {
        Self {
            config: Config::parse(text.as_bytes()).unwrap(),
            workers: [Setup::default(), Setup::default()],
        }
    }

    /// One that has had requests.
    fn of(direction: Direction, text: &str) -> Self {
        let mut filter = Self::new(text);
        filter.request(direction);
        filter
    }

    fn request(&mut self, direction: Direction) {
        for worker in &mut self.workers {
            worker.request(Some(direction));
        }
    }
}

impl Pod {
    fn new() -> Self {
        Self {
            data: InMemory::default(),
            now_ms: 1_700_000_000_000,
        }
    }

    /// One in which both filters have had requests for a while.
    fn settled() -> (Self, Filter, Filter) {
        let mut pod = Self::new();
        let mut inbound = Filter::of(Direction::Inbound, "{}");
        let mut outbound = Filter::of(Direction::Outbound, "{}");
        assert_eq!(pod.pass(100, &mut [&mut inbound, &mut outbound]), [""; 0]);
        (pod, inbound, outbound)
    }

    /// Seconds pass, with a tick of each filter. Returns the keys that are told to differ.
    fn pass(&mut self, seconds: u32, filters: &mut [&mut Filter]) -> Vec<&'static str> {
        let told = self.told(seconds, filters);
        told.iter().filter_map(|problem| problem.key).collect()
    }

    /// The same, with all that is told.
    fn told(&mut self, seconds: u32, filters: &mut [&mut Filter]) -> Vec<Problem> {
        let mut told: Vec<Problem> = Vec::new();
        for _ in 0..seconds {
            self.now_ms += 1000;
            for filter in filters.iter_mut() {
                for worker in &mut filter.workers {
                    told.extend(worker.tick(&self.data, &filter.config, self.now_ms));
                }
            }
        }
        told
    }
}

const INFERRED: &str = r#"{"attribution": "inferred"}"#;

#[test]
fn a_difference_is_told_soon_and_once() {
    let mut pod = Pod::new();
    let mut inbound = Filter::of(Direction::Inbound, "{}");
    let mut outbound = Filter::of(Direction::Outbound, INFERRED);
    let both = &mut [&mut inbound, &mut outbound];
    assert_eq!(pod.pass(11, both), ["attribution"]);
    assert_eq!(pod.pass(600, both), [""; 0]);
}

#[test]
fn client_spans_without_the_relay_are_told_of_once() {
    const SPANS: &str = r#""spans": {"cluster": "zipkin", "format": "zipkin"}"#;
    for (outbound, is_told) in [
        (format!(r#"{{"relay": false, {SPANS}}}"#), true),
        (format!("{{{SPANS}}}"), false),
        (r#"{"relay": false}"#.to_string(), false),
    ] {
        for (direction, is_told) in [
            (Direction::Outbound, is_told),
            // The inbound filter has no use for the key.
            (Direction::Inbound, false),
        ] {
            let mut filter = Filter::of(direction, &outbound);
            let told = Pod::new().told(600, &mut [&mut filter]);
            let told: Vec<&str> = told.iter().map(|problem| problem.text.as_str()).collect();
            let expected = "`spans` is set, but no client span is reported: `relay` is false";
            assert_eq!(told.len(), usize::from(is_told), "{outbound}: {told:?}");
            assert!(
                told.iter().all(|text| text.starts_with(expected)),
                "{told:?}"
            );
        }
    }
}

/// Those of before drain for a while; in either order, and with no request for a time.
#[test]
fn a_change_of_both_filters_is_no_difference() {
    for first in [Direction::Inbound, Direction::Outbound] {
        let second = match first {
            Direction::Inbound => Direction::Outbound,
            Direction::Outbound => Direction::Inbound,
        };
        for quiet in [0, 50] {
            let (mut pod, mut a, mut b) = Pod::settled();
            if first == Direction::Outbound {
                std::mem::swap(&mut a, &mut b);
            }
            let [mut c, mut d] = [(); 2].map(|()| Filter::new(INFERRED));
            c.request(first);
            let all = &mut [&mut a, &mut b, &mut c, &mut d];
            assert_eq!(pod.pass(quiet, all), [""; 0]);
            d.request(second);
            let all = &mut [&mut a, &mut b, &mut c, &mut d];
            assert_eq!(pod.pass(45, all), [""; 0], "{first:?}");
            assert_eq!(pod.pass(600, &mut [&mut d, &mut c]), [""; 0]);
        }
    }
}

/// The other filter of before may be gone before that one has had a request.
#[test]
fn a_side_without_a_request_is_not_compared() {
    let (mut pod, ..) = Pod::settled();
    let mut inbound = Filter::of(Direction::Inbound, INFERRED);
    let mut outbound = Filter::new(INFERRED);
    assert_eq!(pod.pass(600, &mut [&mut inbound, &mut outbound]), [""; 0]);
    outbound.request(Direction::Outbound);
    assert_eq!(pod.pass(600, &mut [&mut inbound, &mut outbound]), [""; 0]);
}

#[test]
fn a_change_of_one_filter_alone_is_told_when_the_other_has_not_followed() {
    let (mut pod, _, mut outbound) = Pod::settled();
    let mut changed = Filter::of(Direction::Inbound, INFERRED);
    let both = &mut [&mut changed, &mut outbound];
    assert_eq!(pod.pass(100, both), [""; 0]);
    assert_eq!(pod.pass(40, both), ["attribution"]);
}

/// Envoy keeps the filters of before for minutes, where connections stay open.
#[test]
fn a_filter_that_is_drained_is_not_compared() {
    let (mut pod, mut a, mut b) = Pod::settled();
    let mut c = Filter::of(Direction::Inbound, INFERRED);
    let mut d = Filter::of(Direction::Outbound, INFERRED);
    let all = &mut [&mut a, &mut b, &mut c, &mut d];
    assert_eq!(pod.pass(600, all), [""; 0]);
    // Nor does it keep its successor from that.
    let (mut pod, mut before, mut outbound) = Pod::settled();
    let mut changed = Filter::of(Direction::Inbound, INFERRED);
    let all = &mut [&mut before, &mut changed, &mut outbound];
    assert_eq!(pod.pass(140, all), ["attribution"]);
}

/// An EnvoyFilter and a WasmPlugin, say.
#[test]
fn a_side_with_two_filters_is_told_in_the_end() {
    for other in ["{}", INFERRED] {
        let mut pod = Pod::new();
        let mut first = Filter::of(Direction::Inbound, "{}");
        let mut second = Filter::of(Direction::Inbound, INFERRED);
        let mut outbound = Filter::of(Direction::Outbound, other);
        assert_eq!(
            pod.pass(30, &mut [&mut first, &mut outbound]).len(),
            usize::from(other != "{}")
        );
        let told = pod.pass(1200, &mut [&mut first, &mut second, &mut outbound]);
        assert!(told.iter().all(|key| *key == "attribution"), "{told:?}");
        assert_eq!(told.len(), usize::from(other == "{}"));
    }
}

/// Of lists, too, in the form of the configuration.
#[test]
fn a_difference_says_what_either_side_has() {
    let other = r#"{"copy_headers": ["baggage", "x-tenant-*"], "keys": ["b3", "x-id"],
        "attribution": "inferred", "token_headers": ["x-a", "x-b"]}"#;
    let mut inbound = Filter::of(Direction::Inbound, other);
    let mut outbound = Filter::of(Direction::Outbound, INFERRED);
    let told = Pod::new().told(100, &mut [&mut inbound, &mut outbound]);
    let told: Vec<&str> = told.iter().map(|problem| problem.text.as_str()).collect();
    for part in [
        "`copy_headers` is [baggage, x-tenant-*] inbound and [] outbound",
        "`keys` is [b3, x-id] inbound and [",
        "`token_headers` is [x-a, x-b] inbound and [authorization, cookie] outbound",
    ] {
        assert!(told.iter().any(|text| text.contains(part)), "{told:?}");
    }
    assert_eq!(told.len(), 3);
    // Which tokens there are does not matter to the others.
    let tokens = r#"{"attribution": "exclusive", "token_headers": ["x-a"]}"#;
    let mut inbound = Filter::of(Direction::Inbound, tokens);
    let mut outbound = Filter::of(Direction::Outbound, r#"{"attribution": "exclusive"}"#);
    let both = &mut [&mut inbound, &mut outbound];
    assert_eq!(Pod::new().pass(100, both), [""; 0]);
}

/// One that is gone says nothing any more; one whose tick was late does.
#[test]
fn a_filter_is_compared_for_as_long_as_it_is_there() {
    for (gone_s, told) in [(20, &["attribution"][..]), (40, &[])] {
        let mut pod = Pod::new();
        let mut inbound = Filter::of(Direction::Inbound, INFERRED);
        pod.pass(1, &mut [&mut inbound]);
        pod.pass(gone_s, &mut []);
        let mut outbound = Filter::of(Direction::Outbound, "{}");
        assert_eq!(pod.pass(5, &mut [&mut outbound]), told, "{gone_s}");
    }
}

#[test]
fn a_pod_without_an_inbound_filter_is_told_of_once_it_has_made_calls() {
    for (direction, calls, is_told) in [
        (Direction::Outbound, 100, true),
        (Direction::Outbound, 99, false),
        (Direction::Inbound, 100, false),
    ] {
        let mut filter = Filter::new("{}");
        (0..calls).for_each(|_| filter.request(direction));
        let told = Pod::new().told(600, &mut [&mut filter]);
        assert_eq!(told.len(), usize::from(is_told), "{direction:?} {calls}");
    }
    // The other filter's first tick may come after that of this one.
    let mut outbound = Filter::new("{}");
    (0..100).for_each(|_| outbound.request(Direction::Outbound));
    let mut inbound = Filter::of(Direction::Inbound, "{}");
    let both = &mut [&mut outbound, &mut inbound];
    assert_eq!(Pod::new().told(600, both), []);
}

#[test]
fn what_is_wrong_with_metrics_and_spans_is_told_once() {
    let data = InMemory::default();
    for (labels, is_told) in [
        (Labels::NotIstio, false),
        (Labels::Given, false),
        (Labels::Missing, true),
        (Labels::Missing, false),
    ] {
        let told = without_labels(&data, labels);
        assert_eq!(told.is_some(), is_told, "{labels:?}");
    }
    assert!([(); 2].map(|()| overwritten(&data).is_some()) == [true, false]);
    // The first calls are looked at again, and then some.
    let mut setup = Setup::default();
    let looked_at = (0..1024).filter(|_| setup.samples()).count();
    assert_eq!(looked_at, 16 + 4);
}

/// A client span goes into the `traceparent` of a call whose B3 names another span.
#[test]
fn b3_of_the_calls_own_is_not_overwritten() {
    let ids = |span| Ids {
        trace: TraceId::new(1, true).unwrap(),
        span: SpanId::new(span).unwrap(),
        parent: None,
    };
    let injection = Injection {
        b3: B3 {
            ids: Some(ids(0xc1)),
            ..B3::default()
        },
        formats: Formats {
            w3c: true,
            ..Formats::default()
        },
        ..Injection::default()
    };
    let w3c = |span: u64| format!("00-{:032x}-{span:016x}-01", 1);
    let b3 = format!("{:032x}-{:016x}-1", 1, 0xb3);
    let overwritten = |keeps_b3, traceparent: &str| {
        let pairs = [("b3", b3.as_str()), ("traceparent", traceparent)];
        let pairs = pairs.map(|(name, value)| (name.as_bytes(), value.as_bytes()));
        let expected = Expected::of(&injection, keeps_b3).unwrap();
        expected.is_overwritten(pairs)
    };
    assert!(!overwritten(true, &w3c(0xc1)));
    assert!(overwritten(true, &w3c(0xe0)));
    // Where the call had none, it is Envoy's.
    assert!(overwritten(false, &w3c(0xc1)));
}
