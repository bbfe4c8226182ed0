//! Another plugin of the same `vm_id`, and so of the same shared data. Its configuration
//! says what it does to b3relay, ten times a second from each worker, or with each
//! request:
//!
//! - `panic`: with each request;
//! - `truncated`, `random`, `another`, `large`: to every value that it finds under the keys
//!   of b3relay: half of it, random bytes, bytes of a record that there is none of, or
//!   64 KiB more; and such values under keys that are not there yet;
//! - `many`: 20,000 keys of its own.

use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{Action, ContextType, Status};
use std::collections::BTreeSet;
use std::time::Duration;

#[link(wasm_import_module = "env")]
unsafe extern "C" {
    fn proxy_get_shared_data(
        key: *const u8,
        key_size: usize,
        data: *mut *mut u8,
        size: *mut usize,
        cas: *mut u32,
    ) -> Status;
    fn proxy_set_shared_data(
        key: *const u8,
        key_size: usize,
        value: *const u8,
        value_size: usize,
        cas: u32,
    ) -> Status;
}

fn get(key: &[u8]) -> Option<Vec<u8>> {
    let (mut data, mut size, mut cas) = (std::ptr::null_mut(), 0, 0);
    let status =
        unsafe { proxy_get_shared_data(key.as_ptr(), key.len(), &mut data, &mut size, &mut cas) };
    let there = status == Status::Ok && !data.is_null();
    there.then(|| unsafe { Vec::from_raw_parts(data, size, size) })
}

fn set(key: &[u8], value: &[u8]) {
    let status =
        unsafe { proxy_set_shared_data(key.as_ptr(), key.len(), value.as_ptr(), value.len(), 0) };
    assert!(status == Status::Ok);
}

/// Of the first workers; those that begin after the list is spoiled have other numbers.
const WORKERS: u16 = 4;
const BUCKETS: u16 = 1024;
const SEGMENTS: u8 = 64;

/// The keys of b3relay, as far as they are no hashes.
fn keys(prefix: &[u8], workers: &BTreeSet<u16>) -> Vec<Vec<u8>> {
    let of = |rest: &[u8]| [prefix, rest].concat();
    let names: [&[u8]; 5] = [
        b"seed",
        b"workers",
        b"changed",
        b"config/inbound",
        b"config/outbound",
    ];
    let mut keys: Vec<_> = names.map(of).into();
    for worker in workers {
        let [a, b] = worker.to_be_bytes();
        for bucket in 0..BUCKETS {
            let [c, d] = bucket.to_be_bytes();
            keys.push(of(&[a, b, c, d]));
        }
        for segment in 0..SEGMENTS {
            keys.push([prefix, b"log/", &[a, b, segment]].concat());
        }
    }
    keys
}

/// The numbers in a list of workers, if it is whole.
fn numbers(list: &[u8]) -> impl Iterator<Item = u16> {
    let (head, end) = (10, 4);
    let workers = list.get(head..list.len().saturating_sub(end));
    let workers = workers.unwrap_or_default().chunks(18);
    workers.filter_map(|worker| match worker {
        [a, b, rest @ ..] if rest.len() == 16 => Some(u16::from_le_bytes([*a, *b])),
        _ => None,
    })
}

#[derive(Default)]
struct Root {
    what: String,
    prefix: Vec<u8>,
    workers: BTreeSet<u16>,
    dice: u64,
    number: u32,
}

impl Root {
    fn roll(&mut self) -> u64 {
        // xorshift
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        self.dice
    }

    fn spoiled(&mut self, value: &[u8]) -> Vec<u8> {
        match self.what.as_str() {
            "truncated" => value.get(..value.len() / 2).unwrap_or_default().to_vec(),
            "random" => (0..value.len().max(40))
                .map(|_| self.roll() as u8)
                .collect(),
            // No record has this tag; and then what was there.
            "another" => [&[200], value].concat(),
            "large" => [value, &[7; 1 << 16]].concat(),
            other => panic!("what is `{other}`?"),
        }
    }
}

proxy_wasm::main! {{
    proxy_wasm::set_root_context(|_| -> Box<dyn RootContext> { Box::new(Root::default()) });
}}

impl Context for Root {}

impl RootContext for Root {
    /// `WHAT PREFIX`
    fn on_configure(&mut self, _: usize) -> bool {
        let text = String::from_utf8(self.get_plugin_configuration().unwrap_or_default());
        let Some((what, prefix)) = text
            .unwrap_or_default()
            .split_once(' ')
            .map(|(w, p)| (w.to_string(), p.to_string()))
        else {
            return false;
        };
        (self.what, self.prefix) = (what, prefix.into_bytes());
        self.dice = 0x9e37_79b9_7f4a_7c15;
        if self.what != "panic" {
            self.set_tick_period(Duration::from_millis(100));
        }
        true
    }

    fn on_tick(&mut self) {
        if self.what == "many" {
            for _ in 0..200 {
                self.number = (self.number + 1) % 20_000;
                set(format!("neighbour/{}", self.number).as_bytes(), &[1; 1000]);
            }
            return;
        }
        if self.workers.len() < 16 {
            let list = get(&[&self.prefix, &b"workers"[..]].concat()).unwrap_or_default();
            self.workers.extend((0..WORKERS).chain(numbers(&list)));
        }
        let mut spoiled = 0u64;
        for (place, key) in keys(&self.prefix, &self.workers).iter().enumerate() {
            let found = get(key);
            // Of what is not there a few are made up, the well-known names first.
            if found.is_some() || place < 5 || (self.what != "large" && self.roll() % 2000 == 0) {
                let value = self.spoiled(&found.unwrap_or_default());
                // What grows is to stop at some time.
                if value.len() < 1 << 17 {
                    set(key, &value);
                    spoiled += 1;
                }
            }
        }
        self.number = self.number.wrapping_add(1);
        if self.number % 10 == 1 {
            log(&format!("neighbour: {spoiled} values are {}", self.what));
        }
    }

    fn create_http_context(&self, _: u32) -> Option<Box<dyn HttpContext>> {
        Some(Box::new(Stream(self.what == "panic")))
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }
}

fn log(text: &str) {
    let _ = proxy_wasm::hostcalls::log(proxy_wasm::types::LogLevel::Warn, text);
}

struct Stream(bool);

impl Context for Stream {}

impl HttpContext for Stream {
    fn on_http_request_headers(&mut self, _: usize, _: bool) -> Action {
        assert!(!self.0, "neighbour: panics, as it was told to");
        Action::Continue
    }
}
