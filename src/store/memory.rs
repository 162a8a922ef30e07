//! Sessions in this process: to try the service, or for an instance that runs alone.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use foldhash::fast::RandomState;
use fred::bytes::Bytes;
use moka::{ops::compute::Op, policy::EvictionPolicy, sync::Cache};
use parking_lot::Mutex;
use tower_sessions::session::Id;

use super::{
    change::{Applied, Change, NewId, Outcome},
    contents::Contents,
    error::Error,
    ttl::{ENDED_TTL, SessionTtl, unix_time},
};

/// The most bytes that the sessions take, as [`StoredSession::weight`] estimates them. Beyond it, the sessions that were
/// used least recently end early.
pub const MAX_MEMORY_BYTES: u64 = 40_000_000;

/// The bytes of a session without its value: estimated from the sizes of the types, and checked by
/// `tests/sessions/memory_bound.rs`.
const SESSION_BYTES: usize = 500;

/// The steps in which a session's value is weighed. Most changes of it are smaller.
const STEP: usize = 256;

/// The sessions. A clone is another handle on the same ones.
#[derive(Clone, Debug)]
pub struct MemoryStore {
    cache: Cache<Id, Arc<Mutex<StoredSession>>, RandomState>,
    ttl: SessionTtl,
}

/// A session, with its value as in Redis.
#[derive(Debug)]
struct StoredSession {
    value: Bytes,
    ends: Instant,
}

impl StoredSession {
    /// About how many bytes the session takes.
    fn weight(&self) -> usize {
        SESSION_BYTES + self.value.len().next_multiple_of(STEP)
    }
}

impl MemoryStore {
    /// No sessions yet.
    pub fn new(ttl: SessionTtl) -> Self {
        let cache = Cache::builder()
            .max_capacity(MAX_MEMORY_BYTES)
            .weigher(|_, session: &Arc<Mutex<StoredSession>>| session.lock().weight().try_into().unwrap_or(u32::MAX))
            // The cache's default policy prefers sessions that are viewed often. Once it is full, it would
            // reject every new visitor.
            .eviction_policy(EvictionPolicy::lru())
            // An ended session may have longer to live than any other.
            .time_to_idle(ttl.longest().max(ENDED_TTL))
            .build_with_hasher(RandomState::default());
        Self { cache, ttl }
    }

    /// See [`super::Store::create`].
    pub fn create(&self, contents: &Contents<'_>) -> Result<Id, Error> {
        // Never an id that a client sent.
        let id = Id::default();
        let (value, ttl) = self.ttl.encode(&id, &mut contents.clone(), unix_time())?.ok_or(Error::Ended)?;
        let session = StoredSession { value, ends: Instant::now() + ttl };
        self.cache.insert(id, Arc::new(Mutex::new(session)));
        Ok(id)
    }

    /// See [`super::Store::read`].
    pub fn read(&self, id: &Id) -> Result<Option<Bytes>, Error> {
        let Some(session) = self.cache.get(id) else { return Ok(None) };
        let session = session.lock();
        let lives = session.ends > Instant::now() && self.ttl.lives(id, &session.value, unix_time())?;
        Ok(lives.then(|| session.value.clone()))
    }

    /// See [`super::Store::change`].
    pub fn change(&self, id: Id, mut change: Change) -> Outcome {
        self.write(&id, |value| {
            let mut contents = Contents::decode(&id, value)?;
            let count = change.apply(&mut contents)?;
            Ok((count, self.ttl.encode(&id, &mut contents, unix_time())?))
        })
    }

    /// See [`super::Store::change_id`].
    pub fn change_id(
        &self,
        old: &Id,
        mut change: impl FnMut(&mut Contents) -> Result<(), Error>,
    ) -> Result<Option<NewId>, Error> {
        let mut new = None;
        let ended = self.write(old, |value| {
            let mut contents = Contents::decode(old, value)?;
            if contents.is_ended {
                return Err(Error::Ended);
            }
            let mut going_on = contents.clone();
            change(&mut going_on)?;
            new = Some(NewId { id: self.create(&going_on)?, is_in_doubt: false });
            contents.end();
            Ok((0, self.ttl.encode(old, &mut contents, unix_time())?))
        })?;
        Ok(ended.and(new))
    }

    /// Replaces a session's value, if there is one, by the one that `next` returns, together with a count.
    fn write(&self, id: &Id, next: impl FnOnce(&[u8]) -> Result<(u64, Option<(Bytes, Duration)>), Error>) -> Outcome {
        let Some(session) = self.cache.get(id) else { return Ok(None) };
        let mut session = session.lock();
        let now = Instant::now();
        if session.ends <= now {
            return Ok(None);
        }
        let (count, Some((value, ttl))) = next(&session.value)? else { return Ok(None) };
        let weight = session.weight();
        (session.ends, session.value) = (now + ttl, value.clone());
        if session.weight() != weight {
            drop(session);
            // Not a get and an insert: that could bring back a session that was dropped in between.
            self.cache.entry(*id).and_compute_with(|entry| entry.map_or(Op::Nop, |entry| Op::Put(entry.into_value())));
        }
        Ok(Some(Applied { count, value }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sessions of visitors who come one after the other and do this.
    fn visitors(number: usize, mut visit: impl FnMut(&MemoryStore, Id)) -> (MemoryStore, Vec<Id>) {
        let sessions = MemoryStore::new(SessionTtl::new(Duration::from_secs(60), None));
        let ids: Vec<_> = (0..number)
            .map(|_| {
                let id = sessions.create(&Contents::default()).unwrap();
                visit(&sessions, id);
                id
            })
            .collect();
        sessions.cache.run_pending_tasks();
        (sessions, ids)
    }

    fn assert_bounded(sessions: &MemoryStore, ids: &[Id]) {
        let lives = |id: &&Id| sessions.cache.contains_key(*id);
        let weight = |id| sessions.cache.get(id).unwrap().lock().weight();
        let kept: usize = ids.iter().filter(lives).map(weight).sum();
        assert!(kept <= MAX_MEMORY_BYTES as usize && kept > MAX_MEMORY_BYTES as usize / 2, "{kept} bytes are kept");
        assert!(!lives(&&ids[0]) && lives(&&ids[ids.len() - 1]), "the oldest session has not ended");
    }

    #[test]
    fn data_is_bounded() {
        let data = serde_json::Value::from("x".repeat(60_000));
        let (sessions, ids) = visitors(1000, |sessions, id| {
            let data = data.clone();
            let change = Change::Data(Box::new(move |own| {
                own.insert("data".to_owned(), data.clone());
                Ok(())
            }));
            assert!(sessions.change(id, change).unwrap().is_some());
        });
        assert_bounded(&sessions, &ids);
    }

    #[test]
    fn paths_are_bounded() {
        let (sessions, ids) = visitors(1000, |sessions, id| {
            let views = (0..100).map(|path| sessions.change(id, Change::View(format!("/{path:0800}").into())));
            let refused = views.filter(|view| matches!(view, Err(Error::TooLarge(_)))).count();
            assert!(refused > 10, "{refused} views were refused");
        });
        assert_bounded(&sessions, &ids);
    }
}
