//! Sessions, wherever they live: in Redis, or in this process.

mod addresses;
pub mod change;
pub mod committer;
pub mod compare_and_set;
pub mod contents;
mod error;
mod memory;
mod pacing;
mod redis_client;
mod redis_link;
mod rejection;
mod remembered;
mod retry;
pub mod ttl;

use std::{future::pending, sync::Arc};

use fred::{bytes::Bytes, types::config::Config as RedisConfig};
use futures_util::future::{join_all, select_all};
use tokio::{runtime::Handle, time::timeout};
use tower_sessions::session::Id;
use tracing::info;

use crate::config::Config;
use change::{Change, NewId, Outcome};
use committer::{Committer, Instance};
use compare_and_set::CompareAndSet;
use contents::Contents;
pub use error::Error;
use memory::MemoryStore;
use redis_link::{OutageLog, RedisLink};
pub use retry::DEADLINE;
use retry::RETRY_WINDOW;
use ttl::SessionTtl;

/// The sessions, for one thread. A clone is another handle on the same store.
///
/// A session ends [`Config::session_ttl`] after its last view or save, and no more than 5 seconds later; or
/// [`Config::session_max_age`] after it began or its visitor last logged in.
/// The store logs its failures itself, but for those of [`Self::ready`].
#[derive(Clone, Debug)]
pub struct Store(Arc<Backend>);

#[derive(Clone, Debug)]
enum Backend {
    Redis {
        committer: Committer<RedisLink>,
        link: RedisLink,
        /// Those of all threads.
        links: Arc<[RedisLink]>,
    },
    Memory(MemoryStore),
}

impl Store {
    /// The store that the settings name, for each of these threads' runtimes. Redis need not be there yet: connecting
    /// goes on in the background.
    pub fn open(config: &Config, threads: &[Handle]) -> Vec<Self> {
        let ttl = SessionTtl::new(config.session_ttl, config.session_max_age);
        let backends: Vec<_> = match &config.redis_url {
            Some(redis) => open_redis(redis, ttl, threads).collect(),
            None => {
                info!(
                    "REDIS_URL is not set: sessions are kept in memory and are lost when the process exits; \
                     above {} MB the least recently used are dropped",
                    memory::MAX_MEMORY_BYTES / 1_000_000
                );
                vec![Backend::Memory(MemoryStore::new(ttl)); threads.len()]
            }
        };
        backends.into_iter().map(|backend| Self(Arc::new(backend))).collect()
    }

    /// Begins a session. Returns its id, which is new.
    ///
    /// # Errors
    /// If the store cannot be reached, does not answer or refuses. Then a session may exist whose id nobody
    /// knows.
    pub async fn create(&self, contents: &Contents<'_>) -> Result<Id, Error> {
        let created = match &*self.0 {
            Backend::Redis { committer, .. } => committer.create(contents).await,
            Backend::Memory(memory) => memory.create(contents),
        };
        created.inspect_err(Error::report)
    }

    /// The value of a session, which [`Contents::decode`] reads; nothing if there is no such session. It is not renewed.
    ///
    /// # Errors
    /// If the store cannot be reached, does not answer or refuses; [`Error::Ended`].
    pub async fn read(&self, id: &Id) -> Result<Option<Bytes>, Error> {
        let read = match &*self.0 {
            Backend::Redis { committer, .. } => committer.read(id).await,
            Backend::Memory(memory) => memory.read(id),
        };
        read.inspect_err(Error::report)
    }

    /// Applies a change to a session, exactly once, and renews the session. Returns what the session then holds; nothing
    /// if there is no such session.
    ///
    /// # Errors
    /// If the store cannot be reached, does not answer or refuses, too many changes wait, or the change fails. After
    /// [`Error::Unanswered`] or [`Error::Garbled`] it may have been applied; after any other error it was not. No other
    /// change is affected.
    pub async fn change(&self, id: Id, change: Change) -> Outcome {
        let outcome = match &*self.0 {
            Backend::Redis { committer, .. } => committer.change(id, change).await,
            Backend::Memory(memory) => memory.change(id, change),
        };
        outcome.inspect_err(Error::report)
    }

    /// Lets a session go on under a new id, changed by this function, and ends it under the old one. Returns the new
    /// id; nothing if there is no such session.
    ///
    /// # Errors
    /// As for [`Self::change`], but for [`Error::Unanswered`] and [`Error::Garbled`]: see [`NewId::is_in_doubt`]. After
    /// an error, the old session is what it was, and there may be a new one whose id nobody knows.
    pub async fn change_id(
        &self,
        old: &Id,
        change: impl FnMut(&mut Contents) -> Result<(), Error>,
    ) -> Result<Option<NewId>, Error> {
        let changed = match &*self.0 {
            Backend::Redis { committer, .. } => committer.change_id(old, change).await,
            Backend::Memory(memory) => memory.change_id(old, change),
        };
        if let Ok(Some(NewId { is_in_doubt: true, .. })) = changed {
            Error::Unanswered.report();
        }
        changed.inspect_err(Error::report)
    }

    /// Checks that each thread reaches Redis, and that Redis takes writes. It sends a command, in a Cluster one to
    /// each master, on this thread's link only: providers bill it. Other links that have ended are made anew and checked.
    ///
    /// # Errors
    /// If not: the store cannot be reached, does not answer or refuses.
    pub async fn ready(&self) -> Result<(), Error> {
        let Backend::Redis { link, links, .. } = &*self.0 else { return Ok(()) };
        link.accepts_views().await?;
        let all_linked = join_all(links.iter().map(RedisLink::client));
        timeout(RETRY_WINDOW, all_linked).await.map(drop).map_err(|_| Error::Unreached)
    }

    /// Resolves when this thread is connected to Redis for the first time.
    ///
    /// # Errors
    /// The reason, if Redis rejects the settings.
    pub async fn connected(&self) -> Result<(), String> {
        match &*self.0 {
            Backend::Redis { link, .. } => link.connected().await,
            Backend::Memory(_) => Ok(()),
        }
    }

    /// Resolves with the reason if Redis rejects the settings. It does not resolve during an outage.
    pub async fn rejected(&self) -> String {
        match &*self.0 {
            Backend::Redis { links, .. } => select_all(links.iter().map(|link| Box::pin(link.rejected()))).await.0,
            Backend::Memory(_) => pending().await,
        }
    }
}

/// The sessions in this Redis, for each of these threads.
fn open_redis(redis: &RedisConfig, ttl: SessionTtl, threads: &[Handle]) -> impl Iterator<Item = Backend> {
    let (instance, log) = (Arc::<Instance>::default(), Arc::<OutageLog>::default());
    let opened = threads.iter().map(|thread| {
        let _entered = thread.enter();
        let compare_and_set = Arc::new(CompareAndSet::new(ttl, redis.server.is_clustered()));
        let link = RedisLink::open(redis, compare_and_set.clone(), &log);
        (link.clone(), Committer::new(link, compare_and_set, ttl, &instance))
    });
    let opened: Vec<_> = opened.collect();
    let links: Arc<[_]> = opened.iter().map(|(link, _)| link.clone()).collect();
    let backend = move |(link, committer)| Backend::Redis { committer, link, links: links.clone() };
    opened.into_iter().map(backend)
}
