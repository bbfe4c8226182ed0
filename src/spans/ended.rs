//! What Envoy knows of a call that is over.

/// All of it as one list of values, in CEL: to be evaluated when the stream is over. One
/// value that is missing would fail the whole.
pub const PROPERTIES: &str = "[request.time, \
    has(request.duration) ? request.duration : duration('0s'), \
    has(response.code) ? response.code : 0, \
    response.flags, \
    has(request.size) ? request.size : 0, \
    response.size, \
    has(request.protocol) ? request.protocol : '-', \
    has(source.address) ? source.address : '', \
    has(xds.cluster_name) ? xds.cluster_name : '', \
    has(xds.virtual_host_name) ? xds.virtual_host_name : '']";

/// What Envoy knows of a call that is over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ended<'a> {
    /// When it began, in nanoseconds since the epoch.
    pub start_ns: u64,
    /// How long it took, in nanoseconds.
    pub duration_ns: u64,
    /// The status of the response; 0: there was none.
    pub status: u64,
    /// Envoy's response flags, as bits.
    pub flags: u64,
    /// Bytes of the body of the request.
    pub request_size: u64,
    /// Bytes of the body of the response.
    pub response_size: u64,
    /// Such as `HTTP/1.1`.
    pub protocol: &'a [u8],
    /// The address of the caller, with the port.
    pub source: &'a [u8],
    /// The Envoy cluster that it went to; empty if to none.
    pub cluster: &'a [u8],
    /// The virtual host of its route; empty if it had none.
    pub virtual_host: &'a [u8],
}

impl<'a> Ended<'a> {
    /// From the values of [`PROPERTIES`]; `None` if they are others.
    pub fn read(values: impl IntoIterator<Item = &'a [u8]>) -> Option<Self> {
        let mut values = values.into_iter();
        let mut number = || Some(u64::from_le_bytes(values.next()?.try_into().ok()?));
        let numbers = [
            number()?,
            number()?,
            number()?,
            number()?,
            number()?,
            number()?,
        ];
        let [
            start_ns,
            duration_ns,
            status,
            flags,
            request_size,
            response_size,
        ] = numbers;
        Some(Self {
            start_ns,
            duration_ns,
            status,
            flags,
            request_size,
            response_size,
            protocol: values.next()?,
            source: values.next()?,
            cluster: values.next()?,
            virtual_host: values.next()?,
        })
    }
}
