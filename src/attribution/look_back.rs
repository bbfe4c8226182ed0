//! Calls that were left alone, and of which it is known later to which request they belong.
//!
//! What a request has done is known best when it ends: what seemed possible has not
//! happened. The call has gone by then, but can still be told.

use super::{Attribution, number, request_of};
use crate::store::RequestRef;

/// A call that was left alone.
#[derive(Debug, Default)]
pub struct LeftAlone {
    /// Its number.
    pub call: u64,
    /// When it began, in microseconds; filled in by [`Attribution::leave_alone`].
    pub at_us: u64,
    /// The probability from which on its request is told.
    pub least: f32,
    /// Where it goes.
    pub host: Vec<u8>,
    /// Its own request ID.
    pub request_id: Vec<u8>,
}

/// A call that belonged to a request, as was known when that ended.
#[derive(Debug)]
pub struct Told {
    /// The call.
    pub call: LeftAlone,
    /// The request's number.
    pub request: u64,
    /// The bucket of the store that has it.
    pub bucket: u16,
    /// The probability that it made the call, from 0 to 1.
    pub share: f32,
}

impl Told {
    /// The request, for [`crate::store::Store::fetch_ended`].
    pub fn request(&self) -> RequestRef {
        request_of(self.request)
    }
}

impl Attribution {
    /// A call was left alone, with its number of [`Attribution::judge`]: its request is to be
    /// told when it is known.
    pub fn leave_alone(&mut self, mut call: LeftAlone) {
        call.at_us = self.clock.latest();
        if let Some(writer) = &self.writer
            && call.at_us >= self.blind_until_us
        {
            call.call = number(writer.worker(), call.call);
            self.tracker.leave_alone(call);
        }
    }

    /// The calls that were left alone, and whose request is known since the last time.
    pub fn take_told(&mut self) -> Vec<Told> {
        self.tracker.take_told()
    }
}
