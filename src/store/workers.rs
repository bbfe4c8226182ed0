//! Which workers there are: a list in shared data.
//!
//! A worker is added to the list when it stores its first request or judges its first call,
//! and gets a number that no living worker has. It renews its heartbeat there every ten seconds. A worker without
//! a heartbeat for a minute is dead: nobody reads its table any more, and its number is
//! free.
//!
//! If somebody else has spoiled the list, a worker writes it anew, with itself and those that
//! it knows. Others enter themselves when they renew their heartbeat.

use super::record::BUCKETS;
use super::shared_data::{
    ALWAYS, IF_MISSING, SharedData, WORKERS, WORKERS_CHANGED, bucket_name, seal, unseal,
};
use crate::bytes::{fnv1a, read_u16, read_u64};

/// Tries to change the list of workers before giving up. Each failure means
/// that another worker changed it in between.
const TRIES: u32 = 32;
/// Workers in the list. A look-up reads a bucket of each.
const WORKERS_MOST: usize = 512;
/// The time between two heartbeats, in milliseconds.
const HEARTBEAT_MS: u64 = 10_000;
/// A worker without a heartbeat for so long is dead, in milliseconds.
const DEAD_AFTER_MS: u64 = 60_000;
/// For so long after a spoiled list was written anew, workers may be missing in it.
const DOUBT_MS: u64 = 2 * HEARTBEAT_MS;

/// A worker: its number, and its nonce, which tells it from another one that has the same
/// number earlier or later.
pub type WorkerId = (u16, u64);

/// This worker's number, and the other workers.
#[derive(Debug)]
pub(super) struct Workers {
    /// Tells this worker from another one that has the same number earlier or later.
    pub(super) nonce: u64,
    /// `None` before the first insertion.
    pub(super) number: Option<u16>,
    /// The last heartbeat of this worker.
    heartbeat_ms: u64,
    /// A worker that was alive at this time counts as alive until the next heartbeat.
    /// After a pause of the whole machine, or a leap of its clock, no worker has a recent
    /// heartbeat.
    alive_at_ms: u64,
    /// The other workers that are alive.
    pub(super) others: Vec<WorkerId>,
    /// No worker is missing in the list, as far as is known.
    pub(super) all_known: bool,
    /// The CAS number of [`WORKERS_CHANGED`] when the list was read.
    version: Option<u32>,
}

impl Workers {
    pub(super) fn new(nonce: u64) -> Self {
        Self {
            nonce,
            number: None,
            heartbeat_ms: 0,
            alive_at_ms: u64::MAX,
            others: Vec::new(),
            all_known: true,
            version: None,
        }
    }

    /// This is the number of this worker, or of another one that is alive.
    pub(super) fn is_known(&self, number: u16) -> bool {
        self.number == Some(number) || self.others.iter().any(|other| other.0 == number)
    }

    /// Reads the list if it has changed. Returns whether it has.
    pub(super) fn refresh(&mut self, data: &impl SharedData, now_ms: impl FnOnce() -> u64) -> bool {
        let version = data.get(&WORKERS_CHANGED).map(|(_, version)| version);
        let has_changed = version != self.version;
        if has_changed {
            self.version = version;
            self.read(data, now_ms());
        }
        has_changed
    }

    /// Reads the list if it has changed, and every ten seconds, with a new heartbeat. False if
    /// this worker was taken for dead, and so has no number any more.
    pub(super) fn tick(&mut self, data: &impl SharedData, now_ms: u64) -> bool {
        let since = now_ms.abs_diff(self.heartbeat_ms);
        if since < HEARTBEAT_MS {
            self.refresh(data, || now_ms);
            return true;
        }
        let is_leap = since >= DEAD_AFTER_MS / 2;
        self.alive_at_ms = if is_leap { self.heartbeat_ms } else { now_ms };
        self.heartbeat_ms = now_ms;
        let is_listed = self.renew_heartbeat(data, now_ms);
        if !is_listed {
            *self = Self::new(self.nonce);
        }
        self.read(data, now_ms);
        is_listed
    }

    /// Adds this worker to the list, with a number that no living worker has. `None` if the
    /// list could not be written, or is full.
    pub(super) fn register(&mut self, data: &impl SharedData, now_ms: u64) -> Option<u16> {
        for _ in 0..TRIES {
            let (mut list, cas) = self.list(data, now_ms);
            let workers = &mut list.workers;
            workers.retain(|worker| {
                worker.is_alive([now_ms, self.alive_at_ms]) && worker.nonce != self.nonce
            });
            if workers.len() >= WORKERS_MOST {
                return None;
            }
            let free = |number: &u16| !workers.iter().any(|worker| worker.number == *number);
            // Who has which number is not known after the list was spoiled.
            let first = match list.given {
                u16::MAX => fnv1a(0, &self.nonce.to_le_bytes()) as u16 / 2,
                _ => 0,
            };
            let number = (first..u16::MAX).find(free)?;
            workers.push(Worker {
                number,
                nonce: self.nonce,
                heartbeat_ms: now_ms,
            });
            let given = list.given;
            list.given = given.max(number + 1);
            if data.set(&WORKERS, &list.encode(), cas).is_err() {
                continue;
            }
            // Empties the buckets of a dead worker that had the number, if one had.
            let buckets = if number < given { BUCKETS } else { 0 };
            for bucket in 0..buckets {
                let name = bucket_name(number, bucket);
                if data.get(&name).is_some_and(|(bytes, _)| !bytes.is_empty()) {
                    let _ = data.set(&name, &[], ALWAYS);
                }
            }
            self.number = Some(number);
            self.heartbeat_ms = now_ms;
            // From now on the other workers read this worker's buckets.
            data.set(&WORKERS_CHANGED, &[], ALWAYS).ok()?;
            return Some(number);
        }
        None
    }

    /// Renews this worker's heartbeat in the list. False if it is not in the list: after a
    /// pause of the whole machine it was taken for dead.
    fn renew_heartbeat(&mut self, data: &impl SharedData, now_ms: u64) -> bool {
        let Some(number) = self.number else {
            return true;
        };
        for _ in 0..TRIES {
            let (mut list, cas) = self.list(data, now_ms);
            let own = |worker: &&mut Worker| (worker.number, worker.nonce) == (number, self.nonce);
            let Some(own) = list.workers.iter_mut().find(own) else {
                return false;
            };
            own.heartbeat_ms = now_ms;
            if data.set(&WORKERS, &list.encode(), cas).is_ok() {
                if now_ms < list.doubt_until_ms {
                    // Others may have seen the spoiled one.
                    let _ = data.set(&WORKERS_CHANGED, &[], ALWAYS);
                }
                break;
            }
        }
        true
    }

    /// Reads the list.
    fn read(&mut self, data: &impl SharedData, now_ms: u64) {
        let (list, _) = self.list(data, now_ms);
        let times = [now_ms, self.alive_at_ms];
        let others = list
            .workers
            .iter()
            .filter(|other| other.nonce != self.nonce && other.is_alive(times));
        let others: Vec<_> = others.map(|other| (other.number, other.nonce)).collect();
        let known = std::mem::replace(&mut self.others, others);
        self.all_known = now_ms >= list.doubt_until_ms;
        if !self.all_known {
            // Who wrote the list anew did not know them.
            let missing = known.into_iter().filter(|known| !self.is_known(known.0));
            let missing: Vec<_> = missing.collect();
            self.others.extend(missing);
        }
    }

    /// The list, and its CAS number. In the place of one that was spoiled: the workers that
    /// are known.
    fn list(&self, data: &impl SharedData, now_ms: u64) -> (List, u32) {
        let Some((value, cas)) = data.get(&WORKERS) else {
            return (List::default(), IF_MISSING);
        };
        let known = || {
            let own = self.number.map(|number| (number, self.nonce));
            let known = self.others.iter().copied().chain(own);
            List {
                given: u16::MAX,
                doubt_until_ms: now_ms.saturating_add(DOUBT_MS),
                workers: known
                    .map(|(number, nonce)| Worker {
                        number,
                        nonce,
                        heartbeat_ms: now_ms,
                    })
                    .collect(),
            }
        };
        (List::decode(&value).unwrap_or_else(known), cas)
    }
}

/// The list of workers. Encoded as: how many numbers were ever given u16, until when workers
/// may be missing u64, each worker, and the length of all that ([`seal`]); integers are
/// little-endian.
#[derive(Default)]
struct List {
    workers: Vec<Worker>,
    /// A number from this on was never given to a worker.
    given: u16,
    /// Until then, in milliseconds since the epoch, workers may be missing; 0 if the list was
    /// never spoiled.
    doubt_until_ms: u64,
}

impl List {
    /// `None` if somebody else has spoiled it.
    fn decode(value: &[u8]) -> Option<Self> {
        let mut rest = unseal(value)?;
        let given = read_u16(&mut rest)?;
        let doubt_until_ms = read_u64(&mut rest)?;
        let workers = std::iter::from_fn(|| Worker::decode(&mut rest)).collect();
        rest.is_empty().then_some(Self {
            workers,
            given,
            doubt_until_ms,
        })
    }

    fn encode(&self) -> Vec<u8> {
        let mut value = Vec::with_capacity(14 + self.workers.len() * Worker::LENGTH);
        value.extend_from_slice(&self.given.to_le_bytes());
        value.extend_from_slice(&self.doubt_until_ms.to_le_bytes());
        for worker in &self.workers {
            worker.encode(&mut value);
        }
        seal(&mut value);
        value
    }
}

/// A worker in the list. Encoded as: number u16, nonce u64, time of the last heartbeat in
/// milliseconds u64.
#[derive(Clone, Copy, Debug)]
struct Worker {
    number: u16,
    nonce: u64,
    heartbeat_ms: u64,
}

impl Worker {
    const LENGTH: usize = 18;

    /// It is alive at one of these times.
    fn is_alive(&self, times: [u64; 2]) -> bool {
        let near = |time: u64| time.abs_diff(self.heartbeat_ms) < DEAD_AFTER_MS;
        times.into_iter().any(near)
    }

    /// Takes one off the beginning; leaves what cannot be decoded.
    fn decode(list: &mut &[u8]) -> Option<Self> {
        let mut one = list.get(..Self::LENGTH)?;
        let read = Self {
            number: read_u16(&mut one)?,
            nonce: read_u64(&mut one)?,
            heartbeat_ms: read_u64(&mut one)?,
        };
        *list = list.get(Self::LENGTH..)?;
        Some(read)
    }

    fn encode(&self, list: &mut Vec<u8>) {
        list.extend_from_slice(&self.number.to_le_bytes());
        list.extend_from_slice(&self.nonce.to_le_bytes());
        list.extend_from_slice(&self.heartbeat_ms.to_le_bytes());
    }
}
