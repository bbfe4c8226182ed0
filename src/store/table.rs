//! One worker's own table: its copy of the buckets that it alone writes.

use super::limits::Limits;
use super::record::{Alias, BUCKETS, Entry, Record, Records};
use super::shared_data::{ALWAYS, NotSet, SharedData, bucket_name};
use crate::bytes;
use crate::key::Key;
use std::collections::VecDeque;

/// Bytes of a bucket that are not worth giving back.
const SPARE: usize = 64;
/// Keys that one request may be remembered under.
pub const KEYS_MOST: usize = 4;
/// Requests of one bucket that are known one by one to be missing from it. Further
/// ones are counted.
const MISSING_MOST: usize = 32;
/// Aliases of one worker.
const ALIASES_MOST: usize = 4096;
/// For how long an alias holds, unless it is confirmed, in milliseconds.
const ALIAS_MS: u64 = 60_000;

/// Names what was remembered of a request, so that it can be ended. To be given
/// back once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    id: u64,
    buckets: [Option<u16>; KEYS_MOST],
}

impl Ticket {
    /// The request's number in its worker.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Where one of its entries is.
    pub fn bucket(&self) -> Option<u16> {
        self.buckets().next()
    }

    /// Each once.
    fn buckets(&self) -> impl Iterator<Item = u16> + '_ {
        let buckets = self.buckets.iter().copied().enumerate();
        buckets.filter_map(|(n, bucket)| {
            let again = self.buckets.iter().take(n).any(|other| *other == bucket);
            bucket.filter(|_| !again)
        })
    }
}

/// What became of an insertion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inserted {
    /// Names the new entries, or that they are missing.
    pub ticket: Ticket,
    /// False if the request could not be remembered: shared data could not be written.
    pub stored: bool,
    /// Requests still being served that had to go.
    pub evicted: usize,
    /// Requests still being served, this one included, of which the headers had to go.
    pub shed: usize,
}

/// What is remembered of a request.
#[derive(Clone, Copy, Debug)]
pub(super) struct New<'a> {
    pub id: u64,
    pub keys: &'a [Key],
    pub context: &'a [u8],
    pub headers: &'a [u8],
}

/// Where the table is published: shared data, and the worker's number once it has one.
#[derive(Debug)]
pub(super) struct Shared<'a, D> {
    pub data: &'a D,
    pub number: Option<u16>,
}

#[derive(Debug)]
pub(super) struct Table {
    seed: u64,
    /// As they are in shared data, but for what is `stale`.
    buckets: Vec<Vec<u8>>,
    /// By bucket: differs from what is in shared data.
    stale: Vec<bool>,
    entries: usize,
    /// Of entries and headers.
    bytes: usize,
    /// Of the other records.
    bytes_beside: usize,
    /// Every entry being served, oldest first, among others that have ended.
    started: VecDeque<(u16, u64)>,
    /// Every entry that has ended, with the time when it expires.
    ended: VecDeque<(u16, u64, u64)>,
    /// All headers, oldest first, among others that are gone.
    headers: VecDeque<(u16, u64)>,
    /// All aliases by their serial numbers, oldest first, with the time when they expire,
    /// among others that are gone.
    aliases: VecDeque<(u16, u64, u64)>,
    next_serial: u64,
}

impl Table {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            seed,
            buckets: vec![Vec::new(); usize::from(BUCKETS)],
            stale: vec![false; usize::from(BUCKETS)],
            entries: 0,
            bytes: 0,
            bytes_beside: 0,
            started: VecDeque::new(),
            ended: VecDeque::new(),
            headers: VecDeque::new(),
            aliases: VecDeque::new(),
            next_serial: 0,
        }
    }

    /// Entries, their bytes with those of the headers, and bytes beside.
    pub(super) fn size(&self) -> (usize, usize, usize) {
        (self.entries, self.bytes, self.bytes_beside)
    }

    /// How long its lists are.
    #[cfg(test)]
    pub(super) fn lists(&self) -> [usize; 4] {
        let Self { started, ended, .. } = self;
        let (headers, aliases) = (self.headers.len(), self.aliases.len());
        [started.len(), ended.len(), headers, aliases]
    }

    /// Bytes that the buckets have room for.
    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.buckets.iter().map(Vec::capacity).sum()
    }

    pub(super) fn seed(&self) -> u64 {
        self.seed
    }

    /// The bucket that a key falls into, and its hash: FNV-1a over the seed and the key,
    /// folded to the number of buckets.
    pub(super) fn place(&self, key: &[u8]) -> (u16, u64) {
        let hash = bytes::fnv1a(self.seed, key);
        let folded = hash ^ (hash >> 32) ^ (hash >> 16);
        ((folded % u64::from(BUCKETS)) as u16, hash)
    }

    pub(super) fn bucket(&self, at: u16) -> &[u8] {
        let bucket = self.buckets.get(usize::from(at));
        bucket.map(Vec::as_slice).unwrap_or_default()
    }

    fn records(&self, at: u16) -> Records<'_> {
        Records::new(self.bucket(at))
    }

    /// Remembers a request: one write for each key.
    pub(super) fn insert<D: SharedData>(
        &mut self,
        to: &Shared<'_, D>,
        limits: Limits,
        now_ms: u64,
        new: New<'_>,
    ) -> Inserted {
        let places: Vec<(&Key, u16)> = new
            .keys
            .iter()
            .take(KEYS_MOST)
            .map(|key| (key, self.place(key.as_bytes()).0))
            .collect();
        let mut ticket = Ticket {
            id: new.id,
            buckets: [None; KEYS_MOST],
        };
        for (place, (_, at)) in ticket.buckets.iter_mut().zip(&places) {
            *place = Some(*at);
        }
        let mut inserted = Inserted {
            ticket,
            stored: false,
            evicted: 0,
            shed: 0,
        };
        let longest = usize::from(u16::MAX);
        if to.number.is_none() || new.context.len() > longest || new.headers.len() > longest {
            self.miss_all(&ticket, &places);
            return inserted;
        }
        let headers = Record::Headers {
            id: new.id,
            headers: new.headers,
        };
        let mut home = None;
        if !new.headers.is_empty() {
            let most = limits.bucket_bytes.saturating_sub(headers.length());
            home = self.home(&places, most);
        }
        let entries: Vec<(Record<'_>, u16)> = places
            .iter()
            .map(|(key, at)| {
                let entry = Entry {
                    id: new.id,
                    started_ms: now_ms,
                    expires_ms: None,
                    home,
                    key: key.as_bytes(),
                    context: new.context,
                };
                (Record::Entry(entry), *at)
            })
            .collect();
        let bytes: usize = entries.iter().map(|(entry, _)| entry.length()).sum();
        let mut room = Limits {
            entries: limits.entries.saturating_sub(entries.len()),
            bytes: limits.bytes.saturating_sub(bytes),
            ..limits
        };
        self.shrink(to, room, true, &mut inserted);
        let mut lost = false;
        if home.is_some() {
            room.bytes = room.bytes.saturating_sub(headers.length());
            lost = !self.shrink(to, room, false, &mut inserted);
        }
        let mut unwritten = home.filter(|_| !lost);
        let mut written = true;
        for (entry, at) in &entries {
            let most = limits.bucket_bytes.saturating_sub(entry.length());
            self.shrink_bucket(*at, most, new.id, true, &mut inserted);
            self.push(*at, entry);
            self.started.push_back((*at, new.id));
            if unwritten.take_if(|home| home == at).is_some() {
                let most = limits.bucket_bytes.saturating_sub(headers.length());
                if self.shrink_bucket(*at, most, new.id, false, &mut inserted) {
                    self.push(*at, &headers);
                    self.headers.push_back((*at, new.id));
                } else {
                    lost = true;
                }
            }
            written &= self.publish(to, *at).is_ok();
        }
        inserted.shed += usize::from(lost);
        if !written {
            self.miss_all(&ticket, &places);
            return inserted;
        }
        inserted.stored = true;
        self.tidy();
        inserted
    }

    /// The bucket for the headers: that of the first key if there is room, or else that
    /// which holds least.
    fn home(&self, places: &[(&Key, u16)], most: usize) -> Option<u16> {
        let first = places.first().map(|(_, at)| *at);
        let fits = first.filter(|at| self.taken(*at) <= most);
        let least = || places.iter().map(|(_, at)| *at);
        fits.or_else(|| least().min_by_key(|at| self.taken(*at)))
    }

    /// The request has been served: what is remembered of it ends after the grace.
    pub(super) fn end<D: SharedData>(
        &mut self,
        to: &Shared<'_, D>,
        limits: Limits,
        now_ms: u64,
        ticket: &Ticket,
    ) -> bool {
        let expires = now_ms.saturating_add(limits.grace_ms);
        let mut written = true;
        for at in ticket.buckets() {
            let Some(bucket) = self.buckets.get_mut(usize::from(at)) else {
                continue;
            };
            if Record::end(bucket, ticket.id, expires) {
                match limits.grace_ms {
                    0 => self.remove(at, ticket.id),
                    _ => self.ended.push_back((at, ticket.id, expires)),
                }
                written &= self.publish(to, at).is_ok();
            } else if self.found(at, ticket.id) {
                let _ = self.publish(to, at);
            }
        }
        while let Some((bucket, id)) = self.started.front() {
            if self.is_served(*bucket, *id) {
                break;
            }
            self.started.pop_front();
        }
        while let Some((bucket, id)) = self.headers.front() {
            if self.has_headers(*bucket, *id) {
                break;
            }
            self.headers.pop_front();
        }
        written
    }

    /// A request that was missing has been served. False if it was not missing.
    fn found(&mut self, at: u16, id: u64) -> bool {
        if self.records(at).entries().any(|entry| entry.id == id) {
            return false;
        }
        let missing = |record: &Record<'_>| matches!(record, Record::Missing { id: other, .. } if *other == id);
        if self.retain(at, |record| !missing(record)) {
            return true;
        }
        match self.missed(at) {
            0 => false,
            missed => {
                self.set_missed(at, missed - 1);
                true
            }
        }
    }

    /// Remembers that a key is of a request. Gives way where there is no room. False if
    /// shared data could not be written.
    pub(super) fn alias<D: SharedData>(
        &mut self,
        to: &Shared<'_, D>,
        limits: Limits,
        now_ms: u64,
        alias: Alias<'_>,
    ) -> bool {
        let (at, _) = self.place(alias.key);
        let same = |other: &Alias<'_>| (other.key, other.request) == (alias.key, alias.request);
        let known = self.records(at).find_map(|record| match record {
            Record::Alias(other) if same(&other) => Some((other.expires_ms, other.guessed)),
            _ => None,
        });
        if let Some((expires_ms, guessed)) = known {
            let fresh = expires_ms.saturating_sub(now_ms) > ALIAS_MS / 2;
            if fresh && guessed == alias.guessed {
                return true;
            }
            self.retain(
                at,
                |record| !matches!(record, Record::Alias(other) if same(other)),
            );
        }
        let (serial, expires_ms) = (self.next_serial, now_ms.saturating_add(ALIAS_MS));
        self.next_serial = serial.wrapping_add(1);
        let record = Record::Alias(Alias {
            serial,
            expires_ms,
            ..alias
        });
        if self.taken(at) + record.length() <= limits.bucket_bytes {
            while self.aliases.len() >= ALIASES_MOST {
                if let Some((at, serial, _)) = self.aliases.pop_front() {
                    self.unalias(at, serial);
                }
            }
            self.push(at, &record);
            self.aliases.push_back((at, serial, expires_ms));
        } else if known.is_none() {
            return true;
        }
        self.publish(to, at).is_ok()
    }

    /// Drops an alias.
    pub(super) fn unalias(&mut self, at: u16, serial: u64) {
        let is_it =
            |record: &Record<'_>| matches!(record, Record::Alias(alias) if alias.serial == serial);
        if self.retain(at, |record| !is_it(record)) {
            self.mark(at);
        }
    }

    /// Forgets what has expired, and writes what could not be written or has not been
    /// yet.
    pub(super) fn tick<D: SharedData>(&mut self, to: &Shared<'_, D>, now_ms: u64) {
        while let Some((bucket, id, expires)) = self.ended.front().copied() {
            if expires > now_ms {
                break;
            }
            self.ended.pop_front();
            self.remove(bucket, id);
            self.mark(bucket);
        }
        while let Some((bucket, serial, expires)) = self.aliases.front().copied() {
            if expires > now_ms {
                break;
            }
            self.aliases.pop_front();
            self.unalias(bucket, serial);
        }
        self.publish_stale(to);
    }

    /// Writes what differs in shared data.
    pub(super) fn publish_stale<D: SharedData>(&mut self, to: &Shared<'_, D>) {
        if to.number.is_none() {
            return;
        }
        for bucket in 0..BUCKETS {
            if self.stale.get(usize::from(bucket)) == Some(&true) {
                self.trim(bucket);
                let _ = self.publish(to, bucket);
            }
        }
    }

    /// Nobody reads this table any more: begins anew, and knows of the requests being
    /// served only that they are missing.
    pub(super) fn abandon(&mut self) {
        for at in 0..BUCKETS {
            let served = self.records(at).entries();
            let served = served.filter(|entry| entry.expires_ms.is_none());
            let served: Vec<u64> = served.map(|entry| entry.id).collect();
            for id in served {
                self.evict(at, id);
            }
            self.retain(at, |record| {
                matches!(record, Record::Missing { .. } | Record::Missed(_))
            });
            if let Some(stale) = self.stale.get_mut(usize::from(at)) {
                *stale = !self.buckets.get(usize::from(at)).is_none_or(Vec::is_empty);
            }
        }
        self.started.clear();
        self.ended.clear();
        self.headers.clear();
        self.aliases.clear();
    }

    /// Makes room: what has ended goes first, then headers, then the oldest requests, if
    /// they may be `evict`ed. False if there is not enough.
    fn shrink<D: SharedData>(
        &mut self,
        to: &Shared<'_, D>,
        room: Limits,
        evict: bool,
        gone: &mut Inserted,
    ) -> bool {
        while self.entries > room.entries || self.bytes > room.bytes {
            if let Some((bucket, id, _)) = self.ended.pop_front() {
                self.remove(bucket, id);
                // It expires by itself in shared data.
                self.mark(bucket);
                continue;
            }
            let headers = match self.bytes > room.bytes {
                true => self.headers.pop_front(),
                false => None,
            };
            if let Some((bucket, id)) = headers {
                if self.shed(bucket, id) {
                    let _ = self.publish(to, bucket);
                    gone.shed += 1;
                }
            } else if !evict {
                return false;
            } else if let Some((bucket, id)) = self.started.pop_front() {
                if self.is_served(bucket, id) {
                    self.evict(bucket, id);
                    let _ = self.publish(to, bucket);
                    gone.evicted += 1;
                    // The same request under its other keys.
                    while let Some((bucket, _)) = self.started.front().filter(|next| next.1 == id) {
                        let bucket = *bucket;
                        self.started.pop_front();
                        self.evict(bucket, id);
                        let _ = self.publish(to, bucket);
                    }
                }
            } else {
                return false;
            }
        }
        true
    }

    /// Makes room in one bucket, as [`Table::shrink`] does in all; not of the request
    /// `but`.
    fn shrink_bucket(
        &mut self,
        at: u16,
        most: usize,
        but: u64,
        evict: bool,
        gone: &mut Inserted,
    ) -> bool {
        enum Victim {
            Ended(u64),
            Alias(u64),
            Headers(u64),
            Served(u64),
        }
        while self.taken(at) > most {
            let victims = self.records(at).filter_map(|record| match record {
                Record::Entry(entry) if entry.id == but => None,
                Record::Entry(entry) if entry.expires_ms.is_some() => {
                    Some((0, Victim::Ended(entry.id)))
                }
                Record::Alias(alias) => Some((1, Victim::Alias(alias.serial))),
                Record::Headers { id, .. } if id != but => Some((2, Victim::Headers(id))),
                Record::Entry(entry) if evict => Some((3, Victim::Served(entry.id))),
                _ => None,
            });
            // The first of the best.
            match victims
                .min_by_key(|(rank, _)| *rank)
                .map(|(_, victim)| victim)
            {
                Some(Victim::Ended(id)) => self.remove(at, id),
                Some(Victim::Alias(serial)) => self.unalias(at, serial),
                Some(Victim::Headers(id)) => gone.shed += usize::from(self.shed(at, id)),
                Some(Victim::Served(id)) => {
                    self.evict(at, id);
                    gone.evicted += 1;
                }
                None => return false,
            }
        }
        true
    }

    /// Bytes of a bucket, without what is known to be missing.
    fn taken(&self, at: u16) -> usize {
        let taken = self
            .records(at)
            .filter(|record| !matches!(record, Record::Missing { .. } | Record::Missed(_)));
        taken.map(|record| record.length()).sum()
    }

    /// Forgets a request's headers. False if they were gone.
    fn shed(&mut self, at: u16, id: u64) -> bool {
        self.retain(
            at,
            |record| !matches!(record, Record::Headers { id: other, .. } if *other == id),
        )
    }

    /// Forgets a request that is being served, but not that there is one.
    fn evict(&mut self, at: u16, id: u64) {
        let entries = self.records(at).entries().filter(|entry| entry.id == id);
        let hashes: Vec<u64> = entries.map(|entry| self.place(entry.key).1).collect();
        self.remove(at, id);
        self.miss(at, id, &hashes);
    }

    /// A request that is being served is not here, under keys with these hashes.
    fn miss(&mut self, at: u16, id: u64, hashes: &[u64]) {
        let known = self.records(at);
        let known = known.filter(|record| matches!(record, Record::Missing { .. }));
        if known.count() + hashes.len() > MISSING_MOST {
            self.set_missed(at, self.missed(at).saturating_add(1));
            return;
        }
        for hash in hashes {
            self.push(at, &Record::Missing { id, hash: *hash });
        }
    }

    /// It is nowhere, since something could not be written.
    fn miss_all(&mut self, ticket: &Ticket, places: &[(&Key, u16)]) {
        for at in ticket.buckets() {
            self.remove(at, ticket.id);
            let here = places.iter().filter(|(_, other)| *other == at);
            let hashes: Vec<u64> = here.map(|(key, _)| self.place(key.as_bytes()).1).collect();
            self.miss(at, ticket.id, &hashes);
            self.mark(at);
        }
    }

    fn missed(&self, at: u16) -> u32 {
        let mut records = self.records(at);
        let missed = records.find_map(|record| match record {
            Record::Missed(count) => Some(count),
            _ => None,
        });
        missed.unwrap_or(0)
    }

    fn set_missed(&mut self, at: u16, count: u32) {
        self.retain(at, |record| !matches!(record, Record::Missed(_)));
        if count > 0 {
            self.push(at, &Record::Missed(count));
        }
    }

    /// Gives back what a bucket once needed. Or else each would keep room for the
    /// most that it ever held, and memory would grow for hours.
    fn trim(&mut self, bucket: u16) {
        if let Some(bucket) = self.buckets.get_mut(usize::from(bucket)) {
            let enough = 2 * bucket.len().max(SPARE);
            if bucket.capacity() > 2 * enough {
                bucket.shrink_to(enough);
            }
        }
    }

    /// Forgets which entries and headers were there, where that is most of what the
    /// lists hold.
    fn tidy(&mut self) {
        let most = 2 * self.entries + 1024;
        if self.started.len() > most {
            let mut started = std::mem::take(&mut self.started);
            started.retain(|(bucket, id)| self.is_served(*bucket, *id));
            self.started = started;
        }
        if self.headers.len() > most {
            let mut headers = std::mem::take(&mut self.headers);
            headers.retain(|(bucket, id)| self.has_headers(*bucket, *id));
            self.headers = headers;
        }
    }

    fn mark(&mut self, bucket: u16) {
        if let Some(stale) = self.stale.get_mut(usize::from(bucket)) {
            *stale = true;
        }
    }

    fn is_served(&self, bucket: u16, id: u64) -> bool {
        let mut entries = self.records(bucket).entries();
        entries.any(|entry| entry.id == id && entry.expires_ms.is_none())
    }

    fn has_headers(&self, bucket: u16, id: u64) -> bool {
        let mut records = self.records(bucket);
        records.any(|record| matches!(record, Record::Headers { id: other, .. } if other == id))
    }

    /// Removes what there is of a request from a bucket.
    fn remove(&mut self, at: u16, id: u64) {
        self.retain(at, |record| match record {
            Record::Entry(entry) => entry.id != id,
            Record::Headers { id: other, .. } | Record::Missing { id: other, .. } => *other != id,
            Record::Missed(_) | Record::Alias(_) => true,
        });
    }

    fn push(&mut self, at: u16, record: &Record<'_>) {
        let Some(bucket) = self.buckets.get_mut(usize::from(at)) else {
            return;
        };
        record.write(bucket);
        match record {
            Record::Entry(_) => {
                self.entries += 1;
                self.bytes += record.length();
            }
            Record::Headers { .. } => self.bytes += record.length(),
            _ => self.bytes_beside += record.length(),
        }
    }

    /// Keeps some records of a bucket. False if all of them.
    fn retain(&mut self, at: u16, keep: impl Fn(&Record<'_>) -> bool) -> bool {
        let Some(bucket) = self.buckets.get_mut(usize::from(at)) else {
            return false;
        };
        let before = bucket.len();
        let mut start = 0;
        while let Some(record) = bucket
            .get(start..)
            .and_then(|rest| Records::new(rest).next())
        {
            let length = record.length();
            if keep(&record) {
                start += length;
                continue;
            }
            match record {
                Record::Entry(_) => {
                    self.entries -= 1;
                    self.bytes -= length;
                }
                Record::Headers { .. } => self.bytes -= length,
                _ => self.bytes_beside -= length,
            }
            bucket.drain(start..start + length);
        }
        bucket.len() < before
    }

    /// Writes a bucket; if that fails, a later [`Table::tick`] does.
    fn publish<D: SharedData>(&mut self, to: &Shared<'_, D>, bucket: u16) -> Result<(), NotSet> {
        let at = usize::from(bucket);
        let bytes = self.buckets.get(at).ok_or(NotSet)?;
        let name = to.number.map(|number| bucket_name(number, bucket));
        let result = match name {
            Some(name) => to.data.set(&name, bytes, ALWAYS),
            None => Err(NotSet),
        };
        if let Some(stale) = self.stale.get_mut(at) {
            *stale = result.is_err();
        }
        result
    }
}
