//! Sessions in this process: for trying the service, and for one that runs alone.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use moka::{policy::EvictionPolicy, sync::Cache};
use parking_lot::Mutex;
use tower_sessions::{
    SessionStore,
    session::{Id, Record},
    session_store,
};

use super::FIRST_VIEW;

/// The bound of the store. With more, the session that was viewed least recently ends early.
pub const MAX_SESSIONS: u64 = 50_000;

/// The sessions. A clone is another handle on the same ones.
#[derive(Clone, Debug)]
pub struct Sessions {
    cache: Cache<Id, Arc<Mutex<Session>>>,
    ttl: Duration,
}

#[derive(Debug)]
struct Session {
    /// Of the last view or save.
    renewed: Instant,
    record: Record,
    /// Path to count. Empty until the session's second view, as in Redis.
    views: HashMap<Box<str>, u64>,
}

impl Sessions {
    /// Keeps sessions for `ttl` from each view or save.
    pub fn new(ttl: Duration) -> Self {
        let cache = Cache::builder()
            .max_capacity(MAX_SESSIONS)
            // The cache's default policy weighs how often a session was viewed, and so would turn
            // each new visitor away once it is full.
            .eviction_policy(EvictionPolicy::lru())
            .time_to_idle(ttl)
            .build();
        Self { cache, ttl }
    }

    /// Does this to the session if it lives. (The cache keeps it a while longer if it is looked at.)
    fn with<T>(&self, id: &Id, action: impl FnOnce(&mut Session) -> T) -> Option<T> {
        let session = self.cache.get(id)?;
        let mut session = session.lock();
        (session.renewed.elapsed() < self.ttl).then(|| action(&mut session))
    }

    /// See [`super::Store::count_view`].
    pub fn count_view(&self, id: &Id, path: &str) -> Option<u64> {
        self.with(id, |session| {
            session.renewed = Instant::now();
            let first = session.record.data.get(FIRST_VIEW);
            if session.views.is_empty()
                && let Some(first) = first.and_then(|path| path.as_str())
            {
                session.views.insert(first.into(), 1);
            }
            let count = session.views.entry(path.into()).or_default();
            *count += 1;
            *count
        })
    }
}

#[async_trait]
impl SessionStore for Sessions {
    async fn create(&self, record: &mut Record) -> session_store::Result<()> {
        // Never an id that a client has offered, whatever the session went through before.
        record.id = Id::default();
        let session = Session {
            renewed: Instant::now(),
            record: record.clone(),
            views: HashMap::new(),
        };
        self.cache.insert(record.id, Arc::new(Mutex::new(session)));
        Ok(())
    }

    async fn save(&self, record: &Record) -> session_store::Result<()> {
        self.with(&record.id, |session| {
            session.renewed = Instant::now();
            session.record = record.clone();
        });
        Ok(())
    }

    async fn load(&self, id: &Id) -> session_store::Result<Option<Record>> {
        Ok(self.with(id, |session| session.record.clone()))
    }

    async fn delete(&self, id: &Id) -> session_store::Result<()> {
        self.cache.invalidate(id);
        Ok(())
    }
}
