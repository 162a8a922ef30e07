//! Sessions and their counts, wherever they live: in Redis, or in this process.

pub mod committer;
mod connection;
mod error;
mod first_view;
mod keys;
pub mod lifetime;
mod memory;
mod pacing;
mod redis;
mod retry;
pub mod script;

use async_trait::async_trait;
use tower_sessions::{
    SessionStore,
    session::{Id, Record},
    session_store,
};
use tracing::info;

use crate::config::Config;
use connection::Connection;
pub use error::Error;
pub use first_view::FirstView;
pub use retry::DEADLINE;

/// The sessions and their counts. A clone is another handle on the same store.
///
/// A session lives at least [`Config::session_ttl`] after its last view or save, and at most a 24th of that and 5
/// seconds longer. The store logs its failures itself.
#[derive(Clone, Debug)]
pub struct Store(Backend);

#[derive(Clone, Debug)]
enum Backend {
    Redis(redis::Sessions),
    Memory(memory::Sessions),
}

impl Store {
    /// The store that the settings name. Redis need not be there yet: connecting goes on in the background.
    pub fn open(config: &Config) -> Self {
        let ttl = config.session_ttl;
        let backend = match &config.redis_url {
            Some(redis) => Backend::Redis(redis::Sessions::new(Connection::open(redis), ttl)),
            None => {
                info!(
                    "no REDIS_URL: sessions live in this process and end with it; \
                     it keeps those that were viewed last, up to {} MB",
                    memory::MAX_BYTES / 1_000_000
                );
                Backend::Memory(memory::Sessions::new(ttl))
            }
        };
        Self(backend)
    }

    /// Counts a view of `path` in the session, and renews the session. Returns the number of its views so far,
    /// including this one; none if the session is over.
    ///
    /// # Errors
    /// If the store cannot be reached, does not answer or refuses, or too many views wait. After [`Error::Unanswered`]
    /// the view may have been counted; after any other error it was not. No other view is affected.
    pub async fn count_view(&self, id: &Id, path: &str) -> Result<Option<u64>, Error> {
        match &self.0 {
            Backend::Redis(sessions) => sessions.count_view(id, path).await,
            Backend::Memory(sessions) => Ok(sessions.count_view(id, path)),
        }
    }

    /// Checks that the store answers.
    ///
    /// # Errors
    /// If it does not.
    pub async fn ping(&self) -> Result<(), Error> {
        match &self.0 {
            Backend::Redis(sessions) => sessions.ping().await,
            Backend::Memory(_) => Ok(()),
        }
    }

    /// Resolves when Redis is connected for the first time.
    ///
    /// # Errors
    /// The reason, if Redis rejects the settings.
    pub async fn connected(&self) -> Result<(), String> {
        match &self.0 {
            Backend::Redis(sessions) => sessions.connected().await,
            Backend::Memory(_) => Ok(()),
        }
    }

    /// Resolves with the reason if Redis rejects the settings. It does not resolve during an outage.
    pub async fn rejected(&self) -> String {
        match &self.0 {
            Backend::Redis(sessions) => sessions.rejected().await,
            Backend::Memory(_) => std::future::pending().await,
        }
    }

    fn records(&self) -> &dyn SessionStore {
        match &self.0 {
            Backend::Redis(sessions) => sessions,
            Backend::Memory(sessions) => sessions,
        }
    }
}

#[async_trait]
impl SessionStore for Store {
    async fn create(&self, record: &mut Record) -> session_store::Result<()> {
        self.records().create(record).await
    }

    async fn save(&self, record: &Record) -> session_store::Result<()> {
        self.records().save(record).await
    }

    async fn load(&self, id: &Id) -> session_store::Result<Option<Record>> {
        self.records().load(id).await
    }

    async fn delete(&self, id: &Id) -> session_store::Result<()> {
        self.records().delete(id).await
    }
}
