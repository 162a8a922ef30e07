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
    time::Duration,
};

use fred::{
    bytes_utils::Str,
    types::{Key, Value},
};
use parking_lot::Mutex;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    time::{Instant, sleep},
};
use tower_sessions::session::Id;

use super::{
    Error, FIRST_VIEW,
    connection::{Connection, Script},
    keys::{self, ReplyKeys},
    lifetime::{Lifetime, MARGIN, Renewed},
};

/// Seconds that Redis keeps the reply to the last call: longer than TCP can deliver a call late.
const REPLY_KEPT_FOR: i64 = 3600;

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
    script: Script,
    lifetime: Lifetime,
    renewed: Arc<Renewed>,
    /// Where the script keeps its last reply to this instance.
    reply_keys: ReplyKeys,
    /// The number of the last call.
    calls: AtomicU64,
    /// The lanes that are at work, each with the views that wait for its next call.
    lanes: Mutex<HashMap<Lane, Vec<View>>>,
    /// One for each view here.
    places: Arc<Semaphore>,
}

/// What can be counted by one call: any sessions, or in Redis Cluster those of this slot.
type Lane = Option<u16>;

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
    /// Renews sessions for this lifetime, those that were not renewed lately.
    pub fn new(redis: Connection, lifetime: Lifetime, renewed: Arc<Renewed>) -> Self {
        Self(Arc::new(Shared {
            script: Script::new(include_str!("count_views.lua")),
            lifetime,
            renewed,
            reply_keys: ReplyKeys::new(redis.is_clustered),
            redis,
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
        let lane = shared.redis.is_clustered.then(|| keys::slot(&session));
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
        let begin = Instant::now();
        let sessions = || views.iter().map(|view| &view.session);
        let renews = self.renewed.are_due(sessions(), begin);
        let arguments = || self.arguments(number, lane, views, &renews);
        let reply: String = self.redis.run(begin, &self.script, arguments).await?;
        let answers = read_reply(&reply, number, views.len()).ok_or(Error::Unanswered)?;
        let are_renewed = sessions().zip(&answers).zip(&renews);
        let are_renewed =
            are_renewed.filter(|((_, answer), renews)| **renews && matches!(answer, Ok(Some(_))));
        self.renewed
            .remember(are_renewed.map(|((session, _), _)| *session), begin);
        Ok(answers)
    }

    /// The script's keys and arguments.
    fn arguments(
        &self,
        number: u64,
        lane: Lane,
        views: &[View],
        renews: &[bool],
    ) -> (Vec<Key>, Vec<Value>) {
        let mut keys = Vec::with_capacity(1 + 2 * views.len());
        keys.push(self.reply_keys.key(lane));
        keys.extend(keys::of_sessions(views.iter().map(|view| &view.session)));
        let mut arguments = Vec::with_capacity(5 + 2 * views.len());
        arguments.extend([
            Value::from(number as i64),
            Value::from(self.lifetime.of_record().as_millis() as i64),
            Value::from(MARGIN.as_millis() as i64),
            Value::from(REPLY_KEPT_FOR),
            Value::from_static_str(FIRST_VIEW),
        ]);
        for (view, renews) in views.iter().zip(renews) {
            let renews = if *renews { "1" } else { "" };
            arguments.extend([
                Value::String(view.path.clone()),
                Value::from_static_str(renews),
            ]);
        }
        (keys, arguments)
    }
}

fn is_awaited(view: &View) -> bool {
    !view.answer.is_closed()
}

/// The answers to the views of this call, if this is the reply to it and nothing else.
fn read_reply(reply: &str, number: u64, views: usize) -> Option<Vec<Answer>> {
    let (first, lines) = reply.split_once('\n')?;
    if first != number.to_string() {
        return None;
    }
    let mut answers = Vec::with_capacity(views);
    for line in lines.split('\n') {
        answers.push(match line.strip_prefix('-') {
            Some(error) => Err(Error::Refused(error.to_owned())),
            None if !line.bytes().all(|byte| byte.is_ascii_digit()) => return None,
            None => match line.parse().ok()? {
                0 => Ok(None),
                count => Ok(Some(count)),
            },
        });
    }
    (answers.len() == views).then_some(answers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(reply: &str) -> Option<Vec<Answer>> {
        read_reply(reply, 7, 3)
    }

    #[test]
    fn a_reply_is_a_count_or_an_error_for_each_view() {
        let answers = read("7\n9007199254740992\n0\n-OOM no 5 memory").unwrap();
        assert!(matches!(answers[0], Ok(Some(9_007_199_254_740_992))));
        assert!(matches!(answers[1], Ok(None)));
        assert!(matches!(&answers[2], Err(Error::Refused(reason)) if reason == "OOM no 5 memory"));
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
