//! After step 5: an inbound request is stored, as the application gets it.

use super::Filter;
use super::request::Request;
use super::worker::WorkerState;
use super::write::Written;
use crate::attribution::signature;
use crate::config::Direction;
use crate::headers;
use crate::host::Host;
use crate::metrics::Counter;
use crate::relay::{self, StoredContext, W3cState};
use crate::request_id;
use crate::store::key::{self, Key};
use crate::store::{NewRequest, Ticket};
use std::borrow::Cow;

/// What became of an inbound request.
#[derive(Default)]
pub(super) struct Stored {
    pub counters: Vec<Counter>,
    pub ticket: Option<Ticket>,
}

impl Filter {
    /// Gives an inbound request an ID if it has none, and there is room for it.
    pub(super) fn add_request_id(
        &self,
        host: &impl Host,
        request: &mut Request<'_>,
        written: &mut Written,
    ) -> Option<Counter> {
        if !request.request_id.is_empty() || !self.config.generate_request_id {
            return None;
        }
        let id = request_id::generate(host.random());
        let edit = request.headers.edit(headers::REQUEST_ID, id.as_slice());
        written.edits.push(edit);
        if !request.headers.has_room(&written.edits) {
            written.edits.pop();
            return Some(Counter::NoRoom(Some(Direction::Inbound)));
        }
        request.request_id = Cow::Owned(id.to_vec());
        Some(Counter::RequestIds)
    }

    /// Stores the context of an inbound request, for the calls that are made for it.
    pub(super) fn store(
        &self,
        worker: &mut WorkerState,
        host: &impl Host,
        request: &Request<'_>,
        written: &Written,
    ) -> Stored {
        if !self.config.relay || request.is_tunnel() {
            return Stored::default();
        }
        let mut counters = Vec::new();
        let mut keys = request.keys(&self.config, written.formats);
        let further = request.further_keys(&self.config, &keys);
        if keys.is_empty() {
            if !self.attributes() && further.is_empty() {
                counters.push(Counter::NoKey);
                let ticket = None;
                return Stored { counters, ticket };
            }
            keys.push(Key::unnamed(host.random()));
        }
        let (stored, dropped) = self.stored_context(host, request, written);
        counters.extend((0..dropped).map(|_| Counter::CopyDropped));
        // A request without a context is stored too: another one with the
        // same request ID must not lend it its own.
        let (context, headers) = (stored.encode_context(), stored.encode_headers());
        let WorkerState {
            store, attribution, ..
        } = worker;
        let now_us = host.now_us();
        let new = NewRequest {
            keys: &keys,
            context: &context,
            headers: &headers,
            further: &further,
            further_context: relay::OF_SOME,
        };
        let inserted = store.insert_new(host, self.limits, now_us / 1000, new);
        if self.attributes() {
            let headers = &request.headers;
            let method = headers.method.value().unwrap_or_default();
            let path = headers.path.value().unwrap_or_default();
            let route = signature::route(method, path);
            let tokens = self.tokens(store, headers);
            attribution.begin(store, host, now_us, &inserted.ticket, route, tokens);
        }
        counters.push(match inserted.stored {
            true => Counter::Remembered,
            false => Counter::NotStored,
        });
        counters.extend((0..inserted.evicted).map(|_| Counter::Evicted));
        counters.extend((0..inserted.headers_evicted).map(|_| Counter::CopyDropped));
        Stored {
            counters,
            ticket: Some(inserted.ticket),
        }
    }

    /// What is stored, and how many headers had no room.
    fn stored_context(
        &self,
        host: &impl Host,
        request: &Request<'_>,
        written: &Written,
    ) -> (StoredContext, usize) {
        let Request {
            headers,
            extracted,
            context,
            ..
        } = request;
        let (mut stored, dropped) = StoredContext::of(headers, written.formats, *context);
        // Whole, or not at all.
        if request.request_id.len() <= key::LONGEST {
            stored.request_id = request.request_id.to_vec();
        }
        stored.has_clients_b3 = stored.w3c_state == W3cState::Current && !written.agree;
        stored.is_callers = host.is_before_router();
        let has_b3 = extracted.b3.ids.is_some();
        stored.is_uncertain = stored.is_callers && (request.is_odd || !has_b3);
        (stored, dropped)
    }
}
