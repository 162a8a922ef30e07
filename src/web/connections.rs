//! The open connections: how many there may be, and which gives way to a new one.

use std::{
    collections::HashMap,
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
use futures_util::future::ready;
use hyper::body::{Frame, SizeHint};
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    task::unconstrained,
    time::{Instant, sleep, timeout},
};

/// The most connections at a time. Cloud Run sends at most 1,000 requests to an instance at once. A connection holds
/// some 20 kB, and 40 kB if its client sends requests and never reads: all together 50 MB of at least 128 MiB.
const MAX_CONNECTIONS: usize = 1250;

/// The most requests whose responses are not taken yet, over all connections. Beyond it, a connection can have only one
/// at a time: over HTTP/2 it can otherwise have 16, and each holds some 8 kB.
const MAX_REQUESTS: usize = 1250;

/// A new connection goes to the first thread that has no more than this many. So few do not fill a core, and views on one
/// thread share calls: with eight connections on two threads, a view was measured to cost a third more CPU and two tenths
/// of a command.
const FEW: usize = 8;

/// With fewer free places than this, each new connection makes an idle one end. The idle one has time for that, since the
/// new one takes a free place and does not wait. It stops clients that fill all places and end none.
const SPARE: usize = 50;

/// A connection that waits for a request's end or for its client to take a response is closed after this. It stops
/// clients that fill all places with half a request.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);

/// The same for a connection that is at rest: between two requests. A load balancer keeps its idle connections for up
/// to 600 s (Google's), and a request that it sends while this side closes the connection is lost. So the load balancer
/// must be the first to close.
const REST_TIMEOUT: Duration = Duration::from_secs(650);

/// The same for a connection that is to end: time for a request on its way, for the last response, and for HTTP/2's
/// farewell.
const LAST_MOMENTS: Duration = Duration::from_millis(200);

/// If every connection is busy, a new one waits this long until they are looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// All connections of the process. Threads share them: each bound is a semaphore or one atomic addition.
#[derive(Debug)]
pub struct Connections {
    open: Mutex<Open>,
    begin: Instant,
    permits: Arc<Semaphore>,
    /// Requests whose responses are not taken yet.
    requests: AtomicUsize,
}

#[derive(Debug)]
struct Open {
    connections: HashMap<u64, Arc<Activity>>,
    /// How many of them each thread serves.
    of_threads: Vec<usize>,
    /// The number of the next connection.
    next: u64,
    is_stopping: bool,
}

impl Open {
    /// Adds a connection that this thread serves, and returns its number.
    fn insert(&mut self, activity: &Arc<Activity>, thread: usize) -> u64 {
        let number = self.next;
        self.next += 1;
        self.of_threads[thread] += 1;
        self.connections.insert(number, activity.clone());
        if self.is_stopping {
            activity.tell_to_end();
        }
        number
    }
}

/// What happens on one connection.
#[derive(Debug)]
pub struct Activity {
    connections: Arc<Connections>,
    /// Requests whose response is being made.
    busy: AtomicUsize,
    /// When a response was last made, or a part of one taken, or half a request came, in ms since `connections.begin`.
    last: AtomicU64,
    /// Its part of `connections.requests`.
    requests: AtomicUsize,
    /// Whether a response was ever made.
    has_answered: AtomicBool,
    is_http2: AtomicBool,
    /// Whether the last bytes that came over HTTP/1 do not end a request.
    is_mid_request: AtomicBool,
    /// Whether no more can be written until the client reads.
    is_blocked: AtomicBool,
    /// Whether the client may be sending what nobody is going to read.
    leaves_bytes: AtomicBool,
    /// How often the connection was told to end: once is a request, twice an order.
    told: AtomicU8,
    /// Tells the connection's task to look at `told`.
    wake: Notify,
}

/// A connection's place among the others, until it ends.
#[derive(Debug)]
pub struct Place {
    number: u64,
    thread: usize,
    /// What happens on the connection.
    pub activity: Arc<Activity>,
    _permit: OwnedSemaphorePermit,
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

impl Connections {
    /// None is open yet on any of these threads.
    pub fn new(threads: usize) -> Arc<Self> {
        let (connections, of_threads) = (HashMap::new(), vec![0; threads]);
        Arc::new(Self {
            open: Mutex::new(Open { connections, of_threads, next: 0, is_stopping: false }),
            begin: Instant::now(),
            permits: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            requests: AtomicUsize::new(0),
        })
    }

    /// The thread that is to serve the next connection: the one with the fewest, or the first that has [`FEW`].
    pub fn next_thread(&self) -> usize {
        let open = self.open.lock();
        let fewest = open.of_threads.iter().enumerate().min_by_key(|(_, connections)| FEW.max(**connections));
        fewest.map_or(0, |(thread, _)| thread)
    }

    /// A place for a new connection, which this thread will serve. If places are short, the one that has been idle
    /// longest gives way: the first are those that have been at rest for more than 20 s. If all are busy, the new one
    /// waits.
    pub async fn place(self: &Arc<Self>, thread: usize) -> Place {
        let permit = loop {
            if self.permits.available_permits() <= SPARE {
                self.make_room();
            }
            if let Ok(permit) = self.permits.clone().try_acquire_owned() {
                break permit;
            }
            if let Ok(Ok(permit)) = timeout(LOOK_AGAIN, self.permits.clone().acquire_owned()).await {
                break permit;
            }
        };
        let activity = Arc::new(Activity {
            connections: self.clone(),
            busy: AtomicUsize::new(0),
            last: AtomicU64::new(self.now()),
            requests: AtomicUsize::new(0),
            has_answered: AtomicBool::new(false),
            is_http2: AtomicBool::new(false),
            is_mid_request: AtomicBool::new(false),
            is_blocked: AtomicBool::new(false),
            leaves_bytes: AtomicBool::new(false),
            told: AtomicU8::new(0),
            wake: Notify::new(),
        });
        let number = self.open.lock().insert(&activity, thread);
        Place { number, thread, activity, _permit: permit }
    }

    /// Ms since the beginning.
    fn now(&self) -> u64 {
        self.begin.elapsed().as_millis() as u64
    }

    /// Tells a connection to end, if any is idle. If no place is free, one that was told before has to end at once.
    pub fn make_room(&self) {
        let told = if self.permits.available_permits() == 0 { 1 } else { 0 };
        let open = self.open.lock();
        let idle = open.connections.values().filter(|activity| activity.is_idle() && activity.told() <= told);
        let first = idle.min_by_key(|activity| (activity.told() < told, activity.last.load(Relaxed)));
        first.inspect(|activity| activity.tell_to_end());
    }

    /// Ends each connection once its requests are answered, and returns when all have ended.
    pub async fn stop(&self) {
        self.tell_all_to_end();
        let _ = self.permits.acquire_many(MAX_CONNECTIONS as u32).await;
    }

    fn tell_all_to_end(&self) {
        let mut open = self.open.lock();
        open.is_stopping = true;
        open.connections.values().filter(|activity| activity.told() == 0).for_each(|activity| activity.tell_to_end());
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.activity.connections.open.lock();
        open.connections.remove(&self.number);
        open.of_threads[self.thread] -= 1;
    }
}

impl Place {
    /// Serves the connection until it ends, is idle for too long, or gives way. `end` tells it to end once its requests
    /// are answered; over HTTP/2, its client is told so too.
    pub async fn serve<C: Future + Unpin>(self, mut connection: C, end: impl Fn(&mut C)) {
        let activity = &self.activity;
        let mut is_ending = false;
        loop {
            tokio::select! {
                // First the connection: what has arrived by now makes it busy.
                biased;
                _ = &mut connection => return,
                // It has just been served once more, so its client has been told if that was possible.
                () = ready(()), if is_ending && activity.told() > 1 && activity.is_idle() => return,
                () = activity.wake.notified() => {}
                // A connection may cease to be at rest at any time, so none sleeps for longer than an idle one.
                // Unconstrained: a client that floods the connection uses up the task's budget, and tokio's timer would
                // then never be over.
                () = unconstrained(sleep(activity.left(is_ending).min(IDLE_TIMEOUT))) => {
                    if !activity.left(is_ending).is_zero() {
                        continue;
                    }
                    if is_ending {
                        return;
                    }
                }
            }
            if !is_ending {
                end(&mut connection);
                activity.touch();
                is_ending = true;
            }
        }
    }
}

impl Activity {
    /// A request has arrived. None if it is refused, because too many responses are not taken.
    pub fn begin(self: &Arc<Self>, version: Version) -> Option<Pending> {
        if version == Version::HTTP_2 {
            self.is_http2.store(true, Relaxed);
            self.is_mid_request.store(false, Relaxed);
        }
        // First added, then compared: of two that arrive at once, one sees the other.
        let all = self.connections.requests.fetch_add(1, Relaxed);
        let own = self.requests.fetch_add(1, Relaxed);
        let mut pending = Pending { activity: self.clone(), is_busy: false };
        if all >= MAX_REQUESTS && own > 0 {
            return None;
        }
        self.busy.fetch_add(1, Relaxed);
        pending.is_busy = true;
        Some(pending)
    }

    /// Bytes came, and seem to end a request or not.
    pub fn came(&self, is_end: bool) {
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

    /// The body of a request was read to its end.
    pub fn request_is_complete(&self) {
        self.is_mid_request.store(false, Relaxed);
    }

    /// The client takes what is written, or not.
    pub fn is_taking(&self, is_taking: bool) {
        self.is_blocked.store(!is_taking, Relaxed);
    }

    /// The rest of a request's body is not going to be read.
    pub fn leaves_bytes(&self) {
        self.leaves_bytes.store(true, Relaxed);
    }

    /// Whether the client may be sending what nobody is going to read.
    pub fn may_send(&self) -> bool {
        self.leaves_bytes.load(Relaxed) || self.is_mid_request.load(Relaxed)
    }

    fn told(&self) -> u8 {
        self.told.load(Relaxed)
    }

    fn tell_to_end(&self) {
        self.told.fetch_add(1, Relaxed);
        self.wake.notify_one();
    }

    fn is_idle(&self) -> bool {
        self.busy.load(Relaxed) == 0
    }

    /// Whether the connection is between two requests.
    fn is_at_rest(&self) -> bool {
        self.has_answered.load(Relaxed)
            && self.requests.load(Relaxed) == 0
            && !self.is_mid_request.load(Relaxed)
            && !self.is_blocked.load(Relaxed)
    }

    fn touch(&self) {
        self.last.store(self.connections.now(), Relaxed);
    }

    /// The time until the connection times out, if nothing happens.
    fn left(&self, is_ending: bool) -> Duration {
        let limit = match (is_ending, self.is_at_rest()) {
            (true, _) => LAST_MOMENTS,
            (false, true) => REST_TIMEOUT,
            (false, false) => IDLE_TIMEOUT,
        };
        let idle = if self.is_idle() { self.connections.now().saturating_sub(self.last.load(Relaxed)) } else { 0 };
        limit.saturating_sub(Duration::from_millis(idle))
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
        if std::mem::take(&mut self.is_busy) {
            self.activity.touch();
            self.activity.busy.fetch_sub(1, Relaxed);
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.end();
        self.activity.requests.fetch_sub(1, Relaxed);
        self.activity.connections.requests.fetch_sub(1, Relaxed);
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
