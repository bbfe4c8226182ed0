//! Which buckets differ from those in shared data, and when they are written there.

use super::Table;
use crate::store::record::BUCKETS;
use crate::store::shared_data::{ALWAYS, NotSet, SharedData, bucket_name, seal};

/// Free bytes of a bucket that are not worth giving back.
const SPARE: usize = 64;

/// Where the buckets are published.
#[derive(Debug)]
pub(in crate::store) struct Destination<'a, D> {
    pub data: &'a D,
    /// The worker's number, if it has one. Without one nothing can be published.
    pub worker: Option<u16>,
}

impl Table {
    /// Writes a bucket into shared data; if that fails, a later [`Table::tick`] does.
    pub(super) fn publish<D: SharedData>(
        &mut self,
        to: &Destination<'_, D>,
        bucket: u16,
    ) -> Result<(), NotSet> {
        let index = usize::from(bucket);
        let bytes = self.buckets.get_mut(index).ok_or(NotSet)?;
        let name = to.worker.map(|worker| bucket_name(worker, bucket));
        let length = bytes.len();
        if length > 0 {
            seal(bytes);
        }
        let result = match name {
            Some(name) => to.data.set(&name, bytes, ALWAYS),
            None => Err(NotSet),
        };
        bytes.truncate(length);
        if let Some(unpublished) = self.unpublished.get_mut(index) {
            *unpublished = result.is_err();
        }
        result
    }

    /// Writes all buckets that differ.
    pub(in crate::store) fn publish_all<D: SharedData>(&mut self, to: &Destination<'_, D>) {
        if to.worker.is_none() {
            return;
        }
        for bucket in 0..BUCKETS {
            if self.unpublished.get(usize::from(bucket)) == Some(&true) {
                self.free_memory(bucket);
                let _ = self.publish(to, bucket);
            }
        }
    }

    /// A bucket differs, and is to be written by the next [`Table::tick`].
    pub(super) fn mark_unpublished(&mut self, bucket: u16) {
        if let Some(unpublished) = self.unpublished.get_mut(usize::from(bucket)) {
            *unpublished = true;
        }
    }

    /// Frees memory that a bucket no longer needs. Otherwise each bucket would keep the
    /// most that it ever needed, and memory would grow for hours.
    fn free_memory(&mut self, bucket: u16) {
        if let Some(bytes) = self.buckets.get_mut(usize::from(bucket)) {
            let enough = 2 * bytes.len().max(SPARE);
            if bytes.capacity() > 2 * enough {
                bytes.shrink_to(enough);
            }
        }
    }
}
