//! Sessions in Redis: for each a record and, from its second view on, its counts beside it.

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
    committer::Committer,
    connection::Connection,
    error::Error,
    keys,
    lifetime::{Lifetime, MARGIN, Renewed},
    script::{self, Script},
};

/// The sessions in one Redis. A clone is another handle on the same ones.
#[derive(Clone, Debug)]
pub struct Sessions {
    connection: Connection,
    save: Arc<Script>,
    lifetime: Lifetime,
    renewed: Arc<Renewed>,
    committer: Committer<Connection>,
}

impl Sessions {
    /// Keeps sessions for at least `ttl` after each view or save.
    pub fn new(connection: Connection, ttl: Duration) -> Self {
        let lifetime = Lifetime::new(ttl);
        let renewed = Arc::new(Renewed::new(lifetime));
        Self {
            committer: Committer::new(connection.clone(), lifetime, renewed.clone()),
            save: Arc::new(Script::new(include_str!("save.lua"))),
            connection,
            lifetime,
            renewed,
        }
    }

    /// See [`super::Store::count_view`].
    pub async fn count_view(&self, id: &Id, path: &str) -> Result<Option<u64>, Error> {
        let counted = self.committer.count_view(*id, path).await;
        counted.inspect_err(Error::report)
    }

    /// See [`super::Store::ping`].
    pub async fn ping(&self) -> Result<(), Error> {
        let ping = |link: Client| async move { link.ping(None).await };
        self.connection.ask(Instant::now(), ping).await
    }

    /// See [`super::Store::connected`].
    pub async fn connected(&self) -> Result<(), String> {
        self.connection.connected().await
    }

    /// See [`super::Store::rejected`].
    pub async fn rejected(&self) -> String {
        self.connection.rejected().await
    }

    /// A record as tower-sessions-redis-store reads it.
    fn encode(&self, record: &Record) -> Result<Value, Error> {
        // Nobody reads this time, but a record without a fraction of a second takes 120 bytes instead of 136.
        let end = OffsetDateTime::now_utc() + self.lifetime.of_record();
        let record = Record { expiry_date: end.replace_nanosecond(0).unwrap_or(end), ..record.clone() };
        let encoded = rmp_serde::to_vec(&record);
        let encoded = encoded.map_err(|error| session_store::Error::Encode(error.to_string()))?;
        Ok(Value::Bytes(encoded.into()))
    }
}

// tower-sessions-redis-store 0.16 only loads records here. It would set their expiry by this instance's
// clock; but they must expire with their counts, by Redis's clock.
#[async_trait]
impl SessionStore for Sessions {
    async fn create(&self, record: &mut Record) -> session_store::Result<()> {
        let begin = Instant::now();
        // Each attempt takes a new id: never one that a client sent, nor that of an earlier attempt, whose
        // session may exist if only its reply was lost. That session stays unused.
        let create = |link: Client| {
            let new = Record { id: Id::default(), ..record.clone() };
            async move {
                let (id, value) = (new.id, self.encode(&new)?);
                let life = Some(Expiration::PX(self.lifetime.record_millis()));
                let option = Some(SetOptions::NX);
                // Redis replies nil if the id is taken, which fred turns into `false`.
                let is_new = link.set(keys::record(&id), value, life, option, false).await?;
                if is_new { Ok(id) } else { Err(Error::Unanswered) }
            }
        };
        let created = self.connection.ask(begin, create).await;
        record.id = created.inspect_err(Error::report)?;
        self.renewed.remember(iter::once(record.id), begin);
        Ok(())
    }

    /// Saves the record of a session that lives, and renews the session. A session that is over stays over: its data is
    /// dropped. If a reply is lost, the save is repeated, and a late attempt may undo a newer save.
    async fn save(&self, record: &Record) -> session_store::Result<()> {
        let begin = Instant::now();
        let value = self.encode(record)?;
        let is_due = self.renewed.are_due(iter::once(&record.id), begin)[0];
        if is_due {
            let arguments = || {
                let keys = keys::of_sessions(iter::once(&record.id)).collect();
                let life = self.lifetime.record_millis();
                let margin = MARGIN.as_millis() as i64;
                (keys, vec![value.clone(), life.into(), margin.into()])
            };
            let saved = script::run(&self.connection, begin, &self.save, arguments).await;
            if saved.inspect_err(Error::report)? == "1" {
                self.renewed.remember(iter::once(record.id), begin);
            }
        } else {
            // Renewed already: one command instead of four.
            let save = |link: Client| {
                let (key, value) = (keys::record(&record.id), value.clone());
                let (life, option) = (Some(Expiration::KEEPTTL), Some(SetOptions::XX));
                async move { link.set::<Value, _, _>(key, value, life, option, false).await }
            };
            let saved = self.connection.ask(begin, save).await;
            saved.inspect_err(Error::report)?;
        }
        Ok(())
    }

    async fn load(&self, id: &Id) -> session_store::Result<Option<Record>> {
        let load = |link| async move { RedisStore::new(link).load(id).await };
        let loaded = self.connection.ask(Instant::now(), load).await;
        Ok(loaded.inspect_err(Error::report)?)
    }

    /// Deletes the session with its counts.
    async fn delete(&self, id: &Id) -> session_store::Result<()> {
        let delete = |link: Client| async move {
            let keys: Vec<_> = keys::of_sessions(iter::once(id)).collect();
            link.del(keys).await
        };
        let deleted = self.connection.ask(Instant::now(), delete).await;
        Ok(deleted.inspect_err(Error::report)?)
    }
}
