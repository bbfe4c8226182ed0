//! To which request does a call belong that carries neither a context nor a key?
//!
//! The last steps of the look-up that [`crate::filter`] makes for each call: the
//! only request in flight; an identifier that a call shares with one request in
//! flight; what requests of each route do, and when; and else none.
//!
//! | module | what it knows |
//! |---|---|
//! | [`signature`] | the route of a request, the kind of a call, and the identifiers in both |
//! | [`tracker`] | the requests in flight, and to which of them a call belongs |
//! | `catching_up` | tells the tracker what the journals of all workers say, bit by bit |
//! | `clock` | the time, where the machine's clock is set back |
//! | `exclusive` | whether a call belongs to the only request in flight, or to the background |
//! | `inferred` | to which of several requests in flight a call belongs; off by default |
//! | [`journal`] | which requests and calls of each worker have begun and ended |
//! | [`look_back`] | calls that were left alone, and whose request is known later |
//! | `pool` | which of the sidecar's connections to the application a request came through |
//! | `keyed` | the calls to which the application gives keys, by host and by kind |
//!
//! Each worker that judges calls has a [`Tracker`] of its own, which gets the events in the
//! journals of all workers, in the order of time.

mod buckets;
mod catching_up;
mod clock;
mod exclusive;
mod in_flight;
mod inferred;
pub mod journal;
mod keyed;
pub mod look_back;
mod names;
mod numbers;
mod pool;
pub mod signature;
pub mod tracker;

use crate::store::{Found, RequestRef, SharedData, Store, Ticket, shared_data_name};
use clock::Clock;
use journal::{Event, Reader, Writer};
use keyed::Keyed;
use signature::Token;
use tracker::{Basis, Tracker, Verdict};

/// For so long after events were lost there may be requests in flight that nothing
/// is known of, in microseconds.
const BLIND_US: u64 = 10_000_000;
/// A worker that has judged no call for so long stops reading the journals.
const READS_US: u64 = 300_000_000;
/// For so long after a call that had to be judged, calls with a known request are written
/// into the journal, too.
const AWAKE_MS: u64 = 60_000;
/// The key in shared data of the time when a call had to be judged in any worker:
/// milliseconds, u64, little-endian.
const AWAKE: [u8; 15] = shared_data_name(*b"awake");

/// The signature of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// [`signature::kind`]
    pub kind: [u32; 2],
    /// [`signature::tokens`]
    pub tokens: Vec<Token>,
    /// The application's port of the connection that it came through; 0: not known.
    pub port: u16,
}

/// What one worker knows of the requests in flight, and of the calls of the application.
#[derive(Debug, Default)]
pub struct Attribution {
    writer: Option<Writer>,
    readers: Vec<Reader>,
    /// What was read and the tracker has not been told of, the latest first.
    ahead: Vec<(u64, u16, Event)>,
    tracker: Tracker,
    next_call: u64,
    /// For what the tracker is told, and all times here.
    clock: Clock,
    judged_us: u64,
    /// The time of the last event that the tracker was told of.
    applied_us: u64,
    blind_until_us: u64,
    /// When the first call came that had to be judged.
    first_us: Option<u64>,
    awake_ms: u64,
    awake: bool,
    keyed: Keyed,
}

/// One number for a request or call of a worker.
fn number(worker: u16, id: u64) -> u64 {
    (u64::from(worker) << 48) | (id & 0xffff_ffff_ffff)
}

/// The inverse, of a request.
fn request_of(number: u64) -> RequestRef {
    (worker_of(number), number & 0xffff_ffff_ffff)
}

/// The worker of a request or call.
fn worker_of(number: u64) -> u16 {
    (number >> 48) as u16
}

impl Attribution {
    /// A request has begun that is in the store. `route`, `tokens`: [`signature::route`],
    /// [`signature::tokens`].
    pub fn begin(
        &mut self,
        store: &mut Store,
        data: &impl SharedData,
        now_us: u64,
        ticket: &Ticket,
        route: u32,
        tokens: Vec<Token>,
    ) {
        let begun = Event::Begin {
            request: ticket.id(),
            // One that is not stored is in flight, too.
            bucket: ticket.bucket().unwrap_or(u16::MAX),
            route,
            tokens,
        };
        self.write(store, data, now_us, &begun);
    }

    /// A request has been answered, or was broken off.
    pub fn end(
        &mut self,
        store: &mut Store,
        data: &impl SharedData,
        now_us: u64,
        ticket: &Ticket,
        answered: bool,
    ) {
        let request = ticket.id();
        self.write(store, data, now_us, &Event::End { request, answered });
    }

    /// Calls had to be judged of late. If not, those with a known request need not be
    /// reported by [`Attribution::called`].
    pub fn is_awake(&self) -> bool {
        self.awake
    }

    /// A call has begun that is known to belong to the request `owner`. Returns its
    /// number, for [`Attribution::returned`].
    pub fn called(
        &mut self,
        store: &mut Store,
        data: &impl SharedData,
        now_us: u64,
        call: Call,
        owner: RequestRef,
    ) -> u64 {
        let id = self.number_call();
        self.keyed.add(call.kind[0]);
        let event = Event::Call {
            number: id,
            call,
            owner: Some(owner),
        };
        self.write(store, data, now_us, &event);
        id
    }

    /// A call has begun: to which request does it belong? The list of workers is that of the
    /// last [`Store::refresh`]. `wrong`: the part of all calls that may be given to a wrong
    /// request, from 0 to 1; 0 if only the only request in flight may get any. Returns its
    /// number, for [`Attribution::returned`]; `None` if this worker has no journal. And the
    /// request if it is sure, with what is in the store.
    pub fn judge(
        &mut self,
        store: &mut Store,
        data: &impl SharedData,
        now_us: u64,
        call: Call,
        wrong: f64,
    ) -> (Option<u64>, Option<(Verdict, Found)>) {
        self.tracker.infer(wrong);
        self.wake(data, now_us);
        let Some(worker) = self.writer(store, data, now_us).map(|w| w.worker()) else {
            return (None, None);
        };
        let at_us = self.clock.now(now_us);
        self.judged_us = at_us;
        self.first_us.get_or_insert(at_us);
        self.catch_up(&store.known_workers(), data, at_us);
        let knows_now = self.ahead.is_empty();
        let id = self.number_call();
        let mut verdict = None;
        if knows_now {
            self.called_while_idle(at_us);
            verdict = self.tracker.call(at_us, number(worker, id), &call, None);
        }
        let event = Event::Call {
            number: id,
            call,
            owner: None,
        };
        self.write(store, data, now_us, &event);
        let own = self.readers.iter_mut().find(|r| r.worker().0 == worker);
        if let (Some(own), Some(writer), true) = (own, &self.writer, knows_now) {
            // The tracker knows of the call already.
            own.skip_to_end(writer);
        }
        let seeing = at_us >= self.blind_until_us
            && store.knows_all_workers()
            && self.readers.iter().all(Reader::knows_all);
        let sure = verdict.filter(|verdict| seeing || verdict.basis == Basis::Token);
        let found = sure.and_then(|verdict| {
            let bucket = self.tracker.bucket(verdict.request)?;
            let found = store.fetch(data, request_of(verdict.request), bucket)?;
            Some((verdict, found))
        });
        (Some(id), found)
    }

    /// A call has returned, or was broken off.
    pub fn returned(&mut self, store: &mut Store, data: &impl SharedData, now_us: u64, call: u64) {
        self.write(store, data, now_us, &Event::CallEnd { call });
    }

    /// To be called every second or so.
    pub fn tick(&mut self, store: &mut Store, data: &impl SharedData, now_us: u64) {
        self.keyed.tick(now_us);
        if self.writer.is_none() && self.readers.is_empty() {
            return;
        }
        if self.writer.is_some() {
            // One that was taken for dead says what it has in flight.
            self.writer(store, data, now_us);
        }
        if let Some((when, _)) = data.get(&AWAKE) {
            let when = when.try_into().map(u64::from_le_bytes).unwrap_or(0);
            self.awake_ms = self.awake_ms.max(when);
        }
        self.awake = (now_us / 1000).saturating_sub(self.awake_ms) <= AWAKE_MS;
        let at_us = self.clock.now(now_us);
        if self.judged_us > 0 && at_us.saturating_sub(self.judged_us) < READS_US {
            let workers = store.workers(data, now_us / 1000);
            self.catch_up(&workers, data, at_us);
        } else if !self.readers.is_empty() {
            // The next call that is to be judged begins anew.
            self.readers.clear();
            self.ahead.clear();
            self.tracker.forget();
        }
    }

    /// Learns what the application does, for a few milliseconds at most: to be called with
    /// each tick. Returns how many times that is to be done in 100 ms; 0 if there is nothing to
    /// do.
    pub fn learn(&mut self) -> u64 {
        match self.ahead.is_empty() {
            true => self.tracker.learn(),
            false => {
                self.take_in(self.slice());
                catching_up::SLICES
            }
        }
    }

    /// A call has begun that has no known request. If nothing is in flight, soon after the
    /// first call that had to be judged, it may belong to a request that was in flight when
    /// this Envoy, or this module, took over: where there is one, there are more, in
    /// whichever worker.
    fn called_while_idle(&mut self, at_us: u64) {
        let soon = self
            .first_us
            .is_some_and(|first| at_us < first.saturating_add(BLIND_US));
        if soon && self.tracker.in_flight() == 0 {
            self.blind_until_us = self.blind_until_us.max(at_us.saturating_add(BLIND_US));
        }
    }

    /// Requests in flight that are known, of all workers.
    pub fn in_flight(&self) -> usize {
        self.tracker.in_flight()
    }

    fn number_call(&mut self) -> u64 {
        let id = self.next_call;
        self.next_call = id.wrapping_add(1);
        id
    }

    /// Lets all workers know that there are calls to be judged.
    fn wake(&mut self, data: &impl SharedData, now_us: u64) {
        let now_ms = now_us / 1000;
        self.awake = true;
        if now_ms.saturating_sub(self.awake_ms) > AWAKE_MS / 4 {
            self.awake_ms = now_ms;
            let _ = data.set(&AWAKE, &now_ms.to_le_bytes(), 0);
        }
    }

    /// This worker's journal, under the number that it has in the store.
    fn writer(
        &mut self,
        store: &mut Store,
        data: &impl SharedData,
        now_us: u64,
    ) -> Option<&mut Writer> {
        let worker = store.join(data, now_us / 1000)?;
        let own = self.writer.as_ref();
        if own.is_none_or(|own| own.worker() != worker) {
            let in_flight = own.map_or(0, Writer::in_flight);
            let mut new = Writer::new(worker, store.nonce(), in_flight);
            if in_flight > 0 {
                new.publish(data);
            }
            self.writer = Some(new);
        }
        self.writer.as_mut()
    }

    fn write(&mut self, store: &mut Store, data: &impl SharedData, now_us: u64, event: &Event) {
        if let Some(writer) = self.writer(store, data, now_us) {
            writer.write(data, now_us, event);
        }
    }
}
