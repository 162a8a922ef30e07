//! Sessions in Redis.

use std::sync::Arc;

use fred::{bytes::Bytes, types::config::Config};
use tower_sessions::session::Id;

use super::{
    committer::{Change, Committer, Outcome},
    compare_and_set::CompareAndSet,
    connection::Connection,
    contents::Contents,
    error::Error,
    ttl::SessionTtl,
};

/// The sessions in one Redis. A clone is another handle on the same ones.
#[derive(Clone, Debug)]
pub struct RedisSessions {
    connection: Connection,
    committer: Committer<Connection>,
}

impl RedisSessions {
    /// The sessions in this Redis. Connecting goes on in the background.
    pub fn new(redis: &Config, ttl: SessionTtl) -> Self {
        let compare_and_set = Arc::new(CompareAndSet::new(ttl, redis.server.is_clustered()));
        let connection = Connection::open(redis, compare_and_set.clone());
        Self { committer: Committer::new(connection.clone(), compare_and_set, ttl), connection }
    }

    /// See [`super::Store::create`].
    pub async fn create(&self, contents: &Contents<'_>) -> Result<(Id, Bytes), Error> {
        self.committer.create(contents).await.inspect_err(Error::report)
    }

    /// See [`super::Store::read`].
    pub async fn read(&self, id: &Id) -> Result<Option<Bytes>, Error> {
        self.committer.read(id).await.inspect_err(Error::report)
    }

    /// See [`super::Store::change`].
    pub async fn change(&self, id: Id, change: Change) -> Outcome {
        self.committer.change(id, change).await.inspect_err(Error::report)
    }

    /// See [`super::Store::change_id`].
    pub async fn change_id(
        &self,
        old: &Id,
        change: impl FnMut(&mut Contents) -> Result<(), Error>,
    ) -> Result<Option<(Id, Bytes)>, Error> {
        self.committer.change_id(old, change).await.inspect_err(Error::report)
    }

    /// See [`super::Store::ready`].
    pub async fn ready(&self) -> Result<(), Error> {
        self.connection.accepts_views().await
    }

    /// See [`super::Store::connected`].
    pub async fn connected(&self) -> Result<(), String> {
        self.connection.connected().await
    }

    /// See [`super::Store::rejected`].
    pub async fn rejected(&self) -> String {
        self.connection.rejected().await
    }
}
