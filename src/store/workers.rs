//! Which workers there are: a list in shared data.
//!
//! A worker is added to the list when it stores its first request or judges its first call,
//! and gets a number that no living worker has. It renews its heartbeat there every ten seconds. A worker without
//! a heartbeat for a minute is dead: nobody reads its table any more, and its number is
//! free.

use super::record::BUCKETS;
use super::shared_data::{ALWAYS, IF_MISSING, SharedData, WORKERS, WORKERS_CHANGED, bucket_name};
use crate::bytes::{read_u16, read_u64};

/// Tries to change the list of workers before giving up. Each failure means
/// that another worker changed it in between.
const TRIES: u32 = 32;
/// Workers in the list. A look-up reads a bucket of each.
const WORKERS_MOST: usize = 512;
/// The time between two heartbeats, in milliseconds.
const HEARTBEAT_MS: u64 = 10_000;
/// A worker without a heartbeat for so long is dead, in milliseconds.
const DEAD_AFTER_MS: u64 = 60_000;

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
    /// The whole list could be decoded.
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

    /// Reads the list if it has changed.
    pub(super) fn refresh(&mut self, data: &impl SharedData, now_ms: impl FnOnce() -> u64) {
        let version = data.get(&WORKERS_CHANGED).map(|(_, version)| version);
        if version != self.version {
            self.version = version;
            self.read(data, now_ms());
        }
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
            let (list, cas) = data.get(&WORKERS).unwrap_or((Vec::new(), IF_MISSING));
            let List {
                mut workers, given, ..
            } = List::decode(&list);
            workers.retain(|worker| {
                worker.is_alive([now_ms, self.alive_at_ms]) && worker.nonce != self.nonce
            });
            if workers.len() >= WORKERS_MOST {
                return None;
            }
            let free = |number: &u16| !workers.iter().any(|worker| worker.number == *number);
            let number = (0..u16::MAX).find(free)?;
            workers.push(Worker {
                number,
                nonce: self.nonce,
                heartbeat_ms: now_ms,
            });
            let list = List::encode(given.max(number + 1), &workers);
            if data.set(&WORKERS, &list, cas).is_err() {
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
            let Some((list, cas)) = data.get(&WORKERS) else {
                return true;
            };
            let List {
                mut workers, given, ..
            } = List::decode(&list);
            let own = workers
                .iter_mut()
                .find(|worker| worker.number == number && worker.nonce == self.nonce);
            let Some(own) = own else { return false };
            own.heartbeat_ms = now_ms;
            if data
                .set(&WORKERS, &List::encode(given, &workers), cas)
                .is_ok()
            {
                break;
            }
        }
        true
    }

    /// Reads the list.
    fn read(&mut self, data: &impl SharedData, now_ms: u64) {
        let list = data.get(&WORKERS).map(|(list, _)| list).unwrap_or_default();
        let List {
            workers, is_whole, ..
        } = List::decode(&list);
        let times = [now_ms, self.alive_at_ms];
        let others = workers
            .iter()
            .filter(|other| other.nonce != self.nonce && other.is_alive(times));
        self.others.clear();
        self.others
            .extend(others.map(|other| (other.number, other.nonce)));
        self.all_known = is_whole;
    }
}

/// The list of workers. Encoded as: how many numbers were ever given u16, and then each
/// worker; integers are little-endian.
struct List {
    /// As many as could be decoded.
    workers: Vec<Worker>,
    /// A number from this on was never given to a worker.
    given: u16,
    /// All of it could be decoded.
    is_whole: bool,
}

impl List {
    /// No bytes are the list before the first worker.
    fn decode(mut list: &[u8]) -> Self {
        let given = match list {
            [] => Some(0),
            _ => read_u16(&mut list),
        };
        Self {
            workers: std::iter::from_fn(|| Worker::decode(&mut list)).collect(),
            given: given.unwrap_or(u16::MAX),
            is_whole: list.is_empty() && given.is_some(),
        }
    }

    fn encode(given: u16, workers: &[Worker]) -> Vec<u8> {
        let mut list = Vec::with_capacity(2 + workers.len() * Worker::LENGTH);
        list.extend_from_slice(&given.to_le_bytes());
        for worker in workers {
            worker.encode(&mut list);
        }
        list
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
