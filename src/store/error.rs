//! What a store can fail with. Only this file, `rejection.rs` and the script read the texts of Redis's and fred's errors.

use crate::warnings;

/// Why the store failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Redis cannot be reached, or is not a primary for now. It has not executed the command.
    #[error("Redis cannot be reached")]
    Unreached,
    /// Redis does not reply in time. It may have executed the command, or may yet do so.
    #[error("Redis does not answer")]
    Unanswered,
    /// Redis's reply is none that this command can have. It may have executed the command.
    #[error("Redis's reply cannot be read")]
    Garbled,
    /// Redis replied with this error and has changed nothing.
    #[error("Redis refuses: {0}")]
    Refused(String),
    /// As many changes as allowed are waiting for Redis. Nothing is changed.
    #[error("too many changes wait for Redis")]
    Overloaded,
    /// Others changed the session, time and again. Nothing is changed.
    #[error("other requests changed the session for too long")]
    Contended,
    /// Redis holds or sends what is no session of this service or of tower-sessions. Nothing is changed.
    #[error("a session's value cannot be read: neither this service nor tower-sessions wrote it")]
    Unreadable,
    /// The session was ended just now, or goes on under another id. Nothing is changed.
    #[error("the session was ended")]
    Ended,
    /// The session would have more bytes than this. Nothing is changed.
    #[error("a session would take more than {0} bytes")]
    TooLarge(usize),
    /// A page's value is nested deeper than this. Nothing is changed.
    #[error("a page's value is nested more than {0} deep")]
    TooDeep(usize),
    /// A page uses this key, which the service needs. Nothing is changed.
    #[error("a page uses the session's key {0}, which is the service's own")]
    Reserved(&'static str),
    /// A page's value has another type than the page expects, or cannot be JSON. Nothing is changed.
    #[error("a page's value has another type than the page expects, or cannot be JSON")]
    Mismatched,
}

impl Error {
    /// Parses an error as fred displays it, `Kind: details`.
    ///
    /// Redis's own errors begin with a code in capitals, such as `ERR`. All others are fred's, and mean that there was no
    /// reply, but for [`UNREADABLE_REDIRECTION`]. (fred's error kinds do not tell the two apart: version 10.1 uses
    /// `Unknown` for a command that it dropped and for most errors of Redis.)
    fn parse(text: &str) -> Self {
        let details = text.split_once(": ").map_or(text, |(_, details)| details);
        let code = code(details);
        let is_of_redis = !code.is_empty() && code.bytes().all(|byte| byte.is_ascii_uppercase());
        if is_of_redis || details == UNREADABLE_REDIRECTION {
            Self::refused(details)
        } else if details == TOO_MANY_REDIRECTIONS {
            Self::Unreached
        } else {
            Self::Unanswered
        }
    }

    /// Redis's error of this text.
    pub(super) fn refused(text: &str) -> Self {
        Self::Refused(without_arguments(text).to_owned())
    }

    /// Logs a warning with the trace of the current request: the first of an outage, then one a minute; of each other
    /// kind of error one a minute.
    pub(crate) fn report(&self) {
        let kind = match self {
            Self::Unreached | Self::Unanswered => OUTAGE,
            Self::Refused(reason) => code(reason),
            Self::Overloaded => "overloaded",
            Self::Contended => "contended",
            Self::Garbled => "garbled",
            Self::Unreadable => "unreadable",
            // A visitor has logged in or out.
            Self::Ended => return,
            Self::TooLarge(_) => "too large",
            Self::TooDeep(_) => "too deep",
            Self::Reserved(_) => "reserved",
            Self::Mismatched => "mismatched",
        };
        warnings::warn_once_a_minute(kind, format_args!("a session could not be used: {self}"));
    }

    /// Whether Redis does not have the script of this name yet.
    pub(super) fn is_unknown_script(&self) -> bool {
        self.has_code("NOSCRIPT")
    }

    /// Whether Redis does not know an option of the command.
    pub(super) fn is_unknown_option(&self) -> bool {
        matches!(self, Self::Refused(reason) if reason.starts_with("ERR syntax error"))
    }

    /// Whether Redis is out of memory.
    pub(super) fn is_full(&self) -> bool {
        self.has_code("OOM")
    }

    /// Whether the user may not execute the command, or the server does not know it.
    pub(super) fn is_forbidden(&self) -> bool {
        matches!(self, Self::Refused(reason) if is_forbidden(reason))
    }

    /// Whether a Cluster refuses a command because its keys are in several slots.
    pub(super) fn is_cross_slot(&self) -> bool {
        self.has_code("CROSSSLOT")
    }

    /// Whether the same command may succeed in a moment: there is no connection, or keys are moving to another node of
    /// the Cluster.
    pub(super) fn is_passing(&self) -> bool {
        matches!(self, Self::Unreached) || self.has_code("TRYAGAIN")
    }

    fn has_code(&self, expected: &str) -> bool {
        matches!(self, Self::Refused(reason) if code(reason) == expected)
    }
}

/// fred's error for a key that is on another node of the Cluster, or is moving there.
const TOO_MANY_REDIRECTIONS: &str = "Too many redirections.";

/// fred 10.1's error if it cannot read Redis's, because the other node has an IPv6 address. It does not learn from that
/// where the key is.
const UNREADABLE_REDIRECTION: &str = "Invalid cluster redirection error.";

/// The kind of these problems: Redis cannot be reached, or does not answer.
const OUTAGE: &str = "outage";

/// The next such problem is the first of a new outage.
pub(super) fn outage_is_over() {
    warnings::warn_anew(OUTAGE);
}

/// Whether a server that refuses with this error cannot act as a primary: it is a replica, or still loads its data.
pub(super) fn is_unfit_server(error: &str) -> bool {
    ["READONLY", "LOADING", "MASTERDOWN", "CLUSTERDOWN"].contains(&code(error))
}

/// Whether a server that refuses with this error is not the one that has the key, in a Cluster.
pub(super) fn is_moved(error: &str) -> bool {
    code(error) == "MOVED" || error == UNREADABLE_REDIRECTION
}

/// Whether connecting failed with this error because the name of a host is unknown.
pub(super) fn is_unknown_host(details: &str) -> bool {
    details.contains("failed to lookup address")
}

pub(super) fn is_forbidden(error: &str) -> bool {
    code(error) == "NOPERM" || error.starts_with("ERR unknown command")
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
        Self::parse(&error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_redis_and_of_fred_are_told_apart() {
        for text in ["Unknown: OOM command not allowed", "ERR no", "Auth: NOAUTH required"] {
            assert!(matches!(Error::parse(text), Error::Refused(_)), "{text}");
        }
        for text in ["IO: Connection closed.", "Canceled: Canceled.", "Timeout: Request timed out", "Unknown: "] {
            assert!(matches!(Error::parse(text), Error::Unanswered), "{text}");
        }
    }

    #[test]
    fn a_redirection_to_an_ipv6_address_is_known() {
        let error = Error::parse("Protocol Error: Invalid cluster redirection error.");
        assert!(matches!(error, Error::Refused(reason) if is_moved(&reason)));
    }

    #[test]
    fn kinds_of_refusals_are_told_apart() {
        for (text, expected) in [
            ("NOSCRIPT No matching script.", "script"),
            ("ERR syntax error", "option"),
            ("OOM command not allowed when used memory > 'maxmemory'.", "full"),
            ("NOPERM this user has no permissions to run the 'getex' command", "forbidden"),
            ("ERR unknown command 'GETEX'", "forbidden"),
            ("CROSSSLOT Keys in request don't hash to the same slot", "several keys"),
            ("TRYAGAIN Multiple keys request during rehashing of slot", "passing"),
            ("ERR value is not an integer or out of range", ""),
        ] {
            let error = Error::refused(text);
            let kinds = [
                (error.is_unknown_script(), "script"),
                (error.is_unknown_option(), "option"),
                (error.is_full(), "full"),
                (error.is_forbidden(), "forbidden"),
                (error.is_cross_slot(), "several keys"),
                (error.is_passing(), "passing"),
            ];
            let kinds: Vec<_> = kinds.iter().filter(|(is, _)| *is).map(|(_, kind)| *kind).collect();
            assert_eq!(kinds.join(", "), expected, "{text}");
        }
        assert!(Error::Unreached.is_passing() && !Error::Unanswered.is_passing());
    }

    #[test]
    fn servers_and_hosts_that_will_not_do_are_known() {
        for code in ["READONLY", "LOADING", "MASTERDOWN", "CLUSTERDOWN"] {
            assert!(is_unfit_server(&format!("{code} for now")), "{code}");
        }
        assert!(!is_unfit_server("OOM command not allowed"));
        assert!(is_unknown_host("failed to lookup address information: Name or service not known"));
        assert!(!is_unknown_host("Connection refused (os error 111)"));
    }

    #[test]
    fn no_argument_is_repeated() {
        let error = Error::parse("Unknown: ERR unknown command 'AUTH', with args beginning with: 'hunter2'");
        assert_eq!(error.to_string(), "Redis refuses: ERR unknown command 'AUTH'");
    }
}
