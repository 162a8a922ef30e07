//! Sessions in Redis: a record each, and beside it, once there is a second view, its views.

use std::{fmt::Write, iter, time::Duration};

use async_trait::async_trait;
use fred::{
    bytes::BytesMut,
    prelude::{Client, ClientLike, KeysInterface},
    types::Key,
};
use tower_sessions::{
    SessionStore,
    session::{Id, Record},
    session_store,
};
use tower_sessions_redis_store::RedisStore;

use super::{Error, committer::Committer, connection::Connection};

/// The sessions in one Redis. A clone is another handle on the same ones.
#[derive(Clone, Debug)]
pub struct Sessions {
    redis: Connection,
    views: Committer,
}

impl Sessions {
    /// Keeps sessions for `ttl` from each view.
    pub fn new(redis: Connection, ttl: Duration) -> Self {
        Self {
            views: Committer::new(redis.clone(), ttl),
            redis,
        }
    }

    /// See [`super::Store::count_view`]. One command, shared with other views.
    pub async fn count_view(&self, id: &Id, path: &str) -> Result<Option<u64>, Error> {
        let counted = self.views.count_view(*id, path).await;
        counted.inspect_err(Error::report)
    }

    /// See [`super::Store::ping`].
    pub async fn ping(&self) -> Result<(), Error> {
        let ping = |redis: Client| async move { redis.ping(None).await };
        self.redis.ask(ping).await
    }

    /// See [`super::Store::rejected`].
    pub async fn rejected(&self) -> String {
        self.redis.rejected().await
    }
}

#[async_trait]
impl SessionStore for Sessions {
    async fn create(&self, record: &mut Record) -> session_store::Result<()> {
        // Never an id that a client has offered, whatever the session went through before, nor one
        // under which an attempt has created it whose answer was lost: that one stays unused.
        let create = |redis| {
            let mut new = Record {
                id: Id::default(),
                ..record.clone()
            };
            async move {
                records(redis).create(&mut new).await?;
                Ok::<_, session_store::Error>(new.id)
            }
        };
        record.id = self.redis.ask(create).await.inspect_err(Error::report)?;
        Ok(())
    }

    async fn save(&self, record: &Record) -> session_store::Result<()> {
        let save = |redis| async move { records(redis).save(record).await };
        Ok(self.redis.ask(save).await.inspect_err(Error::report)?)
    }

    async fn load(&self, id: &Id) -> session_store::Result<Option<Record>> {
        let load = |redis| async move { records(redis).load(id).await };
        Ok(self.redis.ask(load).await.inspect_err(Error::report)?)
    }

    /// Deletes the session, its views too.
    async fn delete(&self, id: &Id) -> session_store::Result<()> {
        let delete = |redis: Client| async move {
            let keys: Vec<_> = session_keys(iter::once(id)).collect();
            redis.del(keys).await
        };
        Ok(self.redis.ask(delete).await.inspect_err(Error::report)?)
    }
}

/// The records, without their views. (Redis answers what it does not create or save with nil, which
/// fred takes for `false` by `default-nil-types`.)
fn records(redis: Client) -> RedisStore<Client> {
    RedisStore::new(redis)
}

/// The keys of sessions: of each its record, named by the library, and its views.
pub fn session_keys<'a>(ids: impl ExactSizeIterator<Item = &'a Id>) -> impl Iterator<Item = Key> {
    // One buffer for all of them.
    let mut names = BytesMut::with_capacity(ids.len() * "v:{0123456789012345678901}".len());
    ids.flat_map(move |id| {
        // The braces put the views where the record is, in Redis Cluster.
        let _ = write!(names, "v:{{{id}}}");
        let views = names.split().freeze();
        let record = views.slice(3..views.len() - 1);
        [record, views].map(Key::from)
    })
}
