//! Changes sessions in Redis: each change exactly once, and many in one call (group commit).
//!
//! # Claim
//! A change that is answered with success was applied exactly once: a view was counted, and its number was given to no
//! other. What is not answered with success was not applied, but for [`Error::Unanswered`] and [`Error::Garbled`],
//! after which nobody can tell.
//!
//! # Protocol
//! A session is one value. A change is a function from a value to the next one. To apply it, an instance takes the value
//! that it remembers or reads, makes the next one, and sends a compare-and-set of the two; if another value is there, it
//! applies the change to that one and sends again. This is optimistic concurrency control with a compare-and-set, as in
//! Herlihy, "Wait-Free Synchronization", 1991.
//!
//! **A value never comes again**: a session's first value has a new id, and any other names the write that stored it,
//! by a random name of the instance and a number that the instance never uses again. So a call is applied at most once,
//! and only while what it expects is there; sending it again is harmless, and a late one is void. Nothing depends on
//! clocks, on how late a call can arrive, or on how long an instance was frozen.
//!
//! When a call is answered, then for each session:
//! 1. *It is stored.* The change is applied, and its result is known: this instance made the new value.
//! 2. *Another value is there, and each sending was answered.* It is not stored, and never will be: what it expects is
//!    gone. The change is applied to what is there.
//! 3. *Another value is there, and a sending was not answered.* That value tells. If it names this write, it was stored.
//!    If it names an older write of this instance instead, or too few writes came since to push the name out, it was not,
//!    as in 2. Else nobody can tell: [`Error::Unanswered`]. See [`Contents::fate`].
//! 4. *Nothing is there.* The session is over, and with it whatever was stored.
//!
//! If a call may have been sent and has no answer in time, nobody can tell.
//!
//! # Group commit
//! One write of a session is in flight at a time. Changes that arrive meanwhile join its next write, and the writes of
//! many sessions share a call; see `pacing.rs`. A change never joins a write that was sent.
//!
//! # Threads
//! Each thread has a committer with its own link and its own calls; [`Instance`] is what they share. The thread that
//! gets a session's first change reads and writes the session until no change waits for it; what arrives on other
//! threads meanwhile joins. So the process has one write of a session in flight, as if it had one thread, and is one
//! instance to the protocol. A visitor's views may arrive on any thread.
//!
//! # Assumptions
//! - Redis does not evict keys, and executes a command or script atomically.
//! - Ids and names of instances, 128 and 64 random bits, are unique.
//!
//! # Not promised
//! - After a failover to a replica that lacks the last writes, their counts are given out again.
//! - A new visitor's requests that overlap have no session in common yet: each begins one.

use std::{
    collections::VecDeque,
    mem,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use foldhash::HashMap;
use fred::bytes::Bytes;
use parking_lot::Mutex;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    task::yield_now,
    time::{Instant, sleep},
};
use tower_sessions::session::Id;

use super::{
    change::{Applied, Change, NewId, Outcome},
    compare_and_set::{CompareAndSet, SendCommand, Swap, Swapped},
    contents::{self, Contents, Fate, WriteId},
    error::Error,
    pacing::{self, LastCall, MAX_BATCH, MAX_CALL_BYTES},
    remembered::Remembered,
    retry::{Answer, RETRY_WINDOW, until_answered},
    ttl::{SessionTtl, unix_time},
};

/// The most changes that may wait or be in a call; one more is refused. Cloud Run sends at most 1,000 requests to an
/// instance at once.
const MAX_CHANGES: usize = 2 * MAX_BATCH;

/// After a conflict with another instance over a session, an instance writes the session once. If more changes of it
/// wait by then, it pauses for at least this long before the next write. Changes that arrive during the pause join that
/// write.
const SHORTEST_PAUSE: Duration = Duration::from_millis(5);

/// If several instances are among a session's last writers, whichever makes its 25th, 50th, … write leaves it alone for
/// [`BREAK`] afterwards. Otherwise the instance nearest to Redis could always be first, and nothing of another's would
/// ever be stored.
const BREAK_EVERY: u64 = 25;

/// Long enough for one and a half round trips of 33 ms.
const BREAK: Duration = Duration::from_millis(50);

/// Changes sessions. A clone is another handle on the same committer.
#[derive(Debug)]
pub struct Committer<R>(Arc<Shared<R>>);

impl<R> Clone for Committer<R> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// What the committers of one process share.
#[derive(Debug)]
pub struct Instance {
    /// Its name in the values that it writes.
    name: u64,
    /// The number of its last write.
    writes: AtomicU64,
    /// Held for a moment: for one session or one batch, or to drop the changes that nobody awaits any more. [`Queue`]'s
    /// lock may be taken under it, never the reverse.
    sessions: Mutex<KnownSessions>,
    /// One permit for each change that waits or is in flight.
    permits: Arc<Semaphore>,
}

#[derive(Debug, Default)]
struct KnownSessions {
    /// The sessions that are being read or written, or are left to other instances for a while, each with the changes for
    /// its next write.
    busy: HashMap<Id, Vec<Waiting>>,
    remembered: Remembered,
}

impl Default for Instance {
    fn default() -> Self {
        Self {
            name: rand::random(),
            writes: AtomicU64::new(0),
            sessions: Mutex::default(),
            permits: Arc::new(Semaphore::new(MAX_CHANGES)),
        }
    }
}

impl Instance {
    fn permit(&self) -> Result<OwnedSemaphorePermit, Error> {
        let permit = || self.permits.clone().try_acquire_owned();
        permit().or_else(|_| {
            // Clients that have disconnected may hold some.
            for waiting in self.sessions.lock().busy.values_mut() {
                waiting.retain(Waiting::is_awaited);
            }
            permit().map_err(|_| Error::Overloaded)
        })
    }

    /// The next write. Within one session, numbers grow from write to write, even if different threads make them: the
    /// session has passed from thread to thread under the lock of `sessions`.
    fn next_write(&self) -> WriteId {
        WriteId { instance: self.name, number: self.writes.fetch_add(1, Relaxed) + 1 }
    }
}

#[derive(Debug)]
struct Shared<R> {
    redis: R,
    compare_and_set: Arc<CompareAndSet>,
    ttl: SessionTtl,
    instance: Arc<Instance>,
    queue: Mutex<Queue>,
}

/// A thread's calls.
#[derive(Debug, Default)]
struct Queue {
    /// The sessions that wait for the next call, with what they hold.
    ready: VecDeque<(Id, Value)>,
    /// How many calls are in flight.
    calls: usize,
    /// The last call that was answered.
    last: Option<LastCall>,
}

/// What a session holds.
#[derive(Debug)]
struct Value {
    bytes: Bytes,
    source: Source,
}

/// Where a value comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Source {
    /// It was remembered. Another instance may have replaced it.
    Remembered,
    /// It was read or written just now, by this instance.
    #[default]
    Redis,
    /// It was found in place of another one, or read after a pause for others, who write the session too.
    Contended,
}

#[derive(Debug)]
struct Waiting {
    change: Change,
    /// What [`Change::apply`] has returned last.
    count: Result<u64, Error>,
    /// The request that waits.
    request: oneshot::Sender<Outcome>,
    since: Instant,
    _permit: OwnedSemaphorePermit,
}

impl Waiting {
    fn answer(self, outcome: Outcome) {
        // The client may have disconnected.
        let _ = self.request.send(outcome);
    }

    fn is_awaited(&self) -> bool {
        !self.request.is_closed()
    }
}

/// A write of a session: what a call knows of it beside its [`Swap`].
#[derive(Debug, Default)]
struct Draft {
    write: WriteId,
    /// The version that it replaces.
    replaced: u64,
    /// Where the value that it replaces comes from.
    source: Source,
    /// Whether the session is left to other instances after this write, see [`BREAK_EVERY`].
    takes_break: bool,
    changes: Vec<Waiting>,
}

/// What became of a write, and so what the session holds.
#[derive(Debug)]
enum Written {
    /// It was stored. The session holds this value now: the one that was written, or a later one.
    Stored(Bytes),
    /// It was not stored, and never will be.
    NotStored(Bytes),
    /// The session is over.
    Gone,
    /// Nothing was written. What the session holds must be read first.
    Outdated,
    /// Nothing was written, because the call is full. It is the next one's turn.
    Postponed(Value),
    /// It was not stored; after [`Error::Unanswered`] or [`Error::Garbled`], nobody can tell. What the session holds is
    /// not known.
    Failed(Error),
}

/// Reads the reply to a call; see the head of this file. `replaced` is the version that the write was to replace.
fn written(swap: &Swap, write: WriteId, replaced: u64, reply: Result<Swapped, Error>, is_in_doubt: bool) -> Written {
    match reply {
        Ok(Swapped::Stored) => Written::Stored(swap.new.clone()),
        Ok(Swapped::Other(held)) if !is_in_doubt => Written::NotStored(held),
        Ok(Swapped::Other(held)) => {
            match Contents::decode(&swap.id, &held).map(|contents| contents.fate(write, replaced)) {
                Ok(Fate::Stored) => Written::Stored(held),
                Ok(Fate::NotStored) => Written::NotStored(held),
                Ok(Fate::Unknown) | Err(_) => Written::Failed(Error::Unanswered),
            }
        }
        Ok(Swapped::Gone) => Written::Gone,
        Err(error) if !is_in_doubt => Written::Failed(error),
        _ => Written::Failed(Error::Unanswered),
    }
}

impl<R: SendCommand> Committer<R> {
    /// Changes the sessions in this Redis, beside the instance's other committers. Its tasks run on the runtime of the
    /// thread that calls it.
    pub fn new(redis: R, compare_and_set: Arc<CompareAndSet>, ttl: SessionTtl, instance: &Arc<Instance>) -> Self {
        let (instance, queue) = (instance.clone(), Mutex::default());
        Self(Arc::new(Shared { redis, compare_and_set, ttl, instance, queue }))
    }

    /// Applies a change to a session, and renews the session.
    ///
    /// # Errors
    /// See [`super::Store::change`].
    pub async fn change(&self, id: Id, change: Change) -> Outcome {
        let shared = &self.0;
        let (request, outcome) = oneshot::channel();
        let waiting =
            Waiting { change, count: Ok(0), request, since: Instant::now(), _permit: shared.instance.permit()? };
        shared.enqueue(id, waiting);
        // A task answers every change, unless the runtime ends first.
        outcome.await.unwrap_or(Err(Error::Unanswered))
    }

    /// Begins a session. Returns its id.
    ///
    /// # Errors
    /// See [`super::Store::create`].
    pub async fn create(&self, contents: &Contents<'_>) -> Result<Id, Error> {
        let Shared { redis, compare_and_set, ttl, instance, .. } = &*self.0;
        let created = until_answered(|send_by| async move {
            // Never an id that a client sent, nor that of an earlier attempt, whose session may exist if only its reply
            // was lost. That session stays unused.
            let id = Id::default();
            let encoded = ttl.encode(&id, &mut contents.clone(), unix_time())?;
            let (value, ttl) = encoded.ok_or(Error::Ended)?;
            compare_and_set.create(redis, send_by, &id, value.clone(), ttl).await?;
            Ok((id, value))
        });
        let (id, value) = created.await.of_repeatable()?;
        instance.sessions.lock().remembered.put(id, value);
        Ok(id)
    }

    /// What a session holds; nothing if there is no such session.
    ///
    /// # Errors
    /// See [`super::Store::read`].
    pub async fn read(&self, id: &Id) -> Result<Option<Bytes>, Error> {
        let Shared { ttl, instance, .. } = &*self.0;
        let Some(value) = self.0.value(id).await? else { return Ok(None) };
        if !ttl.lives(id, &value, unix_time())? {
            return Ok(None);
        }
        instance.sessions.lock().remembered.put(*id, value.clone());
        Ok(Some(value))
    }

    /// Lets a session go on under a new id, changed by this function, and ends it under the old one. Returns the new
    /// id; nothing if there is no such session.
    ///
    /// First the new session stands, then the old one ends, unless it has changed in between: then the new one is deleted
    /// and made again. Nobody knows the new id until this returns.
    ///
    /// # Errors
    /// See [`super::Store::change_id`].
    pub async fn change_id(
        &self,
        old: &Id,
        mut change: impl FnMut(&mut Contents) -> Result<(), Error>,
    ) -> Result<Option<NewId>, Error> {
        let Shared { redis, compare_and_set, .. } = &*self.0;
        let since = Instant::now();
        while let Some(value) = self.read(old).await? {
            let mut going_on = Contents::decode(old, &value)?;
            change(&mut going_on)?;
            let id = self.create(&going_on).await.map_err(with_nothing_changed)?;
            let ended = self.change(*old, Change::EndIf(*old, value.clone())).await;
            // In doubt, the old session may have ended: then nothing but the new one is left.
            let is_in_doubt = matches!(ended, Err(Error::Unanswered | Error::Garbled));
            if is_in_doubt || matches!(ended, Ok(Some(_))) {
                return Ok(Some(NewId { id, is_in_doubt }));
            }
            // If this fails, the new session expires.
            let _ = compare_and_set.delete(redis, Instant::now() + RETRY_WINDOW, &id).await;
            match ended {
                Err(Error::Contended) if since.elapsed() < RETRY_WINDOW => sleep(SHORTEST_PAUSE).await,
                ended => return ended.map(|_| None),
            }
        }
        Ok(None)
    }

    /// Whether nothing waits or is in flight, and every permit has come back.
    pub fn is_idle(&self) -> bool {
        let Shared { instance, queue, .. } = &*self.0;
        let is_idle = instance.sessions.lock().busy.is_empty() && instance.permits.available_permits() == MAX_CHANGES;
        let queue = queue.lock();
        is_idle && queue.ready.is_empty() && queue.calls == 0
    }
}

impl<R: SendCommand> Shared<R> {
    /// Lets a change wait for the session's next write, and begins that if none is in flight.
    fn enqueue(self: &Arc<Self>, id: Id, waiting: Waiting) {
        let mut sessions = self.instance.sessions.lock();
        let KnownSessions { busy, remembered } = &mut *sessions;
        if let Some(changes) = busy.get_mut(&id) {
            changes.push(waiting);
            return;
        }
        busy.insert(id, vec![waiting]);
        let (bytes, is_trusted) = (remembered.take(&id), remembered.is_trusted());
        drop(sessions);
        match bytes {
            Some(bytes) if is_trusted => self.make_ready(id, Value { bytes, source: Source::Remembered }),
            bytes => drop(tokio::spawn(self.clone().read(id, bytes, Source::Redis))),
        }
    }

    /// Lets a session, which holds this value, wait for the next call, and begins one if there may be one more.
    fn make_ready(self: &Arc<Self>, id: Id, value: Value) {
        let mut queue = self.queue.lock();
        queue.ready.push_back((id, value));
        // Where no call is shared, none waits for another.
        if !self.compare_and_set.takes_many() || queue.calls < pacing::max_calls(queue.last) {
            queue.calls += 1;
            tokio::spawn(self.clone().serve());
        }
    }

    /// What the key of a session holds.
    async fn value(&self, id: &Id) -> Result<Option<Bytes>, Error> {
        let read = until_answered(|send_by| self.compare_and_set.read(&self.redis, send_by, id)).await;
        read.reply.map_err(with_nothing_changed)
    }

    /// Reads a session, for its next write. `remembered` is what was remembered of it and not trusted.
    async fn read(self: Arc<Self>, id: Id, remembered: Option<Bytes>, source: Source) {
        let value = self.value(&id).await;
        let mut sessions = self.instance.sessions.lock();
        let outcome = match value {
            Ok(Some(bytes)) => {
                if let Some(remembered) = remembered {
                    sessions.remembered.learn(remembered == bytes);
                }
                return self.make_ready(id, Value { bytes, source });
            }
            Ok(None) => Ok(None),
            Err(error) => Err(error),
        };
        let waiting = sessions.busy.remove(&id);
        drop(sessions);
        waiting.into_iter().flatten().for_each(|waiting| waiting.answer(outcome.clone()));
    }

    /// Makes calls until no session is ready or other calls are enough.
    async fn serve(self: Arc<Self>) {
        while let Some(batch) = self.next_batch() {
            if let Some(pause) = self.call(batch).await.and_then(pacing::pause) {
                sleep(pause).await;
            }
            // The views that have arrived by now join the next call.
            yield_now().await;
        }
    }

    /// Takes the sessions for the next call, with their values and changes.
    fn next_batch(&self) -> Option<Vec<(Id, Value, Vec<Waiting>)>> {
        let mut queue = self.queue.lock();
        let takes_many = self.compare_and_set.takes_many();
        let waiting = queue.ready.len();
        let size = if takes_many { pacing::batch_size(waiting, queue.last) } else { waiting.min(1) };
        if size == 0 || takes_many && queue.calls > pacing::max_calls(queue.last) {
            queue.calls -= 1;
            return None;
        }
        let ready: Vec<_> = queue.ready.drain(..size).collect();
        drop(queue);
        let mut sessions = self.instance.sessions.lock();
        let take = |(id, value)| (id, value, sessions.busy.get_mut(&id).map(mem::take).unwrap_or_default());
        Some(ready.into_iter().map(take).collect())
    }

    /// Writes sessions in one call, and answers their changes.
    async fn call(self: &Arc<Self>, batch: Vec<(Id, Value, Vec<Waiting>)>) -> Option<LastCall> {
        let (begin, now) = (Instant::now(), unix_time());
        let (mut swaps, mut drafts) = (Vec::with_capacity(batch.len()), Vec::with_capacity(batch.len()));
        let (mut ended, mut bytes) = (Vec::with_capacity(batch.len()), 0);
        for (id, value, waiting) in batch {
            if bytes >= MAX_CALL_BYTES {
                ended.push((id, Written::Postponed(value), Draft { changes: waiting, ..Draft::default() }));
                continue;
            }
            match self.draft(id, value, waiting, now) {
                Ok((swap, draft)) => {
                    bytes += swap.expected.len() + swap.new.len();
                    swaps.push(swap);
                    drafts.push(draft);
                }
                // Nothing is written.
                Err((written, changes)) => ended.push((id, written, Draft { changes, ..Draft::default() })),
            }
        }
        let (mut last, mut is_outage) = (None, false);
        if !swaps.is_empty() {
            let swap = |send_by| self.compare_and_set.swap(&self.redis, send_by, &swaps);
            let Answer { reply, is_in_doubt } = until_answered(swap).await;
            last = reply.is_ok().then(|| LastCall { batch: swaps.len(), took: begin.elapsed() });
            is_outage = matches!(reply, Err(Error::Unanswered | Error::Unreached));
            let replies = reply.unwrap_or_else(|error| vec![Err(error); swaps.len()]);
            for ((swap, draft), reply) in swaps.into_iter().zip(drafts).zip(replies) {
                let written = written(&swap, draft.write, draft.replaced, reply, is_in_doubt);
                ended.push((swap.id, written, draft));
            }
        }
        self.finish(ended, last, is_outage);
        last
    }

    /// Applies changes to what a session holds. Answers those that fail. If none is left, what the session holds stays.
    fn draft(
        &self,
        id: Id,
        value: Value,
        mut changes: Vec<Waiting>,
        now: i64,
    ) -> Result<(Swap, Draft), (Written, Vec<Waiting>)> {
        changes.retain(Waiting::is_awaited);
        let Value { bytes: expected, source } = value;
        let write = self.instance.next_write();
        let applied = Contents::decode(&id, &expected).and_then(|mut contents| {
            let replaced = contents.version();
            for Waiting { change, count, .. } in &mut changes {
                *count = change.apply(&mut contents);
            }
            contents.record_write(write);
            let takes_break = contents.is_shared() && contents.version().is_multiple_of(BREAK_EVERY);
            Ok((replaced, takes_break, self.ttl.encode(&id, &mut contents, now)?))
        });
        let (replaced, takes_break, new, ttl) = match applied {
            Ok((replaced, takes_break, Some((new, ttl)))) => (replaced, takes_break, new, ttl),
            // It has reached its maximum age.
            Ok((.., None)) => return Err((Written::Gone, changes)),
            Err(error) => return Err((Written::Failed(error), changes)),
        };
        if source == Source::Remembered && (changes.is_empty() || changes.iter().any(|waiting| waiting.count.is_err()))
        {
            // Perhaps they do not fail with what the session holds by now.
            return Err((Written::Outdated, changes));
        }
        for waiting in changes.extract_if(.., |waiting| waiting.count.is_err()) {
            let outcome = waiting.count.clone().map(|_| None);
            waiting.answer(outcome);
        }
        if changes.is_empty() {
            // It holds what it held.
            return Err((Written::Stored(expected), changes));
        }
        Ok((Swap { id, expected, new, ttl }, Draft { write, replaced, source, takes_break, changes }))
    }

    /// Answers the changes of sessions whose write has ended, and prepares their next writes.
    fn finish(self: &Arc<Self>, ended: Vec<(Id, Written, Draft)>, last: Option<LastCall>, is_outage: bool) {
        let mut answers = Vec::with_capacity(ended.len());
        let last = {
            let mut queue = self.queue.lock();
            queue.last = last.or(queue.last);
            queue.last
        };
        for (id, written, Draft { source, takes_break, mut changes, .. }) in ended {
            let mut sessions = self.instance.sessions.lock();
            match written {
                _ if source != Source::Remembered => {}
                Written::Stored(_) => sessions.remembered.learn(true),
                Written::NotStored(_) | Written::Gone => sessions.remembered.learn(false),
                Written::Outdated | Written::Postponed(_) | Written::Failed(_) => {}
            }
            let mut waiting = sessions.busy.get_mut(&id).map(mem::take).unwrap_or_default();
            let (value, waiting) = match written {
                Written::Stored(value) => {
                    answers.extend(changes.into_iter().map(|waiting| {
                        let applied = |count| Some(Applied { count, value: value.clone() });
                        let outcome = waiting.count.clone().map(applied);
                        (waiting, outcome)
                    }));
                    if takes_break || source == Source::Contended && !waiting.is_empty() {
                        let pause = last.map_or(SHORTEST_PAUSE, |last| (2 * last.took).clamp(SHORTEST_PAUSE, BREAK));
                        sessions.busy.insert(id, waiting);
                        tokio::spawn(self.clone().give_way(id, value, if takes_break { BREAK } else { pause }));
                        continue;
                    }
                    (Some((value, Source::Redis)), waiting)
                }
                Written::NotStored(value) => {
                    let late = changes.extract_if(.., |waiting| waiting.since.elapsed() >= RETRY_WINDOW);
                    answers.extend(late.map(|waiting| (waiting, Err(Error::Contended))));
                    changes.extend(waiting);
                    (Some((value, Source::Contended)), changes)
                }
                Written::Gone => {
                    answers.extend(changes.into_iter().chain(waiting).map(|waiting| (waiting, Ok(None))));
                    (None, Vec::new())
                }
                Written::Outdated => {
                    changes.extend(waiting);
                    (None, changes)
                }
                Written::Postponed(Value { bytes, source }) => {
                    changes.extend(waiting);
                    (Some((bytes, source)), changes)
                }
                Written::Failed(error) => {
                    answers.extend(changes.into_iter().map(|waiting| (waiting, Err(error.clone()))));
                    // What arrived meanwhile may have waited for all of this call, and would wait as long again.
                    if is_outage {
                        refuse(mem::take(&mut waiting), &mut answers);
                    }
                    (None, waiting)
                }
            };
            self.go_on(&mut sessions, id, value, waiting);
        }
        if is_outage && self.compare_and_set.takes_many() {
            // The same holds for all other sessions of this thread.
            let ready = mem::take(&mut self.queue.lock().ready);
            for (id, _) in ready {
                let waiting = self.instance.sessions.lock().busy.remove(&id);
                refuse(waiting.unwrap_or_default(), &mut answers);
            }
        }
        answers.into_iter().for_each(|(waiting, outcome)| waiting.answer(outcome));
    }

    /// Leaves a session to other instances for a while, and then goes on with it. They may have replaced this value.
    async fn give_way(self: Arc<Self>, id: Id, value: Bytes, pause: Duration) {
        sleep(pause).await;
        {
            let mut sessions = self.instance.sessions.lock();
            if sessions.busy.get(&id).is_none_or(Vec::is_empty) {
                return self.go_on(&mut sessions, id, Some((value, Source::Redis)), Vec::new());
            }
        }
        self.read(id, None, Source::Contended).await;
    }

    /// Goes on with a session that is not in a call any more: with its next write if changes wait.
    fn go_on(
        self: &Arc<Self>,
        sessions: &mut KnownSessions,
        id: Id,
        value: Option<(Bytes, Source)>,
        waiting: Vec<Waiting>,
    ) {
        let KnownSessions { busy, remembered } = sessions;
        match value {
            Some((bytes, _)) if waiting.is_empty() => {
                busy.remove(&id);
                // An ended session is gone after [`super::ttl::ENDED_TTL`].
                if !contents::is_ended(&bytes) {
                    remembered.put(id, bytes);
                }
            }
            Some((bytes, source)) => {
                busy.insert(id, waiting);
                self.make_ready(id, Value { bytes, source });
            }
            None if waiting.is_empty() => {
                busy.remove(&id);
            }
            None => {
                busy.insert(id, waiting);
                tokio::spawn(self.clone().read(id, None, Source::Redis));
            }
        }
    }
}

/// The error of a read, or of creating a session whose id nobody knows: it makes no difference whether it was executed.
fn with_nothing_changed(error: Error) -> Error {
    match error {
        Error::Unanswered => Error::Unreached,
        Error::Garbled => Error::Unreadable,
        error => error,
    }
}

/// Refuses these changes, because Redis is unreachable.
fn refuse(waiting: Vec<Waiting>, answers: &mut Vec<(Waiting, Outcome)>) {
    answers.extend(waiting.into_iter().map(|waiting| (waiting, Err(Error::Unreached))));
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use fred::types::Value as Reply;
    use futures_util::future::join_all;
    use time::OffsetDateTime;
    use tower_sessions::session::Record;

    use super::{
        super::compare_and_set::scripted::{Server, garbage, refusal},
        *,
    };

    fn committer(script: Vec<(&'static str, Result<Reply, Error>)>) -> Committer<Server> {
        let ttl = SessionTtl::new(Duration::from_secs(60), None);
        Committer::new(Server::new(script), Arc::new(CompareAndSet::new(ttl, false)), ttl, &Arc::default())
    }

    /// The value of a session that has viewed `/` once.
    fn value(id: i128) -> Reply {
        let mut contents = Contents::default();
        contents.count("/").unwrap();
        Reply::Bytes(contents.encode(&Id(id), OffsetDateTime::UNIX_EPOCH).unwrap())
    }

    /// Views `/` in these sessions at once. Returns the counts.
    async fn view(committer: &Committer<Server>, ids: &[i128]) -> Vec<Result<Option<u64>, Error>> {
        let views = ids.iter().map(async |id| {
            let outcome = committer.change(Id(*id), Change::View("/".into())).await;
            outcome.map(|applied| applied.map(|applied| applied.count))
        });
        join_all(views).await
    }

    /// Nothing is left when the last call's task has ended.
    async fn assert_done(committer: &Committer<Server>) {
        for _ in 0..10 {
            yield_now().await;
        }
        assert!(committer.0.redis.is_done() && committer.is_idle(), "{committer:?}");
    }

    #[tokio::test]
    async fn after_a_reply_that_cannot_be_read_the_next_view_goes_on() {
        for reply in garbage() {
            let committer = committer(vec![
                ("GETEX", Ok(reply.clone())),
                ("GETEX", Ok(value(1))),
                ("SET", Ok(reply.clone())),
                ("GETEX", Ok(value(1))),
                ("SET", Ok(value(1))),
            ]);
            // Reading has changed nothing.
            assert_eq!(view(&committer, &[1]).await, [Err(Error::Unreadable)], "{reply:?}");
            assert_eq!(view(&committer, &[1]).await, [Err(Error::Garbled)], "{reply:?}");
            assert_eq!(view(&committer, &[1]).await, [Ok(Some(2))], "{reply:?}");
            assert_done(&committer).await;
        }
    }

    #[tokio::test]
    async fn another_sessions_value_is_not_used() {
        let broken = [value(2), Reply::from_static(b"\x93"), Reply::from_static(b"")];
        for reply in broken {
            let committer = committer(vec![
                ("GETEX", Ok(reply.clone())),
                ("GETEX", Ok(value(1))),
                // In place of what was expected.
                ("SET", Ok(reply.clone())),
                ("GETEX", Ok(value(1))),
                ("SET", Ok(value(1))),
            ]);
            for _ in 0..2 {
                assert_eq!(view(&committer, &[1]).await, [Err(Error::Unreadable)], "{reply:?}");
            }
            assert_eq!(view(&committer, &[1]).await, [Ok(Some(2))], "{reply:?}");
            assert_done(&committer).await;
        }
    }

    #[tokio::test]
    async fn sessions_that_share_a_call_fail_together_or_each_for_itself() {
        let one = || Reply::Integer(1);
        for (reply, expected) in [
            (vec![one(), one()], [Ok(Some(2)), Ok(Some(2))]),
            (vec![one()], [Err(Error::Garbled), Err(Error::Garbled)]),
            (vec![one(), one(), one()], [Err(Error::Garbled), Err(Error::Garbled)]),
            (vec![one(), Reply::Double(1.0)], [Ok(Some(2)), Err(Error::Garbled)]),
            (vec![Reply::Null, one()], [Ok(None), Ok(Some(2))]),
        ] {
            let committer = committer(vec![
                ("GETEX", Ok(value(1))),
                ("GETEX", Ok(value(2))),
                ("EVALSHA", Ok(Reply::Array(reply.clone()))),
            ]);
            assert_eq!(view(&committer, &[1, 2]).await, expected, "{reply:?}");
            assert_done(&committer).await;
        }
    }

    #[tokio::test]
    async fn what_does_not_fit_into_a_call_is_sent_with_the_next() {
        let data = HashMap::from_iter([("large".to_owned(), "x".repeat(MAX_CALL_BYTES).into())]);
        let record = Record { id: Id(1), data, expiry_date: OffsetDateTime::UNIX_EPOCH };
        let large = Reply::Bytes(rmp_serde::to_vec(&record).unwrap().into());
        let committer = committer(vec![
            ("GETEX", Ok(large.clone())),
            ("GETEX", Ok(value(2))),
            ("SET", Ok(large)),
            ("SET", Ok(value(2))),
        ]);
        assert_eq!(view(&committer, &[1, 2]).await, [Ok(Some(1)), Ok(Some(2))]);
        assert_done(&committer).await;
    }

    /// As after a failover to a server that allows less.
    #[tokio::test]
    async fn a_batch_that_is_not_allowed_is_sent_one_by_one() {
        let committer = committer(vec![
            ("GETEX", Ok(value(1))),
            ("GETEX", Ok(value(2))),
            ("EVALSHA", refusal("NOPERM this user has no permissions to run the 'evalsha' command")),
            ("SET", Ok(value(1))),
            ("SET", refusal("OOM command not allowed when used memory > 'maxmemory'.")),
            // Nothing is remembered of the session that failed.
            ("GETEX", Ok(value(2))),
            ("SET", Ok(value(2))),
        ]);
        let counts = view(&committer, &[1, 2]).await;
        assert!(matches!(&counts[..], [Ok(Some(2)), Err(Error::Refused(_))]), "{counts:?}");
        assert_eq!(view(&committer, &[2]).await, [Ok(Some(2))]);
        assert_done(&committer).await;
    }
}
