//! Sessions in this process: to try the service, or for an instance that runs alone.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use moka::{ops::compute::Op, policy::EvictionPolicy, sync::Cache};
use parking_lot::Mutex;
use serde_json::Value;
use tower_sessions::{
    SessionStore,
    session::{Id, Record},
    session_store,
};

use super::{first_view::FirstView, retry::DEADLINE};

/// The most bytes that the sessions take, as [`Session::bytes`] estimates them. Beyond it, the sessions that were
/// viewed least recently end early.
pub const MAX_BYTES: u64 = 40_000_000;

/// The bytes of a session, of a count and of a value, without their texts: estimated from the sizes of
/// the types, and checked by `tests/bounded.rs`.
const SESSION_BYTES: usize = 700;
const COUNT_BYTES: usize = 64;
const VALUE_BYTES: usize = 96;

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
    counts: HashMap<Box<str>, u64>,
}

impl Session {
    /// About how many bytes the session takes.
    fn bytes(&self) -> usize {
        let counts: usize = self.counts.keys().map(|path| COUNT_BYTES + path.len()).sum();
        let data: usize = self.record.data.iter().map(|(name, value)| name.len() + bytes_of(value)).sum();
        SESSION_BYTES + counts + data
    }
}

fn bytes_of(value: &Value) -> usize {
    VALUE_BYTES
        + match value {
            Value::String(text) => text.len(),
            Value::Array(values) => values.iter().map(bytes_of).sum(),
            Value::Object(values) => values.iter().map(|(name, value)| name.len() + bytes_of(value)).sum(),
            Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        }
}

impl Sessions {
    /// Keeps sessions for at least `ttl` after each view or save.
    pub fn new(ttl: Duration) -> Self {
        // This counts from the view, the promise from its response.
        let ttl = ttl + DEADLINE;
        let cache = Cache::builder()
            .max_capacity(MAX_BYTES)
            .weigher(|_, session: &Arc<Mutex<Session>>| session.lock().bytes().try_into().unwrap_or(u32::MAX))
            // The cache's default policy prefers sessions that are viewed often. Once it is full, it would
            // reject every new visitor.
            .eviction_policy(EvictionPolicy::lru())
            .time_to_idle(ttl)
            .build();
        Self { cache, ttl }
    }

    /// Runs `action` on the session if it lives. (The cache also keeps sessions that are only read.)
    fn with<T>(&self, id: &Id, action: impl FnOnce(&mut Session) -> T) -> Option<T> {
        let session = self.cache.get(id)?;
        let mut session = session.lock();
        (session.renewed.elapsed() < self.ttl).then(|| action(&mut session))
    }

    /// Weighs a session anew that has grown or shrunk.
    fn weigh(&self, id: &Id) {
        // Not a get and an insert: that could bring back a session that was deleted in between.
        self.cache.entry(*id).and_compute_with(|entry| entry.map_or(Op::Nop, |entry| Op::Put(entry.into_value())));
    }

    /// See [`super::Store::count_view`].
    pub fn count_view(&self, id: &Id, path: &str) -> Option<u64> {
        let (count, is_first) = self.with(id, |session| {
            session.renewed = Instant::now();
            if let Some(count) = session.counts.get_mut(path) {
                *count += 1;
                return (*count, false);
            }
            if session.counts.is_empty()
                && let Some(FirstView(first)) = FirstView::of(&session.record.data)
            {
                session.counts.insert(first.into(), 1);
            }
            let count = session.counts.entry(path.into()).or_default();
            *count += 1;
            (*count, true)
        })?;
        if is_first {
            self.weigh(id);
        }
        Some(count)
    }
}

#[async_trait]
impl SessionStore for Sessions {
    async fn create(&self, record: &mut Record) -> session_store::Result<()> {
        // Never an id that a client sent.
        record.id = Id::default();
        let session = Session { renewed: Instant::now(), record: record.clone(), counts: HashMap::new() };
        self.cache.insert(record.id, Arc::new(Mutex::new(session)));
        Ok(())
    }

    async fn save(&self, record: &Record) -> session_store::Result<()> {
        self.with(&record.id, |session| {
            session.renewed = Instant::now();
            session.record = record.clone();
        });
        self.weigh(&record.id);
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The sessions of 200 visitors who come one after the other and do this.
    async fn visitors(visit: impl AsyncFn(&Sessions, &mut Record)) -> (Sessions, Vec<Record>) {
        let store = Sessions::new(Duration::from_secs(60));
        let mut records = Vec::new();
        for _ in 0..200 {
            let mut record = Record { id: Id(0), data: HashMap::new(), expiry_date: time::OffsetDateTime::UNIX_EPOCH };
            store.create(&mut record).await.unwrap();
            visit(&store, &mut record).await;
            records.push(record);
        }
        (store, records)
    }

    fn assert_bounded(store: &Sessions, records: &[Record]) {
        store.cache.run_pending_tasks();
        let lives = |record: &&Record| store.cache.contains_key(&record.id);
        let kept: usize =
            records.iter().filter(lives).map(|record| store.cache.get(&record.id).unwrap().lock().bytes()).sum();
        assert!(kept <= MAX_BYTES as usize && kept > MAX_BYTES as usize / 2, "{kept} bytes are kept");
        assert!(!lives(&&records[0]) && lives(&&records[199]), "the oldest session has not ended");
    }

    #[tokio::test]
    async fn data_is_bounded() {
        let (store, records) = visitors(async |store, record| {
            record.data.insert("data".to_owned(), vec!["x".repeat(1000); 300].into());
            store.save(record).await.unwrap();
        })
        .await;
        assert_bounded(&store, &records);
    }

    #[tokio::test]
    async fn paths_are_bounded() {
        let (store, records) = visitors(async |store, record| {
            for path in 0..500 {
                store.count_view(&record.id, &format!("/{path:0800}"));
            }
        })
        .await;
        assert_bounded(&store, &records);
    }
}
