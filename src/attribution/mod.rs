//! To which request does a call belong, if it says nothing of it itself?
//!
//! The last rungs of the ladder that [`crate::filter`] climbs for each call: the
//! only request in flight; an identifier that a call shares with one request in
//! flight; what requests of each route do, and when; and else nothing.
//!
//! | module | what it knows |
//! |---|---|
//! | [`text`] | which route or kind a request is of, and the identifiers in it |
//! | [`model`] | what has been learned of the application |
//! | [`tracker`] | what is believed of the requests in flight, and whose a call is |
//! | `exclusive` | whether a call is of the only request in flight, or of the background |
//! | [`journal`] | what each worker tells the others |
//!
//! Each worker that judges calls has a [`Tracker`] of its own, and tells it what is
//! in the journals of all, in the order of time.

mod belief;
mod exclusive;
pub mod journal;
pub mod model;
pub mod text;
pub mod tracker;

use crate::store::{Found, RequestOf, SharedData, Store, Ticket, shared_data_name};
use journal::{Event, Read, Reader, Writer};
use text::Token;
use tracker::{Basis, Tracker, Verdict};

/// For so long after events were lost there may be requests in flight that nothing
/// is known of.
const BLIND_US: u64 = 10_000_000;
/// A worker that has judged no call for so long stops following the journals.
const FOLLOWS_US: u64 = 300_000_000;
/// For so long after a call that had to be judged, others are written down too.
const AWAKE_MS: u64 = 60_000;
/// Calls to a host are expected to carry a key for so many seconds after one did.
const NAMED_S: u16 = 600;
/// Hosts that this is known of.
const NAMED_MOST: usize = 64;
/// When, in milliseconds, a call had to be judged in any worker.
const AWAKE: [u8; 15] = shared_data_name(*b"awake");

/// A call, as it is told apart from others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// [`text::kind`]
    pub kind: [u32; 2],
    /// [`text::tokens`]
    pub tokens: Vec<Token>,
}

/// What one worker knows of whose calls are whose.
#[derive(Debug, Default)]
pub struct Attribution {
    writer: Option<Writer>,
    readers: Vec<Reader>,
    tracker: Tracker,
    next_call: u64,
    judged_us: u64,
    blind_until_us: u64,
    /// When the first call came that had to be judged.
    first_us: Option<u64>,
    awake_ms: u64,
    awake: bool,
    /// [`text::host`] of calls that carried a key, and seconds since.
    named: Vec<(u32, u16)>,
    /// When the seconds were last counted.
    counted_us: u64,
}

/// The request or call of a worker, as one number.
fn number(worker: u16, id: u64) -> u64 {
    (u64::from(worker) << 48) | (id & 0xffff_ffff_ffff)
}

fn request_of(number: u64) -> RequestOf {
    ((number >> 48) as u16, number & 0xffff_ffff_ffff)
}

impl Attribution {
    /// A request has begun, which the store has remembered.
    pub fn begin(
        &mut self,
        store: &mut Store,
        data: &impl SharedData,
        now_us: u64,
        ticket: &Ticket,
        route: u32,
        tokens: Vec<Token>,
    ) {
        let Some(bucket) = ticket.bucket() else {
            return;
        };
        let begun = Event::Begin {
            request: ticket.id(),
            bucket,
            route,
            tokens,
        };
        self.write(store, data, now_us, &begun);
    }

    /// It has been answered, or was broken off.
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

    /// There were calls of late that had to be judged. If not, others need not be
    /// known.
    pub fn is_awake(&self) -> bool {
        self.awake
    }

    /// A call to this host carried the key of a request.
    pub fn carries_key(&mut self, host: u32) {
        if let Some(known) = self.named.iter_mut().find(|(known, _)| *known == host) {
            known.1 = 0;
            return;
        }
        if self.named.len() >= NAMED_MOST {
            let oldest = self
                .named
                .iter()
                .enumerate()
                .max_by_key(|(_, known)| known.1);
            if let Some((at, _)) = oldest {
                self.named.swap_remove(at);
            }
        }
        self.named.push((host, 0));
    }

    /// The application forwards keys to this host: a key that is not known, such as a
    /// request ID, is of a request that has gone.
    pub fn is_named(&self, host: u32) -> bool {
        self.named.iter().any(|(known, _)| *known == host)
    }

    /// A call of which `owner` is known, or which says itself whose it is. Returns
    /// its number, for [`Attribution::returned`].
    pub fn called(
        &mut self,
        store: &mut Store,
        data: &impl SharedData,
        now_us: u64,
        call: Call,
        owner: RequestOf,
    ) -> u64 {
        let id = self.number_call();
        let Call { kind, tokens } = call;
        let event = Event::Call {
            call: id,
            kind,
            tokens,
            owner: Some(owner),
        };
        self.write(store, data, now_us, &event);
        id
    }

    /// Whose call is it? `wrong`: the part of all calls that may be given to a wrong
    /// request; 0 if only one that is alone in flight may get any. Returns its number,
    /// for [`Attribution::returned`], and the request if it is sure, with what was
    /// remembered of it.
    pub fn judge(
        &mut self,
        store: &mut Store,
        data: &impl SharedData,
        now_us: u64,
        call: Call,
        wrong: f64,
    ) -> (Option<u64>, Option<(Verdict, Found)>) {
        self.tracker.plain = wrong <= 0.0;
        self.wake(data, now_us);
        self.judged_us = now_us;
        let Some(worker) = self.writer(store, data, now_us).map(|w| w.worker()) else {
            return (None, None);
        };
        self.first_us.get_or_insert(now_us);
        self.follow(store, data, now_us);
        self.called_by_nobody(now_us);
        let id = self.number_call();
        let Call { kind, tokens } = call;
        let verdict = self
            .tracker
            .call(now_us, number(worker, id), kind, &tokens, None, wrong);
        let event = Event::Call {
            call: id,
            kind,
            tokens,
            owner: None,
        };
        self.write(store, data, now_us, &event);
        let own = self.readers.iter_mut().find(|r| r.worker().0 == worker);
        if let (Some(own), Some(writer)) = (own, &self.writer) {
            // The tracker has been told already.
            own.follow(writer);
        }
        let seeing = now_us >= self.blind_until_us;
        let sure = verdict.filter(|verdict| seeing || verdict.basis == Basis::Token);
        let found = sure.and_then(|verdict| {
            let place = self.tracker.bucket(verdict.request)?;
            let found = store.fetch(data, request_of(verdict.request), place)?;
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
        // Envoy ticks for each configuration of the module, each second.
        if now_us.abs_diff(self.counted_us) > 900_000 {
            self.counted_us = now_us;
            self.named.retain_mut(|(_, seconds)| {
                *seconds += 1;
                *seconds < NAMED_S
            });
        }
        if self.writer.is_none() && self.readers.is_empty() {
            return;
        }
        if let Some((when, _)) = data.get(&AWAKE) {
            let when = when.try_into().map(u64::from_le_bytes).unwrap_or(0);
            self.awake_ms = self.awake_ms.max(when);
        }
        self.awake = (now_us / 1000).saturating_sub(self.awake_ms) <= AWAKE_MS;
        if self.judged_us > 0 && now_us.saturating_sub(self.judged_us) < FOLLOWS_US {
            self.follow(store, data, now_us);
        } else if !self.readers.is_empty() {
            // Begins anew with the next call that is to be judged.
            self.readers.clear();
            self.tracker.forget();
        }
    }

    /// A call, while nothing is in flight. Soon after the first one that had to be
    /// judged it may be of a request that was in flight when this Envoy, or this module,
    /// took over: where there is one, there are more, in whichever worker.
    fn called_by_nobody(&mut self, at_us: u64) {
        let soon = self
            .first_us
            .is_some_and(|first| at_us < first.saturating_add(BLIND_US));
        if soon && self.tracker.in_flight() == 0 {
            self.blind_until_us = self.blind_until_us.max(at_us.saturating_add(BLIND_US));
        }
    }

    /// Requests in flight that it knows of.
    pub fn in_flight(&self) -> usize {
        self.tracker.in_flight()
    }

    fn number_call(&mut self) -> u64 {
        let id = self.next_call;
        self.next_call = id.wrapping_add(1);
        id
    }

    /// Lets all workers know that there are calls which say nothing of themselves.
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
        if self.writer.as_ref().is_none_or(|w| w.worker() != worker) {
            self.writer = Some(Writer::new(worker, store.nonce()));
        }
        self.writer.as_mut()
    }

    fn write(&mut self, store: &mut Store, data: &impl SharedData, now_us: u64, event: &Event) {
        if let Some(writer) = self.writer(store, data, now_us) {
            writer.write(data, now_us, event);
        }
    }

    /// Tells the tracker what has happened since.
    fn follow(&mut self, store: &mut Store, data: &impl SharedData, now_us: u64) {
        let workers = store.workers(data, now_us / 1000);
        let mut gone: Vec<u16> = Vec::new();
        self.readers.retain(|reader| {
            let here = workers.contains(&reader.worker());
            if !here {
                gone.push(reader.worker().0);
            }
            here
        });
        for worker in workers {
            if !self.readers.iter().any(|r| r.worker() == worker) {
                self.readers.push(Reader::new(worker));
            }
        }
        let mut events = Vec::new();
        let mut lost = false;
        for reader in &mut self.readers {
            lost |= reader.read(data, &mut events) == Read::Lost;
        }
        for worker in gone {
            self.tracker
                .abandon(|request| request_of(request).0 == worker);
        }
        if lost {
            self.tracker.forget();
            self.blind_until_us = now_us.saturating_add(BLIND_US);
            self.tracker.blind(self.blind_until_us);
        }
        // The earliest first.
        events.sort_by_cached_key(|(at_us, _, _)| *at_us);
        for (at_us, worker, event) in events {
            self.tell(at_us, worker, event);
        }
    }

    fn tell(&mut self, at_us: u64, worker: u16, event: Event) {
        match event {
            Event::Begin {
                request,
                bucket,
                route,
                tokens,
            } => {
                let request = number(worker, request);
                self.tracker.begin(at_us, request, bucket, route, tokens);
            }
            Event::End { request, answered } => {
                let request = number(worker, request);
                match answered {
                    true => self.tracker.end(at_us, request),
                    false => self.tracker.broken_off(at_us, request),
                }
            }
            Event::Call {
                call,
                kind,
                tokens,
                owner,
            } => {
                if owner.is_none() {
                    self.called_by_nobody(at_us);
                }
                let owner = owner.map(|(worker, request)| number(worker, request));
                let call = number(worker, call);
                self.tracker.call(at_us, call, kind, &tokens, owner, 0.0);
            }
            Event::CallEnd { call } => self.tracker.call_end(at_us, number(worker, call)),
        }
    }
}
