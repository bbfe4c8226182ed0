//! Envoy's shared data: what it offers, and the names of the store's keys in it.
//!
//! Shared data is a map from key to bytes that all workers of the process have in common.
//! Every value has a compare-and-swap (CAS) number. No key can be deleted.

/// Keys in shared data begin with this: plugins without a VM ID share one
/// namespace. The number is the version of what is stored, and changes with it.
pub(crate) const PREFIX: &[u8] = b"b3relay/6/";
/// The seed of the hash of keys. The worker that starts first chooses it, so that nobody
/// outside can choose request IDs that all fall into one bucket.
pub(super) const SEED: [u8; 14] = name(*b"seed");
/// The list of workers that have stored something and are alive.
pub(super) const WORKERS: [u8; 17] = name(*b"workers");
/// Always empty. Its CAS number changes whenever the list of workers does.
pub(super) const WORKERS_CHANGED: [u8; 17] = name(*b"changed");

/// The name of a key: [`PREFIX`], then `suffix`. Any other length than that of both does
/// not compile.
pub(crate) const fn name<const SUFFIX: usize, const LENGTH: usize>(
    suffix: [u8; SUFFIX],
) -> [u8; LENGTH] {
    const { assert!(LENGTH == PREFIX.len() + SUFFIX) };
    let mut name = [0; LENGTH];
    let (start, end) = name.split_at_mut(PREFIX.len());
    start.copy_from_slice(PREFIX);
    end.copy_from_slice(&suffix);
    name
}

/// The name of the key that holds a worker's bucket.
pub(super) fn bucket_name(worker: u16, bucket: u16) -> [u8; 14] {
    let [w, x] = worker.to_be_bytes();
    let [b, c] = bucket.to_be_bytes();
    name([w, x, b, c])
}

/// Envoy's shared data (`proxy_get_shared_data`, `proxy_set_shared_data`).
pub trait SharedData {
    /// The value and its CAS number; `None` if the key was never set.
    fn get(&self, key: &[u8]) -> Option<(Vec<u8>, u32)>;
    /// Sets the value if `cas` is 0, if the key's CAS number is `cas`, or if the
    /// key was never set.
    fn set(&self, key: &[u8], value: &[u8], cas: u32) -> Result<(), NotSet>;
}

/// The value was changed by somebody else, or the host refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotSet;

/// Ends a value with its length, u32. Any plugin with the same `vm_id` may write this one's
/// keys: half of a value could look like a whole one.
pub fn seal(value: &mut Vec<u8>) {
    let length = u32::try_from(value.len()).unwrap_or(u32::MAX);
    value.extend_from_slice(&length.to_le_bytes());
}

/// The inverse of [`seal`]; `None` if the value has another length.
pub(crate) fn unseal(value: &[u8]) -> Option<&[u8]> {
    let (bytes, length) = value.split_last_chunk()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    (bytes.len() == length).then_some(bytes)
}

/// A CAS number that sets only a key that was never set: Envoy ignores the CAS number of
/// such a key, and numbers keys from 1 upwards.
pub(crate) const IF_MISSING: u32 = u32::MAX;
/// A CAS number that sets a key in any case: no other worker writes this key.
pub(super) const ALWAYS: u32 = 0;

/// Shared data in memory, with Envoy's rules: for tests and for hosts other
/// than Envoy.
#[cfg(not(target_arch = "wasm32"))]
pub use memory::InMemory;

#[cfg(not(target_arch = "wasm32"))]
mod memory {
    use super::{NotSet, SharedData};
    use std::collections::HashMap;
    use std::sync::{Mutex, MutexGuard, PoisonError};

    /// Shared data in memory, with Envoy's rules.
    #[derive(Debug, Default)]
    pub struct InMemory(Mutex<Memory>);

    #[derive(Debug, Default)]
    struct Memory {
        values: HashMap<Vec<u8>, (Vec<u8>, u32)>,
        last_cas: u32,
    }

    impl InMemory {
        /// Keys, and bytes of all values.
        pub fn size(&self) -> (usize, usize) {
            let memory = self.lock();
            let bytes = memory.values.values().map(|(value, _)| value.len());
            (memory.values.len(), bytes.sum())
        }

        /// Every key, sorted.
        pub fn keys(&self) -> Vec<Vec<u8>> {
            let mut keys: Vec<_> = self.lock().values.keys().cloned().collect();
            keys.sort();
            keys
        }

        fn lock(&self) -> MutexGuard<'_, Memory> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner)
        }
    }

    impl SharedData for InMemory {
        fn get(&self, key: &[u8]) -> Option<(Vec<u8>, u32)> {
            self.lock().values.get(key).cloned()
        }

        fn set(&self, key: &[u8], value: &[u8], cas: u32) -> Result<(), NotSet> {
            let mut memory = self.lock();
            match memory.values.get(key) {
                Some((_, current)) if cas != 0 && *current != cas => return Err(NotSet),
                _ => {}
            }
            memory.last_cas = memory.last_cas.wrapping_add(1).max(1);
            let new = (value.to_vec(), memory.last_cas);
            memory.values.insert(key.to_vec(), new);
            Ok(())
        }
    }
}
