//! The connection to Redis: connecting, reconnecting, and sending commands.

use std::{sync::Arc, time::Duration};

use fred::{
    error::{Error as RedisError, ErrorKind},
    prelude::{Builder, Client, ClientLike, ClusterInterface, KeysInterface, LuaInterface},
    types::{
        ConnectHandle, CustomCommand, Key, Value,
        config::{Config, ServerConfig},
    },
};
use rand::Rng;
use tokio::{
    sync::watch,
    task::JoinError,
    time::{Instant, sleep, timeout, timeout_at},
};
use tracing::{info, warn};

use super::{
    error::{self, Error, code, rejection, without_arguments},
    keys,
    retry::{UNRESPONSIVE, until_answered},
    script::{RunScript, Script},
};

/// Connecting takes a few round trips, one more with TLS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// The longest pause between attempts to connect. It is reached after about 20 attempts in 3 s.
const LONGEST_BACKOFF: Duration = Duration::from_millis(800);

/// How long a Cluster's link is used while a server does not answer: longer than a failover takes with Redis's
/// defaults (15 s until the others give up a master). What is sent to that server meanwhile is kept in memory.
const LONGEST_DOUBT: Duration = Duration::from_secs(30);

/// A connection to Redis that reconnects for ever. A clone is another handle on the same one.
///
/// What connects at a given moment is a *link*: one fred client, which is replaced when it fails.
#[derive(Clone, Debug)]
pub struct Connection {
    state: Arc<watch::Sender<State>>,
    is_clustered: bool,
}

#[derive(Debug)]
enum State {
    Linked(Client),
    /// In a Cluster: linked, but one server fails, for this reason. The link serves the other servers' sessions until
    /// there is a new link.
    Doubted(Client, String),
    /// Not connected, for this reason.
    Lost(String),
    /// Redis rejected a setting before it was ever connected, for this reason.
    Rejected(String),
}

impl State {
    fn link(&self) -> Option<&Client> {
        match self {
            Self::Linked(link) | Self::Doubted(link, _) => Some(link),
            Self::Lost(_) | Self::Rejected(_) => None,
        }
    }

    fn uses(&self, link: &Client) -> bool {
        self.link().is_some_and(|current| current.id() == link.id())
    }

    /// Why a new link is needed, if so.
    fn problem(&self) -> Option<String> {
        match self {
            Self::Lost(reason) | Self::Doubted(_, reason) => Some(reason.clone()),
            _ => None,
        }
    }
}

impl Connection {
    /// Connects in the background.
    pub fn open(config: &Config) -> Self {
        let connecting = State::Lost("not connected yet".to_owned());
        let state = Arc::new(watch::Sender::new(connecting));
        tokio::spawn(keep_connected(config.clone(), state.clone()));
        Self { state, is_clustered: config.server.is_clustered() }
    }

    /// Sends a command that may be executed several times, for the first time at `begin`, until there is a reply.
    ///
    /// # Errors
    /// As for [`until_answered`].
    pub async fn ask<T, E: Into<Error>, F: Future<Output = Result<T, E>>>(
        &self,
        begin: Instant,
        command: impl Fn(Client) -> F,
    ) -> Result<T, Error> {
        until_answered(begin, |send_by| self.attempt(send_by, &command)).await
    }

    /// Sends a command once, until `send_by` at the latest.
    async fn attempt<T, E: Into<Error>, F: Future<Output = Result<T, E>>>(
        &self,
        send_by: Instant,
        command: impl FnOnce(Client) -> F,
    ) -> Result<T, Error> {
        // Commands wait here, where they are dropped with their requests. fred would queue them without a bound, and
        // send them later.
        let link = timeout_at(send_by, self.link()).await;
        let link = link.map_err(|_| Error::Unreached)?;
        if Instant::now() >= send_by {
            return Err(Error::Unreached);
        }
        let reply = tokio::select! {
            biased;
            reply = command(link.clone()) => reply.map_err(E::into),
            // fred may miss that a link is lost, and keep a command that is sent after that.
            () = self.lost(&link) => Err(Error::Unanswered),
            () = sleep(UNRESPONSIVE) => {
                self.give_up(&link, &format!("no answer within {UNRESPONSIVE:?}"));
                Err(Error::Unanswered)
            }
        };
        reply.map_err(|error| match error {
            // Another server may now have the primary's name.
            Error::Refused(reason) if error::is_unfit_server(&reason) => {
                self.give_up(&link, &reason);
                Error::Unreached
            }
            error => error,
        })
    }

    /// Resolves when there is a link.
    async fn link(&self) -> Client {
        wait_for(&self.state, |state| state.link().cloned()).await
    }

    /// Resolves when this link is no longer used.
    async fn lost(&self, link: &Client) {
        let is_lost = |state: &State| (!state.uses(link)).then_some(());
        wait_for(&self.state, is_lost).await
    }

    /// Asks for a new link in place of this one, if it is in use and not in doubt already.
    fn give_up(&self, link: &Client, reason: &str) {
        self.state.send_if_modified(|state| {
            let is_news = matches!(state, State::Linked(_)) && state.uses(link);
            if is_news {
                let reason = reason.to_owned();
                *state = if self.is_clustered { State::Doubted(link.clone(), reason) } else { State::Lost(reason) };
            }
            is_news
        });
    }

    /// Resolves when there is a link, or Redis rejects a setting before it was ever connected: then with the reason.
    pub async fn connected(&self) -> Result<(), String> {
        let connected = |state: &State| match state {
            State::Linked(_) | State::Doubted(..) => Some(Ok(())),
            State::Lost(_) => None,
            State::Rejected(reason) => Some(Err(reason.clone())),
        };
        wait_for(&self.state, connected).await
    }

    /// Resolves if Redis rejects a setting before it was ever connected, with the reason.
    pub async fn rejected(&self) -> String {
        let rejected = |state: &State| match state {
            State::Rejected(reason) => Some(reason.clone()),
            _ => None,
        };
        wait_for(&self.state, rejected).await
    }
}

impl RunScript for Connection {
    fn is_clustered(&self) -> bool {
        self.is_clustered
    }

    async fn attempt(
        &self,
        send_by: Instant,
        script: &Script,
        in_full: bool,
        keys: Vec<Key>,
        arguments: Vec<Value>,
    ) -> Result<String, Error> {
        let send = |link: Client| async move {
            if in_full {
                link.eval(script.text, keys, arguments).await
            } else {
                link.evalsha(script.name.clone(), keys, arguments).await
            }
        };
        self.attempt(send_by, send).await
    }
}

async fn wait_for<T>(state: &watch::Sender<State>, wanted: impl Fn(&State) -> Option<T>) -> T {
    if let Some(found) = wanted(&state.borrow()) {
        return found;
    }
    let mut state = state.subscribe();
    loop {
        if let Some(found) = wanted(&state.borrow_and_update()) {
            return found;
        }
        // It fails only without a sender, and `state` was made from one.
        let _ = state.changed().await;
    }
}

/// Connects, and reconnects whenever the link is lost: at once, then with backoff.
///
/// Logs one line when the link is lost, or in doubt, and one when there is a new one. In between it logs errors from
/// Redis and its certificate, but not network failures.
async fn keep_connected(config: Config, state: Arc<watch::Sender<State>>) {
    let (mut known, mut was_connected) = (config.clone(), false);
    let (mut logged, mut backoff) = (None, Duration::ZERO);
    // The task of a link in doubt, and since when.
    let mut doubted: Option<(ConnectHandle, Instant)> = None;
    loop {
        match connect(&known).await {
            Ok((link, mut end)) => {
                info!("connected to Redis");
                state.send_replace(State::Linked(link.clone()));
                doubted.take().inspect(|(end, _)| end.abort());
                error::outage_is_over();
                if !was_connected {
                    warn_of_eviction(&link).await;
                }
                let reason = tokio::select! {
                    end = &mut end => {
                        let reason = why(end);
                        state.send_replace(State::Lost(reason.clone()));
                        reason
                    }
                    reason = wait_for(&state, State::problem) => reason,
                };
                if state.borrow().link().is_some() {
                    warn!("a server of the Redis Cluster fails, connecting anew: {reason}");
                    doubted = Some((end, Instant::now()));
                } else {
                    warn!("the connection to Redis is lost: {reason}");
                    end.abort();
                }
                known = with_nodes(&config, &link);
                (was_connected, logged, backoff) = (true, Some(reason), Duration::ZERO);
            }
            Err(error) => {
                let reason = without_arguments(error.details()).to_owned();
                let rejection = match rejection(&reason) {
                    None if !was_connected => sentinel_rejection(&config).await,
                    rejection => rejection,
                };
                if let Some(rejection) = &rejection
                    && !was_connected
                {
                    state.send_replace(State::Rejected(rejection.clone()));
                    return;
                }
                let is_reply = rejection.is_some() || matches!(error.into(), Error::Refused(_));
                let is_news = |logged: &String| is_reply && code(logged) != code(&reason);
                if logged.as_ref().is_none_or(is_news) {
                    warn!("Redis cannot be reached: {reason}");
                    logged = Some(reason);
                }
                backoff = LONGEST_BACKOFF.min(backoff * 4 / 3 + Duration::from_millis(1));
                let is_of_no_use =
                    |(end, since): &mut (ConnectHandle, Instant)| end.is_finished() || since.elapsed() > LONGEST_DOUBT;
                if let Some((end, _)) = doubted.take_if(is_of_no_use) {
                    end.abort();
                    warn!("the connection to Redis is lost: a server of the Cluster has not come back");
                    state.send_replace(State::Lost("a server of the Cluster has not come back".to_owned()));
                }
            }
        }
        // With jitter, so that a service's instances do not all reconnect at the same moment.
        let jitter = rand::thread_rng().gen_range(0.5..=1.0);
        sleep(backoff.mul_f64(jitter)).await;
    }
}

/// Connects, and checks that the server accepts writes. Returns the link, and a handle that resolves when it ends.
///
/// Each link is a fred client of its own: once fred 10.1 has lost a connection, its counts of queued commands
/// are wrong, and it holds back what it should send. Without a reconnection policy, fred neither keeps nor
/// repeats a command whose connection is lost, but fails it at once; repeating is [`Connection::ask`]'s part.
async fn connect(config: &Config) -> Result<(Client, ConnectHandle), RedisError> {
    let link = client(config)?;
    let mut end = link.init().await?;
    // A write that changes nothing: replicas, and servers that load their data, refuse it. And fred reports
    // success even if the connection is closed at once.
    let checked = tokio::select! {
        checked = link.del::<(), _>(keys::NO_SESSION) => checked,
        end = &mut end => Err(RedisError::new(ErrorKind::IO, why(end))),
        () = sleep(CONNECT_TIMEOUT) => Err(RedisError::new(ErrorKind::Timeout, "no answer")),
    };
    if checked.is_err() {
        end.abort();
    }
    checked.map(|()| (link, end))
}

fn client(config: &Config) -> Result<Client, RedisError> {
    Builder::from_config(config.clone())
        .with_connection_config(|connection| {
            connection.connection_timeout = CONNECT_TIMEOUT;
            connection.internal_command_timeout = CONNECT_TIMEOUT;
            connection.tcp.nodelay = Some(true);
            // fred 10.1 follows ASK to the wrong node, and then hands out replies to the wrong commands. It
            // still learns slots from MOVED.
            connection.max_redirections = 0;
            connection.max_command_attempts = 1;
        })
        .build()
}

/// Why a Sentinel rejects the settings, if one does. fred 10.1 only says that it cannot connect to any.
async fn sentinel_rejection(config: &Config) -> Option<String> {
    let ServerConfig::Sentinel { hosts, username, password, .. } = &config.server else {
        return None;
    };
    for server in hosts.iter().cloned() {
        let (username, password) = (username.clone(), password.clone());
        let server = ServerConfig::Centralized { server };
        let sentinel = Config { server, username, password, database: None, ..config.clone() };
        if let Err(error) = client(&sentinel).ok()?.init().await
            && let Some(rejection) = rejection(without_arguments(error.details()))
        {
            return Some(format!("at a Sentinel, {rejection}"));
        }
    }
    None
}

/// Warns if the server says that it evicts keys when it is full. Serverless ones may not say it.
async fn warn_of_eviction(link: &Client) {
    let info = CustomCommand::new_static("INFO", None, false);
    let Ok(Ok(memory)) = timeout(CONNECT_TIMEOUT, link.custom::<String, _>(info, vec!["memory"])).await else {
        return;
    };
    let policy = memory.lines().find_map(|line| line.strip_prefix("maxmemory_policy:"));
    if let Some(policy) = policy
        && policy != "noeviction"
    {
        warn!(
            "Redis evicts keys by the policy {policy} when it is full, and sessions or counts with them; set maxmemory-policy to noeviction"
        );
    }
}

/// In a Cluster, adds the nodes that this link knew: those in the URL may be gone one day.
fn with_nodes(config: &Config, link: &Client) -> Config {
    let mut config = config.clone();
    if let ServerConfig::Clustered { hosts, .. } = &mut config.server
        && let Some(cluster) = link.cached_cluster_state()
    {
        hosts.extend(cluster.unique_primary_nodes());
    }
    config
}

/// Why a link has ended.
fn why(end: Result<Result<(), RedisError>, JoinError>) -> String {
    match end {
        Ok(Err(error)) => without_arguments(error.details()).to_owned(),
        _ => "it has ended".to_owned(),
    }
}
