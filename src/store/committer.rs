//! Counts views in Redis: many in one call (group commit), and each of them once.
//!
//! # Claim
//! A view that is answered with a count was counted exactly once. For each session and path, every count from 1 on
//! is answered at most once, and none is skipped but for views that ended in an error or whose client disconnected.
//!
//! # Prior art
//! This is the client table of Viewstamped Replication (Liskov and Cowling, "Viewstamped Replication
//! Revisited", 2012, section 4.1) and of Raft (Ongaro, "Consensus: Bridging Theory and Practice", 2014,
//! section 6.3): a client numbers its requests and has one in flight; the server keeps the last number and
//! reply of each client, and answers a repetition from there. The client is a lane of this instance,
//! the request a *call* of `count_views.lua`. A call may take several *attempts*, all under one number.
//!
//! # Invariants
//! 1. *A lane has one call in flight.* It is taken before its task begins, and free when that ends: one task at a time,
//!    which takes up the next batch when the last call was answered or given up.
//! 2. *A number names one call.* Numbers grow, and the keys of kept replies are random for each process.
//! 3. *The number of the kept reply never falls.* The script replaces only a reply with a lower number.
//! 4. *A call is counted if and only if its reply is kept.* The script does both or neither, and Redis runs
//!    a script in one step. (A call whose sessions are all over counts nothing and keeps nothing.)
//! 5. *Counts expire before their record.* So a count above 1 proves that the session lives. See
//!    [`super::lifetime`].
//!
//! By 3 and 4 a call is counted at most once. By 1 no newer call can replace its reply before its last
//! attempt, so an attempt that is answered returns this call's own reply, whichever attempt counted it.
//!
//! # Races
//! 1. *An attempt is lost on its way.* The next one is the first to be counted.
//! 2. *A reply is lost.* The next attempt finds the reply kept, is undone, and returns it.
//! 3. *An attempt arrives twice, or after its repetition.* The same.
//! 4. *An attempt arrives after a newer call of its lane.* The kept reply has a higher number: the attempt is
//!    undone and renews nothing, and the reply it returns is ignored.
//! 5. *An attempt arrives after its session is over.* Nothing is counted, and nothing is left behind: ids are
//!    random and never used again.
//! 6. *A session ends, is deleted or saved while its view waits.* The script sees the session before or after.
//! 7. *A client disconnects.* Before its batch is built, its view is not counted; later, it is.
//! 8. *Two lanes count views of one session.* Redis runs one call after the other. Each has its own kept reply, and
//!    what is undone are a call's own increments.
//! 9. *This instance freezes.* An attempt is not sent after its deadline, and a reply that is read after it is
//!    dropped, see `retry.rs`.
//!
//! # Assumptions
//! - Redis does not evict keys, and runs scripts atomically.
//! - An attempt arrives within [`REPLY_KEPT_FOR`] of its call. TCP gives up long before; but a process that
//!   freezes for longer, after it has looked at its deadline and before it writes, breaks this.
//! - The clocks need not agree. They only have to run at about one rate, also while the machine is suspended, see
//!   [`super::lifetime`].
//!
//! # Not promised
//! - After a failover to a replica that lacks the last writes, their counts are given out again.
//! - A new visitor's requests that overlap have no session in common yet: each begins one.
//! - A view that ends in [`Error::Unanswered`] may have been counted.

use std::{
    collections::HashMap,
    mem,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use fred::{
    bytes::BytesMut,
    types::{Key, Value},
};
use parking_lot::Mutex;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    time::{Instant, sleep},
};
use tower_sessions::session::Id;

use super::{
    error::Error,
    first_view::FirstView,
    keys::{self, ReplyKeys},
    lifetime::{Lifetime, MARGIN, REPLY_KEPT_FOR, Renewed},
    pacing::{self, LastCall, MAX_BATCH, MAX_LANES},
    script::{self, RunScript, Script},
};

/// The most views that may wait or be in a call; one more is refused. Cloud Run sends at most 1,000 requests to an
/// instance at once.
const MAX_VIEWS: usize = 2 * MAX_BATCH;

/// What can share a call: in a Cluster the views of this slot; elsewhere, without a slot, all.
type Slot = Option<u16>;

/// A view's count, or none if its session is over.
pub type Counted = Result<Option<u64>, Error>;

/// Counts views. A clone is another handle on the same committer.
#[derive(Clone, Debug)]
pub struct Committer<R>(Arc<Shared<R>>);

#[derive(Debug)]
struct Shared<R> {
    redis: R,
    script: Script,
    lifetime: Lifetime,
    renewed: Arc<Renewed>,
    /// Where Redis keeps the replies to this instance.
    reply_keys: ReplyKeys,
    /// The number of the last call.
    calls: AtomicU64,
    /// The queues that have a lane taken.
    queues: Mutex<HashMap<Slot, Queue>>,
    /// One permit for each view that waits or is in flight.
    permits: Arc<Semaphore>,
}

/// The views that can share a call.
#[derive(Debug, Default)]
struct Queue {
    /// They wait for the next call of any lane.
    waiting: Vec<View>,
    /// Which lanes are taken: each has a task.
    lanes: [bool; MAX_LANES],
    /// The last call that ended, if it was answered.
    last: Option<LastCall>,
}

impl Queue {
    fn taken(&self) -> usize {
        self.lanes.iter().filter(|is_taken| **is_taken).count()
    }
}

#[derive(Debug)]
struct View {
    session: Id,
    path: Box<str>,
    /// The request that waits.
    request: oneshot::Sender<Counted>,
    _permit: OwnedSemaphorePermit,
}

impl View {
    fn answer(self, counted: Counted) {
        // The client may have disconnected.
        let _ = self.request.send(counted);
    }

    fn is_awaited(&self) -> bool {
        !self.request.is_closed()
    }
}

impl<R: RunScript> Committer<R> {
    /// Counts in this Redis, and renews sessions that are not in `renewed`.
    pub fn new(redis: R, lifetime: Lifetime, renewed: Arc<Renewed>) -> Self {
        Self(Arc::new(Shared {
            script: Script::new(include_str!("count_views.lua")),
            lifetime,
            renewed,
            reply_keys: ReplyKeys::new(redis.is_clustered()),
            redis,
            calls: AtomicU64::new(0),
            queues: Mutex::default(),
            permits: Arc::new(Semaphore::new(MAX_VIEWS)),
        }))
    }

    /// Counts a view of `path`. See [`super::Store::count_view`].
    ///
    /// # Errors
    /// As for [`super::Store::count_view`].
    pub async fn count_view(&self, session: Id, path: &str) -> Counted {
        let shared = &self.0;
        let (request, counted) = oneshot::channel();
        let view = View { session, path: path.into(), request, _permit: shared.permit()? };
        shared.enqueue(view);
        // A lane's task answers every view, unless the runtime ends first.
        counted.await.unwrap_or(Err(Error::Unanswered))
    }

    /// Whether no lane is taken, and every permit has come back.
    pub fn is_idle(&self) -> bool {
        self.0.queues.lock().is_empty() && self.0.permits.available_permits() == MAX_VIEWS
    }
}

impl<R: RunScript> Shared<R> {
    fn permit(&self) -> Result<OwnedSemaphorePermit, Error> {
        let permit = || self.permits.clone().try_acquire_owned();
        permit().or_else(|_| {
            // Clients that have disconnected may hold some.
            for queue in self.queues.lock().values_mut() {
                queue.waiting.retain(View::is_awaited);
            }
            permit().map_err(|_| Error::Overloaded)
        })
    }

    /// Lets the view wait for the next call, and takes another lane if one more call may be in flight.
    fn enqueue(self: &Arc<Self>, view: View) {
        let slot = self.redis.is_clustered().then(|| keys::slot(&view.session));
        let mut queues = self.queues.lock();
        let queue = queues.entry(slot).or_default();
        queue.waiting.push(view);
        if queue.taken() < max_lanes(slot, queue)
            && let Some(lane) = queue.lanes.iter().position(|is_taken| !is_taken)
        {
            queue.lanes[lane] = true;
            tokio::spawn(self.clone().serve(slot, lane));
        }
    }

    /// Counts the queue's views in this lane, call by call, until none wait or the other lanes are enough.
    async fn serve(self: Arc<Self>, slot: Slot, lane: usize) {
        while let Some(batch) = self.next_batch(slot, lane) {
            let last = self.count(slot, lane, batch).await;
            if let Some(pause) = last.and_then(pacing::pause) {
                sleep(pause).await;
            }
        }
    }

    /// Takes the next batch out of the queue, or gives up the lane.
    fn next_batch(&self, slot: Slot, lane: usize) -> Option<Vec<View>> {
        let mut queues = self.queues.lock();
        let queue = queues.get_mut(&slot)?;
        queue.waiting.retain(View::is_awaited);
        if queue.waiting.is_empty() || queue.taken() > max_lanes(slot, queue) {
            queue.lanes[lane] = false;
            if queue.taken() == 0 {
                queues.remove(&slot);
            }
            return None;
        }
        let size = pacing::batch_size(queue.waiting.len(), queue.last);
        Some(queue.waiting.drain(..size).collect())
    }

    /// Counts a batch in one call, and answers its views.
    async fn count(&self, slot: Slot, lane: usize, batch: Vec<View>) -> Option<LastCall> {
        let begin = Instant::now();
        let counted = self.call(slot, lane, &batch).await;
        let last = counted.is_ok().then(|| LastCall { batch: batch.len(), took: begin.elapsed() });
        let mut waiting = Vec::new();
        // It is there, since this lane is taken.
        if let Some(queue) = self.queues.lock().get_mut(&slot) {
            queue.last = last;
            if let Err(Error::Unanswered | Error::Unreached) = counted {
                // Redis is out of reach. They may have waited as long as this call, and would wait as long again.
                waiting = mem::take(&mut queue.waiting);
            }
        }
        for view in waiting {
            view.answer(Err(Error::Unreached));
        }
        match counted {
            Ok(counts) => batch.into_iter().zip(counts).for_each(|(view, counted)| view.answer(counted)),
            Err(error) => batch.into_iter().for_each(|view| view.answer(Err(error.clone()))),
        }
        last
    }

    /// Counts the batch in Redis. Returns the result for each view.
    async fn call(&self, slot: Slot, lane: usize, batch: &[View]) -> Result<Vec<Counted>, Error> {
        let number = self.calls.fetch_add(1, Relaxed) + 1;
        let begin = Instant::now();
        let sessions = || batch.iter().map(|view| &view.session);
        let are_due = self.renewed.are_due(sessions(), begin);
        let reply_key = self.reply_keys.key(slot, lane);
        let arguments = || self.arguments(number, &reply_key, batch, &are_due);
        let reply = script::run(&self.redis, begin, &self.script, arguments).await?;
        // Only this lane writes to its key, one call after the other: another reply is a fault, and is not handed out.
        let counts = read_reply(&reply, number, batch.len()).ok_or(Error::Unanswered)?;
        let renewed = sessions().zip(&are_due).zip(&counts);
        let renewed = renewed
            .filter_map(|((session, is_due), counted)| (*is_due && matches!(counted, Ok(Some(_)))).then_some(*session));
        self.renewed.remember(renewed, begin);
        Ok(counts)
    }

    /// The script's keys and arguments.
    fn arguments(&self, number: u64, reply_key: &Key, batch: &[View], are_due: &[bool]) -> (Vec<Key>, Vec<Value>) {
        let mut keys = Vec::with_capacity(1 + 2 * batch.len());
        keys.push(reply_key.clone());
        keys.extend(keys::of_sessions(batch.iter().map(|view| &view.session)));
        let due: String = are_due.iter().map(|is_due| if *is_due { '1' } else { '0' }).collect();
        let mut arguments = Vec::with_capacity(6 + batch.len());
        arguments.extend([
            Value::from(number as i64),
            Value::from(self.lifetime.record_millis()),
            Value::from(MARGIN.as_millis() as i64),
            Value::from(REPLY_KEPT_FOR.as_secs() as i64),
            Value::from_static_str(FirstView::KEY),
            due.into(),
        ]);
        // One buffer for all paths.
        let mut paths = BytesMut::with_capacity(batch.iter().map(|view| view.path.len()).sum());
        arguments.extend(batch.iter().map(|view| {
            paths.extend_from_slice(view.path.as_bytes());
            Value::from(paths.split().freeze())
        }));
        (keys, arguments)
    }
}

/// How many lanes of a queue may be taken. In a Cluster it is one: other slots have their own calls in flight.
fn max_lanes(slot: Slot, queue: &Queue) -> usize {
    if slot.is_some() { 1 } else { pacing::max_lanes(queue.last) }
}

/// Reads the script's reply to the call of this number and size: the result for each view. None if it is
/// anything else.
fn read_reply(reply: &str, number: u64, size: usize) -> Option<Vec<Counted>> {
    let (first, lines) = reply.split_once('\n')?;
    if first != number.to_string() {
        return None;
    }
    let mut counts = Vec::with_capacity(size);
    for line in lines.split('\n') {
        counts.push(match line.strip_prefix('-') {
            Some(error) => Err(Error::Refused(error.to_owned())),
            None if !line.bytes().all(|byte| byte.is_ascii_digit()) => return None,
            None => Ok(Some(line.parse().ok()?).filter(|count| *count > 0)),
        });
    }
    (counts.len() == size).then_some(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(reply: &str) -> Option<Vec<Counted>> {
        read_reply(reply, 7, 3)
    }

    #[test]
    fn a_reply_has_a_count_or_an_error_for_each_view() {
        let counts = read("7\n9007199254740992\n0\n-OOM no 5 memory").unwrap();
        assert!(matches!(counts[0], Ok(Some(9_007_199_254_740_992))));
        assert!(matches!(counts[1], Ok(None)));
        assert!(matches!(&counts[2], Err(Error::Refused(reason)) if reason == "OOM no 5 memory"));
    }

    #[test]
    fn anything_else_is_no_reply() {
        for reply in [
            "",
            "7",
            "7\n1\n2",
            "7\n1\n2\n3\n4",
            "7\n1\n2\n3\n",
            "7\n1\n\n3",
            "6\n1\n2\n3",
            "8\n1\n2\n3",
            "07\n1\n2\n3",
            "7\n1\n2e3\n3",
            "7\n1\n+2\n3",
            "7\n1\nERR no\n3",
            "7\n1\n99999999999999999999\n3",
        ] {
            assert!(read(reply).is_none(), "{reply:?}");
        }
    }
}
