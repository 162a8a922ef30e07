//! Compare-and-set in Redis: a session gets its new value if it holds the expected one.
//!
//! It has three forms, of which a server knows one or more:
//!
//! - `SET … IFEQ … GET`, one command. Redis 8.4 and Valkey 8.1 reply what the key held, whether the new value was stored
//!   or not.
//! - The same as Upstash documents it: null if the condition fails. So null means "gone or changed", and `GETEX` tells.
//! - A script, two commands. It can also store several sessions in one call, for one command and one more for each.

use std::{
    slice,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};

use fred::{bytes::Bytes, bytes_utils::Str, types::Value, util::sha1_hash};
use futures_util::{future::join_all, try_join};
use tokio::time::Instant;
use tower_sessions::session::Id;

use super::{
    contents::ENDED_MARK,
    error::Error,
    ttl::{ENDED_TTL, SessionTtl},
};

const SCRIPT: &str = include_str!("compare_and_set.lua");

/// If one of a session's two values is longer, both are arguments of their own for the script: with values of 4 kB,
/// this was measured to save a quarter of Redis's CPU. Short ones cost the client less in one text.
const MAX_SHORT_VALUE: usize = 512;

/// One of many keys that no session has. They are as long as ids, so that a user's key pattern for ids allows them. But
/// they end with a hyphen, which no id does: an id's last character carries only two bits, and is one of four letters.
pub fn no_session(number: u32) -> String {
    format!("{number:-<22}")
}

/// What sends commands to Redis: the link, a single client, or what plays Redis in tests.
pub trait SendCommand: Send + Sync + 'static {
    /// Sends a command once. An implementation that must first wait for a connection does not send it after `send_by`.
    /// `key` is the index of its first key among the arguments; a command without keys goes to any server.
    ///
    /// # Errors
    /// [`Error::Unanswered`] if there is no reply: it may have been executed, and may yet be. Any other error if it has
    /// changed nothing.
    fn send(
        &self,
        send_by: Instant,
        command: &'static str,
        key: Option<usize>,
        arguments: Vec<Value>,
    ) -> impl Future<Output = Result<Value, Error>> + Send;
}

/// A compare-and-set of one session.
#[derive(Clone, Debug)]
pub struct Swap {
    /// The session.
    pub id: Id,
    /// What its key is expected to hold.
    pub expected: Bytes,
    /// What it is to hold then.
    pub new: Bytes,
    /// How long that lives.
    pub ttl: Duration,
}

/// What became of a [`Swap`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Swapped {
    /// The new value is stored, now or by an earlier sending.
    Stored,
    /// The key holds another value.
    Other(Bytes),
    /// The key holds nothing.
    Gone,
}

/// Compare-and-set in the forms that the server knows.
#[derive(Debug)]
pub struct CompareAndSet {
    /// The name by which Redis knows the script: the SHA-1 of its source.
    script: Str,
    ttl: SessionTtl,
    has_ifeq: AtomicBool,
    has_scripts: AtomicBool,
    /// Whether a call may have several keys. In a Cluster it may not.
    allows_several_keys: AtomicBool,
    is_clustered: bool,
}

impl CompareAndSet {
    /// In a Redis that is not known yet.
    pub fn new(ttl: SessionTtl, is_clustered: bool) -> Self {
        Self {
            script: sha1_hash(SCRIPT).into(),
            ttl,
            has_ifeq: true.into(),
            has_scripts: true.into(),
            allows_several_keys: (!is_clustered).into(),
            is_clustered,
        }
    }

    /// Whether one call can store several sessions.
    pub fn takes_many(&self) -> bool {
        self.allows_several_keys.load(Relaxed) && self.has_scripts.load(Relaxed)
    }

    /// Finds out which forms the server knows, and that it accepts writes (it may be full), by a command that changes
    /// nothing and, if it lacks `IFEQ`, a second one.
    ///
    /// # Errors
    /// The server's, if it accepts no writes or allows no form.
    pub async fn check<R: SendCommand>(&self, redis: &R, send_by: Instant) -> Result<(), Error> {
        self.has_ifeq.store(true, Relaxed);
        self.has_scripts.store(true, Relaxed);
        self.allows_several_keys.store(!self.is_clustered, Relaxed);
        match Self::ask_to_write(redis, send_by, no_session(0)).await {
            // A full server refuses before it looks at the command's options.
            Err(error) if error.is_full() => Ok(()),
            Ok(false) => {
                self.has_ifeq.store(false, Relaxed);
                // With no sessions.
                let arguments = vec![Value::from_static_str(SCRIPT), 0.into()];
                redis.send(send_by, "EVAL", None, arguments).await.map(drop)
            }
            reply => reply.map(drop),
        }
    }

    /// Finds out whether the server accepts a view now, by a `SET` that would store something only if this key held `-`.
    /// No session has the key, so nothing changes. Returns whether the server knows `IFEQ`.
    ///
    /// # Errors
    /// The server's, if it does not accept it.
    pub async fn ask_to_write<R: SendCommand>(redis: &R, send_by: Instant, key: String) -> Result<bool, Error> {
        let arguments = ["", "PX", "1", "IFEQ", "-", "GET"].map(Value::from_static_str);
        match redis.send(send_by, "SET", Some(0), [vec![key.into()], arguments.into()].concat()).await {
            // Options come last: all else is accepted.
            Err(error) if error.is_unknown_option() => Ok(false),
            reply => reply.map(|_| true),
        }
    }

    /// Finds out whether the user may execute the other commands that sessions need, by commands that change nothing.
    ///
    /// # Errors
    /// The server's, if not.
    pub async fn check_rights<R: SendCommand>(&self, redis: &R, send_by: Instant) -> Result<(), Error> {
        let on_no_session = async |command| redis.send(send_by, command, Some(0), vec![no_session(0).into()]).await;
        let run_known_script = async || {
            if self.has_ifeq.load(Relaxed) {
                return Ok(Value::Null);
            }
            let arguments = vec![Value::String(self.script.clone()), 0.into()];
            match redis.send(send_by, "EVALSHA", None, arguments).await {
                // In a Cluster, this may be another server than the one that got the script.
                Err(error) if error.is_unknown_script() => Ok(Value::Null),
                reply => reply,
            }
        };
        try_join!(on_no_session("GETEX"), on_no_session("DEL"), run_known_script()).map(drop)
    }

    /// What the key of a session holds. It is read by a command that writes, because a database with read regions lets
    /// replicas answer commands that only read, and they may lag.
    ///
    /// # Errors
    /// As for [`SendCommand::send`]; [`Error::Garbled`], and nothing is changed.
    pub async fn read<R: SendCommand>(&self, redis: &R, send_by: Instant, id: &Id) -> Result<Option<Bytes>, Error> {
        let held = redis.send(send_by, "GETEX", Some(0), vec![id.to_string().into()]).await?;
        if held.is_null() { Ok(None) } else { copy(&held).map(Some) }
    }

    /// Gives a session of this id its first value.
    ///
    /// # Errors
    /// As for [`SendCommand::send`]; [`Error::Unanswered`] if there is such a session, so that another id is tried;
    /// [`Error::Garbled`].
    pub async fn create<R: SendCommand>(
        &self,
        redis: &R,
        send_by: Instant,
        id: &Id,
        value: Bytes,
        ttl: Duration,
    ) -> Result<(), Error> {
        let [px, nx] = ["PX", "NX"].map(Value::from_static_str);
        let arguments = vec![id.to_string().into(), Value::Bytes(value), px, millis(ttl), nx];
        let reply = redis.send(send_by, "SET", Some(0), arguments).await?;
        match reply {
            reply if reply.is_ok() => Ok(()),
            Value::Null => Err(Error::Unanswered),
            _ => Err(Error::Garbled),
        }
    }

    /// Deletes a session.
    ///
    /// # Errors
    /// As for [`SendCommand::send`].
    pub async fn delete<R: SendCommand>(&self, redis: &R, send_by: Instant, id: &Id) -> Result<(), Error> {
        redis.send(send_by, "DEL", Some(0), vec![id.to_string().into()]).await.map(drop)
    }

    /// Swaps sessions: one, or several if [`Self::takes_many`]. Gives the result of each. After an error
    /// it may be sent again: if an earlier sending took effect, a later one has none.
    ///
    /// # Errors
    /// As for [`SendCommand::send`], and [`Error::Garbled`], for the whole call.
    pub async fn swap<R: SendCommand>(
        &self,
        redis: &R,
        send_by: Instant,
        swaps: &[Swap],
    ) -> Result<Vec<Result<Swapped, Error>>, Error> {
        if let [swap] = swaps
            && self.has_ifeq.load(Relaxed)
        {
            match self.set_if_equal(redis, send_by, swap).await {
                Err(error) if error.is_unknown_option() => self.has_ifeq.store(false, Relaxed),
                swapped => return Ok(vec![Ok(swapped?)]),
            }
        }
        match self.run_script(redis, send_by, swaps).await {
            Err(error) if swaps.len() > 1 && error.is_cross_slot() => self.allows_several_keys.store(false, Relaxed),
            Err(error) if self.has_ifeq.load(Relaxed) && error.is_forbidden() => {
                self.has_scripts.store(false, Relaxed);
            }
            replies => return replies,
        }
        // From now on, each session is a command of its own. Nothing of this call is stored.
        let each = swaps.iter().map(|swap| Box::pin(self.swap(redis, send_by, slice::from_ref(swap))));
        // If one of them fails, that says nothing of the others: each gets its own result.
        let swapped = |reply: Result<Vec<_>, _>| reply.and_then(|mut replies| replies.remove(0));
        Ok(join_all(each).await.into_iter().map(swapped).collect())
    }

    async fn set_if_equal<R: SendCommand>(&self, redis: &R, send_by: Instant, swap: &Swap) -> Result<Swapped, Error> {
        let [expected, new] = [&swap.expected, &swap.new].map(|value| Value::Bytes(value.clone()));
        let [px, ifeq, get] = ["PX", "IFEQ", "GET"].map(Value::from_static_str);
        let arguments = vec![swap.id.to_string().into(), new, px, millis(swap.ttl), ifeq, expected, get];
        let held = redis.send(send_by, "SET", Some(0), arguments).await?;
        let held = if held.is_null() {
            match self.read(redis, send_by, &swap.id).await {
                Ok(None) => return Ok(Swapped::Gone),
                Ok(Some(held)) => held,
                // The swap itself was answered: this sending has changed nothing.
                Err(Error::Unanswered) => return Err(Error::Unreached),
                Err(error) => return Err(error),
            }
        } else if held.as_bytes() == Some(&swap.expected) {
            return Ok(Swapped::Stored);
        } else {
            copy(&held)?
        };
        Ok(if held == swap.new { Swapped::Stored } else { Swapped::Other(held) })
    }

    async fn run_script<R: SendCommand>(
        &self,
        redis: &R,
        send_by: Instant,
        swaps: &[Swap],
    ) -> Result<Vec<Result<Swapped, Error>>, Error> {
        let (values, long_values) = script_values(swaps);
        let arguments = |script: Value| {
            let mut arguments = Vec::with_capacity(6 + swaps.len() + long_values.len());
            arguments.extend([script, (swaps.len() as i64).into()]);
            arguments.extend(swaps.iter().map(|swap| Value::from(swap.id.to_string())));
            arguments.extend([millis(self.ttl.longest()), Value::from_static(ENDED_MARK), millis(ENDED_TTL)]);
            arguments.push(Value::Bytes(values.clone()));
            arguments.extend(long_values.iter().cloned().map(Value::Bytes));
            arguments
        };
        let reply = match redis.send(send_by, "EVALSHA", Some(2), arguments(Value::String(self.script.clone()))).await {
            Err(error) if error.is_unknown_script() => {
                redis.send(send_by, "EVAL", Some(2), arguments(Value::from_static_str(SCRIPT))).await?
            }
            reply => reply?,
        };
        match reply {
            Value::Array(replies) if replies.len() == swaps.len() => Ok(replies.iter().map(read_reply).collect()),
            _ => Err(Error::Garbled),
        }
    }
}

fn millis(ttl: Duration) -> Value {
    Value::from(ttl.as_millis() as i64)
}

/// The values of a call as the script reads them: the short ones in one text, and the long ones.
fn script_values(swaps: &[Swap]) -> (Bytes, Vec<Bytes>) {
    const LENGTHS_AND_TTL: usize = 32;
    let is_long = |swap: &Swap| swap.expected.len().max(swap.new.len()) > MAX_SHORT_VALUE;
    let short = swaps.iter().filter(|swap| !is_long(swap));
    let bytes: usize = short.map(|swap| swap.expected.len() + swap.new.len()).sum();
    let mut text = Vec::with_capacity(bytes + LENGTHS_AND_TTL * swaps.len());
    let mut long = Vec::new();
    for swap @ Swap { expected, new, ttl, .. } in swaps {
        let mut short: [&[u8]; 2] = [expected, new];
        if is_long(swap) {
            short = [&[]; 2];
            long.extend([expected.clone(), new.clone()]);
        }
        let millis = ttl.as_millis().to_string();
        short.iter().for_each(|value| text.extend_from_slice(&(value.len() as u16).to_be_bytes()));
        text.push(millis.len() as u8);
        short.iter().for_each(|value| text.extend_from_slice(value));
        text.extend_from_slice(millis.as_bytes());
    }
    (text.into(), long)
}

/// Reads the script's reply for one key.
fn read_reply(reply: &Value) -> Result<Swapped, Error> {
    match reply {
        Value::Integer(1) => Ok(Swapped::Stored),
        Value::Null => Ok(Swapped::Gone),
        Value::Array(error) => match &error[..] {
            // `as_str` would make a text of any type.
            [text @ (Value::Bytes(_) | Value::String(_))] => {
                Err(text.as_str().map_or(Error::Garbled, |text| Error::refused(&text)))
            }
            _ => Err(Error::Garbled),
        },
        held => copy(held).map(Swapped::Other),
    }
}

/// Copies a value out of the larger buffer that fred read it into.
fn copy(held: &Value) -> Result<Bytes, Error> {
    match held {
        Value::Bytes(_) | Value::String(_) => held.as_bytes().map(Bytes::copy_from_slice).ok_or(Error::Garbled),
        _ => Err(Error::Garbled),
    }
}

/// A server that is played by a test.
#[cfg(test)]
pub(super) mod scripted {
    use std::collections::VecDeque;

    use parking_lot::Mutex;

    use super::*;

    /// It expects these commands, and gives these replies.
    #[derive(Debug)]
    pub struct Server(Mutex<VecDeque<(&'static str, Result<Value, Error>)>>);

    impl Server {
        pub fn new(script: impl IntoIterator<Item = (&'static str, Result<Value, Error>)>) -> Self {
            Self(Mutex::new(script.into_iter().collect()))
        }

        /// Whether all these commands have come.
        pub fn is_done(&self) -> bool {
            self.0.lock().is_empty()
        }
    }

    impl SendCommand for Server {
        async fn send(
            &self,
            _: Instant,
            command: &'static str,
            _: Option<usize>,
            arguments: Vec<Value>,
        ) -> Result<Value, Error> {
            let (expected, reply) = self.0.lock().pop_front().unwrap_or_else(|| panic!("{command} is one too many"));
            assert_eq!(command, expected, "{arguments:?}");
            reply
        }
    }

    /// A server's error.
    pub fn refusal(text: &str) -> Result<Value, Error> {
        Err(Error::refused(text))
    }

    /// Replies of other types than sessions' commands have.
    pub fn garbage() -> Vec<Value> {
        let nested = |value| Value::Array(vec![value]);
        vec![
            Value::Integer(7),
            Value::Double(1.5),
            Value::Boolean(true),
            Value::Queued,
            Value::Array(vec![]),
            nested(Value::Null),
            nested(nested(Value::Integer(1))),
            Value::try_from(std::collections::HashMap::from([("1", 1)])).unwrap(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::{
        scripted::{Server, garbage, refusal},
        *,
    };

    const NO_IFEQ: &str = "ERR syntax error";
    const NO_SCRIPT: &str = "NOSCRIPT No matching script.";
    const NOT_ALLOWED: &str = "NOPERM this user has no permissions to run the 'evalsha' command";
    const SEVERAL_SLOTS: &str = "CROSSSLOT Keys in request don't hash to the same slot";

    /// The result of a future that never waits.
    fn now<T>(future: impl Future<Output = T>) -> T {
        future.now_or_never().expect("it waits")
    }

    fn bytes(text: &'static str) -> Value {
        Value::Bytes(Bytes::from_static(text.as_bytes()))
    }

    fn swap(id: i128) -> Swap {
        let value = |text: &'static str| Bytes::from_static(text.as_bytes());
        Swap { id: Id(id), expected: value("before"), new: value("new"), ttl: Duration::from_secs(1) }
    }

    fn compare_and_set() -> CompareAndSet {
        CompareAndSet::new(SessionTtl::new(Duration::from_secs(60), None), false)
    }

    type Script = Vec<(&'static str, Result<Value, Error>)>;

    /// Swaps these sessions on a server that gives these replies.
    fn swapped(this: &CompareAndSet, number: i128, script: Script) -> Result<Vec<Result<Swapped, Error>>, Error> {
        let server = Server::new(script);
        let swaps: Vec<_> = (0..number).map(swap).collect();
        let swapped = now(this.swap(&server, Instant::now(), &swaps));
        assert!(server.is_done(), "{server:?}");
        swapped
    }

    fn ones(number: usize) -> Value {
        Value::Array(vec![Value::Integer(1); number])
    }

    #[test]
    fn if_equal_in_both_forms() {
        let other = Swapped::Other(Bytes::from_static(b"other"));
        for (script, expected) in [
            (vec![("SET", Ok(bytes("before")))], Swapped::Stored),
            // An earlier sending has stored it.
            (vec![("SET", Ok(bytes("new")))], Swapped::Stored),
            (vec![("SET", Ok(bytes("other")))], other.clone()),
            // As Upstash has it.
            (vec![("SET", Ok(Value::Null)), ("GETEX", Ok(bytes("new")))], Swapped::Stored),
            (vec![("SET", Ok(Value::Null)), ("GETEX", Ok(bytes("other")))], other),
            (vec![("SET", Ok(Value::Null)), ("GETEX", Ok(Value::Null))], Swapped::Gone),
        ] {
            assert_eq!(swapped(&compare_and_set(), 1, script.clone()), Ok(vec![Ok(expected)]), "{script:?}");
        }
    }

    #[test]
    fn a_server_without_if_equal_gets_the_script() {
        let this = compare_and_set();
        // As after a failover to an older server.
        let script = vec![
            ("SET", refusal(NO_IFEQ)),
            ("EVALSHA", refusal(NO_SCRIPT)),
            ("EVAL", Ok(Value::Array(vec![bytes("other")]))),
        ];
        assert_eq!(swapped(&this, 1, script), Ok(vec![Ok(Swapped::Other(Bytes::from_static(b"other")))]));
        let script = vec![("EVALSHA", Ok(Value::Array(vec![Value::Null])))];
        assert_eq!(swapped(&this, 1, script), Ok(vec![Ok(Swapped::Gone)]), "what it lacks is remembered");
        assert!(this.takes_many());
    }

    #[test]
    fn a_server_that_does_not_take_many_gets_one_after_the_other() {
        for refused in [SEVERAL_SLOTS, NOT_ALLOWED, "ERR unknown command 'EVALSHA', with args beginning with: 'a'"] {
            let this = compare_and_set();
            assert!(this.takes_many());
            let script =
                vec![("EVALSHA", refusal(refused)), ("SET", Ok(bytes("before"))), ("SET", Ok(bytes("before")))];
            assert_eq!(swapped(&this, 2, script), Ok(vec![Ok(Swapped::Stored); 2]), "{refused}");
            assert!(!this.takes_many(), "{refused}");
        }
        // A node of a Cluster without IFEQ.
        let this = compare_and_set();
        let script = vec![
            ("SET", refusal(NO_IFEQ)),
            ("EVALSHA", Ok(ones(1))),
            ("EVALSHA", refusal(SEVERAL_SLOTS)),
            ("EVALSHA", Ok(ones(1))),
            ("EVALSHA", Ok(ones(1))),
        ];
        let server = Server::new(script);
        now(this.swap(&server, Instant::now(), &[swap(1)])).unwrap();
        let both = now(this.swap(&server, Instant::now(), &[swap(1), swap(2)]));
        assert_eq!((both, server.is_done()), (Ok(vec![Ok(Swapped::Stored); 2]), true));
    }

    /// Whatever one of them fails with.
    #[test]
    fn those_that_come_one_after_the_other_are_answered_each_for_itself() {
        for failure in [Error::refused("WRONGTYPE"), Error::Unanswered, Error::Unreached] {
            let script = vec![
                ("EVALSHA", refusal(SEVERAL_SLOTS)),
                ("SET", Ok(bytes("before"))),
                ("SET", Err(failure.clone())),
                ("SET", Ok(bytes("before"))),
            ];
            let expected = Ok(vec![Ok(Swapped::Stored), Err(failure), Ok(Swapped::Stored)]);
            assert_eq!(swapped(&compare_and_set(), 3, script), expected);
        }
    }

    #[test]
    fn a_server_that_allows_no_form_refuses() {
        let script = vec![("SET", refusal(NO_IFEQ)), ("EVALSHA", refusal(NOT_ALLOWED))];
        let reply = swapped(&compare_and_set(), 1, script);
        assert_eq!(reply, Err(Error::refused(NOT_ALLOWED)));
    }

    #[test]
    fn the_scripts_reply_has_a_result_for_each() {
        let refused = Error::refused("WRONGTYPE Operation against a key holding the wrong kind of value");
        let error = Value::Array(vec![refused_text(&refused).into()]);
        let replies = vec![Value::Integer(1), Value::Null, bytes("other"), error];
        let script = vec![("EVALSHA", Ok(Value::Array(replies)))];
        let other = Swapped::Other(Bytes::from_static(b"other"));
        let expected = vec![Ok(Swapped::Stored), Ok(Swapped::Gone), Ok(other), Err(refused)];
        assert_eq!(swapped(&compare_and_set(), 4, script), Ok(expected));
    }

    fn refused_text(error: &Error) -> &str {
        let Error::Refused(text) = error else { panic!("{error}") };
        text
    }

    #[test]
    fn replies_of_another_length_or_type_are_garbled() {
        let lengths = [0, 1, 3, 100].map(ones);
        for reply in garbage().into_iter().chain(lengths).chain([Value::Null, bytes("before")]) {
            let script = vec![("EVALSHA", Ok(reply.clone()))];
            assert_eq!(swapped(&compare_and_set(), 2, script), Err(Error::Garbled), "{reply:?}");
        }
        for reply in garbage() {
            let script = vec![("EVALSHA", Ok(Value::Array(vec![reply.clone(), Value::Integer(1)])))];
            let expected = Ok(vec![Err(Error::Garbled), Ok(Swapped::Stored)]);
            assert_eq!(swapped(&compare_and_set(), 2, script), expected, "{reply:?}");
            for script in
                [vec![("SET", Ok(reply.clone()))], vec![("SET", Ok(Value::Null)), ("GETEX", Ok(reply.clone()))]]
            {
                assert_eq!(swapped(&compare_and_set(), 1, script), Err(Error::Garbled), "{reply:?}");
            }
            let server = Server::new([("GETEX", Ok(reply.clone()))]);
            assert_eq!(now(compare_and_set().read(&server, Instant::now(), &Id(1))), Err(Error::Garbled));
        }
    }

    #[test]
    fn a_session_is_begun_if_the_server_says_so() {
        let garbage = garbage().into_iter().chain([bytes("QUEUED")]).map(|reply| (reply, Err(Error::Garbled)));
        let replies = [(Value::from_static_str("OK"), Ok(())), (Value::Null, Err(Error::Unanswered))];
        for (reply, expected) in replies.into_iter().chain(garbage) {
            let server = Server::new([("SET", Ok(reply.clone()))]);
            let (value, ttl) = (Bytes::from_static(b"new"), Duration::from_secs(1));
            let created = now(compare_and_set().create(&server, Instant::now(), &Id(1), value, ttl));
            assert_eq!(created, expected, "{reply:?}");
        }
    }

    #[test]
    fn a_server_is_checked() {
        let full = "OOM command not allowed when used memory > 'maxmemory'.";
        let read_only = "READONLY You can't write against a read only replica.";
        for (script, expected) in [
            (vec![("SET", Ok(Value::Null))], Ok(())),
            (vec![("SET", refusal(full))], Ok(())),
            (vec![("SET", refusal(NO_IFEQ)), ("EVAL", Ok(ones(0)))], Ok(())),
            (vec![("SET", refusal(NO_IFEQ)), ("EVAL", refusal(NOT_ALLOWED))], refusal(NOT_ALLOWED).map(drop)),
            (vec![("SET", refusal(read_only))], refusal(read_only).map(drop)),
            (vec![("SET", Err(Error::Unanswered))], Err(Error::Unanswered)),
        ] {
            let server = Server::new(script.clone());
            let checked = now(compare_and_set().check(&server, Instant::now()));
            assert_eq!((checked, server.is_done()), (expected, true), "{script:?}");
        }
    }

    /// Another server may know more.
    #[test]
    fn a_check_forgets_the_last_server() {
        let this = compare_and_set();
        swapped(&this, 1, vec![("SET", refusal(NO_IFEQ)), ("EVALSHA", Ok(ones(1)))]).unwrap();
        now(this.check(&Server::new([("SET", Ok(Value::Null))]), Instant::now())).unwrap();
        swapped(&this, 1, vec![("SET", Ok(bytes("before")))]).unwrap();
        let each = vec![("EVALSHA", refusal(NOT_ALLOWED)), ("SET", Ok(bytes("before"))), ("SET", Ok(bytes("before")))];
        swapped(&this, 2, each).unwrap();
        assert!(!this.takes_many());
        now(this.check(&Server::new([("SET", Ok(Value::Null))]), Instant::now())).unwrap();
        assert!(this.takes_many());
    }

    #[test]
    fn no_session_has_the_keys_that_are_asked_for() {
        for number in [0, 7, 100_000] {
            let key = no_session(number);
            assert_eq!(key.len(), Id::default().to_string().len());
            assert!(key.parse::<Id>().is_err(), "{key}");
        }
    }
}
