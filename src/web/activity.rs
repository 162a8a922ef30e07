//! What happens on a client's connection: whether it may stay open, and for how long.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use axum::http::Version;
use tokio::{sync::Notify, time::Instant};

/// The most requests whose responses are not made or not taken yet, over all connections. Beyond it, a connection can
/// have only one at a time: over HTTP/2 it can otherwise have 16, and each holds some 8 kB.
const MAX_UNTAKEN: usize = 1250;

/// A connection that waits for a request's end or for its client to take a response is closed after this. It stops
/// clients that fill all places with half a request.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(20);

/// The same for a connection that is at rest: between two requests. A load balancer keeps its idle connections for up
/// to 600 s (Google's), and a request that it sends while this side closes the connection is lost. So the load balancer
/// must be the first to close.
const REST_TIMEOUT: Duration = Duration::from_secs(650);

/// The same for a connection that is to end: time for a request on its way, for the last response, and for HTTP/2's
/// farewell.
const LAST_MOMENTS: Duration = Duration::from_millis(200);

/// The requests of all connections.
#[derive(Debug)]
pub struct Requests {
    /// How many have responses that are not made or not taken yet. A response that is sent in parts counts once for each
    /// part that waits.
    untaken: AtomicUsize,
    /// The zero of [`Activity::last`].
    begin: Instant,
}

/// What happens on one connection.
#[derive(Debug)]
pub struct Activity {
    requests: Arc<Requests>,
    /// Requests whose response is being made.
    busy: AtomicUsize,
    /// This connection's part of [`Requests::untaken`].
    untaken: AtomicUsize,
    /// The latest of these moments, in ms since `requests.begin`: the connection came, it was told to end, a response was
    /// made, a part of one was taken, or a later request began to arrive.
    last: AtomicU64,
    /// Whether a response was ever made.
    has_answered: AtomicBool,
    is_http2: AtomicBool,
    /// Whether the last bytes that came over HTTP/1 leave a request incomplete.
    is_mid_request: AtomicBool,
    /// Whether no more can be written until the client reads.
    is_blocked: AtomicBool,
    /// Whether the client may be sending what nobody is going to read.
    leaves_bytes: AtomicBool,
    /// How often the connection was told to end: once asks it to, twice forces it.
    told: AtomicU8,
    /// Tells the connection's task to look at `told`.
    wake: Notify,
}

/// A request whose response is being made.
#[derive(Debug)]
pub struct Pending(Option<Untaken>);

/// A response that its client has not taken yet, or a part of one.
#[derive(Debug)]
pub struct Untaken(Arc<Activity>);

impl Default for Requests {
    fn default() -> Self {
        Self { untaken: AtomicUsize::new(0), begin: Instant::now() }
    }
}

impl Requests {
    /// Ms since the beginning.
    fn now(&self) -> u64 {
        self.begin.elapsed().as_millis() as u64
    }
}

impl Activity {
    /// That of a new connection.
    pub fn new(requests: &Arc<Requests>) -> Self {
        Self {
            requests: requests.clone(),
            busy: AtomicUsize::new(0),
            untaken: AtomicUsize::new(0),
            last: AtomicU64::new(requests.now()),
            has_answered: AtomicBool::new(false),
            is_http2: AtomicBool::new(false),
            is_mid_request: AtomicBool::new(false),
            is_blocked: AtomicBool::new(false),
            leaves_bytes: AtomicBool::new(false),
            told: AtomicU8::new(0),
            wake: Notify::new(),
        }
    }

    /// A request has arrived. None if it is refused, because too many responses are not taken.
    pub fn begin(self: &Arc<Self>, version: Version) -> Option<Pending> {
        if version == Version::HTTP_2 {
            self.is_http2.store(true, Relaxed);
            self.is_mid_request.store(false, Relaxed);
        }
        // First added, then compared: of two that arrive at once, one sees the other.
        let untaken = Untaken::new(self);
        if self.requests.untaken.load(Relaxed) > MAX_UNTAKEN && self.untaken.load(Relaxed) > 1 {
            return None;
        }
        self.busy.fetch_add(1, Relaxed);
        Some(Pending(Some(untaken)))
    }

    /// Notes that bytes came, and whether they seem to end a request.
    pub fn note_bytes(&self, is_end: bool) {
        let is_mid_request = !is_end && !self.is_http2.load(Relaxed);
        if is_mid_request == self.is_mid_request.load(Relaxed) {
            return;
        }
        self.is_mid_request.store(is_mid_request, Relaxed);
        if is_mid_request && self.has_answered.load(Relaxed) {
            // It is no longer at rest from now on.
            self.touch();
        }
    }

    /// Notes that the body of a request was read to its end.
    pub fn note_end_of_request(&self) {
        self.is_mid_request.store(false, Relaxed);
    }

    /// Notes whether the client takes what is written to the connection.
    pub fn note_taking(&self, is_taking: bool) {
        self.is_blocked.store(!is_taking, Relaxed);
        // Over HTTP/2, this may belong to no response.
        if is_taking && self.has_answered.load(Relaxed) && !self.is_http2.load(Relaxed) {
            self.touch();
        }
    }

    /// Notes that the rest of a request's body is not going to be read.
    pub fn note_bytes_left(&self) {
        self.leaves_bytes.store(true, Relaxed);
    }

    /// Whether the client may be sending what nobody is going to read.
    pub fn may_still_send(&self) -> bool {
        self.leaves_bytes.load(Relaxed) || self.is_mid_request.load(Relaxed)
    }

    /// How often the connection was told to end.
    pub fn told(&self) -> u8 {
        self.told.load(Relaxed)
    }

    /// Tells the connection to end: the first time once its requests are answered, the second time at once if it is idle.
    pub fn tell_to_end(&self) {
        self.told.fetch_add(1, Relaxed);
        self.wake.notify_one();
    }

    /// Resolves when the connection was told to end.
    pub async fn wait_until_told(&self) {
        self.wake.notified().await;
    }

    /// Whether no response is being made.
    pub fn is_idle(&self) -> bool {
        self.busy.load(Relaxed) == 0
    }

    /// Since when it has been idle, for comparison with others.
    pub fn idle_since(&self) -> u64 {
        self.last.load(Relaxed)
    }

    /// Begins to count anew for how long the connection is idle.
    pub fn touch(&self) {
        self.last.store(self.requests.now(), Relaxed);
    }

    /// The time until the connection times out, if nothing happens. A connection that `is_ending` has little.
    pub fn left(&self, is_ending: bool) -> Duration {
        let limit = match (is_ending, self.is_at_rest()) {
            (true, _) => LAST_MOMENTS,
            (false, true) => REST_TIMEOUT,
            (false, false) => IDLE_TIMEOUT,
        };
        let idle = if self.is_idle() { self.requests.now().saturating_sub(self.last.load(Relaxed)) } else { 0 };
        limit.saturating_sub(Duration::from_millis(idle))
    }

    fn end_request(&self) {
        self.touch();
        self.busy.fetch_sub(1, Relaxed);
    }

    /// Whether the connection is between two requests.
    fn is_at_rest(&self) -> bool {
        self.has_answered.load(Relaxed)
            && self.untaken.load(Relaxed) == 0
            && !self.is_mid_request.load(Relaxed)
            && !self.is_blocked.load(Relaxed)
    }
}

impl Pending {
    /// The response is made, and is to be taken.
    pub fn end(mut self) -> Option<Untaken> {
        self.0.take().inspect(|Untaken(activity)| {
            activity.has_answered.store(true, Relaxed);
            activity.end_request();
        })
    }
}

/// Without a response, because the client has gone.
impl Drop for Pending {
    fn drop(&mut self) {
        self.0.take().inspect(|Untaken(activity)| activity.end_request());
    }
}

impl Untaken {
    fn new(activity: &Arc<Activity>) -> Self {
        activity.untaken.fetch_add(1, Relaxed);
        activity.requests.untaken.fetch_add(1, Relaxed);
        Self(activity.clone())
    }

    /// Another part of the same response.
    pub fn another(&self) -> Self {
        Self::new(&self.0)
    }

    /// Notes that the client takes some of it. Over HTTP/1, what is written to the connection is noted instead.
    pub fn note_taking(&self) {
        if self.0.is_http2.load(Relaxed) {
            self.0.touch();
        }
    }
}

impl Drop for Untaken {
    fn drop(&mut self) {
        self.0.untaken.fetch_sub(1, Relaxed);
        self.0.requests.untaken.fetch_sub(1, Relaxed);
    }
}
