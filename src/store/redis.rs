//! Sessions in Redis: a record each, and beside it, once there is a second view, its views.

use std::time::Duration;

use fred::{
    bytes_utils::Str,
    clients::WithOptions,
    error::Error as RedisError,
    prelude::{Client, ClientLike, KeysInterface, LuaInterface},
    types::{Value, config::Options},
    util::sha1_hash,
};
use tokio::time::timeout;
use tower_sessions::session::Id;
use tower_sessions_redis_store::RedisStore;

use super::{Error, connection::COMMAND_TIMEOUT};

const COUNT_VIEW: &str = include_str!("count_view.lua");

/// The sessions in one Redis.
#[derive(Clone, Debug)]
pub struct Sessions {
    /// Keeps the records. A command whose answer was lost is sent again: a record that was created is
    /// then created once more, under another id, and the first ends unused. (Redis answers what it
    /// does not create or save with nil, which fred takes for `false` by `default-nil-types`.)
    records: RedisStore<Client>,
    /// Sends each command once: a view must not be counted again because an answer was lost.
    once: WithOptions<Client>,
    /// The name by which Redis knows the script.
    script: Str,
    /// Seconds to live from each view.
    ttl: i64,
}

impl Sessions {
    /// Keeps sessions for `ttl` from each view.
    pub fn new(client: Client, ttl: Duration) -> Self {
        Self {
            once: client.with_options(&Options {
                max_attempts: Some(1),
                ..Options::default()
            }),
            records: RedisStore::new(client),
            script: sha1_hash(COUNT_VIEW).into(),
            ttl: ttl.as_secs() as i64,
        }
    }

    /// See [`super::Store::count_view`]. One command.
    pub async fn count_view(&self, id: &Id, path: &str) -> Result<Option<u64>, Error> {
        let keys = keys(id);
        self.connected().await?;
        let args = vec![Value::from(path), Value::from(self.ttl)];
        let counted = self
            .once
            .evalsha(self.script.clone(), keys.clone(), args.clone())
            .await;
        let count: u64 = match counted {
            // Redis is new or was emptied. It keeps what it evaluates.
            Err(error) if is_unknown_script(&error) => {
                self.once.eval(COUNT_VIEW, keys, args).await?
            }
            counted => counted?,
        };
        Ok((count > 0).then_some(count))
    }

    /// Deletes the session, its views too.
    pub async fn delete(&self, id: &Id) -> Result<(), Error> {
        self.connected().await?;
        Ok(self.once.del(keys(id)).await?)
    }

    /// See [`super::Store::ping`].
    pub async fn ping(&self) -> Result<(), Error> {
        self.connected().await?;
        Ok(self.once.ping(None).await?)
    }

    /// The records, without their views, as soon as they can be asked for.
    pub async fn records(&self) -> Result<&RedisStore<Client>, Error> {
        self.connected().await?;
        Ok(&self.records)
    }

    /// Waits for the connection, in each visitor's place. fred would queue what it cannot send, with
    /// no bound, and send it when it can, though nobody waits for it any more.
    async fn connected(&self) -> Result<(), Error> {
        match timeout(COMMAND_TIMEOUT, self.once.wait_for_connect()).await {
            Ok(connected) => Ok(connected?),
            Err(_) => Err(Error::new("Redis is not connected")),
        }
    }
}

/// The keys of a session: its record and its views.
fn keys(id: &Id) -> Vec<String> {
    let record = id.to_string();
    // The braces put the views where the record is, in Redis Cluster.
    let views = format!("views:{{{record}}}");
    vec![record, views]
}

fn is_unknown_script(error: &RedisError) -> bool {
    error.details().starts_with("NOSCRIPT")
}
