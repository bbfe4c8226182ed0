//! What a sidecar sees of an application.

/// How much is simulated.
#[derive(Clone, Copy)]
pub struct Size {
    pub requests: u64,
    /// How many of them come one after the other, before it counts.
    pub quiet: u64,
}

/// A call, as the sidecar sees it.
#[derive(Clone, Copy)]
pub struct SeenCall {
    pub id: u64,
    pub kind: u32,
    pub token: u32,
    /// The truth; `None` for a call of the background.
    pub owner: Option<u64>,
    /// The sidecar is told the truth.
    pub keyed: bool,
    /// The outbound connection; 0 if it says nothing.
    pub connection: u32,
}

#[derive(Clone, Copy)]
pub struct Begun {
    pub id: u64,
    pub route: u32,
    pub token: u32,
    /// The inbound connection, from 1. The tracker does not take it.
    #[allow(dead_code)]
    pub connection: u32,
}

#[derive(Clone, Copy)]
pub enum Seen {
    Begin(Begun),
    Call(SeenCall),
    CallEnd(u64),
    End(u64),
    /// The client did not wait; the application goes on.
    BrokenOff(u64),
}
