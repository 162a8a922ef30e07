//! Sessions in Redis: a record each, and beside it, once there is a second view, its views.

use std::{iter, sync::Arc, time::Duration};

use async_trait::async_trait;
use fred::{
    prelude::{Client, ClientLike, KeysInterface},
    types::{Expiration, SetOptions, Value},
};
use time::OffsetDateTime;
use tokio::time::Instant;
use tower_sessions::{
    SessionStore,
    session::{Id, Record},
    session_store,
};
use tower_sessions_redis_store::RedisStore;

use super::{
    Error,
    committer::Committer,
    connection::{Connection, Script},
    keys,
    lifetime::{Lifetime, MARGIN, Renewed},
};

/// The sessions in one Redis. A clone is another handle on the same ones.
#[derive(Clone, Debug)]
pub struct Sessions {
    redis: Connection,
    save: Arc<Script>,
    lifetime: Lifetime,
    renewed: Arc<Renewed>,
    views: Committer,
}

impl Sessions {
    /// Keeps sessions for at least `ttl` after each view.
    pub fn new(redis: Connection, ttl: Duration) -> Self {
        let lifetime = Lifetime::new(ttl);
        let renewed = Arc::new(Renewed::new(lifetime));
        Self {
            views: Committer::new(redis.clone(), lifetime, renewed.clone()),
            save: Arc::new(Script::new(include_str!("save.lua"))),
            redis,
            lifetime,
            renewed,
        }
    }

    /// See [`super::Store::count_view`].
    pub async fn count_view(&self, id: &Id, path: &str) -> Result<Option<u64>, Error> {
        let counted = self.views.count_view(*id, path).await;
        counted.inspect_err(Error::report)
    }

    /// See [`super::Store::ping`].
    pub async fn ping(&self) -> Result<(), Error> {
        let ping = |redis: Client| async move { redis.ping(None).await };
        self.redis.ask(Instant::now(), ping).await
    }

    /// See [`super::Store::rejected`].
    pub async fn rejected(&self) -> String {
        self.redis.rejected().await
    }

    /// What Redis keeps of a record, as tower-sessions-redis-store reads it.
    fn encode(&self, record: &Record) -> Result<Value, Error> {
        // Nobody reads when it ends, but without a fraction of a second a record takes 120 bytes, not 136.
        let end = OffsetDateTime::now_utc() + self.lifetime.of_record();
        let record = Record {
            expiry_date: end.replace_nanosecond(0).unwrap_or(end),
            ..record.clone()
        };
        let encoded = rmp_serde::to_vec(&record);
        let encoded = encoded.map_err(|error| session_store::Error::Encode(error.to_string()))?;
        Ok(Value::Bytes(encoded.into()))
    }
}

// tower-sessions-redis-store would have records end at a time by this instance's clock. These end a time
// after they are written, by Redis's clock, as their views do.
#[async_trait]
impl SessionStore for Sessions {
    async fn create(&self, record: &mut Record) -> session_store::Result<()> {
        let begin = Instant::now();
        // Never an id that a client has offered, whatever the session went through before, nor one
        // under which an attempt has created it whose answer was lost: that one stays unused.
        let create = |redis: Client| {
            let new = Record {
                id: Id::default(),
                ..record.clone()
            };
            async move {
                let life = Expiration::PX(self.lifetime.of_record().as_millis() as i64);
                let (id, value) = (new.id, self.encode(&new)?);
                let (key, option) = (id.to_string(), Some(SetOptions::NX));
                let is_new = redis.set(key, value, Some(life), option, false).await?;
                // Else the id was taken, which is a matter of 1 to 10^38.
                if is_new {
                    Ok(id)
                } else {
                    Err(Error::Unanswered)
                }
            }
        };
        let created = self.redis.ask(begin, create).await;
        record.id = created.inspect_err(Error::report)?;
        self.renewed.remember(iter::once(record.id), begin);
        Ok(())
    }

    /// Saves the record of a session that lives; one that is over stays over.
    async fn save(&self, record: &Record) -> session_store::Result<()> {
        let begin = Instant::now();
        let value = self.encode(record)?;
        let is_due = self.renewed.are_due(iter::once(&record.id), begin)[0];
        let saved: Result<Value, _> = if is_due {
            let arguments = || {
                let keys = keys::of_sessions(iter::once(&record.id)).collect();
                let life = self.lifetime.of_record().as_millis() as i64;
                let margin = MARGIN.as_millis() as i64;
                (keys, vec![value.clone(), life.into(), margin.into()])
            };
            self.redis.run(begin, &self.save, arguments).await
        } else {
            let save = |redis: Client| {
                let (key, value) = (record.id.to_string(), value.clone());
                let (life, option) = (Some(Expiration::KEEPTTL), Some(SetOptions::XX));
                async move { redis.set(key, value, life, option, false).await }
            };
            self.redis.ask(begin, save).await
        };
        saved.inspect_err(Error::report)?;
        if is_due {
            self.renewed.remember(iter::once(record.id), begin);
        }
        Ok(())
    }

    async fn load(&self, id: &Id) -> session_store::Result<Option<Record>> {
        let load = |redis| async move { RedisStore::new(redis).load(id).await };
        Ok(self
            .redis
            .ask(Instant::now(), load)
            .await
            .inspect_err(Error::report)?)
    }

    /// Deletes the session, its views too.
    async fn delete(&self, id: &Id) -> session_store::Result<()> {
        let delete = |redis: Client| async move {
            let keys: Vec<_> = keys::of_sessions(iter::once(id)).collect();
            redis.del(keys).await
        };
        Ok(self
            .redis
            .ask(Instant::now(), delete)
            .await
            .inspect_err(Error::report)?)
    }
}
