//! Counting views in Redis: many by one call, each of them once.
//!
//! While a call is in flight, the views that arrive wait together for the next one (group commit):
//! at rest a view leaves at once, alone, and under load they share a command and a round trip.
//! A quick Redis counts one half of them while the other half is answered and asks again. A slow one,
//! for which both halves would wait in turn, counts all, and those that follow upon the last answers.
//!
//! A call whose answer is lost is repeated under the same number, and the script keeps the last
//! call's number and answers: what it has counted, it does not count again. So there is never more
//! than one call in flight of those that are kept under one key, which are the calls of one lane.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use fred::{
    bytes_utils::Str,
    prelude::{Client, LuaInterface},
    types::{Key, Value},
    util::sha1_hash,
};
use parking_lot::Mutex;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    time::sleep,
};
use tower_sessions::session::Id;

use super::{Error, code, connection::Connection, redis::session_keys};

const COUNT_VIEWS: &str = include_str!("count_views.lua");

/// A call counts so many views at most: Redis, which does one thing at a time, is then busy for
/// about 2 ms.
const MAX_BATCH: usize = 512;

/// A call that takes longer does so on its way, or because Redis or this process is busy.
const SLOW: Duration = Duration::from_millis(4);

/// After a slow call of more views than that there is no pause: a view costs little already, and this
/// process is at work all the time.
const MAX_PAUSING: usize = 128;

/// The longest pause before the next call. The shortest that a timer can do is a millisecond or two.
const LONGEST_PAUSE: Duration = Duration::from_millis(4);

/// So many views may wait for their answers; one more is refused. It is twice what Cloud Run sends to
/// an instance at once, and what four calls can count.
const MAX_VIEWS: usize = 4 * MAX_BATCH;

/// Counts views. A clone is another handle on the same committer.
#[derive(Clone, Debug)]
pub struct Committer(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    redis: Connection,
    /// The name by which Redis knows the script.
    script: Str,
    /// Seconds to live from each view.
    ttl: i64,
    /// Under this key, this instance's own, the script keeps its last call.
    key: String,
    /// The number of the last call.
    calls: AtomicU64,
    /// The lanes that are at work, each with the views that wait for its next call.
    lanes: Mutex<HashMap<Lane, Vec<View>>>,
    /// One for each view here.
    places: Arc<Semaphore>,
}

/// What can be counted by one call: any sessions, or in Redis Cluster, where a call stays in one
/// slot, those of this id.
type Lane = Option<Id>;

/// The count, none if the session is over.
type Answer = Result<Option<u64>, Error>;

#[derive(Debug)]
struct View {
    session: Id,
    path: Str,
    answer: oneshot::Sender<Answer>,
    _place: OwnedSemaphorePermit,
}

impl Committer {
    /// Renews sessions by `ttl` with each view.
    pub fn new(redis: Connection, ttl: Duration) -> Self {
        Self(Arc::new(Shared {
            redis,
            script: sha1_hash(COUNT_VIEWS).into(),
            ttl: ttl.as_secs() as i64,
            key: format!("calls:{}", Id::default()),
            calls: AtomicU64::new(0),
            lanes: Mutex::default(),
            places: Arc::new(Semaphore::new(MAX_VIEWS)),
        }))
    }

    /// See [`super::Store::count_view`]. Who no longer waits when the call is made up is not
    /// counted.
    pub async fn count_view(&self, session: Id, path: &str) -> Answer {
        let shared = &self.0;
        let (answer, answered) = oneshot::channel();
        let view = View {
            session,
            path: path.into(),
            answer,
            _place: shared.place()?,
        };
        let lane = shared.redis.is_clustered.then_some(session);
        match shared.lanes.lock().entry(lane) {
            Entry::Occupied(mut waiting) => waiting.get_mut().push(view),
            Entry::Vacant(vacant) => {
                vacant.insert(vec![view]);
                tokio::spawn(shared.clone().commit(lane));
            }
        }
        // The committer answers all views; it may end before, with the program.
        answered.await.unwrap_or(Err(Error::Unanswered))
    }
}

impl Shared {
    /// A place for one more view.
    fn place(&self) -> Result<OwnedSemaphorePermit, Error> {
        let place = || self.places.clone().try_acquire_owned();
        place().or_else(|_| {
            // Some may be of visitors who have hung up.
            for waiting in self.lanes.lock().values_mut() {
                waiting.retain(is_awaited);
            }
            place().map_err(|_| Error::Full)
        })
    }

    /// Counts the lane's views, call by call, until none wait.
    async fn commit(self: Arc<Self>, lane: Lane) {
        // How many views the last call counted, if it was quick.
        let mut last = None;
        while let Some(mut views) = self.next(lane, last) {
            let (batch, begin) = (views.len(), Instant::now());
            match self.call(lane, &views).await {
                Ok(answers) => {
                    for (view, answer) in views.into_iter().zip(answers) {
                        let _ = view.answer.send(answer);
                    }
                    let time = begin.elapsed();
                    last = (time <= SLOW).then_some(batch);
                    if last.is_none() && (2..=MAX_PAUSING).contains(&batch) {
                        // Under load; who asks again at once comes along.
                        sleep(LONGEST_PAUSE.min(time / 8)).await;
                    }
                }
                Err(error) => {
                    if let Error::Unanswered = error
                        && let Some(waiting) = self.lanes.lock().get_mut(&lane)
                    {
                        // They have waited too, and would again, in vain.
                        views.append(waiting);
                    }
                    for view in views {
                        let _ = view.answer.send(Err(error.clone()));
                    }
                }
            }
        }
    }

    /// Takes the next views out of the lane, and ends it if there are none. After a quick call not all
    /// of them, if it was smaller: with calls of a like size, Redis and this process are both at work.
    fn next(&self, lane: Lane, last: Option<usize>) -> Option<Vec<View>> {
        let mut lanes = self.lanes.lock();
        let waiting = lanes.get_mut(&lane)?;
        waiting.retain(is_awaited);
        if waiting.is_empty() {
            lanes.remove(&lane);
            return None;
        }
        let all = waiting.len();
        let half = last.map_or(all, |last| (all + last).div_ceil(2));
        let batch = all.min(half).min(MAX_BATCH);
        Some(waiting.drain(..batch).collect())
    }

    /// Has Redis count these views, once. Gives the answer for each.
    async fn call(&self, lane: Lane, views: &[View]) -> Result<Vec<Answer>, Error> {
        let number = self.calls.fetch_add(1, Relaxed) + 1;
        let by_name = |redis: Client| {
            let (keys, args) = self.arguments(number, lane, views);
            async move { redis.evalsha(self.script.clone(), keys, args).await }
        };
        // Redis keeps the script that it is sent.
        let in_full = |redis: Client| {
            let (keys, args) = self.arguments(number, lane, views);
            async move { redis.eval(COUNT_VIEWS, keys, args).await }
        };
        let kept: String = match self.redis.ask(by_name).await {
            Err(Error::Refused(reason)) if code(&reason) == "NOSCRIPT" => {
                self.redis.ask(in_full).await?
            }
            kept => kept?,
        };
        match kept.split_once('\n') {
            Some((first, answers)) if first == number.to_string() => {
                Ok(answers.lines().map(answer).collect())
            }
            // Another call's.
            _ => Err(Error::Unanswered),
        }
    }

    /// The script's keys and arguments.
    fn arguments(&self, number: u64, lane: Lane, views: &[View]) -> (Vec<Key>, Vec<Value>) {
        let mut keys = Vec::with_capacity(1 + 2 * views.len());
        keys.push(match lane {
            None => self.key.as_str().into(),
            Some(id) => format!("{}:{{{id}}}", self.key).into(),
        });
        let mut args = Vec::with_capacity(2 + views.len());
        args.extend([Value::from(number as i64), Value::from(self.ttl)]);
        keys.extend(session_keys(views.iter().map(|view| &view.session)));
        args.extend(views.iter().map(|view| Value::String(view.path.clone())));
        (keys, args)
    }
}

fn is_awaited(view: &View) -> bool {
    !view.answer.is_closed()
}

/// A line of what the script keeps.
fn answer(line: &str) -> Answer {
    match line.parse() {
        Ok(0) => Ok(None),
        Ok(count) => Ok(Some(count)),
        Err(_) => Err(Error::Refused(line.to_owned())),
    }
}
