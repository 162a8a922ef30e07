//! Sessions in Redis.

use std::sync::Arc;

use fred::types::config::Config;
use futures_util::future::{join_all, select_all};
use tokio::{runtime::Handle, time::timeout};

use super::{
    committer::{Committer, Instance},
    compare_and_set::CompareAndSet,
    error::Error,
    redis_link::{OutageLog, RedisLink},
    retry::RETRY_WINDOW,
    ttl::SessionTtl,
};

/// The sessions in one Redis, for one thread. A clone is another handle on the same ones.
#[derive(Clone, Debug)]
pub struct RedisStore {
    link: RedisLink,
    /// Those of all threads.
    links: Arc<[RedisLink]>,
    /// Changes the sessions.
    pub committer: Committer<RedisLink>,
}

impl RedisStore {
    /// The sessions in this Redis, for each of these threads. Connecting goes on in the background.
    pub fn open(redis: &Config, ttl: SessionTtl, threads: &[Handle]) -> impl Iterator<Item = Self> {
        let (instance, log) = (Arc::<Instance>::default(), Arc::<OutageLog>::default());
        let opened = threads.iter().map(|thread| {
            let _entered = thread.enter();
            let compare_and_set = Arc::new(CompareAndSet::new(ttl, redis.server.is_clustered()));
            let link = RedisLink::open(redis, compare_and_set.clone(), &log);
            (link.clone(), Committer::new(link, compare_and_set, ttl, &instance))
        });
        let opened: Vec<_> = opened.collect();
        let links: Arc<[_]> = opened.iter().map(|(link, _)| link.clone()).collect();
        let sessions = move |(link, committer)| Self { link, links: links.clone(), committer };
        opened.into_iter().map(sessions)
    }

    /// See [`super::Store::ready`]. It sends a command, which providers bill, on this thread's link only. Other
    /// links that have ended are made anew, and checked.
    pub async fn ready(&self) -> Result<(), Error> {
        self.link.accepts_views().await?;
        let all_linked = join_all(self.links.iter().map(RedisLink::client));
        timeout(RETRY_WINDOW, all_linked).await.map(drop).map_err(|_| Error::Unreached)
    }

    /// See [`super::Store::connected`].
    pub async fn connected(&self) -> Result<(), String> {
        self.link.connected().await
    }

    /// See [`super::Store::rejected`].
    pub async fn rejected(&self) -> String {
        select_all(self.links.iter().map(|link| Box::pin(link.rejected()))).await.0
    }
}
