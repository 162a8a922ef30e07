//! Every setting: an environment variable, or a flag of the same name.

mod redis_url;

use std::{ffi::OsString, time::Duration};

use clap::{
    Parser,
    builder::{OsStringValueParser, TypedValueParser},
    error::{ContextKind, ContextValue, ErrorKind},
};
use cookie::Key;
use fred::types::config::Config as RedisConfig;
use tracing_subscriber::filter::{LevelFilter, ParseError, Targets};

use redis_url::{allowed_urls, redis_url};

/// A shorter secret could be guessed, and the key derivation demands 32 bytes.
const SECRET_MIN_CHARS: usize = 32;

/// Browsers drop a cookie whose name and value have more than 4,096 bytes together. A signed value has some 70.
const COOKIE_NAME_MAX: usize = 256;

/// Browsers drop a cookie whose name begins with one of these, if it is not Secure
/// (<https://datatracker.ietf.org/doc/html/draft-ietf-httpbis-rfc6265bis#name-cookie-name-prefixes>).
const SECURE_PREFIXES: [&str; 3] = ["__Host-", "__Secure-", "__Http-"];

/// The filter that `RUST_LOG` is appended to. tower-sessions logs failures that [`crate::store::Store`] has logged
/// already.
const QUIET: &str = "tower_sessions_core=off";

/// Counts page views per visitor, exactly, in sessions kept in Redis.
///
/// Every setting is an environment variable and a flag. Keep secrets in the environment: other users of the machine
/// can read a process's flags.
#[derive(Clone, Parser)]
#[command(version)]
pub struct Config {
    /// Port to listen on, on all IPv4 and IPv6 interfaces: 0 to 65535; 0 picks a free port and logs it
    #[arg(long, env = "PORT", default_value = "8080", value_parser = setting(port))]
    pub port: u16,

    /// URL of the Redis that keeps the sessions: `redis://[user:password@]host[:port][/database]`. Other schemes are
    /// rediss:// (TLS), redis-cluster://, rediss-cluster://, redis-sentinel:// and rediss-sentinel://. ?node=host:port
    /// adds a node, ?sentinelServiceName=name names Sentinel's service, sentinelUsername and sentinelPassword are the
    /// credentials for the Sentinels themselves. Without REDIS_URL, sessions are kept in memory and are lost when the
    /// process exits
    #[arg(long, env = "REDIS_URL", hide_env_values = true, value_parser = setting(redis_url))]
    pub redis_url: Option<RedisConfig>,

    /// Seconds, 1 to 4294967295: a session ends this long after its last view or save, or up to 5 seconds later
    #[arg(long, env = "SESSION_TTL", default_value = "86400", value_parser = setting(seconds))]
    pub session_ttl: Duration,

    /// Seconds, 1 to 4294967295: a session ends this long after it began or its visitor last logged in, even if it is
    /// in use, by the instances' clocks; not set: no maximum age
    #[arg(long, env = "SESSION_MAX_AGE", value_parser = setting(seconds))]
    pub session_max_age: Option<Duration>,

    /// Signs the session cookie, at least 32 characters; without it, cookies are not signed; a line break at its end is
    /// ignored, here and in SESSION_SECRET_PREVIOUS
    #[arg(long, env = "SESSION_SECRET", hide_env_values = true, value_parser = setting(session_secret))]
    pub session_secret: Option<Key>,

    /// A second secret, the old or the next one: cookies signed with it are accepted and re-signed
    #[arg(long, env = "SESSION_SECRET_PREVIOUS", hide_env_values = true, value_parser = setting(session_secret))]
    pub session_secret_previous: Option<Key>,

    /// true or false: true if clients use HTTPS; the cookie is then Secure [default: true on Cloud Run, else false]
    #[arg(long, env = "SECURE_COOKIE", value_parser = setting(true_or_false))]
    secure_cookie: Option<bool>,

    /// Name of the session cookie, a token of RFC 6265 of at most 256 characters; one that begins with __Host-, __Secure-
    /// or __Http- needs SECURE_COOKIE=true [default: __Host-id if the cookie is Secure, else id]
    #[arg(long, env = "SESSION_COOKIE", value_parser = setting(cookie_name))]
    session_cookie: Option<String>,

    /// Log level: off, error, warn, info or debug; or TARGET=LEVEL,...
    #[arg(long, env = "RUST_LOG", default_value = "info", value_parser = setting(rust_log))]
    pub rust_log: Targets,

    /// Set by Cloud Run, on all its instances.
    #[arg(long, env = "K_SERVICE", hide = true)]
    k_service: Option<OsString>,

    /// Set by Cloud Run: the revision of the service that this instance belongs to.
    #[arg(long, env = "K_REVISION", hide = true, value_parser = setting(name))]
    pub k_revision: Option<String>,

    /// The Google Cloud project that the traces belong to.
    #[arg(long, env = "GOOGLE_CLOUD_PROJECT", hide = true, value_parser = setting(name))]
    pub google_cloud_project: Option<String>,
}

impl Config {
    /// Reads the settings of this process. `--help` and `--version` print and exit.
    ///
    /// # Errors
    /// One line that names the setting, what is wrong with it and what is allowed. It never contains a value, which may
    /// be a secret.
    pub fn read() -> Result<Self, String> {
        let config = Self::try_parse().map_err(explain)?;
        if config.on_cloud_run() && config.redis_url.is_none() {
            return Err(format!(
                "REDIS_URL is not set: the instances of a Cloud Run service share sessions only through Redis; {}",
                allowed_urls()
            ));
        }
        if config.session_secret_previous.is_some() && config.session_secret.is_none() {
            return Err("SESSION_SECRET_PREVIOUS is set without SESSION_SECRET; allowed: both, or none".to_owned());
        }
        if !config.is_cookie_secure() && needs_secure(config.session_cookie()) {
            return Err(format!(
                "SESSION_COOKIE begins with a prefix that browsers accept only with Secure cookies; allowed: a name that \
                 does not begin with {}, or SECURE_COOKIE=true",
                SECURE_PREFIXES.join(", ")
            ));
        }
        Ok(config)
    }

    /// The name of the session cookie.
    pub fn session_cookie(&self) -> &str {
        // Browsers send a __Host- cookie to this very host only, and take it only over HTTPS.
        let default = if self.is_cookie_secure() { "__Host-id" } else { "id" };
        self.session_cookie.as_deref().unwrap_or(default)
    }

    /// Whether the session cookie is for HTTPS only.
    pub fn is_cookie_secure(&self) -> bool {
        self.secure_cookie.unwrap_or(self.on_cloud_run())
    }

    /// Whether the platform is Cloud Run: then logs are JSON.
    pub fn on_cloud_run(&self) -> bool {
        self.k_service.is_some()
    }
}

/// A parser whose errors contain no value, even if that is not UTF-8.
fn setting<T: Clone + Send + Sync + 'static>(parse: fn(&str) -> Result<T, String>) -> impl TypedValueParser<Value = T> {
    OsStringValueParser::new().try_map(move |value| match value.to_str() {
        Some(value) => parse(value),
        None => Err("is not UTF-8".to_owned()),
    })
}

fn port(value: &str) -> Result<u16, String> {
    value.parse().map_err(|error| format!("is not a port: {error}; allowed: 0 to 65535"))
}

fn seconds(value: &str) -> Result<Duration, String> {
    match value.parse::<u32>() {
        Ok(seconds) if seconds > 0 => Ok(Duration::from_secs(seconds.into())),
        _ => Err(format!("is not a number of seconds; allowed: whole seconds from 1 to {}", u32::MAX)),
    }
}

fn session_secret(value: &str) -> Result<Key, String> {
    // `echo` and editors end a line, and secret managers keep that: it must not make another key of the same secret.
    let value = value.trim_end_matches(['\r', '\n']);
    let chars = value.chars().count();
    if chars < SECRET_MIN_CHARS {
        return Err(format!("is too short: {chars} characters; allowed: {SECRET_MIN_CHARS} or more"));
    }
    Ok(Key::derive_from(value.as_bytes()))
}

/// An RFC 6265 token.
fn cookie_name(value: &str) -> Result<String, String> {
    let is_of_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if value.is_empty() || value.len() > COOKIE_NAME_MAX || !value.bytes().all(is_of_token) {
        return Err(format!(
            "is not the name of a cookie; allowed: 1 to {COOKIE_NAME_MAX} letters, digits and !#$%&'*+-.^_`|~"
        ));
    }
    Ok(value.to_owned())
}

/// Browsers compare the prefixes without regard to case.
fn needs_secure(name: &str) -> bool {
    SECURE_PREFIXES
        .iter()
        .any(|prefix| name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix)))
}

fn true_or_false(value: &str) -> Result<bool, String> {
    value.parse().map_err(|_| "is not true or false; allowed: true, false".to_owned())
}

fn rust_log(value: &str) -> Result<Targets, String> {
    // The filter would take a misspelt level for a target, and log nothing; and an empty level for `error`.
    let is_target = |name: &str| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_:-".contains(&byte));
    let is_directive = |part: &str| {
        let (target, level) = part.split_once('=').unwrap_or(("", part));
        is_target(target) && !level.is_empty() && level.parse::<LevelFilter>().is_ok()
    };
    let filter = if !value.split(',').all(is_directive) {
        Err("it, or a part of it, names no level".to_owned())
    } else {
        format!("{QUIET},{value}").parse().map_err(|error: ParseError| error.to_string())
    };
    filter.map_err(|problem| {
        format!("is not a filter: {problem}; allowed: off, error, warn, info or debug, or TARGET=LEVEL,...")
    })
}

fn name(value: &str) -> Result<String, String> {
    if value.is_empty() { Err("is empty; allowed: a name".to_owned()) } else { Ok(value.to_owned()) }
}

/// Clap's error in one line. Clap's own text shows the wrong value.
fn explain(error: clap::Error) -> String {
    let argument = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(argument)) => argument.as_str(),
        _ => "",
    };
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => error.exit(),
        ErrorKind::ValueValidation => {
            // Clap writes `--redis-url <REDIS_URL>`.
            let setting = argument.split(['<', '>']).nth(1).unwrap_or(argument).to_owned();
            let problem = std::error::Error::source(&error).map(ToString::to_string);
            format!("{setting} {}", problem.unwrap_or_default())
        }
        ErrorKind::UnknownArgument | ErrorKind::TooManyValues => {
            // The argument may be a misplaced secret.
            "an argument is unknown; allowed: what --help lists".to_owned()
        }
        _ => {
            let report = error.to_string();
            let line = report.lines().next().unwrap_or_default();
            format!("{}; see --help", line.trim_start_matches("error: "))
        }
    }
}
