//! To which calls the application gives keys.
//!
//! Where it does, a call without a key belongs to no request: to a job, or to a request that
//! has gone. Where it does so for a part of the calls only, one without a key tells nothing.

use super::Attribution;
use crate::store::SharedData;

/// Forgotten after so many seconds without a call that carries a key.
const FORGOTTEN_S: u16 = 600;
/// Hosts and kinds of calls at most.
const ENTRIES_MOST: usize = 128;
/// Calls after which half is forgotten.
const HALVED_AT: u16 = 200;
/// Calls after which a kind is known, and a host. Until then, one with a key is enough: late
/// calls for a request that has gone are few, and all without one.
const KNOWN: u16 = 8;
const KNOWN_HOST: u16 = 16;
/// A second is counted no earlier than this after the last one, in microseconds: Envoy
/// ticks for each configuration of the module, each second.
const SECOND_US: u64 = 900_000;

/// A host, or a kind of call.
#[derive(Clone, Copy, Debug)]
struct Entry {
    /// [`super::signature::host`], or the first hash of [`super::signature::kind`].
    hash: u32,
    /// Calls with a key, and without one.
    keyed: u16,
    keyless: u16,
    /// Seconds since the last one with a key.
    seconds: u16,
}

impl Entry {
    /// At least this part of the calls carries a key, in per cent.
    fn is_keyed(&self, percent: u32) -> bool {
        let all = u32::from(self.keyed) + u32::from(self.keyless);
        100 * u32::from(self.keyed) >= percent * all
    }
}

/// Whether calls carried keys, of late, by host and by kind.
#[derive(Debug, Default)]
pub(super) struct Keyed {
    entries: Vec<Entry>,
    /// When a second was last counted.
    counted_us: u64,
}

impl Keyed {
    /// A call to this host, or of this kind, carried a key.
    pub(super) fn add(&mut self, hash: u32) {
        self.entry(hash, true);
    }

    /// A call to this host, or of this kind, carried none. That is of interest only where
    /// others have.
    pub(super) fn add_keyless(&mut self, hash: u32) {
        self.entry(hash, false);
    }

    fn entry(&mut self, hash: u32, keyed: bool) {
        let known = self.entries.iter().position(|known| known.hash == hash);
        if known.is_none() && self.entries.len() >= ENTRIES_MOST {
            let entries = self.entries.iter().enumerate();
            let oldest = entries.max_by_key(|(_, entry)| entry.seconds);
            if let Some((at, _)) = oldest {
                self.entries.swap_remove(at);
            }
        }
        let at = known.unwrap_or_else(|| {
            self.entries.push(Entry {
                hash,
                keyed: 0,
                keyless: 0,
                seconds: 0,
            });
            self.entries.len() - 1
        });
        let Some(entry) = self.entries.get_mut(at) else {
            return;
        };
        if keyed {
            entry.seconds = 0;
        }
        *(if keyed {
            &mut entry.keyed
        } else {
            &mut entry.keyless
        }) += 1;
        if entry.keyed + entry.keyless > HALVED_AT {
            // What has come once is not forgotten by this.
            entry.keyed = entry.keyed.div_ceil(2);
            entry.keyless /= 2;
        }
    }

    fn of(&self, hash: u32) -> Option<&Entry> {
        self.entries.iter().find(|known| known.hash == hash)
    }

    /// A call to this host, or of this kind, has come.
    pub(super) fn is_known(&self, hash: u32) -> bool {
        self.of(hash).is_some()
    }

    /// Calls to this host carry keys, but for few.
    pub(super) fn is_keyed_host(&self, host: u32) -> bool {
        let few = |host: &Entry| host.keyed + host.keyless < KNOWN_HOST;
        self.of(host)
            .is_some_and(|host| few(host) || host.is_keyed(90))
    }

    /// Calls of this kind to this host carry keys, or those to this host if little is known
    /// of the kind.
    pub(super) fn is_keyed(&self, host: u32, kind: u32) -> bool {
        let known = |kind: &&Entry| kind.keyed + kind.keyless >= KNOWN;
        let kind = self.of(kind).filter(known);
        kind.or_else(|| self.of(host))
            .is_some_and(|entry| entry.is_keyed(50))
    }

    /// To be called every second or so.
    pub(super) fn tick(&mut self, now_us: u64) {
        if now_us.abs_diff(self.counted_us) > SECOND_US {
            self.counted_us = now_us;
            self.entries.retain_mut(|entry| {
                entry.seconds += 1;
                entry.seconds < FORGOTTEN_S
            });
        }
    }
}

impl Attribution {
    /// A call to this host ([`super::signature::host`]) carried the key of a request.
    pub fn carries_key(&mut self, host: u32) {
        self.keyed.add(host);
    }

    /// A call to this host ([`super::signature::host`]) has carried a key, of late.
    pub fn gives_keys(&self, host: u32) -> bool {
        self.keyed.is_known(host)
    }

    /// A call to this host, to which others carried a key, carries none: whether the
    /// application gives keys to such calls. If so, it belongs to no request in flight, as one
    /// with a key that is not known, such as a request ID, belongs to a request that has gone.
    /// `kind`: [`super::signature::kind`].
    pub fn lacks_key(&mut self, data: &impl SharedData, now_us: u64, host: u32, kind: u32) -> bool {
        let is_keyed_host = self.keyed.is_keyed_host(host);
        self.keyed.add_keyless(host);
        if is_keyed_host {
            return true;
        }
        let is_keyed = self.keyed.is_keyed(host, kind);
        self.keyed.add_keyless(kind);
        if is_keyed {
            // Calls with a key are told apart by their kind as long as this is awake.
            self.wake(data, now_us);
        }
        is_keyed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: u32 = 1;

    #[test]
    fn a_kind_that_never_carries_a_key_is_not_keyed_by_another_of_its_host() {
        let mut keyed = Keyed::default();
        for _ in 0..20 {
            keyed.add(HOST);
            keyed.add(10);
            assert!(keyed.is_keyed(HOST, 11), "nothing else is known of it");
        }
        assert!(keyed.is_keyed_host(HOST));
        for _ in 0..KNOWN {
            keyed.add_keyless(HOST);
            keyed.add_keyless(11);
        }
        assert!(!keyed.is_keyed_host(HOST));
        assert!(keyed.is_keyed(HOST, 10));
        assert!(!keyed.is_keyed(HOST, 11));
        assert!(!keyed.is_keyed(2, 12));
    }

    #[test]
    fn keys_on_a_tenth_of_the_calls_name_no_others() {
        let mut keyed = Keyed::default();
        for n in 0..1000u32 {
            match n % 10 {
                0 => keyed.add(HOST),
                _ => keyed.add_keyless(HOST),
            }
            let host = keyed.is_keyed_host(HOST);
            assert_eq!(host, n + 1 < KNOWN_HOST.into(), "{n}");
            assert!(n < 2 || !keyed.is_keyed(HOST, 10), "{n}");
        }
    }

    /// What has been so for long counts no more than some hundred calls.
    #[test]
    fn an_application_that_gives_keys_no_more() {
        for keyless in 0..2 {
            let mut keyed = Keyed::default();
            for _ in 0..70_000 {
                keyed.add(HOST);
                keyed.add(10);
            }
            (0..keyless).for_each(|_| keyed.add_keyless(10));
            assert!(keyed.is_keyed_host(HOST) && keyed.is_keyed(HOST, 10));
            for _ in 0..2 * HALVED_AT {
                keyed.add_keyless(HOST);
                keyed.add_keyless(10);
            }
            assert!(!keyed.is_keyed_host(HOST) && !keyed.is_keyed(HOST, 10));
        }
    }

    #[test]
    fn memory_does_not_grow() {
        let mut keyed = Keyed::default();
        for n in 0..10_000 {
            keyed.add(n);
            assert!(keyed.entries.len() <= ENTRIES_MOST);
        }
        for second in 1..=u64::from(FORGOTTEN_S) + 1 {
            keyed.tick(second * 1_000_000);
        }
        assert!(keyed.entries.is_empty());
    }
}
