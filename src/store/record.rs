//! What a bucket holds, in bytes.
//!
//! A record is a tag u8, and then what belongs to it; integers are little-endian:
//!
//! | record | encoded as |
//! |---|---|
//! | entry | id u64, started u64, expires u64 (0 while being served), bucket of the headers u16, key length u16, context length u16, key, context |
//! | headers | id u64, length u16, headers |
//! | missing | id u64, hash of the key u64 |
//! | missed | count u32 |
//! | alias | serial u64, expires u64, worker u16, id u64, bucket u16, guessed u8, key length u16, key |

use crate::bytes::{split, take};

/// Buckets of each worker's table.
pub const BUCKETS: u16 = 1024;
/// In place of a bucket: the request has no headers.
const NO_BUCKET: u16 = u16::MAX;

/// A request under one of its keys.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry<'a> {
    pub id: u64,
    pub started_ms: u64,
    /// When it is to be forgotten; `None` while the request is being served.
    pub expires_ms: Option<u64>,
    /// The bucket that its headers are in; `None` if it has none.
    pub home: Option<u16>,
    pub key: &'a [u8],
    pub context: &'a [u8],
}

/// A key that was found out to be of a request, which is remembered elsewhere.
#[derive(Clone, Copy, Debug)]
pub(super) struct Alias<'a> {
    /// Its own number in its worker.
    pub serial: u64,
    pub expires_ms: u64,
    /// The worker of the request, and its number there.
    pub request: (u16, u64),
    /// Where that worker has an entry of it.
    pub bucket: u16,
    pub guessed: bool,
    pub key: &'a [u8],
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Record<'a> {
    Entry(Entry<'a>),
    /// The copied headers of a request, once.
    Headers {
        id: u64,
        headers: &'a [u8],
    },
    /// A request that is being served should be here, under a key with this hash.
    Missing {
        id: u64,
        hash: u64,
    },
    /// So many more should be, under whichever keys.
    Missed(u32),
    Alias(Alias<'a>),
}

impl<'a> Record<'a> {
    /// Where an entry has the time at which it expires.
    const EXPIRES: usize = 17;

    pub(super) fn length(&self) -> usize {
        match self {
            Self::Entry(entry) => 31 + entry.key.len() + entry.context.len(),
            Self::Headers { headers, .. } => 11 + headers.len(),
            Self::Missing { .. } => 17,
            Self::Missed(_) => 5,
            Self::Alias(alias) => 32 + alias.key.len(),
        }
    }

    pub(super) fn write(&self, to: &mut Vec<u8>) {
        let length = |bytes: &[u8]| u16::try_from(bytes.len()).unwrap_or(u16::MAX);
        to.reserve(self.length());
        match self {
            Self::Entry(entry) => {
                to.push(0);
                to.extend_from_slice(&entry.id.to_le_bytes());
                to.extend_from_slice(&entry.started_ms.to_le_bytes());
                to.extend_from_slice(&entry.expires_ms.unwrap_or(0).to_le_bytes());
                to.extend_from_slice(&entry.home.unwrap_or(NO_BUCKET).to_le_bytes());
                to.extend_from_slice(&length(entry.key).to_le_bytes());
                to.extend_from_slice(&length(entry.context).to_le_bytes());
                to.extend_from_slice(entry.key);
                to.extend_from_slice(entry.context);
            }
            Self::Headers { id, headers } => {
                to.push(1);
                to.extend_from_slice(&id.to_le_bytes());
                to.extend_from_slice(&length(headers).to_le_bytes());
                to.extend_from_slice(headers);
            }
            Self::Missing { id, hash } => {
                to.push(2);
                to.extend_from_slice(&id.to_le_bytes());
                to.extend_from_slice(&hash.to_le_bytes());
            }
            Self::Missed(count) => {
                to.push(3);
                to.extend_from_slice(&count.to_le_bytes());
            }
            Self::Alias(alias) => {
                to.push(4);
                to.extend_from_slice(&alias.serial.to_le_bytes());
                to.extend_from_slice(&alias.expires_ms.to_le_bytes());
                to.extend_from_slice(&alias.request.0.to_le_bytes());
                to.extend_from_slice(&alias.request.1.to_le_bytes());
                to.extend_from_slice(&alias.bucket.to_le_bytes());
                to.push(u8::from(alias.guessed));
                to.extend_from_slice(&length(alias.key).to_le_bytes());
                to.extend_from_slice(alias.key);
            }
        }
    }

    fn read(rest: &mut &'a [u8]) -> Option<Self> {
        fn u64_of(rest: &mut &[u8]) -> Option<u64> {
            take(rest).map(u64::from_le_bytes)
        }
        fn u16_of(rest: &mut &[u8]) -> Option<u16> {
            take(rest).map(u16::from_le_bytes)
        }
        let [tag] = take(rest)?;
        Some(match tag {
            0 => {
                let (id, started_ms, expires) = (u64_of(rest)?, u64_of(rest)?, u64_of(rest)?);
                let home = u16_of(rest)?;
                let (key, context) = (u16_of(rest)?, u16_of(rest)?);
                Self::Entry(Entry {
                    id,
                    started_ms,
                    expires_ms: (expires != 0).then_some(expires),
                    home: (home != NO_BUCKET).then_some(home),
                    key: split(rest, key.into())?,
                    context: split(rest, context.into())?,
                })
            }
            1 => {
                let id = u64_of(rest)?;
                let length = u16_of(rest)?;
                let headers = split(rest, length.into())?;
                Self::Headers { id, headers }
            }
            2 => Self::Missing {
                id: u64_of(rest)?,
                hash: u64_of(rest)?,
            },
            3 => Self::Missed(take(rest).map(u32::from_le_bytes)?),
            4 => {
                let (serial, expires_ms) = (u64_of(rest)?, u64_of(rest)?);
                let request = (u16_of(rest)?, u64_of(rest)?);
                let bucket = u16_of(rest)?;
                let [guessed] = take(rest)?;
                let length = u16_of(rest)?;
                Self::Alias(Alias {
                    serial,
                    expires_ms,
                    request,
                    bucket,
                    guessed: guessed != 0,
                    key: split(rest, length.into())?,
                })
            }
            _ => return None,
        })
    }

    /// Marks the entries of a request that is being served as ended, in place. False if
    /// there is none.
    pub(super) fn end(bucket: &mut [u8], id: u64, expires_ms: u64) -> bool {
        let mut found = false;
        let mut start = 0;
        while let Some(record) = bucket
            .get(start..)
            .and_then(|rest| Records::new(rest).next())
        {
            let (length, is_it) = match &record {
                Record::Entry(entry) => (
                    record.length(),
                    entry.id == id && entry.expires_ms.is_none(),
                ),
                _ => (record.length(), false),
            };
            if is_it {
                let place = start + Self::EXPIRES..start + Self::EXPIRES + 8;
                if let Some(place) = bucket.get_mut(place) {
                    place.copy_from_slice(&expires_ms.max(1).to_le_bytes());
                }
                found = true;
            }
            start += length;
        }
        found
    }
}

/// The records of a bucket. Ends at what cannot be read.
#[derive(Debug)]
pub(super) struct Records<'a> {
    rest: &'a [u8],
    whole: bool,
}

impl<'a> Records<'a> {
    pub(super) fn new(bucket: &'a [u8]) -> Self {
        let (rest, whole) = (bucket, true);
        Self { rest, whole }
    }

    /// Nothing was met that cannot be read.
    pub(super) fn whole(&self) -> bool {
        self.whole
    }

    /// The entries alone.
    pub(super) fn entries(self) -> impl Iterator<Item = Entry<'a>> {
        self.filter_map(|record| match record {
            Record::Entry(entry) => Some(entry),
            _ => None,
        })
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Record<'a>;

    fn next(&mut self) -> Option<Record<'a>> {
        if self.rest.is_empty() {
            return None;
        }
        let mut rest = self.rest;
        match Record::read(&mut rest) {
            Some(record) => {
                self.rest = rest;
                Some(record)
            }
            None => {
                self.rest = &[];
                self.whole = false;
                None
            }
        }
    }
}
