//! Sessions in this process: for trying the service, and for one that runs alone.

use std::{collections::HashMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use moka::{policy::EvictionPolicy, sync::Cache};
use parking_lot::Mutex;
use tower_sessions::{
    SessionStore,
    session::{Id, Record},
    session_store,
};

use crate::views::FIRST_VIEW;

/// The bound of the store. With more, the session that was viewed least recently ends early.
pub const MAX_SESSIONS: u64 = 50_000;

/// The sessions. A clone is another handle on the same ones.
#[derive(Clone, Debug)]
pub struct Sessions(Cache<Id, Arc<Mutex<Session>>>);

#[derive(Debug)]
struct Session {
    record: Record,
    /// Path to count. Empty until the session's second view, as in Redis.
    views: HashMap<Box<str>, u64>,
}

impl Sessions {
    /// Keeps sessions for `ttl` from each view.
    pub fn new(ttl: Duration) -> Self {
        let cache = Cache::builder()
            .max_capacity(MAX_SESSIONS)
            // The cache's default policy weighs how often a session was viewed, and so would turn
            // each new visitor away once it is full.
            .eviction_policy(EvictionPolicy::lru())
            .time_to_idle(ttl)
            .build();
        Self(cache)
    }

    /// See [`super::Store::count_view`].
    pub fn count_view(&self, id: &Id, path: &str) -> Option<u64> {
        let session = self.0.get(id)?;
        let session = &mut *session.lock();
        if session.views.is_empty()
            && let Some(first) = session
                .record
                .data
                .get(FIRST_VIEW)
                .and_then(|path| path.as_str())
        {
            session.views.insert(first.into(), 1);
        }
        let count = session.views.entry(path.into()).or_default();
        *count += 1;
        Some(*count)
    }
}

#[async_trait]
impl SessionStore for Sessions {
    async fn create(&self, record: &mut Record) -> session_store::Result<()> {
        // Never an id that a client has offered, whatever the session went through before.
        record.id = Id::default();
        let session = Session {
            record: record.clone(),
            views: HashMap::new(),
        };
        self.0.insert(record.id, Arc::new(Mutex::new(session)));
        Ok(())
    }

    async fn save(&self, record: &Record) -> session_store::Result<()> {
        if let Some(session) = self.0.get(&record.id) {
            session.lock().record = record.clone();
        }
        Ok(())
    }

    async fn load(&self, id: &Id) -> session_store::Result<Option<Record>> {
        Ok(self.0.get(id).map(|session| session.lock().record.clone()))
    }

    async fn delete(&self, id: &Id) -> session_store::Result<()> {
        self.0.invalidate(id);
        Ok(())
    }
}
