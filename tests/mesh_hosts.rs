//! Which calls leave the mesh, and what they take with them.
// A test may panic: that is how it fails.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::panic
)]

mod support;

use b3relay::config::{Config, Direction};
use b3relay::filter::Filter;
use b3relay::headers::Pairs;
use b3relay::mesh_hosts::{Mesh, Routes, is_outside};
use b3relay::metrics::Counter;
use b3relay::relay::Decision;
use serde::Deserialize;
use support::{ID, SPAN, Seen, Sidecar, TRACE, headers, map, only};

const NEW_ID: &str = "x-request-id: 1f7a1c2e-1b2d-4c3e-9d4f-5a6b7c8d9e0f";
const OTHER_SPAN: &str = "x-b3-spanid: 1111111111111111";
const TRACEPARENT: &str = "traceparent: 00-463ac35c9f6413ad48485a3953bb6124-b7ad6b7169203331-01";
const TENANT: &str = "x-tenant-id: 7";
/// What an application may send about the trace itself.
const OWN: [&str; 9] = [
    TRACE,
    OTHER_SPAN,
    "b3: 463ac35c9f6413ad48485a3953bb6124-1111111111111111-1",
    TRACEPARENT,
    "tracestate: a=b",
    "x-ot-span-context: 1",
    "grpc-trace-bin: AAA",
    "x-envoy-force-trace: true",
    "x-tenant-id: 8",
];

/// `tests/vectors/hosts.toml`; see there.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Group {
    about: String,
    #[serde(default)]
    config: String,
    #[serde(default = "node")]
    node: String,
    #[serde(default)]
    istio: bool,
    calls: Vec<(String, String, String)>,
}

fn node() -> String {
    "sidecar~10.0.0.9~web-v1.shop~shop.svc.cluster.local".to_string()
}

impl Group {
    fn all() -> Vec<Self> {
        #[derive(Deserialize)]
        struct File {
            group: Vec<Group>,
        }
        let file: File = toml::from_str(include_str!("vectors/hosts.toml")).unwrap();
        file.group
    }

    /// Its calls: authority, cluster, and whether they leave the mesh.
    fn calls(&self) -> impl Iterator<Item = (&str, Option<&str>, bool)> {
        self.calls.iter().map(|(authority, cluster, word)| {
            assert!(word == "inside" || word == "outside", "{word}");
            let cluster = Some(cluster.as_str()).filter(|name| !name.is_empty());
            (authority.as_str(), cluster, word == "outside")
        })
    }

    fn sidecar(&self, rest: &str) -> Sidecar {
        let comma = if self.config.is_empty() { "" } else { ", " };
        let config = format!(
            "{{{}{comma}\"copy_headers\": [\"x-tenant-*\"], {rest}}}",
            self.config
        );
        let sidecar = Sidecar::new(&config);
        *sidecar.host.node_id.borrow_mut() = Some(self.node.clone());
        sidecar.host.istio.set(self.istio);
        sidecar
    }
}

fn leaked(name: &str) -> &'static str {
    Box::leak(name.into())
}

/// With one request being served that has something to leak.
fn serving(group: &Group, rest: &str, cluster: Option<&str>) -> Sidecar {
    let sidecar = group.sidecar(rest);
    *sidecar.host.cluster.borrow_mut() = cluster.map(leaked);
    sidecar.inbound(&[ID, TRACE, SPAN, "x-b3-sampled: 1", TENANT]);
    sidecar
}

fn call(sidecar: &Sidecar, authority: &str, lines: &[&str]) -> Seen {
    let authority = format!(":authority: {authority}");
    sidecar.outbound(&[&[&authority, ":path: /"], lines].concat())
}

/// The headers of a call that say something of the trace or of the tenant.
fn about(seen: &Seen) -> Vec<String> {
    let prefixes = [
        "x-b3", "b3", "trace", "x-ot", "grpc", "x-envoy", "x-tenant", "x-client",
    ];
    let headers = only(&seen.headers, &prefixes).into_iter();
    headers
        .map(|(name, value)| format!("{name}: {}", String::from_utf8(value).unwrap()))
        .collect()
}

#[test]
fn the_word_of_each_call() {
    let mut calls = 0;
    for group in Group::all() {
        let config = Config::parse(format!("{{{}}}", group.config).as_bytes()).unwrap();
        let mesh = Mesh::of(group.node.as_bytes(), group.istio);
        for (authority, cluster, outside) in group.calls() {
            calls += 1;
            let found = is_outside(
                authority.as_bytes(),
                cluster.map(str::as_bytes),
                &config.hosts,
                &mesh,
            );
            let Group { about, .. } = &group;
            assert_eq!(found, outside, "{about}: {authority} {cluster:?}");
        }
    }
    assert!(calls >= 60, "{calls}");
}

/// In each setting, whatever the call carries itself, and whatever `emit` asks for.
#[test]
fn nothing_leaves_with_a_call_that_leaves() {
    for group in Group::all() {
        for (authority, cluster, outside) in group.calls() {
            for emit in ["\"received\"", "[\"b3multi\", \"b3\", \"w3c\"]"] {
                let name = format!("{}: {authority} {cluster:?} {emit}", group.about);
                let setting = |mode| format!("\"outside\": \"{mode}\", \"emit\": {emit}");
                let leave = serving(&group, &setting("leave"), cluster);
                let strip = serving(&group, &setting("strip"), cluster);

                for sidecar in [&leave, &strip] {
                    let seen = call(sidecar, authority, &[ID]);
                    let decision = if outside {
                        Decision::Outside
                    } else {
                        Decision::Copied
                    };
                    assert_eq!(seen.decision, Some(decision), "{name}");
                    assert_eq!(about(&seen).is_empty(), outside, "{name}");
                    // Not the ID of the request either.
                    let made_up = [TRACE, "x-forwarded-proto: http", NEW_ID];
                    let seen = call(sidecar, authority, &made_up);
                    let id = only(&seen.headers, &["x-request-id"]);
                    assert_eq!(id == [support::header(NEW_ID)], outside, "{name}");
                }
                // With a context of its own, in one form or in all.
                for own in [&[TRACE, OTHER_SPAN][..], &[TRACEPARENT], &OWN] {
                    let lines = [&[ID], own].concat();
                    let seen = call(&leave, authority, &lines);
                    if outside {
                        let mut own = own.to_vec();
                        own.sort_unstable();
                        assert_eq!(about(&seen), own, "{name}");
                    }
                    let seen = call(&strip, authority, &lines);
                    assert_eq!(about(&seen).is_empty(), outside, "{name}");
                }
            }
        }
    }
}

#[test]
fn outside_may_be_relayed_to() {
    for group in Group::all() {
        for (authority, cluster, _) in group.calls() {
            let sidecar = serving(&group, "\"outside\": \"relay\"", cluster);
            let seen = call(&sidecar, authority, &[ID]);
            assert_eq!(seen.decision, Some(Decision::Copied));
            assert_eq!(sidecar.host.asked.get(), 0);
        }
    }
}

#[test]
fn the_domain_is_that_of_the_node() {
    let domain = |id: &str| String::from_utf8(Mesh::of(id.as_bytes(), true).domain).unwrap();
    assert_eq!(
        domain("sidecar~10.0.0.1~a.b~b.svc.corp.example"),
        "corp.example"
    );
    assert_eq!(domain("router~10.0.0.1~gw.x~x.svc.k8s"), "k8s");
    for odd in [
        "",
        "envoy-1",
        "sidecar~10.0.0.1~a.b",
        "sidecar~10.0.0.1~a.b~b.svc.",
        "sidecar~10.0.0.1~a.b~svc.corp.example",
        "sidecar~10.0.0.1~a.b~b.svc..",
    ] {
        assert_eq!(domain(odd), "cluster.local", "{odd}");
    }
}

const INSIDE: &str = "outbound|80||reviews.shop.svc.cluster.local";
const OUTSIDE: &str = "outbound|80||api.example.com";

/// A sidecar, and how it is asked.
struct Asked {
    sidecar: Sidecar,
}

impl Asked {
    fn new() -> Self {
        let sidecar = Sidecar::new("{\"grace_ms\": 60000}");
        sidecar.inbound(&[ID, TRACE, SPAN]);
        let asked = Self { sidecar };
        asked.route(INSIDE);
        asked
    }

    fn route(&self, cluster: &str) {
        *self.sidecar.host.cluster.borrow_mut() = Some(leaked(cluster));
    }

    /// The decision, and how often Envoy was asked for the cluster.
    fn call(&self, authority: &str, path: &str) -> (Decision, u32) {
        let before = self.sidecar.host.asked.get();
        let lines = [
            format!(":authority: {authority}"),
            format!(":path: {path}"),
            ID.to_string(),
        ];
        let seen = self.sidecar.outbound(&lines.each_ref().map(String::as_str));
        let asked = self.sidecar.host.asked.get() - before;
        (seen.decision.unwrap(), asked)
    }
}

#[test]
fn the_cluster_is_asked_for_once_for_a_kind_of_call() {
    let asked = Asked::new();
    assert_eq!(asked.call("reviews", "/a"), (Decision::Copied, 1));
    for path in ["/a", "/a?x=1", "/a#b"] {
        assert_eq!(asked.call("reviews", path), (Decision::Copied, 0), "{path}");
    }
    // Another kind, which may have a route of its own.
    asked.route(OUTSIDE);
    for (authority, path) in [
        ("reviews", "/b"),
        ("reviews", "/a/v1"),
        ("reviews", "/a/v2"),
        ("reviews", "/a/1"),
        ("reviews:8080", "/a"),
        ("api.example.com", "/a"),
    ] {
        for times in [1, 0] {
            assert_eq!(asked.call(authority, path), (Decision::Outside, times));
        }
    }
    assert_eq!(asked.call("reviews", "/a"), (Decision::Copied, 0));
    // Identifiers do not make a kind.
    for (n, times) in [(1, 1), (2, 0), (3, 0)] {
        let path = format!("/users/0f7a1c2e-1b2d-4c3e-9d4f-00000000000{n}/cart");
        assert_eq!(asked.call("shop", &path), (Decision::Outside, times));
    }
    // A name with a digit in it is none.
    for (path, times) in [
        ("/internal-v1/x", 1),
        ("/partners-v2/x", 1),
        ("/internal-v1/x", 0),
    ] {
        assert_eq!(
            asked.call("api", path),
            (Decision::Outside, times),
            "{path}"
        );
    }
    // The node was asked once for all.
    assert_eq!(asked.sidecar.host.nodes.get(), 1);
}

/// A sidecar that copies `x-tenant`, which says where Envoy routes calls.
fn routed_by_tenant(rest: &str) -> Sidecar {
    let sidecar = Sidecar::keyed(&format!(r#"{{"copy_headers": ["x-tenant"]{rest}}}"#));
    goes(&sidecar, Some(INSIDE));
    sidecar.inbound(&[ID, TRACE, SPAN, ACME]);
    sidecar
}

const ACME: &str = "x-tenant: acme";

fn goes(sidecar: &Sidecar, cluster: Option<&'static str>) {
    *sidecar.host.cluster.borrow_mut() = cluster;
}

fn pays(sidecar: &Sidecar, lines: &[&str]) -> Seen {
    sidecar.outbound(&[&[ID, ":authority: payments", ":path: /pay"], lines].concat())
}

/// A call goes there in the end.
fn ends(sidecar: &Sidecar, seen: &Seen, cluster: Option<&'static str>) {
    goes(sidecar, cluster);
    sidecar.sent(seen);
    goes(sidecar, Some(INSIDE));
}

/// Envoy routes a call by the headers that it has in the end.
#[test]
fn a_kind_of_call_that_copied_headers_lead_outside_gets_none() {
    for outside in ["leave", "strip", "relay"] {
        let sidecar = routed_by_tenant(&format!(r#", "outside": "{outside}""#));
        let first = pays(&sidecar, &[]);
        assert_eq!(first.decision, Some(Decision::Copied));
        ends(&sidecar, &first, Some(OUTSIDE));
        let expected = match outside {
            "relay" => Decision::Copied,
            _ => Decision::Outside,
        };
        // Longer than what is remembered of a route, with calls of another kind between.
        for _ in 0..30 {
            sidecar.wait(9_000);
            sidecar.tick();
            sidecar.inbound(&[ID, TRACE, SPAN, ACME]);
            assert_eq!(pays(&sidecar, &[]).decision, Some(expected), "{outside}");
            let other = sidecar.outbound(&[ID, ":authority: payments", ":path: /refund"]);
            assert_eq!(other.decision, Some(Decision::Copied));
            sidecar.sent(&other);
        }
        // Without such a header no route has changed.
        let has_own = pays(&sidecar, &["x-tenant: other"]);
        assert_eq!(has_own.decision, Some(Decision::Copied), "{outside}");
        // It goes inside: nothing of its own is lost.
        let own: &[&str] = &["b3: 463ac35c9f6413ad48485a3953bb6124-1111111111111111-1"];
        let seen = pays(&sidecar, own);
        assert_eq!(
            only(&seen.headers, &["b3"]),
            support::headers(own),
            "{outside}"
        );
        sidecar.wait(10_000);
        sidecar.inbound(&[ID, TRACE, SPAN]);
        assert_eq!(pays(&sidecar, &[]).decision, Some(Decision::Copied));
        // In the end one is tried again.
        sidecar.wait(Routes::LEAVES_MS);
        sidecar.tick();
        sidecar.inbound(&[ID, TRACE, SPAN, ACME]);
        assert_eq!(pays(&sidecar, &[]).decision, Some(Decision::Copied));
    }
}

/// By the method, say: what Envoy said of the call before it was wrong for this one.
#[test]
fn a_route_that_varies_is_not_taken_for_one_by_copied_headers() {
    let sidecar = routed_by_tenant("");
    let get = pays(&sidecar, &[]);
    ends(&sidecar, &get, Some(INSIDE));
    let post = pays(&sidecar, &[]);
    assert_eq!(post.decision, Some(Decision::Copied));
    ends(&sidecar, &post, Some(OUTSIDE));
    for _ in 0..20 {
        let get = pays(&sidecar, &[]);
        assert_eq!(get.decision, Some(Decision::Copied));
        ends(&sidecar, &get, Some(INSIDE));
        goes(&sidecar, Some(OUTSIDE));
        assert_eq!(pays(&sidecar, &[]).decision, Some(Decision::Outside));
        goes(&sidecar, Some(INSIDE));
    }
}

#[test]
fn a_call_that_went_nowhere_says_nothing_of_its_route() {
    let sidecar = routed_by_tenant("");
    let call =
        |lines: &[&str]| sidecar.outbound(&[&[ID, ":authority: api.example.com"], lines].concat());
    let seen = call(&[]);
    assert_eq!(seen.decision, Some(Decision::Copied));
    ends(&sidecar, &seen, None);
    assert_eq!(call(&[]).decision, Some(Decision::Copied));
}

#[test]
fn a_new_configuration_of_envoys_takes_effect() {
    let asked = Asked::new();
    assert_eq!(asked.call("reviews", "/"), (Decision::Copied, 1));
    asked.route(OUTSIDE);
    asked.sidecar.wait(Routes::TTL_MS - 1);
    asked.sidecar.tick();
    assert_eq!(asked.call("reviews", "/"), (Decision::Copied, 0));
    asked.sidecar.wait(1);
    asked.sidecar.tick();
    assert_eq!(asked.call("reviews", "/"), (Decision::Outside, 1));
    // A clock that is set back makes nothing last longer.
    let asked = Asked::new();
    assert_eq!(asked.call("reviews", "/"), (Decision::Copied, 1));
    asked.route(OUTSIDE);
    let now = asked.sidecar.host.now.get();
    asked.sidecar.host.now.set(now - 1000);
    asked.sidecar.tick();
    assert_eq!(asked.call("reviews", "/").1, 1);
}

/// A route may go by a header, or by a share of the calls.
#[test]
fn a_kind_whose_answers_differ_is_asked_about_each_time() {
    let asked = Asked::new();
    assert_eq!(asked.call("reviews", "/"), (Decision::Copied, 1));
    asked.route(OUTSIDE);
    let remembered = (0..1000).take_while(|_| asked.call("reviews", "/").1 == 0);
    assert_eq!(remembered.count(), Routes::CALLS as usize);
    for (cluster, decision) in [(INSIDE, Decision::Copied), (OUTSIDE, Decision::Outside)] {
        for _ in 0..100 {
            asked.route(cluster);
            assert_eq!(asked.call("reviews", "/"), (decision, 1));
        }
    }
}

#[test]
fn subsets_of_a_service_are_one_answer() {
    let asked = Asked::new();
    let mut times = 0;
    for n in 0..1000 {
        asked.route(&format!(
            "outbound|80|v{}|reviews.shop.svc.cluster.local",
            n % 2
        ));
        times += asked.call("reviews", "/").1;
    }
    assert!(times <= 1000 / Routes::CALLS, "{times}");
}

#[test]
fn what_is_remembered_is_bounded() {
    let asked = Asked::new();
    let path = |n: usize| format!("/{}", char::from_u32(0x4e00 + n as u32).unwrap());
    for n in 0..=Routes::MOST {
        assert_eq!(asked.call("reviews", &path(n)).1, 1);
    }
    assert_eq!(asked.call("reviews", &path(Routes::MOST)).1, 0);
    assert_eq!(asked.call("reviews", &path(1)).1, 0);
    // The oldest has made room.
    assert_eq!(asked.call("reviews", &path(0)).1, 1);
    // No host has a name as long as that.
    assert_eq!(asked.call(&"a".repeat(5000), "/"), (Decision::Outside, 0));
    // For a long path it is asked for again, rather than kept.
    let long = format!("/{}", "a".repeat(5000));
    assert_eq!(asked.call("reviews", &long).1, 1);
    assert_eq!(asked.call("reviews", &long).1, 1);
}

/// A call through another plugin of the same VM.
fn through(other: &Filter, sidecar: &Sidecar, lines: &[&str]) -> Option<Decision> {
    let map = map(&headers(lines));
    let direction = Some(Direction::Outbound);
    let memory = &mut sidecar.memory(0);
    let outcome = other.request(memory, &sidecar.host, direction, Pairs::new(&map));
    let mut counters = outcome.counters.into_iter();
    counters.find_map(|counter| match counter {
        Counter::Calls(decision) => Some(decision),
        _ => None,
    })
}

/// What one plugin has found out of a route says nothing for another.
#[test]
fn a_route_is_judged_by_each_plugin() {
    let sidecar = Sidecar::with("{}", r#"{"mesh_hosts": ["a.example.com"]}"#, 1);
    goes(&sidecar, Some("PassthroughCluster"));
    sidecar.inbound(&[ID, TRACE, SPAN]);
    let plugin = |config: &str| Filter::new(Config::parse(config.as_bytes()).unwrap());
    let other = plugin("{}");
    for _ in 0..3 {
        let seen = call(&sidecar, "a.example.com", &[ID]);
        assert_eq!(seen.decision, Some(Decision::Copied));
        let lines = [":authority: a.example.com", ":path: /", ID];
        let decision = through(&other, &sidecar, &lines);
        assert_eq!(decision, Some(Decision::Outside));
    }
    // Nor does what the headers have done that it copies.
    let sidecar = routed_by_tenant("");
    let first = pays(&sidecar, &[]);
    ends(&sidecar, &first, Some(OUTSIDE));
    assert_eq!(pays(&sidecar, &[]).decision, Some(Decision::Outside));
    let other = plugin(r#"{"copy_headers": ["x-tenant"]}"#);
    let lines = [":authority: payments", ":path: /pay", ID];
    assert_eq!(through(&other, &sidecar, &lines), Some(Decision::Copied));
}

#[test]
fn a_call_that_no_header_was_copied_onto_was_not_led_outside_by_one() {
    let sidecar = routed_by_tenant("");
    let has_own = pays(&sidecar, &["x-tenant: other"]);
    ends(&sidecar, &has_own, Some(OUTSIDE));
    assert_eq!(pays(&sidecar, &[]).decision, Some(Decision::Copied));
}
