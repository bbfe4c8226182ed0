//! What is written in a journal.

use crate::attribution::Call;
use crate::attribution::signature::Token;
use crate::bytes::{read_array, read_u16, read_u32, read_u64};
use crate::store::RequestRef;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A request has begun.
    Begin {
        /// Its number in the store.
        request: u64,
        /// The bucket of the store that has it.
        bucket: u16,
        /// [`crate::attribution::signature::route`]
        route: u32,
        /// [`crate::attribution::signature::tokens`]
        tokens: Vec<Token>,
    },
    /// It has been answered, or was broken off.
    End {
        /// Its number in the store.
        request: u64,
        /// The response had begun.
        answered: bool,
    },
    /// A call has begun.
    Call {
        /// Its number in the worker.
        number: u64,
        /// What it is.
        call: Call,
        /// The request that it is known to belong to.
        owner: Option<RequestRef>,
    },
    /// It has returned, or was broken off.
    CallEnd {
        /// Its number in the worker.
        call: u64,
    },
}

impl Event {
    /// How many requests are in flight after it, if so many were before.
    pub(super) fn in_flight_after(&self, in_flight: u32) -> u32 {
        match self {
            Self::Begin { .. } => in_flight.saturating_add(1),
            Self::End { .. } => in_flight.saturating_sub(1),
            _ => in_flight,
        }
    }

    /// Appends it with its time, in microseconds.
    pub(super) fn encode(&self, at_us: u64, out: &mut Vec<u8>) {
        out.extend_from_slice(&at_us.to_le_bytes());
        let encode_tokens = |tokens: &[Token], out: &mut Vec<u8>| {
            let count = u8::try_from(tokens.len()).unwrap_or(u8::MAX);
            out.push(count);
            for token in tokens.iter().take(count.into()) {
                out.extend_from_slice(&token.to_u32().to_le_bytes());
            }
        };
        match self {
            Self::Begin {
                request,
                bucket,
                route,
                tokens,
            } => {
                out.push(0);
                out.extend_from_slice(&request.to_le_bytes());
                out.extend_from_slice(&bucket.to_le_bytes());
                out.extend_from_slice(&route.to_le_bytes());
                encode_tokens(tokens, out);
            }
            Self::End { request, answered } => {
                out.push(if *answered { 1 } else { 5 });
                out.extend_from_slice(&request.to_le_bytes());
            }
            Self::Call {
                number,
                call,
                owner,
            } => {
                let [fine, coarse] = call.kind;
                out.push(if owner.is_some() { 3 } else { 2 });
                out.extend_from_slice(&number.to_le_bytes());
                out.extend_from_slice(&fine.to_le_bytes());
                out.extend_from_slice(&coarse.to_le_bytes());
                out.extend_from_slice(&call.port.to_le_bytes());
                if let Some((worker, request)) = owner {
                    out.extend_from_slice(&worker.to_le_bytes());
                    out.extend_from_slice(&request.to_le_bytes());
                }
                encode_tokens(&call.tokens, out);
            }
            Self::CallEnd { call } => {
                out.push(4);
                out.extend_from_slice(&call.to_le_bytes());
            }
        }
    }

    /// The inverse of [`Event::encode`], off the beginning of `rest`. `None` if that is no
    /// event.
    pub(super) fn decode(rest: &mut &[u8]) -> Option<(u64, Self)> {
        let at_us = read_u64(rest)?;
        let [tag] = read_array(rest)?;
        let number = read_u64(rest)?;
        let decode_tokens = |rest: &mut &[u8]| -> Option<Vec<Token>> {
            let [count] = read_array(rest)?;
            let numbers = (0..count).map(|_| read_u32(rest));
            numbers.map(|n| n.map(Token::from_u32)).collect()
        };
        let event = match tag {
            0 => Self::Begin {
                request: number,
                bucket: read_u16(rest)?,
                route: read_u32(rest)?,
                tokens: decode_tokens(rest)?,
            },
            1 | 5 => Self::End {
                request: number,
                answered: tag == 1,
            },
            2 | 3 => {
                let kind = [read_u32(rest)?, read_u32(rest)?];
                let port = read_u16(rest)?;
                let owner = match tag {
                    2 => None,
                    _ => Some((read_u16(rest)?, read_u64(rest)?)),
                };
                let call = Call {
                    kind,
                    tokens: decode_tokens(rest)?,
                    port,
                };
                Self::Call {
                    number,
                    call,
                    owner,
                }
            }
            4 => Self::CallEnd { call: number },
            _ => return None,
        };
        Some((at_us, event))
    }
}
