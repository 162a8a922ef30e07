//! A thread's link to Redis: connecting, reconnecting, and sending commands.

use std::{
    collections::{BTreeSet, HashMap},
    mem,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use fred::{
    error::{Error as RedisError, ErrorKind},
    prelude::{Builder, Client, ClientLike, ClusterInterface},
    types::{
        ClusterHash, ConnectHandle, CustomCommand, Value,
        config::{Config, Server, ServerConfig},
    },
    util::redis_keyslot,
};
use futures_util::{future::try_join_all, try_join};
use parking_lot::Mutex;
use rand::Rng;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
    task::JoinError,
    time::{Instant, sleep, timeout, timeout_at},
};
use tracing::{debug, info, warn};

use super::{
    addresses::reachable,
    compare_and_set::{CompareAndSet, SendCommand, no_session},
    error::{self, Error, code, is_unknown_host, rejection, without_arguments},
    retry::{UNRESPONSIVE, until_answered},
};
use crate::telemetry::warn_once_a_minute;

/// Connecting takes a few round trips, one more with TLS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// The longest pause between attempts to connect. It is reached after about 20 attempts in 3 s.
const LONGEST_BACKOFF: Duration = Duration::from_millis(800);

/// How long a Cluster's client is used while a server does not answer: longer than a failover takes with Redis's
/// defaults (15 s until the others give up a master). What is sent to that server meanwhile is kept in memory.
const LONGEST_DOUBT: Duration = Duration::from_secs(30);

/// A thread's link to Redis, which reconnects forever. A clone is another handle on the same one.
///
/// It uses one fred client at a time, and replaces that when it fails.
#[derive(Clone, Debug)]
pub struct RedisLink {
    state: Arc<watch::Sender<State>>,
    /// How many commands wait for a client or a reply.
    in_flight: Arc<AtomicUsize>,
    log: Arc<Log>,
    is_clustered: bool,
}

/// The log of the links of all threads. As a rule their clients are lost together, so it has one line when the first is
/// lost, and one when all are there again.
#[derive(Debug, Default)]
pub struct Log(Mutex<Logged>);

#[derive(Debug, Default)]
struct Logged {
    /// How many links need a client.
    unlinked: usize,
    was_connected: bool,
    /// Why one needs a client, as it was logged last; none once all have one.
    reason: Option<String>,
}

impl Log {
    /// A link needs a client.
    fn connecting(&self) {
        self.0.lock().unlinked += 1;
    }

    /// It has one.
    fn connected(&self) {
        let mut logged = self.0.lock();
        logged.unlinked -= 1;
        let is_over = logged.unlinked == 0;
        if is_over && (logged.reason.take().is_some() || !mem::replace(&mut logged.was_connected, true)) {
            info!("connected to Redis");
        } else {
            debug!("connected to Redis");
        }
        if is_over {
            error::outage_is_over();
        }
    }

    /// Warns of what keeps a link from having a client, unless the reason is known: another one is news if it
    /// `is_telling`.
    fn warn(&self, problem: &str, reason: &str, is_telling: bool) {
        let mut logged = self.0.lock();
        if logged.reason.as_ref().is_none_or(|known| is_telling && code(known) != code(reason)) {
            warn!("{problem}: {reason}");
            logged.reason = Some(reason.to_owned());
        } else {
            debug!("{problem}: {reason}");
        }
    }
}

#[derive(Debug)]
enum State {
    Linked(Client),
    /// In a Cluster: linked, but one server fails, for this reason. The client serves the other servers' sessions until
    /// there is a new client.
    Doubted(Client, String),
    /// The client ended while no command waited for it, as hosts end idle connections. The next command asks for a new one.
    Idle,
    /// Not connected, for this reason.
    Lost(String),
    /// Redis rejected a setting before it was ever connected, for this reason.
    Rejected(String),
}

impl State {
    fn client(&self) -> Option<&Client> {
        match self {
            Self::Linked(client) | Self::Doubted(client, _) => Some(client),
            Self::Idle | Self::Lost(_) | Self::Rejected(_) => None,
        }
    }

    fn uses(&self, client: &Client) -> bool {
        self.client().is_some_and(|current| current.id() == client.id())
    }

    /// Why a new client is needed, if so.
    fn problem(&self) -> Option<String> {
        match self {
            Self::Lost(reason) | Self::Doubted(_, reason) => Some(reason.clone()),
            _ => None,
        }
    }
}

impl RedisLink {
    /// Connects in the background, and has each server checked.
    pub fn open(config: &Config, check: Arc<CompareAndSet>, log: &Arc<Log>) -> Self {
        let connecting = State::Lost("not connected yet".to_owned());
        let state = Arc::new(watch::Sender::new(connecting));
        let is_clustered = config.server.is_clustered();
        let this = Self { state, in_flight: Arc::default(), log: log.clone(), is_clustered };
        log.connecting();
        tokio::spawn(keep_connected(config.clone(), check, this.clone()));
        this
    }

    /// Asks each server whether it accepts views now, by one command.
    ///
    /// # Errors
    /// As for [`until_answered`], if one does not.
    pub async fn accepts_views(&self) -> Result<(), Error> {
        let ask = |send_by| {
            self.attempt(send_by, async move |client: Client| {
                let asked = keys_on_all_servers(&client)
                    .into_iter()
                    .map(|key| CompareAndSet::ask_to_write(&client, send_by, key));
                try_join_all(asked).await.map(drop)
            })
        };
        until_answered(ask).await.of_repeatable()
    }

    /// Sends a command once, until `send_by` at the latest.
    async fn attempt<T, E: Into<Error>, F: Future<Output = Result<T, E>>>(
        &self,
        send_by: Instant,
        command: impl FnOnce(Client) -> F,
    ) -> Result<T, Error> {
        let _in_flight = InFlight::begin(&self.in_flight);
        // Commands wait here, where they are dropped with their requests. fred would queue them without a bound, and
        // send them later.
        let client = timeout_at(send_by, self.client()).await;
        let client = client.map_err(|_| Error::Unreached)?;
        if Instant::now() >= send_by {
            return Err(Error::Unreached);
        }
        let reply = tokio::select! {
            biased;
            reply = command(client.clone()) => reply.map_err(E::into),
            // fred may miss that a client is lost, and keep a command that is sent after that.
            () = self.lost(&client) => Err(Error::Unanswered),
            () = sleep(UNRESPONSIVE) => {
                self.give_up(&client, &format!("no answer within {UNRESPONSIVE:?}"));
                Err(Error::Unanswered)
            }
        };
        reply.map_err(|error| match error {
            // Another server may now have the primary's name.
            Error::Refused(reason)
                // A server that was all of a Cluster is so no more.
                if error::is_unfit_server(&reason) || self.is_clustered && code(&reason) == "MOVED" =>
            {
                self.give_up(&client, &reason);
                Error::Unreached
            }
            error => error,
        })
    }

    /// Resolves when there is a client. Asks for one if it ended while it was idle.
    pub async fn client(&self) -> Client {
        if let Some(client) = self.state.borrow().client() {
            return client.clone();
        }
        self.state.send_if_modified(|state| {
            let is_idle = matches!(state, State::Idle);
            if is_idle {
                *state = State::Lost("it was idle".to_owned());
            }
            is_idle
        });
        wait_for(&self.state, |state| state.client().cloned()).await
    }

    /// Resolves when this client is no longer used.
    async fn lost(&self, client: &Client) {
        let is_lost = |state: &State| (!state.uses(client)).then_some(());
        wait_for(&self.state, is_lost).await
    }

    /// Asks for a new client in place of this one, if it is in use and not in doubt already.
    fn give_up(&self, client: &Client, reason: &str) {
        self.state.send_if_modified(|state| {
            let is_news = matches!(state, State::Linked(_)) && state.uses(client);
            if is_news {
                let reason = reason.to_owned();
                *state = if self.is_clustered { State::Doubted(client.clone(), reason) } else { State::Lost(reason) };
            }
            is_news
        });
    }

    /// Resolves when there is a client, or Redis rejects a setting before it was ever connected: then with the reason.
    pub async fn connected(&self) -> Result<(), String> {
        let connected = |state: &State| match state {
            State::Linked(_) | State::Doubted(..) | State::Idle => Some(Ok(())),
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

/// A command that waits for a client or a reply.
struct InFlight<'a>(&'a AtomicUsize);

impl<'a> InFlight<'a> {
    fn begin(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Relaxed);
        Self(count)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl SendCommand for RedisLink {
    async fn send(
        &self,
        send_by: Instant,
        command: &'static str,
        key: Option<usize>,
        arguments: Vec<Value>,
    ) -> Result<Value, Error> {
        self.attempt(send_by, |client| async move { send(&client, command, key, arguments).await }).await
    }
}

/// A client that is not in use yet.
impl SendCommand for Client {
    async fn send(
        &self,
        _: Instant,
        command: &'static str,
        key: Option<usize>,
        arguments: Vec<Value>,
    ) -> Result<Value, Error> {
        Ok(send(self, command, key, arguments).await?)
    }
}

async fn send(
    client: &Client,
    command: &'static str,
    key: Option<usize>,
    arguments: Vec<Value>,
) -> Result<Value, RedisError> {
    // fred 10.1 ignores ClusterHash::Offset in custom commands.
    let key = key.filter(|_| client.is_clustered()).and_then(|key| arguments.get(key)?.as_bytes());
    let node = key.map_or(ClusterHash::Random, |key| ClusterHash::Custom(redis_keyslot(key)));
    client.custom(CustomCommand::new_static(command, node, false), arguments).await
}

/// Keys that no session has, one on each master.
fn keys_on_all_servers(client: &Client) -> Vec<String> {
    /// A master with a single slot is found with a probability of 99.7 %.
    const TRIES: u32 = 100_000;
    let Some(cluster) = client.cached_cluster_state().filter(|_| client.is_clustered()) else {
        return vec![no_session(0)];
    };
    let masters = cluster.unique_primary_nodes().len();
    let mut keys = HashMap::with_capacity(masters);
    for key in (0..TRIES).map(no_session) {
        if keys.len() == masters {
            break;
        }
        if let Some(master) = cluster.get_server(redis_keyslot(key.as_bytes())) {
            keys.entry(master).or_insert(key);
        }
    }
    keys.into_values().collect()
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

/// Connects, and reconnects whenever the client is lost: at once, then with backoff. A client that ends while it is idle is
/// replaced once a command needs it: that is no news, and hosts bill commands, also those that connect.
///
/// Logs when the client is lost, or in doubt, and when there is a new one; see [`Log`]. In between it logs errors from Redis
/// and its certificate, but network failures at `debug` only.
async fn keep_connected(config: Config, check: Arc<CompareAndSet>, link: RedisLink) {
    let RedisLink { state, in_flight, log, .. } = link;
    let (mut known, mut was_connected, mut backoff) = (config.clone(), false, Duration::ZERO);
    // The failure of which it was tried whether the URL's scheme is its reason.
    let mut probed = None;
    // The task of a client in doubt, and since when.
    let mut doubted: Option<(ConnectHandle, Instant)> = None;
    loop {
        match connect(&known, &check, !was_connected).await {
            Ok((client, mut end)) => {
                state.send_replace(State::Linked(client.clone()));
                doubted.take().inspect(|(end, _)| end.abort());
                log.connected();
                let (reason, is_idle) = tokio::select! {
                    end = &mut end => {
                        let reason = close_reason(end);
                        let is_idle = in_flight.load(Relaxed) == 0;
                        state.send_replace(if is_idle { State::Idle } else { State::Lost(reason.clone()) });
                        (reason, is_idle)
                    }
                    reason = wait_for(&state, State::problem) => (reason, false),
                };
                (was_connected, backoff) = (true, Duration::ZERO);
                if is_idle {
                    debug!("the idle connection to Redis has ended: {reason}");
                } else if state.borrow().client().is_some() {
                    log.warn("a Redis Cluster node is failing, reconnecting", &reason, false);
                    doubted = Some((end, Instant::now()));
                } else {
                    log.warn("the connection to Redis is lost", &reason, false);
                    end.abort();
                }
                known = with_nodes(&config, &client);
                wait_for(&state, |state| (!matches!(state, State::Idle)).then_some(())).await;
                log.connecting();
            }
            Err(error) => {
                let reason = without_arguments(error.details()).to_owned();
                let is_reply = matches!(error.into(), Error::Refused(_));
                let mut rejection = rejection(&reason);
                if rejection.is_none() && !was_connected {
                    rejection = sentinel_rejection(&config).await;
                    // Once for each reason: it is one more connection.
                    if rejection.is_none() && !is_reply && probed.as_ref() != Some(&reason) {
                        probed = Some(reason.clone());
                        rejection = scheme_rejection(&config).await;
                    }
                }
                if let Some(rejection) = &rejection
                    && !was_connected
                {
                    state.send_replace(State::Rejected(rejection.clone()));
                    return;
                }
                log.warn("Redis cannot be reached", &reason, is_reply || rejection.is_some());
                backoff = LONGEST_BACKOFF.min(backoff * 4 / 3 + Duration::from_millis(1));
                let is_of_no_use =
                    |(end, since): &mut (ConnectHandle, Instant)| end.is_finished() || since.elapsed() > LONGEST_DOUBT;
                if let Some((end, _)) = doubted.take_if(is_of_no_use) {
                    end.abort();
                    let reason = "a Redis Cluster node did not recover";
                    log.warn("the connection to Redis is lost", reason, true);
                    state.send_replace(State::Lost(reason.to_owned()));
                }
            }
        }
        // With jitter, so that a service's instances do not all reconnect at the same moment.
        let jitter = rand::thread_rng().gen_range(0.5..=1.0);
        sleep(backoff.mul_f64(jitter)).await;
    }
}

/// Connects, and checks that the server accepts writes; when it is the first time, also what else sessions need. Returns
/// the client, and a handle that resolves when it ends.
///
/// Each time it is a new client: once fred 10.1 has lost a connection, its counts of queued commands
/// are wrong, and it holds back what it should send. Without a reconnection policy, fred neither keeps nor
/// repeats a command whose connection is lost, but fails it at once; `retry.rs` repeats it.
async fn connect(
    config: &Config,
    check: &CompareAndSet,
    is_first: bool,
) -> Result<(Client, ConnectHandle), RedisError> {
    let config = reachable(config).await;
    let (client, mut end) = match init(&config).await {
        Err(error) if is_unknown_host(error.details()) => init_despite(error, config).await,
        linked => linked,
    }?;
    let check_all = async {
        let send_by = Instant::now() + CONNECT_TIMEOUT;
        check.check(&client, send_by).await?;
        if is_first {
            try_join!(check.check_rights(&client, send_by), check_server(&client))?;
        }
        Ok(())
    };
    // Replicas, and servers that load their data, refuse writes. And fred reports success even if the connection is
    // closed at once.
    let checked = tokio::select! {
        checked = check_all => checked.map_err(|error| match error {
            Error::Refused(reason) => RedisError::new(ErrorKind::Unknown, reason),
            error => RedisError::new(ErrorKind::IO, error.to_string()),
        }),
        end = &mut end => Err(RedisError::new(ErrorKind::IO, close_reason(end))),
        () = sleep(CONNECT_TIMEOUT) => Err(RedisError::new(ErrorKind::Timeout, "no answer")),
    };
    if checked.is_err() {
        end.abort();
    }
    checked.map(|()| (client, end))
}

async fn init(config: &Config) -> Result<(Client, ConnectHandle), RedisError> {
    let client = new_client(config)?;
    let end = client.init().await?;
    Ok((client, end))
}

/// Connects to a Cluster of one master that does not know its own address, as when no other server has met it. Then
/// `CLUSTER SLOTS` names its host `""` or `"?"`, which means the host that was asked. fred 10.1 reads only null like this,
/// and fails to find a host of that name.
///
/// # Errors
/// This one, with the names that may be unknown, if it is not such a Cluster.
async fn init_despite(error: RedisError, config: Config) -> Result<(Client, ConnectHandle), RedisError> {
    let (names, server) = match masters(&config).await {
        Some((server, masters)) => (masters.into_iter().map(|(host, _)| host).collect(), Some(server)),
        None => (config.server.hosts().iter().map(|server| server.host.to_string()).collect::<Vec<_>>(), None),
    };
    match (names.as_slice(), server) {
        ([name], Some(server)) if ["", "?"].contains(&name.as_str()) => {
            init(&Config { server: ServerConfig::Centralized { server }, ..config }).await
        }
        _ => Err(RedisError::new(ErrorKind::IO, format!("{}: one of {names:?}", error.details()))),
    }
}

/// The host and id of each master of a Cluster, and the server that says so.
async fn masters(config: &Config) -> Option<(Server, BTreeSet<(String, String)>)> {
    let ServerConfig::Clustered { hosts, .. } = &config.server else { return None };
    for server in hosts {
        let alone = Config { server: ServerConfig::Centralized { server: server.clone() }, ..config.clone() };
        let Ok((client, end)) = init(&alone).await else { continue };
        let slots = send(&client, "CLUSTER", None, vec!["SLOTS".into()]).await;
        end.abort();
        let Ok(Value::Array(slots)) = slots else { continue };
        // Of each range: its first and last slot, then its servers, the master first: host, port, id, …
        let master = |range: &Value| {
            let Value::Array(range) = range else { return None };
            let Value::Array(master) = range.get(2)? else { return None };
            let [host, id] = [0, 2].map(|part| master.get(part).and_then(Value::as_string).unwrap_or_default());
            Some((host, id))
        };
        return Some((server.clone(), slots.iter().filter_map(master).collect()));
    }
    None
}

fn new_client(config: &Config) -> Result<Client, RedisError> {
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
        if let Err(error) = new_client(&sentinel).ok()?.init().await
            && let Some(rejection) = rejection(without_arguments(error.details()))
        {
            return Some(format!("Sentinel: {rejection}"));
        }
    }
    None
}

/// What is wrong with the URL's scheme, if a server speaks TLS and it says that it does not, or the other way round. Such a
/// server only closes the connection or waits for more.
async fn scheme_rejection(config: &Config) -> Option<String> {
    /// A ClientHello of TLS 1.2: zeros for the random bytes, no session, one cipher suite, no compression, no extensions.
    const HELLO: &[u8] = b"\x16\x03\x01\0\x2d\x01\0\0\x29\x03\x03\
        \0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x02\xc0\x2f\x01\0";
    let (question, answers, rejection) = match config.tls {
        // A handshake goes on, or an alert says why not.
        None => (HELLO, [0x16, 0x15], "the server speaks TLS, which needs rediss://"),
        Some(_) => (&b"PING\r\n"[..], [b'+', b'-'], "the server does not speak TLS, as rediss:// says"),
    };
    let ask = async |server: Server| {
        let mut connection = TcpStream::connect(server.to_string()).await.ok()?;
        connection.write_all(question).await.ok()?;
        Some(answers.contains(&connection.read_u8().await.ok()?))
    };
    for server in config.server.hosts() {
        if let Ok(Some(true)) = timeout(UNRESPONSIVE, ask(server)).await {
            return Some(rejection.to_owned());
        }
    }
    None
}

/// Reads what the server says of itself, if it says something. Warns if it evicts keys when it is full.
///
/// # Errors
/// If it is one of several masters of a Cluster, and the client is not one to a Cluster.
async fn check_server(client: &Client) -> Result<(), Error> {
    let Ok(info) = send(client, "INFO", None, Vec::new()).await else { return Ok(()) };
    let info = info.as_str().unwrap_or_default();
    if let Some(policy) = field(&info, "maxmemory_policy")
        && policy != "noeviction"
    {
        // Each thread's link finds this out.
        let what_to_do = "a full Redis evicts sessions; set it to noeviction";
        warn_once_a_minute("eviction", format_args!("maxmemory-policy is {policy}: {what_to_do}"));
    }
    if field(&info, "cluster_enabled") == Some("1") && !client.is_clustered() {
        let cluster = send(client, "CLUSTER", None, vec!["INFO".into()]).await.unwrap_or(Value::Null);
        let cluster = cluster.as_str().unwrap_or_default();
        if let Some(masters) = field(&cluster, "cluster_size").filter(|masters| *masters != "1") {
            return Err(Error::Refused(format!("MOVED {masters} masters share the slots")));
        }
    }
    Ok(())
}

/// The value of this field in a reply of lines such as `name:value`.
fn field<'a>(lines: &'a str, name: &str) -> Option<&'a str> {
    lines.lines().find_map(|line| line.trim_end().strip_prefix(name)?.strip_prefix(':'))
}

/// In a Cluster, adds the nodes that this client knew: those in the URL may be gone one day.
fn with_nodes(config: &Config, client: &Client) -> Config {
    let mut config = config.clone();
    if let ServerConfig::Clustered { hosts, .. } = &mut config.server
        && let Some(cluster) = client.cached_cluster_state()
    {
        hosts.extend(cluster.unique_primary_nodes());
    }
    config
}

/// Why a client has ended.
fn close_reason(end: Result<Result<(), RedisError>, JoinError>) -> String {
    match end {
        Ok(Err(error)) => without_arguments(error.details()).to_owned(),
        _ => "the connection was closed".to_owned(),
    }
}
