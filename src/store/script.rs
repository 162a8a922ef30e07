//! Scripts that Redis runs, and the narrow trait through which they are run.

use fred::{
    bytes_utils::Str,
    types::{Key, Value},
    util::sha1_hash,
};
use tokio::time::Instant;

use super::{error::Error, retry::until_answered};

/// A script that Redis runs.
#[derive(Debug)]
pub struct Script {
    /// Its source.
    pub text: &'static str,
    /// The name by which Redis knows it, once it has been sent in full: the SHA-1 of its source.
    pub name: Str,
}

impl Script {
    /// The script with this source.
    pub fn new(text: &'static str) -> Self {
        Self { text, name: sha1_hash(text).into() }
    }
}

/// What runs scripts: the connection to Redis, or the simulation in tests/.
pub trait RunScript: Send + Sync + 'static {
    /// Whether Redis is a Cluster, where the keys of a command must be in one slot.
    fn is_clustered(&self) -> bool;

    /// Sends a script once, until `send_by` at the latest: by its name, or in full, after which Redis knows the name.
    ///
    /// # Errors
    /// [`Error::Unanswered`] if there is no reply: the script may have run, and may yet run. Any other error if
    /// it changed nothing.
    fn attempt(
        &self,
        send_by: Instant,
        script: &Script,
        in_full: bool,
        keys: Vec<Key>,
        arguments: Vec<Value>,
    ) -> impl Future<Output = Result<String, Error>> + Send;
}

/// Runs a script until there is a reply. It may run several times, the first time at `begin`; the keys and arguments
/// are made anew for each attempt.
///
/// # Errors
/// As for `retry::until_answered`.
pub async fn run<R: RunScript>(
    redis: &R,
    begin: Instant,
    script: &Script,
    arguments: impl Fn() -> (Vec<Key>, Vec<Value>) + Sync,
) -> Result<String, Error> {
    let arguments = &arguments;
    until_answered(begin, |send_by| async move {
        let send = |in_full| {
            let (keys, arguments) = arguments();
            redis.attempt(send_by, script, in_full, keys, arguments)
        };
        match send(false).await {
            Err(error) if error.is_unknown_script() => send(true).await,
            reply => reply,
        }
    })
    .await
}
