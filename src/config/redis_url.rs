//! Reads `REDIS_URL`, and says what is wrong with it where fred would not.

use fred::{error::ErrorKind, types::config::Config as RedisConfig};
use url::Url;

/// The schemes of `REDIS_URL`: a single server, a Cluster, Sentinel. The second of each pair uses TLS.
const REDIS_SCHEMES: [&str; 6] =
    ["redis", "rediss", "redis-cluster", "rediss-cluster", "redis-sentinel", "rediss-sentinel"];

/// Reads `REDIS_URL`.
///
/// # Errors
/// What is wrong with it, and what is allowed; never a part of it that may be a secret.
pub fn redis_url(value: &str) -> Result<RedisConfig, String> {
    let scheme = value.split_once("://").map(|(scheme, _)| scheme).filter(|scheme| REDIS_SCHEMES.contains(scheme));
    let Some(scheme) = scheme else {
        return Err(format!("does not begin with a known scheme; {}", allowed_urls()));
    };
    // `echo` and editors end a line. Elsewhere, the parser would silently drop a line break or a tab.
    let value = value.trim_end();
    if value.contains(char::is_control) {
        return Err(format!("has a line break or another control character in it; {}", allowed_urls()));
    }
    let checked = Url::parse(value).map_err(|error| format!("is malformed: {error}"));
    checked.and_then(|url| check_url(scheme, &url)).map_err(|problem| format!("{problem}; {}", allowed_urls()))?;
    match RedisConfig::from_url(value) {
        Ok(redis) => Ok(redis),
        Err(error) if *error.kind() == ErrorKind::Tls => Err(format!(
            "asks for TLS, but the trusted certificates cannot be loaded: {}; allowed: those of the \
             system, or PEM in the file that SSL_CERT_FILE names",
            error.details()
        )),
        Err(error) => Err(format!("is malformed: {}; {}", error.details(), allowed_urls())),
    }
}

/// Refuses what fred 10.1 takes from a URL without a word and does not use: `?db=3`, `?ssl=true`, a Cluster's database,
/// a user without a password, and the like.
fn check_url(scheme: &str, url: &Url) -> Result<(), String> {
    match url.host_str() {
        None | Some("") => return Err("names no host".to_owned()),
        Some(host) if !is_host_name(host) && !host.starts_with('[') => {
            return Err("names a host with a character that hosts do not have".to_owned());
        }
        Some(_) => {}
    }
    if url.port() == Some(0) {
        return Err("names port 0; a port is 1 to 65535".to_owned());
    }
    if !url.username().is_empty() && url.password().unwrap_or_default().is_empty() {
        return Err("names a user without a password".to_owned());
    }
    let database = url.path().strip_prefix('/').unwrap_or_default();
    if !database.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err("is malformed: its path is not the number of a database".to_owned());
    }
    if scheme.ends_with("-cluster") && database.bytes().any(|byte| byte != b'0') {
        return Err("names a database; a Redis Cluster has only database 0".to_owned());
    }
    if url.fragment().is_some() {
        return Err("has a fragment; in a password, # is written %23".to_owned());
    }
    check_parameters(scheme, url)
}

/// Whether this can be a host's name or IPv4 address.
fn is_host_name(host: &str) -> bool {
    !host.is_empty() && host.chars().all(|char| char.is_ascii_alphanumeric() || "-._".contains(char))
}

/// Refuses parameters that are unknown, empty, given twice, or have no effect.
fn check_parameters(scheme: &str, url: &Url) -> Result<(), String> {
    const SENTINEL: [&str; 4] = ["node", "sentinelServiceName", "sentinelUsername", "sentinelPassword"];
    let known: &[&str] = match scheme.split_once('-') {
        None => &[],
        Some((_, "cluster")) => &SENTINEL[..1],
        Some(_) => &SENTINEL,
    };
    if url.query().is_some_and(|query| query.contains('+')) {
        return Err("has a + in a parameter, which would be read as a space; it is written %2B".to_owned());
    }
    let mut seen = Vec::new();
    for (name, value) in url.query_pairs() {
        let Some(name) = known.iter().find(|known| **known == name) else {
            // If the password has an unescaped question mark, this name may be a part of it.
            let is_name = url.query().is_some_and(|query| !query.contains('@'))
                && name.chars().all(|char| char.is_ascii_alphabetic() || char == '_' || char == '-');
            let name = if is_name && !name.is_empty() { &*name } else { "(its name may be a secret)" };
            return Err(format!("has a parameter that {scheme}:// does not know: {name}"));
        };
        let node = value.split_once(':').filter(|(_, port)| port.parse::<u16>().is_ok_and(|port| port > 0));
        if *name == "node" && !node.is_some_and(|(host, _)| is_host_name(host)) {
            return Err("has a node that is not host:port; the host is a name or an IPv4 address".to_owned());
        }
        if value.is_empty() {
            return Err(format!("has an empty {name}"));
        }
        if *name != "node" && seen.contains(name) {
            return Err(format!("has {name} twice"));
        }
        seen.push(*name);
    }
    if seen.contains(&"sentinelUsername") && !seen.contains(&"sentinelPassword") {
        return Err("has sentinelUsername without sentinelPassword".to_owned());
    }
    Ok(())
}

/// What `REDIS_URL` may be.
pub fn allowed_urls() -> String {
    format!(
        "allowed: {}://, each with [user:password@]host[:port], all but Cluster with [/database], \
         Cluster and Sentinel with [?node=host:port], Sentinel with \
         ?sentinelServiceName=name[&sentinelUsername=user&sentinelPassword=password]",
        REDIS_SCHEMES.join("://, ")
    )
}
