//! What is accepted, what is refused, and what is said of it.

use super::reference::schema;
use super::*;
use crate::headers::HeaderPart;
use proptest::prelude::*;

fn error(text: &str) -> String {
    Config::parse(text.as_bytes()).unwrap_err().to_string()
}

#[test]
fn nothing_is_the_default() {
    for text in ["", " \n", "{}"] {
        assert_eq!(Config::parse(text.as_bytes()), Ok(Config::default()));
    }
}

#[test]
fn every_key_does_something() {
    let others = [
        ("mode", "\"repair\""),
        ("direction", "\"inbound\""),
        ("relay", "false"),
        ("generate_request_id", "false"),
        ("copy_headers", "[\"Baggage\"]"),
        ("copy_to_attributed", "true"),
        ("restore_request_id", "\"never\""),
        ("keys", "[\"x-correlation-id\", \"x-request-id\"]"),
        ("emit", "[\"b3\"]"),
        ("span_ids", "\"child\""),
        ("deferred_w3c", "\"sampled\""),
        ("own_spans", "\"unreported\""),
        ("outside", "\"strip\""),
        ("mesh_hosts", "[\"*.example.com\"]"),
        ("outside_hosts", "[\"10.0.0.0/8\"]"),
        ("egress_gateways", "[\"proxy\"]"),
        ("attribution", "\"inferred\""),
        ("confidence", "0.99"),
        ("token_headers", "[\"x-user\"]"),
        ("look_back", "true"),
        ("capacity", "64"),
        ("grace_ms", "0"),
        ("log_lines_per_minute", "0"),
        ("rules", "{\"L04\": \"off\"}"),
        ("enforce_status", "422"),
        ("report_header", "\"response\""),
        ("incoming_context", "\"drop\""),
        ("spans", "{\"cluster\": \"zipkin\", \"format\": \"zipkin\"}"),
    ];
    let schema = schema();
    let keys = schema["properties"].as_object().unwrap().keys();
    let keys = keys.filter(|name| *name != "incoming_b3");
    assert!(keys.eq(others.iter().map(|(name, _)| *name)));
    for (name, value) in others {
        let text = format!("{{\"{name}\": {value}}}");
        assert_ne!(
            Config::parse(text.as_bytes()).unwrap(),
            Config::default(),
            "{text}"
        );
    }
}

#[test]
fn errors_name_the_key_its_place_what_was_found_and_what_is_allowed() {
    assert_eq!(
        error(r#"{"mod": "repair"}"#),
        "configuration key `mod`: not known, allowed: `mode`, `direction`, `relay`, \
         `generate_request_id`, `copy_headers`, `copy_to_attributed`, `restore_request_id`, \
         `keys`, `emit`, `span_ids`, `deferred_w3c`, `own_spans`, `outside`, `mesh_hosts`, \
         `outside_hosts`, `egress_gateways`, `attribution`, `confidence`, `token_headers`, \
         `look_back`, `capacity`, `grace_ms`, `log_lines_per_minute`, `rules`, `enforce_status`, \
         `report_header`, `incoming_b3`, `incoming_context`, `spans` (line 1 column 6)"
    );
    for (text, said) in [
        (
            r#"{"mode": "watch"}"#,
            "configuration key `mode`: found \"watch\", allowed: \"observe\", \"repair\" or \
             \"enforce\" (line 1 column 16)",
        ),
        (
            "{\n  \"mode\": {\"observe\": null}\n}",
            "configuration key `mode`: found an object, allowed: \"observe\", \"repair\" or \
             \"enforce\" (line 2 column 11)",
        ),
        (
            r#"{"relay": "yes"}"#,
            "configuration key `relay`: found \"yes\", allowed: true or false (line 1 column 15)",
        ),
        (
            r#"{"relay": ["yes"]}"#,
            "configuration key `relay`: found a list, allowed: true or false (line 1 column 11)",
        ),
        (
            r#"{"keys": ["b3", "x", 7]}"#,
            "configuration key `keys[2]`: found 7, allowed: \"x-request-id\", \"traceparent\", \
             \"b3\", the name of another header, or a part of one such as \
             \"x-amzn-trace-id:Root\", each once (line 1 column 22)",
        ),
        (
            r#"{"keys": []}"#,
            "configuration key `keys`: found an empty list, allowed: a list of 1 to 4 keys \
             (line 1 column 11)",
        ),
        (
            r#"{"keys": ["a", "b", "c", "d", "e"]}"#,
            "configuration key `keys`: found a longer list, allowed: a list of 1 to 4 keys \
             (line 1 column 34)",
        ),
        (
            r#"{"emit": ["b3", "b"]}"#,
            "configuration key `emit[1]`: found \"b\", allowed: \"b3multi\", \"b3\" or \"w3c\" \
             (line 1 column 19)",
        ),
        (
            r#"{"emit": "b3"}"#,
            "configuration key `emit`: found \"b3\", allowed: \"received\", or a list of \
             \"b3multi\", \"b3\" and \"w3c\" (line 1 column 13)",
        ),
        (
            r#"{"rules": {"L04": false}}"#,
            "configuration key `rules.L04`: found false, allowed: \"off\", \"info\", \"warn\" or \
             \"error\" (line 1 column 23)",
        ),
        (
            r#"{"rules": {"L99": "off"}}"#,
            "configuration key `rules.L99`: found \"off\", allowed: \"off\", \"info\", \"warn\" or \
             \"error\"; no rule of docs/rules.md is called `L99` (line 1 column 23)",
        ),
        (
            r#"{"rules": {"L04": "off", "L04": "off"}}"#,
            "configuration key `rules.L04`: found \"off\", allowed: \"off\", \"info\", \"warn\" or \
             \"error\"; `L04` is there twice (line 1 column 37)",
        ),
    ] {
        assert_eq!(error(text), said);
    }
    for bad in [
        "-1",
        "63",
        "65537",
        "1e99",
        "64.5",
        "null",
        "\"64\"",
        "4294967360",
    ] {
        let text = error(&format!("{{\"capacity\": {bad}}}"));
        assert!(
            text.starts_with("configuration key `capacity`: found "),
            "{text}"
        );
        assert!(
            text.contains(", allowed: a whole number from 64 to 65536 (line 1 column "),
            "{text}"
        );
    }
    for bad in ["0.89", "0.99995", "1", "\"0.99\"", "-0.99"] {
        let text = error(&format!("{{\"confidence\": {bad}}}"));
        assert!(
            text.contains(", allowed: a number from 0.9 to 0.9999 (line 1 column "),
            "{text}"
        );
    }
    for bad in ["0.89", "1", "-1", "65537"] {
        let text = error(&format!("{{\"confidence\": {bad}}}"));
        assert!(text.contains(&format!("found {bad}, ")), "{text}");
    }
    for bad in [
        "[\"\"]",
        "[\":path\"]",
        "[\"*\"]",
        "[\"a*b\"]",
        "[\"a b\"]",
        "[1]",
        "[\"host\"]",
        "[\"Content-Length\"]",
        "[\"te\"]",
    ] {
        let text = error(&format!("{{\"copy_headers\": {bad}}}"));
        assert!(
            text.starts_with("configuration key `copy_headers[0]`: found "),
            "{text}"
        );
    }
    let text = error("{\"copy_headers\": \"a\"}");
    assert!(
        text.starts_with("configuration key `copy_headers`: found \"a\", allowed: a list "),
        "{text}"
    );
}

/// Whole numbers that went through a protobuf `Struct`.
#[test]
fn whole_numbers_may_be_written_as_fractions() {
    let plain = Config::parse(br#"{"capacity": 4000, "grace_ms": 0}"#);
    assert!(plain.is_ok());
    for text in [
        r#"{"capacity": 4000.0, "grace_ms": 0.0}"#,
        r#"{"capacity": 4e+03, "grace_ms": -0.0}"#,
    ] {
        assert_eq!(Config::parse(text.as_bytes()), plain);
    }
}

/// What is copied anyway would be listed in vain.
#[test]
fn headers_that_are_copied_anyway_are_refused_with_the_reason() {
    for (name, reason) in [
        (
            "x-request-id",
            "which is restored on calls that lack it (`keys`)",
        ),
        ("B3", "a form of the context (`emit`)"),
        ("x-b3-traceid", "a part of the context (`emit`)"),
        ("x-b3-spanid", "a part of the context (`emit`)"),
        ("x-b3-parentspanid", "a part of the context (`emit`)"),
        ("X-B3-Sampled", "a part of the context (`emit`)"),
        ("x-b3-flags", "a part of the context (`emit`)"),
        ("traceparent", "a form of the context (`emit`)"),
        ("tracestate", "a form of the context (`emit`)"),
        ("x-ot-span-context", "which is copied as it is"),
    ] {
        let text = error(&format!("{{\"copy_headers\": [\"end-user\", \"{name}\"]}}"));
        let name = name.to_ascii_lowercase();
        assert!(
            text.starts_with("configuration key `copy_headers[1]`: found ")
                && text.contains(&format!(
                    "; `{name}` is copied without being listed: {reason} (line 1 column "
                )),
            "{text}"
        );
    }
    for good in ["x-b3-*", "x-b3-custom", "baggage", "grpc-trace-bin", "b3*"] {
        let text = format!("{{\"copy_headers\": [\"{good}\"]}}");
        assert!(Config::parse(text.as_bytes()).is_ok(), "{good}");
    }
}

#[test]
fn hosts_are_names_ends_addresses_and_ranges() {
    let config =
        |key: &str, hosts: &str| Config::parse(format!("{{\"{key}\": [\"{hosts}\"]}}").as_bytes());
    for key in ["mesh_hosts", "outside_hosts", "egress_gateways"] {
        for good in [
            "db",
            "DB.Example.com.",
            "*.example.com",
            "_dns.example.com",
            "10.0.0.7",
            "fd00::7",
            "[fd00::7]",
            "10.0.0.0/8",
            "0.0.0.0/0",
            "fd00::/8",
            "::ffff:10.0.0.0/104",
        ] {
            assert!(config(key, good).is_ok(), "{key}: {good}");
        }
        for bad in [
            "",
            "*",
            "*.",
            ".",
            "a..b",
            "a:80",
            "a/b",
            "10.0.0.0/33",
            "10.0.0.0/+8",
            "10.0.0.0/",
            "fd00::/129",
            "::ffff:10.0.0.0/8",
            "10.0/8",
            "[fd00::7",
            "[fd00::7]:80",
            "2130706433",
            "0x7f000001",
            "127.1",
            "a.*.b",
            "https://a",
            "a b",
            "\u{e9}",
        ] {
            let text = config(key, bad).unwrap_err().to_string();
            assert!(
                text.starts_with(&format!("configuration key `{key}[0]`: found \"{bad}\", "))
                    && text.contains(": write `*.` and a name (line 1 ") == (bad == "*"),
                "{text}"
            );
        }
        let text = config(key, "*example.com").unwrap_err().to_string();
        assert!(
            text.contains("; it would match names of others, too: write `*.` and a name (line "),
            "{text}"
        );
        let many = vec!["a"; 65].join("\", \"");
        assert!(config(key, &many).is_err());
    }
}

#[test]
fn spans_have_a_collector_whose_host_is_that_of_its_cluster() {
    let spans = |more: &str| {
        let text = format!(r#"{{"spans": {{"format": "otlp", {more}}}}}"#);
        Config::parse(text.as_bytes()).map(|config| config.spans.unwrap())
    };
    for (cluster, host) in [
        ("zipkin", "zipkin"),
        ("outbound|9411||zipkin.shop.svc", "zipkin.shop.svc"),
    ] {
        let spans = spans(&format!("\"cluster\": \"{cluster}\"")).unwrap();
        assert_eq!((&*spans.authority, &*spans.path), (host, "/v1/traces"));
    }
    for (key, text, good) in [
        ("cluster", &*"c".repeat(255), true),
        ("cluster", &*"c".repeat(256), false),
        ("cluster", "", false),
        ("authority", "a b", false),
        ("authority", "a/b", true),
        ("path", "/v2", true),
        ("path", "v2", false),
        ("path", "/v 2", false),
    ] {
        let cluster = if key == "cluster" {
            ""
        } else {
            r#""cluster": "c", "#
        };
        let found = spans(&format!(r#"{cluster}"{key}": "{text}""#));
        assert_eq!(found.is_ok(), good, "{key}: {text}");
    }
}

#[test]
fn a_former_name_of_a_key_will_do() {
    let parse = |text: &str| Config::parse(text.as_bytes());
    for value in ["trust", "ignore", "drop"] {
        assert_eq!(
            parse(&format!("{{\"incoming_b3\": \"{value}\"}}")),
            parse(&format!("{{\"incoming_context\": \"{value}\"}}"))
        );
    }
    for (both, column) in [
        (r#"{"incoming_b3": "drop", "incoming_context": "drop"}"#, 42),
        (
            r#"{"incoming_context": "trust", "incoming_b3": "drop"}"#,
            43,
        ),
    ] {
        assert_eq!(
            error(both),
            format!(
                "configuration key `incoming_context`: found twice, allowed: once; \
                 `incoming_b3` is its former name (line 1 column {column})"
            )
        );
    }
    assert_eq!(
        error(r#"{"incoming_b3": "no"}"#),
        "configuration key `incoming_b3`: found \"no\", allowed: \"trust\", \"ignore\" or \"drop\" (line 1 column 20)"
    );
}

#[test]
fn a_key_may_be_a_part_of_a_header() {
    let keys = |text: &str| Config::parse(format!("{{\"keys\": {text}}}").as_bytes());
    let config =
        keys(r#"["X-Amzn-Trace-Id:Root", "b3", "x-amzn-trace-id", "x-amzn-trace-id:self"]"#)
            .unwrap();
    let named = |parameter: Option<&str>| HeaderPart {
        header: "x-amzn-trace-id".to_string(),
        parameter: parameter.map(str::to_string),
    };
    assert_eq!(
        config.wanted.keys,
        [named(Some("root")), named(None), named(Some("self"))]
    );
    let by = [
        KeyOf::Header(0),
        KeyOf::B3,
        KeyOf::Header(1),
        KeyOf::Header(2),
    ];
    assert_eq!(config.keys, by);
    for bad in [
        r#"["x:root", "X:Root"]"#,
        r#"["x:"]"#,
        r#"[":root"]"#,
        r#"[":path:root"]"#,
        r#"["x:a b"]"#,
        r#"["x:a:b"]"#,
        r#"["x:a=b"]"#,
        r#"["x:a;b"]"#,
        r#"["x-request-id:root"]"#,
        r#"["traceparent:root"]"#,
        r#"["b3:root"]"#,
        r#"["x-b3-traceid:root"]"#,
        r#"["host:root"]"#,
    ] {
        let text = keys(bad).unwrap_err().to_string();
        assert!(text.starts_with("configuration key `keys["), "{text}");
        assert!(text.contains("x-amzn-trace-id:Root"), "{text}");
    }
}

#[test]
fn errors_cannot_forge_log_lines() {
    for text in [
        r#"{"\u001b[31m\n\u009b": 1}"#,
        r#"{"mode": "\u007f\u009b\n"}"#,
    ] {
        let error = error(text);
        assert!(!error.chars().any(char::is_control), "{error:?}");
    }
    let long = format!("{{\"{}\": 1}}", "x".repeat(1000));
    assert!(error(&long).contains(&("x".repeat(80) + "…`: not known, ")));
}

#[test]
fn rules_are_changed_by_their_id() {
    let config = Config::parse(br#"{"rules": {"L04": "off", "S06": "error"}}"#).unwrap();
    assert_eq!(config.severity(Rule::L04), None);
    assert_eq!(config.severity(Rule::S06), Some(Severity::Error));
    assert_eq!(config.severity(Rule::L01), Some(Severity::Error));
    for bad in [
        "{\"L99\": \"off\"}",
        "{\"L04\": \"of\"}",
        "[]",
        "{\"L04\": false}",
    ] {
        let text = error(&format!("{{\"rules\": {bad}}}"));
        assert!(
            text.starts_with("configuration key `rules") && text.contains("`: found "),
            "{text}"
        );
    }
}

#[test]
fn repeated_keys_are_refused() {
    assert_eq!(
        error(r#"{"relay": true, "relay": false}"#),
        "configuration key `relay`: found twice, allowed: once (line 1 column 23)"
    );
}

#[test]
fn broken_json_is_refused_with_its_place() {
    assert_eq!(
        error("{\"relay\": tru}"),
        "configuration: expected ident at line 1 column 14"
    );
    assert_eq!(
        error("{\"relay\":\n true} {}"),
        "configuration: trailing characters at line 2 column 8"
    );
    for (text, found) in [
        ("[1]", "a list"),
        ("7", "7"),
        ("-7", "-7"),
        ("0.25", "0.25"),
        ("0.000001", "0.000001"),
        ("0.9999994", "0.999999"),
        ("0.9999996", "a fraction or a very large number"),
        ("-1.5", "a fraction or a very large number"),
        ("null", "null"),
        ("true", "true"),
        ("\"mode\"", "\"mode\""),
    ] {
        let said = error(text);
        let begin = format!(
            "configuration: found {found}, allowed: a JSON object such as \
             {{\"mode\": \"observe\"}} (line 1 column "
        );
        assert!(said.starts_with(&begin), "{said}");
    }
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes: Vec<u8>) {
        let _ = Config::parse(&bytes);
    }
}
