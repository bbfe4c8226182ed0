//! CLIENT spans of outbound calls (`spans`): what is recorded, how it is encoded, and when
//! it is reported.
//!
//! Where Envoy's own client spans are on, its router overwrites the headers that b3relay
//! writes. So they are off, and b3relay reports those spans itself, with the name and
//! the tags that Envoy's have.
//!
//! | module | what it knows |
//! |---|---|
//! | `begun` | what is kept of a call from its request headers |
//! | `ended` | what Envoy knows of a call that is over |
//! | `flags` | Envoy's response flags, by their letters |
//! | `grpc` | which statuses of gRPC are errors |
//! | `node` | what is the same in all spans of a proxy |
//! | `span` | a whole span: its name and its tags |
//! | `zipkin` | Zipkin's format: v2, JSON |
//! | `otlp` | OpenTelemetry's: OTLP over HTTP, protobuf |
//! | `recorder` | batches, their bounds, and how the collector is |

mod begun;
mod ended;
mod flags;
mod grpc;
mod node;
mod otlp;
mod recorder;
mod span;
#[cfg(test)]
mod tests;
mod zipkin;

pub use begun::Begun;
pub use ended::{Ended, PROPERTIES};
pub use node::Node;
pub use recorder::{Added, Recorder, Report, TIMEOUT_MS};
pub use span::Span;

/// Writes the spans of a batch in one format.
trait Encoder {
    /// Appends a span to the batch.
    fn append(&self, span: &Span<'_>, batch: &mut Vec<u8>);
    /// A batch, as it is sent.
    fn body(&self, batch: &[u8]) -> Vec<u8>;
    /// The type of that, as a header says it.
    fn content_type(&self) -> &'static str;
}
