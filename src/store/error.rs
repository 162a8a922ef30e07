//! What a store can fail with. Only this file reads the texts of Redis's and fred's errors.

use tower_sessions::session_store;

use crate::telemetry;

/// Why the store failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// Redis cannot be reached, or is not a primary for now. It has not executed the command.
    #[error("Redis cannot be reached")]
    Unreached,
    /// Redis does not reply in time. It may have executed the command, or may yet do so.
    #[error("Redis does not answer")]
    Unanswered,
    /// Redis replied with this error and has changed nothing.
    #[error("Redis refuses: {0}")]
    Refused(String),
    /// As many views as allowed are waiting for Redis. Nothing was sent.
    #[error("too many views wait for Redis")]
    Overloaded,
}

impl Error {
    /// Reads an error as fred displays it, `Kind: details`.
    ///
    /// Redis's own errors begin with a code in capitals, such as `ERR`. All others are fred's, and
    /// mean that there was no reply. (fred's error kinds do not tell the two apart: version 10.1 uses
    /// `Unknown` for a command that it dropped and for most errors of Redis.)
    fn read(text: &str) -> Self {
        let details = text.split_once(": ").map_or(text, |(_, details)| details);
        let code = code(details);
        if !code.is_empty() && code.bytes().all(|byte| byte.is_ascii_uppercase()) {
            Self::Refused(without_arguments(details).to_owned())
        } else {
            Self::Unanswered
        }
    }

    /// Logs a warning with the trace of the current request: the first of an outage, then one a minute; of each other
    /// kind of error one a minute.
    pub(super) fn report(&self) {
        let kind = match self {
            Self::Unreached | Self::Unanswered => OUTAGE,
            Self::Refused(reason) => code(reason),
            Self::Overloaded => "overloaded",
        };
        telemetry::warn_once_a_minute(kind, format_args!("a session could not be used: {self}"));
    }

    /// Whether Redis does not have the script of this name yet.
    pub(super) fn is_unknown_script(&self) -> bool {
        self.has_code("NOSCRIPT")
    }

    /// Whether the keys are just moving to another node of the Cluster.
    pub(super) fn is_moving(&self) -> bool {
        self.has_code("TRYAGAIN")
    }

    fn has_code(&self, expected: &str) -> bool {
        matches!(self, Self::Refused(reason) if code(reason) == expected)
    }
}

/// The kind of problem that Redis cannot be reached or does not answer.
const OUTAGE: &str = "outage";

/// The next such problem is the first of a new outage.
pub(super) fn outage_is_over() {
    telemetry::warn_anew(OUTAGE);
}

/// Whether a server that refuses with this error cannot act as a primary: it is a replica, or still loads its data.
pub(super) fn is_unfit_server(error: &str) -> bool {
    ["READONLY", "LOADING", "MASTERDOWN", "CLUSTERDOWN"].contains(&code(error))
}

/// What is wrong with the settings, if that is why connecting failed with this error.
pub(super) fn rejection(details: &str) -> Option<String> {
    if ["WRONGPASS", "NOAUTH"].contains(&code(details)) {
        return Some(format!("the password is refused: {details}"));
    }
    // rustls's error in Rust's debug format: Custom { kind: …, error: InvalidCertificate(CAUSE) }
    let (_, cause) = details.split_once("InvalidCertificate(")?;
    let cause = cause.trim_end_matches(") }");
    Some(format!("the certificate does not verify: {cause}"))
}

/// The first word of Redis's error: `ERR`, `OOM`, `WRONGTYPE`, …
pub(super) fn code(error: &str) -> &str {
    error.split(' ').next().unwrap_or_default()
}

/// Redis repeats the arguments of a command that it does not know, a session id or password among
/// them.
pub(super) fn without_arguments(error: &str) -> &str {
    error.split(", with args").next().unwrap_or_default()
}

impl From<fred::error::Error> for Error {
    fn from(error: fred::error::Error) -> Self {
        Self::read(&error.to_string())
    }
}

impl From<session_store::Error> for Error {
    fn from(error: session_store::Error) -> Self {
        match error {
            session_store::Error::Backend(text) => Self::read(&text),
            // Its text may contain the session's data.
            _ => Self::Refused("ERR a session's record cannot be read or written".to_owned()),
        }
    }
}

impl From<Error> for session_store::Error {
    fn from(error: Error) -> Self {
        Self::Backend(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_redis_and_of_fred_are_told_apart() {
        for text in ["Unknown: OOM command not allowed", "ERR no", "Auth: NOAUTH required"] {
            assert!(matches!(Error::read(text), Error::Refused(_)), "{text}");
        }
        for text in ["IO: Connection closed.", "Canceled: Canceled.", "Timeout: Request timed out", "Unknown: "] {
            assert!(matches!(Error::read(text), Error::Unanswered), "{text}");
        }
    }

    #[test]
    fn no_argument_is_repeated() {
        let error = Error::read("Unknown: ERR unknown command 'AUTH', with args beginning with: 'hunter2'");
        assert_eq!(error.to_string(), "Redis refuses: ERR unknown command 'AUTH'");
    }

    #[test]
    fn a_rejected_setting_is_named() {
        for (details, expected) in [
            ("WRONGPASS invalid username-password pair", "password"),
            ("NOAUTH Authentication required.", "password"),
            ("Custom { kind: InvalidData, error: InvalidCertificate(UnknownIssuer) }", "verify: UnknownIssuer"),
        ] {
            let rejection = rejection(details).unwrap();
            assert!(rejection.contains(expected), "{rejection}");
        }
        assert_eq!(rejection("Connection refused"), None);
    }
}
