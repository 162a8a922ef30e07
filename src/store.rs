//! Where sessions and their views live, and for how long.

mod connection;
mod memory;
mod redis;

use std::time::Duration;

use async_trait::async_trait;
use time::OffsetDateTime;
use tower_sessions::{
    SessionStore,
    session::{Id, Record},
    session_store,
};
use tracing::{info, warn};

use crate::config::Config;

/// Why the store failed, in its words, without what was asked of it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Error(String);

impl Error {
    /// Redis answers a command that it does not know, or no longer, by repeating it: with the
    /// session's id or the password.
    fn new(answer: &str) -> Self {
        Self(
            answer
                .split(", with args")
                .next()
                .unwrap_or_default()
                .to_owned(),
        )
    }

    fn report(&self) {
        warn!("a session is out of reach, its visitor gets a 503: {self}");
    }
}

impl From<fred::error::Error> for Error {
    fn from(error: fred::error::Error) -> Self {
        Self::new(error.details())
    }
}

/// The sessions and their views. A clone is another handle on the same store.
///
/// A session ends [`Config::session_ttl`] after its last view. Each failure is reported in the log,
/// once, where it happens.
#[derive(Clone, Debug)]
pub struct Store {
    backend: Backend,
    ttl: Duration,
}

#[derive(Clone, Debug)]
enum Backend {
    Redis(redis::Sessions),
    Memory(memory::Sessions),
}

impl Store {
    /// The store that the settings ask for. Redis need not be there yet: connecting goes on in the
    /// background, for ever.
    pub fn open(config: &Config) -> Self {
        let ttl = config.session_ttl;
        let backend = match &config.redis_url {
            Some(redis) => Backend::Redis(redis::Sessions::new(connection::open(redis), ttl)),
            None => {
                info!(
                    "no REDIS_URL: sessions live and end with this process, the {} last viewed at most",
                    memory::MAX_SESSIONS
                );
                Backend::Memory(memory::Sessions::new(ttl))
            }
        };
        Self { backend, ttl }
    }

    /// Counts a view of `path` in the session and renews the session. Gives the views so far, this
    /// one among them; none if the session is over.
    ///
    /// # Errors
    /// If the store does not answer in time or at all, or refuses. The view may then have been
    /// counted all the same.
    pub async fn count_view(&self, id: &Id, path: &str) -> Result<Option<u64>, Error> {
        match &self.backend {
            Backend::Redis(sessions) => sessions
                .count_view(id, path)
                .await
                .inspect_err(Error::report),
            Backend::Memory(sessions) => Ok(sessions.count_view(id, path)),
        }
    }

    /// Asks the store for a sign of life.
    ///
    /// # Errors
    /// If there is none.
    pub async fn ping(&self) -> Result<(), Error> {
        match &self.backend {
            Backend::Redis(sessions) => sessions.ping().await,
            Backend::Memory(_) => Ok(()),
        }
    }

    async fn records(&self) -> session_store::Result<&dyn SessionStore> {
        match &self.backend {
            Backend::Redis(sessions) => Ok(sessions.records().await.map_err(reported)?),
            Backend::Memory(sessions) => Ok(sessions),
        }
    }

    /// When a record written now ends. The session layer does not know: it would tell the browser.
    fn expiry_date(&self) -> OffsetDateTime {
        // Redis takes it in whole seconds, cut off; an early end would be a broken promise.
        OffsetDateTime::now_utc() + self.ttl + Duration::from_nanos(999_999_999)
    }
}

#[async_trait]
impl SessionStore for Store {
    async fn create(&self, record: &mut Record) -> session_store::Result<()> {
        // Never an id that a client has offered, whatever the session went through before.
        record.id = Id::default();
        record.expiry_date = self.expiry_date();
        self.records().await?.create(record).await.map_err(reported)
    }

    async fn save(&self, record: &Record) -> session_store::Result<()> {
        let mut record = record.clone();
        record.expiry_date = self.expiry_date();
        self.records().await?.save(&record).await.map_err(reported)
    }

    async fn load(&self, id: &Id) -> session_store::Result<Option<Record>> {
        self.records().await?.load(id).await.map_err(reported)
    }

    async fn delete(&self, id: &Id) -> session_store::Result<()> {
        match &self.backend {
            Backend::Redis(sessions) => sessions.delete(id).await.map_err(reported),
            Backend::Memory(sessions) => sessions.delete(id).await,
        }
    }
}

/// The session layer's error, which it may log, after our own report.
fn reported(error: impl ToString) -> session_store::Error {
    let error = Error::new(&error.to_string());
    error.report();
    session_store::Error::Backend(error.0)
}
