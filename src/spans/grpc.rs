//! gRPC, as Envoy's tracing sees it.

/// The content type of a request of gRPC (`Grpc::Common::hasGrpcContentType`).
pub(super) fn is_request(content_type: &[u8]) -> bool {
    let rest = content_type.strip_prefix(b"application/grpc");
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// The status is one that Envoy tags as an error: those that are the server's fault.
/// `Unknown`, `DeadlineExceeded`, `ResourceExhausted`, `Unimplemented`, `Internal`,
/// `Unavailable` and `DataLoss`.
pub(super) fn is_error(status: &[u8]) -> bool {
    matches!(status, b"2" | b"4" | b"8" | b"12" | b"13" | b"14" | b"15")
}
