//! Where sessions and their views live, and for how long.

mod committer;
mod connection;
mod keys;
mod lifetime;
mod memory;
mod redis;

use async_trait::async_trait;
use tokio::time::error::Elapsed;
use tower_sessions::{
    SessionStore,
    session::{Id, Record},
    session_store,
};
use tracing::info;

use crate::{config::Config, telemetry};
use connection::Connection;

/// The key of the session's record that holds the path of the session's first view.
///
/// A new visitor's first view is number 1 without asking, so it is written with the record that the
/// session layer saves anyway, in one command. The counters beside the record begin with the second
/// view.
pub(crate) const FIRST_VIEW: &str = "1";

/// Why the store failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// Redis cannot be reached or does not answer. What was asked of it may have been done.
    #[error("Redis does not answer")]
    Unanswered,
    /// Redis answers with an error, this one, without what was asked of it. It has done nothing.
    #[error("Redis refuses: {0}")]
    Refused(String),
    /// As many views wait for their answers as may. Nothing was done.
    #[error("too many views wait for Redis")]
    Full,
}

impl Error {
    /// The error that fred shows as `text`, which is KIND: DETAILS. Redis's own begin with a code in
    /// capitals, ERR or another; all others are fred's, which has no answer then. (Its kinds do not
    /// tell: that it has dropped a command is as unknown to it as most of what Redis says.)
    fn of(text: &str) -> Self {
        let details = text.split_once(": ").map_or(text, |(_, details)| details);
        if code(details)
            .bytes()
            .all(|letter| letter.is_ascii_uppercase())
        {
            Self::Refused(without_args(details).to_owned())
        } else {
            Self::Unanswered
        }
    }

    /// Says so in the log. That Redis does not answer is said by its connection.
    fn report(&self) {
        let kind = match self {
            Self::Unanswered => return,
            Self::Refused(reason) => code(reason),
            Self::Full => "full",
        };
        telemetry::warn_of(
            kind,
            format_args!("sessions are out of reach, their visitors get a 503: {self}"),
        );
    }
}

/// ERR, OOM, WRONGTYPE, …
fn code(answer: &str) -> &str {
    answer.split(' ').next().unwrap_or_default()
}

/// Redis answers a command that it does not know, or no longer, by repeating it: with the session's id
/// or the password.
fn without_args(answer: &str) -> &str {
    answer.split(", with args").next().unwrap_or_default()
}

impl From<Elapsed> for Error {
    fn from(_: Elapsed) -> Self {
        Self::Unanswered
    }
}

impl From<fred::error::Error> for Error {
    fn from(error: fred::error::Error) -> Self {
        Self::of(&error.to_string())
    }
}

impl From<session_store::Error> for Error {
    fn from(error: session_store::Error) -> Self {
        match error {
            session_store::Error::Backend(text) => Self::of(&text),
            // Without its words, which may hold the session's data.
            _ => Self::Refused("ERR a session's record is not what it should be".to_owned()),
        }
    }
}

impl From<Error> for session_store::Error {
    fn from(error: Error) -> Self {
        Self::Backend(error.to_string())
    }
}

/// The sessions and their views. A clone is another handle on the same store.
///
/// A session lives at least [`Config::session_ttl`] after its last view or save, and a 24th of that and
/// some seconds longer at most. Failures are reported in the log, where
/// they happen.
#[derive(Clone, Debug)]
pub struct Store(Backend);

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
            Some(redis) => Backend::Redis(redis::Sessions::new(Connection::open(redis), ttl)),
            None => {
                info!(
                    "no REDIS_URL: sessions live and end with this process, the {} last viewed at most",
                    memory::MAX_SESSIONS
                );
                Backend::Memory(memory::Sessions::new(ttl))
            }
        };
        Self(backend)
    }

    /// Counts a view of `path` in the session and renews the session. Gives the views so far, this
    /// one among them; none if the session is over.
    ///
    /// # Errors
    /// If the store does not answer or refuses. The view may have been counted all the same if it
    /// does not answer; no other was touched.
    pub async fn count_view(&self, id: &Id, path: &str) -> Result<Option<u64>, Error> {
        match &self.0 {
            Backend::Redis(sessions) => sessions.count_view(id, path).await,
            Backend::Memory(sessions) => Ok(sessions.count_view(id, path)),
        }
    }

    /// Asks the store for a sign of life.
    ///
    /// # Errors
    /// If there is none.
    pub async fn ping(&self) -> Result<(), Error> {
        match &self.0 {
            Backend::Redis(sessions) => sessions.ping().await,
            Backend::Memory(_) => Ok(()),
        }
    }

    /// Resolves if the store's own settings are wrong, with the reason: an outage is none.
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
