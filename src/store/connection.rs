//! The connection to Redis: deadlines, reconnecting, and a line in the log when it is lost or back.

use std::time::Duration;

use fred::{
    prelude::{Builder, Client, ClientLike, EventInterface},
    types::config::{Config, ReconnectPolicy, UnresponsiveConfig},
};
use tokio::{sync::broadcast::error::RecvError, time::sleep};
use tracing::{info, warn};

/// A command that Redis has not answered by then has failed. Less than what a visitor may wait, see
/// [`crate::error`], so that the log gets the reason.
pub const COMMAND_TIMEOUT: Duration = Duration::from_secs(2);

/// Connecting takes a few round trips, one more with TLS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// The longest pause before another attempt to connect.
const RECONNECT_PAUSE: Duration = Duration::from_secs(1);

/// The pauses before attempts to connect, in milliseconds: 1, 2, 4, … up to the longest, for ever.
fn reconnect_policy() -> ReconnectPolicy {
    let longest = RECONNECT_PAUSE.as_millis() as u32;
    let mut policy = ReconnectPolicy::new_exponential(0, 1, longest, 2);
    // On top of each, up to so many: a service's instances do not all come at the same moment.
    policy.set_jitter(10);
    policy
}

/// Connects in the background, and again whenever the connection is lost, for ever.
pub fn open(config: &Config) -> Client {
    let mut config = config.clone();
    // The first attempt is like any other: Redis may come after us.
    config.fail_fast = false;
    let client = Builder::from_config(config)
        .with_performance_config(|performance| {
            performance.default_command_timeout = COMMAND_TIMEOUT;
        })
        .with_connection_config(|connection| {
            connection.connection_timeout = CONNECT_TIMEOUT;
            connection.internal_command_timeout = CONNECT_TIMEOUT;
            connection.tcp.nodelay = Some(true);
            // Without it, a connection that died silently would be noticed on the next write, or
            // never.
            connection.unresponsive = UnresponsiveConfig {
                max_timeout: Some(COMMAND_TIMEOUT),
                interval: COMMAND_TIMEOUT / 4,
            };
        })
        .set_policy(reconnect_policy())
        .build()
        .expect("building asks for nothing but a configuration");
    tokio::spawn(log_changes(client.clone()));
    tokio::spawn(keep_connecting(client.clone()));
    client
}

/// fred reconnects by its policy, but gives up on what it takes for a wrong setting, such as a
/// Cluster that is none, and that can be mended on the other side too.
async fn keep_connecting(client: Client) {
    loop {
        let _ = client.connect().await;
        sleep(RECONNECT_PAUSE).await;
    }
}

/// One line when Redis is lost, one when it is back, however often connecting fails in between.
async fn log_changes(client: Client) {
    let (mut errors, mut connections) = (client.error_rx(), client.reconnect_rx());
    let mut connected = None;
    loop {
        tokio::select! {
            error = errors.recv() => match error {
                Ok((error, _)) if connected != Some(false) => {
                    let change = connected.map_or("cannot be reached", |_| "is lost");
                    connected = Some(false);
                    warn!("Redis {change}: {}", super::Error::from(error));
                }
                Err(RecvError::Closed) => return,
                _ => {}
            },
            connection = connections.recv() => match connection {
                Ok(server) if connected != Some(true) => {
                    connected = Some(true);
                    info!("Redis is connected: {server}");
                }
                Err(RecvError::Closed) => return,
                _ => {}
            },
        }
    }
}
