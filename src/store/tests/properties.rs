//! Properties that hold whatever happens, in whichever order.

use super::*;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    Insert(usize, u8, u8),
    End(usize),
    Find(usize, u8),
    Wait(u64),
    Tick(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (0usize..3, 0u8..6, any::<u8>()).prop_map(|(w, k, p)| Step::Insert(w, k, p)),
        (0usize..64).prop_map(Step::End),
        (0usize..3, 0u8..6).prop_map(|(w, k)| Step::Find(w, k)),
        (0u64..90).prop_map(Step::Wait),
        (0usize..3).prop_map(Step::Tick),
    ];
    proptest::collection::vec(step, 0..120)
}

/// One of several things that happen where there is little room.
#[derive(Clone, Debug)]
enum Crowded {
    /// Worker, keys as bits, bytes of headers.
    Insert(usize, u8, usize),
    End(usize),
    Find(usize, u8),
    /// Worker, key, the request.
    Alias(usize, u8, usize),
    /// How many writes fail from now on.
    Refuse(u32),
    Wait(u64),
    Tick(usize),
}

fn crowded() -> impl Strategy<Value = Vec<Crowded>> {
    let sizes = prop_oneof![Just(0usize), 1usize..40, 300usize..900, Just(8192)];
    let step = prop_oneof![
        6 => (0usize..3, 1u8..64, sizes).prop_map(|(w, k, h)| Crowded::Insert(w, k, h)),
        4 => (0usize..64).prop_map(Crowded::End),
        8 => (0usize..3, 0u8..8).prop_map(|(w, k)| Crowded::Find(w, k)),
        2 => (0usize..3, 0u8..8, 0usize..64).prop_map(|(w, k, n)| Crowded::Alias(w, k, n)),
        1 => (0u32..3).prop_map(Crowded::Refuse),
        2 => (0u64..90).prop_map(Crowded::Wait),
        1 => (0usize..3).prop_map(Crowded::Tick),
    ];
    proptest::collection::vec(step, 0..150)
}

/// Refuses to write buckets as often as it is told to.
#[derive(Default)]
struct Refusing(InMemory, std::cell::Cell<u32>);

impl SharedData for Refusing {
    fn get(&self, key: &[u8]) -> Option<(Vec<u8>, u32)> {
        self.0.get(key)
    }

    fn set(&self, key: &[u8], value: &[u8], cas: u32) -> Result<(), NotSet> {
        if key.len() == bucket_name(0, 0).len() && self.1.get() > 0 {
            self.1.set(self.1.get() - 1);
            return Err(NotSet);
        }
        self.0.set(key, value, cas)
    }
}

/// A request of [`Crowded`].
struct Served {
    worker: usize,
    ticket: Ticket,
    keys: Vec<Key>,
    headers: Vec<u8>,
    ended: Option<u64>,
}

proptest! {
    /// Where there is little room, and some writes fail: nothing is found that is not so,
    /// and nobody believes to know all where something is missing.
    #[test]
    fn complete_is_true_only_if_nothing_is_missing(steps in crowded(), room in 0usize..3) {
        let limits = [
            Limits { entries: 5, ..LIMITS },
            Limits { bytes: 1500, ..MANY },
            Limits { bucket_bytes: 600, ..MANY },
        ][room];
        let data = Refusing::default();
        let mut workers: Vec<_> = (0..3).map(|n| Store::open(&data, n)).collect();
        let mut all: Vec<Served> = Vec::new();
        let mut aliases: Vec<(Key, usize)> = Vec::new();
        // What a worker could not write, others need not know before it ticks.
        let mut behind = [false; 3];
        let mut now = 1_000;
        for step in steps {
            let refused = data.1.get();
            let mut by = None;
            match step {
                Crowded::Insert(w, mask, length) => {
                    let keys = (0..6).filter(|bit| mask & (1 << bit) != 0).take(KEYS_MOST);
                    let keys: Vec<Key> = keys.map(|n| key(&n.to_string())).collect();
                    let context = all.len().to_le_bytes();
                    let headers = vec![all.len() as u8; length];
                    let done = workers[w].insert(&data, limits, now, &keys, &context, &headers);
                    all.push(Served { worker: w, ticket: done.ticket, keys, headers, ended: None });
                    by = Some(w);
                }
                Crowded::End(n) if !all.is_empty() => {
                    let n = n % all.len();
                    let served = &mut all[n];
                    if served.ended.is_none() {
                        served.ended = Some(now);
                        workers[served.worker].end(&data, limits, now, served.ticket);
                        by = Some(served.worker);
                    }
                }
                Crowded::Alias(w, k, n) if !all.is_empty() => {
                    let n = n % all.len();
                    let name = key(&k.to_string());
                    let of = ((all[n].worker as u16, all[n].ticket.id()), all[n].ticket.bucket().unwrap());
                    // The numbers of the workers are those in which they came.
                    let of = ((workers[all[n].worker].workers.number.unwrap_or(99), of.0.1), of.1);
                    workers[w].alias(&data, limits, now, &name, of, true);
                    aliases.push((name, n));
                    by = Some(w);
                }
                Crowded::Find(w, k) => {
                    let name = key(&k.to_string());
                    let Candidates { found, complete, .. } = find(&mut workers[w], &data, now, &name);
                    let mut seen = Vec::new();
                    for found in &found {
                        let n = usize::from_le_bytes(found.context[..].try_into().unwrap());
                        let served = &all[n];
                        prop_assert!(!seen.contains(&n));
                        seen.push(n);
                        match found.matched_by {
                            MatchedBy::Own => prop_assert!(served.keys.contains(&name)),
                            _ => prop_assert!(aliases.contains(&(name.clone(), n))),
                        }
                        let known = !behind[served.worker] || served.worker == w;
                        prop_assert!(!known || found.ended == served.ended.is_some());
                        prop_assert!(!known || served.ended.is_none_or(|at| now - at < limits.grace_ms));
                        let headers = workers[w].headers(&data, found);
                        prop_assert!(headers.is_none_or(|headers| headers == served.headers));
                    }
                    let hidden = |worker: usize| behind[worker] && worker != w;
                    let missing = all.iter().enumerate().filter(|(n, served)| {
                        served.ended.is_none()
                            && served.keys.contains(&name)
                            && !seen.contains(n)
                            && !hidden(served.worker)
                    });
                    prop_assert!(!complete || missing.count() == 0);
                }
                Crowded::Refuse(writes) => data.1.set(writes),
                Crowded::Wait(ms) => now += ms,
                Crowded::Tick(w) => {
                    behind[w] = false;
                    workers[w].tick(&data, now);
                    by = Some(w);
                }
                Crowded::End(_) | Crowded::Alias(..) => {}
            }
            if let Some(w) = by {
                behind[w] |= data.1.get() != refused;
            }
        }
        // When all have been served, nothing stays.
        data.1.set(0);
        for served in all.iter().filter(|served| served.ended.is_none()) {
            workers[served.worker].end(&data, limits, now, served.ticket);
        }
        for worker in &mut workers {
            worker.tick(&data, now + 60_000);
            prop_assert_eq!(worker.table.size(), (0, 0, 0));
        }
    }

    /// Against a list of everything that ever happened, for three workers
    /// with room enough: exactly what is live or ended within the grace.
    #[test]
    fn every_request_is_found_while_it_is_stored(steps in steps()) {
        let data = InMemory::default();
        let mut workers: Vec<_> = (0..3).map(|n| Worker::new(&data, n, MANY)).collect();
        // Worker, ticket, key, payload, end.
        let mut all: Vec<(usize, Ticket, u8, u8, Option<u64>)> = Vec::new();
        let mut now = 1_000;
        for step in steps {
            match step {
                Step::Insert(w, k, p) => {
                    let done = workers[w].insert(now, &k.to_string(), &[p]);
                    prop_assert_eq!(done.evicted, 0);
                    all.push((w, done.ticket, k, p, None));
                }
                Step::End(n) if !all.is_empty() => {
                    let n = n % all.len();
                    workers[all[n].0].end(now, all[n].1);
                    all[n].4.get_or_insert(now);
                }
                Step::End(_) => {}
                Step::Wait(ms) => now += ms,
                Step::Tick(w) => workers[w].tick(now),
                Step::Find(w, k) => {
                    let mut found = workers[w].contexts(now, &k.to_string());
                    let alive = all.iter().filter(|e| e.2 == k && e.4.is_none_or(|end| now - end < 100));
                    let mut expected: Vec<_> = alive.map(|e| vec![e.3]).collect();
                    found.sort();
                    expected.sort();
                    prop_assert_eq!(found, expected);
                }
            }
        }
    }

    #[test]
    fn any_bytes_in_shared_data_are_survived(mut bytes: Vec<u8>, sealed: bool, at in 0usize..5) {
        if sealed {
            seal(&mut bytes);
        }
        let data = InMemory::default();
        let mut here = Worker::new(&data, 7, LIMITS);
        let mut there = Worker::new(&data, 8, LIMITS);
        let done = here.insert(0, "a", b"ctx");
        there.insert(0, "a", b"ctx");
        let keys = data.keys();
        let _ = data.set(&keys[at % keys.len()], &bytes, 0);
        here.find(1, "a");
        here.tick(20_000);
        here.end(20_001, done.ticket);
        here.insert(20_002, "b", b"ctx");
        prop_assert_eq!(here.contexts(20_002, "b"), [b"ctx"]);
        Worker::new(&data, 9, LIMITS).insert(20_003, "c", b"ctx");
    }

    #[test]
    fn memory_is_bounded(keys in proptest::collection::vec("[a-z0-9-]{1,40}", 1..400)) {
        let data = InMemory::default();
        let limits = Limits { entries: 50, bytes: 4000, grace_ms: 0, ..LIMITS };
        let mut worker = Worker::new(&data, 7, limits);
        for text in &keys {
            worker.insert(0, text, &[0; 50]);
        }
        let (entries, bytes) = worker.store.size();
        prop_assert!(entries <= 50 && bytes <= 4000);
        // The seed, the list, what is remembered, and what is known to be missing.
        let beside = worker.store.table.size().2;
        let lengths = 4 * worker.store.table.published();
        prop_assert_eq!(data.size().1, 8 + 14 + 18 + bytes + beside + lengths);
        prop_assert!(beside <= usize::from(BUCKETS) * (32 * 17 + 5));
    }
}
