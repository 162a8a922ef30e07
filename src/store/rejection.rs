//! What is wrong with the settings or the server and does not pass by itself. It stops the program at its start.

use fred::{
    prelude::ClientLike,
    types::config::{Config, Server, ServerConfig},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::{
    error::{code, is_forbidden, without_arguments},
    redis_client::new_client,
    retry::ATTEMPT_TIMEOUT,
};

/// What is wrong with the settings or the server, if the cause of this error does not pass by itself.
pub fn rejection(details: &str) -> Option<String> {
    let has = |part: &str| details.contains(part);
    let what = match code(details) {
        "ERR" if passes(details) => return None,
        "WRONGPASS" | "NOAUTH" => "Redis rejected the password",
        "ERR" if has("AUTH") => "Redis rejected the password",
        "ERR" if has("unknown command") && has_word(details, "SENTINEL") => "the server is not a Sentinel",
        "ERR" if has("No such master") => NO_SERVICE,
        "ERR" if has("cluster support disabled") => "the server is not a Redis Cluster",
        "ERR" if has("SELECT") || has("DB index") || has("database") => "the database is refused",
        "MOVED" => "the server is a node of a Redis Cluster and does not hold all slots, which needs redis-cluster://",
        _ if is_forbidden(details) => "a command that sessions need is forbidden",
        "ERR" | "DENIED" | "NOPROTO" | "WRONGTYPE" => "the server refuses",
        _ if has("Missing primary address in response from sentinel") => NO_SERVICE,
        // fred's own errors; and rustls's, in Rust's debug format.
        _ if has("InvalidContentType") => return Some(NO_TLS.to_owned()),
        _ if has("Invalid frame type") => return Some(NO_REDIS.to_owned()),
        _ => {
            // Custom { kind: …, error: InvalidCertificate(CAUSE) }
            let (_, cause) = details.split_once("InvalidCertificate(")?;
            let cause = cause.trim_end_matches(") }");
            return Some(format!("the certificate could not be verified: {cause}"));
        }
    };
    Some(format!("{what}: {details}"))
}

const NO_TLS: &str = "rediss:// needs TLS, but the server does not speak it";

const NO_REDIS: &str = "the server does not speak Redis's protocol; with TLS, the scheme is rediss://";

const NO_SERVICE: &str = "the Sentinel knows no service of the name in sentinelServiceName";

/// Whether an error with the code `ERR` is of a kind that passes by itself: too many clients, a host's limit for an hour
/// or a day, a proxy that cannot reach the server.
fn passes(error: &str) -> bool {
    const PASSING: [&str; 8] = ["max ", "limit", "quota", "exceed", "time", "again", "unavailable", "onnection"];
    PASSING.iter().any(|part| error.contains(part))
}

fn has_word(text: &str, word: &str) -> bool {
    text.split(|char: char| !char.is_ascii_alphabetic()).any(|part| part.eq_ignore_ascii_case(word))
}

/// Why a Sentinel rejects the settings, if one does. fred 10.1 only says that it cannot connect to any.
pub async fn sentinel_rejection(config: &Config) -> Option<String> {
    let ServerConfig::Sentinel { hosts, username, password, .. } = &config.server else {
        return None;
    };
    for server in hosts.iter().cloned() {
        let (username, password) = (username.clone(), password.clone());
        let server = ServerConfig::Centralized { server };
        let sentinel = Config { server, username, password, database: None, ..config.clone() };
        match new_client(&sentinel).ok()?.init().await {
            Ok(end) => end.abort(),
            Err(error) => {
                if let Some(rejection) = rejection(without_arguments(error.details())) {
                    return Some(format!("Sentinel: {rejection}"));
                }
            }
        }
    }
    None
}

/// What is wrong with the URL's scheme, if it says TLS and the server speaks none, or the other way round. The server
/// itself gives no reason: it closes the connection, or waits for more.
pub async fn scheme_rejection(config: &Config) -> Option<String> {
    /// A ClientHello of TLS 1.2: zeros for the random bytes, no session, one cipher suite, no compression, no extensions.
    const HELLO: &[u8] = b"\x16\x03\x01\0\x2d\x01\0\0\x29\x03\x03\
        \0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x02\xc0\x2f\x01\0";
    let (question, answers, rejection) = match config.tls {
        // A handshake goes on, or an alert says why not.
        None => (HELLO, [0x16, 0x15], "the server speaks TLS, which needs rediss://"),
        Some(_) => (&b"PING\r\n"[..], [b'+', b'-'], NO_TLS),
    };
    let ask = async |server: Server| {
        let mut connection = TcpStream::connect(server.to_string()).await.ok()?;
        connection.write_all(question).await.ok()?;
        Some(answers.contains(&connection.read_u8().await.ok()?))
    };
    for server in config.server.hosts() {
        if let Ok(Some(true)) = timeout(ATTEMPT_TIMEOUT, ask(server)).await {
            return Some(rejection.to_owned());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rejected_setting_is_named() {
        for (details, expected) in [
            ("WRONGPASS invalid username-password pair", "password"),
            ("NOAUTH Authentication required.", "password"),
            (
                "ERR AUTH <password> called without any password configured for the default user.",
                "rejected the password",
            ),
            ("ERR No such master with that name", "no service"),
            ("Missing primary address in response from sentinel.", "no service"),
            ("ERR DB index is out of range", "database"),
            ("ERR SELECT is not allowed in cluster mode", "database"),
            ("ERR This instance has cluster support disabled", "not a Redis Cluster"),
            ("ERR unknown command `SENTINEL`", "not a Sentinel"),
            ("ERR unknown command 'SET'", "forbidden"),
            ("NOPERM this user has no permissions to run the 'getex' command", "'getex'"),
            ("DENIED Redis is running in protected mode", "protected mode"),
            ("MOVED 123 127.0.0.1:7002", "redis-cluster://"),
            ("Custom { kind: InvalidData, error: InvalidCertificate(UnknownIssuer) }", "verified: UnknownIssuer"),
        ] {
            let rejection = rejection(details).unwrap();
            assert!(rejection.contains(expected), "{rejection}");
        }
        for passing in [
            "Connection refused",
            "ERR max number of clients reached",
            "ERR max daily request limit exceeded. Limit: 10000, Usage: 10000.",
            "LOADING Redis is loading the dataset in memory",
            "READONLY You can't write against a read only replica.",
            "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
            "CLUSTERDOWN The cluster is down",
            "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
            "OOM command not allowed when used memory > 'maxmemory'.",
            "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.",
            "NOREPLICAS Not enough good replicas to write.",
            "TRYAGAIN Multiple keys request during rehashing of slot",
        ] {
            assert_eq!(rejection(passing), None);
        }
    }
}
