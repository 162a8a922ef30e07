//! Sessions in this process: to try the service, or for an instance that runs alone.

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

use super::{first_view::FirstView, retry::DEADLINE};

/// The most sessions that are kept. Beyond it, the session that was viewed least recently ends early.
pub const MAX_SESSIONS: u64 = 50_000;

/// The sessions. A clone is another handle on the same ones.
#[derive(Clone, Debug)]
pub struct Sessions {
    cache: Cache<Id, Arc<Mutex<Session>>>,
    ttl: Duration,
}

#[derive(Debug)]
struct Session {
    /// When it was last viewed or saved.
    renewed: Instant,
    record: Record,
    /// Path to count. Empty until the session's second view, as in Redis.
    views: HashMap<Box<str>, u64>,
}

impl Sessions {
    /// Keeps sessions for at least `ttl` after each view or save.
    pub fn new(ttl: Duration) -> Self {
        // From the view on, and the promise counts from its response.
        let ttl = ttl + DEADLINE;
        let cache = Cache::builder()
            .max_capacity(MAX_SESSIONS)
            // The cache's default policy prefers sessions that are viewed often. Once it is full, it would
            // reject every new visitor.
            .eviction_policy(EvictionPolicy::lru())
            .time_to_idle(ttl)
            .build();
        Self { cache, ttl }
    }

    /// Runs `action` on the session if it lives. (The cache keeps a session longer that is only looked at.)
    fn with<T>(&self, id: &Id, action: impl FnOnce(&mut Session) -> T) -> Option<T> {
        let session = self.cache.get(id)?;
        let mut session = session.lock();
        (session.renewed.elapsed() < self.ttl).then(|| action(&mut session))
    }

    /// See [`super::Store::count_view`].
    pub fn count_view(&self, id: &Id, path: &str) -> Option<u64> {
        self.with(id, |session| {
            session.renewed = Instant::now();
            if session.views.is_empty()
                && let Some(FirstView(first)) = FirstView::of(&session.record.data)
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
        // Never an id that a client sent.
        record.id = Id::default();
        let session = Session { renewed: Instant::now(), record: record.clone(), views: HashMap::new() };
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
