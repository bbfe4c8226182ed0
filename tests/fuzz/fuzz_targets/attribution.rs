//! Requests and calls that carry nothing, on two workers, in any order; in between,
//! shared data is overwritten: the journals of the workers, their list, the buckets.
//!
//! Nothing may panic. As long as shared data is what b3relay has written, a call gets
//! the context of a request that is in flight, or none.
#![no_main]

#[path = "../../support/mod.rs"]
mod support;

use b3relay::config::Direction;
use b3relay::store::{SharedData, seal};
use libfuzzer_sys::fuzz_target;
use support::{Headers, Seen, Sidecar};

const CONFIG: &str = r#"{"attribution": "inferred", "grace_ms": 0}"#;
const WORKERS: u64 = 2;
/// As `src/attribution/journal/mod.rs` names a segment, with the worker and the place.
const JOURNAL: &[u8] = b"b3relay/6/log/";

/// The input, a piece at a time. At its end it has no more.
struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn index(&mut self, length: usize) -> Option<usize> {
        usize::from(self.byte()?).checked_rem(length)
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = usize::from(self.byte()?).min(self.0.len());
        let (bytes, rest) = self.0.split_at(length);
        self.0 = rest;
        Some(bytes)
    }
}

/// A request without a key: its path and a header with an identifier.
fn headers(script: &mut Script<'_>) -> Option<Headers> {
    let path = script.bytes()?.to_vec();
    let token = script.bytes()?.to_vec();
    Some(vec![
        (":method".to_string(), b"GET".to_vec()),
        (":authority".to_string(), b"reviews".to_vec()),
        (":path".to_string(), path),
        ("authorization".to_string(), token),
    ])
}

fn trace(headers: &Headers) -> Option<&[u8]> {
    let header = headers.iter().find(|(name, _)| name == "x-b3-traceid");
    header.map(|(_, value)| value.as_slice())
}

/// One thing that happens. `None` if there is nothing that it could happen to.
fn step(script: &mut Script<'_>, world: &mut World) -> Option<()> {
    let World {
        sidecar,
        requests,
        calls,
        begun,
        tampered,
    } = world;
    let data = &sidecar.host.data;
    match script.byte()? % 9 {
        0 => {
            let worker = script.index(WORKERS as usize)?;
            let mut given = headers(script)?;
            *begun += 1;
            let ids = [("x-b3-traceid", 32), ("x-b3-spanid", 16)];
            given.extend(ids.map(|(name, width)| {
                let id = format!("{begun:0width$x}");
                (name.to_string(), id.into_bytes())
            }));
            let seen = sidecar.on(worker, Some(Direction::Inbound), &given);
            if seen.ticket.is_some() {
                requests.push(seen);
            }
        }
        1 => {
            let worker = script.index(WORKERS as usize)?;
            let seen = sidecar.on(worker, Some(Direction::Outbound), &headers(script)?);
            let got = trace(&seen.headers);
            let is_of = |request: &Seen| trace(&request.headers) == got;
            assert!(*tampered || got.is_none() || requests.iter().any(is_of));
            calls.push(seen);
        }
        2 => {
            let index = script.index(requests.len())?;
            sidecar.end(&requests.swap_remove(index));
        }
        3 => {
            let index = script.index(calls.len())?;
            sidecar.returned(&calls.swap_remove(index));
        }
        4 => {
            sidecar.wait(1 << (script.byte()? % 24));
            sidecar.tick();
        }
        // Any bytes in place of a value.
        5 => {
            let keys = data.keys();
            let index = script.index(keys.len())?;
            let _ = data.set(&keys[index], script.bytes()?, 0);
            *tampered = true;
        }
        // A value that is almost what it was.
        6 => {
            let keys = data.keys();
            let index = script.index(keys.len())?;
            let (mut value, _) = data.get(&keys[index])?;
            let at = script.index(value.len().min(256))?;
            value[at] ^= script.byte()?;
            let _ = data.set(&keys[index], &value, 0);
            *tampered = true;
        }
        // The beginning of what it was.
        7 => {
            let keys = data.keys();
            let index = script.index(keys.len())?;
            let (value, _) = data.get(&keys[index])?;
            let end = script.index(value.len().min(256))?;
            // It is noticed.
            let _ = data.set(&keys[index], &value[..end], 0);
        }
        // A journal that nobody may have begun.
        _ => {
            let place = [0, script.byte()? % 4, script.byte()? % 64];
            let mut value = script.bytes()?.to_vec();
            if place[2] % 2 == 0 {
                seal(&mut value);
            }
            let _ = data.set(&[JOURNAL, &place].concat(), &value, 0);
            *tampered = true;
        }
    }
    Some(())
}

struct World {
    sidecar: Sidecar,
    requests: Vec<Seen>,
    calls: Vec<Seen>,
    begun: u64,
    tampered: bool,
}

fuzz_target!(|input: &[u8]| {
    let mut world = World {
        sidecar: Sidecar::with(CONFIG, CONFIG, WORKERS),
        requests: Vec::new(),
        calls: Vec::new(),
        begun: 0,
        tampered: false,
    };
    let mut script = Script(input);
    while !script.0.is_empty() {
        step(&mut script, &mut world);
    }
});
