//! What happens on a client's connection: whether it may stay open, and for how long.

use std::{
    mem,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::{Body, Bytes, HttpBody},
    http::Version,
};
use hyper::body::{Frame, SizeHint};
use tokio::{sync::Notify, time::Instant};

/// The most requests whose responses are not taken yet, over all connections. Beyond it, a connection can have only one
/// at a time: over HTTP/2 it can otherwise have 16, and each holds some 8 kB.
const MAX_REQUESTS: usize = 1250;

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
    /// How many have responses that are not taken yet.
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
    /// Requests whose response is not taken yet.
    untaken: AtomicUsize,
    /// The latest of these moments, in ms since `requests.begin`: the connection came, it was told to end, a response was
    /// made, a part of one was taken, or a later request began to arrive.
    last: AtomicU64,
    /// Whether a response was ever made.
    has_answered: AtomicBool,
    is_http2: AtomicBool,
    /// Whether the last bytes that came over HTTP/1 do not end a request.
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

/// A request, from its arrival until its client has taken the response.
#[derive(Debug)]
pub struct Pending {
    activity: Arc<Activity>,
    /// Whether the response is still being made.
    is_busy: bool,
}

/// The body of a response that its client is to take.
#[derive(Debug)]
pub struct ResponseBody {
    body: Body,
    pending: Option<Pending>,
}

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
        let all = self.requests.untaken.fetch_add(1, Relaxed);
        let own = self.untaken.fetch_add(1, Relaxed);
        let mut pending = Pending { activity: self.clone(), is_busy: false };
        if all >= MAX_REQUESTS && own > 0 {
            return None;
        }
        self.busy.fetch_add(1, Relaxed);
        pending.is_busy = true;
        Some(pending)
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

    /// Notes whether the client takes what is written.
    pub fn note_taking(&self, is_taking: bool) {
        self.is_blocked.store(!is_taking, Relaxed);
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

    /// Whether the connection is between two requests.
    fn is_at_rest(&self) -> bool {
        self.has_answered.load(Relaxed)
            && self.untaken.load(Relaxed) == 0
            && !self.is_mid_request.load(Relaxed)
            && !self.is_blocked.load(Relaxed)
    }
}

impl Pending {
    /// The response is made, with this body.
    pub fn respond(mut self, body: Body) -> ResponseBody {
        self.activity.has_answered.store(true, Relaxed);
        self.end();
        ResponseBody { body, pending: Some(self) }
    }

    fn end(&mut self) {
        if mem::take(&mut self.is_busy) {
            self.activity.touch();
            self.activity.busy.fetch_sub(1, Relaxed);
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.end();
        self.activity.untaken.fetch_sub(1, Relaxed);
        self.activity.requests.untaken.fetch_sub(1, Relaxed);
    }
}

impl ResponseBody {
    /// The body of a response to a request that [`Activity::begin`] has refused.
    pub fn of_refused(body: Body) -> Self {
        Self { body, pending: None }
    }
}

impl HttpBody for ResponseBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        if frame.is_ready()
            && let Some(pending) = &self.pending
        {
            pending.activity.touch();
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
