//! The hosts to which the application forwards keys.

/// A host is forgotten after so many seconds without a call that carried a key.
const FORGOTTEN_S: u16 = 600;
/// Hosts at most.
const HOSTS_MOST: usize = 64;
/// A second is counted no earlier than this after the last one, in microseconds: Envoy
/// ticks for each configuration of the module, each second.
const SECOND_US: u64 = 900_000;

/// The hosts to which calls carried a key, of late.
#[derive(Debug, Default)]
pub(super) struct KeyedHosts {
    /// Hashes of hosts, and seconds since the last such call.
    hosts: Vec<(u32, u16)>,
    /// When a second was last counted.
    counted_us: u64,
}

impl KeyedHosts {
    /// A call to this host carried a key.
    pub(super) fn add(&mut self, host: u32) {
        if let Some(known) = self.hosts.iter_mut().find(|(known, _)| *known == host) {
            known.1 = 0;
            return;
        }
        if self.hosts.len() >= HOSTS_MOST {
            let hosts = self.hosts.iter().enumerate();
            let oldest = hosts.max_by_key(|(_, (_, seconds))| *seconds);
            if let Some((at, _)) = oldest {
                self.hosts.swap_remove(at);
            }
        }
        self.hosts.push((host, 0));
    }

    /// Calls to this host carried a key, of late.
    pub(super) fn contains(&self, host: u32) -> bool {
        self.hosts.iter().any(|(known, _)| *known == host)
    }

    /// To be called every second or so.
    pub(super) fn tick(&mut self, now_us: u64) {
        if now_us.abs_diff(self.counted_us) > SECOND_US {
            self.counted_us = now_us;
            self.hosts.retain_mut(|(_, seconds)| {
                *seconds += 1;
                *seconds < FORGOTTEN_S
            });
        }
    }
}
