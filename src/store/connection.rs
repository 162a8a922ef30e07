//! The connection to Redis: deadlines, connecting anew, asking again, and a line in the log when it is
//! lost or back.

use std::{sync::Arc, time::Duration};

use fred::{
    bytes_utils::Str,
    error::{Error as RedisError, ErrorKind},
    prelude::{
        Builder, Client, ClientLike, ClusterInterface, FromValue, KeysInterface, LuaInterface,
    },
    types::{
        ConnectHandle, Key, Value,
        config::{Config, ServerConfig},
    },
    util::sha1_hash,
};
use rand::Rng;
use tokio::{
    sync::watch,
    task::JoinError,
    time::{Instant, sleep, timeout_at},
};
use tracing::{info, warn};

use super::{Error, code, keys, without_args};

/// For so long a command is sent, and sent again when its connection is lost; then its visitor gets a
/// 503. With the last attempt, that is less than what a visitor may wait, see [`crate::error`].
const PATIENCE: Duration = Duration::from_millis(1500);

/// A connection on which Redis has not answered a command by then is given up: half of the patience,
/// so that another one can still be tried.
const UNRESPONSIVE: Duration = Duration::from_millis(750);

/// From the first attempt to an answer; one that comes later counts as none. Its visitor has been told so,
/// see [`crate::error`].
pub const DEADLINE: Duration = Duration::from_millis(2500);

const _: () = assert!(PATIENCE.as_millis() + UNRESPONSIVE.as_millis() <= DEADLINE.as_millis());

/// Connecting takes a few round trips, one more with TLS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// The pauses before a command is sent again: they double. What a Cluster moves may take a while.
const SHORTEST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(40);

/// The longest pause between attempts to connect. There is none before the first, and it takes about
/// 20 attempts in 3 s to get there.
const LONGEST_PAUSE_TO_CONNECT: Duration = Duration::from_millis(800);

/// A script that Redis runs.
#[derive(Debug)]
pub struct Script {
    text: &'static str,
    /// The name by which Redis knows it, once it was sent in full.
    name: Str,
}

impl Script {
    /// The script of this text.
    pub fn new(text: &'static str) -> Self {
        Self {
            text,
            name: sha1_hash(text).into(),
        }
    }
}

/// A connection to Redis that is renewed for ever. A clone is another handle on the same one.
#[derive(Clone, Debug)]
pub struct Connection {
    state: Arc<watch::Sender<State>>,
    /// Whether Redis is a Cluster, where a command stays in one slot.
    pub is_clustered: bool,
}

#[derive(Debug)]
enum State {
    Connected(Client),
    /// Not connected, for this reason.
    Lost(String),
    /// Before it was ever connected, Redis said that a setting is wrong, in these words.
    Rejected(String),
}

impl State {
    fn uses(&self, connection: &Client) -> bool {
        matches!(self, Self::Connected(client) if client.id() == connection.id())
    }

    fn lost(&self) -> Option<String> {
        match self {
            Self::Lost(reason) => Some(reason.clone()),
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
        Self {
            state,
            is_clustered: config.server.is_clustered(),
        }
    }

    /// Has Redis answer a command that may be sent more than once, and was first to be sent at `begin`.
    ///
    /// # Errors
    /// If Redis refuses, at once. If there is no answer for [`PATIENCE`], over as many connections as
    /// were made in that time. If this instance was frozen, and the answer is older than [`DEADLINE`].
    pub async fn ask<T, E: Into<Error>, F: Future<Output = Result<T, E>>>(
        &self,
        begin: Instant,
        mut command: impl FnMut(Client) -> F,
    ) -> Result<T, Error> {
        let deadline = begin + PATIENCE;
        let (mut pause, mut last) = (SHORTEST_PAUSE, Error::Unanswered);
        loop {
            // Waiting here, where it ends with its visitor: fred would queue what it cannot send,
            // with no bound, and send it when it can.
            let client = match timeout_at(deadline, self.connected()).await {
                // The time may have passed while this instance was frozen: what Redis keeps of a call
                // may be gone by now, and it would be run once more.
                Ok(client) if Instant::now() < deadline => client,
                _ => return Err(last),
            };
            let answer = tokio::select! {
                biased;
                answer = command(client.clone()) => answer.map_err(E::into),
                // fred may miss that a connection is lost, and keep what comes too late for it.
                () = self.lost(&client) => Err(Error::Unanswered),
                () = sleep(UNRESPONSIVE) => {
                    self.give_up(&client, &format!("no answer within {UNRESPONSIVE:?}"));
                    Err(Error::Unanswered)
                }
            };
            last = match answer {
                // The primary has become a replica, and another may now go by its name; or it loads what
                // it had saved.
                Err(Error::Refused(reason)) if is_unfit(&reason) => {
                    self.give_up(&client, &reason);
                    Error::Unanswered
                }
                // The keys are about to move to another node of the Cluster.
                Err(Error::Refused(reason)) if code(&reason) == "TRYAGAIN" => {
                    Error::Refused(reason)
                }
                Err(Error::Unanswered) => Error::Unanswered,
                // What Redis was to keep alive from `begin` on would end too early, counted from now.
                Ok(_) if begin.elapsed() > DEADLINE => return Err(Error::Unanswered),
                answer => return answer,
            };
            sleep(pause).await;
            pause = LONGEST_PAUSE.min(2 * pause);
        }
    }

    /// Has Redis run a script in the same way, with these keys and arguments.
    ///
    /// # Errors
    /// As [`Connection::ask`] has them.
    pub async fn run<T: FromValue>(
        &self,
        begin: Instant,
        script: &Script,
        arguments: impl Fn() -> (Vec<Key>, Vec<Value>),
    ) -> Result<T, Error> {
        let by_name = |redis: Client| {
            let (keys, arguments) = arguments();
            async move { redis.evalsha(script.name.clone(), keys, arguments).await }
        };
        // Redis keeps a script that it is sent.
        let in_full = |redis: Client| {
            let (keys, arguments) = arguments();
            async move { redis.eval(script.text, keys, arguments).await }
        };
        match self.ask(begin, by_name).await {
            Err(Error::Refused(reason)) if code(&reason) == "NOSCRIPT" => {
                self.ask(begin, in_full).await
            }
            answer => answer,
        }
    }

    async fn connected(&self) -> Client {
        let connected = |state: &State| match state {
            State::Connected(client) => Some(client.clone()),
            _ => None,
        };
        wait_for(&self.state, connected).await
    }

    /// Resolves when this connection is no longer used.
    async fn lost(&self, connection: &Client) {
        let is_lost = |state: &State| (!state.uses(connection)).then_some(());
        wait_for(&self.state, is_lost).await
    }

    /// Has this connection, if it is still used, replaced by another.
    fn give_up(&self, connection: &Client, reason: &str) {
        self.state.send_if_modified(|state| {
            let is_used = state.uses(connection);
            if is_used {
                *state = State::Lost(reason.to_owned());
            }
            is_used
        });
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

async fn wait_for<T>(state: &watch::Sender<State>, wanted: impl Fn(&State) -> Option<T>) -> T {
    if let Some(found) = wanted(&state.borrow()) {
        return found;
    }
    let mut state = state.subscribe();
    loop {
        if let Some(found) = wanted(&state.borrow_and_update()) {
            return found;
        }
        // It fails without a sender, and here is one.
        let _ = state.changed().await;
    }
}

/// Connects, and again whenever the connection is lost, at once and then ever less often. One line
/// in the log when Redis is lost, one when it is back; in between, what Redis or its certificate says
/// is another, but not that the network fails.
async fn keep_connected(config: Config, state: Arc<watch::Sender<State>>) {
    let (mut known, mut was_connected) = (config.clone(), false);
    let (mut said, mut pause) = (None, Duration::ZERO);
    loop {
        match connect(&known).await {
            Ok((client, mut connection)) => {
                info!("Redis is connected");
                state.send_replace(State::Connected(client.clone()));
                let reason = tokio::select! {
                    end = &mut connection => why(end),
                    reason = wait_for(&state, State::lost) => reason,
                };
                connection.abort();
                warn!("Redis is lost: {reason}");
                state.send_replace(State::Lost(reason.clone()));
                known = with_nodes(&config, &client);
                (was_connected, said, pause) = (true, Some(reason), Duration::ZERO);
            }
            Err(error) => {
                let reason = without_args(error.details()).to_owned();
                let rejection = rejection(&reason);
                if let Some(rejection) = &rejection
                    && !was_connected
                {
                    state.send_replace(State::Rejected(rejection.clone()));
                    return;
                }
                let is_answer = rejection.is_some() || matches!(error.into(), Error::Refused(_));
                let is_news = |said: &String| is_answer && code(said) != code(&reason);
                if said.as_ref().is_none_or(is_news) {
                    warn!("Redis cannot be reached: {reason}");
                    said = Some(reason);
                }
                pause = LONGEST_PAUSE_TO_CONNECT.min(pause * 4 / 3 + Duration::from_millis(1));
            }
        }
        // With jitter: a service's instances do not all come at the same moment.
        let jitter = rand::thread_rng().gen_range(0.5..=1.0);
        sleep(pause.mul_f64(jitter)).await;
    }
}

/// Makes a connection, by a client of its own: fred's counts of what it has queued are wrong once it
/// has lost a connection, and then it holds back what it should send.
///
/// Without a policy for reconnecting, fred neither keeps nor repeats a command whose connection is
/// lost, but answers it at once: asking again is our part.
async fn connect(config: &Config) -> Result<(Client, ConnectHandle), RedisError> {
    let client = Builder::from_config(config.clone())
        .with_connection_config(|connection| {
            connection.connection_timeout = CONNECT_TIMEOUT;
            connection.internal_command_timeout = CONNECT_TIMEOUT;
            connection.tcp.nodelay = Some(true);
            // fred 10.1 sends what a Cluster redirects by ASK to the wrong node, and gives the answers
            // of others that are in flight to the wrong ones. It still learns the slots from MOVED.
            connection.max_redirections = 0;
            connection.max_command_attempts = 1;
        })
        .build()?;
    let mut connection = client.init().await?;
    // A write, of nothing: neither a replica nor a server that is loading its data will do, and fred
    // takes a connection that is closed at once for a good one.
    let checked = tokio::select! {
        checked = client.del::<(), _>(keys::NO_SESSION) => checked,
        end = &mut connection => Err(RedisError::new(ErrorKind::IO, why(end))),
        () = sleep(CONNECT_TIMEOUT) => Err(RedisError::new(ErrorKind::Timeout, "no answer")),
    };
    if checked.is_err() {
        connection.abort();
    }
    checked.map(|()| (client, connection))
}

/// With the nodes that were known last, if it is a Cluster: the URL's may be gone one day.
fn with_nodes(config: &Config, client: &Client) -> Config {
    let mut config = config.clone();
    if let ServerConfig::Clustered { hosts, .. } = &mut config.server
        && let Some(cluster) = client.cached_cluster_state()
    {
        hosts.extend(cluster.unique_primary_nodes());
    }
    config
}

/// Why a connection has ended.
fn why(end: Result<Result<(), RedisError>, JoinError>) -> String {
    match end {
        Ok(Err(error)) => without_args(error.details()).to_owned(),
        _ => "it has ended".to_owned(),
    }
}

/// Whether a server that refuses for this reason cannot do what a primary does. (Before Redis 7, what a
/// script meets stands in the middle of its answer.)
fn is_unfit(reason: &str) -> bool {
    ["READONLY", "LOADING", "MASTERDOWN", "CLUSTERDOWN"]
        .iter()
        .any(|state| reason.contains(state))
}

/// What is wrong with the settings if connecting fails for this reason, and not with the network.
fn rejection(reason: &str) -> Option<String> {
    if ["WRONGPASS", "NOAUTH"].contains(&code(reason)) {
        return Some(format!("the password is refused: {reason}"));
    }
    // As Rust's debug format has it: Custom { kind: …, error: InvalidCertificate(CAUSE) }
    let (_, cause) = reason.split_once("InvalidCertificate(")?;
    let cause = cause.trim_end_matches(") }");
    Some(format!("the certificate does not verify: {cause}"))
}
