//! Who else there is: the list of workers.

use super::record::BUCKETS;
use super::shared_data::{ALWAYS, CHANGED, IF_MISSING, SharedData, WORKERS, bucket_name};
use crate::bytes::take;

/// Tries to change the list of workers before giving up. Each failure means
/// that another worker changed it in between.
const TRIES: u32 = 32;
/// More workers than that are not remembered: a look-up asks each.
const WORKERS_MOST: usize = 512;
/// How often a worker says that it is alive, in milliseconds.
const BEAT_MS: u64 = 10_000;
/// A worker that has not done so for so long is gone, with what it remembered.
const DEAD_MS: u64 = 60_000;

/// A worker: its number, and what tells it from others that have the number before
/// or after it.
pub type WorkerOf = (u16, u64);

/// This worker's place among the others, and what it knows of them.
#[derive(Debug)]
pub(super) struct Workers {
    /// Tells this worker from one that takes its number over.
    pub(super) nonce: u64,
    /// From the first insertion on.
    pub(super) number: Option<u16>,
    beat_ms: u64,
    /// Who was alive then is so until the next beat: after a pause of the whole machine,
    /// or a leap of its clock, everybody looks dead until he has said that he is not.
    known_ms: u64,
    pub(super) others: Vec<WorkerOf>,
    /// The list could be read to its end.
    pub(super) all_known: bool,
    /// The CAS number of [`CHANGED`] when `others` was read.
    version: Option<u32>,
}

impl Workers {
    pub(super) fn new(nonce: u64) -> Self {
        Self {
            nonce,
            number: None,
            beat_ms: 0,
            known_ms: u64::MAX,
            others: Vec::new(),
            all_known: true,
            version: None,
        }
    }

    /// Reads the list if it has changed.
    pub(super) fn follow(&mut self, data: &impl SharedData, now_ms: impl FnOnce() -> u64) {
        let version = data.get(CHANGED).map(|(_, version)| version);
        if version != self.version {
            self.version = version;
            self.read(data, now_ms());
        }
    }

    /// Injection now and then that this worker is alive, and looks who else is. False if it
    /// was taken for dead, and so has no number any more.
    pub(super) fn tick(&mut self, data: &impl SharedData, now_ms: u64) -> bool {
        let since = now_ms.abs_diff(self.beat_ms);
        if since < BEAT_MS {
            return true;
        }
        let leapt = since >= DEAD_MS / 2;
        self.known_ms = if leapt { self.beat_ms } else { now_ms };
        self.beat_ms = now_ms;
        let listed = self.beat(data, now_ms);
        if !listed {
            *self = Self::new(self.nonce);
        }
        self.read(data, now_ms);
        listed
    }

    /// Takes a number that no living worker has.
    pub(super) fn register(&mut self, data: &impl SharedData, now_ms: u64) -> Option<u16> {
        for _ in 0..TRIES {
            let (list, cas) = data.get(WORKERS).unwrap_or((Vec::new(), IF_MISSING));
            let mut workers: Vec<Worker> = Worker::read(&mut list.as_slice()).collect();
            workers.retain(|worker| {
                worker.is_alive([now_ms, self.known_ms]) && worker.nonce != self.nonce
            });
            if workers.len() >= WORKERS_MOST {
                return None;
            }
            let free = |number: &u16| !workers.iter().any(|worker| worker.number == *number);
            let number = (0..u16::MAX).find(free)?;
            workers.push(Worker {
                number,
                nonce: self.nonce,
                beat_ms: now_ms,
            });
            if data.set(WORKERS, &Worker::write(&workers), cas).is_err() {
                continue;
            }
            // What a worker left that had the number before and is gone.
            for bucket in 0..BUCKETS {
                let name = bucket_name(number, bucket);
                if data.get(&name).is_some_and(|(bytes, _)| !bytes.is_empty()) {
                    let _ = data.set(&name, &[], ALWAYS);
                }
            }
            self.number = Some(number);
            self.beat_ms = now_ms;
            // From now on every look-up reads this worker's buckets.
            data.set(CHANGED, &[], ALWAYS).ok()?;
            return Some(number);
        }
        None
    }

    /// Injection that this worker is alive. False if it is not in the list: taken for dead,
    /// after a pause of the whole machine.
    fn beat(&mut self, data: &impl SharedData, now_ms: u64) -> bool {
        let Some(number) = self.number else {
            return true;
        };
        for _ in 0..TRIES {
            let Some((list, cas)) = data.get(WORKERS) else {
                return true;
            };
            let mut workers: Vec<Worker> = Worker::read(&mut list.as_slice()).collect();
            let own = workers
                .iter_mut()
                .find(|worker| worker.number == number && worker.nonce == self.nonce);
            let Some(own) = own else { return false };
            own.beat_ms = now_ms;
            if data.set(WORKERS, &Worker::write(&workers), cas).is_ok() {
                break;
            }
        }
        true
    }

    fn read(&mut self, data: &impl SharedData, now_ms: u64) {
        let list = data.get(WORKERS).map(|(list, _)| list).unwrap_or_default();
        let mut rest = list.as_slice();
        self.others.clear();
        let times = [now_ms, self.known_ms];
        let others = Worker::read(&mut rest)
            .filter(|other| other.nonce != self.nonce && other.is_alive(times));
        self.others
            .extend(others.map(|other| (other.number, other.nonce)));
        self.all_known = rest.is_empty();
    }
}

/// One of the list of workers. Encoded as: number u16, nonce u64, time of the
/// last beat u64; integers little-endian.
#[derive(Clone, Copy, Debug)]
struct Worker {
    number: u16,
    nonce: u64,
    beat_ms: u64,
}

impl Worker {
    const LENGTH: usize = 18;

    /// At one of these times.
    fn is_alive(&self, times: [u64; 2]) -> bool {
        let near = |time: u64| time.abs_diff(self.beat_ms) < DEAD_MS;
        times.into_iter().any(near)
    }

    /// As many as there are whole; the rest stays.
    fn read<'a>(list: &'a mut &[u8]) -> impl Iterator<Item = Self> + 'a {
        std::iter::from_fn(move || {
            let mut one = list.get(..Self::LENGTH)?;
            let read = Self {
                number: u16::from_le_bytes(take(&mut one)?),
                nonce: u64::from_le_bytes(take(&mut one)?),
                beat_ms: u64::from_le_bytes(take(&mut one)?),
            };
            *list = list.get(Self::LENGTH..)?;
            Some(read)
        })
    }

    fn write(workers: &[Self]) -> Vec<u8> {
        let mut list = Vec::with_capacity(workers.len() * Self::LENGTH);
        for worker in workers {
            list.extend_from_slice(&worker.number.to_le_bytes());
            list.extend_from_slice(&worker.nonce.to_le_bytes());
            list.extend_from_slice(&worker.beat_ms.to_le_bytes());
        }
        list
    }
}
