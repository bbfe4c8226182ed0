//! The records of a bucket, and how they are encoded.
//!
//! A bucket is a list of records, in shared data with its length at the end ([`unseal`]; no
//! bytes are no records). A record is a tag u8, and then its fields; integers are
//! little-endian:
//!
//! | tag | record | fields |
//! |---|---|---|
//! | 0 | entry | id u64, started u64, expires u64 (0 while the request is in flight), past u16, headers bucket u16 (65535: no headers), key length u16, context length u16, key, context |
//! | 1 | headers | id u64, length u16, headers |
//! | 2 | tombstone | id u64, hash of the key u64 |
//! | 3 | tombstone count | count u32 |
//! | 4 | alias | serial u64, expires u64, worker u16, id u64, bucket u16, guessed u8, key length u16, key |

use super::shared_data::unseal;
use crate::bytes::{read_array, read_bytes, read_u16, read_u32, read_u64};

/// Buckets of each worker's table.
pub const BUCKETS: u16 = 1024;
/// As the headers bucket of an entry: the request has no headers.
const NO_BUCKET: u16 = u16::MAX;

/// A request under one of its keys.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry<'a> {
    /// The request's number in its worker.
    pub id: u64,
    /// When the request began, in milliseconds since the epoch.
    pub started_ms: u64,
    /// When the entry expires, in milliseconds since the epoch; `None` while the request is
    /// in flight.
    pub expires_ms: Option<u64>,
    /// For how long after that it is known that there was the request, in milliseconds.
    pub past_ms: u16,
    /// The bucket that its copied headers are in; `None` if it has none.
    pub headers_bucket: Option<u16>,
    pub key: &'a [u8],
    pub context: &'a [u8],
}

/// A further key of a request, which has its entries elsewhere.
#[derive(Clone, Copy, Debug)]
pub(super) struct Alias<'a> {
    /// The alias's own number in the worker that wrote it.
    pub serial: u64,
    /// When the alias expires, in milliseconds since the epoch.
    pub expires_ms: u64,
    /// The worker of the request, and the request's number there.
    pub request: (u16, u64),
    /// A bucket of that worker that has an entry of the request.
    pub bucket: u16,
    /// That the key is of this request is a guess.
    pub guessed: bool,
    pub key: &'a [u8],
}

impl Entry<'_> {
    /// When it is forgotten that there was the request, in milliseconds since the epoch;
    /// `None` while the request is in flight.
    pub fn forgotten_ms(&self) -> Option<u64> {
        let after = u64::from(self.past_ms);
        self.expires_ms.map(|at| at.saturating_add(after))
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Record<'a> {
    Entry(Entry<'a>),
    /// The copied headers of a request, once.
    Headers {
        id: u64,
        headers: &'a [u8],
    },
    /// A request that is in flight and not stored, under a key with this hash.
    Tombstone {
        id: u64,
        key_hash: u64,
    },
    /// How many more requests are in flight and not stored, under unknown keys of this
    /// bucket.
    TombstoneCount(u32),
    Alias(Alias<'a>),
}

impl<'a> Record<'a> {
    /// The offset of the time at which an entry expires.
    const EXPIRES_AT: usize = 17;

    /// It says that requests in flight are not stored.
    pub(super) fn is_tombstone(&self) -> bool {
        matches!(self, Self::Tombstone { .. } | Self::TombstoneCount(_))
    }

    /// Bytes of the encoded record.
    pub(super) fn encoded_length(&self) -> usize {
        match self {
            Self::Entry(entry) => 33 + entry.key.len() + entry.context.len(),
            Self::Headers { headers, .. } => 11 + headers.len(),
            Self::Tombstone { .. } => 17,
            Self::TombstoneCount(_) => 5,
            Self::Alias(alias) => 32 + alias.key.len(),
        }
    }

    /// Appends the encoded record to a bucket.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let length = |bytes: &[u8]| u16::try_from(bytes.len()).unwrap_or(u16::MAX);
        out.reserve(self.encoded_length());
        match self {
            Self::Entry(entry) => {
                out.push(0);
                out.extend_from_slice(&entry.id.to_le_bytes());
                out.extend_from_slice(&entry.started_ms.to_le_bytes());
                out.extend_from_slice(&entry.expires_ms.unwrap_or(0).to_le_bytes());
                out.extend_from_slice(&entry.past_ms.to_le_bytes());
                out.extend_from_slice(&entry.headers_bucket.unwrap_or(NO_BUCKET).to_le_bytes());
                out.extend_from_slice(&length(entry.key).to_le_bytes());
                out.extend_from_slice(&length(entry.context).to_le_bytes());
                out.extend_from_slice(entry.key);
                out.extend_from_slice(entry.context);
            }
            Self::Headers { id, headers } => {
                out.push(1);
                out.extend_from_slice(&id.to_le_bytes());
                out.extend_from_slice(&length(headers).to_le_bytes());
                out.extend_from_slice(headers);
            }
            Self::Tombstone { id, key_hash } => {
                out.push(2);
                out.extend_from_slice(&id.to_le_bytes());
                out.extend_from_slice(&key_hash.to_le_bytes());
            }
            Self::TombstoneCount(count) => {
                out.push(3);
                out.extend_from_slice(&count.to_le_bytes());
            }
            Self::Alias(alias) => {
                out.push(4);
                out.extend_from_slice(&alias.serial.to_le_bytes());
                out.extend_from_slice(&alias.expires_ms.to_le_bytes());
                out.extend_from_slice(&alias.request.0.to_le_bytes());
                out.extend_from_slice(&alias.request.1.to_le_bytes());
                out.extend_from_slice(&alias.bucket.to_le_bytes());
                out.push(u8::from(alias.guessed));
                out.extend_from_slice(&length(alias.key).to_le_bytes());
                out.extend_from_slice(alias.key);
            }
        }
    }

    /// Takes one record off the beginning; `None` if there is none.
    fn decode(rest: &mut &'a [u8]) -> Option<Self> {
        let [tag] = read_array(rest)?;
        Some(match tag {
            0 => {
                let (id, started_ms, expires) = (read_u64(rest)?, read_u64(rest)?, read_u64(rest)?);
                let past_ms = read_u16(rest)?;
                let headers_bucket = read_u16(rest)?;
                let (key, context) = (read_u16(rest)?, read_u16(rest)?);
                Self::Entry(Entry {
                    id,
                    started_ms,
                    expires_ms: (expires != 0).then_some(expires),
                    past_ms,
                    headers_bucket: (headers_bucket != NO_BUCKET).then_some(headers_bucket),
                    key: read_bytes(rest, key.into())?,
                    context: read_bytes(rest, context.into())?,
                })
            }
            1 => {
                let id = read_u64(rest)?;
                let length = read_u16(rest)?;
                let headers = read_bytes(rest, length.into())?;
                Self::Headers { id, headers }
            }
            2 => Self::Tombstone {
                id: read_u64(rest)?,
                key_hash: read_u64(rest)?,
            },
            3 => Self::TombstoneCount(read_u32(rest)?),
            4 => {
                let (serial, expires_ms) = (read_u64(rest)?, read_u64(rest)?);
                let request = (read_u16(rest)?, read_u64(rest)?);
                let bucket = read_u16(rest)?;
                let [guessed] = read_array(rest)?;
                let length = read_u16(rest)?;
                Self::Alias(Alias {
                    serial,
                    expires_ms,
                    request,
                    bucket,
                    guessed: guessed != 0,
                    key: read_bytes(rest, length.into())?,
                })
            }
            _ => return None,
        })
    }

    /// Gives the entries of an in-flight request the time at which they expire, in place.
    /// False if there is none.
    pub(super) fn end(bucket: &mut [u8], id: u64, expires_ms: u64) -> bool {
        let mut found = false;
        let mut start = 0;
        while let Some(record) = bucket
            .get(start..)
            .and_then(|rest| Records::new(rest).next())
        {
            let (length, matches) = match &record {
                Record::Entry(entry) => (
                    record.encoded_length(),
                    entry.id == id && entry.expires_ms.is_none(),
                ),
                _ => (record.encoded_length(), false),
            };
            if matches {
                let field = start + Self::EXPIRES_AT..start + Self::EXPIRES_AT + 8;
                if let Some(field) = bucket.get_mut(field) {
                    field.copy_from_slice(&expires_ms.max(1).to_le_bytes());
                }
                found = true;
            }
            start += length;
        }
        found
    }
}

/// The records of a bucket. Ends at the first one that cannot be decoded.
#[derive(Debug)]
pub(super) struct Records<'a> {
    rest: &'a [u8],
    is_whole: bool,
}

impl<'a> Records<'a> {
    pub(super) fn new(bucket: &'a [u8]) -> Self {
        Self {
            rest: bucket,
            is_whole: true,
        }
    }

    /// Those of a bucket as it is in shared data; none if that was spoiled.
    pub(super) fn published(value: &'a [u8]) -> Self {
        let bucket = match value {
            [] => Some(value),
            _ => unseal(value),
        };
        Self {
            rest: bucket.unwrap_or_default(),
            is_whole: bucket.is_some(),
        }
    }

    /// Every record so far could be decoded.
    pub(super) fn is_whole(&self) -> bool {
        self.is_whole
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
        match Record::decode(&mut rest) {
            Some(record) => {
                self.rest = rest;
                Some(record)
            }
            None => {
                self.rest = &[];
                self.is_whole = false;
                None
            }
        }
    }
}
