//! What an application is made of.

use std::fmt;

/// One of the calls that a step makes.
#[derive(Clone, Copy)]
pub struct Call {
    pub kind: u32,
    /// The probability that it is made at all (a cache may know the answer).
    pub chance: f64,
    /// The probability that it is made again.
    pub retry: f64,
    /// It is a job of a queue: one of the `workers` makes it.
    pub queued: bool,
    /// It takes so many times as long as others.
    pub times: f64,
}

/// Its kind, and what is special about it.
impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            kind,
            chance,
            retry,
            queued,
            times,
        } = self;
        write!(f, "{kind}{}", if *queued { "q" } else { "" })?;
        for (mark, value, usual) in [("?", chance, 1.0), ("r", retry, 0.0), ("x", times, 1.0)] {
            if *value != usual {
                write!(f, "{mark}{value:.2}")?;
            }
        }
        Ok(())
    }
}

pub const fn call(kind: u32) -> Call {
    Call {
        kind,
        chance: 1.0,
        retry: 0.0,
        queued: false,
        times: 1.0,
    }
}

/// Calls of one step are made at once; the next step begins when all have returned.
pub type Route = Vec<Vec<Call>>;

/// A job that a request leaves behind: calls one after the other, after its answer.
#[derive(Clone, Debug)]
pub struct After {
    /// The probability that a request does.
    pub chance: f64,
    pub kinds: Vec<u32>,
    /// The first call is made so long after the answer: from, to. Evenly from 0, else
    /// short times are as likely as long ones.
    pub ms: [f64; 2],
}

/// Clients of their own whose requests do nothing for most of the time, then make one
/// call (kind 1).
#[derive(Clone, Debug)]
pub struct Polls {
    pub clients: usize,
    pub seconds: f64,
}

/// Calls that a forwarded key gives to their requests. They are not counted.
#[derive(Clone, Copy, Debug)]
pub struct Keyed {
    pub share: f64,
    /// Of this kind only.
    pub kind: Option<u32>,
}

/// Which connection a call goes out on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clients {
    /// Any: not told.
    Shared,
    /// That of the thread, and there is one thread for each inbound connection.
    PerConnection,
    /// That of the thread of the pool that serves the request.
    PerThread,
}

#[derive(Clone, Debug)]
pub struct App {
    pub name: &'static str,
    pub says: &'static str,
    pub routes: Vec<Route>,
    /// The first routes are asked for more often than the others, if this is above 1.
    pub skew: f64,
    /// The share of the steps before which a request ends.
    pub early: f64,
    /// To which the kinds of calls belong.
    pub hosts: u32,
    pub cpu_ms: f64,
    pub io_ms: f64,
    /// The deviation of the logarithm of a call's time.
    pub io_tail: f64,
    /// The mean pause of a client after an answer.
    pub pause_ms: f64,
    /// Bursts of CPU that run at once, the others wait; `None` for any number.
    pub cores: Option<usize>,
    /// By this part a burst of CPU is longer for each request in flight.
    pub busier: f64,
    /// The deviation of the logarithm of a burst's time.
    pub tail: f64,
    /// Requests that are served at once; the others wait.
    pub threads: Option<usize>,
    /// That take the jobs of the queue; each makes one call at a time.
    pub workers: usize,
    /// Calls a second that nobody asked for, by kind.
    pub background: Vec<(u32, f64)>,
    /// These begin in the middle.
    pub late_background: bool,
    pub after: Option<After>,
    /// The share of the requests whose clients do not wait for the answer. The
    /// application does not notice.
    pub cancelled: f64,
    pub polls: Option<Polls>,
    /// Every so many milliseconds the application stands still, for so many.
    pub stalls: Option<[u64; 2]>,
    /// What the application does from the middle on.
    pub deploy: Option<Vec<Route>>,
    /// The time of calls grows up to so many times.
    pub drift: f64,
    /// The clients come and go: all at once, then one, ...
    pub bursts: bool,
    /// Microseconds by which the sidecar sees events late, at most.
    pub jitter_us: u64,
    /// One identifier of each request is in its calls.
    pub token: bool,
    pub keyed: Option<Keyed>,
    pub clients: Clients,
}

/// The first of the table; what the others do not say is as here.
pub fn plain() -> App {
    App {
        name: "threads",
        says: "four routes of 0 to 2 calls, one after the other; 0.3 ms CPU, 10 ms a call",
        routes: vec![
            vec![vec![call(1)], vec![call(2)]],
            vec![vec![call(2)], vec![call(3)]],
            vec![],
            vec![vec![call(1)]],
        ],
        skew: 1.0,
        early: 0.0,
        hosts: 1,
        cpu_ms: 0.3,
        io_ms: 10.0,
        io_tail: 0.6,
        pause_ms: 5.0,
        cores: None,
        busier: 0.0,
        tail: 0.5,
        threads: None,
        workers: 0,
        background: vec![],
        late_background: false,
        after: None,
        cancelled: 0.0,
        polls: None,
        stalls: None,
        deploy: None,
        drift: 1.0,
        bursts: false,
        jitter_us: 0,
        token: false,
        keyed: None,
        clients: Clients::Shared,
    }
}
