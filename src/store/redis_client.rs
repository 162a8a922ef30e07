//! A fred client: made for these settings, connected, and its server checked.

use std::{
    collections::{BTreeSet, HashMap},
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
use futures_util::try_join;
use tokio::{
    task::JoinError,
    time::{Instant, sleep},
};

use super::{
    addresses::with_reachable_addresses,
    compare_and_set::{CompareAndSet, SendCommand, no_session},
    error::{Error, is_unknown_host, without_arguments},
};
use crate::warnings::warn_once_a_minute;

/// Connecting takes a few round trips, one more with TLS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Connects, and checks that the server accepts writes (it may be full). If `is_first`, also checks what else sessions
/// need. Returns the client, and a handle that resolves when it ends.
///
/// Each time it is a new client: once fred 10.1 has lost a connection, its counts of queued commands
/// are wrong, and it holds back what it should send. Without a reconnection policy, fred neither keeps nor
/// repeats a command whose connection is lost, but fails it at once; `retry.rs` repeats it.
pub async fn connect(
    config: &Config,
    compare_and_set: &CompareAndSet,
    is_first: bool,
) -> Result<(Client, ConnectHandle), RedisError> {
    let config = with_reachable_addresses(config).await;
    let (client, mut end) = match init(&config).await {
        Err(error) if is_unknown_host(error.details()) => init_single_node_cluster(error, config).await,
        linked => linked,
    }?;
    let check_all = async {
        let send_by = Instant::now() + CONNECT_TIMEOUT;
        compare_and_set.check(&client, send_by).await?;
        if is_first {
            try_join!(compare_and_set.check_rights(&client, send_by), check_server(&client, send_by))?;
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
/// `CLUSTER SLOTS` names its host `""` or `"?"`, which means the host that was asked. fred 10.1 understands only null in
/// this way, and looks for a host named `""` or `"?"`.
///
/// # Errors
/// If it is not such a Cluster: `error`, followed by the host names, one of which is unknown.
async fn init_single_node_cluster(error: RedisError, config: Config) -> Result<(Client, ConnectHandle), RedisError> {
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

/// The host and id of each master of a Cluster, and the server that says so. Several masters may have the same host.
async fn masters(config: &Config) -> Option<(Server, BTreeSet<(String, String)>)> {
    let ServerConfig::Clustered { hosts, .. } = &config.server else { return None };
    for server in hosts {
        let alone = Config { server: ServerConfig::Centralized { server: server.clone() }, ..config.clone() };
        let Ok((client, end)) = init(&alone).await else { continue };
        let slots = client.send(Instant::now(), "CLUSTER", None, vec!["SLOTS".into()]).await;
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

pub fn new_client(config: &Config) -> Result<Client, RedisError> {
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

/// Reads what the server says of itself, if it says something. Warns if it evicts keys when it is full.
///
/// # Errors
/// If it is one of several masters of a Cluster, and the URL does not say so.
async fn check_server(client: &Client, send_by: Instant) -> Result<(), Error> {
    let Ok(info) = client.send(send_by, "INFO", None, Vec::new()).await else { return Ok(()) };
    let info = info.as_str().unwrap_or_default();
    if let Some(policy) = field(&info, "maxmemory_policy")
        && policy != "noeviction"
    {
        // Once, though each thread finds it out.
        let what_to_do = "a full Redis evicts sessions; set it to noeviction";
        warn_once_a_minute("eviction", format_args!("maxmemory-policy is {policy}: {what_to_do}"));
    }
    if field(&info, "cluster_enabled") == Some("1") && !client.is_clustered() {
        let cluster = client.send(send_by, "CLUSTER", None, vec!["INFO".into()]).await.unwrap_or(Value::Null);
        let cluster = cluster.as_str().unwrap_or_default();
        if let Some(masters) = field(&cluster, "cluster_size").filter(|masters| *masters != "1") {
            // The error with which the server itself refuses a command whose key is on another master.
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
pub fn with_nodes(config: &Config, client: &Client) -> Config {
    let mut config = config.clone();
    if let ServerConfig::Clustered { hosts, .. } = &mut config.server
        && let Some(cluster) = client.cached_cluster_state()
    {
        hosts.extend(cluster.unique_primary_nodes());
    }
    config
}

/// Why a client has ended.
pub fn close_reason(end: Result<Result<(), RedisError>, JoinError>) -> String {
    match end {
        Ok(Err(error)) => without_arguments(error.details()).to_owned(),
        _ => "the connection was closed".to_owned(),
    }
}

/// Keys that no session has, one on each master.
pub fn keys_on_all_servers(client: &Client) -> Vec<String> {
    /// A master with a single slot is found with a probability of 99.8 %.
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

/// Sends on this very client. How long the reply may take is the caller's part.
impl SendCommand for Client {
    async fn send(
        &self,
        _: Instant,
        command: &'static str,
        key: Option<usize>,
        arguments: Vec<Value>,
    ) -> Result<Value, Error> {
        // fred 10.1 ignores ClusterHash::Offset in custom commands.
        let key = key.filter(|_| self.is_clustered()).and_then(|key| arguments.get(key)?.as_bytes());
        let node = key.map_or(ClusterHash::Random, |key| ClusterHash::Custom(redis_keyslot(key)));
        Ok(self.custom(CustomCommand::new_static(command, node, false), arguments).await?)
    }
}
