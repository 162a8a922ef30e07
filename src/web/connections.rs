//! The open connections: how many there may be, and which gives way to a new one.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::body::{Body, Bytes, HttpBody};
use hyper::body::{Frame, SizeHint};
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep_until, timeout},
};

/// The most connections at a time. Cloud Run sends at most 1,000 requests to an instance at once. A connection holds
/// some 20 kB, and 40 kB if its client sends requests and never reads: all together 50 MB of at least 128 MiB.
const MAX_CONNECTIONS: usize = 1250;

/// The most requests whose responses are not taken yet, over all connections. Beyond it, a connection can have only one
/// at a time: over HTTP/2 it can otherwise have 16, and each holds some 8 kB.
const MAX_REQUESTS: usize = 1250;

/// A connection on which no request is being answered, and whose client takes no response, is closed after this.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);

/// The same for a connection that is to end: time for a request on its way, and for the last response.
const LAST_MOMENTS: Duration = Duration::from_millis(200);

/// If every connection is busy, a new one waits this long until they are looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// All connections.
#[derive(Debug)]
pub struct Connections {
    open: Mutex<HashMap<u64, Arc<Activity>>>,
    begin: Instant,
    /// The number of the last connection.
    last: AtomicU64,
    permits: Arc<Semaphore>,
    /// Requests whose responses are not taken yet.
    requests: AtomicUsize,
    is_stopping: AtomicBool,
}

/// What happens on one connection.
#[derive(Debug)]
pub struct Activity {
    connections: Arc<Connections>,
    /// Requests whose response is being made.
    busy: AtomicUsize,
    /// When a response was last made, or a part of one taken, in ms since `connections.begin`.
    last: AtomicU64,
    /// Its part of `connections.requests`.
    requests: AtomicUsize,
    is_ending: AtomicBool,
    /// Tells the connection's task to look at `is_ending`.
    wake: Notify,
}

/// A connection's place among the others, until it ends.
#[derive(Debug)]
pub struct Place {
    number: u64,
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
pub struct ToTake {
    body: Body,
    pending: Option<Pending>,
}

impl Connections {
    /// None is open yet.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            open: Mutex::default(),
            begin: Instant::now(),
            last: AtomicU64::new(0),
            permits: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            requests: AtomicUsize::new(0),
            is_stopping: AtomicBool::new(false),
        })
    }

    /// A place for a new connection. If there is none, the one that has been idle longest gives way; if none is idle,
    /// the new one waits.
    pub async fn place(self: &Arc<Self>) -> Place {
        let permit = loop {
            if let Ok(permit) = self.permits.clone().try_acquire_owned() {
                break permit;
            }
            self.make_room();
            if let Ok(Ok(permit)) = timeout(LOOK_AGAIN, self.permits.clone().acquire_owned()).await {
                break permit;
            }
        };
        let activity = Arc::new(Activity {
            connections: self.clone(),
            busy: AtomicUsize::new(0),
            last: AtomicU64::new(self.now()),
            requests: AtomicUsize::new(0),
            is_ending: AtomicBool::new(false),
            wake: Notify::new(),
        });
        let number = self.last.fetch_add(1, Relaxed);
        self.open.lock().insert(number, activity.clone());
        Place { number, activity, _permit: permit }
    }

    /// Ms since the beginning.
    fn now(&self) -> u64 {
        self.begin.elapsed().as_millis() as u64
    }

    /// Ends the connection that has been idle longest, if any is idle.
    pub fn make_room(&self) {
        let open = self.open.lock();
        let idle = open.values().filter(|activity| activity.is_idle() && !activity.is_ending.load(Relaxed));
        let oldest = idle.min_by_key(|activity| activity.last.load(Relaxed));
        oldest.inspect(|activity| activity.end());
    }

    /// Ends each connection once its requests are answered, and returns when all have ended.
    pub async fn stop(&self) {
        self.is_stopping.store(true, Relaxed);
        self.open.lock().values().for_each(|activity| activity.end());
        let _ = self.permits.acquire_many(MAX_CONNECTIONS as u32).await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.activity.connections.open.lock().remove(&self.number);
    }
}

impl Place {
    /// Serves the connection until it ends, is idle for too long, or gives way. `end` tells it to end once its requests
    /// are answered.
    pub async fn hold<C: Future + Unpin>(self, mut connection: C, end: impl Fn(&mut C)) {
        let mut limit = IDLE_TIMEOUT;
        let activity = &self.activity;
        loop {
            tokio::select! {
                // First the connection: what has arrived by now makes it busy.
                biased;
                _ = &mut connection => return,
                () = activity.wake.notified() => {
                    if activity.is_idle() && !activity.connections.is_stopping.load(Relaxed) {
                        return;
                    }
                    end(&mut connection);
                    limit = LAST_MOMENTS;
                    activity.touch();
                }
                () = sleep_until(activity.times_out(limit)) => {
                    if activity.times_out(limit) <= Instant::now() {
                        return;
                    }
                }
            }
        }
    }
}

impl Activity {
    /// A request has arrived. None if it is refused, because too many responses are not taken.
    pub fn begin(self: &Arc<Self>) -> Option<Pending> {
        if self.connections.requests.load(Relaxed) >= MAX_REQUESTS && self.requests.load(Relaxed) > 0 {
            return None;
        }
        self.busy.fetch_add(1, Relaxed);
        self.requests.fetch_add(1, Relaxed);
        self.connections.requests.fetch_add(1, Relaxed);
        Some(Pending { activity: self.clone(), is_busy: true })
    }

    fn end(&self) {
        self.is_ending.store(true, Relaxed);
        self.wake.notify_one();
    }

    fn is_idle(&self) -> bool {
        self.busy.load(Relaxed) == 0
    }

    fn touch(&self) {
        self.last.store(self.connections.now(), Relaxed);
    }

    /// When the connection times out, if nothing happens.
    fn times_out(&self, limit: Duration) -> Instant {
        let idle = if self.is_idle() { self.connections.now().saturating_sub(self.last.load(Relaxed)) } else { 0 };
        Instant::now() + limit.saturating_sub(Duration::from_millis(idle))
    }
}

impl Pending {
    /// The response is made, with this body.
    pub fn respond(mut self, body: Body) -> ToTake {
        self.end();
        ToTake { body, pending: Some(self) }
    }

    fn end(&mut self) {
        if std::mem::take(&mut self.is_busy) {
            self.activity.busy.fetch_sub(1, Relaxed);
            self.activity.touch();
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

impl ToTake {
    /// The body of a response to a request that is refused.
    pub fn empty() -> Self {
        Self { body: Body::empty(), pending: None }
    }
}

impl HttpBody for ToTake {
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
